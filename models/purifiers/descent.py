"""Projected sign-gradient descent on an auxiliary loss: SOAP Alg. 2 with its choice of the budget for each image.

Shi, Holtz, Mishne: Online Adversarial Purification based on Self-Supervised Learning, ICLR 2021, Sec. 3.3.
Eq. (5) prints a plus where Alg. 2 prints a minus; the auxiliary loss is to fall, so we descend.

The published loop starts every budget from zero: 11 budgets x 5 steps are 55 gradients. Two budgets that the clip has not
separated yet share their iterate, so we carry one path for each *distinct* iterate and split it where a budget starts
to bind: 11 gradients for multiples of the step size, bit for bit the same images (tests/models/test_descent.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.purifiers.base import Options, Purified, Wanted, Wish, counted, one_each, uniform

Selection = Literal["fixed", "min-aux", "best-iterate"]


class Evaluation:
    """An objective's value on a batch.

    loss: (N,), with its graph where asked for. logits: (N, K), read off the same forwards; or what reads them, called only
    where an image of the batch could be chosen. surrogate: (N,), what the descent goes down and the choice goes by, where that
    isn't `loss`; the skip rule and what is reported go by `loss` all the same.
    """

    def __init__(self, loss: Tensor, logits: Tensor | Callable[[], Tensor], surrogate: Tensor | None = None) -> None:
        self.loss, self._logits = loss, logits
        self.descended = loss if surrogate is None else surrogate

    @cached_property
    def logits(self) -> Tensor:
        """(N, K)."""
        return self._logits if isinstance(self._logits, Tensor) else self._logits()

    def rows(self, which: Tensor | slice) -> "Evaluation":
        """The values of some images alone."""
        return Evaluation(self.loss[which], self.logits[which], self.descended[which])

    def chunk(self, parts: int) -> list["Evaluation"]:
        """The values of `parts` equally large parts of the batch."""
        fields = (self.loss.chunk(parts), self.logits.chunk(parts), self.descended.chunk(parts))
        return [Evaluation(*each) for each in zip(*fields, strict=True)]


class Cost(Protocol):
    """What an objective costs an image. `views` forwards an evaluation, `gradient_views` of them with a backward pass.

    `logit_views`: forwards that reading the logits takes beside them. `batch_invariant`: see `Classifier`.
    """

    views: int
    gradient_views: int
    logit_views: int
    batch_invariant: bool


class Objective(Cost, Protocol):
    """A per-image auxiliary loss."""

    def __call__(self, x: Tensor) -> Evaluation: ...


@runtime_checkable
class RandomObjective(Cost, Protocol):
    """A per-image auxiliary loss that draws random numbers: those of step `t` from each image's own seed."""

    def drawn(self, t: int, seeds: Sequence[int]) -> Callable[[Tensor], Evaluation]: ...


def at_step(objective: Objective | RandomObjective, t: int, seeds: Sequence[int]) -> Callable[[Tensor], Evaluation]:
    """What a step descends; `seeds`, one an image, matter to a `RandomObjective` alone."""
    return objective.drawn(t, seeds) if isinstance(objective, RandomObjective) else objective


