#!/usr/bin/env bash
# install-locked.sh VENV LOCK -- locked requirements into a virtual environment, their modules compiled on all cores.
set -euo pipefail
venv=$1 lock=$2
# pip compiles file after file, on one core, and the packages' own tests too, which are a third of them.
"$venv/bin/pip" install --quiet --no-compile --no-deps --require-hashes --requirement "$lock"
"$venv/bin/python" -m compileall -q -j 0 -x '/tests/' "$venv/lib" ||
  echo "Some modules could not be compiled beforehand, which costs time at each start and nothing else." >&2
