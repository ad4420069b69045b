#!/usr/bin/env bash
# Licences and known vulnerabilities of what is installed: scripts/audit.sh [--offline]
# --offline leaves the vulnerabilities out, whose list is that of the package index. PYTHON is the interpreter of
# another environment than .venv.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-$here/../.venv/bin/python}"
tools="$here/../.venv/bin"
# Permissive ones, weak copyleft by file (MPL), and SPDX's name of the licence of OpenUSD.
allowed="MIT;BSD;Apache;ISC;PSF;Python Software Foundation;Unlicense;Zlib;CC0;HPND;BSL-1.0"
allowed="$allowed;MPL-2.0;Mozilla Public License 2.0;LicenseRef-TOST-1.0"
# Without a licence in their metadata (assimp-py: MIT), or NVIDIA's, which torch's builds for CUDA bring along.
proprietary="$("$python" -c 'import importlib.metadata as m; print(*{d.name for d in m.distributions() if d.name.startswith("nvidia-")})')"
licences() {
    # shellcheck disable=SC2086 # names without spaces, one argument each
    "$tools/pip-licenses" --python "$python" --from mixed --partial-match "$@" \
        --ignore-packages assimp-py assimp_py cuda-toolkit $proprietary >/dev/null
}
licences --allow-only "$allowed"
licences --fail-on "GPL;General Public License"  # also beside an allowed one
echo "licences: all are of the kinds that may be used beside Apache-2.0"
# All but pgc3d, which is on no index; torch's builds for CPUs have the vulnerabilities of the version itself.
installed() {
    "$python" -c 'import importlib.metadata as m
for name, version in sorted({(d.name, d.version.partition("+")[0]) for d in m.distributions()}):
    if name != "pgc3d":
        print(f"{name}=={version}")'
}
if [ "${1:-}" != "--offline" ]; then
    "$tools/pip-audit" --strict --no-deps --disable-pip --requirement <(installed)
fi
