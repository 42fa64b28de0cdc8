"""The published purification loop, kept as the oracle that tests and benchmarks hold `descend` against. Nothing serves it.

Changhao Shi, Chester Holtz, Gal Mishne: Online Adversarial Purification based on Self-Supervision, ICLR 2021: Alg. 2 for
every budget anew, then Sec. 3.3's choice, "the smallest one which minimizes the auxiliary loss", then the classification. As in
the authors' code, `backward()` also fills the gradients of unfrozen weights. Best iterate, skip rule and random starts are ours.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.purifiers.base import uniform
from models.purifiers.descending import DescentPurifier
from models.purifiers.descent import DescentSettings, Evaluation, Objective, RandomObjective, at_step


class Answer(NamedTuple):
    """Images (N, C, H, W), the budgets chosen (N,), the descended loss there (N,), and how they are classified (N, K)."""

    image: Tensor
    epsilon: Tensor
    loss: Tensor
    logits: Tensor


def purify(
    objective: Objective | RandomObjective,
    x: Tensor,
    settings: DescentSettings,
    skip_below: float | None = None,
    seeds: Sequence[int] = (),
) -> Answer:
    """Every candidate from scratch, then the first with the least loss, for each image. x: (N, C, H, W) in [0, 1]."""

    def evaluate(t: int, image: Tensor) -> Evaluation:
        return at_step(objective, t, seeds)(image)

    images, budgets, losses = zip(*_candidates(evaluate, x, settings, seeds), strict=True)
    chosen = torch.stack(losses).argmin(dim=0)  # the first, so the smallest budget, where several are equal
    if skip_below is not None:
        before = evaluate(0, x)
        images, budgets, losses = (*images, x), (*budgets, 0.0), (*losses, before.descended.detach())
        chosen[before.loss.detach() <= skip_below] = len(images) - 1
    each = torch.arange(len(x), device=x.device)
    image = torch.stack(images)[chosen, each]
    logits = evaluate(settings.steps, image).logits.detach()
    return Answer(image, losses[0].new_tensor(budgets)[chosen], torch.stack(losses)[chosen, each], logits)


def loop_of(own: DescentPurifier[Any]) -> Callable[[Tensor, Sequence[int]], Answer]:
    """What `own.purify` is held against: this loop around the same objective, with the same settings."""
    return lambda x, seeds: purify(own.descended, x, own.settings, own.skip_below, seeds)


def _candidates(
    evaluate: Callable[[int, Tensor], Evaluation], x: Tensor, settings: DescentSettings, seeds: Sequence[int]
) -> Iterator[tuple[Tensor, float, Tensor]]:
    """Image, budget and descended loss of each, in ascending budget."""
    min_aux, best_iterate = settings.selection == "min-aux", settings.selection == "best-iterate"
    if best_iterate:
        yield x, 0.0, evaluate(0, x).descended.detach()
    for budget in settings.budgets if min_aux else settings.budgets[-1:]:
        found = list(enumerate(iterates(evaluate, x, budget, settings, seeds)))
        for t, image in found[1:] if best_iterate else found[-1:]:
            yield image, min(budget, settings.reach(t)), evaluate(t, image).descended.detach()


def iterates(
    evaluate: Callable[[int, Tensor], Evaluation],
    x: Tensor,
    budget: float,
    settings: DescentSettings,
    seeds: Sequence[int],
) -> Iterator[Tensor]:
    """Alg. 2 under one budget: the images after 0, 1, ... T steps, (N, C, H, W)."""
    delta = torch.zeros_like(x)  # l. 1
    if settings.random_start:
        delta = _clipped(x, uniform(x, seeds, settings.random_start), budget)
    yield x + delta
    for t in range(settings.steps):  # l. 2
        leaf = (x + delta).requires_grad_()
        evaluate(t, leaf).descended.sum().backward()  # l. 3
        assert leaf.grad is not None
        delta = _clipped(x, delta - settings.step_size * leaf.grad.sign(), budget)  # l. 4
        yield x + delta  # l. 8


def _clipped(x: Tensor, delta: Tensor, budget: float) -> Tensor:
    delta = delta.clamp(-budget, budget)  # l. 5
    return (x + delta).clamp(0, 1) - x  # l. 6
