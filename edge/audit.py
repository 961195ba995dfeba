"""`edge audit`: prove the genealogy from its first row to its last, and copy it out as CSV or Parquet.

Both read a snapshot of the file while the daemon goes on, in constant memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from edge.chain import FIRST_HASH, Row, fault, link
from edge.errors import GenealogyDamagedError, GenealogyError, UsageError
from edge.genealogy import GenealogyReader

OK, BROKEN = 0, 1
FILE = "genealogy.db"
BATCH = 2000  # rows that are held at once

Record = dict[str, Any]


# Verify.


@dataclass(frozen=True)
class Proof:
    """What a walk over the whole chain found.

    Attributes:
        rows: seen. first, last: numbers of the oldest and the newest of them; their times beside, 0.0 without any.
        head: hash of the newest row.
        pruned: rows that went from the front by their age, as the chain itself says.
        broken: the first break in words, "" when the chain is whole.
        given: number of the row whose hash was asked for, None when it is not in the chain.
    """

    rows: int
    first: int
    last: int
    first_ts: float
    last_ts: float
    head: str
    pruned: int
    broken: str
    given: int | None


def prove(path: Path, head: str = "") -> Proof:
    """Walk the chain from its first row to its last, or to its first break.

    Args:
        path: the genealogy's file.
        head: hash of a row as it was once published, "" for none; looked for on the way.

    Raises:
        GenealogyError: the file cannot be read here. A damaged one is a break, not an error.
    """
    walk = _Walk(head)
    try:
        with GenealogyReader(path) as reader:
            walk.over(reader)
    except GenealogyDamagedError as error:
        walk.damaged(str(error))
    return walk.proof()


class _Walk:
    """The state of one walk: the row before, what is wrong."""

    def __init__(self, head: str) -> None:
        self._head = head
        self._given: int | None = None
        self._first: Row | None = None
        self._last: Row | None = None
        self._rows = self._pruned = 0
        self._before: str | None = None  # hash of the row before; None where nothing is known of it
        self._broken: list[str] = []

    def over(self, reader: GenealogyReader) -> None:
        rows = reader.rows()
        for row in rows:
            if self._last is None:
                self._begin(row, reader.pruned() if row.n != 1 else None)
            wrong = self._wrong(row)
            if wrong:
                self._broken.append(wrong + (self._which(row, next(rows, None)) if "altered" in wrong else ""))
                return
            self._first = self._first or row
            self._last, self._before = row, row.hash
            self._rows += 1
            if row.hash == self._head:
                self._given = row.n
        if self._last is None:
            self._broken.append("there is no row: all were removed")
        elif not self._broken and (problem := reader.integrity()):
            self._broken.append(f"every row is whole, but the file around them is damaged: {problem}")

    def damaged(self, text: str) -> None:
        self._broken.append(f"after row {self._last.n}: {text}" if self._last else text)

    def proof(self) -> Proof:
        first, last = self._first, self._last
        return Proof(
            rows=self._rows,
            first=first.n if first else 0,
            last=last.n if last else 0,
            first_ts=first.ts if first else 0.0,
            last_ts=last.ts if last else 0.0,
            head=last.hash if last else "",
            pruned=self._pruned,
            broken="; ".join(self._broken),
            given=self._given,
        )

    def _begin(self, row: Row, prune: Row | None) -> None:
        """What stands before the oldest row: nothing, or what a later row says was let go."""
        if row.n == 1:
            self._before = FIRST_HASH
            return
        for stray in (row, prune):
            if stray is not None and (number := stray.content.get("n")) != stray.n and number is not None:
                text = f"row {stray.n}: it stands in the place of another, its content is that of row {number}"
                self._broken.append(text)
                return
        told = prune.content if prune is not None else {}
        through, digest = told.get("through"), told.get("hash")
        if prune is None or not isinstance(through, int) or not isinstance(digest, str):
            self._broken.append(f"rows before row {row.n} are missing, and no row tells that they were let go")
        elif through != row.n - 1:
            text = f"the chain begins with row {row.n}, but by row {prune.n} it should with row {through + 1}"
            self._broken.append(text)
        elif link(digest, row.body) != row.hash:
            self._broken.append(f"row {row.n}: altered, or row {prune.n}, which tells what stood before it")
        else:
            self._before, self._pruned = digest, through

    def _wrong(self, row: Row) -> str:
        last = self._last
        if last is not None and row.n != last.n + 1:
            missing = f"row {last.n + 1} is" if row.n == last.n + 2 else f"rows {last.n + 1} to {row.n - 1} are"
            return f"{missing} missing between row {last.n} and row {row.n}"
        wrong = fault(row, self._before) if self._before is not None else ""
        if not wrong and row.n == 1 and row.kind != "begin":
            return f"row 1: it is no beginning of a chain, but of the kind {row.kind}"
        return wrong

    def _which(self, row: Row, following: Row | None) -> str:
        """Whether it is the content or the hash that was altered, as far as the row after it tells."""
        if following is None or self._before is None or not isinstance(row.body, bytes):
            return ""
        if row.hash == (computed := link(self._before, row.body)) or not isinstance(following.body, bytes):
            return ""
        if link(row.hash, following.body) == following.hash:
            return "; the row after it still stands on the old hash, so its content was altered"
        if link(computed, following.body) == following.hash:
            return "; the row after it stands on its content, so its hash was altered"
        return ""


def verify(state: Path, head: str | None = None) -> int:
    """Prove the chain and print what was found; 0 when it is whole, 1 when it is broken.

    Args:
        state: the daemon's state folder, or a genealogy's file.
        head: hash of a row as it was published: proves that nothing up to that row was cut off or written anew.

    Raises:
        EdgeError: the file cannot be read, or `head` is no hash.
    """
    head = _checked_head(head)
    path = _file(state)
    proof = prove(path, head)
    print(f"genealogy {path}")
    if proof.rows:
        print(f"{proof.rows} rows, {proof.first} to {proof.last}, {_iso(proof.first_ts)} to {_iso(proof.last_ts)}")
    if proof.pruned:
        print(f"rows 1 to {proof.pruned} were let go by their age; what is left follows from the last of them")
    if proof.broken:
        print(f"BROKEN: {proof.broken}")
        return BROKEN
    print(f"head: row {proof.last} {proof.head}")
    if head and proof.given is None:
        older = ", or it is of a row that was let go" if proof.pruned else ""
        print(f"BROKEN: no row has the hash {head}: rows were cut off the end or written anew{older}")
        return BROKEN
    if head:
        print(f"the hash given is that of row {proof.given}, {proof.last - (proof.given or 0)} rows came after it")
    print("whole: every row follows from the one before it")
    return OK


def _checked_head(head: str | None) -> str:
    text = (head or "").strip().lower()
    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise UsageError(f"--head {head} is no hash of a row: give the 64 hex digits as they were published in health")
    return text


def _file(state: Path) -> Path:
    return state / FILE if state.is_dir() else state


# Export.

TEXT, INT, FLOAT, BOOL, TIME = "text", "int", "float", "bool", "time"
# What a spreadsheet takes for the beginning of a formula; the last four are = + - @ in full width.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")

# One line a part, with what was said of it later.
PART_COLUMNS: Mapping[str, str] = {
    "row": INT, "part": INT, "serial": TEXT, "time": TIME, "clock_ok": BOOL, "final_outcome": TEXT, "outcome": TEXT,
    "overridden_by": TEXT, "override_reason": TEXT, "override_time": TIME, "void": BOOL, "late": BOOL, "reason": TEXT,
    "reasons": TEXT, "detail": TEXT, "recipe": TEXT, "recipe_hash": TEXT, "bundle": TEXT, "config": TEXT,
    "evidence": TEXT, "missing": TEXT, "anomaly": FLOAT, "cameras": TEXT, "trigger": INT, "boot": TEXT, "hash": TEXT,
}  # fmt: skip
RAW_COLUMNS: Mapping[str, str] = {
    "row": INT, "kind": TEXT, "time": TIME, "clock_ok": BOOL, "part": INT, "serial": TEXT, "outcome": TEXT,
    "body": TEXT, "hash": TEXT,
}  # fmt: skip


def export(
    state: Path, out: Path, begin: str | None = None, end: str | None = None, serial: str | None = None,
    raw: bool = False,
) -> int:  # fmt: skip
    """Write the parts of a time or a serial to a file, with its SHA-256 and the chain's head beside it; returns 0.

    The files have their names only when they are whole and on the medium. No part that fits is no error: the file then
    has its columns and no line, and the output says "0 rows".

    Args:
        state: the daemon's state folder, or a genealogy's file.
        out: a `.csv` or `.parquet` file, replaced when it is there.
        begin: from then on: `2026-11-27` or `2026-11-27T06:00`, UTC. end: before then; a day is meant with its end.
        serial: only parts with it.
        raw: every row as it is in the chain, instead of one line a part.

    Raises:
        EdgeError: arguments that make no sense, a file that cannot be read, or a medium that does not take the copy.
    """
    begin_ts, end_ts = _range(begin, end)
    if serial is not None and not serial:
        raise UsageError("--serial is empty: give the serial of a part, or leave it away")
    columns = RAW_COLUMNS if raw else PART_COLUMNS
    sink = _sink_for(out)
    with GenealogyReader(_file(state)) as reader:
        head_row, head = reader.head()
        rows = reader.rows(begin_ts, end_ts, serial, parts_only=not raw)
        records = (_raw_record(row) if raw else _part_record(row, reader.remarks(row)) for row in rows)
        try:
            digest, n = _write(out, lambda file: sink(file, columns), records, f"row {head_row} {head}")
        except OSError as error:
            raise GenealogyError(_cannot_write(out, error)) from error
    print(f"{n} rows to {out}, SHA-256 {digest} in {out.name}.sha256")
    print(f"head: row {head_row} {head}")
    return OK


def _range(begin: str | None, end: str | None) -> tuple[float | None, float | None]:
    begin_ts = _moment(begin, "--from", whole_day=False) if begin is not None else None
    end_ts = _moment(end, "--to", whole_day=True) if end is not None else None
    if begin_ts is not None and end_ts is not None and begin_ts >= end_ts:
        raise UsageError(f"--from {begin} is not before --to {end}: exchange them")
    return begin_ts, end_ts


def _moment(text: str, option: str, whole_day: bool) -> float:
    """Seconds since 1970 of a day or a moment; of a day its end where that is meant.

    >>> _moment("2026-11-27", "--from", whole_day=False), _moment("2026-11-27T01:00:00+01:00", "--to", whole_day=True)
    (1795737600.0, 1795737600.0)
    """
    try:
        moment = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text.strip()))
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        is_day = re.fullmatch(r"\d{4}-\d\d-\d\d", text.strip()) is not None
        return (moment + timedelta(days=1) if is_day and whole_day else moment).timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{option} {text} is no date: write 2026-11-27 or 2026-11-27T06:00, in UTC") from error


class _Said(msgspec.Struct, kw_only=True, frozen=True):
    """What is copied from the content of a part's row."""

    clock_ok: bool | None = None
    boot: str = ""
    reasons: list[tuple[str, str]] = []
    detail: str = ""
    trigger: tuple[int, float, int | None] | None = None
    recipe: str = ""
    recipe_hash: str = ""
    bundle: str = ""
    config: str = ""
    evidence: str = ""
    cameras: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}


