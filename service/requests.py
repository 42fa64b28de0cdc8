"""What every route that answers images does with a request: choose, read in time, answer while the client is there."""

import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from models.purifiers import Options
from service import errors
from service.engine import Ask, Deadline, Engine, Served
from service.keys import charge
from service.logs import event
from service.metrics import Metrics
from service.schemas import ClassifyQuery, PurifyQuery

log = logging.getLogger(__name__)
R = TypeVar("R")

# An answer that takes no longer is not worth a task that watches whether its client is still there.
UNWATCHED_S = 0.1


async def begin(request: Request, query: PurifyQuery, **wishes: Any) -> tuple[Engine, Ask, Deadline]:
    """What can be refused before anything is computed, is. `wishes`: other fields of `Ask`.

    Raises:
        errors.BadParameter, errors.QueueFull, errors.NotReady.
    """
    engine: Engine = request.app.state.engine
    deadline = Deadline(request.state.arrived, _timeout_ms(request, query, engine.settings.timeout_ms))
    offer = engine.choose(query.model, query.purifier, query.classifier)
    request.state.facts.update(model=offer.model, purifier=offer.purifier)
    votes = query.votes if isinstance(query, ClassifyQuery) else 1
    options = Options(query.epsilon, query.steps)
    ask = await engine.ask(offer, options, votes, seed=query.seed, stop_after_ms=query.stop_after_ms, **wishes)
    charge(request, ask.votes)
    engine.check_room(ask)
    return engine, ask, deadline


def check_share(request: Request, engine: Engine, ask: Ask, images: int) -> None:
    """Whether all of a request's images may be worked on; `begin` has seen to the first one.

    Raises:
        errors.RateLimited, errors.TooManyImages, errors.QueueFull, errors.NotReady.
    """
    charge(request, 1 + (images - 1) * ask.votes)
    engine.check_room(ask, images)


def _timeout_ms(request: Request, query: PurifyQuery, limit_ms: float) -> float:
    """The shortest that anybody asked for."""
    limit_ms = min(limit_ms, query.timeout_ms or limit_ms)
    header = request.headers.get("x-request-timeout")
    if header is None:
        return limit_ms
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise errors.BadParameter("X-Request-Timeout: not a positive number of seconds, such as 2.5")
    return min(limit_ms, 1000 * seconds)


async def in_time(deadline: Deadline, reading: Coroutine[Any, Any, R]) -> R:
    """A client that sends a byte a minute must not hold its place for ever."""
    try:
        async with asyncio.timeout(deadline.left_s()):
            return await reading
    except TimeoutError as error:
        raise errors.UploadTooSlow(deadline.timeout_ms) from error


async def while_connected(request: Request, answering: Coroutine[Any, Any, R]) -> R:
    """Await an answer, but withdraw the work if the client leaves first. The body must have been read."""
    watching: asyncio.Future[None] | None = None

    def watch_out() -> None:
        nonlocal watching
        watching = asyncio.ensure_future(_disconnected(request, connected))

    try:
        async with asyncio.timeout(None) as connected:
            soon = asyncio.get_running_loop().call_later(UNWATCHED_S, watch_out)
            try:
                return await answering
            finally:
                soon.cancel()
                if watching is not None:
                    watching.cancel()
    except TimeoutError as error:
        if connected.expired():
            raise errors.ClientGone from error
        raise


async def _disconnected(request: Request, connected: asyncio.Timeout) -> None:
    """End `connected` when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    connected.reschedule(-math.inf)


def watch(request: Request, served: Served) -> None:
    """Each answered image: its metrics and spans, and the alarm where it looks suspicious."""
    _count(request.app.state.metrics, served)
    if request.app.state.tracing is not None:
        request.app.state.tracing.answered(served)
    offer, suspicion, alarm = served.offer, served.answer.suspicion, request.app.state.engine.settings.suspicion_alarm
    if alarm is None or suspicion is None or suspicion < alarm:
        return
    request.app.state.metrics.suspicious(offer.model, offer.purifier)
    facts = {"request_id": request.state.request_id, "trace_id": request.state.trace_id, "suspicion": suspicion}
    event(log, logging.WARNING, "suspicious", model=offer.model, purifier=offer.purifier, **facts)


def _count(metrics: Metrics, served: Served) -> None:
    offer, answer = served.offer, served.answer
    passes = served.votes * answer.forward_passes, served.votes * answer.backward_passes
    metrics.answered(offer.model, offer.purifier, *passes, answer.suspicion, served.decode_ms / 1000)
