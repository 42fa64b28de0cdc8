"""What benchmarks of purifiers share: their images, and the work of a call."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import Card
from models.plan import AVAILABLE
from training.data import DataError, load_data


def test_images(card: Card, n: int) -> tuple[Tensor, str]:
    """Images for a model, (N, C, H, W) in [0, 1], and what they are: patterns where its data set isn't at hand."""
    try:
        return load_data(card.model, "test").floats(0, n), f"the first {n} test images of {card.model}"
    except DataError:
        generator, size = torch.Generator().manual_seed(1), (card.input.height, card.input.width)
        coarse = torch.rand(n, card.input.channels, 4, 4, generator=generator)
        return F.interpolate(coarse, size=size, mode="bilinear"), f"{n} smooth seeded patterns, no data set was found"


class _NoModules:
    """Instead of the counter's tracker, whose hooks refuse gradients with respect to what a module was called with."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _convolved(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _transposed(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * math.prod(x) * math.prod(weight) // x[1]


def _multiplied(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    return 2 * x[0] * math.prod(weight)


def _by_winograd(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    # As many as any other convolution's; it makes a quarter of them.
    _, panels, channels, filters = weight
    return _convolved(x, (panels * filters, channels, 3, 3), out_shape=out_shape)


def _directly(
    x: Sequence[int],
    weights: Sequence[int],
    size: list[int],
    geometry: list[int],
    transposed: bool,
    *_: object,
    **__: object,
) -> int:
    outputs, channels = (x, size[1]) if transposed else (size, x[1])
    return 2 * math.prod(outputs) * channels * geometry[0] ** 2


FUSED = {
    "_convolution_pointwise": _convolved,
    "_convolution_transpose_pointwise": _transposed,
    "_linear_pointwise": _multiplied,
}


def multiply_adds(call: Callable[[], object]) -> float:
    """Of the convolutions and matrix products of a call, backward passes included."""
    formulas = {getattr(torch.ops.mkldnn, name): formula for name, formula in FUSED.items()} if AVAILABLE else {}
    formulas |= {torch.ops.unperturb.convolution_3x3: _by_winograd, torch.ops.unperturb.convolution_direct: _directly}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        call()
    return counter.get_total_flops() / 2
