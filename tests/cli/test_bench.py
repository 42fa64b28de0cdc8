"""`unperturb bench` as a user meets it, and the guard that it shares with the benchmarks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from unperturb import bench, cli, measure

ROOT = Path(__file__).parents[2]
SHORT = ("bench", "--model", "mnist", "--batch", "4", "--batch", "1", "--rounds", "2")


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """A machine that does nothing else."""
    monkeypatch.setattr(measure, "busy_cores", lambda look_s: [0.0])


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def rows(*arguments):
    result = run(*SHORT, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {(row["purifier"], row["batch"]): row for row in json.loads(result.stdout)["rows"]}


def test_every_purifier_of_the_model_is_measured_at_every_batch_size(monkeypatch):
    monkeypatch.setattr(bench, "ENOUGH_S", 1e9)
    found = rows()
    assert list(found) == [("none", 1), ("none", 4), ("soap-dr", 1), ("soap-dr", 4)]
    row = found["soap-dr", 4]
    assert (row["forward_passes"], row["backward_passes"]) == (16, 11)
    assert len(row["ms"]["rounds"]) == 2
    assert row["images_per_s"] == pytest.approx(1000 / row["ms"]["median_ms"])
    assert row["times_none"] == pytest.approx(row["ms"]["median_ms"] / row["none_ms"]["median_ms"])
    assert row["times_as_fast"] == pytest.approx(row["plain_loop_ms"]["median_ms"] / row["ms"]["median_ms"])


def test_a_plain_classification_is_what_it_is_measured_against():
    row = rows("--purifier", "none")["none", 1]
    assert row["times_none"] == 1
    assert row["plain_loop_ms"] is row["times_as_fast"] is None


def test_what_takes_long_is_not_repeated(monkeypatch):
    monkeypatch.setattr(bench, "ENOUGH_S", 1e-9)
    assert [len(row["ms"]["rounds"]) for row in rows().values()] == [1] * 4
    assert "one round" in run(*SHORT).output


def test_rounds_take_turns_and_every_second_one_goes_backwards():
    cells = [bench.Cell(None, way, None, torch.zeros(n, 1)) for way in "ab" for n in (1, 8)]
    order = [(turn, cell.way, len(cell.x)) for turn, cell in bench._turns(cells, [1, 8], 2)]
    assert order[:2] == [(0, "a", 1), (0, "b", 1)]
    assert order[2:6] == [(1, "a", 1), (1, "a", 8), (1, "b", 1), (1, "b", 8)]
    assert order[6:] == [(2, "b", 8), (2, "b", 1), (2, "a", 8), (2, "a", 1)]


def test_no_skip_rule_leaves_an_image_alone():
    arguments = ("--model", "cifar10", "--purifier", "soap-lc", "--batch", 32, "--rounds", 1)
    (row,) = json.loads(run("bench", *arguments, "--json").stdout)["rows"]
    assert (row["forward_passes"], row["backward_passes"]) == (12, 10)


def test_a_chain_can_be_measured():
    found = rows("--model", "cifar10", "--purifier", "nrp+pix2pix")
    assert list(found) == [("nrp+pix2pix", 1), ("nrp+pix2pix", 4)]
    assert found["nrp+pix2pix", 4]["plain_loop_ms"] is None


def test_the_table_says_where_it_was_measured():
    before = torch.get_num_threads()
    try:
        told = run(*SHORT, "--threads", 1).output
    finally:
        torch.set_num_threads(before)
    assert "threads: 1" in told
    assert "soap-dr" in told
    assert "16+11" in told


def test_a_busy_machine_is_refused_unless_forced(monkeypatch, capsys):
    monkeypatch.setattr(measure, "busy_cores", lambda look_s: [4.0, 80.0])
    monkeypatch.setattr(sys, "argv", ["unperturb", *SHORT])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == "unperturb: the machine is 42 % busy, at most 10 % allowed; or --force\n"
    assert run(*SHORT, "--purifier", "none", "--force").exit_code == 0


def test_it_needs_neither_training_nor_the_benchmarks():
    program = (
        "import sys; sys.modules.update(training=None, benchmarks=None, psutil=None)\n"
        f"from unperturb.cli import app; app({[*SHORT, '--force', '--purifier', 'none']})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "x none" in done.stdout


def test_cores_are_busy_when_they_neither_idle_nor_wait_for_disks(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 7 0 0 5 0 0 0 0 7 0\nintr 1 2 3\n")
    later = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 10 5 5 50 10 10 5 5 10 5\ncpu1 7 0 0 105 0 0 0 0 7 0\nintr 1 2 3\n"
    monkeypatch.undo()
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: stat.write_text(later))
    assert measure.busy_cores(0.1, stat) == [40.0, 0.0]
    assert measure.busy_cores(0.1, stat) == [0.0, 0.0]  # too short a look to tell


def test_where_cores_do_not_tell_the_load_does(monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(measure.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (1.0, 0.0, 0.0))
    assert measure.busy_cores(0.0, tmp_path / "none") == [25.0] * 4
