"""What a purifier's objective is on clean images: percentiles, from which suspicion and the skip rule are made."""

import torch
from torch import Tensor, nn

from models.catalog import CHUNK, build_defense
from models.checkpoint import Card
from models.classifiers import Classifier
from models.purifiers.descending import DescentPurifier


def calibrate(
    card: Card, classifier: Classifier, images: Tensor, network: nn.Module | None = None
) -> dict[str, tuple[float, ...]]:
    """The percentiles 0 to 100 of each purifier kind's objective on clean images (N, C, H, W) in [0, 1].

    card: its purifiers are what is calibrated. classifier, network: frozen; network: the purifiers' own, where they have one.
    Where an objective draws random numbers, an image's index is its seed.
    """
    # Without thresholds: the percentiles they need are what is being computed.
    bare = {
        name: entry.model_copy(update={"settings": {k: v for k, v in entry.settings.items() if k != "skip_percentile"}})
        for name, entry in card.purifiers.items()
    }
    card, found = card.model_copy(update={"purifiers": bare}), {}
    for name, entry in bare.items():
        purifier = build_defense(name, card, classifier, images.device, network).purifier
        if not isinstance(purifier, DescentPurifier) or entry.kind in found:
            continue
        with torch.no_grad():
            parts = zip(images.split(CHUNK), range(0, len(images), CHUNK), strict=True)
            objective = torch.cat([purifier.objective(part, range(first, first + len(part))) for part, first in parts])
        percentiles = torch.quantile(
            objective.double(), torch.linspace(0, 1, 101, dtype=torch.float64).to(images.device)
        )
        found[entry.kind] = tuple(float(f"{value:.6g}") for value in percentiles.tolist())
    return found
