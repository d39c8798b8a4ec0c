#!/usr/bin/env bash
# infra/setup.sh: make .venv hold exactly requirements-dev.txt and this package; nothing happens where it already does.
#
# About 25 s from a warm download cache, minutes (some 3 GB) from a cold one. Package indexes are the machine's own
# configuration: uv is asked first because it is fast, and pip, whose configuration it does not read, where uv fails.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.stride-stamp
# By content, not by time: a checkout touches files without changing them.
want=$(cat requirements-dev.txt infra/requirements-uv.txt pyproject.toml infra/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi

if [ ! -x .venv/bin/python ]; then
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "${python:-}" ]; then
        echo "error: Python 3.11 was not found (looked for python3.11, python3, python); install it and run again." >&2
        exit 1
    fi
    echo "setup: .venv with $("$python" --version)" >&2
    "$python" -m venv .venv
fi

export VIRTUAL_ENV="$PWD/.venv"
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip install --quiet --require-hashes --requirement infra/requirements-uv.txt
echo "setup: installing requirements-dev.txt" >&2
# Bytecode is made here, on all cores: where PYTHONDONTWRITEBYTECODE is set, every start of a command would otherwise
# compile some 6,000 modules again (9 s), and elsewhere the first one.
if .venv/bin/uv pip sync --quiet --compile-bytecode --require-hashes requirements-dev.txt; then
    .venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
else
    echo "setup: uv could not install (above); trying pip, which has its own configuration" >&2
    .venv/bin/python -m pip install --require-hashes --requirement requirements-dev.txt
    .venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
fi
echo "$want" > "$stamp"
echo "setup: done" >&2
