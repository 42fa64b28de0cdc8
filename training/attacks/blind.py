"""Attacks on a classifier alone; they don't know of any purifier.

- `static`: ascent on the classifier's loss (SOAP Alg. 1 and its kin, see training/attacks/ascent.py).
- `distort_features`: NRP's Alg. 1 (SSP; Naseer et al., CVPR 2020) and Pix2Pix's Alg. 1 (Mezhoudi 2022), which are one: ascent
  on the distance of a classifier's inner activations from those of the clean image. No labels; meant to carry over to others.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.catalog import CHUNK
from models.classifiers import Classifier
from training.attacks.ascent import Loss, ascend, drawn_start
from training.attacks.losses import Criterion, criterion, likely_wrong
from training.attacks.settings import AttackSettings


def static(classifier: Classifier, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Tensor:
    """Adversarial images against the classifier. (N, C, H, W), (N,) -> (N, C, H, W).

    first: the data set index of x[0], so that what is drawn belongs to its image. Of several targets and restarts an image
    keeps the first that the classifier gets wrong, else the last.
    """
    with torch.no_grad():
        seen = classifier(x)
    x_adv, rows = x.clone(), torch.arange(len(x), device=x.device)
    indices = first + rows
    for target, restart in attempts(settings):
        aimed = None if target is None else likely_wrong(seen[rows], y[rows], target)
        follow = criterion(settings, y[rows], aimed)
        start = drawn_start(x[rows], settings, indices[rows], restart)

        def loss(image: Tensor, follow: Criterion = follow) -> Tensor:
            return follow(classifier(image))

        x_adv[rows] = ascend(loss, x[rows], settings, start=start, indices=indices[rows])
        with torch.no_grad():
            rows = rows[classifier(x_adv[rows]).argmax(1) == y[rows]]
        if not len(rows):
            break
    return x_adv


def attempts(settings: AttackSettings) -> list[tuple[int | None, int]]:
    """(rank of the class to go towards, number of the restart) of each ascent."""
    aims: list[int | None] = [*range(settings.targets)] or [None]
    return [(target, restart) for target in aims for restart in range(settings.restarts)]


def distort_features(features: Loss, x: Tensor, settings: AttackSettings, start: Tensor) -> Tensor:
    """NRP and Pix2Pix, Alg. 1: max Delta(x, x') under the budget, Eq. (4) and (6).

    Delta is the squared L2 distance, as in NRP's public code; only its gradient's sign is used, which is that of Pix2Pix's
    norm. x: (N, C, H, W) in [0, 1]; features: (N, C, H, W) -> (N, ...), any shape; start: (N, C, H, W), the perturbation
    R(x) - x to begin with. It must not be zero: there the distance has no gradient.
    """
    with torch.no_grad():
        clean = features(x)

    def distance(image: Tensor) -> Tensor:
        return (features(image) - clean).square().flatten(1).sum(1)

    return ascend(distance, x, settings, start=start)


def distort(classifier: Classifier, x: Tensor, settings: AttackSettings, first: int = 0) -> Tensor:
    """`distort_features` at the tap that the settings name. first: see `static`."""
    assert settings.tap is not None
    taps, start = [settings.tap], drawn_start(x, settings, first + torch.arange(len(x)), 0)
    assert start is not None
    return distort_features(lambda image: classifier.tapped(image, taps)[0], x, settings, start)


def in_chunks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first index, images, labels) in cache-sized parts."""
    for first in range(0, len(x), CHUNK):
        yield first, x[first : first + CHUNK], y[first : first + CHUNK]
