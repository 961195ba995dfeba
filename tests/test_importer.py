"""systemd/edge-import on real file systems: loop images play the stick, in a mount namespace of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULT = f"EDGE-RESULT-{os.uname().nodename}.txt"
EDGE_UID = 64_123
TOOLS = ("losetup", "mkfs.ext4", "debugfs", "unshare", "setpriv", "blkid", "lsblk")

# The script runs with the very paths of a device: /etc, /opt and /run are others in here. What lies below a folder that
# is covered, or that only root may enter, such as the Python of this machine, is put back at its place.
NAMESPACE = """
set -e
box=$1 keep=$2
shift 2
n=0
for path in $keep; do
    n=$((n + 1))
    mkdir -p "$box/keep/$n"
    mount --bind "$path" "$box/keep/$n"
done
mount --bind "$box/etc" /etc
mount --bind "$box/opt" /opt
mount -t tmpfs tmpfs /run
[ ! -d /root ] || mount -t tmpfs -o mode=0755 tmpfs /root
n=0
for path in $keep; do
    n=$((n + 1))
    mkdir -p "$path"
    mount --bind "$box/keep/$n" "$path"
done
"$@"
"""


def sh(*command: object, limit_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done


def can_mount() -> bool:
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in TOOLS) or not Path("/dev/loop-control").exists():
        return False
    return sh("unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt", check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="wants root, loop devices and mount namespaces")

FAKE = """#!/bin/sh
# Plays `edge`: says how it was called, and does as the test wants.
[ "$1 $2" = "bundle import" ] || exit 99
echo "arguments: $*"
echo "user: $(id -un), groups: $(id -Gn)"
grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
echo "options: $(findmnt --noheadings --output OPTIONS --mountpoint "$3")"
touch "$3/written" 2>/dev/null && echo "it could write"
. /opt/then
"""


@dataclass
class Box:
    """A device: its /etc and /opt, and the stick that is put into it."""

    folder: Path
    image: Path
    device: str = ""

    def plug(self, *options: str) -> str:
        self.device = sh("losetup", "--find", "--show", *options, self.image).stdout.strip()
        return self.device.removeprefix("/dev/")

    def unplug(self) -> None:
        if self.device:
            sh("losetup", "--detach", self.device, check=False)
            self.device = ""

    def then(self, script: str) -> None:
        (self.folder / "opt/then").write_text(script + "\n")

    def start(self, name: str, *more: object, before: str = "true") -> subprocess.Popen[str]:
        keep = " ".join({sys.base_prefix, str(ROOT)})
        script = f"{NAMESPACE}"
        words = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script, "namespace"]
        inner = f"{before}; exec /opt/edge/current/systemd/edge-import {name} {' '.join(map(str, more))}"
        words += [str(self.folder), keep, "bash", "-c", inner]
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def look(self, name: str, *more: object, before: str = "true") -> tuple[int, str]:
        """Runs the script on the device NAME; returns its status and what it said."""
        process = self.start(name, *more, before=before)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def on_stick(self, name: str) -> str:
        return sh("debugfs", "-R", f"cat {name}", self.image).stdout

    def names(self) -> str:
        return sh("debugfs", "-R", "ls -p /", self.image).stdout


def make_stick(image: Path, files: Path, kind: str = "ext4") -> None:
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(16 << 20)
    sh(f"mkfs.{kind}", "-q", "-F", "-N", 32, "-d", files, image)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What is on the stick: something that looks like a repository of bundles."""
    folder = tmp_path / "files"
    (folder / "metadata").mkdir(parents=True)
    (folder / "metadata/1.root.json").write_text("{}")
    (folder / "large").write_bytes(os.urandom(4 << 20))
    return folder


