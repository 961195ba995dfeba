#!/usr/bin/env bash
# Brings the virtual environment $1 to a level: `demo` (the device and its demo) or `dev` (everything).
# A run that was cut short leaves a mark; the next one then begins anew, since a package may be half unpacked.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 level=$2 mark=$1/.unfinished

exec 9<requirements
command -v flock >/dev/null && flock 9 # two makes at once: one waits for the other

pip_install() {
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps "$@"
}

if [ -e "$mark" ] || ! "$venv/bin/python" -c "" 2>/dev/null; then
    python=$(requirements/find-python.sh)
    echo "Making $venv with $python"
    rm -rf "$venv"
    mkdir "$venv"
    touch "$mark"
    "$python" -m venv "$venv"
fi
touch "$mark"
case $level in
    demo) echo "Installing what the device and its demo need (a download of some 120 MB, once)" ;;
    dev) echo "Installing the toolchain and the tests' tools (a download of some 250 MB, once)" ;;
esac
pip_install -r requirements/build.txt
pip_install -r "requirements/$level.txt"
pip_install --no-build-isolation --editable .
rm "$mark"
touch "$venv/.demo"
[ "$level" = demo ] || touch "$venv/.dev"
echo "Installed in $SECONDS s"
