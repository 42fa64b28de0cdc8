"""Plans of an evaluation: which attacks, on which test images. The shipped ones are in training/plans/.

A plan's lengths may be told in the budget of its data set: `epsilon = "budget"`, `step_size = "budget / 4"`, `"2 * budget"`; or
as a fraction, `"8 / 255"`. An attack with `data = "mnist"` is for that data set alone, where it stands for the one of its name
that is for all.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.attacks import AttackSettings

PLANS = Path(__file__).parent / "plans"

# The l_inf balls of the papers' tables, [0, 1] units. Other data sets need a budget of their own.
BUDGETS = {"cifar10": 8 / 255, "cifar100": 8 / 255, "mnist": 0.3}

NUMBER = r"\d*\.?\d+"


class EvaluationError(Exception):
    """An evaluation can't run; the message says why and what to do."""


class Plan(BaseModel):
    """Which attacks, on which test images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    data: str
    budget: float = Field(gt=0, le=1, description="l_inf radius that its lengths are told in")
    first: int = Field(default=0, ge=0, description="index of the first test image")
    n: int = Field(ge=1, description="images for attacks on the classifier alone, from `first` on")
    adaptive_n: int = Field(ge=1, description="images for attacks that know the defence")
    redraws: int = Field(
        default=20, ge=1, description="fresh seeds that what was sent to a random defence is tried with"
    )
    attacks: tuple[AttackSettings, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "Plan":
        names = [attack.name for attack in self.attacks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"every attack needs a name of its own; twice there: {', '.join(sorted(twice))}")
        return self


def plan_names() -> list[str]:
    """The shipped ones."""
    return sorted(plan.stem for plan in PLANS.glob("*.toml"))


def load_plan(name: str, data: str, overrides: Mapping[str, Any] | None = None, budget: float | None = None) -> Plan:
    """A shipped plan by name, or any TOML file by path, for a data set. budget: instead of that data set's own.

    Raises:
        EvaluationError: there is no such plan, it isn't for this data set, or a field is wrong.
    """
    path = Path(name) if name.endswith(".toml") else PLANS / f"{name}.toml"
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EvaluationError(
            f"no plan {name!r}; shipped: {', '.join(plan_names())}; or give the path of a .toml file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise EvaluationError(f"{path}: {error}") from error
    if (only := fields.pop("only", data)) != data:
        raise EvaluationError(
            f"plan {path.stem!r} is for the data set {only!r}; this checkpoint was trained on {data!r}"
        )
    own = fields.pop("budget", BUDGETS.get(data))
    found = own if budget is None else budget
    if found is None:
        raise EvaluationError(
            f"no budget is known for the data set {data!r}; give one with --epsilon, for example --epsilon 8/255"
        )
    try:
        attacks = [_told(attack, found) for attack in _meant(fields.pop("attacks", []), data)]
        told = {"name": path.stem, "data": data, "budget": found, **fields, **(overrides or {}), "attacks": attacks}
        return Plan.model_validate(told)
    except (ValidationError, ValueError) as error:
        raise EvaluationError(f"{path}: {error}") from error


def _meant(attacks: Sequence[Mapping[str, Any]], data: str) -> list[dict[str, Any]]:
    """The attacks of a data set: its own, and those for all whose name none of its own has."""
    own = {attack.get("name") for attack in attacks if attack.get("data") == data}
    return [
        {field: value for field, value in attack.items() if field != "data"}
        for attack in attacks
        if attack.get("data", data) == data and ("data" in attack or attack.get("name") not in own)
    ]


def _told(attack: Mapping[str, Any], budget: float) -> dict[str, Any]:
    lengths = ("epsilon", "step_size", "sign_start")
    return {
        field: length(value, budget) if field in lengths and isinstance(value, str) else value
        for field, value in attack.items()
    }


def length(text: str, budget: float | None = None) -> float:
    """`"8 / 255"`, `"0.3"` or, where there is one, in units of the budget: `"budget"`, `"2 * budget"`, `"budget / 4"`.

    Raises:
        ValueError: it is none of these.
    """
    found = re.fullmatch(rf"(?:({NUMBER})\s*\*\s*)?(budget|{NUMBER})(?:\s*/\s*({NUMBER}))?", text.strip())
    divisor = float(found[3] or 1) if found else 0.0
    if not found or not divisor or (found[2] == "budget" and budget is None):
        raise ValueError(f"{text!r} is no length: write a number, a fraction such as 8/255, or a share of the budget")
    unit = budget if found[2] == "budget" and budget is not None else float(found[2])
    return float(found[1] or 1) * unit / divisor
