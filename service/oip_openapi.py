"""The Open Inference Protocol on the OpenAPI page: the body that we read ourselves, and errors in the protocol's shape."""

from http import HTTPStatus
from typing import Any

from service import errors
from service.decode import FORMATS
from service.oip_schemas import ErrorReply, InferRequest, InferResponse, InputTensor, OutputTensor, OutputWish

Responses = dict[int | str, dict[str, Any]]

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_SHAPES = "expected BYTES of shape [N], image files, or FP32 of shape [N, 3, 32, 32], values in [0, 1]"
# A whole PNG, red, so that the example can be sent as it is.
_ONE_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4IScHAAK2AQU0pnWqAAAAAElFTkSuQmCC"

REQUEST = InferRequest(
    id="42",
    parameters={"purifier": "soap-lc", "seed": 1},
    inputs=[InputTensor(name="image", shape=[1], datatype="BYTES", data=[_ONE_PIXEL])],
    outputs=[OutputWish(name="label"), OutputWish(name="probabilities")],
)
RESPONSE = InferResponse(
    model_name="cifar10",
    model_version="9f86d081884c",
    id="42",
    parameters={"classifier": "resnet18-soap-lc", "purifier": "soap-lc"},
    outputs=[
        OutputTensor(name="label", datatype="BYTES", shape=[1], data=["ship"]),
        OutputTensor(
            name="probabilities",
            datatype="FP32",
            shape=[1, 10],
            data=[0.0521, 0.0031, 0.0012, 0.0017, 0.0008, 0.0009, 0.0011, 0.0027, 0.9312, 0.0052],
        ),
    ],
)


def responses(problems: list[errors.Problem]) -> Responses:
    """Each status with its errors as examples."""
    found: Responses = {}
    for problem in problems:
        rendered = problem.render("/v2", "")
        status = rendered["status"]
        response = found.setdefault(
            status,
            {
                "model": ErrorReply,
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"examples": {}}},
            },
        )
        if status == 503:
            header = {"description": "Seconds until it is worth another try.", "schema": {"type": "integer"}}
            response["headers"] = {"Retry-After": header}
        example = {"value": {"error": problem.detail}}
        response["content"]["application/json"]["examples"][rendered["code"]] = example
    return found


def _request_schema() -> dict[str, Any]:
    """Of `InferRequest`, in one piece: the page's components hold only what the framework reads itself."""
    schema = InferRequest.model_json_schema()
    definitions = schema.pop("$defs")

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(each) for each in part]
        if not isinstance(part, dict):
            return part
        named = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else {}
        return {key: whole(value) for key, value in {**named, **part}.items() if key != "$ref"}

    found: dict[str, Any] = whole(schema)
    return found


ERRORS = responses([errors.Internal()])
NOT_READY = responses([errors.NotReady("warming cifar10/soap-lc", 2)])
MODEL = NOT_READY | responses(
    [
        errors.HttpProblem(404, "unknown model 'cifar'; known: cifar10, mnist"),
        errors.BadParameter("model: String should have at most 64 characters", errors=[]),
    ]
)
INFER: Responses = {
    200: {
        "description": "The outputs, in the JSON or behind it.",
        "content": {
            "application/json": {"example": RESPONSE.model_dump(exclude_none=True)},
            "application/octet-stream": _BINARY,
        },
    },
    **MODEL,
    **responses(
        [
            errors.MalformedInference(f"image: FP32 of shape [1, 3, 28, 28]; {_SHAPES}"),
            errors.MalformedInference("image: values from 0 to 255; expected 0 to 1: divide 8-bit values by 255"),
            errors.NotAnImage(5120, FORMATS),
            errors.UploadTooSlow(30_000),
            errors.TooManyBytes(16 * 2**20),
            errors.TooLarge("image: 33 elements; expected 1 to 32: send the rest in another request"),
            errors.Unsupported("Content-Encoding 'gzip'; expected none: send the body uncompressed"),
            errors.UnsupportedFormat("GIF", FORMATS),
            errors.BadParameter("seed: Input should be greater than or equal to 0", errors=[]),
            errors.UnknownPurifier("unknown purifier 'soup'; known: none, soap-lc", ["none", "soap-lc"]),
            errors.QueueFull("256 images wait, the most that may", 2.3),
            errors.NotReady("the catalog is not loaded yet", 2),
            errors.DeadlineExceeded(30_000),
        ]
    ),
}
INFER_BODY = {
    "requestBody": {
        "required": True,
        "description": "The JSON object; binary tensors may follow it, see Inference-Header-Content-Length.",
        "content": {
            "application/json": {
                "schema": _request_schema(),
                "example": REQUEST.model_dump(exclude_none=True, exclude_defaults=True),
            },
            "application/octet-stream": _BINARY,
        },
    },
}
