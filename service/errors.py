"""Everything that can go wrong with a request, and its one shape on the wire: RFC 9457 `application/problem+json`.

Problem
|-- BadBody                400
|   |-- NoBody                  no-body               nothing came
|   |-- MalformedMultipart      malformed-multipart   the form can't be read, or has no part `image`
|   |-- MalformedInference      malformed-inference   the JSON or the tensors under /v2 can't be used
|   |-- NotAnImage              not-an-image          no image format begins like this
|   `-- BrokenImage             broken-image          the right format, but damaged or cut off
|-- Unauthorized           401  unauthorized          no API key, or one that isn't known
|-- UnknownCheckpoint      404  unknown-checkpoint    on the admin's port: what there is stands in `known`
|-- UploadTooSlow          408  upload-too-slow
|-- Conflict               409  on the admin's port
|   |-- WrongChecksum           wrong-checksum        the weights are not those that were named
|   `-- DefaultNeeded           default-needed        the default model and purifier would not be served any more
|-- TooLarge               413  more than we are willing to work on, in whatever unit
|   |-- TooManyBytes            too-many-bytes        the body
|   |-- TooManyPixels           too-many-pixels       what the image's header claims
|   |-- TooLongSide             too-long-side         likewise
|   |-- TooManyPieces           too-many-pieces       what the file is cut into: chunks, segments, scans
|   |-- DecodeTooSlow           decode-too-slow       work that no size foretold
|   `-- TooManyImages           too-many-images       the parts of a form
|-- Unsupported            415
|   |-- UnsupportedMediaType    unsupported-media-type  the declared Content-Type can't hold an image
|   `-- UnsupportedFormat       unsupported-format      an image, but of a format that isn't read here
|-- BadParameter           422  bad-parameter
|   `-- UnknownName             what is known stands in `known`
|       |-- UnknownModel        unknown-model
|       |-- UnknownPurifier     unknown-purifier
|       |-- UnknownClassifier   unknown-classifier
|       `-- NotOffered          purifier-not-offered  it exists, but this model hasn't got it
|-- CheckpointRefused      422  checkpoint-refused    on the admin's port: it can't be used; nothing has changed
|-- ClientGone             499  client-gone           never sent, only logged
|-- Internal               500  internal-error        details are in the log, under the request's id
|-- Unavailable            503  with Retry-After
|   |-- QueueFull               queue-full
|   |-- OutOfMemory             out-of-memory         this image, even with few others
|   |-- BodiesFull              bodies-full           too many bytes of other requests are in memory
|   |-- RateLimited        429  rate-limited          this API key's share is used up
|   `-- NotReady                not-ready
|-- DeadlineExceeded       504  deadline-exceeded
`-- HttpProblem            404, 405 and whatever else the framework says

A message says what came, what was expected and what to do. It never repeats bytes of the body.
"""

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar


class Problem(Exception):
    """Base of all: an HTTP status, a stable code, a title that is the same every time and a detail that is not.

    Args:
        detail: what happened this time.
        members: extension members of the problem object (RFC 9457, Sec. 3.2), for programs.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail, self.members = detail, members

    def __reduce__(self) -> tuple[Any, ...]:
        """Helper processes send them; what a class's own `__init__` takes is not kept."""
        return _rebuilt, (type(self), self.args, vars(self))

    def headers(self) -> dict[str, str]:
        """Header fields that go with it."""
        return {}

    def render(self, instance: str, request_id: str) -> dict[str, Any]:
        """The problem object."""
        return {
            "type": f"urn:problem-type:unperturb:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "request_id": request_id,
            **self.members,
        }


