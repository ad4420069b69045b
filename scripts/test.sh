#!/usr/bin/env bash
# Lint, types and tests on a fresh clone: scripts/test.sh [options of pytest]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$here/install.sh"
install "[dev]"
export GOMP_SPINCOUNT=0 HF_HUB_OFFLINE=1
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
