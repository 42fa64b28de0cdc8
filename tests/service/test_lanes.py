from typing import Any

import pytest

from service.lanes import RECENT, REMEMBERED, SWEEP_S, Batch, Done, Entry, Expired, Lanes, Limits, QueueFull


def entry(item: str, arrived: float = 0.0, deadline: float | None = None) -> Entry[str, Any]:
    return Entry(item, arrived, deadline)


def names(batch: Batch[str, str, Any]) -> list[str]:
    return [each.item for each in batch.entries]


def lanes_of(*entries: Entry[str, Any], **limits: Any) -> Lanes[str, str, Any]:
    """All in the lane "x"; what is dropped is noted in `dropped`."""
    lanes: Lanes[str, str, Any] = Lanes(Limits(**{"batch_items": 8, "queue_items": 1000, **limits}))
    for each in entries:
        lanes.put("x", each)
    return lanes


def test_withdrawn_item_is_not_taken() -> None:
    lanes = lanes_of(entry("a"), gone := entry("gone"), entry("b"))
    gone.withdraw()
    assert names(lanes.take("x", now=0)) == ["a", "b"]


def test_late_item_fails_and_is_not_taken() -> None:
    late = entry("late", deadline=1.0)
    lanes = lanes_of(late, entry("in time", deadline=1.5))
    assert names(lanes.take("x", now=1.0)) == ["in time"]
    assert isinstance(late.future.exception(timeout=0), Expired)


def test_takes_the_oldest_up_to_the_limit() -> None:
    lanes = lanes_of(entry("a"), entry("b"), entry("c"), batch_items=2)
    assert names(lanes.take("x", now=0)) == ["a", "b"]
    assert len(lanes) == 1


def test_dropped_items_leave_room_in_the_batch_and_are_told_of() -> None:
    dropped: list[tuple[str, bool]] = []
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=2, queue_items=9), lambda *found: dropped.append(found))
    for each in (entry("a", deadline=0.5), gone := entry("gone"), entry("b"), entry("c")):
        lanes.put("x", each)
    gone.withdraw()
    assert names(lanes.take("x", now=1.0)) == ["b", "c"]
    assert dropped == [("x", True), ("x", False)]  # the first was late, the second's caller had left


def test_first_outcome_of_an_item_stands() -> None:
    one = entry("a")
    one.future.set_running_or_notify_cancel()
    one.finish(Done("first", 0, 0, 1))
    one.finish(ValueError("second"))
    assert one.future.result(timeout=0).value == "first"


def test_idle_worker_never_waits_by_default() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=4, queue_items=1000))
    lanes.put("x", entry("a", arrived=7.0))
    assert lanes.pick(now=7.0) == "x"


def test_waits_from_the_first_arrival_and_no_longer() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=4, queue_items=1000, wait_s=2.0))
    lanes.put("x", entry("a", arrived=1.0))
    lanes.put("x", entry("b", arrived=2.5))
    assert lanes.pick(now=2.9) is None
    assert lanes.due_at() == 3.0
    assert lanes.pick(now=3.0) == "x"


def test_full_lane_is_due_at_once() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=2, queue_items=1000, wait_s=60.0))
    lanes.put("x", entry("a"))
    assert lanes.pick(now=0) is None
    lanes.put("x", entry("b"))
    assert lanes.pick(now=0) == "x"


def test_hurry_ignores_the_wait() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=2, queue_items=1000, wait_s=60.0))
    lanes.put("x", entry("a"))
    assert lanes.pick(now=0, hurry=True) == "x"


def test_slow_lane_does_not_starve_a_quick_one() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=1, queue_items=1000))
    for number in range(100):
        lanes.put("slow", entry(f"s{number}"))
        lanes.put("quick", entry(f"q{number}"))
    seconds, picked = {"slow": 1.0, "quick": 0.1}, []
    for _ in range(33):
        lane = lanes.pick(now=0)
        assert lane is not None
        batch = lanes.take(lane, now=0)
        lanes.served(lane, seconds[lane], 1, batch.charged_s)
        picked.append(lane)
    assert picked.count("slow") == 3  # the same time for both


def test_what_runs_is_charged_in_advance_so_that_another_seat_serves_others() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=1, queue_items=1000, seats=2))
    for name in ("old", "new"):
        lanes.served(name, 1.0, 1)
        lanes.put(name, entry("a"))
        lanes.put(name, entry("b"))
    taken = lanes.take("old", now=0)
    assert lanes.pick(now=0) == "new"
    lanes.take("new", now=0)
    lanes.served("old", 0.5, 1, taken.charged_s)  # quicker than it should have been
    assert lanes.pick(now=0) == "old"


