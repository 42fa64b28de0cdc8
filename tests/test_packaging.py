"""What `pip install .` must bring along: without it the command line works in a checkout only."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


@pytest.mark.parametrize("package", ["models", "service", "training", "unperturb"])
def test_every_file_of_a_package_is_installed(package):
    folder = ROOT / package
    listed = {path for pattern in DATA[package] for path in folder.glob(pattern)}
    found = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in found if path.suffix not in (".py", ".so")} == listed  # .so: made by the installation
