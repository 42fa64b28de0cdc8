"""What waits for the worker, and which of it goes next. Plain data: no thread, no clock, no lock in here."""

from collections import deque
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")


LATE = "the deadline passed in the queue"


class Expired(Exception):
    """The deadline passed before the item's batch began."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """A result and how it came to be: the time in the queue, the time of its batch, and how many shared that."""

    value: R
    queue_ms: float
    run_ms: float
    batch_size: int


@dataclass(eq=False)
class Entry(Generic[T, R]):
    """An item that waits. Times are on the worker's clock, in seconds."""

    item: T
    arrived: float
    deadline: float | None = None
    future: "Future[Done[R]]" = field(default_factory=Future)

    def finish(self, outcome: "Done[R] | BaseException") -> None:
        """Answer the caller. The first answer stands: at shutdown a hung batch may end after its callers were told."""
        with suppress(InvalidStateError):
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def drop(self, reason: Exception) -> None:
        """Fail an entry that waits, unless its caller has left."""
        if self.future.set_running_or_notify_cancel():
            self.finish(reason)

    def stale(self, now: float) -> bool:
        """Nobody waits for this any more, or it is too late."""
        return self.future.cancelled() or self.late(now)

    def late(self, now: float) -> bool:
        """Its deadline has passed."""
        return self.deadline is not None and self.deadline <= now


def gather(waiting: "deque[Entry[T, R]]", limit: int, now: float) -> list[Entry[T, R]]:
    """Take a batch of at most `limit` from the front; what was cancelled is dropped, what is late fails with `Expired`.

    From here on the entries' futures are running: their callers can leave, but can't withdraw them.
    """
    batch: list[Entry[T, R]] = []
    while waiting and len(batch) < limit:
        entry = waiting.popleft()
        if entry.late(now):
            entry.drop(Expired(LATE))
        elif entry.future.set_running_or_notify_cancel():
            batch.append(entry)
    return batch


@dataclass(eq=False)
class _Lane(Generic[T, R]):
    waiting: "deque[Entry[T, R]]" = field(default_factory=deque)
    served_s: float = 0.0
    item_s: float = 0.0  # learned time of one item


class Lanes(Generic[K, T, R]):
    """Queues by key. The lane that was served least, in seconds, goes first: a slow one can't starve a quick one.

    A lane is never forgotten, so keys should come from a small set.
    """

    def __init__(self, max_batch_size: int, max_wait_s: float = 0.0) -> None:
        self._max_batch_size, self._max_wait_s = max_batch_size, max_wait_s
        self._lanes: dict[K, _Lane[T, R]] = {}
        self._now_served_s = 0.0  # served_s of the lane that was picked last

    def __len__(self) -> int:
        """Entries that wait."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def put(self, key: K, entry: Entry[T, R]) -> None:
        """Queue an entry. A lane that was empty starts level with the others: idle time earns no credit."""
        lane = self._lanes.setdefault(key, _Lane())
        if not lane.waiting:
            lane.served_s = max(lane.served_s, self._now_served_s)
        lane.waiting.append(entry)

    def pick(self, now: float, hurry: bool = False) -> K | None:
        """The least served lane that is due: full, or its first entry has waited long enough, or we are in a `hurry`."""
        due = [key for key, lane in self._busy() if hurry or self._due_at(lane) <= now]
        return min(due, key=lambda key: self._lanes[key].served_s, default=None)

    def due_at(self) -> float | None:
        """When the next lane is due; None where nothing waits."""
        return min((self._due_at(lane) for _, lane in self._busy()), default=None)

    def take(self, key: K, now: float) -> list[Entry[T, R]]:
        """A batch of this lane; empty if nobody waits for any of it any more."""
        lane = self._lanes[key]
        self._now_served_s = lane.served_s
        return gather(lane.waiting, self._max_batch_size, now)

    def served(self, key: K, seconds: float, items: int) -> None:
        """Book a batch that ran."""
        lane = self._lanes[key]
        lane.served_s += seconds
        each = seconds / items
        lane.item_s = each if lane.item_s == 0 else 0.8 * lane.item_s + 0.2 * each

    def expected_s(self) -> float:
        """How long what waits will take, by what each lane has taken so far."""
        return sum(len(lane.waiting) * lane.item_s for _, lane in self._busy())

    def sweep(self, now: float) -> None:
        """Drop what nobody waits for; done when the queue looks full."""
        for lane in self._lanes.values():
            entries, lane.waiting = lane.waiting, deque()
            for entry in entries:
                if entry.stale(now):
                    entry.drop(Expired(LATE))
                else:
                    lane.waiting.append(entry)

    def clear(self) -> list[Entry[T, R]]:
        """Take everything."""
        entries = [entry for _, lane in self._busy() for entry in lane.waiting]
        for lane in self._lanes.values():
            lane.waiting.clear()
        return entries

    def _busy(self) -> Iterator[tuple[K, _Lane[T, R]]]:
        return ((key, lane) for key, lane in self._lanes.items() if lane.waiting)

    def _due_at(self, lane: _Lane[T, R]) -> float:
        full = len(lane.waiting) >= self._max_batch_size
        return float("-inf") if full else lane.waiting[0].arrived + self._max_wait_s
