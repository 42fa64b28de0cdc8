"""What every test of the service finds in its environment; imported by the conftests that want it."""

import os
from collections.abc import Iterator

import pytest

HELPERS = "UNPERTURB_PROCESSES"


@pytest.fixture(autouse=True, scope="session")
def no_helpers() -> Iterator[None]:
    """They take seconds to start; who is about them asks for some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(HELPERS, "1")
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, no_helpers: None) -> None:
    """No settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("UNPERTURB_") and name != HELPERS]:
        monkeypatch.delenv(name)
