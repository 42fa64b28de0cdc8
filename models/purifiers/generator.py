"""Purifiers that are one pass of a generator: `nrp` and `pix2pix`.

- NRP: Muzammal Naseer et al.: A Self-supervised Approach for Adversarial Robustness, CVPR 2020. Its networks:
  models/networks/nrp.py.
- Pix2Pix: Nazim Mezhoudi, Son Vu: Self-Supervised Learning for Adversarial Robustness, ETIS 2022. Its network:
  models/networks/pix2pix.py.

Neither bounds how far an image moves, so `epsilon` of an answer is how far it did, max |x_pfy - x|.

NRP's "dynamic" form (the authors' public code; the paper has no formula) adds Gaussian noise before the network, clipped to
16/255, against who knows the network. It is off unless `noise` is set. Each image's noise is drawn from its own seed.

Large images go through the network in overlapping tiles, so that memory stays bounded. What tiles agree on is the whole
image's answer where the overlap is at least twice the network's reach (tests hold that to 1e-5); where it is smaller, the parts
of neighbouring tiles that see least of their borders are blended.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from models.classifiers import Classifier
from models.networks.generator import Generator
from models.networks.nrp import NrpGenerator
from models.networks.pix2pix import UNet
from models.purifiers.base import (
    Material,
    Options,
    Purified,
    Purifier,
    PurifierInfo,
    Wanted,
    counted,
    gaussian,
    refuse_options,
    register,
)

NRP = "Naseer, Khan, Hayat, Khan, Porikli: A Self-supervised Approach for Adversarial Robustness, CVPR 2020"
PIX2PIX = "Mezhoudi, Son Vu: Self-Supervised Learning for Adversarial Robustness, ETIS 2022"


class GeneratorSettings(BaseModel):
    """Settings of `pix2pix`, and of `nrp` too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: int = Field(
        default=512, ge=64, multiple_of=16, description="larger images go through in tiles of so many pixels square"
    )
    overlap: int = Field(default=112, ge=32, multiple_of=16, description="pixels that neighbouring tiles share")

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorSettings":
        if 2 * self.overlap > self.tile:
            raise ValueError(f"overlap {self.overlap} is more than half of tile {self.tile}")
        return self


class NrpSettings(GeneratorSettings):
    """Settings of `nrp`."""

    noise: float = Field(
        default=0.0, ge=0, le=1, description="sigma of Gaussian noise before the network; public code: 0.05"
    )
    noise_limit: float = Field(
        default=16 / 255, ge=0, le=1, description="the noise is clipped to so much, l_inf; public code"
    )


