"""Keys and limits over a socket."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest

from models.catalog import Catalog
from service.app import create_app
from service.keys import ApiKey
from service.server import build_server
from service.settings import Settings


@contextmanager
def serving(settings: Settings, catalog: Catalog) -> Iterator[str]:
    server = build_server(settings, create_app(settings, catalog))
    thread = Thread(target=server.run)
    thread.start()
    give_up = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    (url,) = server.addresses()
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def image() -> bytes:
    return (Path(__file__).parents[2] / "samples" / "cifar10-clean-dog-2005.png").read_bytes()


def test_strangers_are_kept_out_and_shares_are_kept(catalog: Catalog, image: bytes) -> None:
    secret, key = ApiKey.generate("alice", rate=0.01)
    settings = Settings(port=0, api_keys=key.line(), rate_limit_burst_s=200)  # two at once
    with serving(settings, catalog) as url, httpx.Client(base_url=url) as client:
        assert client.get("/livez").status_code == 200
        refused = client.post("/classify", content=image)
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, 'Bearer realm="unperturb"')
        assert client.get("/openapi.json").status_code == 401
        client.headers["Authorization"] = f"Bearer {secret}"
        assert [client.post("/classify", content=image).status_code for _ in range(2)] == [200, 200]
        limited = client.post("/classify", content=image)
        assert (limited.status_code, limited.json()["code"]) == (429, "rate-limited")
        assert 90 <= int(limited.headers["Retry-After"]) <= 100
        assert client.get("/livez").status_code == 200


def test_refused_upload_does_not_confuse_the_connection(catalog: Catalog, image: bytes) -> None:
    """The body of a refused request is never read; the next request on the same connection must still be understood."""
    secret, key = ApiKey.generate("alice")
    with serving(Settings(port=0, api_keys=key.line()), catalog) as url, httpx.Client(base_url=url) as client:
        for _ in range(3):
            assert client.post("/classify", content=b"x" * 10**6).status_code == 401
            assert client.post("/classify", content=image, headers={"X-API-Key": secret}).status_code == 200
