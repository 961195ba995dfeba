"""A count of triggers that outlives `kill -9`: eight bytes of a shared memory map.

The ledger is made durable together with each verdict. What was captured but not yet settled when the process is
killed would leave no trace there; the page cache keeps this count, so the next start can name those triggers as
lost (`shutdown`). A power cut may take the last moments of this count with it, never a settled verdict.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from edge.errors import OutboxError

_COUNT = struct.Struct("<Q")


class Tally:
    """Counts triggers. `add` wants one caller at a time (the intake calls it under its own lock)."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
            try:
                if os.fstat(handle).st_size != _COUNT.size:
                    os.ftruncate(handle, _COUNT.size)
                self._map = mmap.mmap(handle, _COUNT.size)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutboxError(
                f"the trigger count {path} cannot be kept: {error.strerror}; "
                "make the state folder writable for this user and free some space"
            ) from error

    @property
    def count(self) -> int:
        """Triggers since this file was made."""
        return int(_COUNT.unpack_from(self._map, 0)[0])

    def add(self, n: int = 1) -> None:
        """Count `n` more."""
        _COUNT.pack_into(self._map, 0, self.count + n)

    def set(self, count: int) -> None:
        """Begin from `count`, after the ledger has been brought up to date at the start."""
        _COUNT.pack_into(self._map, 0, count)

    def close(self) -> None:
        """Release the map; the file keeps the count."""
        self._map.flush()
        self._map.close()