class DescentSettings(BaseModel):
    """How the budget is spent and chosen. All lengths are in [0, 1] units, l_inf."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selection: Selection = Field(
        description="fixed: the last iterate under the largest budget (Alg. 2). min-aux: each budget's last iterate, the "
        "smallest budget with the least loss (Sec. 3.3). best-iterate: one path under the largest budget, the earliest "
        "iterate with the least loss (ours)."
    )
    budgets: tuple[float, ...] = Field(description="eps_pfy, ascending; fixed and best-iterate use the last one only")
    step_size: float = Field(gt=0, le=1, description="gamma")
    steps: int = Field(ge=1, le=1000, description="T")
    random_start: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="begin at a uniformly random point of so large a box around the image instead of at the image, drawn "
        "from the image's seed",
    )
    skip_percentile: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="leave an image alone whose incoming loss is at most this percentile of clean training images (ours)",
    )

    @model_validator(mode="after")
    def _ascending(self) -> "DescentSettings":
        in_range = all(0 <= budget <= 1 for budget in self.budgets)
        if not self.budgets or not in_range or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets must be in [0, 1] and strictly ascending; got {list(self.budgets)}")
        return self

    def descended(self) -> list[float]:
        """The budgets that a descent is made for: those above 0, of which only min-aux takes more than the last."""
        nonzero = [budget for budget in self.budgets if budget > 0]
        return nonzero if self.selection == "min-aux" else nonzero[-1:]

    @property
    def zero_in_grid(self) -> bool:
        """Whether min-aux may choose the image as it came."""
        return self.selection == "min-aux" and self.budgets[0] == 0

    def reach(self, t: int) -> float:
        """How far a pixel can be from the image's after t steps, the budget aside."""
        return self.random_start + t * self.step_size

    def groups(self, budgets: Sequence[float], t: int) -> list[list[float]]:
        """Budgets whose iterates are still the same after t steps; ascending, so the unbound ones come last."""
        bound = [[budget] for budget in budgets if budget < self.reach(t) - 1e-7]
        free = [budget for budget in budgets if budget >= self.reach(t) - 1e-7]
        return [*bound, free] if free else bound

    def with_options(self, options: Options) -> Self:
        """The same settings with a request's budget (the grid cut off or extended to it) and number of steps.

        Raises:
            ValueError: a value is out of bounds.
        """
        budgets, epsilon = self.budgets, options.epsilon
        if epsilon is not None:
            below = [budget for budget in budgets if budget < epsilon] if self.selection == "min-aux" else []
            budgets = (*below, epsilon)
        return self.model_validate(
            {**self.model_dump(), "budgets": budgets, "steps": self.steps if options.steps is None else options.steps}
        )


@dataclass
class _Path:
    """Budgets whose iterates are still the same, and that iterate's delta (N, C, H, W)."""

    budgets: list[float]
    delta: Tensor

    def moved(self, x: Tensor, raw: Tensor, settings: DescentSettings, t: int) -> list["_Path"]:
        """This path at `raw` (N, C, H, W) after t steps, split where a budget binds from here on."""
        return [_Path(group, _project(x, raw, group[-1])) for group in settings.groups(self.budgets, t)]


def _project(x: Tensor, delta: Tensor, budget: float) -> Tensor:
    delta = delta.clamp(-budget, budget)  # Alg. 2, l. 5
    return (x + delta).clamp(0, 1) - x  # Alg. 2, l. 6


class _Best:
    """The best candidate so far, image by image. Candidates come in ascending budget; only a lower loss replaces one."""

    def __init__(self, x: Tensor, before: Evaluation, on_candidate: Callable[[Tensor], None] | None) -> None:
        self.image = x.clone()
        self.logits: Tensor | None = None  # the first candidate tells how many classes there are
        self.loss = before.loss.detach().clone()
        self.descended = torch.full_like(self.loss, torch.inf)  # nothing was offered yet
        self.epsilon = torch.zeros_like(self.loss)
        self.on_candidate = on_candidate

    def offer(self, rows: Tensor, image: Tensor, found: Evaluation, epsilon: float) -> None:
        """A candidate for the images `rows` (M,) of the batch."""
        loss, logits, descended = found.loss.detach(), found.logits.detach(), found.descended.detach()
        if self.logits is None:
            self.logits = logits.new_zeros(len(self.loss), logits.shape[1])
        if self.on_candidate:
            self.on_candidate(logits)
        better = descended < self.descended[rows]
        chosen = rows[better]
        if len(chosen) == 0:
            return
        self.image[chosen], self.logits[chosen], self.loss[chosen] = image[better], logits[better], loss[better]
        self.descended[chosen] = descended[better]
        self.epsilon[chosen] = epsilon


