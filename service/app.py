"""The ASGI application: lifespan, routes, and the one way out for errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from models.catalog import Catalog
from service import listings, routes
from service.engine import Engine
from service.errors import BadParameter, HttpProblem, Problem
from service.middleware import RequestBorder, respond
from service.settings import Settings

DESCRIPTION = """Undoes a possible adversarial perturbation with a purifier of your choice, classifies the result, and says
what it did. Purification helps against attackers who don't know of it; how far, and how little against those who do,
stands in `measured` under `/purifiers`."""


def create_app(settings: Settings, catalog: Catalog | None = None) -> FastAPI:
    """The service. Without a catalog it opens the settings' zoo folders once it runs; /readyz is red until then."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal catalog
        engine = app.state.engine = Engine(settings, catalog)
        catalog = None  # the engine's alone now, so that what it no longer serves is freed
        engine.start()
        loading = asyncio.create_task(engine.load())
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            await engine.close()

    app = FastAPI(title="unperturb", version=version("unperturb"), description=DESCRIPTION, lifespan=lifespan)
    app.include_router(routes.router)
    app.include_router(listings.router)
    return with_border(app)


def with_border(app: FastAPI) -> FastAPI:
    """Request ids, a line in the log for each request, and one shape for every error."""
    app.add_middleware(RequestBorder)
    for kind in (Problem, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _answer)
    return app


async def _answer(request: Request, error: Exception) -> Response:
    return respond(request, _as_problem(error))


def _as_problem(error: Exception) -> Problem:
    if isinstance(error, HTTPException):
        fix = {404: "no such path; GET /docs shows those there are", 405: "this path takes another method, see Allow"}
        return HttpProblem(error.status_code, fix.get(error.status_code, error.detail), error.headers)
    if isinstance(error, RequestValidationError):
        return BadParameter.from_errors(error.errors())
    return cast(Problem, error)
