"""The Open Inference Protocol, version 2, under /v2: clients of KServe and Triton classify images here as anywhere else.

A version of a model is one classifier's weights, named by the first 12 hex digits of their SHA-256. A path with a version
pins these weights; a path without takes the classifier that is best with the purifier, as POST /classify does.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from fastapi import APIRouter, Path, Request, Response
from pydantic import ValidationError
from torch import Tensor

from models.checkpoint import Card, InputSpec
from service import bodies, errors, oip_openapi, tensors
from service.engine import Ask, Deadline, Engine, Served
from service.oip_schemas import (
    IndexEntry,
    InferQuery,
    InferRequest,
    InferResponse,
    InputTensor,
    LiveReply,
    ModelMetadataReply,
    ModelReadyReply,
    OutputWish,
    ReadyReply,
    ServerReply,
    TensorReply,
)
from service.requests import begin, check_share, in_time, watch, while_connected

INPUT = "image"
PURIFIED = "purified"
EXTENSIONS = ["binary_tensor_data", "parameters"]
PLATFORM = "pytorch_safetensors"

Model = Annotated[str, Path(max_length=64, description="See GET /models.")]
Version = Annotated[str, Path(max_length=64, description="One of the model's `versions`.")]

router = APIRouter(prefix="/v2", tags=["open inference protocol"], responses=oip_openapi.ERRORS)


class _Column(NamedTuple):
    """An output: numpy's type, the shape of one image's part, and where an answer has it."""

    dtype: str
    shape: Callable[[Card], tuple[int, ...]]
    value: Callable[[Served], Any]


def _scalar(card: Card) -> tuple[int, ...]:
    return ()


def _probabilities(served: Served) -> list[float]:
    """In the order of the labels."""
    return [each.probability for each in sorted(served.predictions, key=lambda each: each.index)]


def _image(served: Served) -> Any:
    assert served.answer.image is not None
    return served.answer.image.numpy()


COLUMNS = {
    "label": _Column("O", _scalar, lambda served: served.predictions[0].label),
    "label_index": _Column("i8", _scalar, lambda served: served.predictions[0].index),
    "probabilities": _Column("f4", lambda card: (len(card.labels),), _probabilities),
    "epsilon": _Column("f4", _scalar, lambda served: served.answer.epsilon),
    "suspicion": _Column("f4", _scalar, lambda served: served.answer.suspicion),  # numpy makes NaN of None
    "seed": _Column("i8", _scalar, lambda served: served.seed),
    PURIFIED: _Column("f4", lambda card: _shape(card.input), _image),
}


@router.get("", summary="What this server is")
async def server_metadata() -> ServerReply:
    """Name, version and the protocol's extensions that are understood."""
    return ServerReply(name="unperturb", version=installed_version("unperturb"), extensions=EXTENSIONS)


@router.get("/health/live", summary="Is the process up?")
async def server_live() -> LiveReply:
    """As GET /livez."""
    return LiveReply()


@router.get("/health/ready", summary="Can it answer?", responses=oip_openapi.NOT_READY)
async def server_ready(request: Request) -> ReadyReply:
    """As GET /readyz."""
    _check_ready(request)
    return ReadyReply()


@router.post("/repository/index", summary="All models and versions", responses=oip_openapi.NOT_READY)
async def repository_index(request: Request) -> list[IndexEntry]:
    """Triton's list, of what is ready; the body is not looked at. Nothing is loaded or unloaded through this protocol."""
    _check_ready(request)
    catalog = request.app.state.engine.catalog
    found = {(offer.model, version_of(offer.card)): None for offer in catalog.offers()}
    return [IndexEntry(name=model, version=version, state="READY", reason="") for model, version in found]


@router.get("/models/{model}", summary="What a model takes and gives", responses=oip_openapi.MODEL)
async def model_metadata(request: Request, model: Model) -> ModelMetadataReply:
    """Either form of the input `image` will do: encoded files, or values of exactly the model's size."""
    return _metadata(request, model)


@router.get("/models/{model}/versions/{version}", summary="The same of one version", responses=oip_openapi.MODEL)
async def model_version_metadata(request: Request, model: Model, version: Version) -> ModelMetadataReply:
    """A version is one classifier's weights."""
    return _metadata(request, model, version)


@router.get("/models/{model}/ready", summary="Can a model answer?", responses=oip_openapi.MODEL)
async def model_ready(request: Request, model: Model) -> ModelReadyReply:
    """It can as soon as the server can."""
    return _ready(request, model)


