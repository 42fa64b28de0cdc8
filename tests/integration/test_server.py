"""`serve` as a process: it says where it listens, answers, and leaves politely."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

SAMPLE = Path(__file__).parents[2] / "samples" / "cifar10-helps-automobile-2004.png"
CODE = "from service.server import serve; from service.settings import Settings; serve(Settings())"

# Python tells hooks before it opens, makes, moves or removes a file; __pycache__ goes unwritten where it can't be.
TELL_WRITES = """
import os, sys
def tell(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or event in ("os.mkdir", "os.rename"):
        if "__pycache__" not in str(arguments[0]):
            print("wrote", arguments[0], file=sys.stderr, flush=True)
sys.addaudithook(tell)
open(os.devnull, "w").close()
"""


def start(code: str = CODE, **settings: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, **{f"UNPERTURB_{name}": value for name, value in settings.items()}}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


def address_of(process: "subprocess.Popen[str]", lines: list[str]) -> str:
    """Where it listens, once it says so; what it wrote until then goes into `lines`."""
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if address := re.search(r"listening on (http://\S+)", line):
            return address[1]
    raise AssertionError(lines)


def test_serves_until_it_is_told_to_stop(zoo: Path) -> None:
    with start(ZOO=str(zoo), PORT="0") as process:
        assert process.stderr is not None
        lines: list[str] = []
        address = address_of(process, lines)
        assert httpx.get(f"{address}/livez").json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
    assert "Traceback" not in rest
    assert "GET /livez 200" in "".join(lines) + rest


def test_writes_below_the_temporary_folder_only(zoo: Path) -> None:
    """So the image can run on a read-only root with a writable /tmp."""
    with start(TELL_WRITES + CODE, ZOO=str(zoo), PORT="0") as process:
        assert process.stderr is not None
        lines: list[str] = []
        address = address_of(process, lines)
        while httpx.get(f"{address}/readyz").status_code != 200:
            time.sleep(0.05)
        assert httpx.post(f"{address}/classify", files={"image": SAMPLE.read_bytes()}).status_code == 200
        process.send_signal(signal.SIGTERM)
        lines += process.stderr
    written = [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("wrote ")]
    assert [name for name in written if not f"{name}/".startswith((f"{tempfile.gettempdir()}/", "/dev/"))] == []
    assert os.devnull in written  # it would have been told
    assert process.returncode == 0


def test_unusable_zoo_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    with start(ZOO=str(tmp_path), PORT="0") as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "no checkpoint here" in error
