"""Which bundle this box runs. Installing one either happens or it does not, whenever the power goes.

    <state>/bundles/pcb-3-1a2b3c4d/          a slot: one installed bundle, never changed afterwards
    <state>/bundles/pcb-4-5e6f7a8b.partial/  a copy that was not finished; the next install removes it
    <state>/bundles/active   -> pcb-3-...    what the daemon loads
    <state>/bundles/previous -> pcb-2-...    where `rollback` goes

A slot gets its name only when its files are on the disk and have been checked there, and a link changes by a rename,
which is atomic.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.bundle import manifest as manifests
from edge.bundle.manifest import MANIFEST, Manifest
from edge.errors import BundleError

PARTIAL: Final = ".partial"
ACTIVE: Final = "active"
PREVIOUS: Final = "previous"
_SLOT_NAME: Final = re.compile(r"[A-Za-z0-9_-]+-\d+-[0-9a-f]{8}(\.\d+)?")


@dataclass(frozen=True)
class Installed:
    """What `install` has done.

    Attributes:
        path: the slot that is active now.
        previous: the slot that was active before; None when there was none or it is the same.
        copied: False when this very bundle lay in its slot already.
    """

    path: Path
    manifest: Manifest
    previous: Path | None
    copied: bool

    def __str__(self) -> str:
        return f"{self.manifest.product} {self.manifest.version} in {self.path}"


def install(source: Path, state: Path) -> Installed:
    """Check a bundle, copy it into a slot of its own, and make that the active one.

    The slot that was active stays as the previous one; older slots are removed.

    Raises:
        BundleError: the bundle is incomplete or altered, the disk is full, the state folder cannot be written, or
            another install is running. The active slot is then the same as before.
    """
    manifest = manifests.read(source)
    bundles = state / "bundles"
    with _told(f"the bundle {source} cannot be installed in {bundles}"):
        _make_folders(bundles)
        with _lock(bundles):
            _remove_partial(bundles)
            found = _find_slot(bundles, manifest)
            slot = found or _copy(source, bundles, manifest)
            previous = _activate(bundles, slot)
            _remove_old(bundles)
    return Installed(slot, manifest, previous, copied=found is None)


def active(state: Path) -> Path:
    """The folder of the active bundle.

    Raises:
        BundleError: none is installed, or the link leads nowhere.
    """
    slot = _target(state / "bundles" / ACTIVE)
    if slot is None:
        raise BundleError(f"no bundle is installed in {state / 'bundles'}: run `edge bundle install DIR`")
    if not (slot / MANIFEST).is_file():
        raise BundleError(f"the active bundle {slot} is missing: run `edge bundle install DIR` again")
    return slot


def rollback(state: Path) -> Path:
    """Make the previous slot the active one, and the active one the previous.

    Raises:
        BundleError: there is no other slot to go back to, or it is damaged.
    """
    bundles = state / "bundles"
    with _told(f"the bundle in {bundles} cannot be rolled back"):
        if not bundles.is_dir():
            raise BundleError(f"no bundle is installed in {bundles}: run `edge bundle install DIR`")
        with _lock(bundles):
            previous = _target(bundles / PREVIOUS)
            if previous is None or previous == _target(bundles / ACTIVE):
                raise BundleError(f"there is no previous bundle in {bundles} to roll back to")
            manifests.read(previous)
            _activate(bundles, previous)
    return previous


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an error of the file system into one sentence with its remedy."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BundleError(f"{what}: {error.strerror or error}{where}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and install again, the active bundle is unchanged"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; run it as root or as the daemon's user, on a file system that can be written"
    return ""


def _make_folders(bundles: Path) -> None:
    bundles.mkdir(parents=True, exist_ok=True)
    _adopt(bundles, bundles)
    _sync(bundles.parent)


@contextmanager
def _lock(bundles: Path) -> Iterator[None]:
    """Hold the right to change slots; a process that dies gives it up."""
    handle = os.open(bundles / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        _adopt(bundles / ".lock", bundles)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BundleError(f"another install is at work in {bundles}: wait until it is done") from error
        yield
    finally:
        os.close(handle)


def _remove_partial(bundles: Path) -> None:
    for path in bundles.glob(f"*{PARTIAL}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _slot_names(manifest: Manifest) -> Iterator[str]:
    """The slot's name, and others for when a damaged slot has it: a slot is never changed in place."""
    name = f"{manifest.product}-{manifest.version}-{manifests.digest(manifest)[:8]}"
    yield name
    for number in range(1, 100):
        yield f"{name}.{number}"


def _find_slot(bundles: Path, manifest: Manifest) -> Path | None:
    """An undamaged slot that holds this very bundle."""
    for name in _slot_names(manifest):
        try:
            if manifests.read(bundles / name) == manifest:
                return bundles / name
        except BundleError:
            continue
    return None


def _copy(source: Path, bundles: Path, manifest: Manifest) -> Path:
    slot = next(bundles / name for name in _slot_names(manifest) if not os.path.lexists(bundles / name))
    names = [MANIFEST, *sorted(manifest.files)]
    _require_space(bundles, sum((source / name).stat().st_size for name in names))
    partial = slot.with_name(slot.name + PARTIAL)
    try:
        _fill(partial, source, names)
        if manifests.read(partial) != manifest:  # checks every file where it lies now
            raise BundleError(f"the bundle {source} was changed while it was copied: install it again")
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk wants its space back now
        raise
    partial.rename(slot)
    _sync(bundles)
    return slot


def _fill(partial: Path, source: Path, names: Sequence[str]) -> None:
    """Copy the files and have the disk hold them."""
    partial.mkdir()
    for name in names:
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target, follow_symlinks=False)
    for path in [partial, *partial.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        _adopt(path, partial.parent)
        _sync(path)


def _require_space(bundles: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(bundles).free
    if free_bytes < needed_bytes:
        raise BundleError(
            f"the bundle needs {needed_bytes / 1e6:.1f} MB and {bundles} has {free_bytes / 1e6:.1f} MB free: "
            "free some space and install again, the active bundle is unchanged"
        )


def _activate(bundles: Path, slot: Path) -> Path | None:
    """Point `active` at the slot and `previous` at what was active; returns the latter."""
    old = _target(bundles / ACTIVE)
    if old == slot:
        return None
    if old is not None and _intact(old):
        _point(bundles / PREVIOUS, old)
    _point(bundles / ACTIVE, slot)
    return old


def _intact(slot: Path) -> bool:
    try:
        manifests.read(slot)
    except BundleError:
        return False
    return True


def _point(link: Path, slot: Path) -> None:
    new = link.with_name(link.name + PARTIAL)
    if os.path.lexists(new):
        new.unlink()
    new.symlink_to(slot.name)
    _adopt(new, link.parent)
    new.rename(link)
    _sync(link.parent)


def _target(link: Path) -> Path | None:
    """The slot that a link points at, whether it exists or not."""
    try:
        return link.parent / Path(os.readlink(link)).name
    except OSError:
        return None


def _remove_old(bundles: Path) -> None:
    """Remove the slots that neither link points at. Renamed first: half a slot must not look like one."""
    keep = {_target(bundles / ACTIVE), _target(bundles / PREVIOUS)}
    for path in bundles.iterdir():
        if _SLOT_NAME.fullmatch(path.name) and path not in keep:
            _remove(path.rename(path.with_name(path.name + PARTIAL)))


def _adopt(path: Path, bundles: Path) -> None:
    """Give what root has made to whom the state folder belongs, so that the daemon can manage it."""
    if os.geteuid() == 0:
        owner = bundles.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before going on."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
