"""POST /classify, /classify/batch, /purify: read the body, ask the engine, shape the reply. No maths in here."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from service import bodies, errors, openapi
from service.decode import encode_png
from service.engine import Ask, Engine, Served
from service.keys import charge
from service.middleware import describe
from service.schemas import BatchItem, BatchReply, ClassifyQuery, ClassifyReply, ProblemReply, PurifyQuery

R = TypeVar("R")
router = APIRouter(tags=["images"])


@router.post(
    "/classify", summary="Purify and classify an image", responses=openapi.CLASSIFY, openapi_extra=openapi.ONE_IMAGE
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> ClassifyReply:
    """Send the image as the body, or as the field `image` of a form. PNG, JPEG or WebP; the content decides."""
    engine, ask, deadline = _begin(request, query, top_k=query.top_k)
    upload = await _in_time(engine, deadline, bodies.read_one(request, engine.settings.max_body_bytes))
    served = await _while_connected(request, engine.answer(upload.checked(), ask, deadline))
    _note(request, served)
    return ClassifyReply.of(served, request.state.request_id)


@router.post(
    "/classify/batch", summary="The same for many images", responses=openapi.BATCH, openapi_extra=openapi.MANY_IMAGES
)
async def classify_batch(request: Request, query: Annotated[ClassifyQuery, Query()]) -> BatchReply:
    """Send a form with many parts `image`. Each gets its result or its problem, in their order; a seed holds for all."""
    engine, ask, deadline = _begin(request, query, top_k=query.top_k)
    settings = engine.settings
    reading = bodies.read_many(request, settings.max_body_bytes, settings.max_batch_images)
    uploads = await _in_time(engine, deadline, reading)
    charge(request, len(uploads))

    async def item(index: int, upload: bodies.Upload) -> BatchItem:
        try:
            served = await engine.answer(upload.checked(), ask, deadline)
        except errors.Problem as problem:
            return BatchItem(problem=ProblemReply(**describe(request, problem, f"{request.url.path}#{index}")))
        return BatchItem(result=ClassifyReply.of(served, request.state.request_id))

    async def all_items() -> list[BatchItem]:
        return await asyncio.gather(*(item(index, upload) for index, upload in enumerate(uploads)))

    items = await _while_connected(request, all_items())
    failed = sum(each.problem is not None for each in items)
    request.state.facts.update(model=ask.offer.model, purifier=ask.offer.purifier, images=len(items), failed=failed)
    return BatchReply(request_id=request.state.request_id, items=items)


@router.post(
    "/purify",
    summary="The purified image itself",
    response_class=Response,
    responses=openapi.PURIFY,
    openapi_extra=openapi.ONE_IMAGE,
)
async def purify(request: Request, query: Annotated[PurifyQuery, Query()]) -> Response:
    """Protect anything else that looks at images: the answer is a PNG of the model's size, the facts are headers.

    A PNG has 256 levels, so values are rounded by up to 0.5 / 255 on top of the change that the headers tell.
    """
    engine, ask, deadline = _begin(request, query, want_image=True)
    upload = await _in_time(engine, deadline, bodies.read_one(request, engine.settings.max_body_bytes))
    served = await _while_connected(request, engine.answer(upload.checked(), ask, deadline))
    _note(request, served)
    image = served.answer.image
    assert image is not None
    png = await engine.in_thread(lambda: encode_png(image))
    return Response(png, media_type="image/png", headers=_headers(served, request.state.request_id))


def _begin(request: Request, query: PurifyQuery, **wishes: Any) -> tuple[Engine, Ask, float]:
    """What can be refused before the body is read, is."""
    engine: Engine = request.app.state.engine
    deadline = time.monotonic() + engine.settings.timeout_ms / 1000
    offer = engine.choose(query.model, query.purifier, query.classifier)
    engine.check_room()
    return engine, Ask(offer, seed=query.seed, **wishes), deadline


async def _in_time(engine: Engine, deadline: float, reading: Coroutine[Any, Any, R]) -> R:
    """A client that sends a byte a minute must not hold its place for ever."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            return await reading
    except TimeoutError as error:
        raise errors.UploadTooSlow(engine.settings.timeout_ms) from error


async def _while_connected(request: Request, answering: Coroutine[Any, Any, R]) -> R:
    """Await an answer, but withdraw the work if the client leaves first. The body must have been read."""
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


def _note(request: Request, served: Served) -> None:
    """For the request's line in the log."""
    request.state.facts.update(
        model=served.offer.model,
        purifier=served.offer.purifier,
        batch_size=served.batch_size,
        decode_ms=served.decode_ms,
        queue_ms=served.queue_ms,
        purify_ms=served.answer.purify_ms,
    )


def _headers(served: Served, request_id: str) -> dict[str, str]:
    """The facts of /classify as X-Unperturb-*; numbers as in JSON, nothing where JSON has null, labels percent-encoded."""
    reply = ClassifyReply.of(served, request_id)
    best = reply.predictions[0]
    facts: dict[str, object] = {
        **{name: getattr(reply, name) for name in ("model", "classifier", "purifier", "seed", "weights_sha256")},
        **{"label": quote(best.label), "label_index": best.index, "probability": best.probability},
        **vars(reply.purification),
        **vars(reply.timings),
    }
    return {
        f"X-Unperturb-{name.replace('_', '-').title()}": str(value)
        for name, value in facts.items()
        if value is not None
    }