def _rebuilt(kind: type[Problem], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> Problem:
    problem = kind.__new__(kind, *arguments)
    vars(problem).update(attributes)
    return problem


class BadBody(Problem):
    """The body is no usable image."""

    status = 400
    code = "bad-body"
    title = "The body is not usable"


class NoBody(BadBody):
    """Nothing came."""

    code = "no-body"
    title = "No image"

    def __init__(self) -> None:
        super().__init__("got 0 bytes; send an image as the body, or as the multipart field `image`")


class MalformedMultipart(BadBody):
    """The form can't be read, or lacks the image."""

    code = "malformed-multipart"
    title = "Malformed multipart form"


class MalformedInference(BadBody):
    """The JSON or the tensors of an inference request can't be used."""

    code = "malformed-inference"
    title = "Malformed inference request"


class NotAnImage(BadBody):
    """No format begins like this."""

    code = "not-an-image"
    title = "Not an image"

    def __init__(self, size: int, formats: Sequence[str]) -> None:
        super().__init__(f"{size} bytes that are not an image; expected {', '.join(formats)}", formats=list(formats))


class BrokenImage(BadBody):
    """Begins like an image, then goes wrong."""

    code = "broken-image"
    title = "Broken image"

    def __init__(self, format: str, size: int) -> None:
        super().__init__(f"{size} bytes that begin as {format} but are damaged or cut off; send the file again")


class Unauthorized(Problem):
    """No API key came, or one that isn't known; which of both may be said, since a key can't be guessed step by step."""

    status = 401
    code = "unauthorized"
    title = "API key needed"

    def __init__(self, came: bool) -> None:
        what = "the API key is not known here" if came else "no API key came"
        super().__init__(f"{what}; send yours as the header X-API-Key, or as Authorization: Bearer")
        self._challenge = 'Bearer realm="unperturb"' + (', error="invalid_token"' if came else "")

    def headers(self) -> dict[str, str]:
        """The challenge that goes with a 401 (RFC 9110, Sec. 11.6.1; RFC 6750, Sec. 3)."""
        return {"WWW-Authenticate": self._challenge}


class UnknownCheckpoint(Problem):
    """No such folder, or nothing of these names is loaded."""

    status = 404
    code = "unknown-checkpoint"
    title = "Unknown checkpoint"

    def __init__(self, detail: str, known: Sequence[str]) -> None:
        super().__init__(f"{detail}: {', '.join(known) or 'none'}", known=list(known))


class UploadTooSlow(Problem):
    """The deadline passed while the body was still coming."""

    status = 408
    code = "upload-too-slow"
    title = "Upload too slow"

    def __init__(self, timeout_ms: float) -> None:
        super().__init__(f"the body was not complete after {timeout_ms:.0f} ms; send a smaller image")

    def headers(self) -> dict[str, str]:
        """The connection ends here: what else comes on it is the rest of the body."""
        return {"Connection": "close"}


class Conflict(Problem):
    """What is served now doesn't allow it; nothing has changed."""

    status = 409
    code = "conflict"
    title = "Conflict"


class WrongChecksum(Conflict):
    """The weights are not those that were named."""

    code = "wrong-checksum"
    title = "Wrong checksum"

    def __init__(self, what: str, found: str, named: str) -> None:
        super().__init__(f"the weights of {what} have the SHA-256 {found}; the request names {named}", found=found)


class DefaultNeeded(Conflict):
    """Requests that name nothing could not be served any more."""

    code = "default-needed"
    title = "The default needs this checkpoint"


class TooLarge(Problem):
    """Some size is above its limit."""

    status = 413
    code = "too-large"
    title = "Too large"


class TooManyBytes(TooLarge):
    """The body."""

    code = "too-many-bytes"
    title = "Too many bytes"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the body is larger than {limit} bytes; send a smaller or better compressed image", limit=limit
        )


class TooManyPixels(TooLarge):
    """What the image's header claims; nothing was decoded."""

    code = "too-many-pixels"
    title = "Too many pixels"

    def __init__(self, size: tuple[int, int] | None, limit: int) -> None:
        came = f"{size[0]}x{size[1]} pixels" if size else "far too many pixels"
        super().__init__(
            f"the image claims {came}; at most {limit} pixels are decoded: scale it down first", limit=limit
        )


class TooLongSide(TooLarge):
    """What the image's header claims, again."""

    code = "too-long-side"
    title = "Too long a side"

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        super().__init__(
            f"the image claims {size[0]}x{size[1]} pixels; at most {limit} a side: scale it down first", limit=limit
        )


class TooManyPieces(TooLarge):
    """The file is cut into so many pieces that reading them is the attack."""

    code = "too-many-pieces"
    title = "Too many pieces"

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"the file has more than {limit} {what}; save the image again", limit=limit)


class DecodeTooSlow(TooLarge):
    """Decoding took too long.

    413 rather than 408, which blames the upload, or 422, which blames what was asked: RFC 9110, Sec. 15.5.14 has it for
    content that is more than the server is willing to process.
    """

    code = "decode-too-slow"
    title = "Decoding takes too long"

    def __init__(self, limit_ms: float) -> None:
        super().__init__(f"the image was not decoded after {limit_ms:.0f} ms; send a smaller one, or save it again")


class TooManyImages(TooLarge):
    """The parts of a form."""

    code = "too-many-images"
    title = "Too many images"

    def __init__(self, limit: int) -> None:
        fix = "send several to /classify/batch" if limit == 1 else "send the rest in another request"
        super().__init__(f"more than {limit} part(s) `image`; {fix}", limit=limit)


class Unsupported(Problem):
    """We don't read this kind of thing."""

    status = 415
    code = "unsupported"
    title = "Unsupported"


class UnsupportedMediaType(Unsupported):
    """The declared Content-Type can't hold an image."""

    code = "unsupported-media-type"
    title = "Unsupported media type"

    def __init__(self, came: str, expected: Sequence[str]) -> None:
        super().__init__(f"Content-Type {came[:80]!r}; expected one of {', '.join(expected)}", expected=list(expected))