def descend(
    objective: Objective | RandomObjective,
    x: Tensor,
    settings: DescentSettings,
    skip_below: float | None = None,
    *,
    seeds: Sequence[int] | None = None,
    wanted: Wanted | None = None,
    on_candidate: Callable[[Tensor], None] | None = None,
) -> Purified:
    """Purify a batch: Alg. 2 with the budget chosen for each image by its own loss.

    x: (N, C, H, W) in [0, 1]. Images with an incoming loss <= `skip_below` come back as they are. `seeds` and `wanted`: see
    `Purifier.purify`. `on_candidate` sees the logits (N, K) of every candidate that could be chosen, skipped images included.
    """
    x = x.detach()
    random = isinstance(objective, RandomObjective) or (settings.random_start > 0 and bool(settings.descended()))
    own = one_each(x, seeds) if random else []
    before, gradient = _forward(at_step(objective, 0, own), x)
    skip = before.loss.detach() <= (skip_below if skip_below is not None else -torch.inf)
    best, early = _Best(x, before, on_candidate), dict[int, int]()
    budgets = settings.descended()
    if settings.zero_in_grid or settings.selection == "best-iterate" or not budgets:
        best.offer(torch.arange(len(x), device=x.device), x, before, 0.0)
    if budgets and (on_candidate or not bool(skip.all())):
        walk = _Walk(objective, x, settings, gradient, best, own, early)
        # The skipped ones can leave early where that can't change the others' bits.
        if objective.batch_invariant and x.device.type == "cpu" and not on_candidate:
            walk.keep(~skip)
        walk.run(wanted)
    return _result(objective, x, settings, before, skip, best, early)


def _forward(evaluate: Callable[[Tensor], Evaluation], x: Tensor) -> tuple[Evaluation, "_Gradient"]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        found = evaluate(leaf)
    return found, _Gradient(leaf, found.descended)


@dataclass
class _Gradient:
    """A gradient that is computed only if somebody asks."""

    leaf: Tensor
    loss: Tensor

    def __call__(self) -> Tensor:
        # Not `self.loss.sum()`: under the caller's no_grad() that sum would have no graph.
        (gradient,) = torch.autograd.grad(self.loss, self.leaf, torch.ones_like(self.loss))
        return gradient


