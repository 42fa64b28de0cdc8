"""What a result must say of where it was measured."""

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

BUSY_PERCENT = 10.0


def described(*packages: str) -> dict[str, Any]:
    """Date, commit, hardware and versions, those of `packages` among them."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "hardware": {"cpu": cpu(), "cores": os.cpu_count()},
        "load_before": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", *packages, "unperturb")},
        },
    }


def cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    # Results that were just made don't change what was measured.
    changed = git("status", "--porcelain", "--", ":!benchmarks/results", ":!docs")
    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if changed else "")


def busy_percent(look_s: float) -> float:
    """How busy all cores together are, over so many seconds of looking."""
    return float(psutil.cpu_percent(interval=look_s))


def refused(share: float, force: bool) -> bool:
    """Whether not to measure on a machine that is so busy; says so."""
    if share <= BUSY_PERCENT or force:
        return False
    print(f"the machine is {share:.0f} % busy, at most {BUSY_PERCENT:.0f} % allowed; or --force", file=sys.stderr)
    return True
