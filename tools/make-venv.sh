#!/usr/bin/env bash
# make-venv.sh VENV LOCK -- a virtual environment with Berth and its locked requirements, without conda.
set -euo pipefail
venv=$1 lock=$2
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Berth needs Python 3.11 or newer; $("$python" --version 2>&1) is too old. Set PYTHON=/path/to/python3.11." >&2
  exit 1
}
if ! "$python" -m venv --clear "$venv"; then
  # Debian and Ubuntu ship ensurepip apart from Python.
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q
    apt-get install -q -y --no-install-recommends python3-venv
    "$python" -m venv --clear "$venv"
  else
    echo "python3 -m venv failed. On Debian and Ubuntu: sudo apt-get install python3-venv; then make again." >&2
    exit 1
  fi
fi
# pip brings uv, which is quicker by far at all the rest.
sed -n '/^uv==/,/[^\\]$/p' "$lock" >"$venv/uv.lock"
"$venv/bin/pip" install --quiet --no-deps --require-hashes --requirement "$venv/uv.lock"
# Berth itself is installed after its requirements.
PYTHONPATH=$(dirname "$0")/../src "$venv/bin/python" "$(dirname "$0")/install_locked.py" "$venv" "$lock"
"$venv/bin/pip" install --quiet --no-deps --no-build-isolation --editable .
