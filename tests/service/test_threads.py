import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
import torch

from service.threads import ThreadPool, TooLong, use_cores

R = TypeVar("R")


def in_loop(story: Callable[[ThreadPool], Awaitable[R]], size: int = 1) -> R:
    async def tell() -> R:
        pool = ThreadPool(size)
        try:
            return await asyncio.wait_for(story(pool), 10)
        finally:
            pool.close()

    return asyncio.run(tell())


class Stuck:
    """A call that says when it runs and goes on until it is released."""

    def __init__(self) -> None:
        self.running, self.released = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.running.set()
        assert self.released.wait(10)


def test_result_and_exception_come_back() -> None:
    async def story(pool: ThreadPool) -> None:
        assert await pool.run(threading.get_ident) != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        assert await pool.run(lambda: 1) == 1

    in_loop(story)


@pytest.mark.parametrize("give_up", ["limit", "cancel"])
def test_abandoned_call_keeps_its_place_until_it_ends(give_up: str) -> None:
    stuck = Stuck()

    async def story(pool: ThreadPool) -> None:
        if give_up == "limit":
            with pytest.raises(TooLong):
                await pool.run(stuck, 0.01)
        else:
            first = asyncio.ensure_future(pool.run(stuck))
            await asyncio.to_thread(stuck.running.wait)
            first.cancel()
            await asyncio.wait([first])
        started = threading.Event()
        second = asyncio.ensure_future(pool.run(started.set))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not started.is_set()
        stuck.released.set()
        await second
        assert started.is_set()

    in_loop(story)


def test_waiting_for_a_place_is_not_in_the_limit_and_can_be_given_up() -> None:
    stuck = Stuck()

    async def story(pool: ThreadPool) -> None:
        first = asyncio.ensure_future(pool.run(stuck))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.run(lambda: pytest.fail("ran"), 0.001), 0.02)
        second = asyncio.ensure_future(pool.run(lambda: 2, 5))
        stuck.released.set()
        await first
        assert await second == 2

    in_loop(story)


def test_exception_of_an_abandoned_call_disturbs_nobody(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Stuck()

    def fail() -> None:
        stuck()
        raise ValueError("late")

    async def story(pool: ThreadPool) -> int:
        with pytest.raises(TooLong):
            await pool.run(fail, 0.01)
        stuck.released.set()
        return await pool.run(lambda: 1)

    assert in_loop(story) == 1
    assert not caplog.records


def test_call_may_outlive_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Stuck()

    async def story(pool: ThreadPool) -> None:
        with pytest.raises(TooLong):
            await pool.run(stuck, 0.01)

    in_loop(story)
    stuck.released.set()
    for thread in threading.enumerate():
        if thread.name.startswith("pool"):
            thread.join(5)
    assert not caplog.records  # the executor logs what a callback raises


def test_cores_are_the_calling_threads_alone() -> None:
    found: dict[str, int] = {}
    chosen, go = threading.Event(), threading.Event()

    def device() -> None:
        use_cores(3)
        chosen.set()
        assert go.wait(5)
        torch.ones(10).sum()
        found["device"] = torch.get_num_threads()

    thread = threading.Thread(target=device)
    before = torch.get_num_threads()
    try:
        thread.start()
        assert chosen.wait(5)
        use_cores(1)  # after the other's choice and before its first operation
        found["here"] = torch.get_num_threads()
        go.set()
        thread.join()
    finally:
        use_cores(before)
    assert found == {"device": 3, "here": 1}


def test_threads_of_the_pool_take_one_core() -> None:
    async def story(pool: ThreadPool) -> int:
        return await pool.run(torch.get_num_threads)

    assert in_loop(story) == 1
