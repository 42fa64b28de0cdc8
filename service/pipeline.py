"""Purify and classify one batch. Runs in the worker's thread: no asyncio, no HTTP."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.catalog import Defense
from models.purifiers import Purified


class NotFinite(ArithmeticError):
    """The network gave infinities or NaNs for this image: an error, not an answer."""


@dataclass(frozen=True)
class Lane:
    """What may share a batch: one defense, one shape. Two lanes of the same names and shape are the same lane."""

    model: str
    classifier: str
    purifier: str
    shape: tuple[int, ...]
    defense: Defense = field(compare=False, repr=False)

    @classmethod
    def of(cls, defense: Defense, image: Tensor) -> "Lane":
        """The lane of an image (C, H, W)."""
        return cls(defense.card.model, defense.card.classifier, defense.name, tuple(image.shape), defense)

    def __str__(self) -> str:
        return f"{self.model}/{self.classifier}/{self.purifier}/{'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Work:
    """One image (C, H, W) in [0, 1] on the CPU, and what is wanted of it."""

    image: Tensor
    seed: int
    top_k: int = 5
    want_image: bool = False


@dataclass(frozen=True)
class Prediction:
    """A class, and its softmax probability after purification."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Answer:
    """What was done to one image and what it shows.

    epsilon is the budget that was chosen; linf and l2 measure the change itself, in [0, 1] units. image is the purified
    (C, H, W) on the CPU, where it was asked for. purify_ms is the time of the whole batch; classification is in it, because
    the logits fall out of the purifier's own passes.
    """

    predictions: tuple[Prediction, ...]
    epsilon: float
    linf: float
    l2: float
    objective_before: float | None
    objective_after: float | None
    suspicion: float | None
    forward_passes: int
    backward_passes: int
    purify_ms: float
    image: Tensor | None


def run_batch(lane: Lane, works: Sequence[Work]) -> list[Answer | Exception]:
    """Purify and classify images of one lane; one answer, or one `NotFinite`, for each, in order."""
    images = torch.stack([work.image for work in works])
    started = time.perf_counter()
    with torch.no_grad():  # a purifier that needs gradients turns them on for itself
        purified = lane.defense.purify(images.to(lane.defense.device), [work.seed for work in works])
        host = _on_host(purified)
    purify_ms = 1000 * (time.perf_counter() - started)
    change = (host.image - images).flatten(1)
    finite = _finite(host)
    return [
        _answer(lane.defense, host, change[i], i, work, purify_ms)
        if finite[i]
        else NotFinite(f"{lane}: not a finite number in the result")
        for i, work in enumerate(works)
    ]


def _on_host(purified: Purified) -> Purified:
    """The same on the CPU; on a GPU this is where we wait for it to finish."""
    return Purified(
        image=purified.image.cpu(),
        logits=purified.logits.cpu(),
        epsilon=purified.epsilon.cpu(),
        objective_before=None if purified.objective_before is None else purified.objective_before.cpu(),
        objective_after=None if purified.objective_after is None else purified.objective_after.cpu(),
        forward_passes=purified.forward_passes.cpu(),
        backward_passes=purified.backward_passes.cpu(),
    )


def _finite(purified: Purified) -> list[bool]:
    """(N,), whether all of an image's numbers are finite."""
    parts = [purified.image, purified.logits, purified.epsilon, purified.objective_before, purified.objective_after]
    rows = [part.flatten(1) if part.dim() > 1 else part[:, None] for part in parts if part is not None]
    return [bool(each) for each in torch.cat(rows, dim=1).isfinite().all(dim=1)]


def _answer(defense: Defense, purified: Purified, change: Tensor, i: int, work: Work, purify_ms: float) -> Answer:
    before = None if purified.objective_before is None else float(purified.objective_before[i])
    return Answer(
        predictions=predictions(purified.logits[i], defense.card.labels, work.top_k),
        epsilon=float(purified.epsilon[i]),
        linf=float(change.abs().max()),
        l2=float(change.square().sum().sqrt()),
        objective_before=before,
        objective_after=None if purified.objective_after is None else float(purified.objective_after[i]),
        suspicion=None if before is None else defense.suspicion(before),
        forward_passes=int(purified.forward_passes[i]),
        backward_passes=int(purified.backward_passes[i]),
        purify_ms=purify_ms,
        image=purified.image[i].clone(memory_format=torch.contiguous_format) if work.want_image else None,
    )


def predictions(logits: Tensor, labels: Sequence[str], top_k: int) -> tuple[Prediction, ...]:
    """The `top_k` most probable classes (fewer where there are fewer), best first. logits: (K,)."""
    probabilities, indices = logits.softmax(dim=0).topk(min(top_k, len(logits)))
    found = zip(indices.tolist(), probabilities.tolist(), strict=True)
    return tuple(Prediction(labels[index], index, probability) for index, probability in found)
