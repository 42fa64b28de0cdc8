"""What waits for the worker, and which of it goes next. Plain data: no thread, no clock, no lock in here.

A lane holds what may share a batch. Lanes belong to groups (one a defense), and it is groups that are treated fairly: each is
served by the device's time, and each may fill its share of the queue, so that a flood for a slow purifier neither starves nor
locks out a quick one, however many lanes it opens with odd options.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
R = TypeVar("R")

# Empty lanes that are remembered, for what their items take; callers' options could make any number of lanes.
REMEMBERED = 256

# Between two looks through all that waits for who has left: each takes a moment for every entry, and a service that refuses
# hundreds a second has none to spare.
SWEEP_S = 0.1

# Batches whose times are remembered to expect the next one's.
RECENT = 8


# So many items must fit into a guest: small batches of what is slow would cost everybody more than they save.
GUESTS = 8


class Expired(Exception):
    """The deadline passed before the item was done."""


class QueueFull(Exception):
    """As much waits as may wait. retry_after_s: when it is worth another try, by what the waiting items should take."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Done(Generic[R]):
    """A result and how it came to be: the time in the queue, the time of its batch, and how many shared that."""

    value: R
    queue_ms: float
    run_ms: float
    batch_size: int


@dataclass(eq=False)
class Entry(Generic[T, R]):
    """An item and its future. Times are on the worker's clock, in seconds.

    hurry_at: from then on what has been reached is good enough.
    """

    item: T
    arrived: float
    deadline: float | None = None
    hurry_at: float | None = None
    future: "Future[Done[R]]" = field(default_factory=Future)
    withdrawn: bool = False

    def withdraw(self) -> None:
        """The caller has left: drop the item from the queue, or from its batch at the next step."""
        self.withdrawn = True
        self.future.cancel()

    def finish(self, outcome: "Done[R] | BaseException") -> None:
        """Answer the caller. The first answer stands: a hung batch may end after its callers were told."""
        with suppress(InvalidStateError):
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def drop(self, reason: Exception) -> None:
        """Fail an entry that waits, unless its caller has left."""
        if self.future.set_running_or_notify_cancel():
            self.finish(reason)

    def late(self, now: float) -> bool:
        """Its deadline has passed."""
        return self.deadline is not None and self.deadline <= now

    def hurries(self, now: float) -> bool:
        """Its caller would rather have what there is than wait."""
        return self.hurry_at is not None and self.hurry_at <= now

    def stale(self, now: float) -> bool:
        """Nobody waits for this any more, or it is too late."""
        return self.withdrawn or self.future.cancelled() or self.late(now)


@dataclass(frozen=True)
class Limits(Generic[K]):
    """How much may run at once and how much may wait.

    batch_items, batch_s: the most items of a batch, and how long it should take. guest_s: how long a batch may take that is let
    in between two steps of another one, which must be at least twice as long itself; 0 lets none in. wait_s: how long an idle
    worker waits for company. seats: batches that run at the same time. queue_items: the most that may wait in all. queue_s: how
    much work may wait, by the seconds until it is done; where several groups wait, each may fill its even share. group: what a
    lane belongs to. units: what an item of a lane costs compared with others, to guess its time before one has run. retired:
    whether nothing will come for a lane any more, so that it is not remembered once it is empty.
    """

    batch_items: int
    queue_items: int
    batch_s: float = inf
    guest_s: float = 0.0
    wait_s: float = 0.0
    seats: int = 1
    queue_s: float = inf
    group: Callable[[K], Hashable] = lambda key: key
    units: Callable[[K], float] = lambda key: 1.0
    retired: Callable[[K], bool] = lambda key: False


@dataclass(frozen=True, eq=False)
class Batch(Generic[K, T, R]):
    """Entries that go together. charged_s: what its group was charged for it in advance, the time that it should take."""

    lane: K
    entries: list[Entry[T, R]]
    charged_s: float


@dataclass(eq=False)
class _Lane(Generic[T, R]):
    group: Hashable
    units: float
    most: int  # items of a batch
    waiting: "deque[Entry[T, R]]" = field(default_factory=deque)
    running: "list[list[Entry[T, R]]]" = field(default_factory=list)  # batches that are not answered yet
    recent_s: "deque[float]" = field(
        default_factory=lambda: deque(maxlen=RECENT)
    )  # time of an item in its last batches
    item_s: float | None = None  # what an item should take, once that is known


