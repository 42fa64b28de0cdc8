import asyncio
from typing import Any

import pytest

from service.errors import BodiesFull
from service.intake import BodyBudget
from service.settings import Settings


class Reader:
    """An app that reads one chunk of its body, says so, and stays until it is told to leave."""

    def __init__(self) -> None:
        self.read, self.leave = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.read.set()
        await self.leave.wait()


async def nothing(message: Any) -> None:
    pass


def body(size: int) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * size, "more_body": False}

    return receive


HTTP = {"type": "http"}


def test_bodies_of_running_requests_count_together_until_they_end() -> None:
    async def story() -> None:
        reader = Reader()
        budget = BodyBudget(reader, limit=100)
        first = asyncio.ensure_future(budget(HTTP, body(60), nothing))
        await reader.read.wait()
        with pytest.raises(BodiesFull) as refusal:
            await budget(HTTP, body(41), nothing)
        assert refusal.value.headers() == {"Retry-After": "1"}
        reader.leave.set()
        await budget(HTTP, body(40), nothing)  # beside the first
        await first
        await budget(HTTP, body(100), nothing)

    asyncio.run(story())


def test_request_that_fails_gives_its_bytes_back() -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ZeroDivisionError

    async def story() -> None:
        budget = BodyBudget(fail, limit=100)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await budget(HTTP, body(60), nothing)

    asyncio.run(story())


@pytest.mark.parametrize("form", [False, True])
def test_full_memory_is_a_503_with_the_time_to_come_back(run: Any, catalog: Any, png: Any, form: bool) -> None:
    """One request's part of a body stays in the air while another comes."""
    with run(Settings(max_body_bytes=10_000, max_held_bytes=12_000), catalog) as api:
        api.wait_ready()
        arrived, go_on = api.portal.call(make_events)

        async def slow() -> Any:
            yield b"x" * 10_000
            arrived.set()
            await go_on.wait()

        first = api.portal.start_task_soon(lambda: streamed(api.app, slow()))
        api.portal.call(arrived.wait)
        options = {"files": {"image": png()}} if form else {"content": png()}
        refused = api.post("/classify", **options)
        assert (refused.status_code, refused.json()["code"]) == (503, "bodies-full")
        assert refused.headers["Retry-After"] == "1"
        assert refused.headers["Content-Type"] == "application/problem+json"
        api.portal.call(go_on.set)
        assert first.result(5) == 400
        assert api.post("/classify", content=png()).status_code == 200


async def make_events() -> tuple[asyncio.Event, asyncio.Event]:
    return asyncio.Event(), asyncio.Event()


async def streamed(app: Any, chunks: Any) -> int:
    """Send a body chunk by chunk, as a server hands it over (httpx's transport for apps collects it first); the status."""
    status, more = 0, True

    async def receive() -> dict[str, Any]:
        nonlocal more
        if not more:  # the client stays and says nothing
            await asyncio.Event().wait()
        chunk = await anext(chunks, None)
        more = chunk is not None
        return {"type": "http.request", "body": chunk or b"", "more_body": more}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": "/classify", "raw_path": b"/classify", "query_string": b"", "root_path": "", "headers": []},
        **{"server": ("test", 80), "client": ("test", 1)},
    }
    await app(scope, receive, send)
    return status
