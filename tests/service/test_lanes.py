from collections import deque
from typing import Any

import pytest

from service.lanes import Done, Entry, Expired, Lanes, gather


def entry(item: str, arrived: float = 0.0, deadline: float | None = None) -> Entry[str, Any]:
    return Entry(item, arrived, deadline)


def names(batch: list[Entry[str, Any]]) -> list[str]:
    return [each.item for each in batch]


def test_cancelled_item_is_not_gathered() -> None:
    waiting = deque([entry("a"), entry("b")])
    waiting[0].future.cancel()
    assert names(gather(waiting, 8, now=0)) == ["b"]


def test_late_item_fails_and_is_not_gathered() -> None:
    late = entry("late", deadline=1.0)
    waiting = deque([late, entry("in time", deadline=1.5)])
    assert names(gather(waiting, 8, now=1.0)) == ["in time"]
    assert isinstance(late.future.exception(timeout=0), Expired)


def test_gathers_the_oldest_up_to_the_limit() -> None:
    waiting = deque([entry("a"), entry("b"), entry("c")])
    assert names(gather(waiting, 2, now=0)) == ["a", "b"]
    assert names(list(waiting)) == ["c"]


def test_dropped_items_leave_room_in_the_batch() -> None:
    waiting = deque([entry("a", deadline=0.5), entry("b"), entry("c")])
    assert names(gather(waiting, 2, now=1.0)) == ["b", "c"]


def test_first_outcome_of_an_item_stands() -> None:
    one = entry("a")
    one.future.set_running_or_notify_cancel()
    one.finish(Done("first", 0, 0, 1))
    one.finish(ValueError("second"))
    assert one.future.result(timeout=0).value == "first"


def test_idle_worker_never_waits_by_default() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=4)
    lanes.put("x", entry("a", arrived=7.0))
    assert lanes.pick(now=7.0) == "x"


def test_waits_from_the_first_arrival_and_no_longer() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=4, max_wait_s=2.0)
    lanes.put("x", entry("a", arrived=1.0))
    lanes.put("x", entry("b", arrived=2.5))
    assert lanes.pick(now=2.9) is None
    assert lanes.due_at() == 3.0
    assert lanes.pick(now=3.0) == "x"


def test_full_lane_is_due_at_once() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=2, max_wait_s=60.0)
    lanes.put("x", entry("a"))
    assert lanes.pick(now=0) is None
    lanes.put("x", entry("b"))
    assert lanes.pick(now=0) == "x"


def test_hurry_ignores_the_wait() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=2, max_wait_s=60.0)
    lanes.put("x", entry("a"))
    assert lanes.pick(now=0, hurry=True) == "x"


def test_slow_lane_does_not_starve_a_quick_one() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=1)
    for number in range(100):
        lanes.put("slow", entry(f"s{number}"))
        lanes.put("quick", entry(f"q{number}"))
    seconds, picked = {"slow": 1.0, "quick": 0.1}, []
    for _ in range(33):
        lane = lanes.pick(now=0)
        assert lane is not None
        lanes.take(lane, now=0)
        lanes.served(lane, seconds[lane], 1)
        picked.append(lane)
    assert picked.count("slow") == 3  # the same time for both


def test_idle_time_earns_no_credit() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=1)
    for number in range(20):
        lanes.put("old", entry(f"o{number}"))
    for _ in range(10):
        lanes.take("old", now=0)
        lanes.served("old", 1.0, 1)
    lanes.put("new", entry("n0"))
    lanes.put("new", entry("n1"))
    lanes.take("new", now=0)
    lanes.served("new", 5.0, 1)
    assert lanes.pick(now=0) == "old"


def test_expected_time_is_learned_by_lane() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=4)
    for item in "abcdef":
        lanes.put("x", entry(item))
    lanes.served("x", 2.0, len(lanes.take("x", now=0)))
    assert lanes.expected_s() == pytest.approx(1.0)  # two wait, half a second each


def test_sweep_drops_what_nobody_waits_for() -> None:
    lanes: Lanes[str, str, Any] = Lanes(max_batch_size=4)
    gone, late = entry("gone"), entry("late", deadline=1.0)
    for each in (gone, late, entry("here")):
        lanes.put("x", each)
    gone.future.cancel()
    lanes.sweep(now=2.0)
    assert len(lanes) == 1
    assert isinstance(late.future.exception(timeout=0), Expired)
