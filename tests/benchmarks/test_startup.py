"""The measurement of the start starts real services, and its table says what was measured."""

import json

import pytest

from benchmarks import startup
from training.report import costs

QUICK = ["--starts=1", "--requests=2", "--settle-s=0.5", "--look-s=0.1"]


def test_each_service_is_timed_until_it_is_ready_and_then_asked(tmp_path):
    out = tmp_path / "startup.json"
    assert startup.main([*QUICK, "--force", f"--out={out}"]) == 0
    at_once, later = json.loads(out.read_text())["starts"]
    assert (at_once["settle_s"], later["settle_s"]) == (0, 0.5)
    assert at_once["ready_s"] > 0.5
    assert {name: len(ms) for name, ms in later["ms"].items()} == {"default": 2, "none": 2, "soap-lc": 2}


def test_a_busy_machine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("unperturb.measure.busy_cores", lambda look_s: [42.0])
    assert startup.main([*QUICK, f"--out={tmp_path / 'never.json'}"]) == 2
    assert not (tmp_path / "never.json").exists()


@pytest.mark.parametrize(("slowest", "said"), [(4.5, ""), (5.5, "; **the goal is under 5 s**")])
def test_the_table_sets_the_first_requests_beside_the_tenth(slowest, said, monkeypatch, tmp_path):
    header = {
        "hardware": {"cpu": "A CPU", "cores": 2},
        "versions": {"torch": "9.9"},
        "busy_percent_before": 3.4,
    }
    starts = [
        {"ready_s": 4.0, "settle_s": 0.0, "ms": {"default": [30.0, 20.0, *[10.0] * 10]}},
        {"ready_s": slowest, "settle_s": 5.0, "ms": {"default": [11.0, *[10.0] * 11]}},
    ]
    (tmp_path / "startup.json").write_text(json.dumps({"header": header, "starts": starts}))
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    text = costs.startup()
    assert f"to {slowest} in 2 starts{said})" in text
    assert "| the default | at once | 30.0 | 20.0 | 10.0 | 10.0 | 10.0 | 3.0 |" in text
    assert "| the default | 5 s later | 11.0 | 10.0 | 10.0 | 10.0 | 10.0 | 1.1 |" in text


def test_without_results_there_is_no_table(monkeypatch, tmp_path):
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert costs.startup() == ""