def test_idle_time_earns_no_credit() -> None:
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=1, queue_items=1000))
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
    lanes: Lanes[str, str, Any] = Lanes(Limits(batch_items=4, queue_items=1000))
    for item in "abcdef":
        lanes.put("x", entry(item))
    lanes.served("x", 2.0, len(lanes.take("x", now=0).entries))
    assert lanes.expected_s() == pytest.approx(1.0)  # two wait, half a second each


def test_a_full_queue_is_swept_before_it_refuses() -> None:
    gone, late = entry("gone"), entry("late", deadline=1.0)
    lanes = lanes_of(gone, late, entry("here"), queue_items=3)
    with pytest.raises(QueueFull, match="3 images wait, of 3 that may"):
        lanes.check_room("x", 1, now=0.5)
    gone.withdraw()
    lanes.check_room("x", 2, now=2.0)
    assert len(lanes) == 1
    assert isinstance(late.future.exception(timeout=0), Expired)


def test_a_queue_that_refuses_many_is_not_swept_for_each() -> None:
    gone = entry("gone")
    lanes = lanes_of(gone, queue_items=1)
    with pytest.raises(QueueFull):
        lanes.check_room("x", 1, now=5.0)
    gone.withdraw()
    with pytest.raises(QueueFull):
        lanes.check_room("x", 1, now=5.0 + SWEEP_S / 2)
    lanes.check_room("x", 1, now=5.0 + SWEEP_S)
    assert len(lanes) == 0


def test_a_batch_is_bounded_by_its_expected_time() -> None:
    lanes = lanes_of(*(entry(str(number)) for number in range(9)), batch_s=1.0)
    lanes.served("x", 0.6, 2)  # 0.3 s each
    assert len(lanes.take("x", now=0).entries) == 3
    for _ in range(RECENT):
        lanes.served("x", 100.0, 1)  # slower than a whole batch may be: one by one
    assert len(lanes.take("x", now=0).entries) == 1


def test_work_that_may_wait_is_bounded_in_seconds() -> None:
    lanes = lanes_of(*(entry(str(number)) for number in range(8)), queue_s=2.0)
    lanes.check_room("x", 100, now=0)  # nothing is known of how long they take
    lanes.served("x", 0.25, 1)  # 2 s wait
    with pytest.raises(QueueFull, match=r"about 2\.0 s of work wait") as refusal:
        lanes.check_room("x", 1, now=0)
    assert refusal.value.retry_after_s == pytest.approx(2.0)


def test_a_flood_does_not_lock_other_groups_out() -> None:
    lanes = lanes_of(*(entry(str(number)) for number in range(8)), queue_s=2.0)
    lanes.served("x", 0.25, 1)
    lanes.served("quick", 0.1, 1)
    lanes.check_room("quick", 1, now=0)
    for number in range(10):  # its even share of 2 s
        lanes.put("quick", entry(str(number)))
    with pytest.raises(QueueFull):
        lanes.check_room("quick", 1, now=0)


def test_what_finds_its_group_idle_may_always_wait() -> None:
    lanes = lanes_of(queue_s=2.0)
    lanes.served("x", 5.0, 1)
    lanes.check_room("x", 32, now=0)
    lanes.put("x", entry("a"))
    with pytest.raises(QueueFull):
        lanes.check_room("x", 1, now=0)


def test_lanes_of_a_group_share_its_time_and_its_room() -> None:
    lanes: Lanes[str, str, Any] = Lanes(
        Limits(batch_items=1, queue_items=1000, queue_s=1.0, group=lambda key: key.split(":")[0])
    )
    for option in "abcdef":  # one flood with many options
        lanes.put(f"slow:{option}", entry(option))
    lanes.put("quick:", entry("q"))
    lanes.served("slow:a", 0.5, 1)
    lanes.served("slow:b", 0.5, 1)
    assert lanes.pick(now=0) == "quick:"
    with pytest.raises(QueueFull):
        lanes.check_room("slow:new", 1, now=0)


def sizes(waiting: int, hands: int, *others: str, **limits: Any) -> list[int]:
    """What so many hands take of a lane, one after the other."""
    lanes = lanes_of(*(entry(str(number)) for number in range(waiting)), **limits)
    for other in others:
        lanes.put(other, entry("other"))
    return [len(lanes.take("x", 0, left).entries) for left in range(hands, 0, -1)]


def test_hands_that_could_take_now_share_what_waits_but_two_items_stay_together() -> None:
    assert sizes(8, 2) == [4, 4]
    assert sizes(7, 3) == [3, 2, 2]
    assert sizes(2, 2) == [2, 0]
    assert sizes(3, 2) == [2, 1]
    assert sizes(40, 2) == [8, 8]  # the limit
    assert sizes(8, 2, "y") == [8, 0]  # the other hand has something else to take


