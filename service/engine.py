"""The service without HTTP: catalog, decoding threads and worker under one roof, and the way of one image through them."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from anyio import to_thread
from torch import Tensor

from models.catalog import Catalog, Offer
from models.catalog import UnknownName as NotInCatalog
from models.checkpoint import CheckpointError
from service import errors, worker
from service.decode import decode
from service.lanes import Done, Expired
from service.pipeline import Answer, Lane, Work, run_batch
from service.settings import Settings
from service.threads import ThreadPool, TooLong

log = logging.getLogger(__name__)
R = TypeVar("R")

# A seed that JSON readers with 64-bit floats (JavaScript) keep exactly.
SEED_LIMIT = 2**53


_UNKNOWN = {
    "model": errors.UnknownModel,
    "purifier": errors.UnknownPurifier,
    "classifier": errors.UnknownClassifier,
    "combination": errors.NotOffered,
}


@dataclass(frozen=True)
class Ask:
    """What a request wants of an image. seed: drawn where None."""

    offer: Offer
    top_k: int = 1
    seed: int | None = None
    want_image: bool = False


@dataclass(frozen=True)
class Served:
    """An answer and what it took."""

    offer: Offer
    seed: int
    answer: Answer
    decode_ms: float
    queue_ms: float
    batch_size: int


class Engine:
    """Answers images. Made and used in one event loop; everything that computes runs in threads."""

    def __init__(self, settings: Settings, catalog: Catalog | None = None) -> None:
        self.settings = settings
        self._catalog = catalog
        self._waits_for: str | None = "the catalog is not loaded yet"
        self._threads = ThreadPool(settings.decode_threads)
        self._worker: worker.BatchWorker[Lane, Work, Answer] = worker.BatchWorker(
            run_batch,
            max_batch_size=settings.max_batch_size,
            queue_limit=settings.queue_limit_images,
            max_wait_ms=settings.max_wait_ms,
            name="device",
        )

    def start(self) -> None:
        """Start the worker. `load` comes next and may take its time."""
        if self.settings.threads is not None:
            torch.set_num_threads(self.settings.threads)
        self._worker.start()

    async def load(self) -> None:
        """Open the catalog and run the default defense once; what goes wrong is logged and stays in `unready`."""
        try:
            if self._catalog is None:
                device = self.settings.torch_device()
                self._catalog = await to_thread.run_sync(Catalog.open, self.settings.zoo, device)
            offer = self.choose()
            self._waits_for = f"warming {offer.model}/{offer.purifier}"
            await self._warm(offer)
            self._waits_for = None
        except (CheckpointError, errors.Problem) as error:
            self._waits_for = str(error)
            log.error("not ready: %s", error)
        except Exception as error:  # the border of the start: a red /readyz with the reason instead of a silent one
            self._waits_for = f"loading failed: {type(error).__name__}"
            log.exception("not ready")

    async def close(self) -> None:
        """Finish what waits (no longer than a request may take), then stop."""
        await to_thread.run_sync(self._worker.close, self.settings.timeout_ms / 1000)
        self._threads.close()

    def unready(self) -> str | None:
        """Why requests can't be relied on to be answered; None when all is well."""
        return self._waits_for if self._worker.alive else "the worker thread is not running"

    @property
    def catalog(self) -> Catalog:
        """What can be served.

        Raises:
            errors.NotReady: it isn't loaded.
        """
        if self._catalog is None:
            raise errors.NotReady(self._waits_for or "the catalog is not loaded", retry_after_s=2)
        return self._catalog

    def choose(self, model: str | None = None, purifier: str | None = None, classifier: str | None = None) -> Offer:
        """The combination that a request means; what it doesn't name is the settings' default.

        Raises:
            errors.UnknownName: one of its children, with what is known.
        """
        model, purifier = model or self.settings.default_model, purifier or self.settings.default_purifier
        try:
            return self.catalog.resolve(model, purifier, classifier)
        except NotInCatalog as error:
            raise _UNKNOWN[error.what](str(error), error.known) from error

    def check_room(self) -> None:
        """Refuse early: before a body is read that nobody can work on.

        Raises:
            errors.QueueFull, errors.NotReady.
        """
        if not self._worker.alive:
            raise errors.NotReady("the worker thread is not running", retry_after_s=10)
        try:
            self._worker.check_room()
        except worker.QueueFull as full:
            raise errors.QueueFull(f"{full.limit} images wait, the most that may", full.expected_s) from full

    async def answer(self, data: bytes, ask: Ask, deadline: float) -> Served:
        """Decode, purify and classify one image file. deadline: on the clock of `time.monotonic`.

        Cancelling this withdraws the image from the queue.

        Raises:
            errors.Problem: everything that can happen.
        """
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._answer(data, ask, deadline)
        except errors.Problem:
            raise
        except (TimeoutError, Expired) as error:
            raise errors.DeadlineExceeded(self.settings.timeout_ms) from error
        except worker.QueueFull as full:
            raise errors.QueueFull(f"{full.limit} images wait, the most that may", full.expected_s) from full
        except worker.Stopped as stopped:
            raise errors.NotReady(str(stopped), retry_after_s=10) from stopped
        except Exception as error:  # the border of the image: the caller gets an id, the log gets the rest
            raise errors.Internal from error

    async def in_thread(self, call: Callable[[], R]) -> R:
        """Run what computes away from the event loop, a few at a time."""
        return await self._threads.run(call)

    async def _answer(self, data: bytes, ask: Ask, deadline: float) -> Served:
        image, decode_ms = await self._decode(data, ask.offer)
        defense = await self.in_thread(lambda: self.catalog.load(ask.offer))  # takes its time when it is the first
        seed = secrets.randbelow(SEED_LIMIT) if ask.seed is None else ask.seed
        work = Work(image, seed, ask.top_k, ask.want_image)
        done = await self._run(Lane.of(defense, image), work, deadline)
        return Served(ask.offer, seed, done.value, decode_ms, done.queue_ms, done.batch_size)

    async def _decode(self, data: bytes, offer: Offer) -> tuple[Tensor, float]:
        """The image, and the ms it took."""
        settings = self.settings

        def call() -> tuple[Tensor, float]:
            started = time.perf_counter()
            spec, pixels, side = offer.card.input, settings.max_pixels, settings.max_side
            image = decode(data, spec, pixels, max_side=side, formats=settings.formats)
            return image, 1000 * (time.perf_counter() - started)

        try:
            return await self._threads.run(call, settings.decode_timeout_ms / 1000)
        except TooLong as error:
            raise errors.DecodeTooSlow(settings.decode_timeout_ms) from error

    async def _run(self, lane: Lane, work: Work, deadline: float | None = None) -> Done[Answer]:
        return await asyncio.wrap_future(self._worker.submit(lane, work, deadline))

    async def _warm(self, offer: Offer) -> None:
        defense = await to_thread.run_sync(self.catalog.load, offer)
        spec = offer.card.input
        # Noise, not a plain grey: a purifier that skips what looks clean would leave its gradients cold.
        image = torch.rand(spec.channels, spec.height, spec.width, generator=torch.Generator().manual_seed(0))
        await self._run(Lane.of(defense, image), Work(image, seed=0))
