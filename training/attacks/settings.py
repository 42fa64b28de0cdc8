"""What an attack is: its mode, its budget, and how it climbs."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Mode = Literal[
    "none",
    "static",
    "features",
    "foolbox",
    "autoattack",
    "substitute",
    "two-view",
    "joint",
    "bpda",
    "end-to-end",
    "unrolled",
    "trajectory",
    "square",
    "decision",
]
BLIND: tuple[Mode, ...] = ("static", "features", "foolbox", "autoattack")  # attacks on a classifier alone
BY_GRADIENT: tuple[Mode, ...] = ("two-view", "joint", "bpda", "end-to-end", "unrolled", "trajectory")
# Those with the purifier in the loop.
PURIFYING: tuple[Mode, ...] = ("bpda", "end-to-end", "unrolled", "trajectory")
BY_QUERIES: tuple[Mode, ...] = ("square", "decision", "substitute")  # they see the defence's answers alone
Norm = Literal["linf", "l2"]

# By mode: the package that searches.
LIBRARIES: dict[Mode, str] = {"foolbox": "foolbox", "autoattack": "pyautoattack", "square": "pyautoattack"}

# Fields that only some modes read: in others they would promise what isn't done.
READ_BY: dict[str, tuple[Mode, ...]] = {
    "targets": ("static", *BY_GRADIENT),
    "weight": ("joint", "two-view"),
    "followed": ("trajectory", "unrolled"),
    "past_clips": ("unrolled",),
    "eot": (*PURIFYING, "two-view"),  # they can average over the purifier's draws, so many of them
}


class AttackSettings(BaseModel):
    """An attack and its budget. steps = 1 with step_size = epsilon is FGSM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mode: Mode
    norm: Norm = "linf"
    epsilon: float = Field(default=0.0, ge=0, description="radius of the ball around the image, in its norm")
    step_size: float = Field(default=0.0, ge=0, description="of pgd; apgd finds its own")
    steps: int = Field(default=0, ge=0, description="gradients; of square and decision queries of the defence")
    algorithm: Literal["pgd", "apgd"] = Field(
        default="pgd", description="pgd: steps of one size. apgd: Croce and Hein, ICML 2020, Alg. 1"
    )
    loss: Literal["ce", "dlr"] = Field(
        default="ce", description="cross entropy, or the difference of logits ratio (Croce and Hein 2020, Eq. 6 and 7)"
    )
    targets: int = Field(
        default=0, ge=0, description="0: away from the label; k: towards each of the k likeliest wrong classes in turn"
    )
    random_start: bool = Field(
        default=False, description="uniform in the budget, drawn from `seed` and the image's index"
    )
    sign_start: float = Field(
        default=0.0, ge=0, description="R-FGSM's alpha (Tramer et al., ICLR 2018): a start of so much in random signs"
    )
    restarts: int = Field(default=1, ge=1, description="other random starts for images that withstood the last one")
    momentum: float = Field(default=0.0, ge=0, description="mu of MI-FGSM (Dong et al., CVPR 2018, Eq. 6)")
    diversity: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="p of DIM (Xie et al., CVPR 2019): how often the input is resized and padded",
    )
    kernel: int = Field(
        default=0,
        ge=0,
        description="side of the Gaussian that smooths gradients, TI (Dong et al., CVPR 2019); odd, or 0",
    )
    weight: float = Field(
        default=0.0, description="joint, two-view: beta of SOAP Eq. (9), of the purifier's own loss in what is ascended"
    )
    followed: int | None = Field(
        default=None, ge=1, description="unrolled, trajectory: so many of the purifier's steps; default all"
    )
    past_clips: bool = Field(
        default=False, description="unrolled: clips pass gradients on as if they weren't there, instead of their own"
    )
    eot: int = Field(default=1, ge=1, description="draws of a random purifier that each gradient is the mean of")
    tap: str | None = Field(default=None, description="features: the classifier's layer whose outputs are distorted")
    attack: str | None = Field(
        default=None,
        description="foolbox: the attack's class, with `epsilon` in its own norm; autoattack: which part; substitute: its "
        "architecture",
    )
    arguments: dict[str, float] = Field(
        default={}, description="foolbox: of that class, where they aren't its defaults"
    )
    whole: bool = Field(
        default=False, description="autoattack: on the whole defence, past what has no gradient, not on the classifier"
    )
    source: str | None = Field(
        default=None, description="classifier on which the images are made; default: the one that is evaluated"
    )
    images: int | None = Field(default=None, ge=1, description="so many alone, where the plan asks for more")
    seed: int = 0

    @model_validator(mode="after")
    def _fits_mode(self) -> Self:
        for modes, field in ((("foolbox", "autoattack", "substitute"), "attack"), (("features",), "tap")):
            if (self.mode in modes) != (getattr(self, field) is not None):
                raise ValueError(f"attack {self.name!r}: the field `{field}` and mode {' or '.join(modes)} go together")
        if self.source and self.aware:
            raise ValueError(f"attack {self.name!r}: mode {self.mode!r} attacks the defence itself, not a `source`")
        if self.whole and self.mode != "autoattack":
            raise ValueError(
                f"attack {self.name!r}: `whole` is for autoattack; mode {self.mode!r} knows what it attacks"
            )
        for field, readers in READ_BY.items():
            if self.mode not in readers and getattr(self, field) != type(self).model_fields[field].default:
                known = ", ".join(readers)
                raise ValueError(f"attack {self.name!r}: mode {self.mode!r} has no {field}; these have: {known}")
        climbs = self.mode in ("static", "features", "substitute", *BY_GRADIENT)
        if climbs and self.algorithm == "pgd" and self.steps and not self.step_size:
            raise ValueError(f"attack {self.name!r}: {self.steps} steps of size 0 lead nowhere; give a step_size")
        if self.sign_start and (self.norm != "linf" or self.sign_start > self.epsilon):
            raise ValueError(
                f"attack {self.name!r}: a sign_start is for l_inf, and at most epsilon, or it leaves the ball"
            )
        if self.mode == "features" and not self.random_start:
            raise ValueError(
                f"attack {self.name!r}: mode 'features' needs random_start; at the image there is no gradient"
            )
        if self.random_start and self.mode in ("foolbox", "autoattack", *BY_QUERIES):
            raise ValueError(f"attack {self.name!r}: mode {self.mode!r} has no random_start of ours")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(f"attack {self.name!r}: restarts need random_start, else they are all the same")
        if self.kernel and self.kernel % 2 == 0:
            raise ValueError(f"attack {self.name!r}: a kernel has a middle, so its side is odd; got {self.kernel}")
        if self.norm == "linf" and self.mode != "foolbox" and self.epsilon > 1:
            raise ValueError(
                f"attack {self.name!r}: l_inf budgets are in [0, 1] units, for example 8 / 255; got {self.epsilon:g}"
            )
        return self

    @property
    def aware(self) -> bool:
        """Whether it attacks the whole defence; else the images are made on a classifier alone."""
        return self.whole or self.mode in (*BY_GRADIENT, *BY_QUERIES)

    @property
    def by_gradient(self) -> bool:
        """Whether it does nothing but climb gradients. AutoAttack's standard ends with Square, Foolbox's may do anything."""
        return self.mode not in ("none", "foolbox", *BY_QUERIES) and self.attack not in ("standard", "square")

    def stays_within(self, epsilon: float) -> bool:
        """Whether its images are in the l_inf ball of this radius."""
        other_norm = self.norm != "linf" or (self.mode == "foolbox" and not (self.attack or "").startswith("Linf"))
        return not other_norm and self.epsilon <= epsilon + 1e-9

    def text(self) -> str:
        """One line for people, for example `pgd: 20 steps of 2/255, epsilon 8/255`."""
        if self.mode == "none":
            return self.name
        budget = f"epsilon {_fraction(self.epsilon)}{' in l_2' if self.norm == 'l2' else ''}"
        return f"{self.name}: {', '.join([*self._how(), budget, *self._special()])}"

    def _how(self) -> list[str]:
        """What it does, in one or two parts."""
        match self.mode:
            case "foolbox":
                return [f"Foolbox {self.attack}", *(f"{name} {value:g}" for name, value in self.arguments.items())]
            case "autoattack":
                return [f"AutoAttack {self.attack}" + (" on the whole defence" if self.whole else "")]
            case "square" | "decision":
                return [f"{self.steps} queries"]
        climbed = f"{self.steps} steps" + (
            f" of {_fraction(self.step_size)}" if self.algorithm == "pgd" else " of APGD"
        )
        tapped = [self.tap] if self.tap else []
        aimed = [f"{self.targets} targets"] if self.targets else []
        return [*tapped, climbed, *(["DLR"] if self.loss == "dlr" else []), *aimed]

    def _special(self) -> list[str]:
        told = {
            f"momentum {self.momentum:g}": self.momentum,
            f"diverse inputs {self.diversity:g}": self.diversity,
            f"smoothed by {self.kernel} x {self.kernel}": self.kernel,
            f"the purifier's loss times {-self.weight:g}": self.weight,
            f"{self.followed} of its steps": self.followed,
            "past clips": self.past_clips,
            f"mean of {self.eot} draws": self.eot > 1,
            f"start of {_fraction(self.sign_start)} in random signs": self.sign_start,
            f"{self.restarts} random starts": self.restarts > 1,
            "random start": self.random_start and self.restarts == 1,
            f"made on {self.source}": self.source,
        }
        return [text for text, holds in told.items() if holds]


def _fraction(value: float) -> str:
    of_255 = value * 255
    return f"{of_255:.4g}/255" if abs(of_255 - round(of_255, 1)) < 1e-9 and value < 0.2 else f"{value:.4g}"
