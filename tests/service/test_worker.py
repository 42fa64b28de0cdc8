import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, wait

import pytest

from models.purifiers import Wish
from service.desk import Care, OutOfMemory, Ran, Silent, Stopped
from service.lanes import Done, Expired, Limits, QueueFull
from service.worker import BatchWorker


class Gate:
    """Holds the worker in its first batch, so that the test decides what queues up behind it."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(5)


class Device:
    """A seat. Answers "lane:item", notes its batches; items can be made to raise or to kill."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.wanted: list[list[bool]] = []
        self.gate: Gate | None = None
        self.room = 1000
        self.seconds: float | None = None

    def begin(self) -> "Device":
        return self

    def close(self) -> None: ...

    def __call__(
        self, lane: str, items: Sequence[str], wanted: Callable[[], list[bool]], meanwhile: Callable[[], None]
    ) -> Ran[str]:
        self.batches.append(list(items))
        if len(items) > self.room or "huge" in items:
            raise MemoryError
        if "hold" in items and self.gate:
            self.gate()
        if "bad" in items:
            raise ValueError("bad item")
        self.wanted.append(wanted())
        if "fatal" in items:
            raise SystemExit("the device is gone")
        return Ran([KeyError(item) if item == "odd" else f"{lane}:{item}" for item in items], self.seconds)


@pytest.fixture
def device() -> Device:
    return Device()


