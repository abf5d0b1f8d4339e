#!/usr/bin/env bash
# Makes the environment and passes lint, types and tests. Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/pyright
PYTHONPATH=. .venv/bin/lint-imports --no-cache
# Tests of kills and engines wait a good deal: three workers keep two cores busy.
.venv/bin/pytest --numprocesses "${WORKERS:-3}" --dist worksteal "$@"
