"""Imports point inward: service -> models <- training, and the command line `unperturb` above them all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = {"fastapi", "starlette", "uvicorn"}
FORBIDDEN = {
    "models": {"service", "training", "unperturb"} | WEB,
    "training": {"service", "unperturb"} | WEB,
    "service": {"training", "unperturb"},
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of each import, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_inward(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in files
        for line, name in imported(file.read_text(encoding="utf-8"))
        if name in FORBIDDEN[package]
    ]
    assert files
    assert not wrong, "\n".join(wrong)


def test_imports_inside_functions_are_seen() -> None:
    source = "def f():\n    from training.data import load_data\n    import service.app, os\n    from . import models\n"
    assert list(imported(source)) == [(2, "training"), (3, "service"), (3, "os")]
