"""`serve` as a process: it says where it listens, answers, and leaves politely."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

CODE = "from service.server import serve; from service.settings import Settings; serve(Settings())"

SPARING = """
import gc, sys
from service import server, threads
from service.settings import Settings
spare = server.spare_collector
def told():
    spare()
    print("spared", gc.get_freeze_count() > 100_000, gc.get_threshold() == threads.GENERATIONS, file=sys.stderr, flush=True)
server.spare_collector = told
server.serve(Settings())
"""


def start(code: str = CODE, **settings: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, **{f"UNPERTURB_{name}": value for name, value in settings.items()}}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


def until_listening(process: "subprocess.Popen[str]") -> tuple[str, list[str]]:
    """Its address, and the log up to there."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if address := re.search(r"listening on (http://[^\s\"]+)", line):
            return address[1], lines
    raise AssertionError(lines)


def stopped(process: "subprocess.Popen[str]") -> str:
    """The rest of the log."""
    assert process.stderr is not None
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    assert process.wait(20) == 0, rest
    return rest


def test_serves_until_it_is_told_to_stop(zoo: Path) -> None:
    with start(ZOO=str(zoo), PORT="0") as process:
        address, lines = until_listening(process)
        assert httpx.get(f"{address}/livez").json() == {"status": "ok"}
        rest = stopped(process)
    assert "Traceback" not in rest
    assert "method=GET path=/livez route=/livez status=200" in "".join(lines) + rest


def test_the_garbage_collector_is_spared_once_before_anybody_can_ask(zoo: Path) -> None:
    with start(SPARING, ZOO=str(zoo), PORT="0") as process:
        _, lines = until_listening(process)
        assert "spared True True\n" in lines
        assert "spared" not in stopped(process)


def test_every_line_of_a_json_log_is_an_object(zoo: Path) -> None:
    with start(ZOO=str(zoo), PORT="0", LOG_FORMAT="json") as process:
        address, lines = until_listening(process)
        metrics = httpx.get(f"{address}/metrics").text
        found = [json.loads(line) for line in lines + stopped(process).splitlines()]
    assert "/metrics" in {line.get("path") for line in found}
    assert "unperturb_worker_restarts_total 0.0" in metrics
    assert "_created" not in metrics


def test_for_a_while_after_sigterm_it_answers_but_is_not_ready(zoo: Path) -> None:
    with start(ZOO=str(zoo), PORT="0", SHUTDOWN_DELAY_MS="1500") as process:
        address, _ = until_listening(process)
        while httpx.get(f"{address}/readyz").status_code != 200:
            pass
        process.send_signal(signal.SIGTERM)
        while (ready := httpx.get(f"{address}/readyz")).status_code == 200:
            pass
        assert ready.json()["detail"].startswith("the service is shutting down")
        assert httpx.get(f"{address}/models").status_code == 200
        assert process.stderr is not None
        process.stderr.read()
        assert process.wait(20) == 0


def test_unusable_zoo_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    with start(ZOO=str(tmp_path), PORT="0") as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no checkpoint here" in error
