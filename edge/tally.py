"""A count of triggers that outlives `kill -9`: eight bytes of a file, never waited for.

The ledger is made durable together with each verdict. What was captured but not yet settled when the process is
killed would leave no trace there; the kernel keeps what was written here, so the next start can name those triggers
as lost (`shutdown`). A power cut may take the last moments of this count with it, never a settled verdict.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from edge.errors import OutboxError

_COUNT = struct.Struct("<Q")


class Tally:
    """Counts triggers. `add` wants one caller at a time (the intake calls it under its own lock).

    Attributes:
        count: triggers since this file was made.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
            self.count = int(_COUNT.unpack(os.pread(self._file, _COUNT.size, 0).ljust(_COUNT.size, b"\0"))[0])
            os.pwrite(self._file, _COUNT.pack(self.count), 0)
        except OSError as error:
            raise OutboxError(
                f"the trigger count {path} cannot be kept: {error.strerror}; "
                "make the state folder writable for this user and free some space"
            ) from error

    def add(self, n: int = 1) -> None:
        """Count `n` more."""
        self.set(self.count + n)

    def set(self, count: int) -> None:
        """Begin from `count`, after the ledger has been brought up to date at the start."""
        self.count = count
        # The block is there since the start. Should it fail all the same, only the naming of a later crash suffers.
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _COUNT.pack(count), 0)

    def close(self) -> None:
        """Close the file; it keeps the count."""
        file, self._file = self._file, -1  # a late `add` must not write into another file of the same number
        os.close(file)
