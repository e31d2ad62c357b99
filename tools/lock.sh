#!/usr/bin/env bash
# lock.sh -- resolve requirements.lock and requirements-dev.lock anew, for every supported Python, with hashes.
set -euo pipefail
uv=$(dirname "$0")/../.venv/bin/uv
common=(--universal --python-version 3.11 --generate-hashes --no-annotate --no-header --quiet --no-emit-index-url --no-emit-find-links)
"$uv" pip compile pyproject.toml --extra build "${common[@]}" --output-file requirements.lock
"$uv" pip compile pyproject.toml --extra build --extra dev "${common[@]}" --constraint requirements.lock --output-file requirements-dev.lock