@pytest.fixture
def box(tmp_path: Path, files: Path) -> Iterator[Box]:
    folder = tmp_path / "box"
    current = folder / "opt/edge/current"
    (current / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "systemd", current / "systemd")
    (current / "bin/edge").write_text(FAKE)
    (current / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for path in (current / "bin").iterdir():
        path.chmod(0o755)
    (folder / "etc/edge").mkdir(parents=True)
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
        if Path("/etc", name).exists():
            shutil.copy(f"/etc/{name}", folder / "etc")
    shutil.copy(ROOT / "edge/sample.toml", folder / "etc/edge/edge.toml")
    for name, line in (("passwd", f"edge:x:{EDGE_UID}:{EDGE_UID}::/:/bin/sh"), ("group", f"edge:x:{EDGE_UID}:")):
        with (folder / "etc" / name).open("a") as file:
            file.write(line + "\n")
    made = Box(folder, tmp_path / "stick.img")
    make_stick(made.image, files)
    made.then("echo looked; exit 0")
    yield made
    made.unplug()


def test_a_stick_is_read_by_the_user_edge_alone_and_gets_the_result(box: Box) -> None:
    code, said = box.look(box.plug())
    assert code == 0, said
    result = box.on_stick(RESULT)
    assert "looked" in result and "looked" in said
    assert "user: edge, groups: edge" in result
    assert "CapEff:\t0000000000000000" in result and "CapBnd:\t0000000000000000" in result
    assert "NoNewPrivs:\t1" in result
    options = next(line for line in result.splitlines() if line.startswith("options: ")).removeprefix("options: ")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(options.split(","))
    assert "it could write" not in result
    assert "arguments: bundle import /run/edge-usb/" in result and "--config /etc/edge/edge.toml" in result


def test_what_is_refused_is_said_on_the_stick_too(box: Box) -> None:
    box.then("echo 'bundle pcb 5: signature: one of two keys'; echo 'for the log' >&2; exit 1")
    code, said = box.look(box.plug())
    assert code == 1
    assert "signature: one of two keys" in box.on_stick(RESULT)
    assert "for the log" in said and "for the log" not in box.on_stick(RESULT)


def test_an_import_that_dies_without_a_word_leaves_one(box: Box) -> None:
    (box.folder / "opt/edge/current/bin/edge").write_text("#!/bin/sh\nkill -9 $$\n")
    code, _ = box.look(box.plug())
    assert code == 137
    assert "journalctl -u edge-import@" in box.on_stick(RESULT)


def test_a_stick_with_a_partition(box: Box, tmp_path: Path, files: Path) -> None:
    part = tmp_path / "part.img"
    make_stick(part, files)
    with box.image.open("wb") as file:
        file.truncate(20 << 20)
    with box.image.open("r+b") as file:
        file.seek(446)  # a DOS partition table: one Linux partition from sector 2048 on
        file.write(struct.pack("<8B2I", 0, 0, 0, 0, 0x83, 0, 0, 0, 2048, 32768))
        file.seek(510)
        file.write(b"\x55\xaa")
        file.seek(2048 * 512)
        file.write(part.read_bytes())
    name = box.plug("--partscan")
    number = Path(f"/sys/block/{name}/{name}p1/dev")
    if not number.exists():
        pytest.skip("this kernel looks for no partitions on loop devices")
    node = Path(f"/dev/{name}p1")
    if not node.exists():  # udev or devtmpfs would have made it
        sh("mknod", node, "b", *number.read_text().strip().split(":"))
    try:
        code, said = box.look(f"{name}p1")
    finally:
        box.unplug()
        node.unlink(missing_ok=True)
    assert code == 0 and "the result is on" in said


@pytest.mark.parametrize("place", ["metadata", "edge-bundles"])
def test_where_bundles_may_lie(place: str, box: Box, tmp_path: Path, files: Path) -> None:
    if place != "metadata":
        (files / place).mkdir()
        shutil.move(files / "metadata", files / place)
        make_stick(box.image, files)
    assert "looked" in box.look(box.plug())[1]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "expected", "status"),
    [
        ("rm -r {files}/metadata", "no bundles on", 0),
        ("echo '[update]\nusb = false' >>{box}/etc/edge/edge.toml", "update.usb is false", 0),
        ("echo 'nonsense = 1' >>{box}/etc/edge/edge.toml", "cannot be read, so", 1),
    ],
)
def test_sticks_that_are_none_of_our_business_stay_as_they_are(
    change: str, expected: str, status: int, box: Box, files: Path
) -> None:
    config = box.folder / "etc/edge/edge.toml"
    config.write_text(config.read_text().replace("[update]\n", ""))  # as comments only, it is empty
    sh("bash", "-c", change.format(files=files, box=box.folder))
    make_stick(box.image, files)
    before = digest(box.image)
    code, said = box.look(box.plug())
    box.unplug()
    assert (code, expected in said) == (status, True), said
    assert "looked" not in said
    assert digest(box.image) == before


