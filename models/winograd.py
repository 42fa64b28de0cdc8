"""3 x 3 convolutions of frozen networks by Winograd's F(4 x 4, 3 x 3): a quarter of the multiplications, in models/winograd.cpp.

Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import compiled
from models.compiled import LIBRARY
from models.program import Kernel, Kind, applied, misfit

# G of F(4 x 4, 3 x 3).
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_TILES, _ROWS = 24, 12  # as in models/winograd.cpp: fewer at a time read the weights more often than they need

# Beyond this nobody has measured it; there are four times as many once they are transformed.
_MOST_WEIGHTS = 9 * 512 * 512


def fits(layer: nn.Conv2d) -> bool:
    """Whether a layer is one of these, with channels that fill the processor's vectors, and not too many weights."""
    code = compiled.loaded()
    shape = (layer.kernel_size, layer.stride, layer.padding)
    if code is None or not compiled.suits(layer) or shape != ((3, 3), (1, 1), (1, 1)):
        return False
    if layer.weight.numel() > _MOST_WEIGHTS:
        return False
    return all(count % code.lanes == 0 for count in (layer.in_channels, layer.out_channels))


def transformed(weight: Tensor) -> Tensor:
    """G g G^T of each filter, Eq. (9) there, in panels of filters. (C', C, 3, 3) -> (36, P, C, C' / P)."""
    code = compiled.loaded()
    assert code is not None
    g = torch.tensor(_G, dtype=torch.float64)
    turned = torch.einsum("ia,fcab,jb->ijcf", g, weight.double(), g)
    filters = len(weight)
    together = 2 * code.lanes if filters % (2 * code.lanes) == 0 else code.lanes
    return turned.float().reshape(36, -1, filters // together, together).transpose(1, 2).contiguous()


def kernel(weights: Tensor, bias: Tensor | None, size: Sequence[int]) -> Kernel:
    """What `convolution` does to images (C, H, W) with so many channels as the weights have."""
    channels, height, width = size
    tiles = -(-height // 4) * -(-width // 4)
    whole = _ROWS // math.gcd(_ROWS, tiles)  # images whose tiles are multiplied without a rest
    together = -(-_TILES // (tiles * whole)) * whole
    return Kernel(
        Kind.WINOGRAD,
        (channels, height, width),
        (weights.shape[1] * weights.shape[3], height, width),
        weights,
        bias,
        (3, 1, 1),
        together=together,
    )


LIBRARY.define(
    "convolution_3x3(Tensor x, Tensor weights, Tensor? bias, Tensor? added, Tensor? gate, float? slope) -> Tensor"
)


def _convolution(
    x: Tensor, weights: Tensor, bias: Tensor | None, added: Tensor | None, gate: Tensor | None, slope: float | None
) -> Tensor:
    if x.shape[1] != weights.shape[2]:
        raise misfit(x, weights, bias, added, gate)
    return applied(kernel(weights, bias, x.shape[1:]), x, added, gate, slope)


LIBRARY.impl("convolution_3x3", _convolution, "CPU")


def convolution(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    gate: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """A 3 x 3 convolution with what follows it. (N, C, H, W), of `transformed` -> (N, C', H, W), channels last.

    added: (N, C', H, W), added to the outcome. slope: where it is given the sum is multiplied by 1 where `gate` (N, C', H, W), or
    without one the sum itself, is above 0, by the slope elsewhere: a (leaky) ReLU, or the gradient through one.

    Raises:
        ValueError: shapes don't fit each other, or something isn't float32.
    """
    found: Tensor = torch.ops.unperturb.convolution_3x3.default(x, weights, bias, added, gate, slope)
    return found
