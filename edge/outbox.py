"""Store-and-forward: every message that must reach the broker, in one SQLite file until the broker has it.

A message is durable when `add` returns: its transaction is synced to the disk (WAL, synchronous=FULL), together with
the ledger that counts it. A removal is not synced (synchronous=NORMAL): one lost in a power cut means the message is
sent twice, under the same id. In a trial on a busy disk a removal took 0.1 ms so; synced it took 0.3 ms with the
exclusive lock that this file is opened with, and 1.8 ms without.

The file does not grow beyond its quota for long: space of delivered rows is used again. Its size is at most about
twice the quota (SQLite keeps whole pages of 4096 bytes) plus a write-ahead log of about 4 MB.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from pathlib import Path

import msgspec

from edge.clock import Beat, Clock
from edge.errors import OutboxError
from edge.event import Envelope, LedgerCounts, OutboxCounts, encode, stamp
from edge.files import write_whole
from edge.sqlite_file import (
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

APPLICATION_ID = 0x65644F42  # "edOB" in the header of the file: says that it is ours
VERSION = 1
RESERVE = 1000  # numbers reserved ahead in the side file; the widest jump when the outbox has to be begun anew
LOCK_WAIT_S = 2.0
CHUNK = 500  # values a statement
CHECK_EVERY_S = 20.0  # an outbox that nobody wrote to for so long is written to, to see whether the disk still answers
HUNG_S = 10.0  # one transaction; a flash card that cleans up takes a second or two

SCHEMA = f"""
BEGIN;
CREATE TABLE message (
    seq INTEGER PRIMARY KEY, kind INTEGER NOT NULL, retain INTEGER NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL
);
CREATE TABLE books (
    only INTEGER PRIMARY KEY CHECK (only = 1), first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL,
    parts INTEGER NOT NULL, added INTEGER NOT NULL, delivered INTEGER NOT NULL, evicted_results INTEGER NOT NULL,
    evicted_alarms INTEGER NOT NULL, refused INTEGER NOT NULL, ledger BLOB
);
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={VERSION};
COMMIT;
"""


class Kind(IntEnum):
    """What a message is worth when room runs out: results go first, alarms last."""

    RESULT = 0
    ALARM = 1


@dataclass(frozen=True)
class Draft:
    """A message to be stored; its envelope is filled in by the outbox.

    Attributes:
        retain: the broker keeps it for those who subscribe later (alarms).
    """

    topic: str
    kind: Kind
    retain: bool
    message: Envelope


@dataclass(frozen=True)
class Row:
    """A stored message, ready to be sent."""

    seq: int
    topic: str
    retain: bool
    payload: bytes


@dataclass(frozen=True)
class _Books:
    """The counters that are committed with every transaction; depth and bytes are counted afresh at the start."""

    first_seq: int
    last_seq: int
    parts: int
    added: int = 0
    delivered: int = 0
    evicted_results: int = 0
    evicted_alarms: int = 0
    refused: int = 0
    ledger: bytes | None = None
    depth: int = 0
    bytes: int = 0
    results_from: int = 0  # no RESULT row has a lower seq: spares the search for the oldest one


class Outbox:
    """The durable queue of one node. Any thread may call it; calls take turns.

    Attributes:
        set_aside: where a damaged or foreign file was moved at the start, None when there was none.
        beat: rests but while a transaction is under way, also one that `check` began: a disk that hangs shows.

    Example:
        >>> import tempfile
        >>> from edge import ledger
        >>> from edge.clock import SystemClock
        >>> from edge.event import Alarm
        >>> box = Outbox(Path(tempfile.mkdtemp()) / "outbox.db", 1_000_000, "boot1", SystemClock())
        >>> alarm = Alarm(code="blur", severity="warning", text="blurred", advice="clean the lens")
        >>> box.add([Draft("edge/alarm/blur", Kind.ALARM, True, alarm)], ledger.empty(), 0)
        [1]
        >>> [row.seq for row in box.pending(0, 10)], box.counts().depth
        ([1], 1)
        >>> box.remove([1]); box.counts().delivered
        1
        >>> box.close()
    """

    def __init__(self, path: Path, quota_bytes: int, boot: str, clock: Clock) -> None:
        """Open the outbox, or begin a new one.

        Args:
            path: the SQLite file; its folder is made when missing.
            quota_bytes: how many bytes of payload may wait; beyond it the oldest are evicted, and counted.
            boot: id of this run of the daemon, part of every message's id.
            clock: stamps the messages.

        Raises:
            OutboxError: the file cannot be opened or written here. A damaged file is no error: see `set_aside`.
        """
        self._path = path
        self._quota_bytes = quota_bytes
        self._boot = boot
        self._clock = clock
        self._lock = threading.Lock()
        self._listener: Callable[[Sequence[Row]], None] | None = None
        self._reserve = _Reserve(path.with_name(path.name + ".reserve"))
        self.set_aside: str | None = None
        self.beat = Beat("outbox", HUNG_S)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db, self._books = self._open_or_replace()
            with self._lock, self.beat.working():
                self._trim()
        except (sqlite3.Error, OSError) as error:
            raise self._failure("be opened", error) from error
        self._reserve.cover(self._books.last_seq, self._books.parts)
        self._wrote()

    def add(self, drafts: Sequence[Draft], ledger: LedgerCounts, parts: int) -> list[int]:
        """Store messages, the ledger that counts them and the part counter, all or nothing; durable on return.

        Args:
            drafts: in the order they are to be sent.
            ledger: the counts after this part.
            parts: the part counter after it.

        Returns:
            Their seq numbers, one after the other without a gap.

        Raises:
            OutboxError: nothing was stored (disk full, read-only, broken); the next call tries afresh.
        """
        with self._lock:
            first = self._books.last_seq + 1
            rows = [self._row(first + i, draft) for i, draft in enumerate(drafts)]
            try:
                with self.beat.working():
                    self._reserve.cover(first + len(rows), parts)
                    self._retrying(partial(self._store, rows, drafts, encode(ledger), parts))
            except sqlite3.Error as error:
                self._books = replace(self._books, refused=self._books.refused + len(rows))
                raise self._failure("store a message", error) from error
            if rows and self._listener is not None:
                self._listener([row for row in rows if row.retain])
        return [row.seq for row in rows]

    def save_ledger(self, counts: LedgerCounts, parts: int) -> None:
        """Make the ledger and the part counter durable without a message.

        Raises:
            OutboxError: they could not be stored.
        """
        self.add([], counts, parts)

    def ledger(self) -> tuple[LedgerCounts | None, int]:
        """The ledger and the part counter as last committed; None before the first one."""
        with self._lock:
            books = self._books
        return (msgspec.json.decode(books.ledger, type=LedgerCounts) if books.ledger else None), books.parts

    def pending(self, after_seq: int, limit: int) -> list[Row]:
        """The oldest stored messages with a seq over `after_seq`, in order, at most `limit`.

        Raises:
            OutboxError: the file cannot be read.
        """
        query = "SELECT seq, topic, retain, payload FROM message WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._lock:
            try:
                with self.beat.working():
                    found = self._db.execute(query, (after_seq, limit)).fetchall()
            except sqlite3.Error as error:
                raise self._failure("be read", error) from error
        return [Row(seq, topic, bool(retain), payload) for seq, topic, retain, payload in found]

    def remove(self, seqs: Sequence[int]) -> None:
        """Take out messages that the broker has; those already gone (evicted meanwhile) are not counted again.

        Raises:
            OutboxError: they stay, and will be sent again unless a later call takes them out.
        """
        for begin in range(0, len(seqs), CHUNK):
            with self._lock, self.beat.working():  # an `add` waits for one chunk at most
                try:
                    self._db.execute("PRAGMA synchronous=NORMAL")
                    self._retrying(partial(self._deliver, seqs[begin : begin + CHUNK]))
                except sqlite3.Error as error:
                    raise self._failure("remove delivered messages", error) from error
                finally:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("PRAGMA synchronous=FULL")

    def check(self) -> None:
        """Write to the disk when nobody has for `CHECK_EVERY_S`: a disk that hangs shows in `beat` also between parts.

        One that refuses has answered; who has something to store is told why.
        """
        if time.monotonic() < self._check_due_s:
            return
        beat = self.beat.working()
        with self._lock, contextlib.suppress(sqlite3.Error), beat, transaction(self._db):
            self._db.execute("UPDATE books SET parts = parts + 1")  # what changes nothing SQLite does not write at all
            self._save(self._books)
        self._wrote()

    def counts(self) -> OutboxCounts:
        """What is stored and what became of the rest, over all runs."""
        with self._lock:
            books = self._books
        return OutboxCounts(
            depth=books.depth,
            bytes=books.bytes,
            added=books.added,
            delivered=books.delivered,
            evicted_results=books.evicted_results,
            evicted_alarms=books.evicted_alarms,
            refused=books.refused,
            first_seq=books.first_seq,
        )

    def listen(self, listener: Callable[[Sequence[Row]], None]) -> None:
        """Call `listener` after each `add`, with those of its rows that are to be retained.

        It is called before any other thread can read the rows, in the adding thread: it must be quick, must not
        raise, and must not call the outbox.
        """
        self._listener = listener

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it; never raises."""
        self.beat.rest()
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _wrote(self) -> None:
        self._check_due_s = time.monotonic() + CHECK_EVERY_S

    # From here on the lock is held by the caller.

    def _row(self, seq: int, draft: Draft) -> Row:
        message = stamp(
            draft.message,
            seq=seq,
            boot=self._boot,
            ts=self._clock.ts(),
            mono_ns=self._clock.mono_ns(),
            clock_ok=self._clock.ok(),
            stream="o",
        )
        return Row(seq, draft.topic, draft.retain, encode(message))

    def _store(self, rows: Sequence[Row], drafts: Sequence[Draft], ledger: bytes, parts: int) -> None:
        old = self._books
        with transaction(self._db):
            self._db.executemany(
                "INSERT INTO message (seq, kind, retain, topic, payload) VALUES (?, ?, ?, ?, ?)",
                [(r.seq, d.kind, r.retain, r.topic, r.payload) for r, d in zip(rows, drafts, strict=True)],
            )
            books = replace(
                old,
                last_seq=old.last_seq + len(rows),
                added=old.added + len(rows),
                depth=old.depth + len(rows),
                bytes=old.bytes + sum(len(row.payload) for row in rows),
                ledger=ledger,
                parts=parts,
            )
            books = self._evict(books, old.last_seq + 1)
            self._save(books)
        self._books = books
        self._wrote()

    def _deliver(self, seqs: Sequence[int]) -> None:
        with transaction(self._db):
            sizes = self._delete(seqs)
            old = self._books
            books = replace(
                old,
                delivered=old.delivered + len(sizes),
                depth=old.depth - len(sizes),
                bytes=old.bytes - sum(sizes),
            )
            self._save(books)
        self._books = books

    def _delete(self, seqs: Sequence[int]) -> list[int]:
        """Delete rows; the payload bytes of each that was there."""
        marks = ",".join("?" * len(seqs))
        found = self._db.execute(f"DELETE FROM message WHERE seq IN ({marks}) RETURNING length(payload)", tuple(seqs))
        return [size for (size,) in found.fetchall()]

    def _evict(self, books: _Books, first_new: int) -> _Books:
        """Make room: what can never fit, then old results, then old alarms, then the new ones in the same order."""
        new, old, result = f"seq >= {first_new}", f"seq < {first_new}", f"kind = {int(Kind.RESULT)}"
        books, _ = self._evict_where(f"{new} AND length(payload) > {self._quota_bytes}", books)
        books, last = self._evict_where(f"{old} AND seq >= {books.results_from} AND {result}", books)
        books = replace(books, results_from=max(books.results_from, last + 1))
        for where in (old, f"{new} AND {result}", new):
            books, _ = self._evict_where(where, books)
        return books

    def _evict_where(self, where: str, books: _Books) -> tuple[_Books, int]:
        """Evict the oldest of these rows until the rest fits; also the last seq evicted, 0 for none."""
        if books.bytes <= self._quota_bytes:
            return books, 0
        victims, results, freed = [], 0, 0
        found = self._db.execute(f"SELECT seq, kind, length(payload) FROM message WHERE {where} ORDER BY seq")
        for seq, kind, size in found:
            if books.bytes - freed <= self._quota_bytes:
                break
            victims.append(seq)
            freed += size
            results += kind == Kind.RESULT
        found.close()
        for begin in range(0, len(victims), CHUNK):
            self._delete(victims[begin : begin + CHUNK])
        books = replace(
            books,
            depth=books.depth - len(victims),
            bytes=books.bytes - freed,
            evicted_results=books.evicted_results + results,
            evicted_alarms=books.evicted_alarms + len(victims) - results,
        )
        return books, victims[-1] if victims else 0

    def _trim(self) -> None:
        """A smaller quota than last time takes effect at the start; the write also shows whether it can write."""
        with transaction(self._db):
            books = self._evict(self._books, self._books.last_seq + 1)
            self._save(books)
        if books.bytes < self._books.bytes:
            log.warning("the outbox held more than its quota of %d bytes: the oldest are evicted", self._quota_bytes)
        self._books = books

    def _save(self, b: _Books) -> None:
        self._db.execute(
            "UPDATE books SET first_seq=?, last_seq=?, parts=?, added=?, delivered=?, evicted_results=?,"
            " evicted_alarms=?, refused=?, ledger=?",
            (b.first_seq, b.last_seq, b.parts, b.added, b.delivered, b.evicted_results, b.evicted_alarms, b.refused,
             b.ledger),
        )  # fmt: skip

    def _retrying(self, work: Callable[[], None]) -> None:
        """Do it; when the disk is full, once more with the write-ahead log begun anew from its start.

        The log keeps its size on the disk, so an outbox with free pages goes on working on a full disk.
        """
        try:
            work()
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            work()

    # Opening.

    def _open_or_replace(self) -> tuple[sqlite3.Connection, _Books]:
        try:
            return self._open()
        except (UnusableFileError, sqlite3.DatabaseError) as error:
            if not is_about_content(error):
                raise
            self.set_aside = str(move_aside(self._path, self._clock.ts()))
            log.error("the outbox %s is unusable (%s): set aside as %s", self._path, error, self.set_aside)
        try:
            return self._open()
        except UnusableFileError as error:  # a file that was just made
            raise sqlite3.OperationalError(str(error)) from error

    def _open(self) -> tuple[sqlite3.Connection, _Books]:
        check_header(self._path)
        db = sqlite3.connect(self._path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            # One process only: a second one is refused here. It also spares the shared-memory file.
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            empty = is_new(db, APPLICATION_ID, VERSION, "an outbox")
            if not empty:
                check_pages(db)
            write_ahead(db)
            if empty:
                self._create(db)
            return db, _load(db)
        except BaseException:
            db.close()
            raise

    def _create(self, db: sqlite3.Connection) -> None:
        db.executescript(SCHEMA)
        seq, parts = self._reserve.seq, self._reserve.parts
        if seq:
            log.warning("a new outbox is begun: numbers go on at %d, some before it may have been lost", seq + 1)
        db.execute("INSERT INTO books VALUES (1, ?, ?, ?, 0, 0, 0, 0, 0, NULL)", (seq + 1, seq, parts))

    def _failure(self, what: str, error: Exception) -> OutboxError:
        return OutboxError(f"the outbox {self._path} cannot {what}: {explained(self._path, error)}")


def _load(db: sqlite3.Connection) -> _Books:
    row = db.execute(
        "SELECT first_seq, last_seq, parts, added, delivered, evicted_results, evicted_alarms, refused, ledger"
        " FROM books"
    ).fetchone()
    if row is None:
        raise UnusableFileError("damaged: its counters are missing")
    depth, size, highest = db.execute(
        "SELECT count(*), coalesce(sum(length(payload)), 0), coalesce(max(seq), 0) FROM message"
    ).fetchone()
    books = replace(_Books(*row), depth=depth, bytes=size)
    accounted = books.delivered + books.evicted_results + books.evicted_alarms + depth
    if books.added != accounted or highest > books.last_seq:
        raise UnusableFileError(f"damaged: {depth} messages up to {highest} do not agree with its counters")
    if books.ledger is not None:
        try:
            msgspec.json.decode(books.ledger, type=LedgerCounts)
        except msgspec.MsgspecError as error:
            raise UnusableFileError(f"damaged: its ledger is unreadable ({error})") from error
    return books


class _Reserve:
    """A side file with numbers not yet given out, so that no number comes twice when the outbox itself is lost.

    Written once in `RESERVE` messages. The outbox works without it, hence it never raises.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seq, self.parts = self._read()

    def cover(self, seq: int, parts: int) -> None:
        """Reserve ahead when these numbers are beyond what is reserved."""
        if seq <= self.seq and parts <= self.parts:
            return
        self.seq, self.parts = max(seq + RESERVE, self.seq), max(parts + RESERVE, self.parts)
        try:
            write_whole(self._path, b'{"seq":%d,"parts":%d}\n' % (self.seq, self.parts))
        except OSError as error:
            log.warning("%s cannot be written (%s): numbers could repeat if the outbox is lost", self._path, error)

    def _read(self) -> tuple[int, int]:
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
            return max(found["seq"], 0), max(found["parts"], 0)
        except FileNotFoundError:
            return 0, 0
        except (OSError, msgspec.MsgspecError, KeyError) as error:
            log.warning("%s is unreadable (%s): it is written anew", self._path, error)
            return 0, 0
