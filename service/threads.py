"""A few threads for work that can't be interrupted, such as decoding; and what holds up threads, and how not to."""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from service import ahead

R = TypeVar("R")

# When garbage is looked for: after so many objects more in the youngest generation; after so many looks at that in the next; and
# after so many of those everywhere. While a queue fills every request in it is hundreds of objects that stay, and a look takes
# 3 us for each, in which nobody is answered or refused: with looks at 20,000 that was up to a sixth of a second at a time.
GENERATIONS = (2000, 3, 350)


def use_cores(count: int) -> None:
    """How many cores the calling thread's operations on tensors take; others are left alone.

    Only the device's thread should take several. Every thread that ever did has helpers of its own, and once they are
    more than there are cores, OpenMP puts all of them to sleep after each operation: twice the time for a small network.
    """
    torch.get_num_threads()  # else the thread's first operation would take what another thread has set last
    torch.set_num_threads(count)


def spare_collector() -> None:
    """Keep the garbage collector from looking through what stays for good: it holds up every thread while it does.

    With PyTorch loaded a full collection takes a tenth of a second. Asked for once all modules are imported.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GENERATIONS)


# What PyTorch would take, before anybody told it otherwise, but no more than the container's share.
CORES = min(torch.get_num_threads(), ahead.cores())


class TooLong(Exception):
    """The call was given up; its thread is still at it."""


class ThreadPool:
    """At most `size` calls run at the same time, those included that nobody waits for any more.

    A thread can't be killed. What was cancelled or took too long keeps its place until it really ends, so that hostile
    files can't pile up threads. (anyio gives the place of an abandoned call back at once.) Who waits for a place waits
    outside the executor, so that giving up leaves no image behind in a queue. Used in one event loop.
    """

    def __init__(self, size: int) -> None:
        self._places = asyncio.Semaphore(size)
        self._executor = ThreadPoolExecutor(size, thread_name_prefix="pool", initializer=use_cores, initargs=(1,))

    async def run(self, call: Callable[[], R], limit_s: float | None = None) -> R:
        """The call's result. limit_s counts from its start in a thread; waiting for a place is not in it.

        Raises:
            TooLong: not done within limit_s.
        """
        await self._places.acquire()
        running = self._start(call)
        try:
            done, _ = await asyncio.wait([running], timeout=limit_s)
            if not done:
                raise TooLong
            return running.result()
        finally:
            running.cancel()  # nobody will ask for the result of what is given up

    def close(self) -> None:
        """Let the threads go once they are done."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self, call: Callable[[], R]) -> "asyncio.Future[R]":
        loop = asyncio.get_running_loop()

        def release(_: "Future[R]") -> None:
            if not loop.is_closed():  # a call that outlives the service
                loop.call_soon_threadsafe(self._places.release)

        future = self._executor.submit(call)
        future.add_done_callback(release)
        return asyncio.wrap_future(future)
