"""BatchWorker: one thread that owns the device. Items go in by lane, batches form by themselves, futures come back.

It knows nothing of images or HTTP, and nothing of asyncio: a caller in an event loop awaits
`asyncio.wrap_future(worker.submit(...))`, which touches the loop's own objects from the loop only.

An idle worker takes what is there at once; while it is busy the queue grows, so the next batch is larger. Waiting for
company (`max_wait_ms`) is for who wants it.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic

from service.lanes import Done, Entry, K, Lanes, R, T

log = logging.getLogger(__name__)


class QueueFull(Exception):
    """As many items wait as may wait."""

    def __init__(self, limit: int, expected_s: float) -> None:
        super().__init__(f"{limit} items wait, the most that may")
        self.limit, self.expected_s = limit, expected_s


class Stopped(Exception):
    """The worker is shut down or has died; it will not take or finish this item."""


class BatchWorker(Generic[K, T, R]):
    """Runs items in batches of one lane.

    Args:
        run: (lane, items) -> a result for each item, in order; an exception *in* the list fails that item alone, an exception
            *raised* makes the worker halve the batch until only the guilty item is left.
        max_batch_size: the most items given to `run`.
        queue_limit: the most items that wait.
        max_wait_ms: how long an idle worker waits for company, from the arrival of a lane's first item.
        clock: seconds, monotonic; deadlines are on this clock.
    """

    def __init__(
        self,
        run: Callable[[K, Sequence[T]], Sequence[R | Exception]],
        *,
        max_batch_size: int,
        queue_limit: int,
        max_wait_ms: float = 0.0,
        name: str = "worker",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._limit, self._clock = run, queue_limit, clock
        self._lanes: Lanes[K, T, R] = Lanes(max_batch_size, max_wait_ms / 1000)
        self._running: list[Entry[T, R]] = []
        self._closing = False
        self._changed = threading.Condition()
        # A daemon, so that a hung device can't keep the process alive after `close` has given up on it.
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread. Once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """It takes items and will answer them."""
        return self._thread.is_alive() and not self._closing

    def submit(self, lane: K, item: T, deadline: float | None = None) -> "Future[Done[R]]":
        """Queue an item; cancelling the future withdraws it while it waits. Safe from any thread, never blocks.

        The future ends with a `Done`, with what `run` raised for this item, with `Expired` or with `Stopped`.

        Raises:
            QueueFull: it says how long what waits is expected to take.
            Stopped: the worker is not running.
        """
        entry: Entry[T, R] = Entry(item, self._clock(), deadline)
        with self._changed:
            if not self.alive:
                raise Stopped("the worker is not running")
            self._check_room()
            self._lanes.put(lane, entry)
            self._changed.notify()
        return entry.future

    def check_room(self) -> None:
        """Fail early, before somebody prepares an item that there is no place for.

        Raises:
            QueueFull: as `submit` would.
        """
        with self._changed:
            self._check_room()

    def close(self, timeout_s: float) -> None:
        """Take nothing more, finish what waits, stop; after `timeout_s` fail what is left with `Stopped`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._abandon("the service is shutting down")

    def _check_room(self) -> None:
        if len(self._lanes) < self._limit:
            return
        self._lanes.sweep(self._clock())
        if len(self._lanes) >= self._limit:
            raise QueueFull(self._limit, self._lanes.expected_s())

    def _main(self) -> None:
        try:
            while (taken := self._next()) is not None:
                self._serve(*taken)
        except BaseException:  # the border of the thread: whoever waits must hear of it, whatever it was
            log.critical("the worker thread died", exc_info=True)
        finally:
            self._abandon("the worker thread has stopped")

    def _next(self) -> tuple[K, list[Entry[T, R]]] | None:
        """Wait for a batch; None when closing and all is done."""
        with self._changed:
            while True:
                now = self._clock()
                lane = self._lanes.pick(now, hurry=self._closing)
                if lane is not None:
                    self._running = self._lanes.take(lane, now)
                    if self._running:
                        return lane, self._running
                    continue
                if self._closing:
                    return None
                due = self._lanes.due_at()
                self._changed.wait(None if due is None else max(0.0, due - now))

    def _serve(self, lane: K, batch: list[Entry[T, R]]) -> None:
        started = self._clock()
        self._attempt(lane, batch)
        seconds = self._clock() - started
        with self._changed:
            self._running = []
            self._lanes.served(lane, seconds, len(batch))
        queue_ms = 1000 * (started - batch[0].arrived)
        log.info("batch lane=%s size=%d queue_ms=%.1f run_ms=%.1f", lane, len(batch), queue_ms, 1000 * seconds)

    def _attempt(self, lane: K, batch: list[Entry[T, R]]) -> None:
        started = self._clock()
        try:
            results = self._run(lane, [entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:  # the border of the batch: it answers its callers and the worker lives on
            self._blame(lane, batch, error)
            return
        run_ms = 1000 * (self._clock() - started)
        for entry, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                entry.finish(result)
            else:
                entry.finish(Done(result, 1000 * (started - entry.arrived), run_ms, len(batch)))

    def _blame(self, lane: K, batch: list[Entry[T, R]], error: Exception) -> None:
        if len(batch) == 1:
            batch[0].finish(error)
            return
        log.warning("batch lane=%s size=%d failed (%s), halving it", lane, len(batch), type(error).__name__)
        half = len(batch) // 2
        self._attempt(lane, batch[:half])
        self._attempt(lane, batch[half:])

    def _abandon(self, reason: str) -> None:
        with self._changed:
            self._closing = True
            waiting, running = self._lanes.clear(), self._running
        for entry in waiting:
            entry.drop(Stopped(reason))
        for entry in running:
            entry.finish(Stopped(reason))
