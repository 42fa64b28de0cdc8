"""What a hostile file can't do to the others, and what never gets out."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.catalog import Catalog
from service import decode as decoding
from service.decode import decode
from service.settings import Settings


class SlowDecode:
    """Decodes what begins with `slow` only when it is released."""

    def __init__(self) -> None:
        self.running, self.released = threading.Event(), threading.Event()

    def __call__(self, data: bytes, *arguments: Any, **options: Any) -> Any:
        if data.startswith(b"slow"):
            self.running.set()
            assert self.released.wait(10)
        return decode(data.removeprefix(b"slow"), *arguments, **options)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDecode]:
    found = SlowDecode()
    monkeypatch.setattr(decoding, "decode", found)
    yield found
    found.released.set()


def test_slow_decoding_is_given_up_and_the_others_go_on(run: Any, catalog: Catalog, png: Any, slow: SlowDecode) -> None:
    with run(Settings(decode_timeout_ms=20, decode_threads=2), catalog) as api:
        api.wait_ready()
        given_up = api.post("/classify", content=b"slow" + png())
        assert (given_up.status_code, given_up.json()["code"]) == (413, "decode-too-slow")
        assert "20 ms" in given_up.json()["detail"]
        assert api.post("/classify", content=png()).status_code == 200


def test_thread_that_was_given_up_keeps_its_place(run: Any, catalog: Catalog, png: Any, slow: SlowDecode) -> None:
    with run(Settings(decode_timeout_ms=20, decode_threads=1, timeout_ms=300), catalog) as api:
        api.wait_ready()
        assert api.post("/classify", content=b"slow" + png()).status_code == 413
        large = png(size=(80, 80))
        assert api.post("/classify", content=large).status_code == 504  # it waited in vain
        assert api.post("/classify", content=png()).status_code == 200  # what is quick needs no place
        slow.released.set()
        assert api.post("/classify", content=large).status_code == 200


def test_building_a_network_for_the_first_time_is_no_slow_decoding(
    run: Any, catalog: Catalog, png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()
    load = type(catalog).load

    def slow_load(self: Catalog, offer: Any) -> Any:
        if offer.purifier == "soap-rp":
            loading.wait(0.1)
        return load(self, offer)

    with run(Settings(decode_timeout_ms=50), catalog) as api:
        api.wait_ready()
        monkeypatch.setattr(type(catalog), "load", slow_load)
        assert api.post("/classify?purifier=soap-rp", content=png()).status_code == 200


def test_limits_of_the_settings_hold(run: Any, catalog: Catalog, png: Any) -> None:
    with run(Settings(max_side=40, formats="JPEG,WEBP"), catalog) as api:
        api.wait_ready()
        assert api.post("/classify", content=png()).json()["code"] == "unsupported-format"
    with run(Settings(max_side=40), catalog) as api:
        api.wait_ready()
        assert api.post("/classify", content=png(size=(41, 1))).json()["code"] == "too-long-side"
        assert api.post("/classify", content=png(size=(40, 40))).status_code == 200


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_log_holds_nothing_of_a_body(api: Any, png: Any, caplog: pytest.LogCaptureFixture, level: str) -> None:
    mark = b"XYZZYmarkXYZZY"
    bodies = [
        png() + mark,
        png()[:-40] + mark,
        mark * 3,
        b"\x89PNG\r\n\x1a\n" + mark,
        b"\xff\xd8\xff\xe1\0\x20" + mark * 9,
    ]
    with caplog.at_level(level):
        for body in bodies:
            api.post("/classify", content=body)
            api.post("/purify", content=body)
            api.post("/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
            file = ("a.png", body, "image/png")
            api.post("/classify/batch", files=[("image", file), ("image", file)])
    assert caplog.text.count("request_id=") >= 4 * len(bodies)
    for text in ("XYZZY", "markXY", mark.hex(), "\x89PNG", "\\x89PNG"):
        assert text not in caplog.text


@pytest.mark.parametrize(
    "body", [b"/etc/hostname", b"file:///etc/hostname", b"http://127.0.0.1:1/x.png", b"cposix\nsystem\n."]
)
def test_paths_urls_and_pickles_are_only_bytes(api: Any, body: bytes) -> None:
    assert api.post("/classify", content=body).json()["code"] == "not-an-image"
    assert (
        api.post("/classify", files={"image": ("../../etc/passwd", body, "image/png")}).json()["code"] == "not-an-image"
    )
    assert api.post(f"/classify?model={body.decode().strip()!r}", content=b"").status_code == 422


def test_file_name_of_a_form_is_never_used(api: Any, png: Any, tmp_path: Path) -> None:
    name = str(tmp_path / "written.png")
    assert api.post("/classify", files={"image": (name, png(), "image/png")}).status_code == 200
    assert list(tmp_path.iterdir()) == []