class GeneratorPurifier:
    """x -> noise (where set) -> generator -> classifier.

    network: the generator, for attacks that differentiate through it.
    """

    def __init__(
        self, info: PurifierInfo, classifier: Classifier, network: Generator, settings: GeneratorSettings
    ) -> None:
        self.info, self.network, self.settings = info, network, settings
        self._classifier = classifier

    def purify(self, x: Tensor, seeds: Sequence[int] | None = None, wanted: Wanted | None = None) -> Purified:
        """See `Purifier`; between tiles work stops once nobody waits for any of its images."""
        with torch.no_grad():
            image = generated(self.network, self._noisy(x, seeds), self.settings, wanted)
            logits = self.logits(image)
        moved = (image - x).abs().flatten(1).amax(1)
        return Purified(image, logits, moved, None, None, counted(x, self.info.forward_passes), counted(x, 0))

    def with_options(self, options: Options) -> Purifier:
        """See `Purifier`; there are none."""
        refuse_options(self.info.kind, options)
        return self

    def logits(self, x: Tensor) -> Tensor:
        """See `Purifier`."""
        return self._classifier(x)  # type: ignore[no-any-return]

    def restored(self, x: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """The purified image, differentiable; without tiles, and without noise unless there are seeds for it.

        (N, C, H, W) in [0, 1] -> the same.
        """
        return self.network(x if seeds is None else self._noisy(x, seeds))  # type: ignore[no-any-return]

    def _noisy(self, x: Tensor, seeds: Sequence[int] | None) -> Tensor:
        if not isinstance(self.settings, NrpSettings) or self.settings.noise == 0:
            return x
        limit = self.settings.noise_limit
        return (x + gaussian(x, seeds, self.settings.noise).clamp(-limit, limit)).clamp(0, 1)


def generated(network: Generator, x: Tensor, settings: GeneratorSettings, wanted: Wanted | None = None) -> Tensor:
    """The generator's answer, in memory of about two tiles. (N, C, H, W) in [0, 1] -> the same.

    What comes back for images that nobody wants any more means nothing.
    """
    height, width = x.shape[-2:]
    # At least two: one image alone is computed twice, see `Generator.forward`.
    together = max(2, 2 * settings.tile**2 // (min(height, settings.tile) * min(width, settings.tile)))
    answers = []
    for first in range(0, len(x), together):
        part = x[first : first + together]
        answers.append(_in_tiles(network, part, settings, wanted and _part(wanted, first, len(part))))
    return torch.cat(answers) if answers else x.clone()


def _part(wanted: Wanted, first: int, count: int) -> Wanted:
    return lambda: wanted()[first : first + count]


def _in_tiles(network: Generator, x: Tensor, settings: GeneratorSettings, wanted: Wanted | None) -> Tensor:
    """The sum of all tiles, each weighted by its mask; the masks of one pixel add up to 1."""
    answer = torch.zeros_like(x)
    for rows in _spans(x.shape[-2], settings, network.reach):
        for columns in _spans(x.shape[-1], settings, network.reach):
            if wanted is not None and not any(wanted()):
                return answer
            where = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
            mask = (rows.mask[:, None] * columns.mask).to(x)
            answer[where] += mask * network(x[where])
    return answer.clamp_(0, 1)  # masks add up to 1 but for rounding


@dataclass(frozen=True)
class Span:
    """One tile's place along one axis, and how much of it counts. mask: (stop - start,) in [0, 1]."""

    start: int
    stop: int
    mask: Tensor


def _spans(length: int, settings: GeneratorSettings, reach: int) -> Iterator[Span]:
    """Tiles along an axis of `length` pixels; the last ends with the image."""
    tile, overlap = settings.tile, settings.overlap
    # So many pixels at a tile's inner borders don't count at all; over what is left of the overlap tiles fade into each other.
    border = reach if 2 * reach < overlap else overlap // 4
    fade = (torch.arange(overlap - 2 * border) + 0.5) / (overlap - 2 * border)
    ramp = torch.cat([torch.zeros(border), fade, torch.ones(border)])
    start = 0
    while True:
        stop = min(start + tile, length)
        mask = torch.ones(stop - start)
        if start > 0:
            mask[:overlap] *= ramp
        if stop < length:
            mask[-overlap:] *= 1 - ramp
        yield Span(start, stop, mask)
        if stop == length:
            return
        start += tile - overlap


def _info(kind: str, paper: str, summary: str, random: bool = False) -> PurifierInfo:
    return PurifierInfo(
        kind=kind,
        paper=paper,
        summary=summary,
        eps_pfy=None,
        forward_passes=2,  # one of the generator, one of the classifier
        backward_passes=0,
        objective=None,
        random=random,
    )


@register("nrp")
def nrp(material: Material) -> Purifier:
    """NRP, with either of its generators."""
    settings = NrpSettings.model_validate(dict(material.settings))
    network = material.own_network(NrpGenerator)
    noise = "adds noise, then " if settings.noise else ""
    summary = f"{noise}restores the image by a generator trained on distortions of features"
    return GeneratorPurifier(_info("nrp", NRP, summary, settings.noise > 0), material.classifier, network, settings)


@register("pix2pix")
def pix2pix(material: Material) -> Purifier:
    """The Pix2Pix purifier."""
    settings = GeneratorSettings.model_validate(dict(material.settings))
    summary = "restores the image by a U-Net trained on distortions of features"
    return GeneratorPurifier(
        _info("pix2pix", PIX2PIX, summary), material.classifier, material.own_network(UNet), settings
    )