def _said(row: Row) -> _Said:
    try:
        return msgspec.json.decode(row.body, type=_Said)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _Said(detail="its content was altered and cannot be read: `edge audit verify` says more")


def _part_record(row: Row, remarks: Sequence[Row]) -> Record:
    """One part as it stands: what was found, and what was said of it later."""
    said = _said(row)
    override = next((r for r in reversed(remarks) if r.kind == "override"), None)
    void, late = (any(r.kind == kind for r in remarks) for kind in ("void", "late"))
    final = "void" if void else override.outcome if override else "LATE" if late else row.outcome
    anomalies = [look.get("anomaly") for look in said.cameras.values()]
    by = override.content if override is not None else {}
    return {
        **msgspec.structs.asdict(said),
        "row": row.n,
        "part": row.part,
        "serial": row.serial or "",
        "time": row.ts,
        "outcome": row.outcome,
        "final_outcome": final,
        "overridden_by": by.get("operator", ""),
        "override_reason": by.get("reason", ""),
        "override_time": override.ts if override else None,
        "void": void,
        "late": late,
        "reason": said.reasons[0][0] if said.reasons else "",
        "reasons": "; ".join(": ".join(reason) for reason in said.reasons),
        "missing": "; ".join(f"{camera}: {why}" for camera, why in said.missing.items()),
        "anomaly": max((a for a in anomalies if isinstance(a, int | float)), default=None),
        "cameras": msgspec.json.encode(said.cameras, order="sorted").decode(),
        "trigger": said.trigger[0] if said.trigger else None,
        "hash": row.hash,
    }


