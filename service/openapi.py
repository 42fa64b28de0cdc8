"""What the OpenAPI page can't read off the functions: bodies that we read ourselves, and the problems with an example each."""

from typing import Any

from service import errors
from service.bodies import FIELD, IMAGE_TYPES, MULTIPART
from service.decode import FORMATS, MAX_SCANS, MAX_SIDE
from service.schemas import (
    BatchItem,
    BatchReply,
    ClassifyReply,
    PredictionReply,
    ProblemReply,
    PurificationReply,
    TimingsReply,
)

REQUEST_ID = "0f8c1f5e6d3b4c0f9f4e5a7b2c1d0e9f"
_BINARY = {"type": "string", "format": "binary"}

RESULT = ClassifyReply(
    request_id=REQUEST_ID,
    model="cifar10",
    classifier="resnet18-soap-lc",
    purifier="soap-lc",
    predictions=[
        PredictionReply(label="ship", index=8, probability=0.93, votes=1),
        PredictionReply(label="airplane", index=0, probability=0.05, votes=0),
    ],
    purification=PurificationReply(
        epsilon=0.0314,
        linf=0.0314,
        l2=1.2846,
        objective_before=41.87,
        objective_after=0.62,
        suspicion=100.0,
        forward_passes=11,
        backward_passes=5,
    ),
    seed=0,
    weights_sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    addon_sha256=[],
    timings=TimingsReply(decode_ms=0.41, queue_ms=0.06, purify_ms=13.2, batch_size=1),
)


def _form(several: bool) -> dict[str, Any]:
    field = {"type": "array", "items": _BINARY, "minItems": 1} if several else _BINARY
    return {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: field}}}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


ONE_IMAGE = _body({**{kind: {"schema": _BINARY} for kind in IMAGE_TYPES}, MULTIPART: _form(several=False)})
MANY_IMAGES = _body({MULTIPART: _form(several=True)})

_FORM_PROBLEMS: list[errors.Problem] = [
    errors.NoBody(),
    errors.MalformedMultipart("none of the form's 1 part(s) is named `image`; name the file's so"),
    errors.Unauthorized(came=False),
    errors.UploadTooSlow(30_000),
    errors.TooManyBytes(16 * 2**20),
    errors.TooManyImages(1),
    errors.UnsupportedMediaType("text/plain", [*IMAGE_TYPES, MULTIPART]),
    errors.BadParameter("top_k: Input should be greater than or equal to 1", errors=[]),
    errors.UnknownPurifier("unknown purifier 'soup'; known: none, soap-lc", ["none", "soap-lc"]),
    errors.UnknownModel("unknown model 'cifar'; known: cifar10, mnist", ["cifar10", "mnist"]),
    errors.NotOffered("model 'mnist' has no purifier 'soap-lc'; it has: none, soap-dr", ["none", "soap-dr"]),
    errors.Internal(),
    errors.QueueFull("256 images wait, the most that may", 2.3),
    errors.BodiesFull(512 * 2**20),
    errors.RateLimited(5, 2.4),
    errors.NotReady("the catalog is not loaded yet", 2),
]
_IMAGE_PROBLEMS: list[errors.Problem] = [
    errors.NotAnImage(5120, FORMATS),
    errors.BrokenImage("PNG", 2048),
    errors.TooManyPixels((20_000, 20_000), 2**24),
    errors.TooLongSide((1, 20_000), MAX_SIDE),
    errors.TooManyPieces("scans", MAX_SCANS),
    errors.DecodeTooSlow(5_000),
    errors.UnsupportedFormat("GIF", FORMATS),
    errors.DeadlineExceeded(30_000),
]


def problems(path: str, examples: list[errors.Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: each status with its problems as examples."""
    found: dict[int | str, dict[str, Any]] = {}
    for problem in examples:
        value = problem.render(path, REQUEST_ID)
        response = found.setdefault(
            problem.status,
            {
                "description": " / ".join(
                    dict.fromkeys(each.title for each in examples if each.status == problem.status)
                ),
                "content": {"application/problem+json": {"schema": _ref("ProblemReply"), "examples": {}}},
            },
        )
        if problem.status in (429, 503):
            header = {"description": "Seconds until it is worth another try.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": header}
        response["content"]["application/problem+json"]["examples"][problem.code] = {"value": value}
    return found


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model}"}


def _batch_example() -> dict[str, Any]:
    problem = errors.BrokenImage("PNG", 2048).render("/classify/batch#1", REQUEST_ID)
    items = [BatchItem(result=RESULT), BatchItem(problem=ProblemReply(**problem))]
    return BatchReply(request_id=REQUEST_ID, items=items).model_dump()


def _json(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


CLASSIFY = _json(RESULT.model_dump()) | problems("/classify", _FORM_PROBLEMS + _IMAGE_PROBLEMS)
BATCH = _json(_batch_example()) | problems("/classify/batch", _FORM_PROBLEMS)
PURIFY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The purified image at the model's size; the facts of /classify stand in the headers X-Unperturb-*.",
        "content": {"image/png": {"schema": _BINARY}},
    },
    **problems("/purify", _FORM_PROBLEMS + _IMAGE_PROBLEMS),
}
_LISTING_PROBLEMS: list[errors.Problem] = [
    errors.Unauthorized(came=False),
    errors.Internal(),
    errors.NotReady("the catalog is not loaded yet", 2),
]
LISTING = problems("/models", _LISTING_PROBLEMS)
READY = problems("/readyz", [errors.NotReady("warming cifar10/soap-lc", 2)])