class Notes(Silent):
    """What the observer heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, ...]] = []
        self.restarts = threading.Semaphore(0)

    def batch(self, lane: object, size: int, queue_s: Sequence[float], run_s: float) -> None:
        self.heard.append(("batch", str(lane), str(size)))

    def shed(self, lane: object, count: int) -> None:
        self.heard.append(("shed", str(lane), str(count)))

    def expired(self, lane: object) -> None:
        self.heard.append(("expired", str(lane)))

    def cancelled(self, lane: object) -> None:
        self.heard.append(("cancelled", str(lane)))

    def restarted(self) -> None:
        self.restarts.release()


@pytest.fixture
def notes() -> Notes:
    return Notes()


Make = Callable[..., BatchWorker[str, str, str]]
CARE = {"freed": lambda error: isinstance(error, MemoryError), "pause_s": 0.001}


@pytest.fixture
def make(device: Device, notes: Notes) -> Iterator[Make]:
    made: list[BatchWorker[str, str, str]] = []

    def build(care: dict[str, object] | None = None, **limits: float) -> BatchWorker[str, str, str]:
        worker: BatchWorker[str, str, str] = BatchWorker(
            [device],
            Limits(**{"batch_items": 8, "queue_items": 100, **limits}),
            care=Care(**{**CARE, **(care or {})}),
            observer=notes,
        )
        worker.start()
        made.append(worker)
        return worker

    yield build
    if device.gate:
        device.gate.opened.set()
    for worker in made:
        worker.close(5)


@pytest.fixture
def held(device: Device, make: Make) -> BatchWorker[str, str, str]:
    """A worker that is busy until `device.gate.opened` is set."""
    device.gate = Gate()
    worker = make(batch_items=4, queue_items=6)
    worker.submit("x", "hold")
    assert device.gate.entered.wait(5)
    return worker


def test_raising_batch_fails_only_the_guilty(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item).future for item in ("a", "bad", "b", "c")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [futures[i].result(5).value for i in (0, 2, 3)] == ["x:a", "x:b", "x:c"]
    with pytest.raises(ValueError, match="bad item"):
        futures[1].result(5)


def test_worker_lives_on_after_a_raising_batch(make: Make) -> None:
    worker = make()
    with pytest.raises(ValueError, match="bad item"):
        worker.submit("x", "bad").future.result(5)
    assert worker.submit("x", "a").future.result(5).value == "x:a"
    assert worker.trouble() is None


def test_exception_in_the_results_is_that_items_alone(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item).future for item in ("odd", "a")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert futures[1].result(5).value == "x:a"
    with pytest.raises(KeyError):
        futures[0].result(5)
    assert device.batches == [["hold"], ["odd", "a"]]


def test_wrong_number_of_results_is_an_error_not_a_mix_up() -> None:
    class Forgetful(Device):
        def __call__(self, *order: object) -> Ran[str]:  # type: ignore[override]
            return Ran([])

    worker: BatchWorker[str, str, str] = BatchWorker([Forgetful()], Limits(8, 8))
    worker.start()
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        worker.submit("x", "a").future.result(5)
    worker.close(5)


def test_full_queue_refuses_and_says_how_long(held: BatchWorker[str, str, str]) -> None:
    for number in range(6):
        held.submit("x", str(number))
    with pytest.raises(QueueFull) as refusal:
        held.submit("y", "one too many")
    assert "6 images wait, of 6 that may" in str(refusal.value)


def test_cancelled_items_make_room_in_a_full_queue(held: BatchWorker[str, str, str]) -> None:
    futures = [held.submit("x", str(number)).future for number in range(6)]
    futures[2].cancel()
    held.submit("x", "fits")


def test_late_item_never_runs(held: BatchWorker[str, str, str], device: Device) -> None:
    late = held.submit("x", "late", deadline=time.monotonic()).future
    device.gate.opened.set()  # type: ignore[union-attr]
    with pytest.raises(Expired):
        late.result(5)
    assert ["late"] not in device.batches


def test_cancelled_item_never_runs_and_its_neighbours_do(held: BatchWorker[str, str, str], device: Device) -> None:
    cancelled, stays = held.submit("x", "cancelled").future, held.submit("x", "stays").future
    assert cancelled.cancel()
    device.gate.opened.set()  # type: ignore[union-attr]
    assert stays.result(5).value == "x:stays"
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert device.batches[1] == ["stays"]


def test_batches_form_while_busy_and_never_mix_lanes(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit(lane, f"{lane}{n}").future for n in range(3) for lane in ("x", "y")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [future.result(5).value for future in futures] == [f"{lane}:{lane}{n}" for n in range(3) for lane in "xy"]
    assert sorted(device.batches[1:]) == [["x0", "x1", "x2"], ["y0", "y1", "y2"]]


def test_result_says_how_it_came_to_be(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item).future for item in "ab"]
    time.sleep(0.02)
    device.gate.opened.set()  # type: ignore[union-attr]
    done = futures[0].result(5)
    assert done.batch_size == 2
    assert done.queue_ms >= 20
    assert done.run_ms >= 0


def test_idle_worker_waits_for_company_only_when_told_to(device: Device, make: Make) -> None:
    worker = make(wait_s=0.05)
    futures = [worker.submit("x", "a").future]
    time.sleep(0.005)
    futures.append(worker.submit("x", "b").future)
    wait(futures, 5)
    assert device.batches == [["a", "b"]]


def test_closing_finishes_what_waits(held: BatchWorker[str, str, str], device: Device) -> None:
    future = held.submit("x", "a").future
    threading.Timer(0.02, device.gate.opened.set).start()  # type: ignore[union-attr]
    held.close(5)
    assert future.result(0).value == "x:a"
    with pytest.raises(Stopped):
        held.submit("x", "b")


def test_closing_does_not_sit_out_the_wait_for_company(make: Make) -> None:
    worker = make(wait_s=10)
    future = worker.submit("x", "a").future
    worker.close(5)
    assert future.result(0).value == "x:a"


def test_closing_gives_up_on_a_hung_device_and_tells_everybody(held: BatchWorker[str, str, str]) -> None:
    waits = held.submit("x", "a").future
    held.close(0.02)
    with pytest.raises(Stopped):
        waits.result(0)


def test_dying_thread_fails_what_runs_and_what_waits_and_is_replaced(
    held: BatchWorker[str, str, str], device: Device, notes: Notes
) -> None:
    # x was served, so y is next
    waits = [held.submit(*item).future for item in (("y", "fatal"), ("x", "a"), ("x", "b"))]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [type(future.exception(5)) for future in waits] == [Stopped] * 3
    assert notes.restarts.acquire(timeout=5)
    assert held.trouble() is None
    assert held.submit("x", "c").future.result(5).value == "x:c"


def test_a_dead_worker_is_in_trouble_until_it_is_replaced(make: Make) -> None:
    worker = make({"pause_s": 60})
    with pytest.raises(Stopped):
        worker.submit("x", "fatal").future.result(5)
    assert worker.trouble() == "the worker thread died; a new thread starts in 60 s"
    with pytest.raises(Stopped, match="died"):
        worker.submit("x", "a")
    worker.close(5)  # does not sit the pause out


def test_pauses_between_lives_get_longer_and_stop_at_their_bound(make: Make, notes: Notes, caplog) -> None:
    worker = make({"pause_s": 0.001, "longest_pause_s": 0.004})
    for _ in range(4):
        with pytest.raises(Stopped):
            worker.submit("x", "fatal").future.result(5)
        assert notes.restarts.acquire(timeout=5)
    said = [record.message for record in caplog.records if "starts in" in record.message]
    assert [line.split("starts in ")[1] for line in said] == ["0.001 s", "0.002 s", "0.004 s", "0.004 s"]
    assert worker._desks[0]._watchman.is_alive()


def test_a_hung_batch_is_given_up_and_its_late_answers_go_nowhere(device: Device, make: Make, notes: Notes) -> None:
    device.gate = Gate()
    worker = make({"hang_s": 0.05})
    hung, waits = worker.submit("x", "hold").future, worker.submit("y", "a").future
    for future in (hung, waits):
        with pytest.raises(Stopped, match="a batch was not done after"):
            future.result(5)
    assert notes.restarts.acquire(timeout=5)
    assert worker.submit("x", "b").future.result(5).value == "x:b"
    device.gate.opened.set()
    assert worker.submit("x", "c").future.result(5).value == "x:c"
    assert ("batch", "x", "1") in notes.heard


def test_out_of_memory_is_tried_again_in_halves(held: BatchWorker[str, str, str], device: Device) -> None:
    device.room = 2
    futures = [held.submit("x", item).future for item in "abcd"]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [future.result(5).value for future in futures] == [f"x:{item}" for item in "abcd"]
    assert device.batches[1:] == [["a", "b", "c", "d"], ["a", "b"], ["c", "d"]]
    more = [held.submit("x", item).future for item in "efgh"]
    assert [future.result(5).value for future in more] == [f"x:{item}" for item in "efgh"]
    assert max(map(len, device.batches[4:])) <= 2  # the lane has learned


def test_out_of_memory_twice_fails_the_item_and_turns_not_ready_until_something_works(make: Make) -> None:
    worker = make()
    with pytest.raises(OutOfMemory):
        worker.submit("x", "huge").future.result(5)
    assert worker.trouble() == "the device is out of memory"
    assert worker.submit("x", "small").future.result(5).value == "x:small"
    assert worker.trouble() is None


def test_items_that_nobody_wants_any_more_are_dropped_from_a_running_batch(
    device: Device, make: Make, notes: Notes
) -> None:
    device.gate = Gate()
    worker = make(wait_s=0.02)
    gone, late, stays = (
        worker.submit("x", "hold"),
        worker.submit("x", "late", deadline=time.monotonic() + 0.05),
        worker.submit("x", "stays"),
    )
    assert device.gate.entered.wait(5)
    gone.withdraw()
    time.sleep(0.06)
    device.gate.opened.set()
    assert stays.future.result(5).value == "x:stays"
    with pytest.raises(Expired, match="while it was worked on"):
        late.future.result(5)
    assert device.wanted == [[False, False, True]]
    assert ("cancelled", "x") in notes.heard
    assert ("expired", "x") in notes.heard


def test_a_caller_in_a_hurry_is_heard_between_steps(device: Device, make: Make) -> None:
    device.gate = Gate()
    worker = make(wait_s=0.02)
    held = worker.submit("x", "hold", hurry_at=time.monotonic() + 0.05)
    other = worker.submit("x", "other", hurry_at=time.monotonic() + 60)
    assert device.gate.entered.wait(5)
    time.sleep(0.06)
    device.gate.opened.set()
    assert [each.future.result(5).value for each in (held, other)] == ["x:hold", "x:other"]
    assert device.wanted == [[Wish.HURRIES, Wish.WAITS]]


def test_refusals_are_counted(held: BatchWorker[str, str, str], notes: Notes) -> None:
    with pytest.raises(QueueFull):
        held.check_room("x", 7)
    assert notes.heard[-1] == ("shed", "x", "7")


def test_item_that_kills_the_thread_gets_an_answer_too(make: Make) -> None:
    with pytest.raises(Stopped):
        make().submit("x", "fatal").future.result(5)


def test_worker_that_was_never_started_takes_nothing(device: Device) -> None:
    worker: BatchWorker[str, str, str] = BatchWorker([device], Limits(1, 1))
    assert worker.trouble() == "the worker has not been started"
    with pytest.raises(Stopped):
        worker.submit("x", "a")
    worker.close(1)


def test_many_threads_each_get_their_own_answer(make: Make) -> None:
    worker = make(queue_items=2000)
    answers: dict[str, str] = {}

    def call(name: str) -> None:
        for number in range(50):
            item = f"{name}{number}"
            answers[item] = worker.submit(name, item).future.result(5).value

    threads = [threading.Thread(target=call, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {item: f"{item[0]}:{item}" for item in answers}
    assert len(answers) == 400


class Beginning(Device):
    """Notes when a thread takes its seat."""

    def begin(self) -> Device:
        self.batches.append(["begin"])
        return self


def test_each_thread_begins_before_its_first_batch() -> None:
    seat = Beginning()
    worker: BatchWorker[str, str, str] = BatchWorker([seat], Limits(1, 9), care=Care(pause_s=0.01))
    worker.start()
    try:
        assert worker.submit("a", "one").future.result(5).value == "a:one"
        with pytest.raises(Stopped):
            worker.submit("a", "fatal").future.result(5)
        while worker.trouble():
            time.sleep(0.01)
        assert worker.submit("a", "two").future.result(5).value == "a:two"
    finally:
        worker.close(5)
    assert seat.batches == [["begin"], ["one"], ["fatal"], ["begin"], ["two"]]


class Pair:
    """A worker with two seats. Each holds in a batch with "hold" in it."""

    def __init__(self, notes: Notes, **limits: float) -> None:
        self.devices = [Device(), Device()]
        for device in self.devices:
            device.gate = Gate()
        self.worker: BatchWorker[str, str, str] = BatchWorker(
            self.devices,
            Limits(**{"batch_items": 8, "queue_items": 100, "seats": 2, **limits}),
            care=Care(pause_s=60),
            observer=notes,
        )
        self.worker.start()

    def hold(self) -> list[Device]:
        """Keep both busy; the devices in the order in which they were."""
        found = list[Device]()
        for _ in self.devices:
            self.worker.submit("x", "hold")
            while not (entered := [each for each in self.devices if each.gate.entered.is_set() and each not in found]):
                time.sleep(0.001)
            found += entered
        return found

    def release(self) -> None:
        for device in self.devices:
            device.gate.opened.set()


@pytest.fixture
def pair(notes: Notes) -> Iterator[Pair]:
    made = Pair(notes)
    yield made
    made.release()
    made.worker.close(5)


def test_a_seat_works_while_another_is_busy(pair: Pair) -> None:
    pair.worker.submit("x", "hold")
    assert pair.worker.submit("y", "a").future.result(5).value == "y:a"


def test_what_waits_goes_to_whoever_is_done_first(pair: Pair) -> None:
    first, second = pair.hold()
    futures = [pair.worker.submit("y", item).future for item in "abc"]
    second.gate.opened.set()
    assert [future.result(5).value for future in futures] == ["y:a", "y:b", "y:c"]
    assert (first.batches, second.batches) == ([["hold"]], [["hold"], ["a", "b", "c"]])


def test_a_dying_seat_takes_only_its_own_batch_with_it_and_turns_red(pair: Pair) -> None:
    first, second = pair.hold()
    fatal, waits = pair.worker.submit("y", "fatal").future, pair.worker.submit("z", "a").future
    first.gate.opened.set()
    with pytest.raises(Stopped):
        fatal.result(5)
    second.gate.opened.set()
    assert waits.result(5).value == "z:a"
    assert pair.worker.submit("z", "b").future.result(5).value == "z:b"
    assert pair.worker.trouble() == "the worker thread died; a new thread starts in 60 s"


def test_every_seat_gets_its_own_copy_ahead_of_what_waits(pair: Pair) -> None:
    pair.hold()
    waits = pair.worker.submit("x", "waits").future
    entries = pair.worker.submit_to_each("y", "warm")
    pair.release()
    assert [entry.future.result(5).value for entry in entries] == ["y:warm"] * 2
    assert waits.result(5).value == "x:waits"
    assert [device.batches[1] for device in pair.devices] == [["warm"], ["warm"]]


def test_closing_finishes_what_waits_for_either_seat(pair: Pair) -> None:
    pair.hold()
    futures = [pair.worker.submit(lane, "a").future for lane in "xyz"]
    threading.Timer(0.02, pair.release).start()
    pair.worker.close(5)
    assert [future.result(0).value for future in futures] == ["x:a", "y:a", "z:a"]


class Stepping(Device):
    """Works in steps where there is "long" in a batch, and can be interrupted between them."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.deepest = self.depth = 0

    def __call__(
        self, lane: str, items: Sequence[str], wanted: Callable[[], list[bool]], meanwhile: Callable[[], None]
    ) -> Ran[str]:
        self.depth += 1
        self.deepest = max(self.depth, self.deepest)
        while "long" in items and not self.may_end.is_set():
            self.begun.set()
            meanwhile()
            time.sleep(0.001)
        meanwhile()
        self.depth -= 1
        return super().__call__(lane, items, wanted, meanwhile)


