"""A descent's iterates as functions of the image, for attacks that go through its steps or past them.

Through: what has no derivative gets one: the sign of a gradient passes on that of tanh(g / mean |g|) of its image, while its
value stays the sign (a straight-through estimate). Clips keep their own: where the budget binds, the image's alone, and nothing
where a pixel is at 0 or 1. The gradient of a gradient is exact. The choice of the iterate is held fixed: it is that of the image
as it is. Where a purifier chooses from a grid of budgets we follow the largest and take its best iterate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.purifiers.base import one_each, uniform
from models.purifiers.descending import DescentPurifier
from models.purifiers.descent import RandomObjective, at_step


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
) -> Path:
    """The descent of x (N, C, H, W) in [0, 1].

    through: with each step's gradient, x then requires one; else the steps count as the identity. steps: so many of them alone.

    Raises:
        ValueError: the purifier draws random numbers and got no seeds.
    """
    settings, objective = purifier.settings, purifier.descended
    own = one_each(x, seeds) if purifier.info.random else []
    last = min(steps or settings.steps, settings.steps)
    skipped = _skipped(purifier, x, own)
    image = x + _start(purifier, x, own)
    iterates, chosen, least = [image], image, None
    for t in range(last + 1):
        if not through:
            image = image.detach().requires_grad_()
        with torch.enable_grad():
            found = at_step(objective, t, own if isinstance(objective, RandomObjective) else [])(image)
        value = found.descended.detach()
        if settings.selection != "fixed" or t == last:
            better = torch.ones_like(skipped) if least is None else value < least
            least = value if least is None else torch.where(better, value, least)
            chosen = torch.where(better[:, None, None, None], iterates[-1], chosen)
        if t == last:
            break
        (gradient,) = torch.autograd.grad(found.descended.sum(), image, create_graph=through)
        step = settings.step_size * (_sign(gradient) if through else gradient.sign())
        delta = (image - x - step).clamp(-settings.budgets[-1], settings.budgets[-1])
        image = (x + delta).clamp(0, 1)
        iterates.append(image if through else x + (image - x).detach())
    return Path(iterates, torch.where(skipped[:, None, None, None], x, chosen))


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
