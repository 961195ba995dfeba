"""Slots as folders: how one is made of a bundle, and when one is removed.

A slot gets its name when its files are on the disk and were checked there; until then, and again while it is removed,
it has a name that is no slot's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.bundle import links
from edge.bundle import manifest as manifests
from edge.bundle import trial as trials
from edge.bundle.links import PARTIAL
from edge.bundle.manifest import MANIFEST, Manifest
from edge.bundle.trial import adopt
from edge.errors import BundleError


def put(source: Path, bundles: Path, manifest: Manifest) -> Path:
    """A slot that holds this very bundle: the one that is there, or a new one.

    Raises:
        BundleError: it cannot be copied, or another install is running. OSError: the disk does not take it.
    """
    _make_folders(bundles)
    with _copying(bundles, f"another install is at work in {bundles}: wait until it is done"):
        _remove_partial(bundles)
        return _find_slot(bundles, manifest) or _copy(source, bundles, manifest)


def remove_old(bundles: Path) -> None:
    """Remove the slots that nothing leads to. Renamed first: half a slot must not look like one."""
    try:
        with _copying(bundles, "slots are being copied"):
            _remove_partial(bundles)
            _remove_unused(bundles)
    except (BundleError, OSError):
        return  # somebody copies a slot right now, or the disk does not do it: the next one removes what is left
    known, there = trials.origins(bundles), {path.name for path in _slots(bundles)}
    if set(known) - there:
        trials.write(bundles, trials.ORIGINS, {name: who for name, who in known.items() if name in there})


def slot_names(manifest: Manifest) -> Iterator[str]:
    """The slot's name, and others for when a damaged slot has it: a slot is never changed in place."""
    name = f"{manifest.product}-{manifest.version}-{manifests.digest(manifest)[:8]}"
    yield name
    for number in range(1, 100):
        yield f"{name}.{number}"


def _make_folders(bundles: Path) -> None:
    bundles.mkdir(parents=True, exist_ok=True)
    adopt(bundles, bundles.parent)
    links.sync(bundles.parent)


@contextmanager
def _copying(bundles: Path, otherwise: str) -> Iterator[None]:
    """Hold the right to make and remove slots; a process that dies gives it up."""
    handle = os.open(bundles / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        adopt(bundles / ".lock", bundles)
        trials.take(handle, 0.0, otherwise)
        yield
    finally:
        os.close(handle)


def _slots(bundles: Path) -> set[Path]:
    """Every slot, whether something leads to it or not."""
    return {path for path in bundles.iterdir() if trials.is_slot(path.name)} if bundles.is_dir() else set()


def _remove_partial(bundles: Path) -> None:
    for path in bundles.glob(f"*{PARTIAL}"):
        if trials.is_slot(path.name.removesuffix(PARTIAL)):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def _find_slot(bundles: Path, manifest: Manifest) -> Path | None:
    """An undamaged slot that holds this very bundle."""
    there = _slots(bundles)
    for slot in (bundles / name for name in slot_names(manifest)):
        try:
            if slot in there and manifests.read(slot) == manifest:
                return slot
        except BundleError:
            continue
    return None


def _copy(source: Path, bundles: Path, manifest: Manifest) -> Path:
    slot = next(bundles / name for name in slot_names(manifest) if not os.path.lexists(bundles / name))
    names = [MANIFEST, *sorted(manifest.files)]
    _make_space(bundles, sum((source / name).stat().st_size for name in names))
    partial = slot.with_name(slot.name + PARTIAL)
    try:
        _fill(partial, source, names)
        if manifests.read(partial) != manifest:  # checks every file where it lies now
            raise BundleError(f"the bundle {source} was changed while it was copied: install it again")
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk wants its space back now
        raise
    partial.rename(slot)
    links.sync(bundles)
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
        adopt(path, partial.parent)
        links.sync(path)


def _make_space(bundles: Path, needed_bytes: int) -> None:
    """Give up slots that nothing leads to, if that is what it takes."""
    if shutil.disk_usage(bundles).free < needed_bytes:
        with trials.lock(bundles):
            _remove_unused(bundles)
    free_bytes = shutil.disk_usage(bundles).free
    if free_bytes < needed_bytes:
        raise BundleError(
            f"the bundle needs {needed_bytes / 1e6:.1f} MB and {bundles} has {free_bytes / 1e6:.1f} MB free: "
            "free some space and install again, the active bundle is unchanged"
        )


def _remove_unused(bundles: Path) -> None:
    links.sync(bundles)  # what the links say is on the disk before what they said before is gone
    for path in sorted(_slots(bundles) - _used(bundles)):
        _remove(path.rename(path.with_name(path.name + PARTIAL)))


def _used(bundles: Path) -> set[Path]:
    """The slots that a link leads to or that a mark under way names."""
    led = {links.target(bundles / name) for name in links.LINKS}
    mark = trials.read(bundles)
    marked = (mark.slot, mark.before, mark.held) if mark is not None and mark.stage in trials.UNDER_WAY else ()
    return {path for path in led if path is not None} | {bundles / name for name in marked if name is not None}