SECONDS = {"x": 1.0, "y": 0.001, "z": 0.001}  # what an item of a lane should take


@pytest.fixture
def stepping(notes: Notes) -> Iterator[tuple[Stepping, BatchWorker[str, str, str]]]:
    """A worker that knows of `SECONDS`."""
    device = Stepping()
    worker: BatchWorker[str, str, str] = BatchWorker(
        [device],
        Limits(8, 100, guest_s=0.1, units=SECONDS.__getitem__),
        care=Care(**{**CARE, "pause_s": 60}),
        observer=notes,
    )
    worker.start()
    for lane, seconds in SECONDS.items():
        worker._shared.lanes.served(lane, seconds, 1)
    yield device, worker
    device.may_end.set()
    worker.close(5)


def begin_long(device: Stepping, worker: BatchWorker[str, str, str]) -> "Future[Done[str]]":
    future = worker.submit("x", "long").future
    assert device.begun.wait(5)
    return future


def test_a_short_batch_is_let_in_between_two_steps_of_a_long_one(
    stepping: tuple[Stepping, BatchWorker[str, str, str]], notes: Notes
) -> None:
    device, worker = stepping
    long = begin_long(device, worker)
    assert worker.submit("y", "short").future.result(5).value == "y:short"
    assert worker.submit("z", "other").future.result(5).value == "z:other"
    assert not long.done()
    device.may_end.set()
    assert long.result(5).value == "x:long"
    assert [each[:2] for each in notes.heard] == [("batch", "y"), ("batch", "z"), ("batch", "x")]
    assert device.deepest == 2  # no guests of guests


