"""The power goes: the disk as it was at some moment is mounted, and all that was told to be durable is there.

A writer works on an ext4 file system in an image file. At random moments it is stopped and the image is copied: what
the file system has not sent to its disk is not in there, as after a power cut. The copy is mounted, which replays its
journal as a boot would.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from edge.bundle import links, slots
from edge.bundle import manifest as manifests
from edge.bundle import trial as trials
from edge.errors import BundleError
from tests.bundle.slot_writer import Told, told
from tests.bundle.tiny_bundle import make_bundle

MEGABYTES = 16
WAIT_S = 60.0


@contextmanager
def mounted(image: Path, at: Path, options: str) -> Iterator[Path]:
    """An image as a file system; skips the test where this user may not mount one."""
    at.mkdir(exist_ok=True)
    command = ["mount", "-o", f"loop,{options}", str(image), str(at)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    if done.returncode != 0:
        pytest.skip(f"an image cannot be mounted here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        if subprocess.run(["umount", str(at)], check=False, timeout=WAIT_S).returncode != 0:
            subprocess.run(["umount", "-l", str(at)], check=True, timeout=WAIT_S)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An empty ext4 file system with a journal."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("making and mounting a disk needs root and mkfs.ext4")
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(MEGABYTES << 20)
    options = ["-q", "-F", "-b", "1024", "-J", "size=2", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    subprocess.run(["mkfs.ext4", *options, str(path)], check=True, timeout=WAIT_S)
    return path


class Writer:
    """The process that writes, and what it has told so far."""

    def __init__(self, state: Path, sources: Path) -> None:
        command = [sys.executable, "-m", "tests.bundle.slot_writer", str(state), str(sources)]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root)
        self.told: list[Told] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(msgspec.json.decode(line, type=Told))

    def wait_for(self, number: int) -> None:
        """Until so many steps were told."""
        until = time.monotonic() + WAIT_S
        while len(self.told) < number:
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                pytest.fail(f"the writer does not go on: {self._process.communicate()[1].decode()[-2000:]}")
            time.sleep(0.001)

    def pause(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)


def copied(image: Path) -> bytes:
    """The image at one moment: read until two looks in a row are the same, so nothing was written between them."""
    until = time.monotonic() + WAIT_S
    last = image.read_bytes()
    while (now := image.read_bytes()) != last:
        assert time.monotonic() < until
        last = now
    return now


def check(state: Path, possible: list[Told]) -> Told:
    """What the disk has is one of the states that the writer went through; its active slot is whole."""
    if (state / "bundles" / links.ACTIVE).is_symlink():
        manifests.read(slots.active(state))  # before anybody has settled anything
    else:
        assert possible[0].links[0] is None, "the active bundle is gone"
    if possible[0].put and possible[0].step.startswith("put"):
        manifests.read(state / "bundles" / possible[0].put)
    with slots._changing(state, "nothing") as bundles:
        links.settle(bundles)
    found = told(state)
    assert (found.mark, found.links, found.floor) in [(one.mark, one.links, one.floor) for one in possible]
    assert found.outcome in [one.outcome for one in possible]
    if found.links[0] is not None:
        manifests.read(slots.active(state))
        assert slots.told(state).origin == "usb"
    return found


def next_install_works(state: Path, source: Path) -> None:
    try:
        slots.stage(state, slots.put(source, state), signed=True, origin="network")
    except BundleError:
        slots.go_back(state, "test", "to make place")
        slots.stage(state, slots.put(source, state), signed=True, origin="network")
    slots.activate(state)
    slots.commit(state)
    assert manifests.read(slots.active(state)).version == 10**6
    left = {path.name for path in (state / "bundles").iterdir() if not trials.is_slot(path.name)}
    assert left <= {".lock", "active", "previous", trials.TRIAL, trials.ORIGINS, trials.FLOOR}


def cut(image: Path, writer: Writer, folder: Path, options: str, late: Path) -> Told:
    """One power cut, and a look at what it left."""
    before = len(writer.told)
    writer.pause()
    copy = folder / f"cut-{before}.img"  # each its own: a loop device may outlive its mount for a while
    copy.write_bytes(copied(image))
    after = len(writer.told)
    writer.go_on()
    writer.wait_for(after + 2)  # one line may have been under way when we looked
    possible = writer.told[max(before - 1, 0) : after + 2]
    with mounted(copy, folder / "cut", options) as disk:
        found = check(disk / "state", possible)
        next_install_works(disk / "state", late)
    copy.unlink()
    return found


CUTS = [
    pytest.param("data=ordered,commit=5,noauto_da_alloc", 5, id="ordered 5"),
    pytest.param("data=ordered,commit=5,noauto_da_alloc", 100, id="ordered 100", marks=pytest.mark.slow),
    pytest.param("data=writeback,commit=5,noauto_da_alloc", 100, id="writeback 100", marks=pytest.mark.slow),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("options", "cuts"), CUTS)
def test_what_was_told_is_on_the_disk_when_the_power_goes(options: str, cuts: int, image: Path, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    chance, found = random.Random(seed), []
    late = make_bundle(tmp_path / "late", 10**6, 100)
    (tmp_path / "sources").mkdir()
    with mounted(image, tmp_path / "disk", options) as disk:
        (disk / "state").mkdir()
        os.sync()
        writer = Writer(disk / "state", tmp_path / "sources")
        try:
            writer.wait_for(2)
            for _ in range(cuts):
                time.sleep(chance.uniform(0.0, 0.5))
                found.append(cut(image, writer, tmp_path, options, late))
        finally:
            writer.stop()
    stages = {one.mark.stage for one in found if one.mark is not None}
    print(f"seed {seed}: {cuts} cuts among {len(writer.told)} steps; stages found: {', '.join(sorted(stages))}")
    assert len({one.links for one in found}) > 1, "the writer moved on between the cuts"
