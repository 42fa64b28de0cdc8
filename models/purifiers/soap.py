"""SOAP: purify by descending a self-supervised loss that the classifier was trained with.

Changhao Shi, Chester Holtz, Gal Mishne: Online Adversarial Purification based on Self-Supervision, ICLR 2021.
Here: Eq. (6) `soap-dr`, Eq. (7) `soap-rp`, Eq. (8) `soap-lc`, on the loop of Alg. 2 (models/purifiers/descent.py).

What the paper leaves open or contradicts, and what we chose:
- Eq. (8), a_2 at test time is "definite flipping and cropping": the centre 24x24 of the flipped image, resized to 32x32 by
  nearest neighbour, as in the authors' public code; in proportion (three quarters) for other sizes.
- Its gradient: the published accuracies came out again only with the wrong backward pass that PyTorch 1.x on CUDA had for that
  resize (emulated). With the
  right gradient through both views (`second_view_gradient = 1`, the paper's formula) almost nothing is defended;
  with the second view as a fixed target (`0`), or a little of the opposite (`-0.1`), purification works. docs/soap.md has the
  measurements.
- Eq. (7), purification: "mean square error between predictive distributions and one-hot targets", summed over classes
  and rotations; only the scale would change otherwise.
- The budget is chosen for each image as Sec. 3.3 says, not by the batch's mean loss.
- "Skip" and "view averaging" are ours.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from models.classifiers import Classifier
from models.purifiers.base import Material, Purifier, register
from models.purifiers.descending import DescentPurifier, Description, ReadingObjective, settings_of
from models.purifiers.descent import DescentSettings, Evaluation
from models.rounding import by_rows

Distance = Literal["squared", "symmetric-kl"]

_SIZES = 64  # of images whose second views are kept in mind

PAPER = "Shi, Holtz, Mishne: Online Adversarial Purification based on Self-Supervision, ICLR 2021"


def flip_crop(x: Tensor) -> Tensor:
    """SOAP's a_2 at test time: flip, cut the centre three quarters, resize by nearest neighbour. (N, C, H, W) -> same."""
    pixels = x.permute(0, 2, 3, 1)  # channels last, as they lie there
    seen = pixels.flatten(1).index_select(1, _seen(x.shape[1:], x.device))
    return seen.view(pixels.shape).permute(0, 3, 1, 2)


@lru_cache(_SIZES)
def _seen(size: torch.Size, device: torch.device) -> Tensor:
    """Which of the values of an image (C, H, W), counted with channels last, each of its second view is. Reading each once takes
    a third of the time that flip, cut, resize and their gradients do."""
    channels, height, width = size
    numbers = torch.arange(height * width * channels, dtype=torch.float64).view(1, height, width, channels)
    top, left = height // 8, width // 8
    crop = numbers.permute(0, 3, 1, 2).flip(-1)[..., top : height - top, left : width - left]
    return F.interpolate(crop, size=(height, width), mode="nearest").permute(0, 2, 3, 1).flatten().long().to(device)


def label_consistency(logits_1: Tensor, logits_2: Tensor) -> Tensor:
    """SOAP Eq. (8): squared L2 distance of two views' logits. (N, K), (N, K) -> (N,), each >= 0."""
    return squared_length(logits_1 - logits_2)


def rotation_error(rotation_logits: Tensor) -> Tensor:
    """SOAP Sec. 3.4: squared error of the predicted rotations against one-hot targets. (4, N, 4) -> (N,), each >= 0."""
    targets = torch.eye(4, dtype=rotation_logits.dtype, device=rotation_logits.device)
    return squared_length((rotation_logits.softmax(dim=2) - targets[:, None]).transpose(0, 1))


def reconstruction_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """SOAP Eq. (6) without input noise: squared L2 distance. (N, C, H, W) twice -> (N,), each >= 0."""
    return squared_length(x - reconstruction)


def symmetric_kl(logits_1: Tensor, logits_2: Tensor) -> Tensor:
    """KL(p_1, p_2) + KL(p_2, p_1) of two views' class probabilities, per image. (N, K), (N, K) -> (N,), each >= 0."""

    def divergence(rows: Tensor) -> Tensor:
        first, second = rows.chunk(2, dim=1)
        log_1, log_2 = first.log_softmax(1), second.log_softmax(1)
        return ((log_1.exp() - log_2.exp()) * (log_1 - log_2)).sum(dim=1)

    return by_rows(divergence, torch.cat([logits_1, logits_2], dim=1))


def squared_length(x: Tensor) -> Tensor:
    """Squared L2 norm of each image's values. (N, ...) -> (N,)."""
    return by_rows(lambda rows: rows.square().sum(dim=1), x)


def rotations(x: Tensor) -> Tensor:
    """The four rotations Omega = (0, 90, 180, 270) degrees. (N, C, S, S) -> (4 N, C, S, S), rotation by rotation."""
    pixels = x.permute(0, 2, 3, 1)  # channels last, as they lie there
    return torch.cat([pixels.rot90(quarter, (1, 2)) for quarter in range(4)]).permute(0, 3, 1, 2)


class SoapObjective(ReadingObjective, Protocol):
    """A descent objective that also tells the views it compares."""

    def view_logits(self, x: Tensor) -> Tensor: ...


