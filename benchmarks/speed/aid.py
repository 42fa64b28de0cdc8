"""AID at the paper's width, counted beside what the authors' public code spends."""

from typing import Any

import torch

from benchmarks.measure import multiply_adds
from models.classifiers import Classifier, build_classifier, frozen
from models.networks.aid import AidDiscriminator
from models.purifiers.aid import AdversarialProbability
from models.purifiers.descent import DescentSettings, descend

# Multiply-adds an image of the authors' public AID, N = 10 and the classification, counted from its code with its settings: each
# of four taps in a forward of its own, two of them then multiplied by zero.
PUBLIC_AID = {"resnet18-thin": 1.44e9, "wide-resnet-preact": 271e9}

# Architecture, its arguments, and the taps that the public code doesn't multiply by zero: its first and its third.
WIDE: tuple[tuple[str, dict[str, int], tuple[str, str], tuple[int, int]], ...] = (
    ("resnet18-thin", {}, ("stem", "block4"), (16, 32)),
    ("wide-resnet-preact", {"depth": 34, "widen": 10}, ("stem", "block10"), (16, 320)),
)


def at_full_width(
    architecture: str, arguments: dict[str, int], taps: tuple[str, str], channels: tuple[int, int]
) -> dict[str, Any]:
    torch.manual_seed(0)
    classifier = frozen(build_classifier(architecture, **arguments))
    discriminator = AidDiscriminator(taps=taps, channels=channels, deeper=True).eval().requires_grad_(False)
    counted = aid_multiply_adds(classifier, discriminator)
    return {
        "architecture": architecture,
        "arguments": arguments,
        "multiply_adds": counted,
        "public_code": PUBLIC_AID[architecture],
        "share": counted / PUBLIC_AID[architecture],
    }


def aid_multiply_adds(classifier: Classifier, discriminator: AidDiscriminator, images: int = 16) -> float:
    """Of AID's purification by Table 6 (N = 10) and the classification, an image, in a batch of `images`."""
    settings = DescentSettings(selection="fixed", budgets=(8 / 255,), step_size=2 / 255, steps=10)
    x = torch.rand(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = AdversarialProbability(classifier, discriminator)
    return multiply_adds(lambda: descend(objective, x, settings)) / images
