"""`none`: classify the image as it came. The baseline that every purifier is measured against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.classifiers import Classifier
from models.purifiers.base import (
    Material,
    Options,
    Purified,
    Purifier,
    PurifierInfo,
    Wanted,
    counted,
    refuse_options,
    register,
)


class NoPurifier:
    """The identity."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier

    @property
    def info(self) -> PurifierInfo:
        return PurifierInfo(
            kind="none",
            paper="",
            summary="no purification: the image is classified as it came",
            eps_pfy=0.0,
            forward_passes=1,
            backward_passes=0,
            objective=None,
        )

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """See `Purifier`; returns the image unchanged. One pass has no steps to stop between."""
        with torch.no_grad():
            logits = self.logits(x)
        epsilon = torch.zeros(len(x), device=x.device)
        return Purified(x.clone(), logits, epsilon, None, None, counted(x, 1), counted(x, 0))

    def with_options(self, options: Options) -> Purifier:
        """See `Purifier`; there are none."""
        refuse_options(self.info.kind, options)
        return self

    def logits(self, x: Tensor) -> Tensor:
        """See `Purifier`."""
        return self._classifier(x)  # type: ignore[no-any-return]


@register("none")
def none(material: Material) -> Purifier:
    """Build the identity."""
    if material.settings:
        raise ValueError(f"purifier 'none' has no settings; got {sorted(material.settings)}")
    return NoPurifier(material.classifier)
