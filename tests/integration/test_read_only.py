"""`serve` writes nowhere but to the temporary folder, so the image can run on a read-only root with a writable /tmp."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

SAMPLE = Path(__file__).parents[2] / "samples" / "cifar10-helps-cat-2001.png"

# Python tells hooks before it opens, makes or moves a file; __pycache__ goes unwritten where it can't be.
CODE = """
import os, sys
def tell(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or event in ("os.mkdir", "os.rename"):
        if "__pycache__" not in str(arguments[0]) and not isinstance(arguments[0], int):  # a number is open already
            print("wrote", arguments[0], file=sys.stderr, flush=True)
sys.addaudithook(tell)
open(os.devnull, "w").close()
from service.server import serve
from service.settings import Settings
serve(Settings())
"""


def test_serving_writes_below_the_temporary_folder_only_and_ends_well(zoo: Path) -> None:
    environment = {**os.environ, "UNPERTURB_ZOO": str(zoo), "UNPERTURB_PORT": "0"}
    process = subprocess.Popen([sys.executable, "-c", CODE], env=environment, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if address := re.search(r"listening on (http://\S+)", line):
                break
        assert address, lines
        while httpx.get(f"{address[1]}/readyz").status_code != 200:
            time.sleep(0.05)
        assert httpx.post(f"{address[1]}/classify", files={"image": SAMPLE.read_bytes()}).status_code == 200
        process.send_signal(signal.SIGTERM)
        lines += process.stderr
    written = [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("wrote ")]
    assert [name for name in written if not f"{name}/".startswith((f"{tempfile.gettempdir()}/", "/dev/"))] == []
    assert os.devnull in written  # it would have been told
    assert process.returncode == 0
