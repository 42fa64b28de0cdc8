"""Purify and classify one batch. Runs in the worker's thread: no asyncio, no HTTP."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.catalog import Defense
from models.classifiers import Classifier
from models.purifiers import Options, Purified, Wanted


class NotFinite(ArithmeticError):
    """The network gave infinities or NaNs for this image: an error, not an answer."""


@dataclass(frozen=True)
class Lane:
    """What may share a batch: one defense with one request's options, one shape. Equal where everything but `defense` is.

    network: compared by identity, since another checkpoint may have the same names and weights but other settings.
    """

    model: str
    classifier: str
    purifier: str
    weights_sha256: str
    options: Options
    shape: tuple[int, ...]
    network: Classifier = field(repr=False)
    defense: Defense = field(compare=False, repr=False)

    @classmethod
    def of(cls, defense: Defense, options: Options, shape: Sequence[int]) -> "Lane":
        """The lane of images of `shape` (C, H, W).

        Raises:
            ValueError: the purifier can't take the options.
        """
        card = defense.card
        names = card.model, card.classifier, defense.name, card.weights_sha256
        return cls(*names, options, tuple(shape), defense.classifier, defense.with_options(options))

    @property
    def group(self) -> tuple[str, str, str]:
        """What is treated fairly, whatever the options are that come."""
        return self.model, self.classifier, self.purifier

    @property
    def units(self) -> float:
        """What an image costs, in forward passes; a backward pass counts as two."""
        info = self.defense.info
        return info.forward_passes + 2 * info.backward_passes

    def __str__(self) -> str:
        name = f"{self.model}/{self.classifier}/{self.purifier}/{'x'.join(map(str, self.shape))}"
        return name + "".join(f"/{option}={getattr(self.options, option)}" for option in self.options.given())


@dataclass(frozen=True)
class Work:
    """One image (C, H, W) in [0, 1] on the CPU, and what is wanted of it."""

    image: Tensor
    seed: int
    want_image: bool = False
    want_before: bool = False


@dataclass(frozen=True)
class Answer:
    """What was done to one image and what it shows.

    probabilities is the softmax (K,) after purification, before the same without it, where it was asked for. epsilon is the
    budget that was chosen; linf and l2 measure the change itself, in [0, 1] units. image is the purified (C, H, W) on the
    CPU, where it was asked for. purify_ms is the time of the whole batch; classification is in it, because the logits fall
    out of the purifier's own passes.
    """

    probabilities: Tensor
    before: Tensor | None
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


def run_batch(lane: Lane, works: Sequence[Work], wanted: Wanted | None = None) -> list[Answer | Exception]:
    """Purify and classify images of one lane; one answer, or one `NotFinite`, for each, in order.

    Those that `wanted` no longer names get an answer without meaning.
    """
    images = torch.stack([work.image for work in works])
    started = time.perf_counter()
    with torch.no_grad():  # a purifier that needs gradients turns them on for itself
        on_device = images.to(lane.defense.device)
        purified = lane.defense.purify(on_device, [work.seed for work in works], wanted)
        host = _on_host(purified)
        before = lane.defense.classifier(on_device).cpu() if any(work.want_before for work in works) else None
    purify_ms = 1000 * (time.perf_counter() - started)
    change = (host.image - images).flatten(1)
    finite = _finite(host)
    return [
        _answer(lane.defense, host, before, change[i], i, work, purify_ms)
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


def _answer(
    defense: Defense,
    purified: Purified,
    unpurified: Tensor | None,
    change: Tensor,
    i: int,
    work: Work,
    purify_ms: float,
) -> Answer:
    before = None if purified.objective_before is None else float(purified.objective_before[i])
    return Answer(
        probabilities=purified.logits[i].softmax(dim=0),
        before=None if unpurified is None or not work.want_before else unpurified[i].softmax(dim=0),
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


def freed_memory(error: Exception) -> bool:
    """Whether the device or this machine had no memory left; then caches are emptied."""
    message = "can't allocate memory"  # how PyTorch says it for the CPU: as a plain RuntimeError
    if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or message in str(error)):
        return False
    error.__traceback__ = None  # its frames hold the tensors that were too many
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return True
