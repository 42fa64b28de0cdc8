"""Around every request: its id, its line in the log, and the last border that an unexpected error can cross."""

import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal, Problem
from service.logs import pairs

log = logging.getLogger(__name__)

# What callers may choose is printed in logs and headers, so it can't be just anything.
_VALID_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class ProblemResponse(JSONResponse):
    """RFC 9457."""

    media_type = "application/problem+json"


class RequestBorder:
    """Gives each request an id (the caller's X-Request-ID where it is valid), echoes it, logs one line, answers every error."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        request_id = asked if _VALID_ID.fullmatch(asked) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, facts={})
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
                raise
            await respond(Request(scope), _internal(error))(scope, receive, send_with_id)
        finally:
            _log(scope, status, 1000 * (time.perf_counter() - started), state)


def respond(request: Request, problem: Problem) -> JSONResponse:
    """The one shape in which errors leave, the protocol's under /v2; the cause of an internal one is logged here."""
    content = describe(request, problem, request.url.path)
    if f"{request.url.path}/".startswith("/v2/"):
        return JSONResponse({"error": problem.detail}, content["status"], problem.headers())
    return ProblemResponse(content, content["status"], problem.headers())


def describe(request: Request, problem: Problem, instance: str) -> dict[str, Any]:
    """A problem as it stands in a reply."""
    if isinstance(problem, Internal):
        log.error("request id=%s failed", request.state.request_id, exc_info=problem.__cause__ or problem)
    return problem.render(instance, request.state.request_id)


def _internal(error: Exception) -> Internal:
    problem = Internal()
    problem.__cause__ = error
    return problem


def _log(scope: Scope, status: int, total_ms: float, state: dict[str, Any]) -> None:
    # The path is decoded by now and may hold anything, line breaks included.
    path, facts = quote(scope["path"]), pairs(**state["facts"])
    log.info("request id=%s %s %s %d %.1f ms %s", state["request_id"], scope["method"], path, status, total_ms, facts)
