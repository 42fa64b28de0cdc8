"""Around every request: its id, its line in the log and the metrics, and the last border that an unexpected error can cross."""

import logging
import random
import re
import time
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal, Problem
from service.logs import event
from service.metrics import Metrics
from service.tracing import Tracing, caller_trace_id

log = logging.getLogger(__name__)

# What callers may choose is printed in logs and headers, so it can't be just anything.
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")

# Nobody gains by guessing an id, and the system's own random numbers cost a call that gives Python's lock away.
_ids = random.Random()


class ProblemResponse(JSONResponse):
    """RFC 9457."""

    media_type = "application/problem+json"


class RequestBorder:
    """Gives each request an id (the caller's X-Request-ID where it is valid), echoes it, logs one line, answers every error.

    What a route puts into `request.state.facts` stands in that line; `model` and `purifier` are labels of the metrics too, so
    they must be names of the catalog.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        request_id = asked if _VALID_ID.fullmatch(asked) else f"{_ids.getrandbits(128):032x}"
        state = scope.setdefault("state", {})
        trace_id = self._tracing.trace_id() if self._tracing else caller_trace_id(headers)
        state.update(request_id=request_id, trace_id=trace_id, arrived=time.monotonic(), facts={})
        status, started = 0, time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # the border of the request
            if status:  # too late to say anything else
                state["outcome"] = Internal.code
                raise
            await respond(Request(scope), _internal(error))(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state, path = scope["state"], getattr(scope.get("route"), "path", None)
        route = path if isinstance(path, str) else "unknown"
        outcome = state.get("outcome") or _outcome(status)
        self._metrics.requested(route, state["facts"], outcome, seconds)
        facts = {
            "request_id": state["request_id"],
            "trace_id": state["trace_id"],
            "method": scope["method"],
            "path": quote(scope["path"]),  # it is decoded by now and may hold anything
            "route": route,
            "status": status,
            "outcome": outcome,
            "ms": 1000 * seconds,
        }
        event(log, logging.INFO, "request", **facts | state["facts"])


def respond(request: Request, problem: Problem) -> JSONResponse:
    """The one shape in which errors leave, the protocol's under /v2; the cause of an internal one is logged here."""
    content = describe(request, problem, request.url.path)
    request.state.outcome = content["code"]
    if f"{request.url.path}/".startswith("/v2/"):
        return JSONResponse({"error": problem.detail}, content["status"], problem.headers())
    return ProblemResponse(content, content["status"], problem.headers())


def describe(request: Request, problem: Problem, instance: str) -> dict[str, Any]:
    """A problem as it stands in a reply."""
    if isinstance(problem, Internal):
        cause, facts = problem.__cause__ or problem, {"request_id": request.state.request_id}
        log.error("request id=%s failed", request.state.request_id, exc_info=cause, extra={"facts": facts})
    return problem.render(instance, request.state.request_id)


def _outcome(status: int) -> str:
    """Of a request that no problem answered."""
    if not status:
        return "unanswered"  # it was cancelled, as happens at the end of a shutdown's patience
    return "ok" if status < 400 else f"http-{status}"


def _internal(error: Exception) -> Internal:
    problem = Internal()
    problem.__cause__ = error
    return problem
