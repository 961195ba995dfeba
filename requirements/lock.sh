#!/usr/bin/env bash
# Writes the three lock files anew from what setup.py asks for: device.txt, demo.txt on top of it, dev.txt on top of that.
# Usage: requirements/lock.sh (with a Python 3.10 that requirements/find-python.sh finds, on x86-64)
set -euo pipefail
cd "$(dirname "$0")/.."

SLIM="paddleslim==2.6.0"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(requirements/find-python.sh)

freeze() { # EXTRAS: what a clean environment holds with these extras, one pin a line
    "$python" -m venv --clear "$work/venv"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check ".${1:+[$1]}"
    "$work/venv/bin/pip" freeze --exclude edge-inspection | grep -v " @ " | LC_ALL=C sort -f
}

lock() { # NAME WHAT BASE HEAD: the pins on stdin that BASE does not have, after the lines of HEAD
    {
        echo "# $2. All pinned; written by requirements/lock.sh."
        echo "# Install with: pip install --no-deps -r requirements/$1.txt"
        cat "$4"
        grep -vxFf "$3" || true
    } >"$work/$1.txt"
    mv "$work/$1.txt" requirements/
}

freeze "" >"$work/device"
freeze onnx >"$work/onnx"
freeze demo >"$work/demo"
freeze demo,onnx,tools,test >"$work/dev"

# Where Paddle Lite has no wheel, ONNX Runtime is the device's runtime.
grep -vxFf "$work/device" "$work/onnx" | sed 's/$/; platform_machine != "x86_64" or python_version >= "3.11"/' >"$work/arm"
sed 's/^paddlelite==.*/&; platform_machine == "x86_64" and python_version < "3.11"/' "$work/device" >"$work/pins"
echo "an-environment-is-never-empty" >"$work/none"
: >"$work/head"
cat "$work/pins" "$work/arm" | lock device "What runs on the device" "$work/none" "$work/head"
echo "-r device.txt" >"$work/head"
lock demo "The device, and what \`edge demo\` and \`edge watch\` show it with" "$work/device" "$work/head" <"$work/demo"
{
    echo "-r demo.txt"
    echo "$SLIM  # its own requirements would put opencv-python over our cv2"
} >"$work/head"
cat "$work/device" "$work/demo" >"$work/base"
lock dev "Everything: device, demo, toolchain, tests" "$work/base" "$work/head" <"$work/dev"
wc -l requirements/*.txt
