#!/usr/bin/env bash
# Lint, types, licences and tests on a fresh clone: scripts/test.sh [options of pytest], as -k NAME, or -n 0
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/install.sh"
install "[dev]"
export GOMP_SPINCOUNT=0 HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
scripts/audit.sh --offline
# A process per core, each of which needs 1 GB; `auto` would count a hyper-threaded pair of cores as one.
.venv/bin/python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
