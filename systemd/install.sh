#!/usr/bin/env bash
# Installs the daemon as a service, or updates it: from a checkout, from a wheel, or without a network from a folder
# that requirements/wheelhouse.sh made (which brings this script along). Run it again at any time: what is there
# already stays, and an update that is cut short leaves the old version running.
#
#   systemd/install.sh [--wheels DIR] [--wheel FILE] [--python PATH]
#       --wheels: from a wheelhouse or a folder of wheels, without a network; --wheel: this wheel of the project
#   systemd/install.sh --previous               back to the release before this one
#   systemd/install.sh --uninstall [--purge]    --purge: config, bundles and waiting messages go too
#
# --image: this machine is an image that is being made (a chroot, a container): nothing is started.
# --root DIR: the same below DIR, from outside; systemd makes the user edge when that machine boots.
# --dry-run only says what would be done.
#
# Wheels of your own in /etc/edge/wheels, such as Paddle Lite built on the board, go into each release.
set -Eeuo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root="" wheels="" wheel="" image="" previous="" uninstall="" purge="" dry_run="" step="reading the arguments"
START_SECONDS=1800 # systemd decides first whether a release started, and may be asked for more time by it

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# No subshell here: an argument that is wrong must end the script. An empty --root would mean the real machine.
while [ $# -gt 0 ]; do
    case $1 in
        --root | --wheels | --wheel | --python)
            [ -n "${2:-}" ] || fail "$1 wants a value"
            case $1 in
                --root) root=$2 ;;
                --wheels) wheels=$2 ;;
                --wheel) wheel=$2 ;;
                --python) export PYTHON=$2 ;;
            esac
            shift
            ;;
        --image) image=1 ;;
        --previous) previous=1 ;;
        --uninstall) uninstall=1 ;;
        --purge) purge=1 ;;
        --dry-run) dry_run=1 ;;
        -h | --help)
            sed -n '2,/^set/{s/^# \{0,1\}//;/^set/!p}' "$0"
            exit
            ;;
        *) fail "unknown argument $1; try --help" ;;
    esac
    shift
done
[ -z "$purge" ] || [ -n "$uninstall" ] || fail "--purge goes with --uninstall"
[ -z "$previous" ] || [ -z "$uninstall$wheel$wheels" ] || fail "--previous goes alone: it installs nothing"
[ -z "$root" ] || [ -z "$image" ] || fail "--image is for the machine that runs this, --root for another: give one"
trap 'echo "install.sh: stopped while $step; run it again when the cause is gone" >&2' ERR

run() { # what changes the machine
    if [ -n "$dry_run" ]; then
        echo "would run: $*"
    else
        "$@"
    fi
}

begin() {
    step=$1
    echo "- $1"
}

is_machine() { # not a folder that becomes one: its users are ours to make
    [ -z "$root" ]
}

is_live() { # its services run
    [ -z "$root$image" ]
}

check_machine() {
    if [ -n "$root" ]; then
        [ -d "$root" ] || fail "--root $root is not a folder"
        root=$(cd "$root" && pwd)
        [ "$root" != / ] || fail "--root / is the machine itself: leave --root out"
    elif [ -z "$dry_run" ]; then
        [ "$(id -u)" -eq 0 ] || fail "it must run as root: sudo systemd/install.sh"
        [ -n "$image" ] || [ -d /run/systemd/system ] ||
            fail "systemd does not run on this machine; --image installs without starting anything"
    fi
    umask 022
}

one_at_a_time() { # two installers would take each other's release for an old one
    [ -z "$dry_run" ] || return 0
    mkdir -p "$root/opt/edge"
    exec 9<"$root/opt/edge"
    flock --nonblock 9 || fail "another install.sh is at work in $root/opt/edge: wait for it"
}

# --- where it comes from ---

