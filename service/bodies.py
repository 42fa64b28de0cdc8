"""Request bodies to image files, limited while they stream: raw, or as the field `image` of a multipart form."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from service.errors import (
    ClientGone,
    MalformedMultipart,
    NoBody,
    TooManyBytes,
    TooManyImages,
    UnsupportedMediaType,
)

FIELD = "image"
MULTIPART = "multipart/form-data"
IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")

# `curl --data-binary @cat.png` declares a form that it doesn't send; the content tells better.
_UNDECLARED = ("", "application/octet-stream", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Upload:
    """An image file as it came, with the media type that its sender claims."""

    data: bytes
    media_type: str

    def checked(self) -> bytes:
        """The bytes, if the claim allows them to be an image; which format it is, the content says.

        Raises:
            UnsupportedMediaType, NoBody.
        """
        if not (self.media_type in _UNDECLARED or self.media_type.startswith("image/")):
            raise UnsupportedMediaType(self.media_type, [*IMAGE_TYPES, MULTIPART])
        if not self.data:
            raise NoBody
        return self.data


async def read_one(request: Request, max_bytes: int) -> Upload:
    """The image of a request, raw or in a form.

    Raises:
        UnsupportedMediaType, TooManyBytes, TooManyImages, MalformedMultipart, ClientGone.
    """
    media_type, boundary = _declared(request.headers.get("content-type", ""))
    if media_type == MULTIPART:
        return (await _read_form(request, boundary, max_bytes, max_images=1))[0]
    Upload(b"?", media_type).checked()  # a type that can't be right is refused before its body is read
    return Upload(await read_whole(request, max_bytes), media_type)


async def read_many(request: Request, max_bytes: int, max_images: int) -> list[Upload]:
    """The images of a form, in order; at least one.

    Raises:
        UnsupportedMediaType, TooManyBytes, TooManyImages, MalformedMultipart, ClientGone.
    """
    media_type, boundary = _declared(request.headers.get("content-type", ""))
    if media_type != MULTIPART:
        raise UnsupportedMediaType(media_type, [MULTIPART])
    return await _read_form(request, boundary, max_bytes, max_images)


async def read_whole(request: Request, max_bytes: int) -> bytes:
    """The body as it is, whatever it declares to be.

    Raises:
        TooManyBytes, ClientGone.
    """
    return b"".join([chunk async for chunk in _chunks(request, max_bytes)])


def _declared(content_type: str) -> tuple[str, bytes | None]:
    media_type, options = parse_options_header(content_type)
    return media_type.decode("latin-1").lower(), options.get(b"boundary")


async def _chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes, until it is over the limit; a declared length is believed only when it is too large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 15 or int(length) > max_bytes):
        raise TooManyBytes(max_bytes)
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                raise TooManyBytes(max_bytes)
            yield chunk
    except ClientDisconnect as error:
        raise ClientGone from error


async def _read_form(request: Request, boundary: bytes | None, max_bytes: int, max_images: int) -> list[Upload]:
    if not boundary:
        raise MalformedMultipart("the Content-Type has no boundary; let the HTTP client set this header itself")
    form = _Form(boundary, max_images)
    received = 0
    async for chunk in _chunks(request, max_bytes):
        form.feed(chunk)
        received += len(chunk)
    if received == 0:
        raise NoBody
    return form.finish()


class _Form:
    """Collects the parts `image` of a form, with or without a file name; other parts are passed over.

    The framework's own parser spools files to disk, reads parts without a file name as text and counts after the fact.
    """

    def __init__(self, boundary: bytes, max_images: int) -> None:
        self._images: list[Upload] = []
        self._max_images, self._parts, self._complete = max_images, 0, False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise _malformed() from error

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed() from error

    def finish(self) -> list[Upload]:
        """The images, after the last byte."""
        if not self._complete:
            raise MalformedMultipart("the form ends before its closing boundary; send it again")
        if not self._images:
            raise MalformedMultipart(f"none of the form's {self._parts} part(s) is named `{FIELD}`; name the file's so")
        return self._images

    def _begin(self) -> None:
        self._parts += 1
        self._name, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._wanted = False

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._wanted = options.get(b"name") == FIELD.encode()
        if self._wanted and len(self._images) == self._max_images:
            raise TooManyImages(self._max_images)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._data += data[start:end]

    def _part_end(self) -> None:
        if self._wanted:
            media_type, _ = parse_options_header(self._headers.get(b"content-type", b""))
            self._images.append(Upload(bytes(self._data), media_type.decode("latin-1").lower()))

    def _end(self) -> None:
        self._complete = True


def _malformed() -> MalformedMultipart:
    return MalformedMultipart(
        "the form can't be parsed; let the HTTP client build it, as `curl -F image=@cat.png` does"
    )
