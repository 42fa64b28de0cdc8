"""The cost of serving is measured on a real service, and its parts add up."""

import json
from pathlib import Path

import pytest

from benchmarks import serving
from training.report import costs


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serving") / "serving.json"
    arguments = ["--callers=8", "--seconds=2", "--look-s=0.1", "--force", f"--out={out}"]
    assert serving.main(arguments) in (0, 1)  # a test's machine may be busy
    return out


def test_parts_of_the_event_loop_add_up(found: Path) -> None:
    told = json.loads(found.read_text(encoding="utf-8"))
    ms, loop = told["ms"], told["ms"]["event loop"]
    assert told["images"] > 0
    assert ms["service"] == pytest.approx(sum(loop.values()) + ms["threads that talk to helpers"], rel=0.25)
    assert all(loop[part] > 0 for part in ("HTTP (uvicorn)", "queueing", "log and metrics"))
    assert ms["beside the network"] == pytest.approx(ms["service"] + ms["helpers"] - ms["network"])


def test_the_table_tells_them(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RESULTS", found.parent)
    told = json.loads(found.read_text(encoding="utf-8"))["ms"]
    table = costs.serving()
    assert f"| **{told['beside the network']:.2f}** |" in table
    assert f"| – queueing | {told['event loop']['queueing']:.2f} |" in table


def test_nothing_measured_makes_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert costs.serving() == ""
