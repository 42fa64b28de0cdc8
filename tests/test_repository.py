"""What must not get into the repository: another machine's paths, a package index, large files."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEBIBYTE = 2**20

# Put together here, so that this file doesn't find itself.
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("python" + "hosted", "org"),
        ("download", "pytorch", "org"),
        ("anaconda", "org"),
        ("registry", "npmjs"),
        ("npmjs", "org"),
        ("deb", "debian"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("nvcr", "io"),
    )
]
HOST = re.compile("|".join(re.escape(host) for host in HOSTS), re.IGNORECASE)
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:" + "|".join(("work", "root", "farm")) + r")(?:/|\b)")
SIBLING = re.compile(r"\.\./" + "shared" + r"\b|\b" + "shared" + r"/(?:data|papers|hooks|[A-Z]+\.md)")


@cache
def files() -> list[Path]:
    """What is, or would be, committed; outside a git checkout everything but hidden and generated folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        generated = {".git", ".venvs", ".venv", "__pycache__", "build", "dist", "runs"}
        found = [path for path in ROOT.rglob("*") if generated.isdisjoint(path.relative_to(ROOT).parts)]
        return sorted(path for path in found if path.is_file() and "_cache" not in str(path.relative_to(ROOT)))
    paths = {ROOT / name.decode() for name in listed.split(b"\0") if name}
    return sorted(path for path in paths if path.is_file())


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    """`file:line: text` of every match in a text file."""
    found = []
    for path in files():
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    return found


@pytest.mark.parametrize("pattern", [HOST, MACHINE_PATH], ids=["package index", "machine path"])
def test_no_file_names(pattern: re.Pattern[str]) -> None:
    found = lines_with(pattern)
    assert not found, "\n".join(found)


def test_only_ci_knows_of_the_folder_beside_the_checkout() -> None:
    found = [line for line in lines_with(SIBLING) if not line.startswith(".ci/run:")]
    assert not found, "\n".join(found)


def test_files_are_small() -> None:
    large = [str(path.relative_to(ROOT)) for path in files() if path.stat().st_size > 6 * MEBIBYTE]
    assert not large


def test_zoo_is_small() -> None:
    zoo = ROOT / "models" / "zoo"
    assert sum(path.stat().st_size for path in files() if zoo in path.parents) < 60 * 10**6


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (HOST, f"https://{HOSTS[0]}/simple"),
        (MACHINE_PATH, "--data " + "/".join(("", "work", "data"))),
        (MACHINE_PATH, "cd " + "/".join(("", "root"))),
        (SIBLING, "/".join(("..", "shared", "data"))),
    ],
)
def test_patterns_find_what_they_should(pattern: re.Pattern[str], text: str) -> None:
    assert pattern.search(text)


@pytest.mark.parametrize(
    "text",
    ["data/" + "root/x", "$root/" + "work", "a/" + "work/b", "/" + "workers", "shared" + "/worker.md", "networks"],
)
def test_patterns_leave_the_rest_alone(text: str) -> None:
    assert not any(pattern.search(text) for pattern in (HOST, MACHINE_PATH, SIBLING))