def test_a_guest_that_fails_or_leaves_does_not_touch_its_host(
    stepping: tuple[Stepping, BatchWorker[str, str, str]],
) -> None:
    device, worker = stepping
    long = begin_long(device, worker)
    with pytest.raises(ValueError, match="bad item"):
        worker.submit("y", "bad").future.result(5)
    device.may_end.set()
    assert long.result(5).value == "x:long"


def test_guests_time_is_not_their_hosts(stepping: tuple[Stepping, BatchWorker[str, str, str]], notes: Notes) -> None:
    device, worker = stepping
    took = dict[str, float]()
    notes.batch = lambda lane, size, queue_s, run_s: took.update({str(lane): run_s})  # type: ignore[method-assign]
    device.gate = Gate()
    long = begin_long(device, worker)
    guest = worker.submit("y", "hold").future
    assert device.gate.entered.wait(5)
    time.sleep(0.2)
    device.gate.opened.set()
    guest.result(5)
    device.may_end.set()
    long.result(5)
    worker.close(5)
    assert took["y"] >= 0.2
    assert took["x"] < 0.2


def test_what_a_guest_waited_for_its_hosts_step_is_its_hosts(
    stepping: tuple[Stepping, BatchWorker[str, str, str]], notes: Notes
) -> None:
    """The seat had the guest for longer than it worked on it."""
    device, worker = stepping
    took = dict[str, float]()
    notes.batch = lambda lane, size, queue_s, run_s: took.update({str(lane): run_s})  # type: ignore[method-assign]
    device.gate = Gate()
    long = begin_long(device, worker)
    device.seconds = 0.001
    guest = worker.submit("y", "hold").future
    assert device.gate.entered.wait(5)
    time.sleep(0.2)
    device.gate.opened.set()
    guest.result(5)
    device.seconds = None
    device.may_end.set()
    long.result(5)
    worker.close(5)
    assert took["y"] == 0.001
    assert took["x"] >= 0.2
    assert worker._shared.lanes._served_s["y"] < worker._shared.lanes._served_s["x"]


def test_a_thread_that_dies_with_a_guest_tells_both(stepping: tuple[Stepping, BatchWorker[str, str, str]]) -> None:
    long, guest = begin_long(*stepping), stepping[1].submit("y", "fatal").future
    assert [type(future.exception(5)) for future in (long, guest)] == [Stopped, Stopped]
