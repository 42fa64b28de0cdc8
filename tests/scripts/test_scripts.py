"""serve.sh and test.sh, run for real with a stand-in for Python that only notes what it is asked."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "cat", "cksum", "cp", "dirname", "flock", "head", "mkdir", "rm", "chmod")
STAND_IN = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
  *"{failing}"*) exit 1 ;;
  *"version_info[:2]"*) echo "{version} cpython" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) printf '#!/bin/sh\\necho unperturb "$@"\\n' >"${{0%/*}}/unperturb" && chmod +x "${{0%/*}}/unperturb" ;;
esac
"""


class Machine:
    """A checkout in a folder with spaces, and a PATH with no Python but those that a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin, self.log = folder / "my projects" / "unperturb", folder / "bin", folder / "log"
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        (self.checkout / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
        (self.checkout / "models").mkdir()
        for source in ("winograd.cpp", "vectors.h"):
            (self.checkout / "models" / source).write_text("// compiled\n", encoding="utf-8")
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)

    def add(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def python(self, name: str = "python3", version: str = "3.12", failing: str = "nothing fails") -> Path:
        """Install a stand-in; what it is asked that contains `failing` fails."""
        return self.add(name, STAND_IN.format(version=version, failing=failing))

    def run(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script from a folder that has nothing to do with it; the log starts anew."""
        self.log.write_text("", encoding="utf-8")
        command = [str(self.checkout / "scripts" / script), *arguments]
        env = {"PATH": str(self.bin), "LOG": str(self.log), **env}
        return subprocess.run(command, env=env, cwd=self.bin, capture_output=True, text=True, check=False)

    def asked(self, what: str) -> list[str]:
        """The notes that begin with `what`."""
        return [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith(what)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_first_start_installs_and_serves(machine: Machine) -> None:
    machine.python()
    found = machine.run("serve.sh", "--port", "9000", "--zoo", "my models")
    assert found.stdout == "unperturb serve --port 9000 --zoo my models\n"
    assert machine.asked("-m venv") == [f"-m venv {machine.checkout}/.venvs/serve"]
    assert machine.asked("-m pip install")[0].endswith("--editable .")


def test_second_start_installs_nothing(machine: Machine) -> None:
    machine.python()
    machine.run("serve.sh")
    found = machine.run("serve.sh")
    assert (found.stdout, found.stderr) == ("unperturb serve\n", "")
    assert machine.asked("-m") == []


@pytest.mark.parametrize("file", ["pyproject.toml", "models/winograd.cpp", "models/vectors.h"])
def test_changed_dependencies_and_sources_are_installed_into_the_same_environment(machine: Machine, file: str) -> None:
    machine.python()
    machine.run("serve.sh")
    (machine.checkout / file).write_text("[project]\nname='x'\n", encoding="utf-8")
    machine.run("serve.sh")
    assert len(machine.asked("-m pip install")) == 1
    assert machine.asked("-m venv") == []


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_environment_is_made_anew_for_another_python_only(machine: Machine, version: str) -> None:
    machine.python()
    machine.run("serve.sh")
    other = machine.python("other", version=version)
    machine.run("serve.sh", PYTHON=str(other))
    assert len(machine.asked("-m venv")) == (version != "3.12")


def test_moved_checkout_gets_a_new_environment(machine: Machine) -> None:
    machine.python()
    machine.run("serve.sh")
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    machine.run("serve.sh")
    assert len(machine.asked("-m venv")) == 1


def test_failed_installation_is_told_and_redone(machine: Machine) -> None:
    machine.python(failing="-m pip")
    found = machine.run("serve.sh")
    assert found.returncode == 1
    assert "the installation failed" in found.stderr
    machine.python()
    assert machine.run("serve.sh").stdout == "unperturb serve\n"
    assert len(machine.asked("-m venv")) == 1


def test_interrupted_update_is_redone_from_scratch(machine: Machine) -> None:
    machine.python()
    machine.run("serve.sh")
    (machine.checkout / "pyproject.toml").write_text("[project]\nname='x'\n", encoding="utf-8")
    machine.add("../my projects/unperturb/.venvs/serve/bin/python", STAND_IN.format(version="3.12", failing="-m pip"))
    assert machine.run("serve.sh").returncode == 1
    assert machine.run("serve.sh").stdout == "unperturb serve\n"
    assert len(machine.asked("-m venv")) == 1


def test_python_that_does_not_run_is_skipped(machine: Machine) -> None:
    machine.add("python3", "#!/bin/sh\nexit 127\n")
    machine.python("python3.13", failing="version_info < (3, 11)")
    machine.python("python3.12")
    assert "with python3.12;" in machine.run("serve.sh").stderr


def test_python_that_can_make_environments_is_preferred(machine: Machine) -> None:
    machine.python("python3", failing="import ensurepip")
    machine.python("python3.11")
    assert "with python3.11;" in machine.run("serve.sh").stderr


def test_missing_python_is_told_with_the_fix(machine: Machine) -> None:
    found = machine.run("serve.sh")
    assert found.returncode == 1
    assert "no Python 3.11 or newer found" in found.stderr
    assert "apt install python3 python3-venv" in found.stderr


def test_unusable_choice_of_python_is_told(machine: Machine) -> None:
    machine.python()
    found = machine.run("serve.sh", PYTHON="python2")
    assert found.returncode == 1
    assert "PYTHON=python2 does not run" in found.stderr


def test_missing_venv_module_is_told_with_the_fix(machine: Machine) -> None:
    machine.python(failing="import ensurepip")
    found = machine.run("serve.sh")
    assert found.returncode == 1
    assert "apt install python3-venv" in found.stderr


@pytest.mark.parametrize("tool", ["uv", "virtualenv"])
def test_missing_venv_module_is_made_up_for(machine: Machine, tool: str) -> None:
    python = machine.python(failing="import ensurepip")
    machine.add(tool, f'#!/bin/sh\nfor last; do :; done\nmkdir -p "$last/bin" && cp "{python}" "$last/bin/python"\n')
    assert machine.run("serve.sh").stdout == "unperturb serve\n"


def test_all_checks_run_in_order(machine: Machine) -> None:
    machine.python()
    assert machine.run("test.sh", "-k", "a b").returncode == 0
    assert machine.asked("-m")[2:] == ["-m ruff check", "-m ruff format --check", "-m mypy", "-m pytest -k a b"]
    assert machine.asked("-m pip install")[0].endswith("--editable .[dev]")


def test_first_failing_check_ends_the_run(machine: Machine) -> None:
    machine.python(failing="-m mypy")
    assert machine.run("test.sh").returncode == 1
    assert len(machine.asked("-m ruff")) == 2
    assert not machine.asked("-m pytest")


@pytest.mark.parametrize("script", ["scripts/serve.sh", "scripts/smoke.sh", "scripts/test.sh", ".ci/run"])
def test_scripts_are_executable(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