# Sets source (the folder with systemd/ in it), pins (what to install) and links (a folder of wheels, or nothing).
find_source() {
    source=$here links="" pins=$here/requirements/device.txt
    [ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels is not a folder"
    [ -n "$wheels" ] || [ ! -e "$here/SHA256SUMS" ] || wheels=$here # this script came in a wheelhouse
    if [ -n "$wheels" ]; then
        wheels=$(cd "$wheels" && pwd)
        links=$wheels
        [ ! -e "$wheels/SHA256SUMS" ] || take_wheelhouse
    fi
    [ -z "$wheel" ] || [ -f "$wheel" ] || fail "--wheel $wheel is not a file"
    [ -n "$wheel" ] || [ -z "$links" ] || wheel=$(newest "$links"/edge_inspection-*.whl)
    [ -n "$wheel" ] || [ -e "$here/setup.py" ] ||
        fail "there is no wheel of the project and no checkout around this script: give --wheels or --wheel"
    [ -e "$pins" ] || fail "$pins is missing: run the script where the checkout or the wheelhouse is"
}

take_wheelhouse() {
    local arch="" version=""
    begin "checking $wheels"
    (cd "$wheels" && sha256sum --check --quiet --strict SHA256SUMS) ||
        fail "$wheels is damaged: copy it again, or make it anew with requirements/wheelhouse.sh"
    read -r arch version <"$wheels/TARGET" || true
    [ "$arch" = "$(uname -m)" ] || fail "$wheels is for $arch, this machine is $(uname -m): make one with --arch $(uname -m)"
    source=$wheels links=$wheels/wheels pins=$wheels/requirements.txt wanted_python=$version
}

newest() { # the last of the names that exist, or nothing
    local found=""
    for path in "$@"; do
        [ ! -e "$path" ] || found=$path
    done
    echo "$found"
}

# Sets python. Those of the system come first: one in a home folder cannot be run by the user edge.
find_python() {
    local version name path
    if [ -n "${PYTHON:-}" ]; then
        python=$(command -v "$PYTHON" || true)
        is_good "${python:-false}" || fail "$PYTHON is not a Python ${wanted_python:-3.10, 3.11 or 3.12} $venv_hint"
        return 0
    fi
    for name in /usr/bin/python /usr/local/bin/python python; do
        for version in ${wanted_python:-3.10 3.11 3.12}; do
            path=$(command -v "$name$version") || continue
            if is_good "$path"; then
                python=$path
                return 0
            fi
        done
    done
    # It looks further, for 3.10: under pyenv and uv.
    python=$("$here/requirements/find-python.sh" 2>/dev/null || true)
    [ -z "$python" ] || ! is_good "$python" || return 0
    fail "there is no Python ${wanted_python:-3.10, 3.11 or 3.12} $venv_hint: apt install python3 python3-venv, or name one with --python"
}

wanted_python=""
venv_hint="that can make virtual environments"
is_good() { # PATH: a Python of a version that we want, which can make environments
    local version
    version=$("$1" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    case " ${wanted_python:-3.10 3.11 3.12} " in *" $version "*) ;; *) return 1 ;; esac
    [ -n "$pip_wheel" ] || "$1" -c 'import ensurepip' 2>/dev/null
}

# --- a release: a folder of its own below /opt/edge/releases ---

pip_install() { # from the wheels if they were given
    local from=() pip=(-m pip)
    [ -z "$links" ] || from=(--isolated --no-index --find-links "$links")
    [ -z "$pip_wheel" ] || pip=("$pip_wheel/pip") # pip runs from its wheel, and is no part of the release
    run "$release/bin/python" "${pip[@]}" --disable-pip-version-check --no-input install --quiet --no-deps \
        --root-user-action=ignore "${from[@]}" "$@"
}

