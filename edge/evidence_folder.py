"""A folder of pictures under a quota: one folder a part, the least valuable go first.

    2026-11-27/NG/143015-000123-SN4711/cam1.jpg     with boxes and map, to look at
                                       cam1.png     as it was taken, to label and to train with
                                       part.json    all that is known of the part
    .partial/                                       what is being written; a crash leaves it, the next start removes it

Days and times are UTC. What is kept is known from the names alone. Files of others are counted and never touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.records import Loss, VerdictKind

PARTIAL: Final = ".partial"
ASIDE: Final = "~gone"  # in the name of a part that is being removed
RECORD: Final = "part.json"
BLOCK: Final = 4096  # a file takes whole blocks of the disk, and so does a folder
LONGEST_NAME: Final = 40
# Least valuable first. A loss says that something went wrong, which is worth as much as a bad part.
WORTH: Final[Mapping[str, int]] = {
    VerdictKind.OK.value: 0,
    VerdictKind.RETAKE.value: 1,
    VerdictKind.REVIEW.value: 2,
    VerdictKind.NG.value: 3,
    **{loss.value: 3 for loss in Loss},
}
_DAY: Final = re.compile(r"\d{4,}-\d\d-\d\d")
_PART: Final = re.compile(r"\d{6}-\d{6,}(-[A-Za-z0-9._~-]+)?")
_SCAN_REST: Final = 200  # parts, 7 ms; then other threads have their turn
_SCAN_REST_S: Final = 0.0005


def safe_name(text: str) -> str:
    """Text as a part of a file's name; two texts never share one.

    >>> safe_name("SN-4711"), safe_name("../etc")
    ('SN-4711', '.._etc~f7f9121f')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:LONGEST_NAME]
    if plain == text and not text.endswith("."):  # such a name is not one on every file system
        return plain
    return f"{plain}~{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def path_of(outcome: str, number: int, serial: str, ts: float) -> str:
    """Where a part lies, below the folder.

    >>> path_of("NG", 123, "SN4711", 1795703415.0)
    '2026-11-26/NG/143015-000123-SN4711'
    """
    day, second = _utc(ts)
    return f"{day}/{outcome}/{second}-{number:06d}" + (f"-{safe_name(serial)}" if serial else "")


def worth_of(outcome: str) -> int:
    """Higher is worth more."""
    return WORTH.get(outcome, 0)


def _utc(ts: float) -> tuple[str, str]:
    try:
        then = time.gmtime(ts)
    except (OverflowError, ValueError, OSError):  # a clock that is beyond any calendar
        then = time.gmtime(0)
    return time.strftime("%Y-%m-%d", then), time.strftime("%H%M%S", then)


@dataclass(frozen=True)
class Kept:
    """One part on the disk, with the room that it takes."""

    path: str
    size: int


def _age(kept: Kept) -> tuple[str, str]:
    """Sorts by day, second and number."""
    day, _, name = kept.path.split("/")
    return day, name


