"""Before PyTorch is imported: how many cores there are to use, and helper processes that begin to import it at the same time.

Importing PyTorch takes most of a start. A helper that begins after this process is done with it makes the start twice as long.
"""

import math
import os
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

# What helpers are forked with: the module that they run.
PRELOAD = "service.crew"

# Where the drivers of GPUs answer: with one, batches run in the service's own process.
_GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))


def cores(share: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use.

    share: tells a container's share, "200000 100000" (microseconds in so many) or "max 100000".
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = share.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def begin(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Start the process that helpers are forked from, if there will be any as far as can be told before the settings are read.

    A wrong guess costs the time or the memory of one import; `crew.prepare` asks again once it knows.
    """
    if _helpers_are_likely(arguments, environment):
        start()


def start() -> None:
    """Start the process that helpers are forked from, unless it runs; it imports what they need."""
    forkserver.set_forkserver_preload([PRELOAD])
    forkserver.ensure_running()


def _helpers_are_likely(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    told = [*arguments, environment.get("UNPERTURB_DEVICE", "")]
    on_cpu = any(each.removeprefix("--device=") == "cpu" for each in told) or not any(each.exists() for each in _GPUS)
    on_gpu = any(each.removeprefix("--device=").startswith("cuda") for each in told)
    alone = "1" in (environment.get("UNPERTURB_PROCESSES"), environment.get("UNPERTURB_THREADS"))
    return on_cpu and not on_gpu and not alone and cores() > 1
