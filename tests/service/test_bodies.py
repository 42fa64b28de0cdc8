import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from service.bodies import Upload, read_many, read_one
from service.errors import (
    ClientGone,
    MalformedMultipart,
    NoBody,
    Problem,
    TooManyBytes,
    TooManyImages,
    UnsupportedMediaType,
)

BOUNDARY = b"frontier"
FORM = "multipart/form-data; boundary=frontier"


class Sender:
    """Sends chunks as a server would hand them over, and counts how many were asked for."""

    def __init__(self, *chunks: bytes, leaves: bool = False) -> None:
        self._chunks, self._leaves, self.asked = list(chunks), leaves, 0

    async def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self._leaves and not self._chunks:
            return {"type": "http.disconnect"}
        chunk = self._chunks.pop(0) if self._chunks else b""
        return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks) or self._leaves}


def request(sender: Sender, content_type: str = "image/png", **headers: str) -> Request:
    given = {"content-type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, sender)


def part(data: bytes, name: str = "image", more: str = '; filename="x.png"', media_type: str = "image/png") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\nContent-Type: {media_type}\r\n\r\n'
    return b"--" + BOUNDARY + b"\r\n" + head.encode() + data + b"\r\n"


END = b"--" + BOUNDARY + b"--\r\n"


def one(sender: Sender, content_type: str = "image/png", max_bytes: int = 1000, **headers: str) -> Upload:
    return asyncio.run(read_one(request(sender, content_type, **headers), max_bytes))


def many(sender: Sender, content_type: str = FORM, max_bytes: int = 1000, max_images: int = 3) -> list[Upload]:
    return asyncio.run(read_many(request(sender, content_type), max_bytes, max_images))


def test_declared_length_above_the_limit_is_refused_before_a_byte_is_read() -> None:
    sender = Sender(b"x")
    with pytest.raises(TooManyBytes):
        one(sender, content_length="1001")
    assert sender.asked == 0


@pytest.mark.parametrize("length", ["9" * 5000, "1001"])
def test_absurd_length_is_refused(length: str) -> None:
    with pytest.raises(TooManyBytes):
        one(Sender(b"x"), content_length=length)


@pytest.mark.parametrize("content_type", ["image/png", FORM])
def test_body_without_a_length_is_refused_where_it_passes_the_limit(content_type: str) -> None:
    sender = Sender(*[part(b"x" * 400)] * 100)
    with pytest.raises(TooManyBytes):
        one(sender, content_type)
    assert sender.asked <= 3


def test_lie_about_the_length_does_not_help() -> None:
    with pytest.raises(TooManyBytes):
        one(Sender(*[b"x" * 400] * 100), content_length="10")


def test_body_of_exactly_the_limit_is_read() -> None:
    assert one(Sender(b"x" * 600, b"y" * 400)).data == b"x" * 600 + b"y" * 400


def test_client_that_leaves_while_sending_is_gone() -> None:
    with pytest.raises(ClientGone):
        one(Sender(b"x", leaves=True))


def test_wrong_media_type_is_refused_before_a_byte_is_read() -> None:
    sender = Sender(b"x")
    with pytest.raises(UnsupportedMediaType):
        one(sender, "text/html")
    assert sender.asked == 0


@pytest.mark.parametrize("more", ['; filename="x.png"', ""])
def test_form_gives_the_bytes_with_or_without_a_file_name(more: str) -> None:
    upload = one(Sender(part(b"\x89PNG\r\n--fron\xff", more=more) + END), FORM)
    assert upload == Upload(b"\x89PNG\r\n--fron\xff", "image/png")


def test_form_may_come_byte_by_byte() -> None:
    body = part(b"a\r\nb") + END
    assert one(Sender(*[bytes([byte]) for byte in body]), FORM).data == b"a\r\nb"


def test_other_fields_are_passed_over() -> None:
    assert one(Sender(part(b"x", name="note") + part(b"y") + END), FORM).data == b"y"


def test_form_without_an_image_says_what_it_has() -> None:
    with pytest.raises(MalformedMultipart, match=r"none of the form's 1 part\(s\) is named `image`"):
        one(Sender(part(b"x", name="file") + END), FORM)


def test_two_images_for_one_point_to_the_batch() -> None:
    with pytest.raises(TooManyImages, match="/classify/batch"):
        one(Sender(part(b"x") + part(b"y") + END), FORM)


def test_batch_keeps_the_order() -> None:
    assert [each.data for each in many(Sender(part(b"a"), part(b"b"), part(b"c") + END))] == [b"a", b"b", b"c"]


def test_more_images_than_allowed_are_refused() -> None:
    with pytest.raises(TooManyImages):
        many(Sender(part(b"a") * 4 + END))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", part(b"x") + END),
        ("multipart/form-data; boundary=" + "x" * 1000, part(b"x") + END),
        (FORM, b"this is no form"),
        (FORM, part(b"x")),
        (FORM, part(b"x")[:40]),
        (FORM, part(b"x") + part(b"y", name="note")[:-2]),
        (FORM, b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END),
        (FORM, b"--frontier\r\n\xff\xfe: \x00\r\n\r\nx\r\n" + END),
        (FORM, END),
    ],
)
def test_malformed_form_is_a_problem(content_type: str, body: bytes) -> None:
    with pytest.raises(MalformedMultipart):
        one(Sender(body), content_type)


def test_empty_form_is_no_body() -> None:
    with pytest.raises(NoBody):
        one(Sender(b""), FORM)


def test_batch_wants_a_form() -> None:
    with pytest.raises(UnsupportedMediaType, match="multipart/form-data"):
        many(Sender(b"x"), "image/png")


@pytest.mark.parametrize("media_type", ["", "image/png", "image/x-anything", "application/octet-stream"])
def test_claims_that_may_be_images_pass(media_type: str) -> None:
    assert Upload(b"x", media_type).checked() == b"x"


@pytest.mark.parametrize("upload", [Upload(b"", "image/png"), Upload(b"x", "text/plain")])
def test_empty_or_wrongly_declared_upload_is_a_problem(upload: Upload) -> None:
    with pytest.raises(Problem):
        upload.checked()
