"""The genealogy on real files: what rows say, restarts, kill -9, damage, a full disk, and a machine that tries all."""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from edge.audit import Proof, prove
from edge.chain import FIRST_HASH, MOST_REASONS, About, Row, link
from edge.config import GenealogySettings
from edge.errors import GenealogyDamagedError, GenealogyError
from edge.genealogy import FIELDS, MOST_BYTES, MOST_FOUND, MOST_VOID, PRUNE_ROWS, Genealogy, GenealogyReader
from edge.part import Part, Trigger
from edge.records import Detections, GateResult, Inspection, Loss, Reason, Scores, Verdict, VerdictKind
from tests.disks import small_disk
from tests.fakes import FakeClock, flat, frame
from tests.sqlite_damage import cut_in_half, garbage, other_program, scribble, sql

ROOT = Path(__file__).parent.parent
ABOUT = About("bundle-digest", "config-hash", ("open", "short"))
DAY = 86_400.0
KIM = {"operator": "kim", "verdict": "OK", "reason": "looked at it"}


def open_chain(folder: Path, clock: FakeClock | None = None, boot: str = "b", keep_days: float = 400) -> Genealogy:
    return Genealogy(folder / "genealogy.db", clock or FakeClock(), boot, GenealogySettings(keep_days=keep_days), ABOUT)


def unsynced(chain: Genealogy) -> Genealogy:
    """The same without waiting for the disk: for many rows where no crash is meant."""
    assert chain._db is not None
    chain._db.execute("PRAGMA synchronous=OFF")
    return chain


def part(number: int, kind: VerdictKind | Loss = VerdictKind.OK, serial: str = "", ts: float = 1_800_000_001.0) -> Part:
    """A part without frames."""
    trigger = Trigger(number % 65536, serial or f"SN-{number}", 1, 1, ts - 0.1, encoder=17)
    if isinstance(kind, Loss):
        return Part(number, "pcb", "ab" * 32, trigger, (), None, kind, ts, detail="what happened")
    reasons = () if kind is VerdictKind.OK else (Reason("defect.short", "short 0.93 at 1,2"),)
    return Part(number, "pcb", "ab" * 32, trigger, (), Verdict(kind, reasons), None, ts)


def whole(folder: Path, head: str = "") -> Proof:
    proof = prove(folder / "genealogy.db", head)
    assert proof.broken == ""
    return proof


def rows_of(folder: Path) -> list[Row]:
    with GenealogyReader(folder / "genealogy.db") as reader:
        return list(reader.rows())


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Genealogy]:
    made = open_chain(tmp_path)
    yield made
    made.close()


# What rows say.


def test_row_of_a_part_says_what_an_auditor_asks_for(chain: Genealogy, tmp_path: Path) -> None:
    seen = frame(flat(), number=7, camera="top")
    found = Detections(
        np.zeros((4, 4), np.float32), np.array([0.9, 0.8, 0.3, 0.01], np.float32), np.array([1, 1, 0, 0])
    )
    verdict = Verdict(VerdictKind.NG, (Reason("defect.short", "short 0.90"),))
    gate = GateResult(True, None, 123.456, 99.0, 0.01)
    inspection = Inspection(seen, gate, found, Scores(1.23456, 2.0), verdict)
    trigger = Trigger(9, "SN-1", 3, 1, 1_800_000_000.5, encoder=17)
    made = Part(41, "pcb", "ab" * 32, trigger, (inspection,), verdict, None, 1_800_000_001.0, {"side": "no frame"})
    digest = chain.append_part(made, "evidence/41")
    row = chain.find(part=41)[0]
    assert (row.n, row.kind, row.ts, row.part, row.serial, row.outcome) == (
        2, "part", 1_800_000_001.0, 41, "SN-1", "NG",
    )  # fmt: skip
    assert row.hash == digest == chain.head()[1] and chain.head()[0] == 2
    assert row.content == {
        "n": 2, "kind": "part", "ts": 1_800_000_001.0, "clock_ok": True, "boot": "b", "part": 41, "serial": "SN-1",
        "outcome": "NG", "reasons": [["defect.short", "short 0.90"]], "more_reasons": 0, "detail": "",
        "trigger": [9, 1_800_000_000.5, 17], "recipe": "pcb", "recipe_hash": "ab" * 32, "bundle": "bundle-digest",
        "config": "config-hash", "evidence": "evidence/41", "missing": {"side": "no frame"},
        "cameras": {"top": {"frame": 7, "verdict": "NG", "sharpness": 123.46, "brightness": 99.0, "anomaly": 1.2346,
                            "top": {"short": 0.9, "open": 0.3}}},
    }  # fmt: skip


