"""What benchmarks of purifiers share: their images, and times that say how far they spread."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