class _Walk:
    """The descent of those images of a batch that still take part: `rows` are their places in it.

    early: how many steps an image made that stopped before the others, by its place in the batch; filled here.
    """

    def __init__(
        self,
        objective: Objective | RandomObjective,
        x: Tensor,
        settings: DescentSettings,
        gradient: _Gradient,
        best: _Best,
        seeds: list[int],
        early: dict[int, int],
    ) -> None:
        self.objective, self.x, self.settings, self.best, self.seeds = objective, x, settings, best, seeds
        self.early = early
        self.rows = torch.arange(len(x), device=x.device)
        start = _Path(settings.descended(), torch.zeros_like(x))
        self.paths = [start]
        self.gradients: Sequence[Tensor] | None = None
        if settings.random_start:
            self.paths = start.moved(x, uniform(x, seeds, settings.random_start), settings, 0)
        else:
            self.gradients = [gradient()]

    def keep(self, mask: Tensor) -> None:
        """Go on with the images under `mask` (M,) alone."""
        if bool(mask.all()):
            return
        self.rows, self.x = self.rows[mask], self.x[mask]
        self.seeds = [seed for seed, kept in zip(self.seeds, mask.tolist(), strict=False) if kept]  # or none at all
        self.paths = [_Path(path.budgets, path.delta[mask]) for path in self.paths]
        self.gradients = self.gradients and [gradient[mask] for gradient in self.gradients]

    def run(self, wanted: Wanted | None) -> None:
        """All steps, or until nobody waits for any of the images."""
        if self.gradients is None:
            self._evaluate(0)
        for t in range(1, self.settings.steps + 1):
            if wanted:
                self._heed(torch.tensor(wanted(), device=self.x.device)[self.rows], t - 1)
            if len(self.rows) == 0:
                return
            assert self.gradients is not None
            self.paths = [
                child
                for path, found in zip(self.paths, self.gradients, strict=True)
                # Alg. 2, l. 4: delta <- delta - gamma sign(grad L_aux)
                for child in path.moved(self.x, path.delta - self.settings.step_size * found.sign(), self.settings, t)
            ]
            self._evaluate(t)

    def _heed(self, wishes: Tensor, t: int) -> None:
        """Go on with those who wait, (M,) of `Wish`; those in a hurry get what t steps have reached, if there was one."""
        hurries = (wishes == Wish.HURRIES) & (t > 0)
        if bool(hurries.any()):
            self.early |= dict.fromkeys(self.rows[hurries].tolist(), t)
            if self.settings.selection != "best-iterate":  # which has offered it already
                self._offer(t, hurries)
        self.keep((wishes != Wish.LEFT) & ~hurries)

    def _evaluate(self, t: int) -> None:
        """Losses at the iterates after t steps, and their gradients unless these are the last; offers what is a candidate."""
        parts, last = len(self.paths), t == self.settings.steps
        self.images = torch.cat([self.x + path.delta for path in self.paths])
        evaluate = at_step(self.objective, t, self.seeds * parts)
        if last:
            with torch.no_grad():
                self.evaluation = evaluate(self.images)
        else:
            self.evaluation, gradient = _forward(evaluate, self.images)
            self.gradients = gradient().chunk(parts)
        if last or self.settings.selection == "best-iterate":
            self._offer(t)

    def _offer(self, t: int, mask: Tensor | slice = slice(None)) -> None:
        """The iterates after t steps, just evaluated, as candidates for the images under `mask` (M,)."""
        parts = len(self.paths)
        for path, image, found in zip(self.paths, self.images.chunk(parts), self.evaluation.chunk(parts), strict=True):
            epsilon = min(path.budgets[0], self.settings.reach(t))
            self.best.offer(self.rows[mask], image[mask], found.rows(mask), epsilon)


def _result(
    objective: Cost,
    x: Tensor,
    settings: DescentSettings,
    before: Evaluation,
    skip: Tensor,
    best: _Best,
    early: dict[int, int],
) -> Purified:
    forwards, backwards = (counted(x, each) for each in passes(objective, settings))
    for row, steps in early.items():
        forwards[row], backwards[row] = passes(objective, settings, steps)
    loss, logits = before.loss.detach(), best.logits
    if logits is None:
        logits = before.logits.detach()
    elif bool(skip.any()):
        logits = torch.where(skip[:, None], before.logits.detach(), logits)
    return Purified(
        image=torch.where(skip[:, None, None, None], x, best.image),
        logits=logits,
        epsilon=torch.where(skip, torch.zeros_like(loss), best.epsilon),
        objective_before=loss,
        objective_after=torch.where(skip, loss, best.loss),
        # What this image alone needs; batched with others it may ride along in more.
        forward_passes=torch.where(skip, objective.views + objective.logit_views, forwards),
        backward_passes=torch.where(skip, 0, backwards),
    )


def passes(objective: Cost, settings: DescentSettings, done: int | None = None) -> tuple[int, int]:
    """Network forwards and backwards that one image costs when it is not skipped, views included.

    done: after so many steps it was in a hurry. The gradient for the next one had been taken by then.
    """
    budgets = settings.descended()
    if not budgets:
        return objective.views + objective.logit_views, 0
    done = settings.steps if done is None else done
    distinct = [len(settings.groups(budgets, t)) for t in range(done + 1)]
    gradients = sum(distinct[: settings.steps])
    # From a random start the incoming image is one evaluation more; else it is the start.
    forwards = sum(distinct) + (settings.random_start > 0)
    # Logits are read of candidates alone.
    reads = forwards if settings.selection == "best-iterate" else settings.zero_in_grid + distinct[-1]
    return forwards * objective.views + reads * objective.logit_views, gradients * objective.gradient_views
