#!/usr/bin/env bash
# Gathers into the folder OUT all that a box without a network needs: the project's wheel, every pinned wheel for that
# box, pip and setuptools, the service's files, and SHA256SUMS over all of them. Carry OUT there and run
# OUT/systemd/install.sh.
#
#   requirements/wheelhouse.sh OUT [--arch aarch64|x86_64] [--python 3.10|3.11|3.12] [--add WHEEL]...
#
# --arch and --python are those of the box, not of this machine: JetPack 6 is aarch64 3.10 (the default), Raspberry Pi
# OS bookworm aarch64 3.11. --add: one more wheel that is to be installed there, such as Paddle Lite built on a board.
set -Eeuo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
out="" arch=aarch64 python=3.10 add=() step="reading the arguments"
# glibc 2.35 is JetPack 6's, and older than that of Raspberry Pi OS bookworm: wheels may ask for it or for less.
NEWEST_GLIBC=35
OLDEST_GLIBC=5

fail() {
    echo "wheelhouse.sh: $*" >&2
    exit 1
}

begin() {
    step=$1
    echo "- $1"
}

while [ $# -gt 0 ]; do
    case $1 in
        --arch | --python | --add)
            [ -n "${2:-}" ] || fail "$1 wants a value"
            case $1 in
                --arch) arch=$2 ;;
                --python) python=$2 ;;
                --add) add+=("$2") ;;
            esac
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0"
            exit
            ;;
        -*) fail "unknown argument $1; try --help" ;;
        *)
            [ -z "$out" ] || fail "one folder is enough: $out or $1"
            out=$1
            ;;
    esac
    shift
done
[ -n "$out" ] || fail "name the folder that is to be made; try --help"
case $arch in aarch64 | x86_64) ;; *) fail "--arch $arch is not aarch64 or x86_64" ;; esac
case $python in 3.10 | 3.11 | 3.12) ;; *) fail "--python $python is not 3.10, 3.11 or 3.12" ;; esac
[ ! -e "$out" ] || fail "$out is there already: remove it, or name another folder"
for wheel in "${add[@]}"; do
    [ -f "$wheel" ] || fail "--add $wheel is not a file"
done
trap 'echo "wheelhouse.sh: stopped while $step; run it again when the cause is gone" >&2' ERR

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/out/wheels"

begin "making the project's wheel"
"$("$here/requirements/find-python.sh")" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --no-input)
"${pip[@]}" install --quiet --no-deps -r "$here/requirements/build.txt" -r "$here/requirements/pip.txt"
mkdir "$work/source"
cp -r "$here"/{setup.py,pyproject.toml,README.md,LICENSE,edge} "$work/source"
# The same source gives the same wheel, to the last byte; its time is that of the commit, before which no device can be.
SOURCE_DATE_EPOCH=$(git -c "safe.directory=$here" -C "$here" log -1 --format=%ct 2>/dev/null || date -d 2020-01-01T00:00:00Z +%s)
export SOURCE_DATE_EPOCH
"${pip[@]}" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/out/wheels" "$work/source"

# pip reads `; platform_machine == ...` as of the machine that it runs on, so the pins are chosen here.
begin "choosing the pins for $arch with Python $python"
"$work/venv/bin/python" - "$arch" "$python" "$here/requirements/device.txt" >"$work/out/requirements.txt" <<'END'
import sys
from pip._vendor.packaging.requirements import Requirement

arch, python, path = sys.argv[1:]
target = {
    "platform_machine": arch,
    "python_version": python,
    "python_full_version": f"{python}.0",
    "platform_system": "Linux",
    "sys_platform": "linux",
    "os_name": "posix",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}
for line in open(path, encoding="utf-8"):
    line = line.partition("#")[0].strip()
    if line:
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(target):
            print(f"{pin.name}{pin.specifier}")
END

begin "downloading $(wc -l <"$work/out/requirements.txt") wheels for $arch with Python $python"
platforms=()
for minor in $(seq $NEWEST_GLIBC -1 $OLDEST_GLIBC); do
    platforms+=(--platform "manylinux_2_${minor}_$arch")
done
platforms+=(--platform "manylinux2014_$arch" --platform "manylinux2010_$arch" --platform "manylinux1_$arch")
platforms+=(--platform "linux_$arch")
abi=cp${python/./}
"${pip[@]}" download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
    --abi "$abi" --abi abi3 --abi none "${platforms[@]}" --dest "$work/out/wheels" \
    -r "$work/out/requirements.txt" -r "$here/requirements/build.txt" -r "$here/requirements/pip.txt"

begin "writing $out"
for wheel in "${add[@]}"; do
    mkdir -p "$work/out/extra"
    cp "$wheel" "$work/out/extra/"
done
cp -r "$here/systemd" "$here/LICENSE" "$work/out/"
mkdir "$work/out/requirements"
cp "$here/requirements/find-python.sh" "$work/out/requirements/"
printf '%s %s\n' "$arch" "$python" >"$work/out/TARGET"
(cd "$work/out" && find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum >"$work/sums")
mv "$work/sums" "$work/out/SHA256SUMS"
chmod -R u=rwX,go=rX "$work/out"
mkdir -p "$(dirname "$out")"
rm -rf "$out.part"
cp -r "$work/out" "$out.part" # the temporary folder may lie on another disk, where a move is not at once
mv -T "$out.part" "$out"
echo "$(du -sh "$out" | cut -f1) in $out for $arch with Python $python; on the box: sudo $(basename "$out")/systemd/install.sh"
