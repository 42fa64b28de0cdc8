"""The admin's port and socket of a real process: apart from the images' port, and gone with it."""

import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.checkpoint import read_card
from service.admin_server import bind
from service.settings import Settings
from tests.integration.test_server import start


@pytest.fixture
def root(zoo: Path, tmp_path: Path) -> Path:
    shutil.copytree(zoo / "cifar10", tmp_path / "root" / "again")
    return tmp_path / "root"


def addresses(lines: Iterator[str]) -> tuple[str, str]:
    """Where images and the admin are listened for."""
    found = []
    for line in lines:
        found += re.findall(r" (?:listening|admin) on (\S+)", line)
        if len(found) == 2:
            break
    assert len(found) == 2
    return found[0], found[1]


def swap(client: httpx.Client, root: Path) -> dict[str, Any]:
    sha256 = read_card(root / "again").weights_sha256
    reply = client.put("/checkpoints/again", params={"sha256": sha256}, timeout=60)
    assert reply.status_code == 200, reply.text
    checkpoint: dict[str, Any] = reply.json()["checkpoint"]
    return checkpoint


@contextmanager
def service(**settings: object) -> "Iterator[subprocess.Popen[str]]":
    """A running service that a failing test doesn't leave behind."""
    with start(PORT="0", **{name: str(value) for name, value in settings.items()}) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_second_port_swaps_and_sigterm_ends_both(zoo: Path, root: Path) -> None:
    with service(ZOO=zoo, ADMIN_PORT=0, ADMIN_ROOT=root, SHUTDOWN_DELAY_MS=1000) as process:
        assert process.stderr is not None
        images, admin = addresses(process.stderr)
        assert admin.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=admin) as client:
            assert swap(client, root)["folder"] == "again"
            assert httpx.get(f"{images}/checkpoints").status_code == 404
            assert client.get("/classify").status_code == 404
            process.send_signal(signal.SIGTERM)
            while httpx.get(f"{images}/readyz").status_code == 200:
                pass
            assert client.get("/checkpoints").status_code == 200  # it leaves with the other, not before
            rest = process.stderr.read()
            assert process.wait(30) == 0, rest
    assert "Traceback" not in rest
    for address in (images, admin):
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)


def test_a_unix_socket_is_the_users_own_and_goes_with_the_service(zoo: Path, root: Path, tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with service(ZOO=zoo, ADMIN_SOCKET=path, ADMIN_ROOT=root) as process:
        assert process.stderr is not None
        assert addresses(process.stderr)[1] == f"unix:{path}"
        assert stat.filemode(path.stat().st_mode) == "srw-------"
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
            assert swap(client, root)["folder"] == "again"
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0, rest
    assert not path.exists()


def test_a_socket_that_a_killed_service_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    bound = bind(Settings(admin_socket=path))
    assert bound is not None
    with bound, socket.socket(socket.AF_UNIX) as client:
        bound.listen()
        client.connect(str(path))


def test_an_address_in_use_ends_the_start(tmp_path: Path) -> None:
    path, file = tmp_path / "admin.sock", tmp_path / "file"
    file.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        for taken in ({"admin_port": other.getsockname()[1]}, {"admin_socket": path}, {"admin_socket": file}):
            with pytest.raises(SystemExit, match=r"the admin can't listen on .*"):
                bind(Settings(**taken))
    assert file.read_text() == "precious"


def test_port_and_socket_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="admin_port and admin_socket are both set"):
        Settings(admin_port=0, admin_socket=tmp_path / "admin.sock")
    assert bind(Settings()) is None
