"""Slots: an install happens or does not; errors leave the active bundle alone. `test_kills` cuts it short."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.bundle import manifest as manifests
from edge.bundle import slots
from edge.bundle.manifest import MANIFEST
from edge.errors import BundleError
from tests.bundle.tiny_bundle import install, make_bundle


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "first", 1)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "second", 2)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def active_version(state: Path) -> int:
    return manifests.read(slots.active(state)).version


def names(state: Path) -> list[str]:
    """What lies there, but for the lock and the marks."""
    return sorted(p.name for p in (state / "bundles").iterdir() if p.name != ".lock" and p.suffix != ".json")


def test_the_first_install(first: Path, state: Path) -> None:
    slot = install(first, state)
    assert slot == slots.active(state) and slots.previous(state) is None
    shutil.rmtree(first)
    assert active_version(state) == 1, "the slot stands on its own"
    assert not any(path.is_symlink() for path in slot.rglob("*"))


def test_the_second_install_keeps_the_first_as_previous_and_a_third_drops_it(
    first: Path, second: Path, state: Path, tmp_path: Path
) -> None:
    one, two = install(first, state), install(second, state)
    assert slots.previous(state) == one
    three = install(make_bundle(tmp_path / "third", 3), state)
    assert names(state) == sorted(["active", "previous", two.name, three.name])
    assert slots.rollback(state) == two
    assert active_version(state) == 2
    assert slots.rollback(state) == three, "and back again"


def test_installing_the_same_bundle_again_changes_nothing(first: Path, second: Path, state: Path) -> None:
    install(first, state)
    slot = install(second, state)
    before, made = names(state), slot.stat().st_mtime_ns
    assert install(second, state) == slot and slot.stat().st_mtime_ns == made
    assert names(state) == before
    assert slots.rollback(state).name.startswith("pcb-1-"), "what was previous still is"


def test_a_damaged_active_slot_is_replaced_by_installing_again(first: Path, state: Path) -> None:
    damaged = install(first, state)
    (damaged / "CARD.md").write_text("x")
    again = install(first, state)
    assert again.name == damaged.name + ".1", "a slot is never changed in place"
    assert not damaged.exists(), "a damaged slot is nothing to go back to"
    assert active_version(state) == 1


def test_what_an_interrupted_install_left_is_removed(first: Path, state: Path) -> None:
    bundles = state / "bundles"
    (bundles / "pcb-9-00000000.partial/x86").mkdir(parents=True)
    (bundles / "active.partial").symlink_to("nowhere")
    (bundles / "notes").mkdir()
    install(first, state)
    assert [n for n in names(state) if n.endswith(".partial")] == []
    assert "notes" in names(state), "what is not ours stays"


@pytest.mark.parametrize(
    ("damage", "expected", "why"),
    [
        (lambda b: (b / "CARD.md").write_text("x"), "CARD.md: altered", "altered on its way here"),
        (lambda b: (b / MANIFEST).unlink(), "it has no file manifest.json", "not a bundle"),
    ],
)
def test_a_bad_bundle_is_not_installed(
    damage: Callable[[Path], object], expected: str, why: str, first: Path, second: Path, state: Path
) -> None:
    install(first, state)
    damage(second)
    with pytest.raises(BundleError, match=expected):
        install(second, state)
    assert active_version(state) == 1, why


def test_a_bundle_that_changes_while_it_is_copied_is_not_installed(
    first: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def change_then_copy(source: Path, target: Path, *, follow_symlinks: bool) -> None:
        if source.name == "CARD.md":
            source.write_text("changed\n")
        copyfile(source, target, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(shutil, "copyfile", change_then_copy)
    with pytest.raises(BundleError, match=r"CARD\.md: altered"):
        install(first, state)
    assert names(state) == [], "nothing is left of it"


def test_nothing_installed(state: Path) -> None:
    with pytest.raises(BundleError, match="run `edge bundle install SOURCE`"):
        slots.active(state)
    with pytest.raises(BundleError, match="run `edge bundle install SOURCE`"):
        slots.rollback(state)


def test_nothing_to_roll_back_to(first: Path, state: Path) -> None:
    install(first, state)
    with pytest.raises(BundleError, match="no previous bundle"):
        slots.rollback(state)


def test_an_active_link_that_leads_nowhere(first: Path, state: Path) -> None:
    shutil.rmtree(install(first, state))
    with pytest.raises(BundleError, match="is missing: run `edge bundle install SOURCE` again"):
        slots.active(state)


def test_a_damaged_previous_slot_is_not_rolled_back_to(first: Path, second: Path, state: Path) -> None:
    (install(first, state) / "CARD.md").write_text("x")
    (state / "bundles/previous").symlink_to(os.readlink(state / "bundles/active"))
    make = install(second, state)
    (state / "bundles/previous").unlink(missing_ok=True)
    (state / "bundles/pcb-1-00000000").mkdir()
    (state / "bundles/previous").symlink_to("pcb-1-00000000")
    with pytest.raises(BundleError, match="not a bundle"):
        slots.rollback(state)
    assert slots.active(state) == make


def test_two_installs_at_once(first: Path, second: Path, state: Path) -> None:
    install(first, state)
    with (state / "bundles/.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BundleError, match="another install is at work"):
            install(second, state)
    assert install(second, state) == slots.active(state), "the lock goes with its holder"


def test_every_file_and_folder_is_on_the_disk_before_the_slot_has_its_name(
    first: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def note_rename(self: Path, target: Path) -> Path:
        events.append(f"rename {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    slot = install(first, state)
    partial = slot.with_name(slot.name + ".partial")
    named, switched = events.index(f"rename {slot.name}"), events.index("rename active")
    wanted = {str(partial / path.relative_to(slot)) for path in [slot, *slot.rglob("*")]}
    assert wanted <= set(events[:named])
    assert str(state / "bundles") in events[named:switched], "the name is on the disk before a link leads to it"
    assert str(state / "bundles") in events[switched:]


# --- errors of the file system ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True, timeout=10)


def test_a_full_disk_is_found_before_copying(first: Path, tmp_path: Path, small_disk: Path) -> None:
    install(first, small_disk)
    with pytest.raises(BundleError, match=r"needs 1\.0 MB and .* MB free: free some space"):
        install(make_bundle(tmp_path / "big", 2, 1_000_000), small_disk)
    assert active_version(small_disk) == 1


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "No space left on device.*free some space"), (errno.EROFS, "Read-only.*can be written")],
)
def test_an_error_while_copying_leaves_nothing_behind(
    number: int, expected: str, first: Path, second: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(first, state)
    before = names(state)

    def fail(source: Path, target: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(BundleError, match=expected):
        install(second, state)
    assert names(state) == before
    assert active_version(state) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_permission_it_says_who_should_run_it(first: Path, tmp_path: Path) -> None:
    state = tmp_path / "closed"
    state.mkdir(mode=0o700)
    for path in [*first.parents][:-2]:
        path.chmod(0o755)
    state.chmod(0o555)
    os.seteuid(65534)
    try:
        with pytest.raises(BundleError, match=r"Permission denied.*run it as root or as the daemon's user"):
            install(first, state)
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_installs_belongs_to_the_owner_of_the_state_folder(first: Path, state: Path) -> None:
    state.mkdir()
    os.chown(state, 65534, 65534)
    install(first, state)
    assert {path.lstat().st_uid for path in (state / "bundles").rglob("*")} == {65534}


def test_a_state_folder_that_is_a_file(first: Path, state: Path) -> None:
    state.write_text("x")
    with pytest.raises(BundleError, match="cannot be installed"):
        install(first, state)
