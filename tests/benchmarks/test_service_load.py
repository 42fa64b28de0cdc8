"""The load measurement measures what its page says, and the page says what it measured."""

import asyncio
import gc
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import service_load
from benchmarks.load import report, summary
from benchmarks.load.client import Client, Outcome, Shot, Traffic, open_loop, poisson, run

TRAFFIC = Traffic({"none": 0.75, "soap-lc": 0.25}, [b"one", b"two"])


def outcome(status: int = 200, due: float = 0.0, ended: float = 0.1, batch_sizes: tuple[int, ...] = (1,)) -> Outcome:
    return Outcome("none", due, due, ended, status, retry_after=status == 503, batch_sizes=batch_sizes)


def test_page_says_what_the_results_say() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert "<!-- table:" in text
    assert report.rendered(text, report.committed()) == text, "run: python -m benchmarks.load.report"


def test_schedule_depends_on_nothing_but_its_seed() -> None:
    shots = poisson(TRAFFIC, rate=200, seconds=10, seed=3)
    assert shots == poisson(TRAFFIC, rate=200, seconds=10, seed=3) != poisson(TRAFFIC, rate=200, seconds=10, seed=4)
    assert len(shots) == pytest.approx(2000, rel=0.1)
    assert sum(shot.purifier == "none" for shot in shots) == pytest.approx(1500, rel=0.1)
    assert all(one.at < other.at < 10 for one, other in pairwise(shots))


def test_open_loop_sends_although_nobody_answers() -> None:
    """A closed loop would wait for the first answer, and the second request would never be late."""
    everybody_is_there = asyncio.Barrier(3)

    class Stalled(Client):
        def __init__(self) -> None:
            pass

        async def send(self, shot: Shot, start: float) -> Outcome:
            await everybody_is_there.wait()
            return outcome(due=shot.at)

    shots = [Shot(at, "none", (b"",)) for at in (0.0, 0.001, 0.002)]
    found = asyncio.run(asyncio.wait_for(open_loop(Stalled(), shots), 10))
    assert [each.due for each in found] == [0.0, 0.001, 0.002]


def test_the_client_is_not_stalled_by_its_own_garbage_collector() -> None:
    async def frozen() -> int:
        return gc.get_freeze_count()

    gc.unfreeze()
    assert run(frozen()) > 0


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    late = Outcome("none", due=1.0, sent=3.0, ended=3.5, status=200, retry_after=False)
    assert late.latency_ms == 2500


def test_goodput_leaves_out_late_answers_and_refusals() -> None:
    outcomes = [outcome(ended=0.5), outcome(ended=1.5), outcome(503), outcome(504), outcome(0)]
    assert summary.goodput(outcomes, seconds=1) == 1


def test_goodput_counts_images_and_not_requests() -> None:
    form_of_three, form_with_a_broken_file = outcome(batch_sizes=(2, 2, 1)), outcome(batch_sizes=(1,))
    assert summary.goodput([form_of_three, form_with_a_broken_file], seconds=1) == 4


def test_every_request_is_counted_once() -> None:
    outcomes = [outcome(status) for status in (200, 200, 429, 503, 504, 500, 0)]
    counts = summary.counts(outcomes)
    assert (counts["sent"], counts["served"], counts["shed"], counts["expired"]) == (7, 2, 2, 1)
    assert counts["errors"] == {"0": 1, "500": 1}
    assert counts["shed_without_retry_after"] == 1


def test_mean_batch_counts_batches_and_not_images() -> None:
    three_alone_and_three_together = [outcome(batch_sizes=(size,)) for size in (1, 1, 1, 3, 3, 3)]
    assert summary.mean_batch_size(three_alone_and_three_together) == 1.5
    assert summary.mean_batch_size([outcome(batch_sizes=(3, 3, 3)), outcome(batch_sizes=(1,))]) == 2


def test_growth_is_that_of_the_second_half() -> None:
    rises = [(float(second), (100 + max(0, second - 10)) * summary.MIB) for second in range(21)]
    assert summary.memory(rises)["second_half_growth_mib"] == pytest.approx(10)
    settles = [(float(second), (100 + min(10, second)) * summary.MIB) for second in range(21)]
    assert summary.memory(settles)["second_half_growth_mib"] == pytest.approx(0, abs=0.01)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> report.Found:
    """A run of seconds against the real service. What it measures is worth nothing; that it measures, something."""
    file = tmp_path_factory.mktemp("load") / "results.json"
    short = ["--force", "--level-s=0.5", "--capacity-s=0.5", "--round-s=0.2", "--rounds=1", "--look-s=0.1"]
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("UNPERTURB_")]:
            environment.delenv(name)
        environment.setenv("UNPERTURB_THREADS", "1")
        assert service_load.main([*short, "--flood=soap-rp", f"--out={file}"]) in (0, 1)  # 1: not as fast as required
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_short_run_answers_every_request_and_fills_every_table(found: report.Found, tmp_path: Path) -> None:
    for phase in (found["capacity"], *found["levels"], found["fairness"]["flood_itself"]):
        assert phase["errors"] == {}
        assert phase["sent"] == phase["served"] + phase["shed"] + phase["expired"] > 0
    assert [(each["purifier"], each["images"]) for each in found["overhead"]] == list(report.HTTP)
    assert all(
        turn["errors"] == {} and turn["mean_batch_size"] for each in found["overhead"] for turn in each["rounds"]
    )
    page = report.rendered(report.PAGE.read_text(encoding="utf-8"), found)
    assert report.NOTHING not in page
    assert page.count("| 150% |") == 1
    report.draw(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_fails_where_a_requirement_is_not_met(found: report.Found) -> None:
    worse = json.loads(json.dumps(found))
    worse["levels"][0]["errors"] = {"500": 1}
    worse["overhead"][0]["median"]["ratio"] = 0.74
    failed = {check["name"] for check in report.checks(worse) if not check["met"]}
    assert {"50%: errors", "none over HTTP against the engine"} <= failed


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("unperturb.measure.busy_cores", lambda look_s: [60.0])
    assert service_load.main([f"--out={tmp_path / 'never.json'}"]) == 2
    assert not (tmp_path / "never.json").exists()
