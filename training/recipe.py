"""Recipes: everything that decides what a training produces, as TOML validated by these models."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.checkpoint import InputSpec, PurifierEntry

RECIPES = Path(__file__).parent / "recipes"

Task = Literal["natural", "soap-dr", "soap-rp", "soap-lc", "fgsm-at", "pgd-at", "trades", "avmixup"]

# The adversarial trainings, and what each needs to know beside the attack's ball and steps.
ADVERSARIAL: dict[Task, set[str]] = {
    "fgsm-at": set(),
    "pgd-at": set(),
    "trades": {"beta"},
    "avmixup": {"gamma", "lambda_1", "lambda_2"},
}


class RecipeError(Exception):
    """A recipe is unknown or wrong; the message says which field, or which recipes exist."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Augmentation(_Frozen):
    """What happens to every training image before the task sees it."""

    crop_padding: int = Field(default=0, ge=0, le=16, description="pad by so many pixels, cut a random window")
    flip: bool = Field(default=False, description="mirror every second image")


class Views(_Frozen):
    """The two augmentations a_1, a_2 of label consistency, drawn for each image and each view (SOAP Sec. 4)."""

    zoom_1: tuple[int, int] = Field(
        description="side of view 1's random square crop, in pixels, resized by nearest neighbour"
    )
    zoom_2: tuple[int, int] = Field(description="the same for view 2")
    flip: float = Field(default=0.0, ge=0, le=1, description="chance of mirroring a view, beside the augmentation's")
    independent: bool = Field(default=True, description="draw the augmentation (window, mirror) anew for each view")


class Attack(_Frozen):
    """What an adversarial training trains against: sign ascent in an l_inf ball, in [0, 1] units (training/robust.py)."""

    epsilon: float = Field(gt=0, le=1, description="radius of the ball")
    step_size: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)
    beta: float | None = Field(
        default=None, ge=0, description="trades: weight of the divergence, 1/lambda in the paper"
    )
    gamma: float | None = Field(default=None, ge=1, description="avmixup: the vertex lies so many perturbations away")
    lambda_1: float | None = Field(default=None, ge=0, le=1, description="avmixup: label weight of the clean image")
    lambda_2: float | None = Field(default=None, ge=0, le=1, description="avmixup: label weight of the vertex")

    def own(self) -> set[str]:
        """The fields given that only some of the tasks know."""
        return {name for name in ("beta", "gamma", "lambda_1", "lambda_2") if getattr(self, name) is not None}


class Schedule(_Frozen):
    """Learning rate: `step` divides at milestones (the papers'); `one-cycle` rises linearly, then falls linearly to 0."""

    kind: Literal["step", "one-cycle"]
    milestones: tuple[float, ...] = Field(default=(), description="step: shares of the training at which it divides")
    factor: float = Field(default=0.1, gt=0, lt=1, description="step: what it is multiplied by")
    warmup: float = Field(default=0.2, gt=0, lt=1, description="one-cycle: share of the training that rises")


class AnyRecipe(_Frozen):
    """What every training has. A comment beside a value in the TOML file says where it comes from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    summary: str
    model: str
    classifier: str
    data: str
    arguments: dict[str, Any] = {}
    input: InputSpec
    augmentation: Augmentation = Augmentation()
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    calibration_images: int = Field(default=2000, ge=100, description="first training images, unaugmented")
    purifiers: dict[str, PurifierEntry]

    def shaping(self) -> dict[str, Any]:
        """The fields that shape the weights; what only the card holds may change after training."""
        return self.model_dump(
            mode="json", exclude={"summary", "purifiers", "calibration_images", "model", "classifier"}
        )


class Recipe(AnyRecipe):
    """The training of a classifier."""

    architecture: str
    task: Task
    alpha: float = Field(default=0.0, ge=0, description="trade-off of the auxiliary loss, Eq. (2)")
    noise: float = Field(
        default=0.0, ge=0, le=1, description="sigma of the Gaussian noise on training images, [0, 1] units"
    )
    views: Views | None = None
    attack: Attack | None = None
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0, description="on weights, not on biases and norms")
    schedule: Schedule

    @model_validator(mode="after")
    def _attack_fits_task(self) -> Self:
        if (self.attack is not None) != (self.task in ADVERSARIAL):
            verb = "has no use for" if self.attack else "needs"
            raise ValueError(f"task {self.task!r} {verb} an [attack] table")
        if self.attack and self.attack.own() != ADVERSARIAL[self.task]:
            needed, given = (
                ", ".join(sorted(names)) or "none" for names in (ADVERSARIAL[self.task], self.attack.own())
            )
            raise ValueError(f"task {self.task!r} takes of the special fields of [attack]: {needed}; given: {given}")
        if self.attack and self.task == "fgsm-at" and self.attack.steps != 1:
            raise ValueError(f"task 'fgsm-at' takes one step, not {self.attack.steps}")
        return self


class AddOnRecipe(AnyRecipe):
    """The training of a purifier's own network (an add-on) beside a frozen classifier: `classifier` of `model` in the zoo."""

    part: Literal["purifier"]
    addon: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="what the checkpoint is called in the zoo")
    network: str = Field(description="a registered purifier network; `arguments` are its")
    protects: Literal["classifier", "model"] = Field(
        description="classifier: only the one it was trained beside; model: every classifier of the model"
    )
    settings: dict[str, Any] = Field(default={}, description="what the network's trainer needs, validated by it")


def recipe_names() -> list[str]:
    """The shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str, overrides: dict[str, Any] | None = None) -> Recipe | AddOnRecipe:
    """A shipped recipe by name, or any TOML file by path; `overrides` replace top-level fields.

    Raises:
        RecipeError: there is no such recipe, or a field is wrong.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(recipe_names())
        raise RecipeError(f"no recipe {name!r}; shipped: {known}; or give the path of a .toml file") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    try:
        kind = AddOnRecipe if fields.get("part") == "purifier" else Recipe
        return kind.model_validate({"name": path.stem, **fields, **(overrides or {})})
    except ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