def test_hash_can_be_computed_with_a_shell(chain: Genealogy, tmp_path: Path) -> None:
    chain.append("start", {"version": "1"})
    first, second = rows_of(tmp_path)
    assert first.hash == link(FIRST_HASH, first.body)
    script = 'printf %s%s "$0" "$1" | sha256sum'
    said = subprocess.run(["sh", "-c", script, first.hash, second.body.decode()], capture_output=True, text=True)
    assert said.stdout.split()[0] == second.hash


@pytest.mark.parametrize("kind", [*VerdictKind, *Loss])
def test_every_outcome_is_a_row(chain: Genealogy, kind: VerdictKind | Loss) -> None:
    chain.append_part(part(1, kind), "")
    assert chain.find(serial="SN-1")[0].outcome == kind.value


def test_lengths_are_bounded(chain: Genealogy, tmp_path: Path) -> None:
    reasons = tuple(Reason("defect.short", "x" * 10_000) for _ in range(300))
    trigger = Trigger(1, "S" * 100, 1, 1, 1.0)
    made = Part(1, "pcb", "ab", trigger, (), Verdict(VerdictKind.NG, reasons), None, 1.8e9, {"cam": "y" * 10_000})
    chain.append_part(made, "")
    (row,) = chain.find(part=1)
    assert len(row.body) < 6000
    assert len(row.content["reasons"]) == MOST_REASONS and row.content["more_reasons"] == 300 - MOST_REASONS
    before = chain.head()
    with pytest.raises(GenealogyError, match="too long for the genealogy"):
        chain.append("recipe", {"text": "x" * MOST_BYTES})
    assert chain.head() == before and chain.counts().failed == 1
    chain.append("recipe", {"name": "pcb"})
    whole(tmp_path)


@pytest.mark.parametrize("serial", ["\udcff\udc00", "nul\x00nul", "Ünïcode ☂", "'; DROP TABLE row; --", "=1+1"])
def test_serials_of_any_kind(chain: Genealogy, tmp_path: Path, serial: str) -> None:
    chain.append_part(part(1, serial=serial), f"evidence/{serial}")
    shown = serial.encode("utf-8", "replace").decode()
    assert [row.serial for row in chain.find(serial=shown)] == [shown]
    whole(tmp_path)


def test_kinds_are_checked(chain: Genealogy) -> None:
    for kind, body in (("begin", {}), ("prune", {}), ("part", {}), ("x", {}), ("start", {"n": 1}), ("stop", {"ts": 1})):
        with pytest.raises(ValueError, match="a row is one of"):
            chain.append(kind, body)


# What is said of a part later.


def test_override_by_part_or_serial_knows_the_row(chain: Genealogy, tmp_path: Path) -> None:
    chain.append_part(part(1, VerdictKind.NG, "SN-A"), "")
    chain.append_part(part(2, VerdictKind.NG, "SN-A"), "")
    chain.append("override", {"part": 1, **KIM})
    chain.append("override", {"serial": "SN-A", **KIM})
    found = [(r.n, r.part, r.serial, r.outcome, r.content["row"]) for r in rows_of(tmp_path) if r.kind == "override"]
    assert found == [(4, 1, "SN-A", "OK", 2), (5, 2, "SN-A", "OK", 3)], "by serial the newest part is meant"
    with GenealogyReader(tmp_path / "genealogy.db") as reader:
        parts = list(reader.rows(parts_only=True))
        assert [[remark.n for remark in reader.remarks(p)] for p in parts] == [[4], [5]]


@pytest.mark.parametrize("about", [{"part": 7}, {"part": 0}, {"part": -1}, {"part": 2**70}, {"serial": "SN-9"}, {}])
def test_override_of_no_part_is_refused(chain: Genealogy, about: dict[str, object]) -> None:
    chain.append_part(part(1), "")
    before = chain.head()
    with pytest.raises(GenealogyError, match="there is no part with the "):
        chain.append("override", {**about, **KIM})
    assert chain.head() == before


