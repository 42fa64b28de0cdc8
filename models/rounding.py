"""The same bits for an image whatever the size of its batch, for the operations whose kernels depend on the number of rows."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of each call. A product of matrices or a sum is rounded in an order that its kernel picks by the number of rows; with
# a fixed number it picks the same one, and as a multiple of vectors and threads it treats all rows alike.
BLOCK = 64


def by_rows(call: Callable[[Tensor], Tensor], x: Tensor, block: int = BLOCK) -> Tensor:
    """`call` on blocks of exactly `block` rows, the last filled up with zeros; differentiable. (N, ...) -> (N, ...)."""
    rows = x.flatten(1)
    filled = F.pad(rows, (0, 0, 0, -len(rows) % block))
    found = [call(part) for part in filled.split(block)]
    return (found[0] if len(found) == 1 else torch.cat(found))[: len(x)]
