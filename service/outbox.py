"""Results of other threads, handed to an event loop together."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Any, TypeVar

R = TypeVar("R")


class Outbox:
    """For the futures of one event loop; like `asyncio.wrap_future`, which wakes the loop for each of them.

    A thread that answers a whole batch would fight the loop for Python's lock after its first answer.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._called = False  # the loop is about to look

    def awaited(self, future: "Future[R]") -> "asyncio.Future[R]":
        """What `future` ends with, for the loop that runs. Cancelling it leaves `future` alone."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[R] = loop.create_future()

        def hand(done: "Future[R]") -> None:
            self._ready.append((waiter, done))
            if not self._called and not loop.is_closed():
                self._called = True
                loop.call_soon_threadsafe(self._hand_over)

        future.add_done_callback(hand)
        return waiter

    def _hand_over(self) -> None:
        self._called = False  # first, so that whoever is too late for this look calls for another
        while self._ready:
            waiter, done = self._ready.popleft()
            if waiter.done():  # nobody waits any more
                continue
            if done.cancelled():
                waiter.cancel()
            elif (error := done.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(done.result())
