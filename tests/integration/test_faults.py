"""Callers that misbehave and an operator who stops the service under load; it answers the others, and everybody once."""

import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.load.server import Service, serving

IMAGE = (Path(__file__).parents[2] / "samples" / "cifar10-clean-dog-2005.png").read_bytes()
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def service(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("faults"), zoo=zoo, processes=2) as running:
        yield running


@pytest.fixture
def healthy(service: Service) -> Iterator[Service]:
    """Whatever the test did to it: afterwards it answers as ever, has no traceback in its log and nobody's connection."""
    yield service
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        for purifier in ("none", "soap-lc"):
            reply = client.post("/classify", params={"purifier": purifier}, content=IMAGE)
            assert (reply.status_code, reply.json()["purifier"]) == (200, purifier)
        assert client.get("/readyz").status_code == 200
    until(lambda: not connections(service))
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def connections(service: Service) -> int:
    found = psutil.Process(service.process.pid).net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED for each in found)


def connect(service: Service) -> socket.socket:
    url = httpx.URL(service.url)
    return socket.create_connection((url.host, url.port or 80), timeout=PATIENCE_S)


def request(purifier: str = "none", request_id: str = "x", body: bytes = IMAGE) -> bytes:
    lines = [
        f"POST /classify?purifier={purifier} HTTP/1.1",
        "Host: test",
        f"X-Request-ID: {request_id}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def test_1000_clients_that_leave_mid_flight(healthy: Service) -> None:
    """Each leaves at a moment of its own: in the headers, in the body, or while it is being served."""
    whole = request("soap-lc")
    before, crowd = healthy.rss(), threading.Semaphore(50)

    def leave(number: int) -> None:
        with crowd, connect(healthy) as connection:
            connection.sendall(whole[: 1 + number * 7 % len(whole)] if number % 2 else whole)

    with ThreadPoolExecutor(50) as callers:
        list(callers.map(leave, range(1000)))
    until(lambda: not connections(healthy))
    assert healthy.rss() - before < 128 * 2**20  # that many decoded pictures and no more may still be on their way


def test_neighbours_of_leavers_are_answered(healthy: Service) -> None:
    with httpx.Client(base_url=healthy.url, timeout=PATIENCE_S) as client:
        for _ in range(50):
            for _ in range(4):
                with connect(healthy) as connection:
                    connection.sendall(request("soap-lc"))
            reply = client.post("/classify?purifier=none", content=IMAGE)
            assert (reply.status_code, reply.json()["purifier"]) == (200, "none")


def helpers(service: Service) -> list[psutil.Process]:
    """Those that a batch is split among: children of the process that they are forked from."""
    children = psutil.Process(service.process.pid).children()
    return [helper for child in children for helper in child.children()]


def test_helpers_that_die_under_load_cost_nobody_an_answer(healthy: Service) -> None:
    before = helpers(healthy)
    assert len(before) == 2
    with httpx.Client(base_url=healthy.url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(8) as callers:
        found = [callers.submit(client.post, "/classify?purifier=soap-lc", content=IMAGE) for _ in range(100)]
        for helper in before:
            helper.kill()
        assert [each.result().status_code for each in found] == [200] * 100
    assert len(helpers(healthy)) == 2
    assert not {*helpers(healthy)} & {*before}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_helpers_end_with_the_service_however_it_ends(zoo: Path, tmp_path: Path, how: signal.Signals) -> None:
    with serving(tmp_path, zoo=zoo, processes=2) as service:
        family = psutil.Process(service.process.pid).children(recursive=True)
        assert len(helpers(service)) == 2
        service.process.send_signal(how)
        service.process.wait(PATIENCE_S)
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert "Traceback" not in service.log.read_text(encoding="utf-8")


def test_slow_headers_hold_up_nobody(healthy: Service) -> None:
    """200 callers send a byte now and then; the others are served as if they were not there."""
    head = request()[:-1]
    loris = [connect(healthy) for _ in range(200)]
    try:
        with httpx.Client(base_url=healthy.url, timeout=PATIENCE_S) as client:
            for at in range(20):
                for connection in loris:
                    connection.sendall(head[at : at + 1])
                assert client.post("/classify?purifier=none", content=IMAGE).status_code == 200
    finally:
        for connection in loris:
            connection.close()


def test_half_bodies_are_told_and_hold_up_nobody(zoo: Path, tmp_path: Path) -> None:
    with serving(tmp_path, zoo=zoo, threads=1, timeout_ms=2000) as service:
        halves = [connect(service) for _ in range(100)]
        for connection in halves:
            connection.sendall(request()[:-100])
        reply = httpx.post(f"{service.url}/classify?purifier=none", content=IMAGE, timeout=PATIENCE_S)
        assert reply.status_code == 200
        for connection in halves:
            status, body = answer(connection)
            assert (status, body["code"]) == (408, "upload-too-slow")
        until(lambda: not connections(service))
        assert service.ready()


def test_sigterm_under_load_answers_everybody_once_and_exits_with_0(zoo: Path, tmp_path: Path) -> None:
    with serving(tmp_path, zoo=zoo, processes=2, max_batch_size=1, queue_limit_ms=600_000) as service:
        callers = [connect(service) for _ in range(64)]
        for number, connection in enumerate(callers):
            connection.sendall(request("soap-lc", f"case-{number}"))
        # What was sent before this is read before this is answered: the loop takes what is ready, in one go.
        kept_alive = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=PATIENCE_S)
        kept_alive.request("GET", "/readyz")
        assert kept_alive.getresponse().read() == b'{"status":"ok"}'
        service.process.send_signal(signal.SIGTERM)
        until(lambda: not_ready(kept_alive))
        kept_alive.close()
        answers = [answer(connection) for connection in callers]
        assert [status for status, _ in answers] == [200] * 64
        assert [body["request_id"] for _, body in answers] == [f"case-{number}" for number in range(64)]
        assert service.process.wait(PATIENCE_S) == 0
        log = service.log.read_text(encoding="utf-8")
        assert sorted(
            re.findall(r"request_id=(case-\d+) method=POST path=/classify route=/classify status=200", log)
        ) == sorted(f"case-{number}" for number in range(64))
        assert "Traceback" not in log


def answer(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """The one complete answer on a connection that ends after it."""
    with connection, connection.makefile("rb") as file:
        received = file.read()
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)", head, flags=re.I)
    assert length, received
    assert len(body) == int(length[1])
    return int(head.split()[1]), json.loads(body)


def not_ready(connection: http.client.HTTPConnection) -> bool:
    """It says so, or takes no requests any more."""
    connection.auto_open = False
    try:
        connection.request("GET", "/readyz")
        reply = connection.getresponse()
        reply.read()
    except (OSError, http.client.HTTPException):
        return True
    return reply.status == 503
