"""What a committed result must say of where it was measured; and the way out of a benchmark where something else runs."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from unperturb import measure
from unperturb.measure import MachineBusy, check_free


def described(*packages: str) -> dict[str, Any]:
    """Date, commit, hardware and versions, those of `packages` among them."""
    return {"commit": commit(), **measure.described(*packages)}


def commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    # Results that were just made don't change what was measured.
    changed = git("status", "--porcelain", "--", ":!benchmarks/results", ":!docs")
    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if changed else "")


def options_of(doc: str | None, out: Path) -> argparse.ArgumentParser:
    """A benchmark's options: those that all of them have. doc: the module's, whose first line says what it measures."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--look-s", type=float, default=3.0, help="seconds of looking whether the machine is busy")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine all the same")
    parser.add_argument("--out", type=Path, default=out)
    return parser


def save(out: Path, report: dict[str, Any]) -> None:
    """Write a benchmark's results as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def refused(share: float, force: bool) -> bool:
    """Whether not to measure on a machine that is so busy; says so."""
    try:
        check_free(share, force)
    except MachineBusy as error:
        print(error, file=sys.stderr)
        return True
    return False
