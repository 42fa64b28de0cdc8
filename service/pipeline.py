"""Purify and classify one batch. Runs in the worker's thread: no asyncio, no HTTP."""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.catalog import Defense
from models.classifiers import Classifier
from models.purifiers import Options, Purified, Wanted, Wish
from service.decode import File
from service.errors import Problem


class NotFinite(ArithmeticError):
    """The network gave infinities or NaNs for this image: an error, not an answer."""


@dataclass(frozen=True)
class Lane:
    """What may share a batch: one defense with one request's options, one shape.

    Equal where everything but `defense` and `base` is. network: compared by identity, since another checkpoint may have the same
    names and weights but other settings. base: the defense before the options.
    """

    model: str
    classifier: str
    purifier: str
    weights_sha256: str
    addon_sha256: tuple[str, ...]
    options: Options
    shape: tuple[int, ...]
    network: Classifier = field(repr=False)
    defense: Defense = field(compare=False, repr=False)
    base: Defense = field(compare=False, repr=False)

    @classmethod
    def of(cls, defense: Defense, options: Options, shape: Sequence[int]) -> "Lane":
        """The lane of images of `shape` (C, H, W).

        Raises:
            ValueError: the purifier can't take the options.
        """
        card = defense.card
        names = card.model, card.classifier, defense.name, card.weights_sha256, defense.addon_sha256
        return cls(*names, options, tuple(shape), defense.classifier, defense.with_options(options), defense)

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
    """One image (C, H, W) in [0, 1] on the CPU, or its file for `run_files`, and what is wanted of it. decode_ms: what it took
    to decode."""

    image: Tensor | File
    seed: int
    want_image: bool = False
    want_before: bool = False
    decode_ms: float = 0.0


@dataclass(frozen=True)
class Change:
    """What a purifier did to one image. epsilon is the budget that was chosen; linf and l2 measure the change itself, in
    [0, 1] units."""

    epsilon: float
    linf: float
    l2: float
    objective_before: float | None
    objective_after: float | None
    forward_passes: int
    backward_passes: int


@dataclass(frozen=True)
class Answer(Change):
    """What was done to one image and what it shows.

    probabilities is the softmax (K,) after purification, before the same without it, where it was asked for. image is the
    purified (C, H, W) on the CPU, where it was asked for. purify_ms is the time of the whole batch; classification is in it,
    because the logits fall out of the purifier's own passes. decode_ms: the work's. steps: of a chain, what each of its purifiers
    did.
    """

    probabilities: Sequence[float]
    before: Sequence[float] | None
    suspicion: float | None
    purify_ms: float
    image: Tensor | None
    decode_ms: float = 0.0
    steps: tuple[Change, ...] = ()


def run_files(lane: Lane, works: Sequence[Work], wanted: Wanted | None = None) -> list[Answer | Exception]:
    """`run_batch` for images of which some may be files yet; one that can't be decoded gets the `Problem` that it has."""
    found = [_decoded(work, lane) for work in works]
    good = {i: each for i, each in enumerate(found) if not isinstance(each, Problem)}

    def still() -> list[Wish | bool]:
        wishes = wanted() if wanted else [True] * len(works)
        return [wishes[i] for i in good]

    answers = iter(run_batch(lane, list(good.values()), still) if good else [])
    return [each if isinstance(each, Problem) else next(answers) for each in found]


def _decoded(work: Work, lane: Lane) -> Work | Problem:
    """With its image; or what is wrong with the file."""
    if isinstance(work.image, Tensor):
        return work
    started = time.perf_counter()
    try:
        image = work.image.decode(lane.defense.card.input)
    except Problem as problem:
        return problem
    return replace(work, image=image, decode_ms=1000 * (time.perf_counter() - started))


def run_batch(lane: Lane, works: Sequence[Work], wanted: Wanted | None = None) -> list[Answer | Exception]:
    """Purify and classify images of one lane; one answer, or one `NotFinite`, for each, in order.

    Those that `wanted` no longer names get an answer without meaning.
    """
    images = torch.stack([cast(Tensor, work.image) for work in works])
    started = time.perf_counter()
    with torch.no_grad():  # a purifier that needs gradients turns them on for itself
        on_device = images.to(lane.defense.device)
        purified = lane.defense.purify(on_device, [work.seed for work in works], wanted)
        host = _on_host(purified)
        before = lane.defense.classifier(on_device).cpu() if any(work.want_before for work in works) else None
    purify_ms = 1000 * (time.perf_counter() - started)
    whole = _changes(host, images)
    starts = [images, *(step.image for step in host.steps)]
    steps = [_changes(step, start) for step, start in zip(host.steps, starts, strict=False)]
    shown = {
        "probabilities": host.logits.softmax(dim=1).tolist(),
        "before": [None] * len(works) if before is None else before.softmax(dim=1).tolist(),
    }
    return [
        _answer(
            lane.defense,
            {**_row(whole, i), **_row(shown, i), "steps": tuple(Change(**_row(step, i)) for step in steps)},
            host.image[i],
            work,
            purify_ms,
        )
        if finite
        else NotFinite(f"{lane}: not a finite number in the result")
        for i, (work, finite) in enumerate(zip(works, _finite(host), strict=True))
    ]


def _row(columns: Mapping[str, list[Any]], i: int) -> dict[str, Any]:
    return {name: column[i] for name, column in columns.items()}


def _changes(host: Purified, start: Tensor) -> dict[str, list[Any]]:
    """The fields of `Change`, as lists of one entry an image; `start` (N, C, H, W) is what the purifier got.

    Computed for the whole batch at once: each operation on a tensor gives Python's lock away, and under load it takes long to
    come back.
    """
    change, nothing = _rows(host.image) - _rows(start), [None] * len(start)
    return {
        "epsilon": host.epsilon.tolist(),
        "linf": np.abs(change).max(axis=1).tolist(),
        "l2": np.sqrt(np.square(change).sum(axis=1)).tolist(),
        "objective_before": nothing if host.objective_before is None else host.objective_before.tolist(),
        "objective_after": nothing if host.objective_after is None else host.objective_after.tolist(),
        "forward_passes": host.forward_passes.tolist(),
        "backward_passes": host.backward_passes.tolist(),
    }


def _on_host(purified: Purified) -> Purified:
    """The same on the CPU; on a GPU this is where we wait for it to finish."""
    return Purified(
        steps=tuple(_on_host(step) for step in purified.steps),
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
    finite = [np.isfinite(_rows(part)).all(axis=1) for part in parts if part is not None]
    found: list[bool] = np.logical_and.reduce(finite).tolist()
    return found


def _rows(values: Tensor) -> NDArray[np.float32]:
    """(N, ...) -> (N, D). NumPy's: it takes a third of the time to begin that PyTorch takes, which at one image is all of it."""
    return values.numpy().reshape(len(values), -1)


def _answer(defense: Defense, row: dict[str, Any], image: Tensor, work: Work, purify_ms: float) -> Answer:
    objective = row["objective_before"]
    return Answer(
        **{**row, "before": row["before"] if work.want_before else None},
        suspicion=None if objective is None else defense.suspicion(objective),
        purify_ms=purify_ms,
        image=image.clone(memory_format=torch.contiguous_format) if work.want_image else None,
        decode_ms=work.decode_ms,
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
