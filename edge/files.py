"""Small files that are there whole or not at all, whenever the power goes."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` in the file's place, durably; a reader sees the old content or the new one, nothing between.

    Raises:
        OSError: it could not be written; the old content stands.
    """
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)  # of a writer that died, maybe another user, or a link that somebody laid there
    with open(fresh, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
