"""BatchWorker: one thread that owns the device. Items go in by lane, batches form by themselves, futures come back.

It knows nothing of images or HTTP, and nothing of asyncio: a caller in an event loop awaits
`asyncio.wrap_future(worker.submit(...).future)`, which touches the loop's own objects from the loop only.

An idle worker takes what is there at once; while it is busy the queue grows, so the next batch is larger. Waiting for
company (`wait_s`) is for who wants it.

A second thread watches the first: where that dies, or hangs in a batch, whoever waits is told, and after a pause, longer each
time, a new one starts. A hung thread can't be stopped; it is left alone and its late answers go nowhere.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Generic, Protocol, TypeVar

from models.purifiers import Wanted, Wish
from service.lanes import Done, Entry, Expired, K, Lanes, Limits, R, T
from service.logs import event

log = logging.getLogger(__name__)
Seen = TypeVar("Seen", contravariant=True)


class Stopped(Exception):
    """The worker is shut down, or has died or hung; it will not finish this item."""


class OutOfMemory(Exception):
    """The device had no room for this item, not even in half the batch."""


class Observer(Protocol[Seen]):
    """Hears what the worker does; called from its threads, so it must be quick and must not raise."""

    def batch(self, lane: Seen, size: int, queue_s: Sequence[float], run_s: float) -> None: ...
    def shed(self, lane: Seen, count: int) -> None: ...
    def expired(self, lane: Seen) -> None: ...
    def cancelled(self, lane: Seen) -> None: ...
    def restarted(self) -> None: ...


class Silent:
    """An observer that does nothing."""

    def batch(self, lane: object, size: int, queue_s: Sequence[float], run_s: float) -> None: ...
    def shed(self, lane: object, count: int) -> None: ...
    def expired(self, lane: object) -> None: ...
    def cancelled(self, lane: object) -> None: ...
    def restarted(self) -> None: ...


# (lane, items, wanted) -> a result for each item, in order. An exception in the list fails that item alone; one that is
# raised makes the worker halve the batch until only the guilty item is left. `wanted()` tells how each item's caller feels
# about it; what comes back for items that nobody waits for is thrown away.
Run = Callable[[K, Sequence[T], Wanted], Sequence[R | Exception]]


@dataclass(frozen=True)
class Care:
    """How the worker deals with a device in trouble.

    freed: whether an exception meant "out of memory"; it frees what it can. hang_s: a batch that takes longer has hung.
    pause_s: before a dead thread is replaced, doubled each time up to `longest_pause_s`, from the start again after a thread
    that worked for `healthy_s`.
    """

    freed: Callable[[Exception], bool] = lambda error: False
    hang_s: float = inf
    pause_s: float = 0.5
    longest_pause_s: float = 30.0
    healthy_s: float = 60.0


@dataclass(eq=False)
class _Shift(Generic[T, R]):
    """One life of the device thread."""

    started: float
    running: list[Entry[T, R]] = field(default_factory=list)
    since: float | None = None  # when its present batch began
    over: bool = False


class _Wanted(Generic[T, R]):
    """What the callers of a running batch's entries want; who is once out stays out."""

    def __init__(self, entries: Sequence[Entry[T, R]], clock: Callable[[], float]) -> None:
        self._entries, self._clock = entries, clock
        self.still = [True] * len(entries)

    def __call__(self) -> list[Wish | bool]:
        now = self._clock()
        self.still = [was and not entry.stale(now) for was, entry in zip(self.still, self._entries, strict=True)]
        return [
            Wish.HURRIES if still and entry.hurries(now) else still
            for still, entry in zip(self.still, self._entries, strict=True)
        ]


