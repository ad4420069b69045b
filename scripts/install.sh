# Sourced by demo.sh and test.sh: make .venv beside pyproject.toml and install the package with the extras $1.
# A second use is quick: what was installed is stamped with the hash of pyproject.toml.
install() {
    local extras="$1" python="" candidate stamp
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    for candidate in python3 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: Python 3.11 or 3.12 must be on the PATH as python3, python3.12 or python3.11; install one" >&2
        return 2
    fi
    stamp="$extras $("$python" -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')"
    if [ -x .venv/bin/python ] && grep -qxF -- "$stamp" .venv/pgc3d-stamp 2>/dev/null; then
        return 0
    fi
    echo "installing into .venv; the first time takes some minutes" >&2
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        if ! "$python" -m venv --clear .venv >/dev/null; then
            echo "error: $python must be able to make a virtual environment; install its venv and pip packages" >&2
            return 2
        fi
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --prefer-binary -e ".$extras"
    echo "$stamp" >>.venv/pgc3d-stamp
}
