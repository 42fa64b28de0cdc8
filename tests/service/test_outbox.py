"""What other threads end reaches the loop that waits, together and once."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from service.outbox import Outbox


def ended_elsewhere(*endings: "tuple[Future[int], int | Exception | None]") -> None:
    """End futures in another thread; None cancels."""

    def end() -> None:
        for future, ending in endings:
            if ending is None:
                future.cancel()
            elif isinstance(ending, Exception):
                future.set_exception(ending)
            else:
                future.set_result(ending)

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()


def test_each_future_brings_its_own_ending() -> None:
    async def ended() -> list[int | BaseException]:
        outbox, futures = Outbox(), [Future[int]() for _ in range(4)]
        waiting = [outbox.awaited(future) for future in futures]
        ended_elsewhere((futures[2], 2), (futures[0], KeyError("guilty")), (futures[1], None))
        futures[3].set_result(3)
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, second, third, fourth = asyncio.run(ended())
    assert isinstance(first, KeyError)
    assert isinstance(second, asyncio.CancelledError)
    assert (third, fourth) == (2, 3)


def test_a_future_that_has_ended_already_is_no_different() -> None:
    async def ended() -> int:
        future = Future[int]()
        future.set_result(7)
        return await Outbox().awaited(future)

    assert asyncio.run(ended()) == 7


def test_the_loop_is_called_once_for_all_that_came_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ended() -> tuple[int, int]:
        loop, calls = asyncio.get_running_loop(), list[object]()
        outbox, futures = Outbox(), [Future[int]() for _ in range(10)]
        waiting = [outbox.awaited(future) for future in futures]
        call = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda what: calls.append(what) or call(what))
        ended_elsewhere(*((future, i) for i, future in enumerate(futures)))
        found = sum(await asyncio.gather(*waiting))
        ended_elsewhere((late := Future[int](), 1))
        return found + await outbox.awaited(late), len(calls)

    assert asyncio.run(ended()) == (46, 2)


def test_who_has_left_is_not_told() -> None:
    async def ended() -> int:
        outbox, left, stays = Outbox(), Future[int](), Future[int]()
        leaving, staying = outbox.awaited(left), outbox.awaited(stays)
        leaving.cancel()
        ended_elsewhere((left, 1), (stays, 2))
        return await staying

    assert asyncio.run(ended()) == 2


def test_what_ends_after_the_loop_is_let_go() -> None:
    async def waits(future: "Future[int]") -> "asyncio.Future[int]":
        return Outbox().awaited(future)

    future = Future[int]()
    waiter = asyncio.run(waits(future))
    future.set_result(1)
    assert not waiter.done()