@pytest.mark.parametrize(
    ("parts", "ledger", "voided", "last"),
    [(3, 3, [], 3), (3, 2, [3], 2), (3, 0, [1, 2, 3], 0), (3, 7, [], 3), (0, 0, [], 0)],
)
def test_rows_beyond_the_ledger_are_void(tmp_path: Path, parts: int, ledger: int, voided: list[int], last: int) -> None:
    chain = open_chain(tmp_path)
    for number in range(1, parts + 1):
        chain.append_part(part(number), "")
    chain.close()
    chain = open_chain(tmp_path, boot="later")
    assert chain.last_part() == chain.highest_part() == parts
    assert chain.void_after(ledger) == len(voided)
    assert (chain.last_part(), chain.highest_part()) == (last, parts)
    assert [row.part for row in rows_of(tmp_path) if row.kind == "void"] == voided
    assert chain.void_after(ledger) == 0, "once is enough"
    chain.append_part(part(last + 1), "")
    assert chain.last_part() == last + 1, "the number of a void part may come again"
    chain.close()
    whole(tmp_path)


def test_old_copy_of_the_ledger_does_not_void_everything(chain: Genealogy, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(1, MOST_VOID + 20):
        unsynced(chain).append_part(part(number), "")
    assert chain.void_after(1) == MOST_VOID and "an old copy" in caplog.text


def test_number_that_comes_again_makes_the_row_before_it_void(chain: Genealogy, tmp_path: Path) -> None:
    chain.append_part(part(1), "")
    chain.append_part(part(2, serial="SN-A"), "")  # its ledger could not be stored, nor a void row
    chain.append_part(part(2, serial="SN-B"), "")
    chain.append("void", {"part": 2, "why": "its ledger could not be stored"})
    chain.append_part(part(2, serial="SN-C"), "")
    kinds = [(row.kind, row.serial, row.content.get("row")) for row in rows_of(tmp_path)[2:]]
    assert kinds == [
        ("part", "SN-A", None), ("void", "SN-A", 3), ("part", "SN-B", None), ("void", "SN-B", 5),
        ("part", "SN-C", None),
    ]  # fmt: skip


def test_finding_is_bounded(chain: Genealogy) -> None:
    for number in range(1, MOST_FOUND + 10):
        unsynced(chain).append_part(part(number, serial="same"), "")
    found = chain.find(serial="same")
    assert len(found) == MOST_FOUND and found[-1].part == MOST_FOUND + 9 and found[0].part == 10
    assert chain.find(part=2**70) == chain.find(part=-1) == chain.find(serial="") == []
    for both_or_none in ({}, {"part": 1, "serial": "x"}):
        with pytest.raises(ValueError, match="one of them"):
            chain.find(**both_or_none)


# Restarts.


def test_chain_goes_on_over_restarts(tmp_path: Path) -> None:
    heads = []
    for boot in range(3):
        chain = open_chain(tmp_path, boot=f"boot{boot}")
        chain.append("start", {"version": "1"})
        chain.append_part(part(boot + 1), "")
        chain.append("stop", {})
        heads.append(chain.head()[1])
        assert chain.counts().rows == 1 + 3 * (boot + 1) and chain.counts().head == heads[-1]
        chain.close()
        assert not (tmp_path / "genealogy.db-wal").exists(), "one file is all there is to copy"
    assert [row.kind for row in rows_of(tmp_path)].count("begin") == 1
    for n, head in zip((4, 7, 10), heads, strict=True):
        assert whole(tmp_path, head).given == n


def test_closed_chain_refuses_with_its_own_error(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    chain.close()
    chain.close()
    for use in (lambda: chain.append("stop", {}), chain.last_part, lambda: chain.prune(0), lambda: chain.find(part=1)):
        with pytest.raises(GenealogyError, match="the service is stopping"):
            use()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenealogyError, match=r"file/genealogy\.db cannot be opened: (Not a directory|File exists);"):
        open_chain(tmp_path / "file")


def test_directory_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "genealogy.db").mkdir()
    with pytest.raises(GenealogyError, match="unable to open database file; check that the folder exists"):
        open_chain(tmp_path)


