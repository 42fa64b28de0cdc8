"""What a client sees of a lean route is what FastAPI itself would have shown."""

import asyncio
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from service import errors
from service.lean import LeanRoute
from service.requests import while_connected
from service.schemas import ClassifyQuery


def application(route_class: Any) -> FastAPI:
    router = APIRouter(route_class=route_class)

    @router.get("/echo")
    async def echo(request: Request, query: Annotated[ClassifyQuery, Query()]) -> ClassifyQuery:
        return query

    @router.get("/raw")
    async def raw(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
        return Response(b"raw", media_type="image/png")

    app = FastAPI()
    app.include_router(router)

    @app.exception_handler(RequestValidationError)
    async def told(request: Request, error: RequestValidationError) -> Response:
        return Response(str(errors.BadParameter.from_errors(error.errors()).detail), 400)

    return app


USUAL, LEAN = application(APIRoute), application(LeanRoute)


def get(app: FastAPI, path: str, method: str = "GET") -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "query",
    [
        "",
        "purifier=nrp+aid&top_k=3",
        "purifier=nrp%2Baid",
        "epsilon=0.03&seed=9007199254740991",
        "top_k=1&top_k=2",
        "top_k=none",
        "epsilon=nan",
        "unknown=1",
        "votes=",
        "model=m%C3%A9",
        "seed=-1&steps=0",
    ],
)
def test_queries_are_read_and_refused_alike(query: str) -> None:
    lean, usual = get(LEAN, f"/echo?{query}"), get(USUAL, f"/echo?{query}")
    assert lean.status_code == usual.status_code
    assert lean.text == usual.text
    assert lean.headers.get("content-type") == usual.headers.get("content-type")


def test_a_response_is_passed_on() -> None:
    found = get(LEAN, "/raw")
    assert (found.content, found.headers["content-type"]) == (b"raw", "image/png")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/raw"), ("GET", "/raw/"), ("GET", "/nothing")])
def test_what_is_not_there_is_refused_alike(method: str, path: str) -> None:
    lean, usual = get(LEAN, path, method), get(USUAL, path, method)
    assert lean.status_code == usual.status_code != 200
    assert (lean.text, lean.headers) == (usual.text, usual.headers)


def test_both_are_documented_alike() -> None:
    assert get(LEAN, "/openapi.json").json() == get(USUAL, "/openapi.json").json()


class Caller:
    """A request whose client leaves when told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict[str, str]:
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_answer_while_the_client_is_there() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(while_connected(Caller(), answer())) == 7  # type: ignore[arg-type]


def test_nobody_watches_for_the_client_of_a_quick_answer() -> None:
    asked = []

    class Watched(Caller):
        async def receive(self) -> dict[str, str]:
            asked.append(True)
            return await super().receive()

    async def answer() -> int:
        await asyncio.sleep(0.01)
        return 7

    assert asyncio.run(while_connected(Watched(), answer())) == 7  # type: ignore[arg-type]
    assert not asked


def test_work_is_cancelled_when_the_client_leaves() -> None:
    caller, cancelled = Caller(), []

    async def work() -> None:
        caller.left.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(errors.ClientGone):
        asyncio.run(while_connected(caller, work()))  # type: ignore[arg-type]
    assert cancelled


def test_a_timeout_of_the_work_is_not_the_clients() -> None:
    async def late() -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        asyncio.run(while_connected(Caller(), late()))  # type: ignore[arg-type]
