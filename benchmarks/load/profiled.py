"""`unperturb serve` that tells where the time of its event loop goes.

    python -m benchmarks.load.profiled FILE serve ...

SIGUSR1 begins; SIGUSR2 writes FILE: the processor's seconds since then of the whole process and of its main thread, and the
latter's by the module that it was in. Sampled by a timer that runs with the process's own time, so idling counts for nobody.
"""

import json
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

EVERY_S = 0.004

# Modules whose frames say what is being done; a sample belongs to the innermost. Those of other libraries work for their callers.
TELLING = ("service.", "uvicorn.", "starlette.", "fastapi.")


class Profile:
    """Seconds by module, of the main thread."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._begin()

    def install(self) -> None:
        """Take the signals. In the main thread."""
        signal.signal(signal.SIGUSR1, lambda _number, _frame: self._begin())
        signal.signal(signal.SIGUSR2, lambda _number, _frame: self._write())
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def _begin(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._main_s, self._process_s = time.thread_time(), time.process_time()
        self._last_s = self._main_s

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        self._seconds[_module(frame)] += now - self._last_s
        self._last_s = now

    def _write(self) -> None:
        found = {
            "process_s": time.process_time() - self._process_s,
            "main_s": time.thread_time() - self._main_s,
            "modules": dict(self._seconds),
        }
        partial = self._out.with_suffix(".partial")
        partial.write_text(json.dumps(found), encoding="utf-8")
        partial.replace(self._out)


def _module(frame: FrameType | None) -> str:
    """The innermost that says what is being done; "" where none does."""
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if f"{name}.".startswith(TELLING):
            return name
        frame = frame.f_back
    return ""


if __name__ == "__main__":
    from unperturb import cli  # here, since helper processes import this module and need nothing of it

    Profile(Path(sys.argv.pop(1))).install()
    cli.main()
