"""The memory that request bodies may take: one budget for all requests."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodiesFull


class BodyBudget:
    """Counts the bytes of all bodies from when they come until their request ends; what goes beyond is refused with 503.

    Bytes are counted rather than uploads, so thousands of small images may come at once, yet memory is bounded, and a
    slow client takes no more than what it sent. A declared length reserves nothing: else a header could fill the budget.
    Nobody waits for room, so that clients can't keep each other from finishing.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit, self._held = app, limit, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = 0

        async def counted() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            if self._held + size > self._limit:
                raise BodiesFull(self._limit)
            own += size
            self._held += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= own
