"""Training losses: natural, and SOAP's joint training, Eq. (2): L_cls + alpha L_aux (Shi et al., ICLR 2021).

What the paper leaves open, and what we chose:
- The auxiliary losses are means over pixels, classes and rotations, as in the authors' public code; Eq. (6) to (8) print
  sums. With the paper's alpha (100, 0.5, 1) only the means train well.
- Every view and every rotated copy is classified too (Sec. 4).
- Label consistency: each view draws its own crop, mirror and noise. The public code shares the noise between both views,
  never draws it negative, and always uses the purifier's own view as the second one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.classifiers import Classifier
from models.purifiers.soap import rotations
from training.augment import Cropper, noisy, zoomed
from training.recipe import Recipe


@dataclass(frozen=True)
class Losses:
    """total: scalar with its graph. classification, auxiliary: scalars. correct: how many of `count` were classified right."""

    total: Tensor
    classification: Tensor
    auxiliary: Tensor
    correct: Tensor
    count: int


def joint(logits: Tensor, labels: Tensor, auxiliary: Tensor, alpha: float) -> Losses:
    """Eq. (2). logits: (N, K); labels: (N,)."""
    classification = F.cross_entropy(logits.float(), labels)
    correct = (logits.argmax(1) == labels).sum()
    return Losses(classification + alpha * auxiliary, classification, auxiliary, correct, len(labels))


def natural(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Plain cross entropy."""
    logits = network(noisy(crop(indices), recipe.noise))
    return joint(logits, labels, torch.zeros(()), 0.0)


def soap_dr(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Data reconstruction, Eq. (6): the clean image from the noisy one."""
    x = crop(indices)
    z = network.features(noisy(x, recipe.noise))
    assert network.aux_head is not None
    auxiliary = F.mse_loss(network.aux_head(z).float(), x)
    return joint(network.classifier_head(z), labels, auxiliary, recipe.alpha)


def soap_rp(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Rotation prediction, Eq. (7): four rotated copies, each with its own noise, each classified too."""
    z = network.features(noisy(rotations(crop(indices)), recipe.noise))
    assert network.aux_head is not None
    which = torch.arange(4).repeat_interleave(len(indices))
    auxiliary = F.cross_entropy(network.aux_head(z).float(), which)
    return joint(network.classifier_head(z), labels.repeat(4), auxiliary, recipe.alpha)


def soap_lc(network: Classifier, recipe: Recipe, crop: Cropper, indices: Tensor, labels: Tensor) -> Losses:
    """Label consistency, Eq. (8): two augmented views, both classified, their logits drawn together."""
    assert recipe.views is not None
    base = crop(indices)
    other = crop(indices) if recipe.views.independent else base
    first = noisy(zoomed(base, recipe.views.zoom_1, recipe.views.flip), recipe.noise)
    second = noisy(zoomed(other, recipe.views.zoom_2, recipe.views.flip), recipe.noise)
    logits = network(torch.cat([first, second]).contiguous(memory_format=torch.channels_last)).float()
    auxiliary = F.mse_loss(*logits.chunk(2))
    return joint(logits, labels.repeat(2), auxiliary, recipe.alpha)