# What the folder of a release is named by, so that the same one is not installed twice.
key_of_release() {
    {
        if [ -n "$wheel" ]; then
            sha256sum <"$wheel"
        else
            (cd "$here" && find setup.py requirements/build.txt edge -type f ! -name '*.pyc' -print0 |
                LC_ALL=C sort -z | xargs -0 sha256sum)
        fi
        (cd "$source" && find systemd -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
        sha256sum <"$pins"
        "$python" --version
        cat "$root"/etc/edge/wheels/*.whl "$source"/extra/*.whl 2>/dev/null || true
    } | sha256sum | cut -c1-12
}

version_of_release() {
    if [ -n "$wheel" ]; then
        basename "$wheel" | sed 's/^edge_inspection-\([^-]*\)-.*/\1/'
    else
        sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/edge/__init__.py"
    fi
}

make_release() {
    pip_wheel=""
    [ -z "$links" ] || pip_wheel=$(newest "$links"/pip-*.whl)
    find_python
    release=$root/opt/edge/releases/$(version_of_release)-$(key_of_release)
    if [ -e "$release/.complete" ] && "$release/bin/edge" --version >/dev/null 2>&1; then
        return 0
    fi
    [ "$(readlink -f "$root/opt/edge/current" || true)" != "$release" ] || [ ! -e "$release/.complete" ] ||
        begin "the release in use does not run any more: making it anew"
    begin "installing $(basename "$release") with $("$python" --version)"
    run mkdir -p "$root/opt/edge/releases"
    run rm -rf "$release"
    run "$python" -m venv ${pip_wheel:+--without-pip} "$release"
    install_project
    install_own_wheels
    make_movable
    run cp -r "$source/systemd" "$release/systemd"
    run chmod -R u=rwX,go=rX "$release"
    run sync -f "$release" # the mark below must not be on the disk before what it marks
    run touch "$release/.complete"
}

install_project() {
    local copy built
    if [ -n "$wheel" ]; then
        pip_install -r "$pins" "$wheel" # in one go: pip itself takes long to start on a small device
        return 0
    fi
    # The time of the commit goes into what is built: no device can be before it.
    built=$(git -c "safe.directory=$here" -C "$here" log -1 --format=%ct 2>/dev/null || true)
    [ -z "$built" ] || export SOURCE_DATE_EPOCH=$built
    copy=$(mktemp -d) # building leaves files behind, which the checkout need not have
    cp -r "$here"/{setup.py,pyproject.toml,README.md,LICENSE,edge} "$copy"
    pip_install -r "$pins" -r "$here/requirements/build.txt"
    pip_install --no-build-isolation "$copy"
    rm -rf "$copy"
}

install_own_wheels() {
    local path
    for path in "$source"/extra/*.whl "$root"/etc/edge/wheels/*.whl; do
        [ -e "$path" ] || continue
        begin "adding $(basename "$path")"
        case ${path##*/} in
            onnxruntime_*) run rm -rf "$release"/lib/python3*/site-packages/onnxruntime{,-*} ;; # they share one folder
        esac
        pip_install "$path"
    done
}

# The command finds its Python beside itself, so that a release made below --root runs where it is carried to.
make_movable() {
    begin "writing the command"
    [ -z "$dry_run" ] || return 0
    cat >"$release/bin/edge" <<'END'
#!/bin/sh
'''exec' "$(dirname -- "$(readlink -f -- "$0")")/python" "$0" "$@"
' '''
import sys

from edge.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
END
}

as_edge() { # runs a command as the service's user, where there is one
    if is_machine; then
        run runuser -u edge -- "$@"
    else
        run "$@"
    fi
}

# Nothing is switched before the new release has shown that it runs here, and that it takes the config that is in use.
check_release() {
    local config=$root/etc/edge/edge.toml
    begin "starting it once"
    as_edge "$release/bin/edge" --version || fail "the user edge cannot run $release/bin/edge: its Python may lie in a" \
        "home folder; install Python 3.10 or 3.11 for everybody and name it with --python"
    as_edge "$release/bin/python" -I -c 'import edge.daemon, edge.predictor' ||
        fail "$release does not load: see above what is missing, and whether the wheels are those of this machine"
    [ -e "$config" ] || return 0
    begin "reading $config with it"
    as_edge "$release/bin/edge" check-config --config "$config" >/dev/null ||
        fail "the new release refuses the config, and the old one stays: correct it as said above, then run this again"
}

