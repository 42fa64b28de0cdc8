#!/bin/sh
# Installs what is needed into .venvs/test (once, see venv.sh) and runs every check, up to the first that fails:
# ./scripts/test.sh [pytest's arguments, paths from the repository's folder]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/venv.sh
. "$root/scripts/venv.sh"

prepare_venv test
python=$root/.venvs/test/bin/python
cd "$root"
"$python" -m ruff check
"$python" -m ruff format --check
"$python" -m mypy
exec "$python" -m pytest "$@"
