"""A virtual environment for the peers alone: they are no dependency of this project.

It sees the packages of the interpreter that runs, PyTorch among them, through a `.pth` file; only what is missing is installed.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = ("litserve>=0.2.19", "ray[serve]>=2.60")
INSTALLED = ".installed"  # written last; without it an installation was interrupted


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "unperturb" / "peers"


def prepared(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made where it isn't there or was made from something else."""
    python, mark = folder / "bin" / "python", folder / INSTALLED
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    made_from = json.dumps([sys.version, packages, REQUIREMENTS])
    if mark.exists() and mark.read_text(encoding="utf-8") == made_from:
        return python
    print(f"installing {', '.join(REQUIREMENTS)} into {folder}", file=sys.stderr)
    mark.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    own = Path(_printed(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    (own / "beside.pth").write_text("\n".join(packages) + "\n", encoding="utf-8")
    install = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", *REQUIREMENTS]
    subprocess.run(install, check=True, stdout=sys.stderr)
    mark.write_text(made_from, encoding="utf-8")
    return python


def versions(python: Path, *packages: str) -> dict[str, str]:
    """What `python` would import, by package."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{name: m.version(name) for name in {packages}}}))"
    found: dict[str, str] = json.loads(_printed(python, code))
    return found


def _printed(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