def _raw_record(row: Row) -> Record:
    return {
        "row": row.n,
        "kind": row.kind,
        "time": row.ts,
        "clock_ok": row.content.get("clock_ok"),
        "part": row.part,
        "serial": row.serial or "",
        "outcome": row.outcome or "",
        "body": row.body.decode("utf-8", "backslashreplace") if isinstance(row.body, bytes) else str(row.body),
        "hash": row.hash,
    }


# The file.


class _Sink(Protocol):
    """Takes records in batches; whole when its context is left."""

    def write(self, records: Sequence[Record]) -> None: ...


Opener = Callable[[BinaryIO, Mapping[str, str]], AbstractContextManager[_Sink]]


def _sink_for(out: Path) -> Opener:
    sinks: Mapping[str, Opener] = {".csv": _CsvSink, ".parquet": _ParquetSink}
    sink = sinks.get(out.suffix.lower())
    if sink is None:
        raise UsageError(f"--out {out} is neither a .csv nor a .parquet file: give it one of these endings")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.absolute().parent}; is the stick mounted?")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give a file in it")
    if sink is _ParquetSink:
        _pyarrow()
    return sink


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        remedy = 'write a .csv file, or install it: pip install "edge-inspection[parquet]"'
        raise UsageError(f"Parquet files want pyarrow, which is not installed here ({error}): {remedy}") from error
    return pyarrow


