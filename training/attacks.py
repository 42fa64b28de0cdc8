"""Attacks: SOAP Alg. 1 on the classifier alone, and two attackers who know the defence.

- `pgd` (Alg. 1; FGSM is one step of the whole budget): gradient of the undefended classifier. It doesn't know the purifier.
- `two_view`: the same ascent on the summed cross entropy of every view that the purifier compares. No purifier in
  the loop, hence cheap; against label consistency it is the strongest attack known to us.
- `distort_features`: NRP's Alg. 1 (SSP; Naseer et al., CVPR 2020) and Pix2Pix's Alg. 1 (Mezhoudi 2022), which are one: ascent
  on the distance of a classifier's inner activations from those of the clean image. No labels; meant to carry over to others.
- `bpda`: identity-BPDA (Athalye et al. 2018). Each step purifies the current image, takes the gradient at the *purified*
  point and applies it to the image, as if the purifier were the identity.

An adaptive attack succeeds on an image if *any* iterate that it checked is misclassified by the whole defence: the attacker
picks the best one. Budgets are l_inf, in [0, 1] units.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from models.catalog import CHUNK, Defense

Mode = Literal["none", "static", "two-view", "bpda"]


class AttackSettings(BaseModel):
    """An attack and its budget. steps = 1 with step_size = epsilon is FGSM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    mode: Mode
    epsilon: float = Field(default=0.0, ge=0, le=1, description="l_inf")
    step_size: float = Field(default=0.0, ge=0, le=1)
    steps: int = Field(default=0, ge=0)
    random_start: bool = Field(
        default=False, description="uniform in the budget, drawn from `seed` and the image's index"
    )
    seed: int = 0

    def text(self) -> str:
        """One line for people, for example `pgd: 20 steps of 2/255, epsilon 8/255`."""
        if self.mode == "none":
            return self.name
        return f"{self.name}: {self.steps} steps of {_fraction(self.step_size)}, epsilon {_fraction(self.epsilon)}"


def _fraction(value: float) -> str:
    of_255 = value * 255
    return f"{of_255:.4g}/255" if abs(of_255 - round(of_255, 1)) < 1e-9 and value < 0.2 else f"{value:.4g}"


def ascend(
    loss: Callable[[Tensor], Tensor],
    x: Tensor,
    settings: AttackSettings,
    *,
    start: Tensor | None = None,
    on_step: Callable[[int, Tensor], None] = lambda step, image: None,
) -> Tensor:
    """The last iterate of projected sign ascent on a per-image loss (SOAP Alg. 1); `on_step` sees iterates 1..T.

    x: (N, C, H, W) in [0, 1]; loss: (N, C, H, W) -> (N,).
    """
    delta = torch.zeros_like(x) if start is None else start
    for step in range(1, settings.steps + 1):
        leaf = (x + delta).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        delta = delta + settings.step_size * gradient.sign()  # Alg. 1, l. 4
        delta = delta.clamp(-settings.epsilon, settings.epsilon)  # l. 5
        delta = (x + delta).clamp(0, 1) - x  # l. 6
        on_step(step, x + delta)
    return x + delta


def static(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, first: int = 0) -> Tensor:
    """Adversarial images against the undefended classifier. (N, C, H, W), (N,) -> (N, C, H, W).

    first: the data set index of x[0], so that a random start belongs to its image.
    """
    start = _random_start(x, settings, first) if settings.random_start else None

    def loss(image: Tensor) -> Tensor:
        return F.cross_entropy(defense.classifier(image), y, reduction="none")

    return ascend(loss, x, settings, start=start)


def distort_features(
    features: Callable[[Tensor], Tensor], x: Tensor, settings: AttackSettings, start: Tensor
) -> Tensor:
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


def random_start(x: Tensor, epsilon: float) -> Tensor:
    """A uniform perturbation in the budget, from torch's global generator. (N, C, H, W) in [0, 1] -> (N, C, H, W)."""
    return _started(x, torch.rand_like(x), epsilon)


def _random_start(x: Tensor, settings: AttackSettings, first: int) -> Tensor:
    noise = torch.stack(
        [
            torch.rand(image.shape, generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + first + i))
            for i, image in enumerate(x.cpu())
        ]
    ).to(x.device)
    return _started(x, noise, settings.epsilon)


def _started(x: Tensor, noise: Tensor, epsilon: float) -> Tensor:
    """noise: uniform in [0, 1)."""
    delta = (2 * noise - 1) * epsilon
    return (x + delta).clamp(0, 1) - x


@dataclass(frozen=True)
class Survived:
    """right: (N,) bool, which images the whole defence got right at every iterate that was checked. image: the last one."""

    right: Tensor
    image: Tensor


def two_view(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings, every: int = 20) -> Survived:
    """Ascend the summed cross entropy of all views; check the whole defence at every `every`-th iterate.

    Raises:
        ValueError: the purifier compares no views.
    """
    views = getattr(defense.purifier, "view_logits", None)
    if views is None:
        raise ValueError(f"purifier {defense.name!r} compares no views")

    def loss(image: Tensor) -> Tensor:
        seen = views(image)  # (V, N, K)
        return F.cross_entropy(seen.flatten(0, 1), y.repeat(len(seen)), reduction="none").view(len(seen), -1).sum(0)

    right = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def check(step: int, image: Tensor) -> None:
        if step % every == 0 or step == settings.steps:
            right.logical_and_(defense.purify(image).logits.argmax(1) == y)

    return Survived(right, ascend(loss, x, settings, on_step=check))


def bpda(defense: Defense, x: Tensor, y: Tensor, settings: AttackSettings) -> Survived:
    """Ascend the cross entropy at the purified point; check the whole defence at every iterate."""
    right = torch.ones(len(x), dtype=torch.bool, device=x.device)

    def loss(image: Tensor) -> Tensor:
        purified = defense.purify(image.detach())
        right.logical_and_(purified.logits.argmax(1) == y)
        through = image + (purified.image - image).detach()  # forward: the purified image; backward: the identity
        return F.cross_entropy(defense.logits(through), y, reduction="none")

    last = ascend(loss, x, settings)
    return Survived(right & (defense.purify(last).logits.argmax(1) == y), last)


def in_chunks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first index, images, labels) in cache-sized parts."""
    for first in range(0, len(x), CHUNK):
        yield first, x[first : first + CHUNK], y[first : first + CHUNK]
