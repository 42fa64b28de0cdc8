"""The ASGI application: lifespan, routes, and the one way out for errors."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, cast

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from models.catalog import Catalog
from service import keys, listings, oip, routes
from service.engine import Engine
from service.errors import BadParameter, HttpProblem, Problem
from service.intake import BodyBudget
from service.keys import KeyGate
from service.metrics import Metrics
from service.middleware import RequestBorder, respond
from service.settings import Settings
from service.tracing import Tracing

log = logging.getLogger(__name__)

DESCRIPTION = """Undoes a possible adversarial perturbation with a purifier of your choice, classifies the result, and says
what it did. Purification helps against attackers who don't know of it; how far, and how little against those who do,
stands in `measured` under `/purifiers`."""

# FastAPI would look for an OpenTelemetry provider of the process in every request.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}


def create_app(settings: Settings, catalog: Catalog | None = None) -> FastAPI:
    """The service. Without a catalog it opens the settings' zoo folders once it runs; /readyz is red until then.

    Raises:
        KeysError, OSError: the API keys of the settings can't be used.
    """

    metrics = Metrics(settings.torch_device())
    tracing = None if settings.otlp_endpoint is None else Tracing(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal catalog
        engine = app.state.engine = Engine(settings, catalog, metrics)
        catalog = None  # the engine's alone now, so that what it no longer serves is freed
        metrics.ready.set_function(lambda: engine.unready() is None)
        metrics.queue_images.set_function(lambda: engine.waiting()[0])
        metrics.queue_seconds.set_function(lambda: engine.waiting()[1])
        engine.start()
        loading = asyncio.create_task(engine.load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await engine.close()
            if tracing is not None:
                await to_thread.run_sync(tracing.close)

    app = FastAPI(
        title="unperturb",
        version=version("unperturb"),
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY if tracing is None else tracing.telemetry(),
    )
    app.state.metrics, app.state.tracing = metrics, tracing
    app.include_router(routes.router)
    app.include_router(listings.router)
    app.include_router(oip.router)
    _add_gates(app, settings)
    return with_border(app, metrics, tracing)


def with_border(app: FastAPI, metrics: Metrics, tracing: Tracing | None = None) -> FastAPI:
    """Request ids, metrics and a line in the log for each request, and one shape for every error; goes on last."""
    app.add_middleware(RequestBorder, metrics=metrics, tracing=tracing)
    for kind in (Problem, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    return app


def _add_gates(app: FastAPI, settings: Settings) -> None:
    """From the inside to the outside: what is added last sees a request first."""
    app.add_middleware(BodyBudget, limit=settings.max_held_bytes)
    known = keys.load(settings)
    if known is not None:
        app.add_middleware(KeyGate, keys=known, open_metrics=settings.open_metrics)
        log.info("API keys of %s", ", ".join(known.names()))
    if settings.cors_origins:  # outside of the keys: a browser asks first whether it may send one
        origins, methods = settings.cors_origins, ("GET", "POST")
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=["*"]
        )


async def _answer(request: Request, error: Exception) -> Response:
    return respond(request, _as_problem(error))


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, HTTPException):
        fix = {404: "no such path; GET /docs shows those there are", 405: "this path takes another method, see Allow"}
        return HttpProblem(error.status_code, fix.get(error.status_code, error.detail), error.headers)
    if isinstance(error, RequestValidationError):
        return BadParameter.from_errors(error.errors())
    return cast(Problem, error)
