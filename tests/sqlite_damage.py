"""Ways in which an SQLite file of ours may be found damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path


def garbage(path: Path) -> None:
    """Not a database at all."""
    path.write_bytes(b"this is not a database, it only looks like a long file" * 100)


def cut_in_half(path: Path) -> None:
    """Whole pages are missing."""
    os.truncate(path, os.path.getsize(path) // 2 // 4096 * 4096)


def scribble(path: Path) -> None:
    """Bytes of some pages are others."""
    with open(path, "r+b") as file:
        for page in range(1, 10):
            file.seek(page * 4096)
            file.write(os.urandom(64))


def other_program(path: Path) -> None:
    """A good database, and not ours."""
    path.unlink()
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE theirs (a); INSERT INTO theirs VALUES (1);")
    db.close()


def sql(statement: str) -> Callable[[Path], None]:
    """What a statement does to it."""
    def run(path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute(statement)
        db.close()

    return run
