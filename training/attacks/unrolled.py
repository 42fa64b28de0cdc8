"""A descent's iterates as functions of the image, for attacks that go through its steps or past them.

Through: what has no derivative gets one: the sign of a gradient passes on that of tanh(g / mean |g|) of its image, while its
value stays the sign (a straight-through estimate). Clips keep their own, which is nothing where a pixel is at 0 or 1, and where
the budget binds the image's alone; or they pass on what comes, as if they weren't there. The gradient of a gradient is exact. The
choice of the iterate is held fixed: it is that of the image as it is. Where a purifier chooses from a grid of budgets we follow
the largest and take its best iterate.

Steps are checkpointed: the graph of one exists only while a gradient goes back through it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.purifiers.base import one_each, uniform
from models.purifiers.descending import DescentPurifier
from models.purifiers.descent import DescentSettings, Evaluation, RandomObjective, at_step


@dataclass(frozen=True)
class Path:
    """iterates: the image after 0, 1, ..., T steps, (N, C, H, W) each. chosen: the one that the descent ends with."""

    iterates: list[Tensor]
    chosen: Tensor


def path(
    purifier: DescentPurifier,  # type: ignore[type-arg]
    x: Tensor,
    seeds: Sequence[int] | None = None,
    *,
    through: bool = True,
    steps: int | None = None,
    past_clips: bool = False,
) -> Path:
    """The descent of x (N, C, H, W) in [0, 1].

    through: with each step's gradient, x then requires one; else the steps count as the identity. steps: so many of them alone.
    past_clips: the gradient of a clip is that of the identity.

    Raises:
        ValueError: the purifier draws random numbers and got no seeds.
    """
    settings, objective = purifier.settings, purifier.descended
    own = one_each(x, seeds) if purifier.info.random else []
    drawn = own if isinstance(objective, RandomObjective) else []
    last = min(steps or settings.steps, settings.steps)
    image = x + _start(purifier, x, own)
    iterates, losses = [image], list[Tensor]()
    for t in range(last):
        move = _Move(at_step(objective, t, drawn), settings, past_clips)
        if through:
            image, loss = _Checkpointed.apply(x, image, move)
            iterates.append(image)
        else:
            image, loss = move(x.detach(), image.detach())
            iterates.append(x + (image - x).detach())
        losses.append(loss)
    chosen = iterates[-1]
    if settings.selection != "fixed":
        with torch.no_grad():
            losses.append(at_step(objective, last, drawn)(image.detach()).descended)
        earliest = torch.stack(losses).argmin(0)  # of the least, as in the descent
        chosen = torch.stack(iterates)[earliest, torch.arange(len(x), device=x.device)]
    return Path(iterates, torch.where(_skipped(purifier, x, own)[:, None, None, None], x, chosen))


@dataclass(frozen=True)
class _Move:
    """A step of the descent of x: from an iterate (N, C, H, W) to the next one, and the iterate's loss (N,)."""

    evaluate: Callable[[Tensor], Evaluation]
    settings: DescentSettings
    past_clips: bool

    def __call__(self, x: Tensor, image: Tensor, through: bool = False) -> tuple[Tensor, Tensor]:
        """through: as a function of both, with the derivatives that are said above."""
        leaf = image if through else image.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.evaluate(leaf).descended
            (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=through)
        step = self.settings.step_size * (_sign(gradient) if through else gradient.sign())
        budget = self.settings.budgets[-1]
        delta = self._clipped(image - x - step, -budget, budget)
        return self._clipped(x + delta, 0, 1), losses.detach()

    def _clipped(self, value: Tensor, low: float, high: float) -> Tensor:
        clipped = value.clamp(low, high)
        return value + (clipped - value).detach() if self.past_clips else clipped


class _Checkpointed(torch.autograd.Function):
    """A move whose graph is made only when its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, image: Tensor, move: _Move) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, image)
        ctx.move = move
        after, losses = move(x, image)
        ctx.mark_non_differentiable(losses)
        return after, losses

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        x, image = (each.detach().requires_grad_() for each in ctx.saved_tensors)
        with torch.enable_grad():
            after, _ = ctx.move(x, image, through=True)
        for_x, for_image = torch.autograd.grad(after, (x, image), gradient)
        return for_x, for_image, None


def _start(purifier: DescentPurifier, x: Tensor, seeds: list[int]) -> Tensor:  # type: ignore[type-arg]
    """What is added to the image before the first step, held fixed."""
    settings = purifier.settings
    if not settings.random_start:
        return torch.zeros_like(x)
    budget = settings.budgets[-1]
    noise = uniform(x, seeds, settings.random_start).clamp(-budget, budget)
    return ((x + noise).clamp(0, 1) - x).detach()


def _skipped(purifier: DescentPurifier, x: Tensor, seeds: list[int]) -> Tensor:  # type: ignore[type-arg]
    if purifier.skip_below is None:
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)
    with torch.no_grad():
        return purifier.objective(x, seeds) <= purifier.skip_below


def _sign(gradient: Tensor) -> Tensor:
    """The sign, with the derivative of a soft one."""
    scale = gradient.detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    soft = torch.tanh(gradient / scale)
    return soft + (gradient.sign() - soft).detach()
