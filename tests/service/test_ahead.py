import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import ahead, crew


@pytest.mark.parametrize(
    ("share", "cores"), [("200000 100000", 2), ("50000 100000", 1), ("250000 100000", 3), ("max 100000", 4), (None, 4)]
)
def test_a_containers_share_bounds_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, share: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    if share is not None:
        (tmp_path / "cpu.max").write_text(share)
    assert ahead.cores(tmp_path / "cpu.max") == cores


@pytest.mark.parametrize(
    ("arguments", "environment", "cores", "gpu", "begun"),
    [
        ([], {}, 2, False, True),
        ([], {}, 1, False, False),
        ([], {}, 2, True, False),
        (["--device", "cpu"], {}, 2, True, True),
        (["--device=cpu"], {}, 2, True, True),
        ([], {"UNPERTURB_DEVICE": "cpu"}, 2, True, True),
        (["--device", "cuda:1"], {}, 2, False, False),
        (["--device=cuda"], {}, 2, False, False),
        ([], {"UNPERTURB_DEVICE": "cuda"}, 2, False, False),
        ([], {"UNPERTURB_PROCESSES": "1"}, 2, False, False),
        ([], {"UNPERTURB_PROCESSES": "2"}, 2, False, True),
        ([], {"UNPERTURB_THREADS": "1"}, 2, False, False),
    ],
)
def test_helpers_are_begun_where_there_will_be_some(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    environment: dict[str, str],
    cores: int,
    gpu: bool,
    begun: bool,
) -> None:
    starts: list[bool] = []
    monkeypatch.setattr(ahead, "start", lambda: starts.append(True))
    monkeypatch.setattr(ahead, "cores", lambda: cores)
    monkeypatch.setattr(ahead, "_GPUS", (tmp_path if gpu else tmp_path / "none",))
    ahead.begin(arguments, environment)
    assert starts == [True] * begun


def test_they_import_what_they_run() -> None:
    assert crew.__name__ == ahead.PRELOAD  # a module that isn't there would be passed over in silence


def test_the_command_begins_them_before_it_imports_pytorch() -> None:
    code = (
        "import sys; import unperturb.__main__ as command; from service import ahead\n"
        "ahead.begin = lambda *_: sys.exit('torch' in sys.modules)\n"
        "sys.argv = ['unperturb', 'serve']; command.main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
