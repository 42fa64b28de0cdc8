"""`serve` as a process: it says where it listens, answers, and leaves politely."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

CODE = "from service.server import serve; from service.settings import Settings; serve(Settings())"


def start(**settings: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, **{f"UNPERTURB_{name}": value for name, value in settings.items()}}
    return subprocess.Popen([sys.executable, "-c", CODE], env=environment, stderr=subprocess.PIPE, text=True)


def test_serves_until_it_is_told_to_stop(zoo: Path) -> None:
    with start(ZOO=str(zoo), PORT="0") as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if address := re.search(r"listening on (http://\S+)", line):
                break
        assert address, lines
        assert httpx.get(f"{address[1]}/livez").json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) in (0, -signal.SIGTERM), rest
    assert "Traceback" not in rest
    assert "GET /livez 200" in "".join(lines) + rest


def test_unusable_zoo_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    with start(ZOO=str(tmp_path), PORT="0") as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no checkpoint here" in error
