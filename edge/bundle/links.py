"""The links of the slots: each leads to a whole slot, and they follow the mark.

See `edge.bundle.slots` for what the marks mean. Everything that changes something here is called under the lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from edge.bundle import manifest as manifests
from edge.bundle import trial as trials
from edge.bundle.trial import Stage, Trial, adopt
from edge.errors import BundleError

PARTIAL: Final = ".partial"
ACTIVE: Final = "active"
PREVIOUS: Final = "previous"
CANDIDATE: Final = "candidate"
LINKS: Final = (ACTIVE, PREVIOUS, CANDIDATE)


def settle(bundles: Path) -> Trial | None:
    """Have the links follow the mark, wherever that was interrupted; returns the mark."""
    _sweep(bundles)
    mark, good = trials.read(bundles), cache(whole)  # no slot is read more than once
    if mark is not None and mark.stage in trials.UNDER_WAY and not _reachable(bundles, mark, good):
        mark = following(mark, "refused", code="damaged", text=f"{mark.slot} was damaged before it was in charge")
        trials.write(bundles, trials.TRIAL, mark)
    if mark is None or mark.stage == "refused":
        _unlink(bundles / CANDIDATE)
    elif mark.stage == "shadow":
        _point(bundles / CANDIDATE, mark.slot, good)
    elif mark.stage in ("trial", "committed"):
        _point(bundles / PREVIOUS, mark.before, good)
        _point(bundles / ACTIVE, mark.slot, good)
        _unlink(bundles / CANDIDATE)
    else:
        _point(bundles / ACTIVE, mark.before, good)
        if not _point(bundles / PREVIOUS, mark.held, good):
            _unlink(bundles / PREVIOUS)
        _unlink(bundles / CANDIDATE)
    if mark is not None and mark.stage == "committed" and mark.signed:
        _raise_floor(bundles, mark.slot)
    return mark


def _reachable(bundles: Path, mark: Trial, good: Callable[[Path], bool]) -> bool:
    """Whether the mark's slot is where it is meant to be, or whole, so that it can get there."""
    link = bundles / (CANDIDATE if mark.stage == "shadow" else ACTIVE)
    return target(link) == bundles / mark.slot or good(bundles / mark.slot)


def following(mark: Trial, stage: Stage, **changes: str | None) -> Trial:
    """The mark of the next stage of the same slot."""
    began = mark.began if stage == mark.stage else time.time()
    return msgspec.structs.replace(mark, stage=stage, began=began, **changes)


def _raise_floor(bundles: Path, slot: str) -> None:
    product, version = trials.version_of(slot)
    try:
        floors = trials.floors(bundles)
    except BundleError:  # what was known is lost; from this version on it is known again
        floors = {}
    if floors.get(product, 0) < version:
        trials.write(bundles, trials.FLOOR, floors | {product: version})


def _sweep(bundles: Path) -> None:
    """Remove what a writer that died has left beside marks and links."""
    for name in LINKS:
        (bundles / (name + PARTIAL)).unlink(missing_ok=True)
    for name in (trials.TRIAL, trials.ORIGINS, trials.FLOOR):
        (bundles / f"{name}.new").unlink(missing_ok=True)


def _point(link: Path, name: str | None, good: Callable[[Path], bool]) -> bool:
    """Have a link lead to a slot, if it is whole; whether it does."""
    if name is None:
        return False
    slot = link.parent / name
    if target(link) == slot:
        return True
    if not good(slot):
        return False
    new = link.with_name(link.name + PARTIAL)
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    adopt(new, link.parent)
    new.rename(link)
    sync(link.parent)
    return True


def _unlink(link: Path) -> None:
    if os.path.lexists(link):
        link.unlink()
        sync(link.parent)


def target(link: Path) -> Path | None:
    """The slot that a link points at, whether it exists or not."""
    try:
        return link.parent / Path(os.readlink(link)).name
    except OSError:
        return None


def problem(slot: Path) -> str:
    """What keeps a slot from being served, in one line: a file that is not as it was built; "" for nothing."""
    try:
        manifests.read(slot)
    except BundleError as error:
        return " ".join(str(error).split())
    return ""


def whole(slot: Path) -> bool:
    """Whether every file of the slot is there as it was built."""
    return not problem(slot)


def name_if_whole(slot: Path | None) -> str | None:
    """Its name; None where there is no slot or not a whole one."""
    return slot.name if slot is not None and whole(slot) else None


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names, before going on."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
