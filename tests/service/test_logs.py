import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    root.handlers.clear()  # pytest's own must outlive `force`
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def test_level_holds_and_uvicorn_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("service.x").debug("too fine")
    logging.getLogger("service.x").info("said once")
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    error = capsys.readouterr().err
    assert error.count("said once") == 1
    assert "too fine" not in error
    assert "Application" not in error


def test_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.configure("info")
    logging.getLogger("service.x").info("said once")
    assert capsys.readouterr().err.count("said once") == 1


def test_pairs_are_short() -> None:
    assert logs.pairs(purifier="none", queue_ms=1.23456, batch_size=3) == "purifier=none queue_ms=1.2 batch_size=3"


def test_importing_the_service_configures_nothing() -> None:
    code = (
        "import logging, warnings; before = list(warnings.filters); import service.logs, service.middleware; "
        "assert not logging.getLogger().handlers; assert warnings.filters == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
