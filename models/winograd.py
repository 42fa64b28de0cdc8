"""3 x 3 convolutions of frozen networks by Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications, in models/winograd.cpp.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

import torch
from torch import Tensor, nn

from models import compiled
from models.compiled import LIBRARY, Operands

# G of F(4 x 4, 3 x 3).
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def fits(layer: nn.Conv2d) -> bool:
    """Whether a layer is one of these, with channels that fill the processor's vectors."""
    code = compiled.loaded()
    shape = (layer.kernel_size, layer.stride, layer.padding)
    if code is None or not compiled.suits(layer) or shape != ((3, 3), (1, 1), (1, 1)):
        return False
    return all(count % code.lanes == 0 for count in (layer.in_channels, layer.out_channels))


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of each filter, Eq. (9) there. (C', C, 3, 3) -> (36, C, C')."""
    g = torch.tensor(_G, dtype=torch.float64)
    turned = torch.einsum("ia,fcab,jb->ijcf", g, weight.double(), g)
    return turned.flatten(0, 1).float().contiguous()


LIBRARY.define(
    "convolution_3x3(Tensor x, Tensor weights, Tensor? bias, Tensor? added, Tensor? gate, float? slope) -> Tensor"
)


def _convolution(
    x: Tensor, weights: Tensor, bias: Tensor | None, added: Tensor | None, gate: Tensor | None, slope: float | None
) -> Tensor:
    code, operands = compiled.loaded(), Operands(x, weights, bias, added, gate, slope)
    assert code is not None
    n, channels, height, width = x.shape
    filters = weights.shape[2]
    if channels != weights.shape[1]:
        raise operands.misfit()
    return operands.output(code.winograd, [n, filters, height, width], n, height, width, channels, filters)


LIBRARY.impl("convolution_3x3", _convolution, "CPU")


def convolution(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    gate: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """A 3 x 3 convolution with what follows it. (N, C, H, W), (36, C, C') of `transformed` -> (N, C', H, W), channels last.

    added: (N, C', H, W), added to the outcome. slope: where it is given the sum is multiplied by 1 where `gate` (N, C', H, W), or
    without one the sum itself, is above 0, by the slope elsewhere: a (leaky) ReLU, or the gradient through one.

    Raises:
        ValueError: shapes don't fit each other, or something isn't float32.
    """
    found: Tensor = torch.ops.unperturb.convolution_3x3.default(x, weights, bias, added, gate, slope)
    return found