@router.get("/models/{model}/versions/{version}/ready", summary="Can a version answer?", responses=oip_openapi.MODEL)
async def model_version_ready(request: Request, model: Model, version: Version) -> ModelReadyReply:
    """It can as soon as the server can."""
    return _ready(request, model, version)


@router.post(
    "/models/{model}/infer",
    summary="Purify and classify images",
    response_model=InferResponse,
    responses=oip_openapi.INFER,
    openapi_extra=oip_openapi.INFER_BODY,
)
async def infer(request: Request, model: Model) -> Response:
    """`parameters` are those of POST /classify. Every image is answered for itself; if one fails, the request does."""
    return await _infer(request, model)


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="The same with one version",
    response_model=InferResponse,
    responses=oip_openapi.INFER,
    openapi_extra=oip_openapi.INFER_BODY,
)
async def infer_version(request: Request, model: Model, version: Version) -> Response:
    """`parameters` are those of POST /classify. Every image is answered for itself; if one fails, the request does."""
    return await _infer(request, model, version)


def version_of(card: Card) -> str:
    """The version under which a classifier is served."""
    return card.weights_sha256[:12]


def _check_ready(request: Request) -> None:
    reason = request.app.state.engine.unready()
    if reason is not None:
        raise errors.NotReady(reason, retry_after_s=2)


def _cards(engine: Engine, model: str, version: str | None) -> dict[str, Card]:
    """The cards of the model's classifiers, or of those with this version, by classifier.

    Raises:
        errors.HttpProblem: 404, there is none.
        errors.NotReady.
    """
    cards = {offer.classifier: offer.card for offer in engine.catalog.offers() if offer.model == model}
    if not cards:
        raise errors.HttpProblem(404, f"unknown model {model!r}; known: {', '.join(engine.catalog.models())}")
    found = {name: card for name, card in cards.items() if version in (None, version_of(card))}
    if not found:
        known = ", ".join(map(version_of, cards.values()))
        raise errors.HttpProblem(404, f"model {model!r} has no version {version!r}; it has: {known}")
    return found


def _ready(request: Request, model: str, version: str | None = None) -> ModelReadyReply:
    _cards(request.app.state.engine, model, version)
    _check_ready(request)
    return ModelReadyReply(name=model)


def _metadata(request: Request, model: str, version: str | None = None) -> ModelMetadataReply:
    engine: Engine = request.app.state.engine
    cards = _cards(engine, model, version)
    card = cards.get(_default_classifier(engine, model)) or next(iter(cards.values()))
    inputs = [("BYTES", [-1]), ("FP32", [-1, *_shape(card.input)])]
    outputs = [
        TensorReply(name=name, datatype=tensors.datatype(column.dtype), shape=[-1, *column.shape(card)])
        for name, column in COLUMNS.items()
    ]
    return ModelMetadataReply(
        name=model,
        versions=list(dict.fromkeys(map(version_of, cards.values()))),
        platform=PLATFORM,
        inputs=[TensorReply(name=INPUT, datatype=datatype, shape=shape) for datatype, shape in inputs],
        outputs=outputs,
    )


def _default_classifier(engine: Engine, model: str) -> str:
    """The one that answers a request without parameters; "" where the default purifier is none of this model's."""
    try:
        return engine.choose(model).classifier
    except errors.UnknownName:
        return ""