# --- what lies outside of it; systemd/FILES of a release says which ---

files_of() { # RELEASE: lines of name, mode, place
    [ ! -e "$1/systemd/FILES" ] || grep -v '^#' "$1/systemd/FILES"
}

place_files() { # FROM-RELEASE (may be none) TO-RELEASE
    local name mode place
    begin "placing the units and their files"
    while read -r name mode place; do
        run mkdir -p "$root$(dirname "$place")"
        run install -m "$mode" "$2/systemd/$name" "$root$place.new"
        run mv -T "$root$place.new" "$root$place"
    done < <(files_of "$2")
    while read -r name mode place; do # what the other release had and this one has not
        files_of "$2" | grep -q " $place\$" || run rm -f "$root$place"
    done < <(files_of "$1")
}

link() { # TARGET NAME: at once, never a moment without
    run ln -sfn "$1" "$2.new"
    run mv -T "$2.new" "$2"
}

switch_to() { # RELEASE
    local old
    old=$(readlink "$root/opt/edge/current" || true)
    begin "making $(basename "$1") the current release"
    if [ -n "$old" ] && [ "$old" != "releases/$(basename "$1")" ]; then
        link "$old" "$root/opt/edge/previous"
    fi
    link "releases/$(basename "$1")" "$root/opt/edge/current"
    run mkdir -p "$root/usr/local/bin"
    link /opt/edge/current/bin/edge "$root/usr/local/bin/edge"
    place_files "$root/opt/edge/${old:-none}" "$1"
}

