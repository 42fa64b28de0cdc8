"""Small convolutions of any stride, and their transposes, of frozen networks: models/direct.cpp.

oneDNN takes a tenth of a millisecond to begin one, and leaves sums and gates of gradients to operations of their own. What it
computes itself it computes about as quickly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import compiled
from models.compiled import LIBRARY
from models.program import Kernel, Kind, applied, misfit

_FEW = 4  # channels that are summed at once where they don't fill a vector
_LARGEST = 7  # kernel
_MOST_WEIGHTS = 9 * 192 * 192  # beyond this they don't stay in the caches, and oneDNN is as quick or quicker
_ROWS = 64  # of a matrix at a time; fewer read the weights more often than they need


class Geometry(NamedTuple):
    """Of a convolution, in both directions alike."""

    kernel: int
    stride: int
    padding: int

    def outputs(self, length: int) -> int:
        """Of a side of so many pixels."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1


def fits(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a layer is one of these: square, channels that fill the processor's vectors; on one side four at most, or any
    number where each pixel, or row, is taken by itself."""
    if isinstance(layer, nn.Linear):
        return fits(as_convolution(layer))
    if not compiled.suits(layer) or layer.kernel_size[0] > _LARGEST or layer.weight.numel() > _MOST_WEIGHTS:
        return False
    alike = all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    few, many = sorted((layer.in_channels, layer.out_channels))
    return alike and fills_vectors(many) and (fills_vectors(few) or few <= _FEW or layer.kernel_size == (1, 1))


def fills_vectors(channels: int) -> bool:
    """Whether so many channels are whole vectors of this processor."""
    code = compiled.loaded()
    return code is not None and channels % code.lanes == 0


def geometry(layer: nn.Conv2d) -> Geometry:
    """Of a layer that `fits`."""
    return Geometry(layer.kernel_size[0], layer.stride[0], int(layer.padding[0]))


def as_convolution(layer: nn.Linear) -> nn.Conv2d:
    """The convolution of the same weights that does to each pixel what a linear layer does to each row: see `as_image`."""
    same = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=False, dtype=layer.weight.dtype, device="meta")
    same.weight, same.bias = nn.Parameter(layer.weight[:, :, None, None], layer.weight.requires_grad), layer.bias
    return same


def as_image(rows: Tensor) -> Tensor:
    """Rows as the pixels of an image; no copy where they lie one after the other. (..., C) -> (1, C, 1, N)."""
    return rows.reshape(1, 1, rows.shape[:-1].numel(), rows.shape[-1]).permute(0, 3, 1, 2)


def as_rows(image: Tensor, size: Sequence[int]) -> Tensor:
    """And back to (*size, C)."""
    return image.permute(0, 2, 3, 1).reshape(*size, image.shape[1])


def laid_out(weight: Tensor) -> Tensor:
    """Weights (C', C, k, k) as `convolution` reads them."""
    return _in_columns(weight.permute(2, 3, 1, 0).flatten(0, 2))


def laid_out_transposed(weight: Tensor, shape: Geometry) -> Tensor:
    """The same for the transposed convolution, which takes C' channels to C."""
    phases = product(range(shape.stride), repeat=2)
    taps = ([weight[:, :, y, x] for y in _taps(shape, p) for x in _taps(shape, q)] for p, q in phases)
    return torch.cat([_in_columns(torch.cat(each)) for each in taps if each])


def _taps(shape: Geometry, phase: int) -> Iterator[int]:
    """Rows of the kernel that outputs whose place leaves this rest by the stride are made with."""
    return (k for k in range(shape.kernel) if (phase + shape.padding - k) % shape.stride == 0)


def _in_columns(weights: Tensor) -> Tensor:
    """(products, filters) -> (products * filters), filters filled up to a multiple of four: see models/direct.cpp."""
    code = compiled.loaded()
    assert code is not None
    found: list[Tensor] = []
    for together in (2 * code.lanes, code.lanes, _FEW):
        if together == _FEW:
            weights = F.pad(weights, (0, _columns(weights.shape[1]) - weights.shape[1]))
        whole = weights.shape[1] // together * together
        found += [part.flatten() for part in weights[:, :whole].split(together, dim=1)] if whole else []
        weights = weights[:, whole:]
    return torch.cat(found)


def kernel(weights: Tensor, filters: int, shape: Geometry, size: Sequence[int], bias: Tensor | None) -> Kernel:
    """What `convolution` does to images (C, H, W)."""
    channels, height, width = size
    output = (filters, shape.outputs(height), shape.outputs(width))
    return Kernel(Kind.DIRECT, (channels, height, width), output, weights, bias, shape)


def kernel_transposed(weights: Tensor, filters: int, shape: Geometry, size: Sequence[int]) -> Kernel:
    """What `transposed` does to gradients of so many filters, for images (C, H, W)."""
    channels, height, width = size
    given = (filters, shape.outputs(height), shape.outputs(width))
    return Kernel(Kind.DIRECT, given, (channels, height, width), weights, None, shape, transposed=True)


def of_rows(kernel: Kernel) -> Kernel:
    """The same of images of one pixel each, as the rows of a matrix."""
    return replace(kernel, kind=Kind.ROWS, size=kernel.size[:1], output=kernel.output[:1], together=_ROWS)


def _columns(filters: int) -> int:
    """Of the weights laid out for so many filters."""
    return -(-filters // _FEW) * _FEW


LIBRARY.define(
    "convolution_direct(Tensor x, Tensor weights, int[] size, int[] geometry, bool transposed, Tensor? bias, Tensor? added, "
    "Tensor? gate, float? slope) -> Tensor"
)


def _convolution(
    x: Tensor,
    weights: Tensor,
    size: list[int],
    geometry: list[int],
    transposed: bool,
    bias: Tensor | None,
    added: Tensor | None,
    gate: Tensor | None,
    slope: float | None,
) -> Tensor:
    shape = Geometry(*geometry)
    n, channels, height, width = x.shape
    large, small = (size, x.shape) if transposed else (x.shape, size)
    fit = n == size[0] and [shape.outputs(side) for side in large[2:]] == list(small[2:])
    if not fit or shape.kernel > _LARGEST or weights.numel() != shape.kernel**2 * channels * _columns(size[1]):
        raise misfit(x, weights, bias, added, gate)
    kernel = Kernel(Kind.DIRECT, (channels, height, width), tuple(size[1:]), weights, bias, shape, transposed)
    return applied(kernel, x, added, gate, slope)


LIBRARY.impl("convolution_direct", _convolution, "CPU")


def convolution(
    x: Tensor,
    weights: Tensor,
    filters: int,
    shape: Geometry,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """A convolution with what follows it. (N, C, H, W), weights of `laid_out` -> (N, filters, H', W'), channels last.

    added, slope: see `winograd.convolution`.

    Raises:
        ValueError: shapes don't fit each other, or something isn't float32.
    """
    size = [len(x), filters, shape.outputs(x.shape[2]), shape.outputs(x.shape[3])]
    found: Tensor = torch.ops.unperturb.convolution_direct.default(
        x, weights, size, list(shape), False, bias, added, None, slope
    )
    return found


def transposed(
    x: Tensor,
    weights: Tensor,
    size: torch.Size,
    shape: Geometry,
    added: Tensor | None = None,
    gate: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """What takes a convolution's gradients back to an input of that size, with what follows, channels last.

    x: (N, C', H', W'). weights: of `laid_out_transposed`. size: (N, C, H, W). added, gate, slope: see `winograd.convolution`.

    Raises:
        ValueError: shapes don't fit each other, or something isn't float32.
    """
    found: Tensor = torch.ops.unperturb.convolution_direct.default(
        x, weights, list(size), list(shape), True, None, added, gate, slope
    )
    return found
