#!/bin/sh
# Installs what is needed into .venvs/serve (once, see venv.sh) and starts the service: ./scripts/serve.sh [--port 9000 ...]
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
# shellcheck source=scripts/venv.sh
. "$root/scripts/venv.sh"

prepare_venv serve
exec "$root/.venvs/serve/bin/unperturb" serve "$@"