class Lanes(Generic[K, T, R]):
    """Queues by key. Of the lanes that are due, the one of the group that was served least, in seconds, goes first.

    Args:
        on_drop: hears of each entry that is dropped unserved: (lane, whether it was late; else its caller had left).
    """

    def __init__(self, limits: Limits[K], on_drop: Callable[[K, bool], None] = lambda key, late: None) -> None:
        self._limits, self._on_drop = limits, on_drop
        self._lanes: dict[K, _Lane[T, R]] = {}  # the least recently used first
        self._served_s: dict[Hashable, float] = {}
        self._sweeps_at = -inf
        self._now_served_s = 0.0  # of the group that was picked last
        self._recent_unit_s: deque[float] = deque(maxlen=RECENT)  # time of a unit, over all lanes

    def __len__(self) -> int:
        """Entries that wait."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    def put(self, key: K, entry: Entry[T, R]) -> None:
        """Queue an entry. A group that was idle starts level with the others: idle time earns no credit."""
        lane = self._lane(key)
        if not any(busy.group == lane.group for _, busy in self._busy()):
            self._served_s[lane.group] = max(self._served_s.get(lane.group, 0.0), self._now_served_s)
        lane.waiting.append(entry)

    def check_room(self, key: K, items: int, now: float) -> None:
        """Whether so many items more may wait.

        Raises:
            QueueFull
        """
        refusal = self._refusal(key, items)
        if refusal and now >= self._sweeps_at:
            self._sweep(now)
            self._sweeps_at = now + SWEEP_S
            refusal = self._refusal(key, items)
        if refusal:
            raise refusal

    def pick(self, now: float, hurry: bool = False) -> K | None:
        """The lane to serve: due (full, waited long enough, or we are in a `hurry`), of the least served group, oldest first."""
        return self._foremost((key, lane) for key, lane in self._busy() if hurry or self._due_at(lane) <= now)

    def due_at(self) -> float | None:
        """When the next lane is due; None where nothing waits."""
        return min((self._due_at(lane) for _, lane in self._busy()), default=None)

    def pick_guest(self, host: Batch[K, T, R], now: float) -> K | None:
        """The lane to let in between two steps of `host`: due, quick, and of a group that was served less; None for none.

        A batch that is short itself is not interrupted: it would only end later.
        """
        limits, own = self._limits, self._limits.group(host.lane)
        if not limits.guest_s or 0 < host.charged_s < 2 * limits.guest_s:
            return None
        return self._foremost(
            (key, lane)
            for key, lane in self._busy()
            if self._served_s[lane.group] < self._served_s.get(own, 0.0)
            and 0 < GUESTS * self._item_s(lane) <= limits.guest_s
            and self._due_at(lane) <= now
        )

    def _foremost(self, due: Iterable[tuple[K, _Lane[T, R]]]) -> K | None:
        """Of the least served group, oldest first."""
        first = min(due, key=lambda each: (self._served_s[each[1].group], each[1].waiting[0].arrived), default=None)
        return None if first is None else first[0]

    def take(self, key: K, now: float, hands: int = 1, *, guest: bool = False) -> Batch[K, T, R]:
        """A batch of this lane; without entries if nobody waits for any of it any more.

        hands: how many could take of what waits at this moment. Each gets its even share of what waits and what runs already on
        other seats, who will be back for theirs: of eight callers who ask again and again neither seat takes seven. But not one
        item each of two, for a lone one may cost as much as two. From here on the entries' futures are running: their callers can
        leave, but can't cancel them.
        """
        lane = self._lanes[key]
        self._now_served_s = self._served_s[lane.group]
        limit, entries = min(self._share(lane, hands), self._batch_limit(lane, guest)), list[Entry[T, R]]()
        while lane.waiting and len(entries) < limit:
            entry = lane.waiting.popleft()
            if entry.stale(now):
                self._drop(key, entry, now)
            elif entry.future.set_running_or_notify_cancel():
                entries.append(entry)
        lane.running.append(entries)
        charged_s = len(entries) * self._item_s(lane)
        self._served_s[lane.group] += charged_s
        return Batch(key, entries, charged_s)

    def _share(self, lane: _Lane[T, R], hands: int) -> int:
        lane.running = [batch for batch in lane.running if not all(entry.future.done() for entry in batch)]
        hands = max(1, hands - sum(busy is not lane for _, busy in self._busy()))
        waiting, running = len(lane.waiting), sum(map(len, lane.running))
        return max(2, min(_even(waiting, hands), _even(waiting + running, hands + len(lane.running))))

    def served(self, key: K, seconds: float, items: int, charged_s: float = 0.0) -> None:
        """Book a batch that ran; `charged_s` of it is booked already."""
        lane = self._lane(key)
        self._served_s[lane.group] = self._served_s.get(lane.group, 0.0) + seconds - charged_s
        lane.recent_s.append(seconds / items)
        lane.item_s = median(lane.recent_s) if len(lane.recent_s) == RECENT else None
        self._recent_unit_s.append(seconds / items / lane.units)
        self.forget_retired()

    def forget_retired(self) -> None:
        """Let go of the retired lanes that are empty: what their keys hold may be large."""
        for key in [key for key, lane in self._lanes.items() if not lane.waiting and self._limits.retired(key)]:
            del self._lanes[key]

    def shrink(self, key: K, most: int) -> None:
        """From now on this lane's batches have at most so many items."""
        self._lane(key).most = max(1, most)

    def expected_s(self) -> float:
        """How long what waits will take, by what each lane has taken so far, with all seats at work."""
        return sum(len(lane.waiting) * self._item_s(lane) for _, lane in self._busy()) / self._limits.seats

    def clear(self) -> list[Entry[T, R]]:
        """Take everything."""
        entries = [entry for _, lane in self._busy() for entry in lane.waiting]
        for lane in self._lanes.values():
            lane.waiting.clear()
        return entries

    def _refusal(self, key: K, items: int) -> QueueFull | None:
        limits = self._limits
        waiting = len(self)
        if waiting + items > limits.queue_items:
            return QueueFull(f"{waiting} images wait, of {limits.queue_items} that may", self.expected_s())
        lane = self._lane(key)
        groups, queued_s = {lane.group}, 0.0
        for _, busy in self._busy():
            groups.add(busy.group)
            if busy.group == lane.group:
                queued_s += len(busy.waiting) * self._item_s(busy)
        share_s = limits.seats * limits.queue_s / len(groups)
        # What finds its group idle may always wait: else a large request could never be served.
        if queued_s and queued_s + items * self._item_s(lane) > share_s:
            waits_s = queued_s / limits.seats
            return QueueFull(f"about {waits_s:.1f} s of work wait for this purifier", waits_s * len(groups))
        return None

    def _sweep(self, now: float) -> None:
        """Drop what nobody waits for."""
        for key, lane in self._busy():
            entries, lane.waiting = lane.waiting, deque()
            for entry in entries:
                if entry.stale(now):
                    self._drop(key, entry, now)
                else:
                    lane.waiting.append(entry)

    def _drop(self, key: K, entry: Entry[T, R], now: float) -> None:
        late = not (entry.withdrawn or entry.future.cancelled())
        entry.drop(Expired("the deadline passed in the queue"))
        self._on_drop(key, late)

    def _lane(self, key: K) -> _Lane[T, R]:
        lane = self._lanes.pop(key, None)
        if lane is None:
            lane = _Lane(self._limits.group(key), self._limits.units(key), self._limits.batch_items)
            self._forget_one()
        self._lanes[key] = lane
        return lane

    def _forget_one(self) -> None:
        if len(self._lanes) >= REMEMBERED:
            oldest = next((key for key, lane in self._lanes.items() if not lane.waiting), None)
            if oldest is not None:
                del self._lanes[oldest]

    def _busy(self) -> list[tuple[K, _Lane[T, R]]]:
        return [(key, lane) for key, lane in self._lanes.items() if lane.waiting]

    def _item_s(self, lane: _Lane[T, R]) -> float:
        """What an item should take: the median of the last batches.

        While there are few, the best of them, since a cold start says little, or what is guessed by the lane's units.
        """
        if lane.item_s is not None:
            return lane.item_s
        return min([*lane.recent_s, lane.units * min(self._recent_unit_s, default=0.0)])

    def _batch_limit(self, lane: _Lane[T, R], guest: bool = False) -> int:
        # The best, not the median: after a time of small batches, which are dear an item, large ones must come back at once.
        item_s = min(lane.recent_s, default=self._item_s(lane))
        longest_s = self._limits.guest_s if guest else self._limits.batch_s
        in_time = longest_s / item_s if item_s else inf
        return max(1, int(min(lane.most, in_time)))

    def _due_at(self, lane: _Lane[T, R]) -> float:
        full = len(lane.waiting) >= self._batch_limit(lane)
        return -inf if full else lane.waiting[0].arrived + self._limits.wait_s


def _even(items: int, hands: int) -> int:
    return -(-items // hands)