class UnsupportedFormat(Unsupported):
    """An image, but of another format."""

    code = "unsupported-format"
    title = "Unsupported image format"

    def __init__(self, came: str, formats: Sequence[str]) -> None:
        super().__init__(f"the image is {came}; convert it to one of {', '.join(formats)}", formats=list(formats))


class BadParameter(Problem):
    """A query parameter has a wrong value, or doesn't exist."""

    status = 422
    code = "bad-parameter"
    title = "Bad parameter"

    @classmethod
    def from_errors(cls, errors: Sequence[Mapping[str, Any]]) -> "BadParameter":
        """From pydantic's list of errors; the values that came are left out."""
        found = [{"parameter": ".".join(map(str, error["loc"][1:])), "message": error["msg"]} for error in errors]
        return cls("; ".join(f"{each['parameter']}: {each['message']}" for each in found), errors=found)


class UnknownName(BadParameter):
    """A name that isn't served; `known` lists those that are."""

    def __init__(self, detail: str, known: Sequence[str]) -> None:
        super().__init__(detail, known=list(known))


class UnknownModel(UnknownName):
    """No such model."""

    code = "unknown-model"
    title = "Unknown model"


class UnknownPurifier(UnknownName):
    """No model has such a purifier."""

    code = "unknown-purifier"
    title = "Unknown purifier"


class UnknownClassifier(UnknownName):
    """The model has no such classifier."""

    code = "unknown-classifier"
    title = "Unknown classifier"


class NotOffered(UnknownName):
    """The purifier exists, but not for this model or classifier."""

    code = "purifier-not-offered"
    title = "Purifier not offered by this model"


class CheckpointRefused(Problem):
    """A checkpoint that can't be used; what was served before still is."""

    status = 422
    code = "checkpoint-refused"
    title = "Checkpoint refused"


class ClientGone(Problem):
    """The client left before its answer; 499 is what proxies log for this."""

    status = 499
    code = "client-gone"
    title = "The client closed the connection"

    def __init__(self) -> None:
        super().__init__("the client closed the connection before the answer was ready")


class Internal(Problem):
    """Our fault. The cause is logged, not sent."""

    def __init__(self) -> None:
        super().__init__("something failed here; the log has the details under this request_id")


class Unavailable(Problem):
    """Not now; `retry_after_s` says when."""

    status = 503
    code = "unavailable"
    title = "Not available now"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        super().__init__(f"{detail}; try again in {self.retry_after_s} s", retry_after_s=self.retry_after_s)

    def headers(self) -> dict[str, str]:
        """Retry-After, in whole seconds (RFC 9110, Sec. 10.2.3)."""
        return {"Retry-After": str(self.retry_after_s)}


class QueueFull(Unavailable):
    """As much waits as may. Some clients and proxies want a 429 for this: a setting."""

    code = "queue-full"
    title = "The queue is full"

    def __init__(self, detail: str, retry_after_s: float, status: int = 503) -> None:
        super().__init__(detail, retry_after_s)
        self._status = status

    def render(self, instance: str, request_id: str) -> dict[str, Any]:
        """See `Problem`."""
        return {**super().render(instance, request_id), "status": self._status}


class OutOfMemory(Unavailable):
    """The device had no room."""

    code = "out-of-memory"
    title = "Out of memory"


class BodiesFull(Unavailable):
    """The bodies of other requests take as much memory as they may."""

    code = "bodies-full"
    title = "Too much is being received"

    def __init__(self, limit: int) -> None:
        super().__init__(f"other requests' bodies fill the {limit} bytes that are set aside for them", retry_after_s=1)


class RateLimited(Unavailable):
    """This API key has used up its share."""

    status = 429
    code = "rate-limited"
    title = "Rate limit reached"

    def __init__(self, rate: float, retry_after_s: float) -> None:
        super().__init__(f"this API key may send {rate:g} images a second", retry_after_s)


class NotReady(Unavailable):
    """Starting, stopping, or broken."""

    code = "not-ready"
    title = "Not ready"


class DeadlineExceeded(Problem):
    """No answer in time."""

    status = 504
    code = "deadline-exceeded"
    title = "Deadline exceeded"

    def __init__(self, timeout_ms: float) -> None:
        super().__init__(
            f"no answer within {timeout_ms:.0f} ms; allow more time, or choose a cheaper purifier (GET /purifiers)"
        )


class HttpProblem(Problem):
    """What the framework says: no such path, no such method."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        phrase = HTTPStatus(status).phrase
        super().__init__(detail)
        self._status, self._phrase, self._headers = status, phrase, dict(headers or {})

    def headers(self) -> dict[str, str]:
        """What the framework wants sent, such as Allow."""
        return self._headers

    def render(self, instance: str, request_id: str) -> dict[str, Any]:
        """See `Problem`; the type is about:blank, which means no more than the status does (RFC 9457, Sec. 4.2.1)."""
        named = {"type": "about:blank", "title": self._phrase, "status": self._status}
        return {**super().render(instance, request_id), **named, "code": self._phrase.lower().replace(" ", "-")}