class EvidenceFolder:
    """The parts in a folder. One thread uses it; the counts may be read in any.

    Attributes:
        parts: held. used: bytes of them, in whole blocks. foreign: bytes of what others have put there.
        evicted: outcome -> parts that had to go for others since the start.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        self._folder = folder
        self._quota = quota_bytes
        self._kept: dict[str, deque[Kept]] = {}  # outcome -> oldest first
        self.parts = 0
        self.used = 0
        self.foreign = 0
        self.evicted: Counter[str] = Counter()

    def open(self) -> None:
        """Make the folder, remove what a crash left half written, and find out what is there.

        Raises:
            OSError: the disk does not let us.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / PARTIAL).mkdir(exist_ok=True)
        with os.scandir(self._folder / PARTIAL) as entries:
            for entry in entries:
                if _PART.fullmatch(entry.name.removesuffix(ASIDE)) and entry.is_dir(follow_symlinks=False):
                    self._delete_partial(Path(entry.path))
        self._scan()

    def _scan(self) -> None:
        found: dict[str, list[Kept]] = {}
        everything = ours = 0
        for number, (path, outcome, size, foreign) in enumerate(_walk(self._folder)):
            everything += size + foreign
            ours += size
            if size:
                found.setdefault(outcome, []).append(Kept(path, size))
            if number % _SCAN_REST == _SCAN_REST - 1:
                time.sleep(_SCAN_REST_S)
        # Names begin with the second and the number, days sort by themselves: the path's order is that of time.
        self._kept = {outcome: deque(sorted(kept, key=lambda one: one.path)) for outcome, kept in found.items()}
        self.parts = sum(len(kept) for kept in found.values())
        self.used, self.foreign = ours, everything - ours

    def add(self, path: str, outcome: str, files: Mapping[str, bytes]) -> bool:
        """Write a part's files under `path`, all or none; False: it is worth less than all that it would displace.

        Raises:
            OSError: the disk did not take it, or files of others leave no room under the quota.
        """
        size = BLOCK + sum(_blocks(len(data)) for data in files.values())
        while self.used + self.foreign + size > self._quota:
            if self.make_room(outcome):
                continue
            if self.used == 0:
                text = f"its quota of {self._quota / 1e6:g} MB is too small, or taken by files of others"
                raise OSError(errno.ENOSPC, text)
            self.evicted[outcome] += 1
            return False
        target, partial = self._folder / path, self._folder / PARTIAL / Path(path).name
        try:
            self._delete_partial(partial)
            partial.mkdir(parents=True)
            for name, data in files.items():
                (partial / name).write_bytes(data)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._replace(partial, target, outcome)
        except OSError:
            with contextlib.suppress(OSError):
                self._delete_partial(partial)
            raise
        self._kept.setdefault(outcome, deque()).append(Kept(path, size))
        self.parts += 1
        self.used += size
        return True

    def _replace(self, partial: Path, target: Path, outcome: str) -> None:
        """Give the folder its name; one that has it already is of an older count of parts, and has to go."""
        if target.exists():
            path = str(target.relative_to(self._folder))
            for kept in [one for one in self._kept.get(outcome, ()) if one.path == path]:
                self._kept[outcome].remove(kept)
                self._gone(kept, outcome)
            self._discard(target)
        partial.rename(target)

    def make_room(self, outcome: str) -> bool:
        """Remove the oldest part of the least worth, if that is not above `outcome`'s; whether there was one.

        Raises:
            OSError: it cannot be removed.
        """
        held = [name for name, kept in self._kept.items() if kept]
        least = min((worth_of(name) for name in held), default=None)
        if least is None or least > worth_of(outcome):
            return False
        candidate = min((name for name in held if worth_of(name) == least), key=lambda name: _age(self._kept[name][0]))
        oldest = self._kept[candidate][0]
        place = self._folder / oldest.path
        self._discard(place)
        self._kept[candidate].popleft()
        self._gone(oldest, candidate)
        for empty in (place.parent, place.parent.parent):
            with contextlib.suppress(OSError):  # not empty, most of the time
                empty.rmdir()
        return True

    def _discard(self, place: Path) -> None:
        """Remove a part, but for what others have put into it. Moved aside first: a crash leaves no half of it."""
        try:
            names = set(os.listdir(place))
        except FileNotFoundError:
            return
        ours = _ours(names)
        aside = self._folder / PARTIAL / f"{place.name}{ASIDE}"
        if ours == names:
            with contextlib.suppress(OSError):  # a disk that is very full: then where it is
                place.rename(aside)
                place = aside
        _delete(place, ours)

    def _delete_partial(self, place: Path) -> None:
        """Remove what was half written or half removed."""
        with contextlib.suppress(FileNotFoundError):
            _delete(place, {name for name in os.listdir(place) if name == RECORD or name[-4:] in (".jpg", ".png")})

    def _gone(self, kept: Kept, outcome: str) -> None:
        self.parts -= 1
        self.used -= kept.size
        self.evicted[outcome] += 1

    def probe(self) -> None:
        """Find out whether the disk takes a file.

        Raises:
            OSError: it does not.
        """
        if self.used + self.foreign > self._quota:
            self._scan()
        path = self._folder / PARTIAL / "probe"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0" * BLOCK)
        path.unlink()


def _walk(folder: Path) -> Iterator[tuple[str, str, int, int]]:
    """What is in the folder: path of a part, its outcome, bytes that are ours, bytes of others in the same place."""
    for day in _entries(folder):
        if day.name == PARTIAL:
            continue
        if not (_DAY.fullmatch(day.name) and day.is_dir(follow_symlinks=False)):
            yield "", "", 0, _size_of(day)
            continue
        for outcome in _entries(day.path):
            if not (outcome.name in WORTH and outcome.is_dir(follow_symlinks=False)):
                yield "", "", 0, _size_of(outcome)
                continue
            for part in _entries(outcome.path):
                if _PART.fullmatch(part.name) and part.is_dir(follow_symlinks=False):
                    ours, foreign = _sizes_in(part.path)
                    yield f"{day.name}/{outcome.name}/{part.name}", outcome.name, ours, foreign
                else:
                    yield "", "", 0, _size_of(part)


def _entries(path: Path | str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def _sizes_in(part: str) -> tuple[int, int]:
    entries = _entries(part)
    ours = _ours({entry.name for entry in entries})
    mine = sum(_blocks(entry.stat(follow_symlinks=False).st_size) for entry in entries if entry.name in ours)
    return BLOCK + mine, sum(_size_of(entry) for entry in entries if entry.name not in ours)


def _ours(names: set[str]) -> set[str]:
    """Those of a part's files that we have written: the record, and pictures that come in pairs."""
    pairs = {name[:-4] for name in names if name.endswith(".jpg") and f"{name[:-4]}.png" in names}
    return {name for name in names if name == RECORD or (name[-4:] in (".jpg", ".png") and name[:-4] in pairs)}


def _size_of(entry: os.DirEntry[str]) -> int:
    """Of a file or folder of others; one that we may not look into (`lost+found`) counts as empty."""
    try:
        if not entry.is_dir(follow_symlinks=False):
            return _blocks(entry.stat(follow_symlinks=False).st_size)
        return BLOCK + sum(_size_of(inner) for inner in _entries(entry.path))
    except OSError:
        return BLOCK


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _delete(place: Path, names: set[str]) -> None:
    """Remove these files of a folder, and the folder where nothing else is in it."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place / name)
    with contextlib.suppress(FileNotFoundError):
        if not os.listdir(place):
            place.rmdir()
