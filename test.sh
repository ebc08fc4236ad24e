#!/usr/bin/env bash
# Sets everything up, where that is still to do, and runs every check. Arguments go to pytest: ./test.sh -k store
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./setup.sh dev,hub,gym,hdf5
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tests run in two processes
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/pytest -n 2 --dist worksteal "$@"
