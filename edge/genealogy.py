"""Genealogy: one row a part and an event, each with the hash of the one before it (`edge.chain`), in one SQLite file.

A row is durable when `append` returns (WAL, synchronous=FULL). Others may read meanwhile, on connections of their own.
Rows older than `keep_days` go from the front. A row of kind `prune` then holds the number and hash of the last one that
went, so that what is left still proves itself, and its beginning is not open to invention.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from edge.chain import FIRST_HASH, MOST_TEXT, About, Row, canonical, columns, fault, link, part_content
from edge.clock import Clock
from edge.config import GenealogySettings
from edge.errors import GenealogyDamagedError, GenealogyError
from edge.event import GenealogyCounts
from edge.part import Part
from edge.sqlite_file import (
    REMEDIES,
    UnusableFileError,
    check_header,
    check_pages,
    explained,
    is_about_content,
    is_new,
    move_aside,
    transaction,
    write_ahead,
)

log = logging.getLogger(__name__)

APPLICATION_ID = 0x65644745  # "edGE" in the header of the file: says that it is ours
VERSION = 1
OURS_IS = (APPLICATION_ID, VERSION, "a genealogy")

# `begin` and `prune` are the chain's own; void, late and override say something of a part's row that stands before.
ABOUT_A_PART = ("void", "late", "override")
EVENTS = (*ABOUT_A_PART, "bundle", "challenge", "recipe", "start", "stop")
OURS = ("n", "kind", "ts", "clock_ok", "boot")  # what every row says, filled in here

LOCK_WAIT_S = 0.5  # readers never block a writer; a second writer does, and there should be none
LOG_BYTES = 4_000_000  # the write-ahead log is cut down to this when a long reading let it grow
MOST_BYTES = 65_536  # of one row's content
MOST_FOUND = 100
MOST_VOID = 100  # at a start; a few are the rule, more than these mean that the outbox is an old copy

TAIL = 200  # rows at the end that are proved at the start; `edge audit verify` proves all
QUICK_CHECK_BYTES = 64_000_000  # SQLite checks a file up to this size as a whole at the start
PRUNE_ROWS = 500  # at most so many a call, so that an append waits only milliseconds
PRUNE_S = 86_400.0  # fewer than that are worth a row in the chain only once a day
# A wall clock that is further ahead of the newest row of the last run than this may be wrong: nothing goes for it.
MOST_AHEAD_S = 31 * 86_400.0
DAY_S = 86_400.0
LARGEST = 2**63 - 1  # of an integer in SQLite

SCHEMA = f"""
BEGIN;
CREATE TABLE row (
    n INTEGER PRIMARY KEY, kind TEXT NOT NULL, ts REAL NOT NULL, part INTEGER, serial TEXT, outcome TEXT,
    body BLOB NOT NULL, hash TEXT NOT NULL
);
CREATE INDEX row_ts ON row(ts);
CREATE INDEX row_part ON row(part) WHERE part IS NOT NULL;
CREATE INDEX row_serial ON row(serial) WHERE serial IS NOT NULL;
CREATE INDEX row_event ON row(kind) WHERE kind != 'part';
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={VERSION};
COMMIT;
"""
FIELDS = "n, kind, ts, part, serial, outcome, body, hash"


class Genealogy:
    """The chain of one station, for its writer. Any thread may call it; calls take turns.

    Attributes:
        set_aside: where a damaged or foreign file was moved, None when there was none.

    Example:
        >>> import tempfile
        >>> from edge.clock import SystemClock
        >>> path = Path(tempfile.mkdtemp()) / "genealogy.db"
        >>> rows = Genealogy(path, SystemClock(), "boot1", GenealogySettings())
        >>> head = rows.append("start", {"version": "1.0"})
        >>> rows.head() == (2, head), rows.counts().rows  # row 1 is the beginning
        (True, 2)
        >>> with GenealogyReader(path) as reader:
        ...     [row.kind for row in reader.rows()]
        ['begin', 'start']
        >>> rows.close()
    """

    def __init__(
        self, path: Path, clock: Clock, boot: str, settings: GenealogySettings, about: About | None = None
    ) -> None:
        """Open the chain, or begin a new one.

        Args:
            path: the SQLite file; its folder is made when missing.
            clock: stamps the rows.
            boot: id of this run of the daemon, said in every row.
            settings: how long rows are kept.
            about: what every part's row says of the bundle in charge; see `serve`.

        Raises:
            GenealogyError: the file cannot be opened or written here. A damaged file is no error: see `set_aside`.
        """
        self._path = path
        self._clock = clock
        self._boot = boot
        self._keep_s = settings.keep_days * DAY_S
        self._about = about or About()
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self._failed = 0
        self._first = self._n = 0  # numbers of the oldest row held and of the newest
        self._hash = FIRST_HASH
        self._pruned_ns: int | None = None
        self._unsettled: tuple[int, int, str] | None = None  # row, number and serial of this run's newest part
        self.set_aside: str | None = None
        with self._lock, self._failing("be opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection()
        self._newest_ts = self._newest()
        self._opened_ns = clock.mono_ns()

    def serve(self, about: About) -> None:
        """Parts are judged by another bundle from here on: what their rows say of it."""
        self._about = about

    def append_part(self, part: Part, evidence: str) -> str:
        """Add the row of a settled part; durable on return.

        A part whose number comes again in a run was not counted the first time, so its row is void; where nobody has
        said so yet, it is said now.

        Args:
            part: the part.
            evidence: folder of its pictures, "" when none are kept.

        Returns:
            The hash of the row, 64 hex digits.

        Raises:
            GenealogyError: the row is not there (disk full, read-only, broken); the next call tries afresh.
        """
        content = part_content(part, evidence, self._about)
        with self._lock:
            if self._unsettled is not None and self._unsettled[1] == part.number:
                self._void(*self._unsettled, "its number was given to another part")
            digest = self._append("part", content, part.settled_ts)
            self._unsettled = (self._n, part.number, part.serial)
        return digest

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        """Add the row of an event; durable on return.

        Args:
            kind: void, late, override, bundle, challenge, recipe, start or stop.
            body: what it says; `part`, `serial` and `outcome` become columns too. Of void, late and override `part`
                has to be that of a part's row, of an override `serial` will do: the rest of the two, the number of
                that row, and the `verdict` of an override as its `outcome`, are filled in.

        Returns:
            The hash of the row, 64 hex digits.

        Raises:
            GenealogyError: the row is not there; also when there is no such part, or the content is too long.
        """
        if kind not in EVENTS or not set(body).isdisjoint(OURS):
            raise ValueError(f"a row is one of {', '.join(EVENTS)} and does not itself say {', '.join(OURS)}: {kind}")
        with self._lock:
            content = self._about_part(kind, body) if kind in ABOUT_A_PART else dict(body)
            digest = self._append(kind, content, self._clock.ts())
            if kind == "void" and self._unsettled is not None and content["row"] == self._unsettled[0]:
                self._unsettled = None
        return digest

    def void_after(self, parts: int) -> int:
        """Mark the parts beyond the ledger's count: their rows were written, their verdicts never left the box.

        Args:
            parts: the part counter that was committed with the ledger.

        Returns:
            How many rows were marked.

        Raises:
            GenealogyError: it could not be done.
        """
        query = f"{_STANDING} AND part > ? ORDER BY part DESC, n DESC LIMIT ?"
        with self._lock:
            with self._failing("be read"):
                found = self._connection().execute(query, (parts, MOST_VOID + 1)).fetchall()
            if len(found) > MOST_VOID:
                log.error("the genealogy knows far more parts than the ledger (%d): is the outbox an old copy?", parts)
            for n, part, serial in found[MOST_VOID - 1 :: -1]:
                self._void(n, part, serial, f"the ledger ends with part {parts}: the verdict was never told")
        return min(len(found), MOST_VOID)

    def last_part(self) -> int:
        """Number of the newest part whose row is not void, 0 when there is none.

        Raises:
            GenealogyError: the file cannot be read.
        """
        with self._lock, self._failing("be read"):
            found = self._connection().execute(f"{_STANDING} ORDER BY n DESC LIMIT 1").fetchone()
        return int(found[1]) if found else 0

    def highest_part(self) -> int:
        """The highest number that any part ever had here, void or not; 0 without any.

        Raises:
            GenealogyError: the file cannot be read.
        """
        with self._lock, self._failing("be read"):
            found = self._connection().execute("SELECT max(part) FROM row WHERE part IS NOT NULL").fetchone()
        return int(found[0] or 0)

    def find(self, *, part: int | None = None, serial: str | None = None) -> list[Row]:
        """The rows of a part by its number or its serial, oldest first; the newest 100 of them.

        Raises:
            GenealogyError: the file cannot be read.
        """
        if (part is None) == (serial is None):
            raise ValueError(f"find by part or by serial, one of them: {part}, {serial}")
        column, value = ("part", part) if part is not None else ("serial", serial)
        if part is not None and not 0 <= part <= LARGEST:
            return []
        query = f"SELECT {FIELDS} FROM row WHERE {column} = ? ORDER BY n DESC LIMIT {MOST_FOUND}"
        with self._lock, self._failing("be read"):
            return [Row(*row) for row in reversed(self._connection().execute(query, (value,)).fetchall())]

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest row."""
        with self._lock:
            return self._n, self._hash

    def counts(self) -> GenealogyCounts:
        """What the chain holds; `failed`: rows that could not be added in this run."""
        with self._lock:
            rows, head, failed = self._n - self._first + 1, self._hash, self._failed
        return GenealogyCounts(rows=rows, head=head, bytes=self._size(), failed=failed)

    def prune(self, now_ts: float) -> int:
        """Let rows older than `keep_days` go, from the front; at most 500 a call.

        A wall clock that has run off lets nothing go before its time: it is believed up to 31 days ahead of the newest
        row of the last run, plus the time of this run by the monotonic clock.

        Returns:
            How many went; call it again while it is not 0, when there is a quiet moment.

        Raises:
            GenealogyError: they all stay.
        """
        with self._lock:
            now_ns = self._clock.mono_ns()
            believed = self._newest_ts + MOST_AHEAD_S + (now_ns - self._opened_ns) / 1e9
            query = f"SELECT n, ts, hash FROM row WHERE n < ? ORDER BY n LIMIT {PRUNE_ROWS}"
            with self._failing("be read"):
                front = self._connection().execute(query, (self._n,)).fetchall()
            old = _while_older(front, min(now_ts, believed) - self._keep_s)
            lately = self._pruned_ns is not None and now_ns - self._pruned_ns < PRUNE_S * 1e9
            if not old or (lately and len(old) < PRUNE_ROWS):
                return 0
            through, _, last_hash = old[-1]
            content = {"through": through, "hash": last_hash, "rows": len(old), "oldest": old[0][1]}
            with self._failing("let old rows go"):
                self._chain("prune", content, self._clock.ts(), through)
            self._first = through + 1
            self._pruned_ns = now_ns
        return len(old)

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it; never raises."""
        with self._lock:
            self._closed = True
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._drop()

    # From here on the lock is held by the caller.

    def _void(self, n: int, part: int, serial: str | None, why: str) -> None:
        content = {"part": part, "serial": serial or "", "row": n, "outcome": "void", "why": why}
        self._append("void", content, self._clock.ts())
        self._unsettled = None

    def _append(self, kind: str, content: Mapping[str, Any], ts: float) -> str:
        try:
            with self._failing("take a row"):
                return self._retrying(lambda: self._chain(kind, content, ts))
        except GenealogyError:
            self._failed += 1
            raise

    def _retrying(self, work: Callable[[], str]) -> str:
        """Do it, and once more after what can be helped: a full disk under an old log, or a damaged file."""
        try:
            return work()
        except sqlite3.Error as error:
            if is_about_content(error):
                self._replace(error)
            elif "full" in str(error) and self._db is not None:
                with contextlib.suppress(sqlite3.Error):  # folded into the file, the log is used from its start again
                    self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            else:
                self._drop()  # the next call finds out where the chain stands
                raise
        return work()

    def _chain(self, kind: str, content: Mapping[str, Any], ts: float, remove_through: int = 0) -> str:
        """One row, and where wanted the front away, in one transaction; the row's hash."""
        db = self._connection()
        n = self._n + 1
        own = {"n": n, "kind": kind, "ts": round(ts, 6), "clock_ok": self._clock.ok(), "boot": self._boot}
        body = canonical({**content, **own})
        if len(body) > MOST_BYTES:
            raise GenealogyError(f"a row of {len(body)} bytes is too long for the genealogy: at most {MOST_BYTES}")
        digest = link(self._hash, body)
        with transaction(db):
            row = (n, *columns(msgspec.json.decode(body)), body, digest)
            db.execute(f"INSERT INTO row ({FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            if remove_through:
                db.execute("DELETE FROM row WHERE n <= ?", (remove_through,))
        self._first = self._first or n
        self._n, self._hash = n, digest
        return digest

    def _about_part(self, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The content of a row about a part, with what the part's own row knows."""
        by_part = body.get("part") is not None
        column, value = ("part", body["part"]) if by_part else ("serial", body.get("serial"))
        query = f"SELECT n, part, serial FROM row WHERE {column} = ? AND kind = 'part' ORDER BY n DESC LIMIT 1"
        found = None
        if value and (not by_part or 0 < value <= LARGEST):
            with self._failing("be read"):
                found = self._connection().execute(query, (value,)).fetchone()
        if found is None:
            raise GenealogyError(f"there is no part with the {column} {value!r} in the genealogy: look at its number")
        n, part, serial = found
        outcome = {"void": "void", "late": "LATE"}.get(kind) or body.get("verdict", "")
        return {**body, "part": part, "serial": serial or "", "row": n, "outcome": outcome}

    def _newest(self) -> float:
        """Wall time of the newest row before this run: how far the clock may be believed."""
        query = "SELECT ts FROM row ORDER BY n DESC LIMIT 1"
        with self._lock, self._failing("be read"):
            return float(self._connection().execute(query).fetchone()[0])

    def _size(self) -> int:
        total = 0
        for tail in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self._path}{tail}").st_size
        return total

    @contextlib.contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Errors of the file in words for the operator."""
        try:
            yield
        except (sqlite3.Error, OSError, UnusableFileError) as error:
            raise _failure(self._path, what, error) from error

    # Opening.

    def _connection(self) -> sqlite3.Connection:
        """The open file; opened when it is not, with a damaged one out of the way."""
        if self._closed:
            raise sqlite3.ProgrammingError("closed")
        if self._db is None:
            try:
                self._open()
            except (UnusableFileError, sqlite3.DatabaseError) as error:
                if not is_about_content(error):
                    raise
                self._replace(error)
        if self._db is None:
            raise sqlite3.OperationalError("unable to open database file")
        return self._db

    def _replace(self, why: Exception) -> None:
        """Set the file aside and begin a new chain, whose first row names the old file and its head."""
        self._drop()
        target = move_aside(self._path, self._clock.ts())
        self.set_aside = str(target)
        log.error("the genealogy %s is unusable (%s): set aside as %s", self._path, why, target)
        rows, head = _head_of(target)
        self._open({"follows": target.name, "follows_rows": rows, "follows_head": head, "why": str(why)[:MOST_TEXT]})

    def _open(self, beginning: Mapping[str, Any] | None = None) -> None:
        check_header(self._path)
        db = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            db.text_factory = _lenient
            empty = is_new(db, *OURS_IS)
            if not empty and self._path.stat().st_size <= QUICK_CHECK_BYTES:
                check_pages(db)
            write_ahead(db)
            db.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
            if empty:
                db.executescript(SCHEMA)
            self._first, self._n, self._hash = _prove_tail(db)
            self._db = db
            if not self._n:
                self._chain("begin", beginning or {}, self._clock.ts())
        except BaseException:
            self._db = None
            db.close()
            raise

    def _drop(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = None


# Rows of parts that no void row stands against.
_STANDING = (
    "SELECT n, part, serial FROM row AS p WHERE kind = 'part' AND NOT EXISTS"
    " (SELECT 1 FROM row AS v WHERE v.part = p.part AND v.kind = 'void' AND v.n > p.n)"
)


class GenealogyReader:
    """A chain to look at, as it stands when it is opened; the writer goes on meanwhile. One thread.

    While it is open the writer's log cannot be folded into the file, and grows: close it when done.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for reading only.

        Raises:
            GenealogyError: there is no such file, or it cannot be read here.
            GenealogyDamagedError: it is no genealogy, or damaged.
        """
        self._path = path
        if not path.is_file():
            raise GenealogyError(f"there is no genealogy {path}: give the state folder of the daemon with --state")
        with self._failing():
            self._db = self._open()

    def __enter__(self) -> GenealogyReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the file go; never raises."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def rows(self, begin_ts: float | None = None, end_ts: float | None = None, serial: str | None = None,
             parts_only: bool = False) -> Iterator[Row]:  # fmt: skip
        """Rows from `begin_ts` on and before `end_ts`, of that serial; None: whatever it is. In constant memory.

        In the order of the chain; where a time is given and no serial, in the order of their times.

        Raises:
            GenealogyError: while it is read, as for opening.
        """
        where = {"ts >= ?": begin_ts, "ts < ?": end_ts, "serial = ?": serial}
        given = {text: value for text, value in where.items() if value is not None}
        terms = [*given, *(["kind = 'part'"] if parts_only else [])]
        order = "ts, n" if given and serial is None else "n"
        query = f"SELECT {FIELDS} FROM row {'WHERE ' if terms else ''}{' AND '.join(terms)} ORDER BY {order}"
        with self._failing():
            for row in self._db.execute(query, tuple(given.values())):
                yield Row(*row)

    def remarks(self, row: Row) -> list[Row]:
        """The rows void, late and override about a part's row, oldest first."""
        query = f"SELECT {FIELDS} FROM row WHERE part = ? AND kind IN ('void', 'late', 'override') AND n > ? ORDER BY n"
        with self._failing():
            found = [Row(*found) for found in self._db.execute(query, (row.part, row.n))]
        return [remark for remark in found if remark.content.get("row") == row.n]

    def pruned(self) -> Row | None:
        """The row that tells what went from the front last; None when nothing ever did."""
        query = f"SELECT {FIELDS} FROM row WHERE kind = 'prune' ORDER BY n DESC LIMIT 1"
        with self._failing():
            found = self._db.execute(query).fetchone()
        return Row(*found) if found else None

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest row; (0, "") when there is none."""
        with self._failing():
            found = self._db.execute("SELECT n, hash FROM row ORDER BY n DESC LIMIT 1").fetchone()
        return (found[0], found[1]) if found else (0, "")

    def integrity(self) -> str:
        """What SQLite finds wrong with the file around the rows, such as an index that hides one; "" for nothing."""
        with self._failing():
            found = str(self._db.execute("PRAGMA integrity_check(1)").fetchone()[0])
        return "" if found == "ok" else " ".join(found.split())

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnusableFileError) as error:
            raise _failure(self._path, "be read", error) from error

    def _open(self) -> sqlite3.Connection:
        try:
            return self._begin("mode=ro")
        except sqlite3.OperationalError:
            # Nobody has it open and this folder takes no file beside it: a copy on a medium that is read-only.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(f"{self._path}-wal").st_size:
                    raise
            return self._begin("immutable=1")

    def _begin(self, how: str) -> sqlite3.Connection:
        db = sqlite3.connect(f"{self._path.absolute().as_uri()}?{how}", uri=True, timeout=LOCK_WAIT_S,
                             isolation_level=None)  # fmt: skip
        try:
            db.text_factory = _lenient
            db.execute("PRAGMA query_only=ON")
            db.execute("BEGIN")
            if is_new(db, *OURS_IS):
                raise UnusableFileError("it is empty")
            return db
        except BaseException:
            db.close()
            raise


def _while_older(rows: list[tuple[int, float, str]], than_ts: float) -> list[tuple[int, float, str]]:
    for i, (_, ts, _hash) in enumerate(rows):
        if ts >= than_ts:
            return rows[:i]
    return rows


def _lenient(text: bytes) -> str:
    """Text that was damaged must not stop the reading: it will not match."""
    return text.decode("utf-8", "surrogateescape")


def _prove_tail(db: sqlite3.Connection) -> tuple[int, int, str]:
    """Number of the oldest row, number and hash of the newest; zeros without any. Raises where the end is broken."""
    rows = [Row(*row) for row in db.execute(f"SELECT {FIELDS} FROM row ORDER BY n DESC LIMIT {TAIL}")][::-1]
    if not rows:
        return 0, 0, FIRST_HASH
    before = FIRST_HASH if rows[0].n == 1 else None
    for row, n in zip(rows, range(rows[0].n, rows[0].n + len(rows)), strict=True):
        wrong = f"row {n} is missing" if row.n != n else fault(row, before) if before is not None else ""
        if wrong:
            raise UnusableFileError(wrong)
        before = row.hash
    (first,) = db.execute("SELECT min(n) FROM row").fetchone()
    return first, rows[-1].n, rows[-1].hash


def _head_of(path: Path) -> tuple[int, str]:
    """Number and hash of the newest row in a file that was set aside; (0, "") when it cannot be read."""
    try:
        with GenealogyReader(path) as reader:
            return reader.head()
    except (GenealogyError, TypeError):
        return 0, ""


_REMEDIES = {
    **REMEDIES,
    "locked": "another edge process writes to it, stop that one first",
    "UNIQUE": "another edge process writes to it, stop that one first",
    "malformed": "the service sets a damaged file aside and begins a new one; keep the old one for an audit",
    "not a database": "the service sets a damaged file aside and begins a new one; keep it for an audit",
}


def _failure(path: Path, what: str, error: Exception) -> GenealogyError:
    kind = GenealogyDamagedError if is_about_content(error) else GenealogyError
    return kind(f"the genealogy {path} cannot {what}: {explained(path, error, _REMEDIES, what != 'be read')}")