def _shape(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width


@dataclass(frozen=True)
class _Target:
    """What a path names."""

    model: str
    version: str | None
    cards: dict[str, Card]


async def _infer(request: Request, model: str, version: str | None = None) -> Response:
    """What can be refused before the body is read, is."""
    engine: Engine = request.app.state.engine
    settings = engine.settings
    target = _Target(model, version, _cards(engine, model, version))
    if encoding := request.headers.get("content-encoding"):
        raise errors.Unsupported(f"Content-Encoding {encoding[:80]!r}; expected none: send the body uncompressed")
    reading = bodies.read_whole(request, settings.max_body_bytes)
    body = await in_time(Deadline(request.state.arrived, settings.timeout_ms), reading)
    return await while_connected(request, _answer(request, target, body))


async def _answer(request: Request, target: _Target, body: bytes) -> Response:
    engine: Engine = request.app.state.engine
    header_length = request.headers.get(tensors.HEADER_LENGTH)
    asked, binary = await engine.in_thread(lambda: tensors.parse(body, header_length))
    wishes, query = _wishes(asked), _query(asked, target)
    want_image = any(wish.name == PURIFIED for wish in wishes)
    _, ask, deadline = await begin(request, query, want_image=want_image)
    ask = replace(ask, top_k=len(ask.offer.card.labels))
    limit = engine.settings.max_batch_images
    images = await engine.in_thread(lambda: _images(asked.inputs[0], binary, ask.offer.card.input, limit))
    request.state.facts.update(images=len(images))
    check_share(request, engine, ask, len(images))
    served = await _all(engine, images, ask, deadline)
    for each in served:
        watch(request, each)
    return await engine.in_thread(lambda: _response(asked, query, wishes, served))


def _wishes(asked: InferRequest) -> list[OutputWish]:
    wishes = asked.outputs or [OutputWish(name=name) for name in COLUMNS if name != PURIFIED]
    names = [wish.name for wish in wishes]
    for name in names:
        if name not in COLUMNS:
            raise errors.MalformedInference(f"unknown output {name!r}; known: {', '.join(COLUMNS)}")
    if len(set(names)) < len(names):
        raise errors.MalformedInference(f"an output is named twice in: {', '.join(names)}")
    return wishes


def _query(asked: InferRequest, target: _Target) -> InferQuery:
    """The request's parameters, with what the path says about them."""
    try:
        query = InferQuery.model_validate(asked.parameters)
    except ValidationError as error:
        found = [{**each, "loc": ("parameters", *each["loc"])} for each in error.errors()]
        raise errors.BadParameter.from_errors(found) from error
    if query.model not in (None, target.model):
        raise errors.BadParameter(f"model: {query.model!r}, but the path says {target.model!r}; leave it out")
    classifier = query.classifier
    if target.version is not None:
        classifier = classifier or next(iter(target.cards))
        if classifier not in target.cards:
            fix = f"version {target.version!r} is {', '.join(target.cards)}; leave one of both out"
            raise errors.BadParameter(f"classifier: {classifier!r}, but {fix}")
    return query.model_copy(update={"model": target.model, "classifier": classifier})


def _images(tensor: InputTensor, binary: memoryview, spec: InputSpec, limit: int) -> Sequence[bytes | Tensor]:
    """The elements of the one input: image files, or (C, H, W) float32 in [0, 1] of the model's size."""
    size = list(_shape(spec))
    if tensor.name != INPUT:
        raise errors.MalformedInference(f"unknown input {tensor.name!r}; expected {INPUT!r}")
    if (tensor.datatype, tensor.shape[1:]) not in [("BYTES", []), ("FP32", size)] or not tensor.shape:
        expected = (
            f"BYTES of shape [N], image files, or FP32 of shape [N, {', '.join(map(str, size))}], values in [0, 1]"
        )
        raise errors.MalformedInference(f"{INPUT}: {tensor.datatype} of shape {tensor.shape}; expected {expected}")
    if not 1 <= tensor.shape[0] <= limit:
        kind = errors.TooLarge if tensor.shape[0] else errors.MalformedInference
        raise kind(f"{INPUT}: {tensor.shape[0]} elements; expected 1 to {limit}: send the rest in another request")
    if tensor.datatype == "BYTES":
        return tensors.read_bytes(tensor, binary)
    return torch.from_numpy(tensors.read_floats(tensor, binary)).unbind()


async def _all(engine: Engine, images: Sequence[bytes | Tensor], ask: Ask, deadline: Deadline) -> list[Served]:
    """Each image is an item of the queue. The first that fails withdraws the others: the protocol knows no half answer."""
    tasks = [asyncio.ensure_future(_one(engine, i, image, ask, deadline)) for i, image in enumerate(images)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _one(engine: Engine, index: int, image: bytes | Tensor, ask: Ask, deadline: Deadline) -> Served:
    try:
        return await engine.answer(image, ask, deadline)
    except errors.Problem as problem:
        problem.detail = f"{INPUT}[{index}]: {problem.detail}"
        raise


def _response(
    asked: InferRequest, query: InferQuery, wishes: Sequence[OutputWish], served: Sequence[Served]
) -> Response:
    outputs = []
    for name, wish in ((wish.name, wish.parameters.binary_data) for wish in wishes):
        values = np.array([COLUMNS[name].value(each) for each in served], COLUMNS[name].dtype)
        outputs.append(tensors.Output(name, values, query.binary_data_output if wish is None else wish))
    offer = served[0].offer
    head = {
        "model_name": offer.model,
        "model_version": version_of(offer.card),
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": {"classifier": offer.classifier, "purifier": offer.purifier},
    }
    body, json_length = tensors.encode(head, outputs)
    if json_length is None:
        return Response(body, media_type="application/json")
    headers = {tensors.HEADER_LENGTH: str(json_length)}
    return Response(body, media_type="application/octet-stream", headers=headers)
