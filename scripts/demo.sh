#!/usr/bin/env bash
# From a fresh clone to a textured GLB: scripts/demo.sh ["PROMPT" [options of `pgc3d text`]]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
start="$PWD"
source "$here/install.sh"
install ""
pgc3d="$PWD/.venv/bin/pgc3d"
cd "$start"
if [ "$#" -eq 0 ]; then
    set -- "a hamburger"
fi
exec "$pgc3d" text "$@"
