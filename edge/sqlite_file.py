"""What every SQLite file of ours has in common: whose it is, when it is damaged, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# Signs in SQLite's messages, and what helps.
REMEDIES: Mapping[str, str] = {
    "full": "free space on that disk; it goes on by itself as soon as there is room",
    "locked": "another edge process uses it, stop that one first",
    "readonly": "let the service's user write there, and check that the disk is not mounted read-only",
    "malformed": "restart the service: a damaged file is set aside at the start",
    "not a database": "restart the service: a damaged file is set aside at the start",
    "closed": "the service is stopping",
    "I/O error": "check the disk and its cable (dmesg), and that it is not full",
}


class UnusableFileError(Exception):
    """The file is not one of ours, or damaged."""


def check_header(path: Path) -> None:
    """Refuse a format version in which SQLite would open the file, but read-only.

    Raises:
        UnusableFileError: its header names one.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(100)
    except OSError:
        return  # not there yet, or not to be opened: SQLite will say
    if len(header) == 100 and max(header[18], header[19]) > 2:
        raise UnusableFileError("damaged: its header names a format that does not exist")


def is_new(db: sqlite3.Connection, application_id: int, version: int, what: str) -> bool:
    """Whether the file is empty and still to be laid out.

    Raises:
        UnusableFileError: it is another program's, or of another version; `what` names ours, such as `an outbox`.
    """
    (found_id,) = db.execute("PRAGMA application_id").fetchone()
    (found_version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables and not found_id:
        return True
    if found_id != application_id:
        raise UnusableFileError("a database of another program")
    if found_version != version:
        raise UnusableFileError(f"{what} of version {found_version}, this program has version {version}")
    return False


def check_pages(db: sqlite3.Connection) -> None:
    """SQLite's own quick check.

    Raises:
        UnusableFileError: the file is damaged.
    """
    found = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise UnusableFileError(f"damaged: {found[0]}")


def write_ahead(db: sqlite3.Connection) -> None:
    """Write-ahead log, and each commit waits for the disk.

    Raises:
        sqlite3.OperationalError: its file system cannot do that.
    """
    if db.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
        raise sqlite3.OperationalError("its file system has no write-ahead log")
    db.execute("PRAGMA synchronous=FULL")


def is_about_content(error: Exception) -> bool:
    """Whether the file is the trouble; otherwise it is the moment: locked, read-only, full.

    >>> is_about_content(UnusableFileError("damaged")), is_about_content(sqlite3.OperationalError("disk is full"))
    (True, False)
    """
    if isinstance(error, sqlite3.OperationalError):
        return any(sign in str(error) for sign in ("unsupported file format", "no such table", "no such column"))
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):  # a second writer; closed
        return False
    return isinstance(error, sqlite3.DatabaseError | UnusableFileError)


def move_aside(path: Path, ts: float) -> Path:
    """Give a damaged file and its logs another name beside it, with the time `ts`; that name.

    Raises:
        OSError: it cannot be renamed.
    """
    moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(ts))
    n = 0
    while (target := path.with_name(f"{path.stem}.corrupt-{moment}{f'-{n}' if n else ''}{path.suffix}")).exists():
        n += 1
    for tail in ("-wal", "-shm", ""):  # the file itself last: cut off in between, it is found damaged again
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{tail}", f"{target}{tail}")
    return target


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors roll back by themselves
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
        raise


def explained(path: Path, error: Exception, remedies: Mapping[str, str] = REMEDIES, writing: bool = True) -> str:
    """What an error of the file means and what helps, in words for the operator.

    >>> explained(Path("/nowhere/outbox.db"), sqlite3.OperationalError("database or disk is full")).partition(";")[2]
    ' free space on that disk; it goes on by itself as soon as there is room'
    """
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    folder = path.parent
    if writing and folder.is_dir() and not os.access(folder, os.W_OK):  # SQLite calls it an I/O error
        reason = f"the folder {folder} is readonly here"
    general = "check that the folder exists, that the service's user can write there, and that the disk is healthy"
    return f"{reason}; {next((remedy for sign, remedy in remedies.items() if sign in reason), general)}"
