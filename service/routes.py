"""POST /classify, /classify/batch, /purify: read the body, ask the engine, shape the reply. No maths in here."""

import asyncio
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from service import bodies, errors, openapi
from service.decode import encode_png
from service.engine import Served
from service.lean import LeanRoute
from service.middleware import describe
from service.requests import begin, check_share, in_time, watch, while_connected
from service.schemas import BatchItem, BatchReply, ClassifyQuery, ClassifyReply, ProblemReply, PurifyQuery

router = APIRouter(tags=["images"], route_class=LeanRoute)


@router.post(
    "/classify", summary="Purify and classify an image", responses=openapi.CLASSIFY, openapi_extra=openapi.ONE_IMAGE
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> ClassifyReply:
    """Send the image as the body, or as the field `image` of a form. PNG, JPEG or WebP; the content decides."""
    engine, ask, deadline = await begin(request, query, top_k=query.top_k)
    upload = await in_time(deadline, bodies.read_one(request, engine.settings.max_body_bytes))
    served = await while_connected(request, engine.answer(upload.checked(), ask, deadline))
    _note(request, served)
    return ClassifyReply.of(served, request.state.request_id)


@router.post(
    "/classify/batch", summary="The same for many images", responses=openapi.BATCH, openapi_extra=openapi.MANY_IMAGES
)
async def classify_batch(request: Request, query: Annotated[ClassifyQuery, Query()]) -> BatchReply:
    """Send a form with many parts `image`. Each gets its result or its problem, in their order; a seed holds for all."""
    engine, ask, deadline = await begin(request, query, top_k=query.top_k)
    settings = engine.settings
    reading = bodies.read_many(request, settings.max_body_bytes, settings.max_batch_images)
    uploads = await in_time(deadline, reading)
    check_share(request, engine, ask, len(uploads))

    async def item(index: int, upload: bodies.Upload) -> BatchItem:
        try:
            served = await engine.answer(upload.checked(), ask, deadline)
        except errors.Problem as problem:
            return BatchItem(problem=ProblemReply(**describe(request, problem, f"{request.url.path}#{index}")))
        watch(request, served)
        return BatchItem(result=ClassifyReply.of(served, request.state.request_id))

    async def all_items() -> list[BatchItem]:
        return await asyncio.gather(*(item(index, upload) for index, upload in enumerate(uploads)))

    items = await while_connected(request, all_items())
    failed = sum(each.problem is not None for each in items)
    request.state.facts.update(images=len(items), failed=failed)
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
    engine, ask, deadline = await begin(request, query, want_image=True)
    upload = await in_time(deadline, bodies.read_one(request, engine.settings.max_body_bytes))
    served = await while_connected(request, engine.answer(upload.checked(), ask, deadline))
    _note(request, served)
    image = served.answer.image
    assert image is not None
    png = await engine.in_thread(lambda: encode_png(image))
    return Response(png, media_type="image/png", headers=_headers(ClassifyReply.of(served, request.state.request_id)))


def _note(request: Request, served: Served) -> None:
    """For the request's line in the log."""
    watch(request, served)
    request.state.facts.update(
        batch_size=served.batch_size,
        decode_ms=served.decode_ms,
        queue_ms=served.queue_ms,
        purify_ms=served.answer.purify_ms,
    )


def _headers(reply: ClassifyReply) -> dict[str, str]:
    """The facts of /classify as X-Unperturb-*; numbers as in JSON, nothing where JSON has null, labels percent-encoded."""
    best = reply.predictions[0]
    facts: dict[str, object] = {
        **{name: getattr(reply, name) for name in ("model", "classifier", "purifier", "seed", "weights_sha256")},
        **{"label": quote(best.label), "label_index": best.index, "probability": best.probability},
        **reply.purification.model_dump(exclude={"steps"}),
        **vars(reply.timings),
    }
    return {
        f"X-Unperturb-{name.replace('_', '-').title()}": str(value)
        for name, value in facts.items()
        if value is not None
    }
