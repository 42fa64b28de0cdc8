"""The service as a process of its own: started on a free port, watched from outside."""

import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

START_S = 60.0
SAMPLE_S = 0.5


@dataclass(frozen=True)
class Service:
    """A running `unperturb serve`."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path

    def rss(self) -> int:
        """Resident bytes of it and its helper processes; what they share counts once."""
        return sum(int(each.memory_full_info().pss) for each in self._all())

    def cpu_s(self) -> float:
        """CPU seconds spent so far, all threads of it and of its helpers."""
        times = [each.cpu_times() for each in self._all()]
        return float(sum(each.user + each.system for each in times))

    def _all(self) -> list[psutil.Process]:
        service = psutil.Process(self.process.pid)
        return [service, *service.children(recursive=True)]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as reply:
                return int(reply.status) == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def serving(folder: Path, profiled: Path | None = None, **settings: object) -> Iterator[Service]:
    """Start the service, wait until it is ready, stop it in the end. `folder` gets its log; `settings` by name, in small letters.

    profiled: where it writes a profile of its event loop when it is asked to, see there.

    Raises:
        RuntimeError: it did not start; its log is in the message.
    """
    given = {f"UNPERTURB_{name.upper()}": str(value) for name, value in settings.items()}
    log = folder / "service.log"
    with log.open("wb") as file:
        module = ["unperturb"] if profiled is None else ["benchmarks.load.profiled", str(profiled)]
        command = [sys.executable, "-m", *module, "serve", "--port", "0"]
        process = subprocess.Popen(command, env={**os.environ, **given}, stderr=file, stdout=file)
    try:
        yield _ready(process, log)
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()


def _ready(process: "subprocess.Popen[bytes]", log: Path) -> Service:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up and process.poll() is None:
        if address := re.search(r"listening on (http://\S+)", log.read_text(encoding="utf-8", errors="replace")):
            service = Service(process, address[1], log)
            if service.ready():
                return service
        time.sleep(0.05)
    raise RuntimeError(f"the service did not start within {START_S:.0f} s:\n{log.read_text(errors='replace')[-4000:]}")


@dataclass
class MemoryWatch:
    """Samples a service's resident memory each `SAMPLE_S` while the `with` block runs: (seconds, bytes)."""

    service: Service
    samples: list[tuple[float, int]] = field(default_factory=list)

    def __enter__(self) -> "MemoryWatch":
        self._stop = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="memory-watch")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.samples.append((time.monotonic() - self._started, self.service.rss()))
            if self._stop.wait(SAMPLE_S):
                return
