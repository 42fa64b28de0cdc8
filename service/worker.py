"""BatchWorker: threads that own the device, or a part of it each. Items go in by lane, batches form, futures come back.

It knows nothing of images or HTTP, and nothing of asyncio: a caller in an event loop awaits what `Outbox` makes of
`worker.submit(...).future`, which touches the loop's own objects from the loop only.

A thread with nothing to do takes what is there at once; while all are busy the queue grows, so the next batches are larger.
Waiting for company (`wait_s`) is for who wants it. Between two steps of a long batch its thread lets short ones of others in.

Another thread watches each of them: where one dies, or hangs in a batch, who waits for that batch is told, and after a pause,
longer each time, a new one starts. What is in the queue is left to the others, if there are any. A hung thread can't be
stopped; it is left alone and its late answers go nowhere.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic

from service.desk import Care, Desk, Observer, Seat, Shared, Silent, Stopped
from service.lanes import Entry, K, Limits, R, T


class BatchWorker(Generic[K, T, R]):
    """Runs items in batches of one lane.

    Args:
        seats: where; a thread for each.
        limits: what may run at once and what may wait.
        clock: seconds, monotonic; deadlines are on this clock.
    """

    def __init__(
        self,
        seats: Sequence[Seat[K, T, R]],
        limits: Limits[K],
        *,
        care: Care | None = None,
        observer: Observer[K] | None = None,
        name: str = "worker",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared: Shared[K, T, R] = Shared(limits, care or Care(), observer or Silent(), clock)
        self._desks = [Desk(seat, self._shared, f"{name}-{number}") for number, seat in enumerate(seats)]
        self._started = False

    def start(self) -> None:
        """Start the threads. Once."""
        self._started = True
        for desk in self._desks:
            desk.start()

    def trouble(self) -> str | None:
        """Why items can't be relied on to be answered; None when all is well."""
        if self._shared.closing:
            return "the worker is stopping"
        if not self._started:
            return "the worker has not been started"
        return next((desk.trouble for desk in self._desks if desk.trouble), self._shared.memory)

    def waiting(self) -> tuple[int, float]:
        """How many items wait, and how long they should take, in seconds."""
        with self._shared.lock:
            errands = sum(len(desk.errands) for desk in self._desks)
            return len(self._shared.lanes) + errands, self._shared.lanes.expected_s()

    def submit(self, lane: K, item: T, deadline: float | None = None, hurry_at: float | None = None) -> Entry[T, R]:
        """Queue an item; `withdraw` of what comes back takes it away again. Safe from any thread, never blocks.

        From `hurry_at` on a purifier that works in steps is to stop and answer with what it has reached.
        Its future ends with a `Done`, with what `run` raised for this item, with `Expired`, `OutOfMemory` or `Stopped`.

        Raises:
            QueueFull, Stopped.
        """
        entry: Entry[T, R] = Entry(item, self._shared.clock(), deadline, hurry_at)
        with self._shared.lock:
            self._check_room(lane)
            self._shared.lanes.put(lane, entry)
            self._shared.arrived.notify()
        return entry

    def submit_to_each(self, lane: K, item: T) -> list[Entry[T, R]]:
        """The same item to every seat, ahead of what waits and without its bounds: to warm them.

        Raises:
            Stopped.
        """
        with self._shared.lock:
            self._check_alive()
            entries = [Entry[T, R](item, self._shared.clock()) for _ in self._desks]
            for desk, entry in zip(self._desks, entries, strict=True):
                desk.errands.append((lane, entry))
            self._shared.arrived.notify_all()
        return entries

    def check_room(self, lane: K, items: int = 1) -> None:
        """Fail early, before somebody prepares items that there is no place for.

        Raises:
            QueueFull, Stopped: as `submit` would.
        """
        with self._shared.lock:
            self._check_room(lane, items)

    def forget_retired(self) -> None:
        """Let go of lanes that are retired; those that are not empty yet go with their last batch."""
        with self._shared.lock:
            self._shared.lanes.forget_retired()

    def close(self, timeout_s: float) -> None:
        """Take nothing more, finish what waits, stop; after `timeout_s` fail what is left with `Stopped`."""
        until = time.monotonic() + timeout_s
        with self._shared.lock:
            self._shared.closing = True
            self._shared.wake()
        for desk in self._desks:
            desk.leave(max(0.0, until - time.monotonic()))

    def _check_alive(self) -> None:
        if self._shared.closing or not self._shared.alive:
            raise Stopped(self.trouble() or "the worker is not running")

    def _check_room(self, lane: K, items: int = 1) -> None:
        self._check_alive()
        try:
            self._shared.lanes.check_room(lane, items, self._shared.clock())
        except Exception:
            self._shared.observer.shed(lane, items)
            raise