remove_old_releases() { # this one and the one before stay
    local path
    for path in "$root"/opt/edge/releases/*; do
        case $(readlink -f "$path") in
            "$(readlink -f "$root/opt/edge/current")" | "$(readlink -f "$root/opt/edge/previous")") ;;
            *) [ ! -d "$path" ] || run rm -rf "$path" ;;
        esac
    done
}

# Cameras, serial ports, GPU: the groups that this machine has of those.
make_user() {
    local group
    if ! is_machine; then
        run mkdir -p "$root/usr"
        run touch "$root/usr" # so that systemd-sysusers makes the user at the next boot
        return 0
    fi
    if ! getent passwd edge >/dev/null; then
        begin "making the user edge"
        run useradd --system --user-group --home-dir /var/lib/edge --no-create-home --shell /usr/sbin/nologin edge
    fi
    for group in video dialout render; do
        ! getent group "$group" >/dev/null || run usermod --append --groups "$group" edge
    done
}

write_config() {
    local config=$root/etc/edge/edge.toml
    run mkdir -p "$root/etc/edge/trust"
    if [ ! -e "$config" ]; then
        begin "writing a sample config, $config"
        run "$release/bin/python" -I -c 'import pathlib, sys, edge
path = pathlib.Path(sys.argv[1] + ".new")
path.touch(0o640)
path.write_bytes((pathlib.Path(edge.__file__).parent / "sample.toml").read_bytes())
path.rename(sys.argv[1])' "$config"
        ! is_machine || run chown root:edge "$config" # it may hold a password
    fi
}

# Once: who disables them later has a reason, and an update leaves that alone.
enable_units() {
    local wants=$root/etc/systemd/system
    [ -n "$first" ] || return 0
    begin "enabling the service and the timer"
    run mkdir -p "$wants/multi-user.target.wants" "$wants/timers.target.wants"
    link /etc/systemd/system/edge.service "$wants/multi-user.target.wants/edge.service"
    link /etc/systemd/system/edge-update.timer "$wants/timers.target.wants/edge-update.timer"
}

reload_udev() { # without it there are no sticks, and no reason to stop either
    run udevadm control --reload 2>/dev/null || echo "  udev does not run here: sticks will not be noticed"
}

start_units() {
    ! is_machine || run install -d -o edge -g edge -m 0700 /var/lib/edge
    is_live || return 0
    begin "telling systemd and udev"
    run systemctl daemon-reload
    run systemd-tmpfiles --create /etc/tmpfiles.d/edge.conf
    run systemctl try-reload-or-restart systemd-journald.service
    reload_udev
    [ -z "$first" ] || run systemctl start edge-update.timer
}

# A daemon that runs is restarted, and what does not come up is taken back.
restart_service() { # OLD-RELEASE (may be none)
    local failed=$release
    is_live && systemctl is-active --quiet edge.service || return 0
    begin "restarting the service"
    ! run timeout "$START_SECONDS" systemctl restart edge.service || return 0
    case $1 in
        "" | "$release") fail "the service does not start: journalctl -u edge -n 50 says why" ;;
    esac
    begin "going back to $(basename "$1"), since the service does not start"
    release=$1
    switch_to "$1"
    if [ -n "$previous_before" ] && [ "$previous_before" != "releases/$(basename "$1")" ]; then
        link "$previous_before" "$root/opt/edge/previous" # not the one that failed
    fi
    [ -n "$previous" ] || run rm -f "$failed/.complete" # to be made anew, should it be installed again
    run systemctl daemon-reload
    run systemctl restart edge.service || true
    fail "the new release did not start (journalctl -u edge says why), and $(basename "$1") runs again"
}

go_back() {
    local old
    [ -e "$root/opt/edge/previous/.complete" ] || fail "there is no release before this one in $root/opt/edge"
    old=$(readlink -f "$root/opt/edge/current")
    release=$(readlink -f "$root/opt/edge/previous")
    first=""
    check_release
    switch_to "$release"
    start_units
    restart_service "$old"
    echo "Current: $(basename "$release"). Again --previous returns to $(basename "$old")."
}

remove() {
    local name mode place
    begin "removing the service and the program"
    if is_live && [ -e /etc/systemd/system/edge.service ]; then
        run systemctl disable --now --quiet edge-update.timer edge.service || true
    fi
    while read -r name mode place; do
        run rm -f "$root$place"
    done < <(files_of "$root/opt/edge/current")
    run rm -f "$root/usr/local/bin/edge" "$root/etc/systemd/system/edge.service" \
        "$root"/etc/systemd/system/{multi-user.target.wants/edge.service,timers.target.wants/edge-update.timer}
    run rm -rf "$root/opt/edge"
    if is_live; then
        run systemctl daemon-reload
        reload_udev
    fi
    if [ -z "$purge" ]; then
        echo "Kept: $root/etc/edge and $root/var/lib/edge (--purge removes them too)"
        return 0
    fi
    begin "removing config and state"
    run rm -rf "$root/etc/edge" "$root/var/lib/edge" "$root/etc/systemd/system/edge.service.d"
    if is_machine && getent passwd edge >/dev/null; then
        run userdel edge
    fi
}

check_machine
one_at_a_time
previous_before=$(readlink "$root/opt/edge/previous" || true)
if [ -n "$uninstall" ]; then
    remove
    exit
fi
if [ -n "$previous" ]; then
    go_back
    exit
fi
find_source
first="" old=$(readlink -f "$root/opt/edge/current" || true)
[ -e "$root/etc/systemd/system/edge.service" ] || first=1
[ -d "$old/bin" ] || old=""
make_user
make_release
check_release
write_config
switch_to "$release"
enable_units
start_units
restart_service "$old"
remove_old_releases
step="done"
cat <<END
Installed $(basename "$release"). Next:
  1. edit $root/etc/edge/edge.toml, then: edge check-config --config /etc/edge/edge.toml
  2. sudo edge bundle trust ROOT.json, then: sudo edge bundle install SOURCE
  3. sudo systemctl start edge; systemctl status edge
END
