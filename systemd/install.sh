#!/usr/bin/env bash
# Installs the daemon of this checkout as a service, or updates it. Run it again at any time: what is there already
# stays, and an update that is cut short leaves the old version running.
#
#   systemd/install.sh [--wheels DIR] [--python PATH]   --wheels: install from a folder of wheels, without a network
#   systemd/install.sh --uninstall [--purge]            --purge: config, bundles and waiting messages go too
#
# --root DIR writes below DIR and leaves users and services alone; --dry-run only says what would be done.
set -Eeuo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
root="" wheels="" uninstall="" purge="" dry_run="" step="reading the arguments"

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# No subshell here: an argument that is wrong must end the script. An empty --root would mean the real machine.
while [ $# -gt 0 ]; do
    case $1 in
        --root | --wheels | --python)
            [ -n "${2:-}" ] || fail "$1 wants a value"
            case $1 in
                --root) root=$2 ;;
                --wheels) wheels=$2 ;;
                --python) export PYTHON=$2 ;;
            esac
            shift
            ;;
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

is_live() { # users and services are touched on the real machine only
    [ -z "$root" ]
}

check_machine() {
    if [ -n "$root" ]; then
        [ -d "$root" ] || fail "--root $root is not a folder"
        root=$(cd "$root" && pwd)
        [ "$root" != / ] || fail "--root / is the machine itself: leave --root out"
    elif [ -z "$dry_run" ]; then
        [ "$(id -u)" -eq 0 ] || fail "it must run as root: sudo systemd/install.sh"
        [ -d /run/systemd/system ] || fail "systemd does not run on this machine; --root DIR installs without it"
    fi
    [ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels is not a folder"
    [ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd)
}

pip_install() { # from the wheels if they were given
    local source=()
    [ -z "$wheels" ] || source=(--no-index --find-links "$wheels")
    run "$release/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --no-deps "${source[@]}" "$@"
}

make_user() {
    is_live || return 0
    begin "making the user edge"
    getent passwd edge >/dev/null ||
        run useradd --system --user-group --home-dir /var/lib/edge --no-create-home --shell /usr/sbin/nologin edge
}

# Each release has a folder of its own; the link `current` moves when it is complete.
make_release() {
    local version key python copy
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$here/edge/__init__.py")
    key=$(cd "$here" && find setup.py requirements/build.txt requirements/device.txt edge -type f ! -name '*.pyc' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
    release=$root/opt/edge/releases/$version-$key
    [ ! -e "$release/.complete" ] || return 0
    begin "installing edge $version into $release"
    [ -n "${PYTHON:-}" ] || [ ! -x /usr/bin/python3.10 ] || export PYTHON=/usr/bin/python3.10 # not one in root's home
    python=$("$here/requirements/find-python.sh")
    run mkdir -p "$root/opt/edge/releases"
    run rm -rf "$release"
    run "$python" -m venv "$release"
    pip_install -r "$here/requirements/build.txt"
    pip_install -r "$here/requirements/device.txt"
    copy=$(mktemp -d) # building leaves files behind, which the checkout need not have
    cp -r "$here"/{setup.py,pyproject.toml,README.md,LICENSE,edge} "$copy"
    pip_install --no-build-isolation "$copy"
    rm -rf "$copy"
    run touch "$release/.complete"
}

check_release() {
    begin "starting it once"
    if is_live; then
        run runuser -u edge -- "$release/bin/edge" --version ||
            fail "the user edge cannot run $release/bin/edge: its Python may lie in a home folder;" \
                "install Python 3.10 for everybody and name it with --python"
    else
        run "$release/bin/edge" --version
    fi
}

switch_release() {
    begin "making it the current release"
    local old
    old=$(readlink "$root/opt/edge/current" || true)
    run ln -sfn "releases/$(basename "$release")" "$root/opt/edge/current.new"
    run mv -T "$root/opt/edge/current.new" "$root/opt/edge/current"
    run mkdir -p "$root/usr/local/bin"
    run ln -sfn /opt/edge/current/bin/edge "$root/usr/local/bin/edge"
    for path in "$root"/opt/edge/releases/*; do # the new one and the one before stay
        [ ! -d "$path" ] || [ "$path" = "$release" ] || [ "releases/$(basename "$path")" = "$old" ] || run rm -rf "$path"
    done
}

write_config() {
    local config=$root/etc/edge/edge.toml
    run mkdir -p "$root/etc/edge"
    if [ ! -e "$config" ]; then
        begin "writing a sample config, $config"
        run install -m 0640 "$here/edge/sample.toml" "$config"
        ! is_live || run chown root:edge "$config" # it may hold a password
    fi
}

enable_unit() {
    begin "installing the service"
    run mkdir -p "$root/etc/systemd/system"
    run install -m 0644 "$here/systemd/edge.service" "$root/etc/systemd/system/edge.service"
    is_live || return 0
    run install -d -o edge -g edge -m 0750 /var/lib/edge
    run systemctl daemon-reload
    run systemctl enable --quiet edge.service
    if [ -d /run/systemd/system ] && systemctl is-active --quiet edge.service; then
        begin "restarting the service"
        run systemctl restart edge.service
    fi
}

remove() {
    begin "removing the service and the program"
    if is_live && [ -e /etc/systemd/system/edge.service ]; then
        run systemctl disable --now --quiet edge.service
    fi
    run rm -f "$root/etc/systemd/system/edge.service" "$root/usr/local/bin/edge"
    run rm -rf "$root/opt/edge"
    ! is_live || run systemctl daemon-reload
    if [ -z "$purge" ]; then
        echo "Kept: $root/etc/edge and $root/var/lib/edge (--purge removes them too)"
        return 0
    fi
    begin "removing config and state"
    run rm -rf "$root/etc/edge" "$root/var/lib/edge"
    if is_live && getent passwd edge >/dev/null; then
        run userdel edge
    fi
}

check_machine
if [ -n "$uninstall" ]; then
    remove
    exit
fi
make_user
make_release
check_release
switch_release
write_config
enable_unit
step="done"
cat <<END
Installed. Next:
  1. edit $root/etc/edge/edge.toml, then: edge check-config --config /etc/edge/edge.toml
  2. sudo edge bundle install DIR
  3. sudo systemctl start edge; systemctl status edge
END
