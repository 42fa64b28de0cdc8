"""What every route that answers images does with a request: choose, read in time, answer while the client is there."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from service import errors
from service.engine import Ask, Engine
from service.schemas import PurifyQuery

R = TypeVar("R")


def begin(
    request: Request, query: PurifyQuery, *, arrived: float | None = None, **wishes: Any
) -> tuple[Engine, Ask, float]:
    """What can be refused before anything is computed, is. arrived: by `time.monotonic`; now where it is left out.

    Raises:
        errors.UnknownName, errors.QueueFull, errors.NotReady.
    """
    engine: Engine = request.app.state.engine
    deadline = (time.monotonic() if arrived is None else arrived) + engine.settings.timeout_ms / 1000
    offer = engine.choose(query.model, query.purifier, query.classifier)
    engine.check_room()
    return engine, Ask(offer, seed=query.seed, **wishes), deadline


async def in_time(engine: Engine, deadline: float, reading: Coroutine[Any, Any, R]) -> R:
    """A client that sends a byte a minute must not hold its place for ever.

    Raises:
        errors.UploadTooSlow, and what reading raises.
    """
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await reading
    except TimeoutError as error:
        raise errors.UploadTooSlow(engine.settings.timeout_ms) from error


async def while_connected(request: Request, answering: Coroutine[Any, Any, R]) -> R:
    """Await an answer, but withdraw the work if the client leaves first. The body must have been read.

    Raises:
        errors.ClientGone, and what answering raises.
    """
    work, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise errors.ClientGone
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