def _write(
    out: Path, opener: Callable[[BinaryIO], AbstractContextManager[_Sink]], records: Iterable[Record], head: str
) -> tuple[str, int]:
    """Write both files under names of their own and put them in place when they are whole: SHA-256, lines written."""
    beside = out.with_name(f"{out.name}.sha256")
    fresh = {path: path.with_name(f"{path.name}.partial") for path in (out, beside)}
    try:
        with open(fresh[out], "wb") as file:
            hashing = _Hashing(file)
            n = _pour(opener(hashing), records)  # type: ignore[arg-type]  # all of a BinaryIO that is used
            _settle(file)
        moment = _iso(time.time())
        with open(fresh[beside], "wb") as file:
            text = f"# exported {moment}; head of the genealogy: {head}\n{hashing.digest()}  {out.name}\n"
            file.write(text.encode("utf-8", "surrogateescape"))
            _settle(file)
        for path, partial in fresh.items():
            os.replace(partial, path)
        _settle_folder(out.absolute().parent)
    except BaseException:
        for partial in fresh.values():
            with suppress(OSError):
                partial.unlink()
        raise
    return hashing.digest(), n


def _pour(opened: AbstractContextManager[_Sink], records: Iterable[Record]) -> int:
    n, rest = 0, iter(records)
    with opened as sink:
        while batch := list(islice(rest, BATCH)):
            sink.write(batch)
            n += len(batch)
    return n


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _settle_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every stick's file system can do it
            os.fsync(number)
    finally:
        os.close(number)


