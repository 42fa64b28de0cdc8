"""The published purification loop, kept as the oracle that tests and benchmarks hold `descend` against. Nothing serves it.

Changhao Shi, Chester Holtz, Gal Mishne: Online Adversarial Purification based on Self-Supervision, ICLR 2021: Alg. 2 from
delta = 0 for every budget, then Sec. 3.3's choice, "the smallest one which minimizes the auxiliary loss". As in the authors'
code, `backward()` also fills the gradients of unfrozen weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

AuxLoss = Callable[[Tensor], Tensor]


def purify_to_budget(aux_loss: AuxLoss, x: Tensor, budget: float, step_size: float, steps: int) -> Tensor:
    """Alg. 2 under one budget. aux_loss: (N, C, H, W) -> (N,); x: (N, C, H, W) in [0, 1] -> x_pfy, the same."""
    delta = torch.zeros_like(x)  # l. 1
    for _ in range(steps):  # l. 2
        leaf = (x + delta).requires_grad_()
        aux_loss(leaf).sum().backward()  # l. 3
        assert leaf.grad is not None
        delta = delta - step_size * leaf.grad.sign()  # l. 4
        delta = delta.clamp(-budget, budget)  # l. 5
        delta = (x + delta).clamp(0, 1) - x  # l. 6
    return x + delta  # l. 8


def purify_min_aux(
    aux_loss: AuxLoss, x: Tensor, budgets: Sequence[float], step_size: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every budget from scratch, then the smallest with the least loss, for each image.

    Returns the images (N, C, H, W), the budgets chosen (N,) and the auxiliary losses there (N,).
    """
    images = torch.stack([purify_to_budget(aux_loss, x, budget, step_size, steps) for budget in budgets])
    losses = torch.stack([aux_loss(image).detach() for image in images])  # (B, N)
    chosen = losses.argmin(dim=0)  # the first, so the smallest budget, where several are equal
    each = torch.arange(len(x), device=x.device)
    return images[chosen, each], losses.new_tensor(budgets)[chosen], losses[chosen, each]
