# shellcheck shell=sh
# Sourced by the scripts beside it, with $root set to the repository's folder:
#
#   prepare_venv serve|test    makes or updates .venvs/NAME, with this package and what it needs in it
#
# PYTHON=... chooses the interpreter, pip's own PIP_... variables its index, proxy and certificates.
#
# The package is installed editable: the environment runs the checkout itself, so a `git pull` takes effect at once, and
# only a changed pyproject.toml, or a change of what is compiled, means installing again. `.installed`, written last, says
# what an environment was made from; without it (an installation that was interrupted) the environment is made anew.

: "${root:?set it before sourcing this file}"

say() {
  printf 'unperturb: %s\n' "$*" >&2
}

fail() {
  say "$@"
  exit 1
}

# Whether $1 runs and is new enough; an old Python, or a pyenv shim without a version behind it, is not.
is_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Whether $1 can make environments that have pip; Debian's can't without python3-venv.
has_venv() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Prints the Python to use: $PYTHON, else the first of the usual names that can make environments, else the first at all.
find_python() {
  if [ -n "${PYTHON:-}" ]; then
    is_python "$PYTHON" || fail "PYTHON=$PYTHON does not run, or is older than 3.11"
    printf '%s\n' "$PYTHON"
    return
  fi
  found=
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    is_python "$candidate" || continue
    found=${found:-$candidate}
    if has_venv "$candidate"; then
      found=$candidate
      break
    fi
  done
  [ -n "$found" ] || fail "no Python 3.11 or newer found (looked for python3, python3.14 ... python3.11).
  Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python; uv: uv python install),
  or name one: PYTHON=/path/to/python3.12 $0"
  printf '%s\n' "$found"
}

# Makes environment $2 with Python $1.
create_venv() {
  if has_venv "$1"; then
    "$1" -m venv "$2"
  elif command -v uv >/dev/null 2>&1; then
    uv venv --quiet --seed --python "$1" "$2"
  elif command -v virtualenv >/dev/null 2>&1; then
    virtualenv --quiet --python "$1" "$2"
  else
    fail "$1 can't make virtual environments: its venv or ensurepip module is missing.
  Debian, Ubuntu: apt install python3-venv. Elsewhere: install uv or virtualenv, or name another PYTHON=..."
  fi
}

# What an environment with Python $1 stands and falls with: that Python and the folder.
origin() {
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.implementation.name)' 2>/dev/null) || return 1
  printf 'Python %s in %s\n' "$version" "$root"
}

# All that it was made from.
describe() {
  origin "$1" && cat "$root/pyproject.toml" "$root"/models/*.cpp "$root"/models/*.h | cksum
}

# Whether environment $1 is complete. It keeps its Python unless PYTHON names another version.
is_complete() {
  [ -f "$1/.installed" ] && [ "$(head -n 1 "$1/.installed")" = "$(origin "${PYTHON:-$1/bin/python}")" ]
}

# Whether it needs nothing.
is_current() {
  is_complete "$1" && [ "$(cat "$1/.installed")" = "$(describe "$1/bin/python")" ]
}

prepare_venv() (
  set -eu
  venv=$root/.venvs/$1
  case $1 in
    serve) package=. ;;
    test) package='.[dev]' ;;
    *) fail "no such environment: $1" ;;
  esac
  if is_current "$venv"; then exit; fi

  mkdir -p "$root/.venvs"
  if command -v flock >/dev/null 2>&1; then # two first starts at once: the second waits, and finds all done
    exec 9>"$venv.lock"
    flock 9
    if is_current "$venv"; then exit; fi
  fi

  if ! is_complete "$venv"; then
    python=$(find_python)
    say "making .venvs/$1 with $python; the first time takes minutes, PyTorch is large"
    rm -rf "$venv"
    create_venv "$python" "$venv"
  fi
  description=$(describe "$venv/bin/python")
  rm -f "$venv/.installed"
  say "installing into .venvs/$1"
  cd "$root"
  "$venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check --editable "$package" ||
    fail "the installation failed, see above; once that is mended, run this again"
  printf '%s\n' "$description" >"$venv/.installed"
)
