#!/bin/sh
# Prints the path of a Python 3.10 that runs and can make virtual environments, or says how to get one.
# Python 3.10, since Paddle Lite has no wheel for a newer one. Looks at $PYTHON, PATH, pyenv, uv, in this order.

broken=""

try() { # PATH: prints it and ends the script when it is what we want
    [ -n "$1" ] || return 0
    # A pyenv shim exists for versions that are not selected, and fails when it is run.
    found=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null) || return 0
    [ "${found%% *}" = "3.10" ] || return 0
    if "${found#* }" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "${found#* }"
        exit 0
    fi
    broken="${found#* }"
}

if [ -n "${PYTHON:-}" ]; then
    try "$(command -v "$PYTHON")"
    echo "PYTHON=$PYTHON is not a Python 3.10 that runs and can make virtual environments." >&2
    exit 1
fi
for name in python3.10 python3 python; do
    try "$(command -v "$name")"
done
for root in "${PYENV_ROOT:-}" "$(pyenv root 2>/dev/null)" "${HOME:-/root}/.pyenv"; do
    [ -n "$root" ] || continue
    for path in "$root"/versions/3.10*/bin/python3.10; do
        try "$path"
    done
done
try "$(uv python find 3.10 2>/dev/null)"
if command -v uv >/dev/null 2>&1 && uv python install 3.10 >&2; then
    try "$(uv python find 3.10 2>/dev/null)"
fi

if [ -n "$broken" ]; then
    echo "$broken cannot make virtual environments: install its venv module (Debian, Ubuntu, JetPack: apt install python3.10-venv)." >&2
else
    echo "No Python 3.10 was found on PATH, under pyenv or through uv: get it with apt install python3.10 python3.10-venv (Ubuntu 22.04, JetPack 6), pyenv install 3.10, or by installing uv, which fetches it." >&2
fi
exit 1
