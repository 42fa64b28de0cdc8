"""The service without HTTP: catalog, decoding threads and worker under one roof, and the way of one image through them."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from anyio import to_thread
from torch import Tensor

from models.catalog import Catalog, Defense, Offer
from models.catalog import UnknownName as NotInCatalog
from models.checkpoint import CheckpointError
from models.purifiers import Options
from models.votes import SEED_LIMIT, seeds_of
from service import desk, errors
from service.crew import seats
from service.decode import File, encode_png
from service.lanes import Done, Entry, Expired, Limits, QueueFull
from service.outbox import Outbox
from service.pipeline import Answer, Lane, Work, freed_memory
from service.seeds import Seeds
from service.settings import Settings
from service.threads import ThreadPool, TooLong, use_cores
from service.votes import Prediction, predictions
from service.worker import BatchWorker

log = logging.getLogger(__name__)
R = TypeVar("R")

# Runs before the service is ready: the first is many times slower than the third, and what items take is learned from them.
WARMING = 3

# Between probes of a device in trouble, and what clients are told to wait meanwhile.
PROBE_S = 5.0

# The longest batch that is let in between two steps of another one, as a share of the longest that there is.
GUEST = 1 / 8


_UNKNOWN = {
    "model": errors.UnknownModel,
    "purifier": errors.UnknownPurifier,
    "classifier": errors.UnknownClassifier,
    "combination": errors.NotOffered,
}


@dataclass(frozen=True)
class Ask:
    """What a request wants of an image, and the lane that this goes to. seed: drawn where None.

    stop_after_ms: purification in steps ends so long after the request arrived, with what it has reached.
    """

    offer: Offer
    lane: Lane
    votes: int = 1
    top_k: int = 1
    seed: int | None = None
    want_image: bool = False
    stop_after_ms: float | None = None


@dataclass(frozen=True)
class Deadline:
    """When a request must be answered: so long after it arrived, by the clock of `time.monotonic`."""

    arrived: float
    timeout_ms: float

    @property
    def at(self) -> float:
        """On that clock."""
        return self.arrived + self.timeout_ms / 1000

    def left_s(self) -> float:
        """Seconds until then; negative afterwards."""
        return self.at - time.monotonic()


@dataclass(frozen=True)
class Served:
    """An answer and what it took. answer: of the first vote, where there were several; predictions are of all."""

    offer: Offer
    seed: int
    votes: int
    predictions: tuple[Prediction, ...]
    before: tuple[Prediction, ...] | None
    answer: Answer
    decode_ms: float
    queue_ms: float
    batch_size: int


class Engine:
    """Answers images. Made and used in one event loop; everything that computes runs in threads."""

    def __init__(
        self, settings: Settings, catalog: Catalog | None = None, observer: desk.Observer[Lane] | None = None
    ) -> None:
        self.settings = settings
        self._catalog = catalog
        self._defaults: dict[str, str] = {}
        self._asking, self._heard = 0, time.monotonic()  # images under way, and when the last one went
        self._waits_for: str | None = "the catalog is not loaded yet"
        self._nurse: asyncio.Task[None] | None = None
        self._seeds, self._outbox = Seeds(SEED_LIMIT), Outbox()
        self._threads = ThreadPool(settings.decode_threads)
        places = seats(settings)
        limits: Limits[Lane] = Limits(
            batch_items=settings.max_batch_size,
            batch_s=settings.max_batch_ms / 1000,
            guest_s=settings.max_batch_ms / 1000 * GUEST,
            wait_s=settings.max_wait_ms / 1000,
            seats=len(places),
            queue_items=settings.queue_limit_images,
            queue_s=settings.queue_limit_ms / 1000,
            group=lambda lane: lane.group,
            units=lambda lane: lane.units,
            retired=lambda lane: self._catalog is not None and not self._catalog.serves(lane.defense),
        )
        care = desk.Care(freed_memory, hang_s=settings.hang_timeout_ms / 1000)
        self._decode_later = all(place.decodes for place in places)
        self._worker: BatchWorker[Lane, Work, Answer] = BatchWorker(
            places, limits, care=care, observer=observer, name="device"
        )

    def start(self) -> None:
        """Start the worker. `load` comes next and may take its time."""
        use_cores(1)
        self._worker.start()
        self._nurse = asyncio.create_task(self._probe_while_in_trouble())

    async def load(self) -> None:
        """Open the catalog and run the default defense once; what goes wrong is logged and stays in `unready`."""
        try:
            if self._catalog is None:
                device = self.settings.torch_device()
                self._catalog = await to_thread.run_sync(Catalog.open, self.settings.zoo, device)
            offer = self.choose()
            self._waits_for = f"warming {offer.model}/{offer.purifier}"
            for _ in range(WARMING):
                await self.warm(offer)
            self._waits_for = None
        except (CheckpointError, errors.Problem) as error:
            self._waits_for = str(error)
            log.error("not ready: %s", error)
        except Exception as error:  # the border of the start: a red /readyz with the reason instead of a silent one
            self._waits_for = f"loading failed: {type(error).__name__}"
            log.exception("not ready")

    def drain(self) -> None:
        """Turn not ready while what was accepted, and for a while what still comes, is answered."""
        self._waits_for = "the service is shutting down"

    async def close(self) -> None:
        """Finish what waits (no longer than a request may take), then stop."""
        if self._nurse is not None:
            self._nurse.cancel()
            await asyncio.gather(self._nurse, return_exceptions=True)
        await to_thread.run_sync(self._worker.close, self.settings.timeout_ms / 1000)
        self._threads.close()

    def unready(self) -> str | None:
        """Why requests can't be relied on to be answered; None when all is well."""
        return self._waits_for or self._worker.trouble()

    def waiting(self) -> tuple[int, float]:
        """How many images wait, and how long they should take, in seconds."""
        return self._worker.waiting()

    def quiet_s(self) -> float:
        """For how long nobody has been waiting for an answer, in seconds."""
        return 0.0 if self._asking else time.monotonic() - self._heard

    @property
    def catalog(self) -> Catalog:
        """What can be served.

        Raises:
            errors.NotReady: it isn't loaded.
        """
        if self._catalog is None:
            raise errors.NotReady(self._waits_for or "the catalog is not loaded", retry_after_s=2)
        return self._catalog

    def adopt(self, catalog: Catalog) -> None:
        """Serve this from now on. Requests that were accepted before are still answered by what they were accepted for."""
        self._catalog = catalog
        self._worker.forget_retired()

    def default_purifier(self, model: str) -> str:
        """That of a request which names none; what is loaded later doesn't change it."""
        if self.settings.default_purifier is not None:
            return self.settings.default_purifier
        if model not in self._defaults:
            if model not in self.catalog.models():
                return "none"
            self._defaults[model] = self.catalog.default_purifier(model)
        return self._defaults[model]

    def choose(self, model: str | None = None, purifier: str | None = None, classifier: str | None = None) -> Offer:
        """The combination that a request means; what it doesn't name is the settings' default.

        Raises:
            errors.UnknownName: one of its children, with what is known.
        """
        model = model or self.settings.default_model
        try:
            return self.catalog.resolve(model, purifier or self.default_purifier(model), classifier)
        except NotInCatalog as error:
            raise _UNKNOWN[error.what](str(error), error.known) from error

    async def ask(self, offer: Offer, options: Options, votes: int = 1, **wishes: Any) -> Ask:
        """What a request wants, checked against what the purifier can and the operator allows.

        Raises:
            errors.BadParameter
        """
        allowed = {
            "epsilon": self.settings.max_epsilon,
            "steps": self.settings.max_steps,
            "votes": self.settings.max_votes,
        }
        for name, value in {**vars(options), "votes": votes}.items():
            if value is not None and value > allowed[name]:
                raise errors.BadParameter(f"{name}: {value} came; this service allows at most {allowed[name]}")
        defense, spec = await self._load(offer), offer.card.input
        try:
            lane = Lane.of(defense, options, (spec.channels, spec.height, spec.width))
        except ValueError as error:
            raise errors.BadParameter(str(error)) from error
        if votes > 1 and not lane.defense.info.random:
            raise errors.BadParameter(
                f"votes: purifier {offer.purifier!r} draws no random numbers, so every vote would be the same; leave it away"
            )
        if wishes.get("stop_after_ms") is not None and "steps" not in lane.defense.info.options:
            raise errors.BadParameter(
                f"stop_after_ms: purifier {offer.purifier!r} doesn't work in steps, so nothing can be cut short; leave it away"
            )
        return Ask(offer, lane, votes, **wishes)

    def check_room(self, ask: Ask, images: int = 1) -> None:
        """Refuse early: before a body is read that nobody can work on, and before images of which some would find no place.

        Raises:
            errors.QueueFull, errors.NotReady.
        """
        with self.problems():
            self._worker.check_room(ask.lane, images * ask.votes)

    async def answer(self, data: bytes | Tensor, ask: Ask, deadline: Deadline) -> Served:
        """Decode, purify and classify one image file.

        A tensor is (C, H, W) float32 in [0, 1], of exactly the model's size, and is not decoded.

        Cancelling this withdraws the image from the queue, or from its batch at the next step.

        Raises:
            errors.Problem: everything that can happen.
        """
        self._asking += 1
        try:
            with self.problems(deadline):
                async with asyncio.timeout(deadline.left_s()):
                    return await self._answer(data, ask, deadline)
        finally:
            self._asking, self._heard = self._asking - 1, time.monotonic()

    @contextmanager
    def problems(self, deadline: Deadline | None = None) -> Iterator[None]:
        """What can go wrong, as problems; what is nobody's known fault becomes `Internal` with its cause."""
        try:
            yield
        except errors.Problem:
            raise
        except (TimeoutError, Expired) as error:
            raise errors.DeadlineExceeded(deadline.timeout_ms if deadline else self.settings.timeout_ms) from error
        except QueueFull as full:
            raise errors.QueueFull(str(full), full.retry_after_s, self.settings.shed_status) from full
        except desk.OutOfMemory as error:
            raise errors.OutOfMemory(str(error), retry_after_s=PROBE_S) from error
        except desk.Stopped as stopped:
            raise errors.NotReady(str(stopped), retry_after_s=PROBE_S) from stopped
        except Exception as error:  # the border of the image: the caller gets an id, the log gets the rest
            raise errors.Internal from error

    async def in_thread(self, call: Callable[[], R]) -> R:
        """Run what computes away from the event loop, a few at a time."""
        return await self._threads.run(call)

    async def _load(self, offer: Offer) -> Defense:
        """Building a network takes a while, so not in the event loop."""
        catalog = self.catalog
        if (built := catalog.loaded(offer)) is not None:
            return built
        return await self.in_thread(lambda: catalog.load(offer))

    async def _answer(self, data: bytes | Tensor, ask: Ask, deadline: Deadline) -> Served:
        image, decode_ms = (data, 0.0) if isinstance(data, Tensor) else await self._opened(data, ask)
        seed = self._seeds.draw() if ask.seed is None else ask.seed
        reveal = self.settings.reveal_unpurified
        works = [
            Work(image, own, ask.want_image and vote == 0, reveal, decode_ms)
            for vote, own in enumerate(seeds_of(seed, ask.votes))
        ]
        hurry_at = None if ask.stop_after_ms is None else deadline.arrived + ask.stop_after_ms / 1000
        done = await self._run(ask.lane, works, deadline.at, hurry_at)
        first = done[0]

        def ranked(votes: Sequence[Sequence[float]]) -> tuple[Prediction, ...]:
            return predictions(votes, ask.offer.card.labels, ask.top_k, self.settings.probability_digits)

        return Served(
            offer=ask.offer,
            seed=seed,
            votes=ask.votes,
            predictions=ranked([each.value.probabilities for each in done]),
            before=None if first.value.before is None else ranked([first.value.before]),
            answer=first.value,
            decode_ms=first.value.decode_ms,
            queue_ms=first.queue_ms,
            batch_size=first.batch_size,
        )

    def _file(self, data: bytes) -> File:
        return File(data, self.settings.max_pixels, self.settings.max_side, self.settings.formats)

    async def _opened(self, data: bytes, ask: Ask) -> tuple[Tensor | File, float]:
        """The image, and the ms it took; or the file of one that is quick to decode, which a helper does beside its batch."""
        settings, spec, file = self.settings, ask.offer.card.input, self._file(data)

        def call() -> tuple[Tensor, float]:
            started = time.perf_counter()
            return file.decode(spec), 1000 * (time.perf_counter() - started)

        if file.is_quick():
            # A vote each would decode it again.
            return (file, 0.0) if self._decode_later and ask.votes == 1 else call()
        try:
            return await self._threads.run(call, settings.decode_timeout_ms / 1000)
        except TooLong as error:
            raise errors.DecodeTooSlow(settings.decode_timeout_ms) from error

    async def _run(
        self, lane: Lane, works: Sequence[Work], deadline: float | None = None, hurry_at: float | None = None
    ) -> list[Done[Answer]]:
        entries: list[Entry[Work, Answer]] = []
        try:
            for work in works:
                # One by one: a refusal leaves some to withdraw.
                entries.append(self._worker.submit(lane, work, deadline, hurry_at))
            return await self._outcomes(entries)
        finally:
            for entry in entries:
                entry.withdraw()  # changes nothing for those that are done

    async def _outcomes(self, entries: Sequence[Entry[Work, Answer]]) -> list[Done[Answer]]:
        if len(entries) == 1:  # as almost always: `gather` would make two more objects and a turn of the loop
            return [await self._outbox.awaited(entries[0].future)]
        return await asyncio.gather(*(self._outbox.awaited(entry.future) for entry in entries))

    async def warm(self, offer: Offer) -> Answer:
        """Run a combination once, as requests will; `offer` may be of a catalog that isn't served yet.

        Raises:
            what `BatchWorker.submit` and its futures do.
        """
        ask = await self.ask(offer, Options())
        # Noise, not a plain grey: a purifier that skips what looks clean would leave its gradients cold.
        noise = torch.rand(ask.lane.shape, generator=torch.Generator().manual_seed(0))
        as_file = self._decode_later and "PNG" in self.settings.formats  # a helper's first file costs it 20 ms
        image = self._file(encode_png(noise)) if as_file else noise
        entries = self._worker.submit_to_each(ask.lane, Work(image, seed=0))
        return (await self._outcomes(entries))[0].value

    async def _probe_while_in_trouble(self) -> None:
        """Nobody sends requests to a service that is not ready, so it has to find out itself whether it is again."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._waits_for is None and self._worker.trouble():
                with suppress(Exception):  # still in trouble, which the worker has logged
                    await self.warm(self.choose())
