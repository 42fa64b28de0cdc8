"""What benchmarks of purifiers share: their images, and times that say how far they spread."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.checkpoint import Card
from training.data import DataError, load_data


@dataclass(frozen=True)
class Spread:
    """Milliseconds an image over the rounds."""

    median_ms: float
    fastest_ms: float
    slowest_ms: float
    rounds: Sequence[float]


def spread(values: Sequence[float]) -> Spread:
    """values: milliseconds an image, one for each round."""
    return Spread(statistics.median(values), min(values), max(values), values)


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


def multiply_adds(call: Callable[[], object]) -> float:
    """Of the convolutions and matrix products of a call, backward passes included."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    with counter:
        call()
    return counter.get_total_flops() / 2
