"""What every measurement needs: a machine that is free, what to say of that machine, and times that say how far they spread."""

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models import compiled

BUSY_PERCENT = 10.0


class MachineBusy(Exception):
    """Something else runs on this machine, so what is measured now would mean nothing."""


def described(*packages: str) -> dict[str, Any]:
    """Date, hardware and versions, those of `packages` among them."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "hardware": {"cpu": f"{cpu()} ({_vectors()})", "cores": os.cpu_count()},
        "load_before": load(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", *packages, "unperturb")},
        },
    }


def _vectors() -> str:
    """What decides as much as how many cores there are: how wide vectors are, and what convolves."""
    return f"{torch.backends.cpu.get_cpu_capability()}, convolutions by {compiled.told()}"


def cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor calls itself."""
    return _told("model name", info) or platform.machine()


def bf16_instructions(info: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Those of the processor, as Linux names them."""
    return sorted(flag for flag in _told("flags", info).split() if "bf16" in flag)


def _told(what: str, info: Path) -> str:
    """Of the first core; "" where the system doesn't tell."""
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(what)), "")


def load() -> float:
    """Programs that wanted to run, on average over the last minute; 0 where the system doesn't count them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def busy_cores(look_s: float, stat: Path = Path("/proc/stat")) -> list[float]:
    """How busy each core is, in percent, over so many seconds of looking; by the last minute's load where no core tells."""
    if not stat.exists():
        cores = os.cpu_count() or 1
        return [min(100.0, 100 * load() / cores)] * cores
    before = _ticks(stat)
    time.sleep(look_s)
    spent = [
        (idle - idle_0, total - total_0) for (idle, total), (idle_0, total_0) in zip(_ticks(stat), before, strict=True)
    ]
    return [100 * (1 - idle / total) if total else 0.0 for idle, total in spent]


def _ticks(stat: Path) -> list[tuple[int, int]]:
    """Of each core: what it idled or waited for disks, and all, since the start. Time that a hypervisor took is busy."""
    lines = [line.split() for line in stat.read_text(encoding="ascii").splitlines()]
    cores = [[int(each) for each in ticks[:8]] for name, *ticks in lines if name.startswith("cpu") and name != "cpu"]
    return [(ticks[3] + ticks[4], sum(ticks)) for ticks in cores]


def busy_percent(look_s: float) -> float:
    """How busy all cores together are, over so many seconds of looking."""
    found = busy_cores(look_s)
    return sum(found) / len(found)


def check_free(share: float, force: bool) -> None:
    """Whether to measure on a machine that is so busy, in percent.

    Raises:
        MachineBusy: better not.
    """
    if share > BUSY_PERCENT and not force:
        raise MachineBusy(f"the machine is {share:.0f} % busy, at most {BUSY_PERCENT:.0f} % allowed; or --force")


@dataclass(frozen=True)
class Spread:
    """Milliseconds an image over the rounds."""

    median_ms: float
    fastest_ms: float
    slowest_ms: float
    rounds: Sequence[float]


def spread(values: Sequence[float]) -> Spread:
    """values: milliseconds an image, one for each round."""
    return Spread(statistics.median(values), min(values), max(values), values)
