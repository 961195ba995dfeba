"""Which file system a path lies on, and which disk that is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge.doctor.system import System

# After an error newer kernels leave `rw` standing and say it so.
READ_ONLY = frozenset(("ro", "emergency_ro", "shutdown"))


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    kind: str  # ext4, tmpfs, overlay, ...
    source: str  # /dev/nvme0n1p1
    device: str  # major:minor
    options: frozenset[str]  # of the mount and of the file system

    @property
    def read_only(self) -> bool:
        """Nothing can be written there."""
        return bool(self.options & READ_ONLY)


def mounts(system: System) -> list[Mount]:
    """All mounts, in the order they were made."""
    lines = (system.text("/proc/self/mountinfo") or "").splitlines()
    return [found for found in map(parse, lines) if found is not None]


def parse(line: str) -> Mount | None:
    """One line; None when it is none.

    >>> parse("24 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw,errors=remount-ro").device
    '179:2'
    """
    head, separator, tail = line.partition(" - ")
    fields, rest = head.split(), tail.split()
    if not separator or len(fields) < 6 or len(rest) < 3:
        return None
    # Either may say ro: the mount itself, or the file system after an error (the kernel remounts it).
    options = frozenset(fields[5].split(",")) | (READ_ONLY & set(rest[2].split(",")))
    return Mount(_plain(fields[4]), rest[0], _plain(rest[1]), fields[2], options)


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def mount_of(system: System, path: str | Path) -> Mount | None:
    """The file system that a path lies on, or would, if it were made."""
    wanted = Path(system.real(path))
    found = None
    for mount in mounts(system):
        holds = wanted == Path(mount.point) or Path(mount.point) in wanted.parents
        if holds and (found is None or len(mount.point) >= len(found.point)):  # the later one covers the earlier
            found = mount
    return found


def disk_of(system: System, mount: Mount) -> str | None:
    """The whole disk under it, such as `mmcblk0` or `nvme0n1`; None for what has none (tmpfs, overlay)."""
    place = system.real(f"/sys/dev/block/{mount.device}")
    if not system.exists(place):
        return None
    name = Path(place).name
    if system.exists(f"{place}/partition"):
        return Path(place).parent.name
    below = system.names(f"{place}/slaves")  # dm-crypt, LVM
    return re.sub(r"p?\d+$", "", below[0]) if below and name.startswith("dm-") else name


def partition_of(system: System, mount: Mount) -> str:
    """The block device itself, such as `mmcblk0p2`: what /sys/fs/ext4 calls it."""
    return Path(system.real(f"/sys/dev/block/{mount.device}")).name
