"""What all purifiers share that descend an objective of their own: SOAP, AID and Reverse differ in nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from torch import Tensor

from models.purifiers.base import Material, Options, Purified, PurifierInfo, Wanted, one_each
from models.purifiers.descent import DescentSettings, Objective, RandomObjective, at_step, descend, passes


class ReadingObjective(Objective, Protocol):
    """A descent objective that also says how its classifier reads an image."""

    def logits(self, x: Tensor) -> Tensor: ...


class RandomReadingObjective(RandomObjective, Protocol):
    """The same of an objective that draws random numbers."""

    def logits(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Description:
    """The fields of `PurifierInfo` that no setting changes."""

    kind: str
    paper: str
    summary: str


O = TypeVar("O", bound=ReadingObjective | RandomReadingObjective)  # noqa: E741
S = TypeVar("S", bound=DescentSettings)


class DescentPurifier(Generic[O]):
    """An objective on the shared descent.

    Raises:
        ValueError: the settings have a `skip_percentile` and there is no calibration.
    """

    def __init__(
        self, description: Description, objective: O, settings: DescentSettings, calibration: Sequence[float]
    ) -> None:
        self._description, self._objective = description, objective
        self.settings, self._calibration = settings, calibration
        self.skip_below = _threshold(settings, calibration)
        forwards, backwards = passes(objective, settings)
        self._info = PurifierInfo(
            kind=description.kind,
            paper=description.paper,
            summary=description.summary,
            eps_pfy=min(settings.budgets[-1], settings.reach(settings.steps)),
            forward_passes=forwards,
            backward_passes=backwards,
            objective=type(objective).__name__,
            options=("epsilon", "steps"),
            random=settings.random_start > 0 or isinstance(objective, RandomObjective),
        )

    @property
    def info(self) -> PurifierInfo:
        return self._info

    @property
    def descended(self) -> O:
        """The objective itself, for attacks that follow its descent."""
        return self._objective

    @property
    def chooses(self) -> bool:
        """Whether there is more than one candidate."""
        return self.settings.selection != "fixed"

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """See `Purifier`; `seeds` matter where `info.random` says so."""
        return descend(self._objective, x, self.settings, self.skip_below, seeds=seeds, wanted=wanted)

    def with_options(self, options: Options) -> Self:
        """See `Purifier`."""
        return type(self)(self._description, self._objective, self.settings.with_options(options), self._calibration)

    def purify_with_candidates(self, x: Tensor, seeds: Sequence[int] | None = None) -> tuple[Purified, list[Tensor]]:
        """`purify`, and the logits (N, K) of every candidate that it chose from: every budget, or every iterate."""
        candidates: list[Tensor] = []
        found = descend(self._objective, x, self.settings, self.skip_below, seeds=seeds, on_candidate=candidates.append)
        return found, candidates

    def objective(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """The loss of each incoming image, differentiable; `seeds` as of `purify`. (N, C, H, W) in [0, 1] -> (N,)."""
        own = one_each(x, seeds) if isinstance(self._objective, RandomObjective) else []
        return at_step(self._objective, 0, own)(x).loss

    def logits(self, x: Tensor) -> Tensor:
        """See `Purifier`."""
        return self._objective.logits(x)


def _threshold(settings: DescentSettings, calibration: Sequence[float]) -> float | None:
    if settings.skip_percentile is None:
        return None
    if len(calibration) != 101:
        raise ValueError(
            f"skip_percentile needs the card's calibration, 101 percentiles of the loss on clean training images; "
            f"it has {len(calibration)}"
        )
    low = int(settings.skip_percentile)
    share = settings.skip_percentile - low
    return calibration[low] + share * (calibration[min(low + 1, 100)] - calibration[low])


def settings_of(model: type[S], material: Material) -> S:
    """The settings that the card holds.

    Raises:
        ValueError: they don't fit.
    """
    return model.model_validate(dict(material.settings))