def test_other_file_systems_are_refused(box: Box, files: Path) -> None:
    make_stick(box.image, files, "ext2")
    before = digest(box.image)
    code, said = box.look(box.plug())
    assert code == 1 and "has ext2: format the stick with FAT, exFAT or ext4" in said
    assert digest(box.image) == before


def test_a_disk_in_use_is_left_alone(box: Box) -> None:
    name = box.plug()
    code, said = box.look(name, before=f"mount -o ro /dev/{name} /mnt")
    assert code == 0 and "belongs to a disk in use" in said and "looked" not in said


def test_a_link_on_the_stick_leads_nowhere(box: Box, files: Path) -> None:
    victim = box.folder / "etc/victim"
    victim.write_text("ours")
    (files / RESULT).symlink_to("/etc/victim")
    make_stick(box.image, files)
    code, _ = box.look(box.plug())
    assert code == 0
    assert victim.read_text() == "ours"
    assert "looked" in box.on_stick(RESULT), "the link itself was replaced"


def test_a_stick_that_is_read_only(box: Box) -> None:
    before = digest(box.image)
    code, said = box.look(box.plug("--read-only"))
    assert code == 0 and "looked" in said and "cannot be written to" in said
    assert digest(box.image) == before


def test_a_stick_that_is_full(box: Box, files: Path) -> None:
    name = box.plug()
    fill = f"mount /dev/{name} /mnt; n=0; while touch /mnt/$n 2>/dev/null; do n=$((n + 1)); done; umount /mnt"
    code, said = box.look(name, before=fill)
    assert code == 0 and "could not be left on" in said
    assert "EDGE-RESULT" not in box.names(), "nothing half-written stays"


def test_a_result_without_end_is_cut_off(box: Box) -> None:
    box.then("head -c 3000000 /dev/zero | tr '\\0' x; exit 0")
    assert box.look(box.plug())[0] == 0
    assert len(box.on_stick(RESULT)) == 65_536


def test_an_import_that_hangs_is_ended(box: Box) -> None:
    box.then("sleep 1000")
    code, said = box.look(box.plug(), 1)
    assert code == 124 and "took longer than 1 s" in said
    assert "took longer than 1 s" in box.on_stick(RESULT)


def test_a_stick_that_is_pulled_out(box: Box) -> None:
    """All reads and writes fail from one moment on, as on a USB disk that has gone."""
    started = box.folder / "opt/started"
    box.then(": >/opt/started; while dd if=$3/large of=/dev/null bs=1M iflag=direct 2>/dev/null; do :; done; exit 1")
    (box.folder / "opt").chmod(0o777)
    process = box.start(box.plug(), 30)
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.truncate(box.image, 0)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "could not be left on" in said or "cannot be written to" in said
    assert box.device not in sh("cat", "/proc/mounts").stdout


def test_it_ends_when_systemd_ends_it(box: Box) -> None:
    """The signal goes to the whole group, as systemd sends it when the device is gone."""
    started = box.folder / "opt/started"
    (box.folder / "opt").chmod(0o777)
    box.then(": >/opt/started; sleep 1000")
    process = box.start(box.plug())
    deadline = time.monotonic() + 30
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    children = sh("pgrep", "--parent", process.pid, check=False).stdout.split()
    for pid in {*children, *all_below(process.pid)}:
        sh("kill", "-TERM", pid, check=False)
    process.communicate(timeout=60)
    assert process.returncode != 0


def all_below(pid: int) -> set[str]:
    found: set[str] = set()
    for child in sh("pgrep", "--parent", pid, check=False).stdout.split():
        found |= {child} | all_below(int(child))
    return found


@pytest.mark.parametrize("name", ["", "../sda1", "no-such-device0", "null"])
def test_a_name_that_is_no_disk(name: str, box: Box) -> None:
    code, said = box.look(f"'{name}'")
    assert code == 1 and ("give the name of a block device" in said or "is not there" in said)
