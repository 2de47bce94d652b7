#!/usr/bin/env bash
# Lint, types and tests:  bash test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source ./setup_env.sh

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy .
echo "== pytest"
# One thread a process: two threads each on two cores would wait for one another at every operation.
OMP_NUM_THREADS=1 python -m pytest -n auto --dist worksteal -m "not slow" "$@"