class LabelConsistency:
    """Eq. (8) as a descent objective; the second view's gradient is weighted, its value is not."""

    logit_views = 0

    def __init__(
        self,
        classifier: Classifier,
        second_view_gradient: float,
        second_view_share: float,
        distance: Distance = "squared",
    ) -> None:
        self.classifier, self.distance = classifier, distance
        self.weight, self.share = second_view_gradient, second_view_share
        self.views, self.gradient_views = 2, 1 if self.weight == 0 else 2
        self.batch_invariant = classifier.batch_invariant

    def __call__(self, x: Tensor) -> Evaluation:
        if self.weight == 0:
            first = self.classifier(x)
            with torch.no_grad():
                second = self.classifier(flip_crop(x))
        else:
            first, second = self.classifier(torch.cat([x, flip_crop(x)])).chunk(2)
            if self.weight != 1:
                second = second.detach() + self.weight * (second - second.detach())  # the value stays exact
        surrogate = symmetric_kl(first, second) if self.distance == "symmetric-kl" else None
        return Evaluation(label_consistency(first, second), self._mixed(first, second), surrogate)

    def view_logits(self, x: Tensor) -> Tensor:
        """Both views' logits. (N, C, H, W) -> (2, N, K)."""
        logits: Tensor = self.classifier(torch.cat([x, flip_crop(x)])).unflatten(0, (2, len(x)))
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        return self._mixed(*self.view_logits(x)) if self.share else self.classifier(x)

    def _mixed(self, first: Tensor, second: Tensor) -> Tensor:
        return first + self.share * (second - first) if self.share else first


class RotationPrediction:
    """Eq. (7) with the squared error that Sec. 3.4 uses for purification."""

    views = gradient_views = 4
    logit_views = 0

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.aux_head = classifier, _aux_head(classifier, "rotation head")
        self.batch_invariant = classifier.batch_invariant

    def __call__(self, x: Tensor) -> Evaluation:
        z = self.classifier.features(rotations(x))
        rotation_logits = self.aux_head(z).unflatten(0, (4, len(x)))  # (4, N, 4)
        return Evaluation(rotation_error(rotation_logits), self.classifier.classifier_head(z[: len(x)]))

    def view_logits(self, x: Tensor) -> Tensor:
        """The class logits of the four rotated copies. (N, C, H, W) -> (4, N, K)."""
        logits: Tensor = self.classifier(rotations(x)).unflatten(0, (4, len(x)))
        return logits

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        return self.classifier(x)  # type: ignore[no-any-return]


class Reconstruction:
    """Eq. (6); "at test-time, L_aux of the reconstruction is computed without input corruption" (Sec. 4)."""

    views = gradient_views = 1
    logit_views = 0

    def __init__(self, classifier: Classifier) -> None:
        self.classifier, self.aux_head = classifier, _aux_head(classifier, "decoder")
        self.batch_invariant = classifier.batch_invariant

    def __call__(self, x: Tensor) -> Evaluation:
        z = self.classifier.features(x)
        return Evaluation(reconstruction_error(x, self.aux_head(z)), self.classifier.classifier_head(z))

    def view_logits(self, x: Tensor) -> Tensor:
        """Reconstruction looks at the image alone. (N, C, H, W) -> (1, N, K)."""
        return self.logits(x)[None]

    def logits(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        return self.classifier(x)  # type: ignore[no-any-return]


def _aux_head(classifier: Classifier, what: str) -> torch.nn.Module:
    if classifier.aux_head is None:
        raise ValueError(f"this purifier needs a classifier trained with a {what}; this one has no auxiliary head")
    return classifier.aux_head


class LabelConsistencySettings(DescentSettings):
    """Settings of `soap-lc`."""

    second_view_gradient: float = Field(
        default=0.0, ge=-1, le=1, description="1: the exact gradient of Eq. (8); 0: the second view is a fixed target"
    )
    second_view_share: float = Field(
        default=0.0, ge=0, le=1, description="how much the second view's logits count in the prediction (ours)"
    )
    distance: Distance = Field(
        default="squared",
        description="what is descended: Eq. (8), or the two views' Kullback-Leibler divergences (ours). The latter ends where "
        "both are sure of one class, so it says nothing of the incoming image; skip rule and suspicion stay with Eq. (8)",
    )


class Soap(DescentPurifier[SoapObjective]):
    """One of SOAP's objectives on the shared descent."""

    def view_logits(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Class logits of every view that the objective compares, differentiable. (N, C, H, W) -> (V, N, K).

        They are the same whatever the `seeds`, which are there for purifiers that draw their views.
        """
        return self._objective.view_logits(x)


@register("soap-lc")
def soap_lc(material: Material) -> Purifier:
    """SOAP with label consistency, Eq. (8)."""
    settings = settings_of(LabelConsistencySettings, material)
    views = settings.second_view_gradient, settings.second_view_share
    objective = LabelConsistency(material.classifier, *views, settings.distance)
    summary = "descends the distance between the logits of the image and of its flipped, cropped copy"
    return Soap(Description("soap-lc", PAPER, summary), objective, settings, material.calibration)


@register("soap-rp")
def soap_rp(material: Material) -> Purifier:
    """SOAP with rotation prediction, Eq. (7)."""
    summary = "descends the error of predicting which of four rotations was applied"
    objective, settings = RotationPrediction(material.classifier), settings_of(DescentSettings, material)
    return Soap(Description("soap-rp", PAPER, summary), objective, settings, material.calibration)


@register("soap-dr")
def soap_dr(material: Material) -> Purifier:
    """SOAP with data reconstruction, Eq. (6)."""
    summary = "descends the error of reconstructing the image from its representation"
    objective, settings = Reconstruction(material.classifier), settings_of(DescentSettings, material)
    return Soap(Description("soap-dr", PAPER, summary), objective, settings, material.calibration)