class BatchWorker(Generic[K, T, R]):
    """Runs items in batches of one lane.

    Args:
        run: see `Run`.
        limits: what may run at once and what may wait.
        clock: seconds, monotonic; deadlines are on this clock.
        begin: called once by each device thread before its first batch.
    """

    def __init__(
        self,
        run: Run[K, T, R],
        limits: Limits[K],
        *,
        care: Care | None = None,
        observer: Observer[K] | None = None,
        name: str = "worker",
        clock: Callable[[], float] = time.monotonic,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._run, self._clock, self._name, self._begin = run, clock, name, begin
        self._care, self._observer = care or Care(), observer or Silent()
        self._lanes: Lanes[K, T, R] = Lanes(limits, self._dropped)
        self._closing = False
        self._trouble: str | None = "the worker has not been started"
        self._changed = threading.Condition()
        self._shift: _Shift[T, R] = _Shift(0.0, over=True)
        # Daemons, so that a hung device can't keep the process alive after `close` has given up on it.
        self._watchman = threading.Thread(target=self._watch_over, name=f"{name}-watch", daemon=True)

    def start(self) -> None:
        """Start the threads. Once."""
        self._trouble = None
        self._begin_shift()
        self._watchman.start()

    def trouble(self) -> str | None:
        """Why items can't be relied on to be answered; None when all is well."""
        return "the worker is stopping" if self._closing else self._trouble

    def waiting(self) -> tuple[int, float]:
        """How many items wait, and how long they should take, in seconds."""
        with self._changed:
            return len(self._lanes), self._lanes.expected_s()

    def submit(self, lane: K, item: T, deadline: float | None = None, hurry_at: float | None = None) -> Entry[T, R]:
        """Queue an item; `withdraw` of what comes back takes it away again. Safe from any thread, never blocks.

        From `hurry_at` on a purifier that works in steps is to stop and answer with what it has reached.
        Its future ends with a `Done`, with what `run` raised for this item, with `Expired`, `OutOfMemory` or `Stopped`.

        Raises:
            QueueFull, Stopped.
        """
        entry: Entry[T, R] = Entry(item, self._clock(), deadline, hurry_at)
        with self._changed:
            self.check_room(lane)
            self._lanes.put(lane, entry)
            self._changed.notify_all()
        return entry

    def check_room(self, lane: K, items: int = 1) -> None:
        """Fail early, before somebody prepares items that there is no place for.

        Raises:
            QueueFull, Stopped: as `submit` would.
        """
        with self._changed:
            if self._closing or self._shift.over:
                raise Stopped(self.trouble() or "the worker is not running")
            try:
                self._lanes.check_room(lane, items, self._clock())
            except Exception:
                self._observer.shed(lane, items)
                raise

    def forget_retired(self) -> None:
        """Let go of lanes that are retired; those that are not empty yet go with their last batch."""
        with self._changed:
            self._lanes.forget_retired()

    def close(self, timeout_s: float) -> None:
        """Take nothing more, finish what waits, stop; after `timeout_s` fail what is left with `Stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._watchman.is_alive():
            self._watchman.join(timeout_s)
        self._abandon(self._shift, "the service is shutting down")

    # The device thread.

    def _main(self, shift: _Shift[T, R]) -> None:
        try:
            self._begin()
            while (lane := self._next(shift)) is not None:
                self._serve(shift, lane)
                del lane  # while it waits, the thread must not be what keeps a retired one alive
        except BaseException:  # the border of the thread: whoever waits must hear of it, whatever it was
            log.critical("the worker thread died", exc_info=True)
        finally:
            with self._changed:
                shift.over = True
                self._changed.notify_all()

    def _next(self, shift: _Shift[T, R]) -> K | None:
        """Wait for a batch, put it into `shift.running` and return its lane; None when closing and all is done."""
        with self._changed:
            while not shift.over:
                now = self._clock()
                lane = self._lanes.pick(now, hurry=self._closing)
                if lane is not None:
                    shift.running, shift.since = self._lanes.take(lane, now), now
                    if shift.running:
                        return lane
                    continue
                if self._closing:
                    return None
                due = self._lanes.due_at()
                self._changed.wait(None if due is None else max(0.0, due - now))
        return None

    def _serve(self, shift: _Shift[T, R], lane: K) -> None:
        batch, started = shift.running, self._clock()
        self._attempt(lane, batch)
        run_s = self._clock() - started
        with self._changed:
            if shift.over:  # given up on meanwhile
                return
            shift.running, shift.since = [], None
            self._lanes.served(lane, run_s, len(batch))
        queue_s = [started - entry.arrived for entry in batch]
        self._observer.batch(lane, len(batch), queue_s, run_s)
        facts = {"lane": str(lane), "size": len(batch), "queue_ms": 1000 * max(queue_s), "run_ms": 1000 * run_s}
        event(log, logging.INFO, "batch", **facts)

    def _attempt(self, lane: K, batch: list[Entry[T, R]], roomy: bool = True) -> None:
        """Run a batch and answer its callers. roomy: it may be halved if it doesn't fit into memory."""
        started, wanted = self._clock(), _Wanted(batch, self._clock)
        try:
            results = self._run(lane, [entry.item for entry in batch], wanted)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:  # the border of the batch: it answers its callers and the worker lives on
            if self._care.freed(error):
                self._make_room(lane, batch, roomy)
            else:
                self._blame(lane, batch, error, roomy)
            return
        self._trouble = None
        run_ms = 1000 * (self._clock() - started)
        for entry, result, still in zip(batch, results, wanted.still, strict=True):
            if not still:
                self._dropped(lane, late=not entry.withdrawn)
                entry.finish(Expired("the deadline passed while it was worked on"))
            elif isinstance(result, Exception):
                entry.finish(result)
            else:
                entry.finish(Done(result, 1000 * (started - entry.arrived), run_ms, len(batch)))

    def _blame(self, lane: K, batch: list[Entry[T, R]], error: Exception, roomy: bool) -> None:
        """A batch raised: find out whose fault it was."""
        if len(batch) == 1:
            batch[0].finish(error)
            return
        log.warning("batch lane=%s size=%d failed (%s), halving it", lane, len(batch), type(error).__name__)
        for half in _halves(batch):
            self._attempt(lane, half, roomy)

    def _make_room(self, lane: K, batch: list[Entry[T, R]], roomy: bool) -> None:
        """A batch did not fit into memory: once more in halves, and smaller ones from now on."""
        if not roomy:
            self._trouble = "the device is out of memory"
            for entry in batch:
                entry.finish(OutOfMemory(self._trouble))
            return
        log.warning("batch lane=%s size=%d is out of memory, trying again", lane, len(batch))
        with self._changed:
            self._lanes.shrink(lane, len(batch) // 2)
        for half in _halves(batch):
            self._attempt(lane, half, roomy=False)

    def _dropped(self, lane: K, late: bool) -> None:
        (self._observer.expired if late else self._observer.cancelled)(lane)

    # The watching thread.

    def _watch_over(self) -> None:
        pause_s = self._care.pause_s
        while True:
            shift = self._shift
            reason = self._end_of(shift)
            if reason is None:
                return
            with self._changed:
                self._trouble = f"{reason}; a new thread starts in {pause_s:g} s"
            log.critical(self._trouble)
            self._abandon(shift, reason)
            if self._pause(pause_s):
                return
            healthy = self._clock() - shift.started > self._care.healthy_s
            pause_s = self._care.pause_s if healthy else min(2 * pause_s, self._care.longest_pause_s)
            self._trouble = None
            self._begin_shift()
            self._observer.restarted()

    def _end_of(self, shift: _Shift[T, R]) -> str | None:
        """Wait until a shift ends: why, or None where it is because the worker closes."""
        with self._changed:
            while not shift.over:
                hangs_at = inf if shift.since is None else shift.since + self._care.hang_s
                if hangs_at <= self._clock():
                    shift.over = True
                    return f"a batch was not done after {self._care.hang_s:.0f} s"
                # A batch may begin at any moment, so look again before one could have hung unnoticed.
                self._changed.wait(min(hangs_at - self._clock(), self._care.hang_s, 3600))
            return None if self._closing else "the worker thread died"

    def _pause(self, seconds: float) -> bool:
        """Wait; True where the worker closes meanwhile."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _begin_shift(self) -> None:
        shift = self._shift = _Shift(self._clock())
        threading.Thread(target=self._main, args=(shift,), name=self._name, daemon=True).start()

    def _abandon(self, shift: _Shift[T, R], reason: str) -> None:
        with self._changed:
            shift.over = True
            waiting, running = self._lanes.clear(), list(shift.running)
            self._changed.notify_all()
        for entry in waiting:
            entry.drop(Stopped(reason))
        for entry in running:
            entry.finish(Stopped(reason))


def _halves(batch: list[Entry[T, R]]) -> list[list[Entry[T, R]]]:
    """Two halves; a batch of one is its only one."""
    half = len(batch) // 2
    return [part for part in (batch[:half], batch[half:]) if part]
