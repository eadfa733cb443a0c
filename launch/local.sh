#!/usr/bin/env bash
# Sets up .venv in this clone and runs one verb:
#   launch/local.sh train      trains on the embedded data (any flag of `fedrsclip train` may follow)
#   launch/local.sh test       runs all tests (any flag of pytest may follow)
#   launch/local.sh VERB ...   any other verb of fedrsclip
# PYTHON names the interpreter that makes the environment (3.11 or newer); VENV the environment's folder; EXTRAS what is
# installed of setup.cfg's extras, such as onnx,test; without it, test.
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$top/.venv}"

if [ $# -eq 0 ]; then
  echo "usage: launch/local.sh VERB ...  (train, test, or another verb of fedrsclip)" >&2
  exit 2
fi

if [ ! -x "$venv/bin/python" ]; then
  python="${PYTHON:-python3}"
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "launch/local.sh: $python is not Python 3.11 or newer; set PYTHON to one" >&2
    exit 2
  fi
  "$python" -m venv "$venv"
fi

# Installed once for each set of extras, and again when what is to be installed has changed.
extras="${EXTRAS:-test}"
stamp="$venv/.installed-$extras-$(cat "$top/setup.cfg" "$top/setup.py" "$top/pyproject.toml" | cksum | tr -d ' \t')"
if [ ! -f "$stamp" ]; then
  echo "launch/local.sh: installing into $venv (once; a few minutes)" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "${top}[$extras]"
  touch "$stamp"
fi

verb="$1"
shift
if [ "$verb" = test ]; then
  cd "$top"
  # A file stays with one process, which then compiles its programs once; tests/conftest.py orders them.
  exec "$venv/bin/python" -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder "$@"
fi
export FEDRSCLIP_LAUNCHER="${FEDRSCLIP_LAUNCHER:-$0}" # of the line that says how to go on
exec "$venv/bin/fedrsclip" "$verb" "$@"