def _cannot_write(out: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    full = "No space" in reason or "quota" in reason.lower()
    remedy = "free space there or take a shorter time" if full else "check that this user can write there"
    return f"the export {out} cannot be written: {reason}; {remedy}; no file was left"


class _Hashing(io.RawIOBase):
    """A file whose SHA-256 is known when it is written; closing it leaves the file open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self._sum.update(view)
        return len(view)

    def digest(self) -> str:
        return self._sum.hexdigest()


class _CsvSink(ExitStack):
    """Lines of UTF-8, quoted where needed, times as ISO 8601 in UTC. Text that a spreadsheet would run is defused."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        super().__init__()
        self._columns = columns
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="", write_through=False)
        self.callback(text.detach)
        self.callback(text.flush)
        self._lines = csv.writer(text)
        self._lines.writerow(columns)

    def write(self, records: Sequence[Record]) -> None:
        for record in records:
            self._lines.writerow([_cell(record.get(name), kind) for name, kind in self._columns.items()])


def _cell(value: Any, kind: str) -> str:
    """A value as CSV.

    >>> _cell("=HYPERLINK(1)", TEXT), _cell(-1.5, FLOAT), _cell(0.0, TIME), _cell(True, BOOL), _cell(None, INT)
    ("'=HYPERLINK(1)", '-1.5', '1970-01-01T00:00:00.000Z', 'true', '')
    """
    if value is None:
        return ""
    if kind == TIME:
        return _iso(value)
    if kind == BOOL:
        return "true" if value else "false"
    return _defused(str(value)) if kind == TEXT or isinstance(value, str) else str(value)


def _defused(text: str) -> str:
    """Text from outside that a spreadsheet must not take for a formula: an apostrophe before it makes it text.

    >>> [_defused(text) for text in ("SN-1", "-1+2", "@x", chr(9) + "=1", chr(0xFF1D) + "1")] == [
    ...     "SN-1", "'-1+2", "'@x", "'" + chr(9) + "=1", "'" + chr(0xFF1D) + "1"]
    True
    """
    text = text.replace("\x00", "")
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text


class _ParquetSink(ExitStack):
    """Columns with types of their own, batch by batch; text is as it came."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, str]) -> None:
        super().__init__()
        self._arrow = arrow = _pyarrow()
        types = {
            TEXT: arrow.string(), INT: arrow.int64(), FLOAT: arrow.float64(), BOOL: arrow.bool_(),
            TIME: arrow.timestamp("ms", tz="UTC"),
        }  # fmt: skip
        self._columns = columns
        self._schema = arrow.schema([(name, types[kind]) for name, kind in columns.items()])
        self._writer = self.enter_context(arrow.parquet.ParquetWriter(file, self._schema))

    def write(self, records: Sequence[Record]) -> None:
        plain = [{name: _typed(r.get(name), kind) for name, kind in self._columns.items()} for r in records]
        self._writer.write_batch(self._arrow.RecordBatch.from_pylist(plain, schema=self._schema))


def _typed(value: Any, kind: str) -> Any:
    """A value of the column's type; None for one that an altered row may have instead."""
    if value is None:
        return None
    if kind == TEXT:
        return str(value).encode("utf-8", "backslashreplace").decode()
    if kind == BOOL:
        return bool(value)
    if isinstance(value, str) or not abs(value) < 2**62:
        return None
    return int(value * 1000) if kind == TIME else float(value) if kind == FLOAT else int(value)


def _iso(ts: Any) -> str:
    """UTC with milliseconds; "" for what is no time.

    >>> _iso(1795753502.1234)
    '2026-11-27T04:25:02.123Z'
    """
    try:
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=ts)
    except (OverflowError, TypeError, ValueError):
        return ""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
