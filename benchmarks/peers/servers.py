"""Our service and its peers, one at a time, each with all of its processes."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.load.server import serving

ROOT = Path(__file__).parents[2]
OURS = "unperturb"
START_S = 180.0
STOP_S = 15.0


@dataclass(frozen=True)
class Peer:
    """name: as in tables. package: whose version is told."""

    name: str
    package: str
    module: str
    environment: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    "litserve": Peer("LitServe", "litserve", "benchmarks.peers.litserve_app"),
    # Its "high throughput mode": HAProxy instead of a proxy in Python, which served a third as many requests of 16 callers on
    # two cores. Its replica then listens on all interfaces; Ray leaves no choice.
    "ray": Peer(
        "Ray Serve",
        "ray",
        "benchmarks.peers.ray_app",
        {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    ),
}
SERVERS = (OURS, *PEERS)


@contextmanager
def running(
    server: str, purifier: str, python: Path, threads: int, processes: int, folder: Path, image: bytes
) -> Iterator[str]:
    """Start one of `SERVERS`, wait until it has classified `image`, give its address, and stop it.

    python: the peers' interpreter. threads: of the networks, shared by so many processes. folder: for logs, sockets and whatever
    else a server leaves behind.

    Raises:
        RuntimeError: it did not start; its log is in the message.
    """
    if server == OURS:
        with serving(folder, threads=threads, processes=processes) as service:
            yield service.url
        return
    peer, port, log = PEERS[server], free_port(), folder / "peer.log"
    given = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "RAY_TMPDIR": str(folder), **peer.environment}
    split = {"UNPERTURB_THREADS": str(max(1, threads // processes)), "UNPERTURB_PROCESSES": str(processes)}
    environment = {**os.environ, **given, **split}
    with log.open("wb") as file:
        command = [python, "-m", peer.module, purifier, str(port)]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=ROOT)
    try:
        yield _ready(process, f"http://127.0.0.1:{port}", image, log)
    finally:
        _stop(process)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _ready(process: "subprocess.Popen[bytes]", url: str, image: bytes, log: Path) -> str:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        if _classifies(url, image):
            return url
        time.sleep(0.2)
    raise RuntimeError(
        f"it ended, or gave no answer within {START_S:.0f} s:\n{log.read_text(errors='replace')[-4000:]}"
    )


def _classifies(url: str, image: bytes) -> bool:
    request = urllib.request.Request(f"{url}/classify", image, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=START_S) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process, then end those of its children that stayed."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    process.kill()  # does nothing to one that has ended
    process.wait()
    _, stayed = psutil.wait_procs(children, timeout=1)
    for child in stayed:
        child.kill()
    psutil.wait_procs(stayed, timeout=STOP_S)
