"""What this device has accepted of a bundle repository, kept so that it never goes back behind it.

The client's metadata folder is what TUF compares with; it is a cache that a power cut or a bad card may damage. This is
the short record beside it, in two copies, each with a checksum: while one of them can be read, nothing older than what
was accepted is accepted again, whatever has become of the rest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edge.files import write_whole

if TYPE_CHECKING:  # the daemon reads the record at its start, and needs no more of TUF
    from tuf.api.metadata import Role

FOLDER: Final = "trust"
_COPIES: Final = ("floor.json", "floor.copy.json")
_LARGEST_BYTES: Final = 1 << 20


class Mark(msgspec.Struct, frozen=True):
    """A version that was accepted, and the keys that had signed it.

    When the root of trust takes those keys back, the mark is void: a thief of the key could have set it so high that
    nothing would ever be accepted again.
    """

    version: int
    signers: Sequence[str]

    def counts(self, role: Role) -> bool:
        """Whether the role still believes those who signed."""
        return sum(key in role.keyids for key in self.signers) >= role.threshold


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The record.

    Attributes:
        serial: counts the records, to know the newer copy.
        roots: SHA-256 of each root that was trusted, by version.
        roles: versions of targets and product roles; they stand with the snapshot's mark.
        time: when the newest of the accepted timestamps was signed, seconds since 1970; stands with the timestamp's
            mark.
    """

    serial: int = 0
    roots: Mapping[int, str] = {}
    timestamp: Mark | None = None
    snapshot: Mark | None = None
    roles: Mapping[str, int] = {}
    time: float = 0.0

    @property
    def root(self) -> int:
        """The newest root's version; 0: none."""
        return max(self.roots, default=0)


class _Copy(msgspec.Struct, frozen=True):
    sha256: str
    floor: msgspec.Raw


def read(folder: Path) -> Floor:
    """The newest record that can be read; an empty one where there is none."""
    found = [floor for name in _COPIES if (floor := _read_copy(folder / name)) is not None]
    return max(found, key=lambda floor: floor.serial, default=Floor())


def _read_copy(path: Path) -> Floor | None:
    try:
        with open(path, "rb") as file:
            copy = msgspec.json.decode(file.read(_LARGEST_BYTES), type=_Copy)
        if hashlib.sha256(copy.floor).hexdigest() != copy.sha256:
            return None
        return msgspec.json.decode(copy.floor, type=Floor)
    except (OSError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def write(folder: Path, floor: Floor) -> None:
    """Have the disk hold the record, one copy after the other.

    Raises:
        OSError: it could not be written; the record before it stands.
    """
    data = msgspec.json.encode(floor)
    copy = msgspec.json.encode({"sha256": hashlib.sha256(data).hexdigest(), "floor": msgspec.Raw(data)})
    for name in _COPIES:
        if (folder / name).is_dir():  # a damaged file system; in a file's place it would stop every update
            os.rename(folder / name, folder / f"{name}.damaged")
        write_whole(folder / name, copy)
