"""A descent as one differentiable function of the image: every step with its gradient, for attacks that go through them all.

What has no derivative gets one: the sign of a gradient passes on that of tanh(g / mean |g|) of its image, while its value stays
the sign (a straight-through estimate). The gradient of a gradient is exact. The choice of the iterate is held fixed: it is
that of the image as it is. Where a purifier chooses from a grid of budgets we follow the largest one and take its best iterate.
"""

import torch
from torch import Tensor

from models.purifiers.descending import DescentPurifier


def unrolled(purifier: DescentPurifier, x: Tensor) -> Tensor:  # type: ignore[type-arg]
    """The purified image, differentiable. x: (N, C, H, W) in [0, 1], that requires a gradient -> the same shape.

    Raises:
        ValueError: the purifier draws random numbers.
    """
    if purifier.info.random:
        raise ValueError(f"purifier kind {purifier.info.kind!r} draws random numbers; it can't be unrolled")
    settings, objective = purifier.settings, purifier.descended
    image, chosen, least, skipped = x, x, None, None
    for t in range(settings.steps + 1):
        found = objective(image)
        value = found.descended.detach()
        if skipped is None:
            skipped = found.loss.detach() <= (-torch.inf if purifier.skip_below is None else purifier.skip_below)
        if settings.selection != "fixed" or t == settings.steps:
            better = torch.ones_like(skipped) if least is None else value < least
            least = value if least is None else torch.where(better, value, least)
            chosen = torch.where(better[:, None, None, None], image, chosen)
        if t < settings.steps:
            (gradient,) = torch.autograd.grad(found.descended.sum(), image, create_graph=True)
            delta = image - x - settings.step_size * _sign(gradient)
            image = (x + delta.clamp(-settings.budgets[-1], settings.budgets[-1])).clamp(0, 1)
    assert skipped is not None
    return torch.where(skipped[:, None, None, None], x, chosen)


def _sign(gradient: Tensor) -> Tensor:
    """The sign, with the derivative of a soft one."""
    scale = gradient.detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
    soft = torch.tanh(gradient / scale)
    return soft + (gradient.sign() - soft).detach()