def test_who_runs_elsewhere_will_be_back_for_a_share() -> None:
    lanes = lanes_of(entry("a"), entry("b"), batch_items=32, seats=2)
    few = lanes.take("x", 0)
    for number in range(14):
        lanes.put("x", entry(str(number)))
    many = lanes.take("x", 0)
    assert len(many.entries) == 8  # of 16, and not all that wait
    for each in few.entries:
        each.finish(Done("", 0.0, 0.0, 1))
    assert len(lanes.take("x", 0).entries) == 6  # what is left: nobody else is due a share of it


def test_work_that_may_wait_counts_all_seats() -> None:
    lanes = lanes_of(*(entry(str(number)) for number in range(8)), queue_s=2.0, seats=2)
    lanes.served("x", 0.5, 1)  # 4 s wait, for two
    assert lanes.expected_s() == pytest.approx(2.0)
    with pytest.raises(QueueFull, match=r"about 2\.0 s of work wait") as refusal:
        lanes.check_room("x", 1, now=0)
    assert refusal.value.retry_after_s == pytest.approx(2.0)


def hosted(
    guest_s: float = 0.1, item_s: float = 0.01, host_s: float = 1.0
) -> tuple[Lanes[str, str, Any], Batch[str, str, Any]]:
    """A batch of "host" that should take `host_s`, and 20 items of "guest" that came meanwhile."""
    units = {"guest": item_s, "host": host_s}
    lanes: Lanes[str, str, Any] = Lanes(
        Limits(batch_items=16, queue_items=1000, guest_s=guest_s, units=units.__getitem__)
    )
    lanes.served("guest", item_s, 1)
    lanes.served("host", host_s, 1)
    lanes.put("host", entry("h"))
    batch = lanes.take("host", now=0)
    for number in range(20):
        lanes.put("guest", entry(str(number)))
    return lanes, batch


def test_a_quick_lane_that_was_served_less_may_come_between_and_takes_no_more_than_its_time() -> None:
    lanes, host = hosted()
    assert lanes.pick_guest(host, now=0) == "guest"
    assert len(lanes.take("guest", now=0, guest=True).entries) == 10  # of 0.01 s each, in 0.1 s


@pytest.mark.parametrize("odd", [{"guest_s": 0.0}, {"item_s": 0.02}, {"host_s": 0.1}])
def test_nobody_comes_between_where_that_is_off_or_takes_long_or_the_host_is_short(odd: dict[str, float]) -> None:
    lanes, host = hosted(**odd)
    assert lanes.pick_guest(host, now=0) is None


def test_guests_get_no_more_time_than_their_host() -> None:
    lanes, host = hosted()
    lanes.served("guest", 0.9, 45)
    assert lanes.pick_guest(host, now=0) == "guest"
    lanes.served("guest", 0.2, 10)
    assert lanes.pick_guest(host, now=0) is None


def test_lanes_of_the_hosts_own_group_wait() -> None:
    lanes: Lanes[str, str, Any] = Lanes(
        Limits(batch_items=8, queue_items=1000, guest_s=0.1, group=lambda key: key.split(":")[0])
    )
    lanes.served("x:a", 0.01, 1)
    lanes.served("x:b", 1.0, 1)
    lanes.put("x:b", entry("host"))
    host = lanes.take("x:b", now=0)
    lanes.put("x:a", entry("guest"))
    assert lanes.pick_guest(host, now=0) is None


def test_an_unknown_lane_is_guessed_by_its_units() -> None:
    lanes: Lanes[str, str, Any] = Lanes(
        Limits(batch_items=8, queue_items=1000, units=lambda key: 10.0 if key == "slow" else 1.0)
    )
    lanes.served("quick", 0.2, 2)
    lanes.put("slow", entry("a"))
    assert lanes.expected_s() == pytest.approx(1.0)


def test_one_slow_batch_does_not_change_what_is_expected() -> None:
    lanes = lanes_of(entry("a"))
    for seconds in (9.0, 0.1, 9.0):  # a cold start, and something else on the machine
        lanes.served("x", seconds, 1)
    assert lanes.expected_s() == pytest.approx(0.1)
    for _ in range(RECENT):
        lanes.served("x", 0.5, 1)
    lanes.served("x", 9.0, 1)
    lanes.served("x", 0.1, 1)
    assert lanes.expected_s() == pytest.approx(0.5)


def test_a_shrunk_lane_takes_smaller_batches() -> None:
    lanes = lanes_of(*(entry(str(number)) for number in range(8)))
    lanes.shrink("x", 3)
    assert len(lanes.take("x", now=0).entries) == 3
    lanes.shrink("x", 0)
    assert len(lanes.take("x", now=0).entries) == 1


def test_empty_lanes_are_forgotten_in_the_end_and_busy_ones_never() -> None:
    lanes = lanes_of(entry("stays"))
    for number in range(3 * REMEMBERED):
        lanes.served(f"option {number}", 1.0, 1)
    assert len(lanes._lanes) <= REMEMBERED + 1
    assert names(lanes.take("x", now=0)) == ["stays"]
