"""Small convolutions of any stride, and their transposes, of frozen networks: models/direct.cpp.

oneDNN takes a tenth of a millisecond to begin one, and leaves sums and gates of gradients to operations of their own. What it
computes itself it computes about as quickly.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import compiled
from models.compiled import LIBRARY, Operands

_FEW = 4  # channels that are summed at once where they don't fill a vector
_LARGEST = 7  # kernel


class Geometry(NamedTuple):
    """Of a convolution, in both directions alike."""

    kernel: int
    stride: int
    padding: int

    def outputs(self, length: int) -> int:
        """Of a side of so many pixels."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1


def fits(layer: nn.Conv2d) -> bool:
    """Whether a layer is one of these: square, channels that fill the processor's vectors, on one side four at most."""
    code = compiled.loaded()
    if code is None or not compiled.suits(layer) or layer.kernel_size[0] > _LARGEST:
        return False
    alike = all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    counts = sorted((layer.in_channels, layer.out_channels))
    return alike and counts[1] % code.lanes == 0 and (counts[0] % code.lanes == 0 or counts[0] <= _FEW)


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
    weights, found = F.pad(weights, (0, -weights.shape[1] % _FEW)), []
    for together in (2 * code.lanes, code.lanes, _FEW):
        whole = weights.shape[1] // together * together
        found += [part.flatten() for part in weights[:, :whole].split(together, dim=1)] if whole else []
        weights = weights[:, whole:]
    return torch.cat(found)


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
    code, operands, shape = compiled.loaded(), Operands(x, weights, bias, added, gate, slope), Geometry(*geometry)
    assert code is not None
    n, channels, height, width = x.shape
    large, small = (size, x.shape) if transposed else (x.shape, size)
    columns = size[1] + -size[1] % _FEW
    fit = n == size[0] and [shape.outputs(side) for side in large[2:]] == list(small[2:])
    if not fit or shape.kernel > _LARGEST or weights.numel() != shape.kernel**2 * channels * columns:
        raise operands.misfit()
    sizes = (n, height, width, channels, size[2], size[3], size[1], *shape, transposed)
    return operands.output(code.direct, size, *sizes)


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
