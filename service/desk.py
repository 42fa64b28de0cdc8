"""One seat of the worker: a device or a part of it, the thread that runs batches there, and the one that watches that thread."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Generic, Protocol, TypeVar

from models.purifiers import Wanted, Wish
from service.lanes import Batch, Done, Entry, Expired, K, Lanes, Limits, R, T
from service.logs import event

log = logging.getLogger(__name__)
Seen = TypeVar("Seen", contravariant=True)
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", contravariant=True)
Answered = TypeVar("Answered", covariant=True)


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


@dataclass(frozen=True)
class Ran(Generic[Answered]):
    """What became of a batch: a result for each item, in order; an exception among them fails that item alone.

    seconds: that the seat worked on it, where it may have been at something else before; None: since it was given the batch.
    """

    results: Sequence[Answered | Exception]
    seconds: float | None = None


# (lane, items, wanted, meanwhile) -> what became of it. What is raised makes the worker halve the batch until only the guilty
# item is left. `wanted()` tells how each item's caller feels
# about it; what comes back for items that nobody waits for is thrown away. `meanwhile()` is called where the batch can be
# interrupted, such as between two steps: it may run another one, by the same function.
Run = Callable[[K, Sequence[T], Wanted, Callable[[], None]], Ran[R]]
# `Run` with what may be run meanwhile already told.
_Ordered = Callable[[K, Sequence[T], Wanted], Ran[R]]


class Seat(Protocol[Taken, Given, Answered]):
    """A device, or a part of it, that runs one batch at a time."""

    def begin(self) -> Run[Taken, Given, Answered]:
        """How batches run from now on; called by each thread that takes the seat, which ends what another one left there."""
        ...

    def close(self) -> None:
        """End what runs there, if it can be ended."""
        ...


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


class Shared(Generic[K, T, R]):
    """What all threads of a worker have in common, under one lock. memory: why there is none left."""

    def __init__(self, limits: Limits[K], care: Care, observer: Observer[K], clock: Callable[[], float]) -> None:
        self.care, self.observer, self.clock = care, observer, clock
        self.lanes: Lanes[K, T, R] = Lanes(limits, self.dropped)
        self.lock = threading.Lock()
        self.arrived = threading.Condition(self.lock)  # idle threads wait for items
        self.ended = threading.Condition(self.lock)  # who watches waits for the end of a thread, or of all
        self.idle, self.alive, self.closing = 0, 0, False
        self.memory: str | None = None

    def dropped(self, lane: K, late: bool) -> None:
        """An item was dropped."""
        (self.observer.expired if late else self.observer.cancelled)(lane)

    def wake(self) -> None:
        """Make every thread look what has changed; the lock is held."""
        self.arrived.notify_all()
        self.ended.notify_all()


@dataclass(eq=False)
class _Job(Generic[K, T, R]):
    """A batch that runs. guests_s: the time of others that were let in between its steps."""

    batch: Batch[K, T, R]
    started: float
    guests_s: float = 0.0


@dataclass(eq=False)
class _Shift(Generic[K, T, R]):
    """One life of a device thread. jobs: the batch that runs, and one that was let in, if there is."""

    started: float
    jobs: list[_Job[K, T, R]] = field(default_factory=list)
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


class Desk(Generic[K, T, R]):
    """A seat with the thread that runs its batches and the one that watches that thread.

    errands: items that this seat and no other is to run, one by one.
    """

    def __init__(self, seat: Seat[K, T, R], shared: Shared[K, T, R], name: str) -> None:
        self._seat, self._shared, self._name = seat, shared, name
        self.errands: deque[tuple[K, Entry[T, R]]] = deque()
        self.trouble: str | None = None
        self._shift: _Shift[K, T, R] = _Shift(0.0, over=True)
        # Daemons, so that a hung device can't keep the process alive after `leave` has given up on it.
        self._watchman = threading.Thread(target=self._watch_over, name=f"{name}-watch", daemon=True)

    def start(self) -> None:
        """Start the threads. Once."""
        self._begin_shift()
        self._watchman.start()

    def leave(self, timeout_s: float) -> None:
        """Wait until all is done, for so long at most; then give up on what is left."""
        if self._watchman.is_alive():
            self._watchman.join(timeout_s)
        self._abandon(self._shift, "the service is shutting down")
        self._seat.close()

    # The device thread.

    def _main(self, shift: _Shift[K, T, R]) -> None:
        try:
            run = self._seat.begin()
            while (job := self._next(shift)) is not None:
                self._serve(shift, job, run)
                del job  # while it waits, the thread must not be what keeps a retired lane alive
        except BaseException:  # the border of the thread: whoever waits must hear of it, whatever it was
            log.critical("the worker thread died", exc_info=True)
        finally:
            with self._shared.lock:
                self._end(shift)

    def _next(self, shift: _Shift[K, T, R]) -> _Job[K, T, R] | None:
        """Wait for a batch and begin it; None when closing and all is done."""
        shared = self._shared
        with shared.lock:
            while not shift.over:
                now = shared.clock()
                if (batch := self._errand() or self._own_share(now)) is not None:
                    if batch.entries:
                        return self._begun(shift, batch, now)
                    continue
                if shared.closing:
                    return None
                due = shared.lanes.due_at()
                shared.idle += 1
                shared.arrived.wait(None if due is None else max(0.0, due - now))
                shared.idle -= 1
        return None

    def _errand(self) -> Batch[K, T, R] | None:
        if not self.errands:
            return None
        lane, entry = self.errands.popleft()
        return Batch(lane, [entry] if entry.future.set_running_or_notify_cancel() else [], 0.0)

    def _own_share(self, now: float) -> Batch[K, T, R] | None:
        shared = self._shared
        lane = shared.lanes.pick(now, hurry=shared.closing)
        if lane is None:
            return None
        batch = shared.lanes.take(lane, now, hands=1 + shared.idle)
        if shared.idle and len(shared.lanes):
            shared.arrived.notify()
        return batch

    def _begun(self, shift: _Shift[K, T, R], batch: Batch[K, T, R], now: float) -> _Job[K, T, R]:
        job = _Job(batch, now)
        shift.jobs.append(job)
        return job

    def _serve(self, shift: _Shift[K, T, R], job: _Job[K, T, R], run: Run[K, T, R]) -> float:
        """Run a batch and book it; the seconds that it took, without its guests."""
        shared, batch, started = self._shared, job.batch, self._shared.clock()

        def ordered(lane: K, items: Sequence[T], wanted: Wanted) -> Ran[R]:
            return run(lane, items, wanted, lambda: self._let_in(shift, job, run))

        run_s, size = self._attempt(batch.lane, batch.entries, ordered) - job.guests_s, len(batch.entries)
        with shared.lock:
            if shift.over:  # given up on meanwhile
                return run_s
            shift.jobs.remove(job)
            shared.lanes.served(batch.lane, run_s, size, batch.charged_s)
        queue_s = [started - entry.arrived for entry in batch.entries]
        shared.observer.batch(batch.lane, size, queue_s, run_s)
        facts = {"lane": str(batch.lane), "size": size, "queue_ms": 1000 * max(queue_s), "run_ms": 1000 * run_s}
        event(log, logging.INFO, "batch", **facts)
        return run_s

    def _let_in(self, shift: _Shift[K, T, R], host: _Job[K, T, R], run: Run[K, T, R]) -> None:
        """Run what is quick and was served less than `host`, which goes on afterwards; no guests of guests."""
        shared = self._shared
        with shared.lock:
            now = shared.clock()
            lane = None if shift.over or shift.jobs[-1] is not host else shared.lanes.pick_guest(host.batch, now)
            batch = None if lane is None else shared.lanes.take(lane, now, guest=True)
            if batch is None or not batch.entries:
                return
            job = self._begun(shift, batch, now)
        host.guests_s += self._serve(shift, job, run)

    def _attempt(self, lane: K, batch: list[Entry[T, R]], run: _Ordered[K, T, R], roomy: bool = True) -> float:
        """Run a batch and answer its callers; the seconds that the seat worked. roomy: it may be halved if it doesn't fit into
        memory."""
        shared = self._shared
        started, wanted = shared.clock(), _Wanted(batch, shared.clock)
        try:
            ran = run(lane, [entry.item for entry in batch], wanted)
            if len(ran.results) != len(batch):
                raise RuntimeError(f"{len(ran.results)} results for {len(batch)} items")
        except Exception as error:  # the border of the batch: it answers its callers and the worker lives on
            if shared.care.freed(error):
                self._make_room(lane, batch, run, roomy)
            else:
                self._blame(lane, batch, run, error, roomy)
            return shared.clock() - started
        shared.memory = None
        ended = shared.clock()
        run_ms = 1000 * (ended - started)
        for entry, result, still in zip(batch, ran.results, wanted.still, strict=True):
            if not still:
                shared.dropped(lane, late=not entry.withdrawn)
                entry.finish(Expired("the deadline passed while it was worked on"))
            elif isinstance(result, Exception):
                entry.finish(result)
            else:
                entry.finish(Done(result, 1000 * (started - entry.arrived), run_ms, len(batch)))
        return ended - started if ran.seconds is None else ran.seconds

    def _blame(self, lane: K, batch: list[Entry[T, R]], run: _Ordered[K, T, R], error: Exception, roomy: bool) -> None:
        """A batch raised: find out whose fault it was."""
        if len(batch) == 1:
            batch[0].finish(error)
            return
        log.warning("batch lane=%s size=%d failed (%s), halving it", lane, len(batch), type(error).__name__)
        for half in _halves(batch):
            self._attempt(lane, half, run, roomy)

    def _make_room(self, lane: K, batch: list[Entry[T, R]], run: _Ordered[K, T, R], roomy: bool) -> None:
        """A batch did not fit into memory: once more in halves, and smaller ones from now on."""
        shared = self._shared
        if not roomy:
            shared.memory = "the device is out of memory"
            for entry in batch:
                entry.finish(OutOfMemory(shared.memory))
            return
        log.warning("batch lane=%s size=%d is out of memory, trying again", lane, len(batch))
        with shared.lock:
            shared.lanes.shrink(lane, len(batch) // 2)
        for half in _halves(batch):
            self._attempt(lane, half, run, roomy=False)

    # The watching thread.

    def _watch_over(self) -> None:
        shared, care = self._shared, self._shared.care
        pause_s = care.pause_s
        while True:
            shift = self._shift
            reason = self._end_of(shift)
            if reason is None:
                return
            self.trouble = f"{reason}; a new thread starts in {pause_s:g} s"
            log.critical(self.trouble)
            self._abandon(shift, reason)
            with shared.lock:
                if shared.ended.wait_for(lambda: shared.closing, pause_s):
                    return
            healthy = shared.clock() - shift.started > care.healthy_s
            pause_s = care.pause_s if healthy else min(2 * pause_s, care.longest_pause_s)
            self.trouble = None
            self._begin_shift()
            shared.observer.restarted()

    def _end_of(self, shift: _Shift[K, T, R]) -> str | None:
        """Wait until a shift ends: why, or None where it is because the worker closes."""
        shared, hang_s = self._shared, self._shared.care.hang_s
        with shared.lock:
            while not shift.over:
                hangs_at = shift.jobs[0].started + hang_s if shift.jobs else inf
                if hangs_at <= shared.clock():
                    return f"a batch was not done after {hang_s:.0f} s"
                # A batch may begin at any moment, and waking for each would cost more than it is worth: so look again before
                # one could have hung unnoticed.
                shared.ended.wait(min(hangs_at - shared.clock(), hang_s, 3600))
            return None if shared.closing else "the worker thread died"

    def _begin_shift(self) -> None:
        shift = self._shift = _Shift(self._shared.clock())
        with self._shared.lock:
            self._shared.alive += 1
        threading.Thread(target=self._main, args=(shift,), name=self._name, daemon=True).start()

    def _end(self, shift: _Shift[K, T, R]) -> None:
        """The lock is held."""
        self._shared.alive -= not shift.over
        shift.over = True
        self._shared.ended.notify_all()

    def _abandon(self, shift: _Shift[K, T, R], reason: str) -> None:
        """Tell who waits for what this thread had, and where it was the last one who waits for anything at all."""
        shared = self._shared
        with shared.lock:
            self._end(shift)
            running = [entry for job in shift.jobs for entry in job.batch.entries]
            waiting = [entry for _, entry in self.errands] + ([] if shared.alive else shared.lanes.clear())
            self.errands.clear()
            shared.arrived.notify_all()
        for entry in waiting:
            entry.drop(Stopped(reason))
        for entry in running:
            entry.finish(Stopped(reason))


def _halves(batch: list[Entry[T, R]]) -> list[list[Entry[T, R]]]:
    """Two halves; a batch of one is its only one."""
    half = len(batch) // 2
    return [part for part in (batch[:half], batch[half:]) if part]
