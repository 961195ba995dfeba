"""`edge audit`: every way to tamper with the chain is named, and the copy for the stick says what stands."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import audit
from edge.chain import FIRST_HASH, canonical, link
from edge.config import GenealogySettings
from edge.errors import EdgeError, GenealogyError, UsageError
from edge.genealogy import FIELDS, Genealogy
from edge.part import Part, Trigger
from edge.records import Loss, Reason, Verdict, VerdictKind
from tests.disks import small_disk
from tests.fakes import FakeClock

DAY = 86_400.0
KIM = {"operator": "kim", "verdict": "OK", "reason": "looked at it"}
ROWS = 12  # of the chain below: a beginning, ten parts, an override


def part(number: int, kind: VerdictKind | Loss = VerdictKind.OK, serial: str = "", ts: float = 1_800_000_001.0) -> Part:
    trigger = Trigger(number % 65536, serial or f"SN-{number}", 1, 1, ts - 0.1)
    if isinstance(kind, Loss):
        return Part(number, "pcb", "ab" * 32, trigger, (), None, kind, ts, detail="what happened")
    reasons = (
        () if kind is VerdictKind.OK else (Reason("defect.short", "short 0.93"), Reason("defect.open", "open 0.9"))
    )
    return Part(number, "pcb", "ab" * 32, trigger, (), Verdict(kind, reasons), None, ts)


def chain_in(folder: Path, parts: int = 10, boot: str = "b") -> Genealogy:
    """A part a day from 2027-01-15 on, every third NG; the sixth is overridden."""
    clock = FakeClock()
    chain = Genealogy(folder / "genealogy.db", clock, boot, GenealogySettings(keep_days=5))
    assert chain._db is not None
    chain._db.execute("PRAGMA synchronous=OFF")  # no crash is meant here
    for number in range(1, parts + 1):
        kind = VerdictKind.NG if number % 3 == 0 else VerdictKind.OK
        chain.append_part(part(number, kind, ts=clock.ts()), f"evidence/{number}")
        clock.advance(DAY)
    if parts >= 6:
        chain.append("override", {"part": 6, **KIM})
    return chain


def verify(state: Path, head: str | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = audit.verify(state, head)
    return code, capsys.readouterr().out


# Tampering: by whoever can write the file.

Tamper = Callable[[Path], None]


def _sql(*statements: str) -> Tamper:
    def run(path: Path) -> None:
        db = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            db.execute(statement)
        db.close()

    return run


def _replace(old: str, new: str, n: int) -> str:
    return f"UPDATE row SET body = CAST(replace(body, '{old}', '{new}') AS BLOB) WHERE n = {n}"


def _rehash(*statements: str, first: int = 1) -> Tamper:
    """Alter the chain, then compute every hash and column from row `first` on anew."""

    def run(path: Path) -> None:
        _sql(*statements)(path)
        db = sqlite3.connect(path, isolation_level=None)
        found = db.execute("SELECT hash FROM row WHERE n = ?", (first - 1,)).fetchone()
        before = found[0] if found else FIRST_HASH
        for n, body in db.execute("SELECT n, body FROM row WHERE n >= ? ORDER BY n", (first,)).fetchall():
            before = link(before, body)
            db.execute("UPDATE row SET hash = ? WHERE n = ?", (before, n))
        db.close()

    return run


def _insert(n: int) -> Tamper:
    """A row of ours between two others, which move up with their numbers inside and out; its own hash is right."""

    def run(path: Path) -> None:
        _sql(f"UPDATE row SET n = -n - 1 WHERE n >= {n}", "UPDATE row SET n = -n WHERE n < 0")(path)
        db = sqlite3.connect(path, isolation_level=None)
        (before,) = db.execute("SELECT hash FROM row WHERE n = ?", (n - 1,)).fetchone()
        content = {"n": n, "kind": "part", "ts": 1.8e9, "clock_ok": True, "boot": "b", "part": 99, "outcome": "OK"}
        body = canonical(content)
        row = (n, "part", 1.8e9, 99, None, "OK", body, link(before, body))
        db.execute(f"INSERT INTO row ({FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.close()

    return run


def _others_rows(path: Path) -> None:
    """Rows 5 to 7 as they stand in the chain of another box."""
    other = path.with_name("other")
    other.mkdir()
    chain_in(other, boot="other").close()
    script = "INSERT OR REPLACE INTO row SELECT * FROM other.row WHERE n BETWEEN 5 AND 7"
    _sql(f"ATTACH '{other / 'genealogy.db'}' AS other", script)(path)


def _others_file(path: Path) -> None:
    other = path.with_name("other")
    other.mkdir()
    chain_in(other, boot="other").close()
    shutil.copy(other / "genealogy.db", path)


def _cut(path: Path) -> None:
    os.truncate(path, os.path.getsize(path) // 2 // 4096 * 4096)


def _hide_from_index(path: Path) -> None:
    """The row is there, but a search for its serial does not find it: the index says another."""
    data = path.read_bytes()
    db = sqlite3.connect(path)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'row_serial'").fetchone()
    db.close()
    begin = (page - 1) * 4096
    index = data[begin : begin + 4096]
    assert b"SN-4" in index
    path.write_bytes(data[:begin] + index.replace(b"SN-4", b"SN-X") + data[begin + 4096 :])


SWAP = ("UPDATE row SET n = -5 WHERE n = 5", "UPDATE row SET n = 5 WHERE n = 6", "UPDATE row SET n = 6 WHERE n = -5")
FORGE = _replace('"OK"', '"NG"', 5)


@pytest.mark.parametrize(
    ("tamper", "without_head", "with_head", "why"),
    [
        (lambda _: None, "", "", "nothing was done"),
        (_sql(_replace('"NG"', '"OK"', 7)), "row 7: altered", "row 7: altered", "a verdict in the content"),
        (_sql("UPDATE row SET outcome = 'OK' WHERE n = 7"),
         "row 7: its columns do not match its content: outcome", "row 7", "only the column, as a query reads it"),
        (_sql("UPDATE row SET ts = ts + 1 WHERE n = 3"), "row 3: its columns do not match its content: ts", "row 3",
         "only the time's column"),
        (_sql(f"UPDATE row SET hash = '{'0' * 64}' WHERE n = 4"), "so its hash was altered|its hash was altered",
         "row 4", "only the hash"),
        (_sql("DELETE FROM row WHERE n = 6"), "row 6 is missing between row 5 and row 7", "row 6", "one row gone"),
        (_sql("DELETE FROM row WHERE n BETWEEN 6 AND 8"), "rows 6 to 8 are missing between row 5 and row 9", "rows 6",
         "three rows gone"),
        (_sql("DELETE FROM row WHERE n < 4"), "rows before row 4 are missing, and no row tells that they were let go",
         "rows before row 4", "the first rows gone"),
        (_sql("DELETE FROM row WHERE n = 6", "UPDATE row SET n = n - 1 WHERE n > 6"),
         "row 6: it stands in the place of another, its content is that of row 7", "row 6", "gone and moved up"),
        (_sql("DELETE FROM row WHERE n > 9"), "", "no row has the hash", "the last rows gone: only the head tells"),
        (_insert(6), "row 7: it stands in the place of another, its content is that of row 6", "row 7", "one put in"),
        (_sql(*SWAP), "row 5: it stands in the place of another, its content is that of row 6", "row 5", "two swapped"),
        (_rehash(FORGE, first=5), "row 5: its columns do not match", "row 5", "all hashes anew, a column forgotten"),
        (_rehash(FORGE, "UPDATE row SET outcome = 'NG' WHERE n = 5", first=5), "", "no row has the hash",
         "the whole tail anew: only the head tells"),
        (_rehash("DELETE FROM row WHERE n < 4", first=4), "rows before row 4 are missing", "rows before row 4",
         "the front gone, the rest anew"),
        (_rehash("UPDATE row SET n = n - 3", "DELETE FROM row WHERE n < 1"), "row 1: its number was altered",
         "row 1", "the front gone, numbers and hashes anew"),
        (_sql(f"UPDATE row SET hash = '{'f' * 64}', body = CAST('x' AS BLOB) WHERE n = 12"), "row 12: altered",
         "row 12", "the last row is nonsense"),
        (_sql("UPDATE row SET body = CAST(body AS TEXT) WHERE n = 4"), "row 4: altered", "row 4", "another type"),
        (_sql("DELETE FROM row"), "there is no row: all were removed", "there is no row", "all rows gone"),
        (_sql("DROP TABLE row"), "no such table", "no such table", "the table gone"),
        (_cut, "malformed", "malformed", "the file cut in half"),
        (lambda path: path.write_bytes(b"x" * 9000), "file is not a database", "not a database", "another file"),
        (lambda path: path.write_bytes(b""), "it is empty", "it is empty", "nothing left"),
        (_others_rows, "row 5: altered", "row 5", "rows of another box"),
        (_others_file, "", "no row has the hash", "the whole file of another box: only the head tells"),
        (_hide_from_index, "the file around them is damaged", "the file around them is damaged", "a row hidden"),
    ],
)  # fmt: skip
def test_tampering_is_named(
    tmp_path: Path, tamper: Tamper, without_head: str, with_head: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_in(tmp_path)
    head = chain.head()[1]
    chain.close()
    tamper(tmp_path / "genealogy.db")
    for given, expected in ((None, without_head), (head.upper(), with_head)):
        code, said = verify(tmp_path, given, capsys)
        assert code == (1 if expected else 0), f"{why}: {said}"
        wanted = expected.split("|")
        assert any(text in said for text in wanted) if expected else "whole:" in said, f"{why}: {said}"
        assert ("BROKEN" in said) == bool(expected)


def test_chain_begun_anew_in_the_middle_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain_in(tmp_path).close()
    db = sqlite3.connect(tmp_path / "genealogy.db", isolation_level=None)
    (body,) = db.execute("SELECT body FROM row WHERE n = 5").fetchone()
    db.execute("UPDATE row SET hash = ? WHERE n = 5", (link(FIRST_HASH, body),))
    db.close()
    assert "row 5: the chain is begun anew here" in verify(tmp_path, None, capsys)[1]


def test_front_that_was_let_go_is_told_and_cannot_be_invented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chain = chain_in(tmp_path)
    early = chain.find(part=1)[0].hash
    assert chain.prune(1_800_000_000.0 + 10 * DAY) == 6
    head = chain.head()[1]
    chain.close()
    code, said = verify(tmp_path, head, capsys)
    assert code == 0 and "rows 1 to 6 were let go by their age" in said and "7 rows, 7 to 13" in said
    code, said = verify(tmp_path, early, capsys)
    assert code == 1 and "or it is of a row that was let go" in said
    path = tmp_path / "genealogy.db"
    good = path.read_bytes()
    for statement, expected in (
        ("DELETE FROM row WHERE n = 7", "the chain begins with row 8, but by row 13 it should with row 7"),
        ("DELETE FROM row WHERE kind = 'prune'", "rows before row 7 are missing, and no row tells"),
        (_replace('"through":6', '"through":5', 13), "but by row 13 it should with row 6"),
        (_replace('"hash":"', '"hash":"0', 13), "row 7: altered, or row 13, which tells what stood before it"),
        (_replace('"part":6', '"part":9', 7), "row 7: altered, or row 13, which tells what stood before it"),
        ("UPDATE row SET n = 2 WHERE n = 9", "row 2: it stands in the place of another, its content is that of row 9"),
    ):
        path.write_bytes(good)
        _sql(statement)(path)
        code, said = verify(tmp_path, None, capsys)
        assert code == 1 and expected in said, said


def test_proof_says_what_it_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = chain_in(tmp_path)
    n, head = chain.head()
    chain.append("stop", {})
    code, said = verify(tmp_path, f"  {head.upper()} ", capsys)  # while the daemon has it open
    chain.close()
    assert code == 0
    assert said.splitlines() == [
        f"genealogy {tmp_path / 'genealogy.db'}",
        f"{ROWS + 1} rows, 1 to {ROWS + 1}, 2027-01-15T08:00:01.000Z to 2027-01-25T08:00:01.000Z",
        f"head: row {ROWS + 1} {chain.head()[1]}",
        f"the hash given is that of row {n}, 1 rows came after it",
        "whole: every row follows from the one before it",
    ]
    assert verify(tmp_path / "genealogy.db", None, capsys)[0] == 0, "a file that was copied or set aside"


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "0" * 63])
def test_what_is_no_hash_is_refused(tmp_path: Path, head: str) -> None:
    chain_in(tmp_path).close()
    with pytest.raises(UsageError, match="is no hash of a row"):
        audit.verify(tmp_path, head)


def test_state_folder_without_a_genealogy_is_named(tmp_path: Path) -> None:
    for state in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(GenealogyError, match=r"there is no genealogy .* --state"):
            audit.verify(state)
        with pytest.raises(GenealogyError, match=r"there is no genealogy .* --state"):
            audit.export(state, tmp_path / "x.csv")


def test_proof_takes_constant_memory(tmp_path: Path) -> None:
    """Ten times the rows, the same peak: measured in a process of its own, as the interpreter gives nothing back."""
    peaks = []
    for parts in (500, 5000):
        folder = tmp_path / str(parts)
        folder.mkdir()
        chain = Genealogy(folder / "genealogy.db", FakeClock(), "b", GenealogySettings())
        assert chain._db is not None
        chain._db.execute("PRAGMA synchronous=OFF")
        for number in range(1, parts + 1):
            chain.append_part(part(number, VerdictKind.NG), "x" * 3000)
        chain.close()
        script = (
            "import resource, sys; from pathlib import Path; from edge import audit; "
            "audit.verify(Path(sys.argv[1])); audit.export(Path(sys.argv[1]), Path(sys.argv[1]) / 'x.csv'); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        run = [sys.executable, "-c", script, str(folder)]
        done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=60)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 12_000, f"peaks in kB: {peaks}; 4500 rows of 3.5 kB are 16 MB"


# Export.


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_part_has_the_state_that_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain = Genealogy(tmp_path / "genealogy.db", FakeClock(), "b", GenealogySettings())
    for number, kind in enumerate((VerdictKind.OK, VerdictKind.NG, VerdictKind.OK, Loss.DEADLINE, VerdictKind.NG), 1):
        chain.append_part(part(number, kind), f"evidence/{number}")
    chain.append("override", {"part": 2, **KIM})
    chain.append("override", {"part": 2, "operator": "lee", "verdict": "NG", "reason": "no, it is short"})
    chain.append("late", {"part": 3})
    chain.append("challenge", {"serial": "SN-1", "outcome": "found"})
    chain.void_after(4)
    chain.append_part(part(5, VerdictKind.OK, "SN-5b"), "")
    assert audit.export(tmp_path, tmp_path / "out.csv") == 0
    assert capsys.readouterr().out.startswith("6 rows to ")
    names = ("part", "serial", "outcome", "final_outcome", "overridden_by", "override_reason", "void", "late", "reason")
    assert [tuple(line[name] for name in names) for line in lines(tmp_path / "out.csv")] == [
        ("1", "SN-1", "OK", "OK", "", "", "false", "false", ""),
        ("2", "SN-2", "NG", "NG", "lee", "no, it is short", "false", "false", "defect.short"),
        ("3", "SN-3", "OK", "LATE", "", "", "false", "true", ""),
        ("4", "SN-4", "deadline", "deadline", "", "", "false", "false", ""),
        ("5", "SN-5", "NG", "void", "", "", "true", "false", "defect.short"),
        ("5", "SN-5b", "OK", "OK", "", "", "false", "false", ""),
    ]
    second = lines(tmp_path / "out.csv")[1]
    assert second["reasons"] == "defect.short: short 0.93; defect.open: open 0.9"
    assert second["time"] == "2027-01-15T08:00:01.000Z" and second["clock_ok"] == "true"
    assert second["evidence"] == "evidence/2" and second["trigger"] == "2" and second["hash"]
    chain.close()


def test_raw_rows_prove_themselves_outside(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    audit.export(tmp_path, tmp_path / "raw.csv", raw=True)
    before = FIRST_HASH
    found = lines(tmp_path / "raw.csv")
    for line in found:
        before = link(before, line["body"].encode())
        assert before == line["hash"]
    assert len(found) == ROWS and before == chain.head()[1]
    chain.close()


def test_sum_and_head_lie_beside_the_copy(tmp_path: Path) -> None:
    chain = chain_in(tmp_path)
    audit.export(tmp_path, tmp_path / "out.csv")
    text = (tmp_path / "out.csv.sha256").read_text()
    assert hashlib.sha256((tmp_path / "out.csv").read_bytes()).hexdigest() in text
    assert f"head of the genealogy: row {ROWS} {chain.head()[1]}" in text
    checked = subprocess.run(["sha256sum", "-c", "out.csv.sha256"], cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout == "out.csv: OK\n" and checked.stderr == ""
    assert not list(tmp_path.glob("*.partial"))
    chain.close()


# The parts are of 2027-01-15 to 24, each at 08:00:01 UTC.
@pytest.mark.parametrize(
    ("begin", "end", "serial", "parts", "why"),
    [
        (None, None, None, range(1, 11), "all"),
        ("2027-01-17", None, None, range(3, 11), "from the beginning of a day"),
        (None, "2027-01-17", None, range(1, 4), "a day is meant with its end"),
        ("2027-01-17", "2027-01-17", None, [3], "one day"),
        ("2027-01-17T08:00:01", "2027-01-18T08:00:01", None, [3], "from a second on, before a second"),
        ("2027-01-17T08:00:01Z", "2027-01-18T08:00:02+00:00", None, [3, 4], "with the zone"),
        ("2027-01-17T09:00:01+01:00", "2027-01-18", None, [3, 4], "of another zone"),
        (None, None, "SN-7", [7], "a serial"),
        ("2027-01-20", None, "SN-7", [7], "both"),
        ("2027-01-22", None, "SN-7", [], "the serial was before"),
        (None, None, "SN", [], "no part of a serial"),
        ("2030-01-01", "2031-01-01", None, [], "nobody worked"),
    ],
)
def test_range_and_serial(
    tmp_path: Path, begin: str | None, end: str | None, serial: str | None, parts: list[int], why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    chain_in(tmp_path).close()
    assert audit.export(tmp_path, tmp_path / "out.csv", begin, end, serial) == 0
    assert [int(line["part"]) for line in lines(tmp_path / "out.csv")] == list(parts), why
    assert capsys.readouterr().out.startswith(f"{len(parts)} rows to ")
    assert (tmp_path / "out.csv").read_text().startswith("row,part,serial,time,clock_ok,final_outcome,outcome,")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"begin": "yesterday"}, r"--from yesterday is no date: write 2026-11-27 or 2026-11-27T06:00, in UTC"),
        ({"end": "2027-02-30"}, r"--to 2027-02-30 is no date"),
        ({"begin": ""}, r"--from  is no date"),
        ({"end": "9999-12-31"}, r"--to 9999-12-31 is no date"),
        ({"begin": "2027-01-18", "end": "2027-01-17"}, r"--from 2027-01-18 is not before --to 2027-01-17"),
        ({"begin": "2027-01-18T06:00", "end": "2027-01-18T06:00"}, "is not before"),
        ({"serial": ""}, "--serial is empty"),
        ({"out": "out.xlsx"}, r"neither a \.csv nor a \.parquet file"),
        ({"out": "out"}, r"neither a \.csv nor a \.parquet file"),
        ({"out": "stick/out.csv"}, r"there is no folder .*stick; is the stick mounted\?"),
        ({"out": "folder.csv"}, "is a folder: give a file in it"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    chain_in(tmp_path).close()
    (tmp_path / "folder.csv").mkdir()
    before = sorted(os.listdir(tmp_path))
    out = tmp_path / arguments.pop("out", "out.csv")
    with pytest.raises(UsageError, match=message):
        audit.export(tmp_path, out, **arguments)
    assert sorted(set(os.listdir(tmp_path)) - {"genealogy.db-wal", "genealogy.db-shm"}) == before


@pytest.mark.parametrize("raw", [False, True])
def test_text_from_outside_is_no_formula(tmp_path: Path, raw: bool) -> None:
    evil = ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", 'a"b,c\nd', "plain-1", "0-1"]
    chain = Genealogy(tmp_path / "genealogy.db", FakeClock(), "b", GenealogySettings())
    for number, serial in enumerate(evil, 1):
        chain.append_part(part(number, serial=serial), "=evidence")
    chain.append("override", {"part": 1, "operator": "=kim", "verdict": "OK", "reason": "@home"})
    audit.export(tmp_path, tmp_path / "out.csv", raw=raw)
    chain.close()
    found = [line for line in lines(tmp_path / "out.csv") if line.get("kind", "part") == "part"]
    assert [line["serial"].removeprefix("'") for line in found] == evil, "a person can still read it"
    cells = [cell for line in found for cell in line.values()]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r", "\n", "\uff1d")]
    assert [line["serial"] for line in found][-3:] == ['a"b,c\nd', "plain-1", "0-1"], "what is harmless is as it was"
    if not raw:
        assert (found[0]["overridden_by"], found[0]["override_reason"]) == ("'=kim", "'@home")


def test_parquet_holds_the_same_with_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    chain = chain_in(tmp_path)
    chain.append_part(part(11, VerdictKind.NG, "=1+1"), "")
    audit.export(tmp_path, tmp_path / "out.csv")
    audit.export(tmp_path, tmp_path / "out.parquet")
    audit.export(tmp_path, tmp_path / "raw.parquet", raw=True)
    chain.close()
    table = parquet.read_table(tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["part"], types["time"], types["void"], types["serial"], types["anomaly"]) == (
        "int64", "timestamp[ms, tz=UTC]", "bool", "string", "double",
    )  # fmt: skip
    found = table.to_pylist()
    said = lines(tmp_path / "out.csv")
    assert [row["hash"] for row in found] == [line["hash"] for line in said]
    assert found[0]["time"].isoformat() == "2027-01-15T08:00:01+00:00"
    assert (found[5]["final_outcome"], found[5]["overridden_by"]) == ("OK", "kim")
    assert found[10]["serial"] == "=1+1" and said[10]["serial"] == "'=1+1", "a typed column needs no apostrophe"
    assert parquet.read_table(tmp_path / "raw.parquet").num_rows == ROWS + 1
    assert parquet.read_metadata(tmp_path / "out.parquet").num_rows == 11


def test_many_rows_are_written_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("edge.audit.BATCH", 3)
    chain_in(tmp_path).close()
    audit.export(tmp_path, tmp_path / "out.parquet")
    audit.export(tmp_path, tmp_path / "out.csv")
    assert parquet.read_metadata(tmp_path / "out.parquet").num_row_groups == 4
    assert parquet.read_table(tmp_path / "out.parquet")["part"].to_pylist() == list(range(1, 11))
    assert len(lines(tmp_path / "out.csv")) == 10


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain_in(tmp_path).close()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"want pyarrow, .* write a \.csv file, or install it: pip .*\[parquet\]"):
        audit.export(tmp_path, tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
    assert audit.export(tmp_path, tmp_path / "out.csv") == 0


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_full_stick_is_named_and_keeps_no_half_file(tmp_path: Path, name: str) -> None:
    chain = Genealogy(tmp_path / "genealogy.db", FakeClock(), "b", GenealogySettings())
    assert chain._db is not None
    chain._db.execute("PRAGMA synchronous=OFF")
    for number in range(1, 2500):
        chain.append_part(part(number, VerdictKind.NG), os.urandom(600).hex())
    with small_disk(tmp_path / "stick", 1) as stick:
        (stick / name).write_text("an older copy")
        with pytest.raises(EdgeError, match=r"cannot be written: No space left on device; free space there.*; no file"):
            audit.export(tmp_path, stick / name)
        assert os.listdir(stick) == [name] and (stick / name).read_text() == "an older copy"
        assert audit.export(tmp_path, stick / name, serial="SN-7") == 0
        assert sorted(os.listdir(stick)) == [name, f"{name}.sha256"]
    chain.close()


def test_stick_that_is_read_only_is_named(tmp_path: Path) -> None:
    chain_in(tmp_path).close()
    with small_disk(tmp_path / "stick", 1) as stick:
        subprocess.run(["mount", "-o", "remount,ro", stick], check=True, timeout=10)
        with pytest.raises(EdgeError, match="cannot be written: Read-only file system; check that this user can write"):
            audit.export(tmp_path, stick / "out.csv")


def test_altered_rows_are_copied_as_they_are(tmp_path: Path) -> None:
    """A copy is no proof: what was tampered with is written out without a traceback, and `verify` names it."""
    pytest.importorskip("pyarrow")
    chain_in(tmp_path).close()
    _sql(
        "UPDATE row SET body = CAST('nonsense' AS BLOB), serial = CAST(x'ff41' AS TEXT) WHERE n = 3",
        "UPDATE row SET body = 'text', ts = 1e300 WHERE n = 4",
        'UPDATE row SET body = CAST(\'{"reasons":7,"cameras":[1],"trigger":{}}\' AS BLOB) WHERE n = 5',
        "UPDATE row SET part = 'x', ts = 'then' WHERE n = 6",
    )(tmp_path / "genealogy.db")
    for raw in (False, True):
        audit.export(tmp_path, tmp_path / "out.csv", raw=raw)
        audit.export(tmp_path, tmp_path / "out.parquet", raw=raw)
        assert len(lines(tmp_path / "out.csv")) == (ROWS if raw else 10)
    assert audit.verify(tmp_path) == 1
