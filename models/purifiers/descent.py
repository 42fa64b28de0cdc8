"""Projected sign-gradient descent on an auxiliary loss: SOAP Alg. 2 with its choice of the budget for each image.

Shi, Holtz, Mishne: Online Adversarial Purification based on Self-Supervised Learning, ICLR 2021, Sec. 3.3.
Eq. (5) prints a plus where Alg. 2 prints a minus; the auxiliary loss is to fall, so we descend.

The published loop starts every budget from zero: 11 budgets x 5 steps are 55 gradients. Two budgets that the clip has not
separated yet share their iterate, so we carry one path for each *distinct* iterate and split it where a budget starts
to bind: 11 gradients for multiples of the step size, bit for bit the same images (tests/models/test_descent.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.purifiers.base import Purified, counted

Selection = Literal["fixed", "min-aux", "best-iterate"]


@dataclass(frozen=True)
class Evaluation:
    """An objective's value on a batch: loss (N,) with its graph where asked for, logits (N, K) read off the same forwards."""

    loss: Tensor
    logits: Tensor


class Objective(Protocol):
    """A per-image auxiliary loss. `views` forwards an evaluation, `gradient_views` of them with a backward pass."""

    views: int
    gradient_views: int

    def __call__(self, x: Tensor) -> Evaluation: ...


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


@dataclass
class _Path:
    """Budgets whose iterates are still the same, and that iterate's delta (N, C, H, W)."""

    budgets: list[float]
    delta: Tensor

    def step(self, x: Tensor, gradient: Tensor, step_size: float, reach: float) -> list["_Path"]:
        """One step of Alg. 2; splits off the budgets under `reach` = t * gamma, which bind from here on."""
        raw = self.delta - step_size * gradient.sign()  # Alg. 2, l. 4: delta <- delta - gamma sign(grad L_aux)
        free = [budget for budget in self.budgets if budget >= reach - 1e-7]
        groups = [[budget] for budget in self.budgets if budget < reach - 1e-7] + ([free] if free else [])
        return [_Path(group, _project(x, raw, group[-1])) for group in groups]


def _project(x: Tensor, delta: Tensor, budget: float) -> Tensor:
    delta = delta.clamp(-budget, budget)  # Alg. 2, l. 5
    return (x + delta).clamp(0, 1) - x  # Alg. 2, l. 6


class _Best:
    """The best candidate so far, image by image. Candidates come in ascending budget; only a lower loss replaces one."""

    def __init__(self, on_candidate: Callable[[Tensor], None] | None) -> None:
        self.image: Tensor | None = None
        self.on_candidate = on_candidate

    def offer(self, image: Tensor, found: Evaluation, epsilon: float) -> None:
        loss, logits = found.loss.detach(), found.logits.detach()
        if self.on_candidate:
            self.on_candidate(logits)
        budget = torch.full_like(loss, epsilon)
        if self.image is None:
            self.image, self.loss, self.logits, self.epsilon = image, loss, logits, budget
            return
        better = loss < self.loss
        self.image = torch.where(better[:, None, None, None], image, self.image)
        self.logits = torch.where(better[:, None], logits, self.logits)
        self.loss = torch.where(better, loss, self.loss)
        self.epsilon = torch.where(better, budget, self.epsilon)


def descend(
    objective: Objective,
    x: Tensor,
    settings: DescentSettings,
    skip_below: float | None = None,
    on_candidate: Callable[[Tensor], None] | None = None,
) -> Purified:
    """Purify a batch: Alg. 2 with the budget chosen for each image by its own loss.

    x: (N, C, H, W) in [0, 1]. Images with an incoming loss <= `skip_below` come back as they are. `on_candidate` sees
    the logits (N, K) of every candidate that could be chosen, skipped images included.
    """
    x = x.detach()
    budgets = settings.descended()
    before, gradient = _forward(objective, x)
    skip = before.loss.detach() <= (skip_below if skip_below is not None else -torch.inf)
    best = _Best(on_candidate)
    zero_in_grid = settings.selection == "min-aux" and settings.budgets[0] == 0
    if zero_in_grid or settings.selection == "best-iterate" or not budgets:
        best.offer(x, before, 0.0)
    if budgets and (on_candidate or not bool(skip.all())):
        _walk(objective, x, settings, budgets, gradient, best)
    return _result(objective, x, settings, before, skip, best)


def _forward(objective: Objective, x: Tensor) -> tuple[Evaluation, "_Gradient"]:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        found = objective(leaf)
    return found, _Gradient(leaf, found.loss)


@dataclass
class _Gradient:
    """A gradient that is computed only if somebody asks."""

    leaf: Tensor
    loss: Tensor

    def __call__(self) -> Tensor:
        # Not `self.loss.sum()`: under the caller's no_grad() that sum would have no graph.
        (gradient,) = torch.autograd.grad(self.loss, self.leaf, torch.ones_like(self.loss))
        return gradient


def _walk(
    objective: Objective, x: Tensor, settings: DescentSettings, budgets: list[float], gradient: _Gradient, best: _Best
) -> None:
    paths, along = [_Path(budgets, torch.zeros_like(x))], settings.selection == "best-iterate"
    gradients: Sequence[Tensor] = [gradient()]
    for t in range(1, settings.steps + 1):
        reach = t * settings.step_size
        paths = [
            child
            for path, found in zip(paths, gradients, strict=True)
            for child in path.step(x, found, settings.step_size, reach)
        ]
        images = torch.cat([x + path.delta for path in paths])
        if t < settings.steps:
            evaluation, next_gradient = _forward(objective, images)
            gradients = next_gradient().chunk(len(paths))
        else:
            with torch.no_grad():
                evaluation = objective(images)
        if along or t == settings.steps:
            losses, logits = evaluation.loss.chunk(len(paths)), evaluation.logits.chunk(len(paths))
            for path, image, loss, read in zip(paths, images.chunk(len(paths)), losses, logits, strict=True):
                best.offer(image, Evaluation(loss, read), min(path.budgets[0], reach))


def _result(
    objective: Objective, x: Tensor, settings: DescentSettings, before: Evaluation, skip: Tensor, best: _Best
) -> Purified:
    forwards, backwards = passes(objective, settings)
    loss, logits = before.loss.detach(), before.logits.detach()
    if best.image is None:  # the start was no candidate, and every image skipped
        best.offer(x, before, 0.0)
    assert best.image is not None
    return Purified(
        image=torch.where(skip[:, None, None, None], x, best.image),
        logits=torch.where(skip[:, None], logits, best.logits),
        epsilon=torch.where(skip, torch.zeros_like(loss), best.epsilon),
        objective_before=loss,
        objective_after=torch.where(skip, loss, best.loss),
        # What this image alone needs; batched with others it may ride along in more.
        forward_passes=torch.where(skip, objective.views, counted(x, forwards)),
        backward_passes=torch.where(skip, 0, counted(x, backwards)),
    )


def passes(objective: Objective, settings: DescentSettings) -> tuple[int, int]:
    """Network forwards and backwards that one image costs when it is not skipped, views included."""
    budgets = settings.descended()
    if not budgets:
        return objective.views, 0

    def distinct(t: int) -> int:
        """How many iterates differ after step t: each budget that binds has its own, the others share one."""
        bound = sum(budget < t * settings.step_size - 1e-7 for budget in budgets)
        return bound + (bound < len(budgets))

    gradients = sum(distinct(t) for t in range(settings.steps))
    return (gradients + distinct(settings.steps)) * objective.views, gradients * objective.gradient_views
