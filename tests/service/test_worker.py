import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait

import pytest

from service.lanes import Expired
from service.worker import BatchWorker, QueueFull, Stopped


class Gate:
    """Holds the worker in its first batch, so that the test decides what queues up behind it."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(5)


class Device:
    """Answers "lane:item", notes its batches; items can be made to raise or to kill."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate: Gate | None = None

    def __call__(self, lane: str, items: Sequence[str]) -> list[str | Exception]:
        self.batches.append(list(items))
        if "hold" in items and self.gate:
            self.gate()
        if "bad" in items:
            raise ValueError("bad item")
        if "fatal" in items:
            raise SystemExit("the device is gone")
        return [KeyError(item) if item == "odd" else f"{lane}:{item}" for item in items]


@pytest.fixture
def device() -> Device:
    return Device()


Make = Callable[..., BatchWorker[str, str, str]]


@pytest.fixture
def make(device: Device) -> Iterator[Make]:
    made: list[BatchWorker[str, str, str]] = []

    def build(max_batch_size: int = 8, queue_limit: int = 100, max_wait_ms: float = 0.0) -> BatchWorker[str, str, str]:
        worker: BatchWorker[str, str, str] = BatchWorker(
            device, max_batch_size=max_batch_size, queue_limit=queue_limit, max_wait_ms=max_wait_ms
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
    worker = make(max_batch_size=4, queue_limit=6)
    worker.submit("x", "hold")
    assert device.gate.entered.wait(5)
    return worker


def test_raising_batch_fails_only_the_guilty(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item) for item in ("a", "bad", "b", "c")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [futures[i].result(5).value for i in (0, 2, 3)] == ["x:a", "x:b", "x:c"]
    with pytest.raises(ValueError, match="bad item"):
        futures[1].result(5)


def test_worker_lives_on_after_a_raising_batch(make: Make) -> None:
    worker = make()
    with pytest.raises(ValueError, match="bad item"):
        worker.submit("x", "bad").result(5)
    assert worker.submit("x", "a").result(5).value == "x:a"
    assert worker.alive


def test_exception_in_the_results_is_that_items_alone(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item) for item in ("odd", "a")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert futures[1].result(5).value == "x:a"
    with pytest.raises(KeyError):
        futures[0].result(5)
    assert device.batches == [["hold"], ["odd", "a"]]


def test_wrong_number_of_results_is_an_error_not_a_mix_up() -> None:
    worker: BatchWorker[str, str, str] = BatchWorker(lambda lane, items: [], max_batch_size=8, queue_limit=8)
    worker.start()
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        worker.submit("x", "a").result(5)
    worker.close(5)


def test_full_queue_refuses_and_says_how_long(held: BatchWorker[str, str, str]) -> None:
    for number in range(6):
        held.submit("x", str(number))
    with pytest.raises(QueueFull) as refusal:
        held.submit("y", "one too many")
    assert refusal.value.limit == 6


def test_cancelled_items_make_room_in_a_full_queue(held: BatchWorker[str, str, str]) -> None:
    futures = [held.submit("x", str(number)) for number in range(6)]
    futures[2].cancel()
    held.submit("x", "fits")


def test_late_item_never_runs(held: BatchWorker[str, str, str], device: Device) -> None:
    late = held.submit("x", "late", deadline=time.monotonic())
    device.gate.opened.set()  # type: ignore[union-attr]
    with pytest.raises(Expired):
        late.result(5)
    assert ["late"] not in device.batches


def test_cancelled_item_never_runs_and_its_neighbours_do(held: BatchWorker[str, str, str], device: Device) -> None:
    cancelled, stays = held.submit("x", "cancelled"), held.submit("x", "stays")
    assert cancelled.cancel()
    device.gate.opened.set()  # type: ignore[union-attr]
    assert stays.result(5).value == "x:stays"
    with pytest.raises(CancelledError):
        cancelled.result(0)
    assert device.batches[1] == ["stays"]


def test_batches_form_while_busy_and_never_mix_lanes(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit(lane, f"{lane}{n}") for n in range(3) for lane in ("x", "y")]
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [future.result(5).value for future in futures] == [f"{lane}:{lane}{n}" for n in range(3) for lane in "xy"]
    assert sorted(device.batches[1:]) == [["x0", "x1", "x2"], ["y0", "y1", "y2"]]


def test_result_says_how_it_came_to_be(held: BatchWorker[str, str, str], device: Device) -> None:
    futures = [held.submit("x", item) for item in "ab"]
    time.sleep(0.02)
    device.gate.opened.set()  # type: ignore[union-attr]
    done = futures[0].result(5)
    assert done.batch_size == 2
    assert done.queue_ms >= 20
    assert done.run_ms >= 0


def test_idle_worker_waits_for_company_only_when_told_to(device: Device, make: Make) -> None:
    worker = make(max_wait_ms=50)
    futures = [worker.submit("x", "a")]
    time.sleep(0.005)
    futures.append(worker.submit("x", "b"))
    wait(futures, 5)
    assert device.batches == [["a", "b"]]


def test_closing_finishes_what_waits(held: BatchWorker[str, str, str], device: Device) -> None:
    future = held.submit("x", "a")
    threading.Timer(0.02, device.gate.opened.set).start()  # type: ignore[union-attr]
    held.close(5)
    assert future.result(0).value == "x:a"
    with pytest.raises(Stopped):
        held.submit("x", "b")


def test_closing_does_not_sit_out_the_wait_for_company(make: Make) -> None:
    worker = make(max_wait_ms=10_000)
    future = worker.submit("x", "a")
    worker.close(5)
    assert future.result(0).value == "x:a"


def test_closing_gives_up_on_a_hung_device_and_tells_everybody(held: BatchWorker[str, str, str]) -> None:
    waits = held.submit("x", "a")
    held.close(0.02)
    with pytest.raises(Stopped):
        waits.result(0)


def test_dying_thread_fails_what_runs_and_what_waits(held: BatchWorker[str, str, str], device: Device) -> None:
    waits = [held.submit("y", "fatal"), held.submit("x", "a"), held.submit("x", "b")]  # x was served, so y is next
    device.gate.opened.set()  # type: ignore[union-attr]
    assert [type(future.exception(5)) for future in waits] == [Stopped] * 3
    held._thread.join(5)
    assert not held.alive
    with pytest.raises(Stopped):
        held.submit("x", "c")


def test_item_that_kills_the_thread_gets_an_answer_too(make: Make) -> None:
    with pytest.raises(Stopped):
        make().submit("x", "fatal").result(5)


def test_worker_that_was_never_started_takes_nothing(device: Device) -> None:
    worker: BatchWorker[str, str, str] = BatchWorker(device, max_batch_size=1, queue_limit=1)
    assert not worker.alive
    with pytest.raises(Stopped):
        worker.submit("x", "a")
    worker.close(1)


def test_many_threads_each_get_their_own_answer(make: Make) -> None:
    worker = make(queue_limit=2000)
    answers: dict[str, str] = {}

    def call(name: str) -> None:
        for number in range(50):
            item = f"{name}{number}"
            answers[item] = worker.submit(name, item).result(5).value

    threads = [threading.Thread(target=call, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {item: f"{item[0]}:{item}" for item in answers}
    assert len(answers) == 400