def test_second_writer_is_refused_and_the_chain_stays_one(tmp_path: Path) -> None:
    first, second = open_chain(tmp_path), open_chain(tmp_path, boot="second")
    first.append("start", {})
    with pytest.raises(GenealogyError, match="another edge process writes to it"):
        second.append("start", {})
    second.append("stop", {})  # it has seen by now where the chain stands
    with pytest.raises(GenealogyError, match="another edge process"):
        first.append("stop", {})
    first.close()
    second.close()
    assert whole(tmp_path).rows == 3


def test_writer_that_holds_the_file_is_waited_for_only_so_long(chain: Genealogy, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "genealogy.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(GenealogyError, match=r"cannot take a row: database is locked; another edge process"):
        chain.append("start", {})
    assert time.monotonic() - began < 2
    other.execute("ROLLBACK")
    other.close()
    chain.append("start", {})
    assert chain.counts().failed == 1 and whole(tmp_path).rows == 2


def test_readers_and_threads_do_not_disturb(tmp_path: Path) -> None:
    """Parts from one thread, overrides from another, proofs beside them: each proof is whole, nothing is lost."""
    chain = open_chain(tmp_path)
    chain.append_part(part(1), "")
    over = threading.Thread(target=lambda: [chain.append("override", {"part": 1, **KIM}) for _ in range(100)])
    over.start()
    seen = []
    for number in range(2, 202):
        chain.append_part(part(number), "")
        if number % 20 == 0:
            seen.append(whole(tmp_path).rows)
    over.join(10)
    assert seen == sorted(seen) and len(set(seen)) == len(seen)
    assert whole(tmp_path, chain.head()[1]).rows == 1 + 201 + 100
    chain.close()


# Old rows go.


def test_old_rows_go_from_the_front_and_what_is_left_proves_itself(tmp_path: Path) -> None:
    clock = FakeClock()
    chain = open_chain(tmp_path, clock, keep_days=10)
    for day in range(20):
        chain.append_part(part(day + 1, ts=clock.ts()), "")
        clock.advance(DAY)
    head = chain.head()
    assert chain.prune(clock.ts()) == 11
    proof = whole(tmp_path, head[1])
    assert (proof.first, proof.pruned, proof.last, proof.given) == (12, 11, 22, 21)
    assert chain.counts().rows == proof.rows == 11
    assert chain.find(part=1) == [] and len(chain.find(part=11)) == 1
    assert chain.prune(clock.ts()) == 0, "nothing more is old"
    clock.advance(1.5 * DAY)
    assert chain.prune(clock.ts()) == 2
    chain.append("stop", {})
    chain.close()
    chain = open_chain(tmp_path, clock, keep_days=10)
    assert chain.counts().rows == whole(tmp_path).rows == 11
    chain.close()


def test_few_rows_go_once_a_day_and_many_at_once(tmp_path: Path) -> None:
    clock = FakeClock()
    chain = unsynced(open_chain(tmp_path, clock, keep_days=1))
    for number in range(1, 2 * PRUNE_ROWS + 5):
        chain.append_part(part(number, ts=clock.ts()), "")
        clock.advance(1)
    clock.advance(DAY)
    gone = [chain.prune(clock.ts()) for _ in range(4)]
    assert gone == [PRUNE_ROWS, PRUNE_ROWS, 0, 0], "the few that are left wait for tomorrow"
    clock.advance(DAY + 1)
    assert chain.prune(clock.ts()) == 5 + 2 - 1, "the newest row always stays"
    chain.close()
    assert whole(tmp_path).rows == 2


@pytest.mark.parametrize("years", [1.2, 30])
def test_clock_that_runs_off_lets_nothing_go(tmp_path: Path, years: float) -> None:
    clock = FakeClock()
    chain = open_chain(tmp_path, clock)
    chain.append_part(part(1, ts=clock.ts()), "")
    assert chain.prune(clock.ts() + years * 365 * DAY) == 0
    chain.close()
    chain = open_chain(tmp_path, clock)
    assert chain.prune(clock.ts() + years * 365 * DAY) == 0
    clock.advance(460 * DAY)  # time that really went by counts
    assert chain.prune(clock.ts()) == 1, "row 1; the part's own row is the newest and stays"
    chain.close()


# Kill -9.


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_sigkill_of_the_writer_loses_no_row_it_was_told_of(tmp_path: Path, kills: int) -> None:
    rng = random.Random(11)
    told: dict[int, str] = {}
    for round_ in range(kills):
        boot = f"boot{round_}" + ("-prune" if round_ % 3 == 2 else "")
        told |= _run_and_kill(tmp_path / "genealogy.db", boot, rng.uniform(0.0, 0.15))
        proof = whole(tmp_path)
        stored = {row.part: row.hash for row in rows_of(tmp_path) if row.kind == "part"}
        gone = {number for number in told if number not in stored}
        assert all(stored[number] == told[number] for number in told.keys() - gone)
        assert not gone or (proof.pruned and max(gone) < min(stored)), "only the front was let go"
        assert max(stored) - max(told) <= 1, "at most the row that it died over"
    assert len(told) > 10 * kills, "the writer got something done between the kills"
    assert not list(tmp_path.glob("*.corrupt-*"))


def _run_and_kill(path: Path, boot: str, after_s: float) -> dict[int, str]:
    """Run the writer, kill it; the parts that it was told are durable, with their hashes."""
    command = [sys.executable, str(ROOT / "tests" / "genealogy_writer.py"), str(path), boot]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert writer.stdout is not None
    first = writer.stdout.readline()
    assert first, "the writer did not start"
    time.sleep(after_s)
    writer.kill()
    said = (first + writer.stdout.read()).decode().split("\n")[:-1]  # the last line may be cut off
    writer.stdout.close()
    writer.wait(10)
    return {int(number): digest for number, digest in (line.split() for line in said)}


# Damage.


DAMAGES = {
    "garbage": garbage,
    "half of it": cut_in_half,
    "scribbled over": scribble,
    "another program's": other_program,
    "a later version's": sql("PRAGMA user_version=99"),
    "a row near the end is gone": sql("DELETE FROM row WHERE n = 48"),
    "the last row was altered": sql("UPDATE row SET body = CAST(replace(body, 'pcb', 'cpb') AS BLOB) WHERE n = 51"),
    "a number near the end is none": sql("UPDATE row SET hash = 7 WHERE n = 49"),
    "no table": sql("DROP TABLE row"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_or_foreign_file_is_set_aside_and_named(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "genealogy.db"
    chain = open_chain(tmp_path)
    for number in range(1, 51):
        chain.append_part(part(number), "evidence")
    head = chain.head()[1]
    chain.close()
    DAMAGES[name](path)
    spoilt = path.read_bytes()
    chain = open_chain(tmp_path)
    assert chain.set_aside is not None and Path(chain.set_aside).name.startswith("genealogy.corrupt-")
    assert Path(chain.set_aside).read_bytes()[100:] == spoilt[100:], "what is set aside is left as it was"
    assert "set aside" in caplog.text
    beginning = rows_of(tmp_path)[0]
    assert beginning.kind == "begin" and beginning.content["follows"] == Path(chain.set_aside).name
    assert beginning.content["why"]
    if name == "a row near the end is gone":
        assert (beginning.content["follows_rows"], beginning.content["follows_head"]) == (51, head)
    chain.append_part(part(51), "")
    chain.close()
    assert whole(tmp_path).rows == 2
    again = open_chain(tmp_path)
    assert again.set_aside is None and again.last_part() == 51
    again.close()


# Where the fields of the header of a SQLite file begin, and one byte within the text at its start.
HEADER_FIELDS = (0, 7, 16, 18, 19, 20, 21, 22, 23, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 92, 96)


@pytest.mark.parametrize("offsets", [HEADER_FIELDS, pytest.param(range(100), marks=pytest.mark.slow)], ids=len)
def test_no_damage_to_the_header_stops_the_start(tmp_path: Path, offsets: tuple[int, ...]) -> None:
    chain = open_chain(tmp_path)
    chain.append_part(part(1), "")
    chain.close()
    good = (tmp_path / "genealogy.db").read_bytes()
    for offset in offsets:
        folder = tmp_path / str(offset)
        folder.mkdir()
        (folder / "genealogy.db").write_bytes(good[:offset] + b"\xff" + good[offset + 1 :])
        chain = open_chain(folder)
        chain.append_part(part(2), "")
        chain.close()
        whole(folder)


def test_file_that_is_damaged_while_it_runs_is_set_aside_too(tmp_path: Path) -> None:
    chain = open_chain(tmp_path)
    for number in range(1, 51):
        chain.append_part(part(number), "evidence")
    assert chain._db is not None
    chain._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with open(tmp_path / "genealogy.db", "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(os.path.getsize(tmp_path / "genealogy.db") - 4096))
    chain._db.execute("PRAGMA cache_size=0")
    chain._db.execute("PRAGMA shrink_memory")
    chain.append_part(part(51), "")
    assert chain.set_aside is not None and chain.last_part() == 51 and chain.counts().failed == 0
    chain.close()
    assert whole(tmp_path).rows == 2


def test_reader_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(GenealogyError, match=r"there is no genealogy .*: give the state folder"):
        GenealogyReader(tmp_path / "genealogy.db")
    (tmp_path / "genealogy.db").write_bytes(b"")
    with pytest.raises(GenealogyDamagedError, match=r"genealogy\.db cannot be read: it is empty"):
        GenealogyReader(tmp_path / "genealogy.db")
    garbage(tmp_path / "genealogy.db")
    with pytest.raises(GenealogyDamagedError, match="file is not a database"):
        GenealogyReader(tmp_path / "genealogy.db")


# A full disk, a read-only one.


def test_full_disk_refuses_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        hog = disk / "hog"
        hog.write_bytes(bytes(1_000_000))
        chain = open_chain(disk)
        chain.append("start", {})
        stored = _fill(chain)
        assert chain.counts().failed == 1 and chain.last_part() == stored
        with pytest.raises(GenealogyError):
            chain.append_part(part(stored + 1), "x" * 3000)
        proof = whole(disk, chain.head()[1])
        assert proof.given == proof.last == stored + 2
        hog.unlink()
        chain.append_part(part(stored + 1), "x" * 3000)
        chain.close()
        chain = open_chain(disk)
        assert chain.set_aside is None and chain.last_part() == stored + 1
        chain.close()
        whole(disk)


def _fill(chain: Genealogy) -> int:
    for number in range(1, 100_000):
        try:
            chain.append_part(part(number), "x" * 3000)
        except GenealogyError as error:
            assert "cannot take a row: database or disk is full; free space on that disk" in str(error)
            return number - 1
    raise AssertionError("the disk did not fill up")


def test_full_file(tmp_path: Path) -> None:
    """The same without a disk of its own: SQLite's limit on pages gives the same error."""
    chain = open_chain(tmp_path)
    assert chain._db is not None
    chain._db.execute("PRAGMA max_page_count=60")
    stored = _fill(chain)
    assert chain.last_part() == stored
    chain._db.execute("PRAGMA max_page_count=100000")
    chain.append_part(part(stored + 1), "")
    chain.close()
    assert whole(tmp_path).rows == stored + 2


def test_read_only_disk_is_named_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        chain = open_chain(disk)
        chain.append("start", {})
        chain.close()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True, timeout=10)
        with pytest.raises(GenealogyError, match=r"cannot be opened: .*readonly.*; .* not mounted read-only"):
            open_chain(disk)
        assert whole(disk).rows == 2, "a copy on a read-only medium still proves itself"
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True, timeout=10)


# A machine that tries everything.


class GenealogyMachine(RuleBasedStateMachine):
    """Appends, restarts, crashes, prunes and full disks in any order: the chain is whole, then any byte is altered."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.number = 0
        self.hashes: list[str] = []

    @initialize()
    def begin(self) -> None:
        self.chain = unsynced(open_chain(self.folder, self.clock, keep_days=5))

    @rule(kind=st.sampled_from([*VerdictKind, *Loss]), serial=st.sampled_from(["", "A", "=B"]))
    def append_part(self, kind: VerdictKind | Loss, serial: str) -> None:
        self.number += 1
        self.hashes.append(self.chain.append_part(part(self.number, kind, serial, self.clock.ts()), "e"))

    @rule(kind=st.sampled_from(["start", "stop", "recipe", "challenge"]), text=st.text(max_size=5))
    def append_event(self, kind: str, text: str) -> None:
        self.hashes.append(self.chain.append(kind, {"text": text}))

    @precondition(lambda self: any(row.kind == "part" for row in self.chain.find(part=self.number)))
    @rule(kind=st.sampled_from(["late", "override"]))
    def remark(self, kind: str) -> None:
        self.hashes.append(self.chain.append(kind, {"part": self.number, **KIM}))

    @rule(beyond=st.integers(0, 2))
    def restart(self, beyond: int) -> None:
        self.chain.close()
        self.chain = unsynced(open_chain(self.folder, self.clock, keep_days=5))
        self.chain.void_after(self.number - beyond)

    @rule()
    def crash(self) -> None:
        """The files as they are at this moment, as after a SIGKILL, are all that is left."""
        left = Path(tempfile.mkdtemp())
        for file in self.folder.iterdir():
            shutil.copy(file, left)
        self.chain.close()
        shutil.rmtree(self.folder)
        self.folder = left
        self.chain = unsynced(open_chain(self.folder, self.clock, keep_days=5))

    @rule(days=st.integers(1, 4))
    def prune(self, days: int) -> None:
        self.clock.advance(days * DAY)
        self.chain.prune(self.clock.ts())

    @rule()
    def full_disk(self) -> None:
        db = self.chain._db
        assert db is not None
        db.execute("PRAGMA max_page_count=1")
        with pytest.raises(GenealogyError):
            self.chain.append("recipe", {"text": "x" * 60_000})
        db.execute("PRAGMA max_page_count=100000")

    def teardown(self) -> None:
        if not hasattr(self, "chain"):
            return
        head = self.chain.head()
        proof = whole(self.folder, head[1])
        assert (proof.last, proof.rows) == (head[0], self.chain.counts().rows)
        assert self.chain.set_aside is None
        self.chain.close()
        if self.hashes:
            assert self.hashes[-1] == head[1] or proof.last > len(self.hashes)
        for seed in range(3):
            self._alter_and_prove(random.Random(seed))
        shutil.rmtree(self.folder)

    def _alter_and_prove(self, rng: random.Random) -> None:
        copy = self.folder / f"copy-{rng.random()}.db"
        shutil.copy(self.folder / "genealogy.db", copy)
        n = alter_one_byte(copy, rng)
        broken = prove(copy).broken
        assert names(broken, n), (n, broken)
        copy.unlink()


def names(broken: str, n: int) -> bool:
    """Whether the break is said to be at that row."""
    return str(n) in re.split(r"[ :,;]+", broken)


def alter_one_byte(path: Path, rng: random.Random) -> int:
    """Alter one byte of one field of one row, as it is stored; the row's number before that."""
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = bytes
    rows = db.execute(f"SELECT {FIELDS} FROM row ORDER BY n").fetchall()
    row = rng.choice(rows)
    names = FIELDS.split(", ")
    name = rng.choice([name for name, value in zip(names, row, strict=True) if value not in (None, b"")])
    value = row[names.index(name)]
    if isinstance(value, int):
        free = [value ^ (1 << bit) for bit in range(8) if name != "n" or not _taken(rows, value ^ (1 << bit))]
        fresh: object = rng.choice(free or [value + 1_000_000])
    elif isinstance(value, float):
        fresh = value + rng.choice([1, -1, 0.5, 256])
    else:
        at = rng.randrange(len(value))
        fresh = value[:at] + bytes([value[at] ^ rng.randrange(1, 256)]) + value[at + 1 :]
    cast = "?" if name == "body" or not isinstance(fresh, bytes) else "CAST(? AS TEXT)"
    db.execute(f"UPDATE row SET {name} = {cast} WHERE n = ?", (fresh, row[0]))
    db.close()
    return int(row[0])


def _taken(rows: list[tuple[object, ...]], n: int) -> bool:
    return any(row[0] == n for row in rows)


@pytest.mark.parametrize("examples", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_any_order_of_events_leaves_a_chain_that_proves_itself(examples: int) -> None:
    run_state_machine_as_test(
        GenealogyMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize("seeds", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_altered_byte_is_named(tmp_path: Path, seeds: int) -> None:
    """Every field, any byte: the break names the row. A row that was let go stands behind the first."""
    clock = FakeClock()
    chain = open_chain(tmp_path, clock, keep_days=5)
    for number in range(1, 12):
        chain.append_part(part(number, ts=clock.ts()), f"evidence/{number}")
        clock.advance(DAY)
        if number % 3 == 0:
            chain.append("override", {"part": number, **KIM})
        if number == 9:
            assert chain.prune(clock.ts()) > 0
    chain.close()
    good = tmp_path / "genealogy.db"
    (tmp_path / "altered").mkdir()
    for seed in range(seeds):
        copy = tmp_path / "altered" / "genealogy.db"
        shutil.copy(good, copy)
        n = alter_one_byte(copy, random.Random(seed))
        broken = prove(copy).broken
        assert names(broken, n), (seed, n, broken)
