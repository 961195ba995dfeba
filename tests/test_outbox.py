"""The outbox on real files: order, quota, kill -9, damage, a full disk, and a machine that tries everything."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge import ledger
from edge.clock import SystemClock
from edge.errors import OutboxError
from edge.event import Alarm, Envelope, LedgerCounts
from edge.outbox import CHUNK, RESERVE, Draft, Kind, Outbox, Row
from edge.records import VerdictKind
from tests.sqlite_damage import cut_in_half, garbage, other_program, scribble, sql

ROOT = Path(__file__).parent.parent
QUOTA = 1_000_000


def draft(kind: Kind = Kind.RESULT, size: int = 100, retain: bool = False) -> Draft:
    """A message whose payload has exactly `size` bytes over that of an empty one."""
    return Draft("t", kind, retain, Alarm(code="c", severity="warning", text="x" * size, advice=""))


def open_box(folder: Path, quota_bytes: int = QUOTA, boot: str = "b") -> Outbox:
    return Outbox(folder / "outbox.db", quota_bytes, boot, SystemClock())


def add(box: Outbox, *drafts: Draft) -> list[int]:
    return box.add(drafts or [draft()], ledger.empty(), 0)


def seqs(box: Outbox) -> list[int]:
    return [row.seq for row in box.pending(0, 100_000)]


def balanced(box: Outbox) -> bool:
    c = box.counts()
    rows = box.pending(0, 1_000_000)
    sums = c.added == c.delivered + c.evicted_results + c.evicted_alarms + c.depth
    return sums and c.depth == len(rows) and c.bytes == sum(len(row.payload) for row in rows)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Outbox]:
    made = open_box(tmp_path)
    yield made
    made.close()


def test_messages_come_back_in_order_with_their_envelope(box: Outbox) -> None:
    assert add(box, draft(), draft(Kind.ALARM, retain=True)) == [1, 2]
    assert add(box) == [3]
    rows = box.pending(0, 10)
    heads = [msgspec.json.decode(row.payload, type=Envelope) for row in rows]
    assert [(h.seq, h.id, h.boot) for h in heads] == [(1, "b-o-1", "b"), (2, "b-o-2", "b"), (3, "b-o-3", "b")]
    assert [row.retain for row in rows] == [False, True, False]
    assert [row.seq for row in box.pending(1, 1)] == [2]
    assert heads[0].ts > 1e9 and heads[0].mono_ns > 0


def test_numbers_counts_and_ledger_go_on_over_a_restart(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    assert box.ledger() == (None, 0)
    counts = ledger.judged(ledger.empty(), VerdictKind.OK)
    box.add([draft(), draft()], counts, 1)
    box.remove([1])
    box.save_ledger(ledger.judged(counts, VerdictKind.NG), 2)
    before = box.counts()
    box.close()
    again = open_box(tmp_path, boot="later")
    assert again.set_aside is None
    assert again.counts() == before
    assert again.ledger() == (ledger.judged(counts, VerdictKind.NG), 2)
    assert add(again) == [3]
    assert msgspec.json.decode(again.pending(2, 1)[0].payload, type=Envelope).id == "later-o-3"
    again.close()


def test_removing_twice_or_what_never_was_counts_once(box: Outbox) -> None:
    add(box, draft(), draft())
    box.remove([1, 1, 99])
    box.remove([1])
    box.remove([])
    assert box.counts().delivered == 1 and seqs(box) == [2] and balanced(box)


def test_many_are_removed_in_one_call(box: Outbox) -> None:
    add(box, *[draft()] * 1234)
    box.remove(range(1, 1235))
    assert box.counts().delivered == 1234 and box.counts().depth == 0


def test_listener_hears_of_retained_rows_before_they_can_be_read(box: Outbox) -> None:
    heard: list[list[Row]] = []
    box.listen(lambda rows: heard.append(list(rows)))
    add(box, draft(), draft(Kind.ALARM, retain=True))
    box.save_ledger(ledger.empty(), 0)
    assert [[row.seq for row in rows] for rows in heard] == [[2]]


# Quota: sizes in payload bytes; R result, A alarm, each of about 1,100 bytes.
R, A = draft(Kind.RESULT, 900), draft(Kind.ALARM, 900)
FOUR = 4 * 1100 + 50


@pytest.mark.parametrize(
    ("adds", "left", "evicted_results", "evicted_alarms", "why"),
    [
        ([[R]] * 4, [1, 2, 3, 4], 0, 0, "all fit"),
        ([[R]] * 6, [3, 4, 5, 6], 2, 0, "the oldest go"),
        ([[A], [R], [R], [A], [R]], [1, 3, 4, 5], 1, 0, "a younger result goes before an older alarm"),
        ([[A]] * 4 + [[R]], [2, 3, 4, 5], 0, 1, "only alarms are left: the oldest, not the row just added"),
        ([[A]] * 6, [3, 4, 5, 6], 0, 2, "alarms among themselves: the oldest"),
        ([[R], [R, R, R, R]], [2, 3, 4, 5], 1, 0, "a part's messages are added together"),
        ([[A], [R] * 6], [4, 5, 6, 7], 2, 1, "more at once than fits: all old ones, then its own oldest"),
        ([[A, R, A, R, A, R]], [1, 3, 5, 6], 2, 0, "more at once than fits: its results before its alarms"),
        ([[R], [A], [draft(Kind.ALARM, 5000)]], [1, 2], 0, 1, "what can never fit drives nothing else out"),
        ([[draft(Kind.RESULT, 5000)]], [], 1, 0, "what can never fit, alone"),
        ([[R], [A], [draft(Kind.RESULT, 5000), R]], [1, 2, 4], 1, 0, "its companion stays"),
    ],
)
def test_quota_evicts_in_order_and_counts(
    tmp_path: Path, adds: list[list[Draft]], left: list[int], evicted_results: int, evicted_alarms: int, why: str
) -> None:
    box = open_box(tmp_path, FOUR)
    for drafts in adds:
        add(box, *drafts)
    counts = box.counts()
    assert (seqs(box), counts.evicted_results, counts.evicted_alarms) == (left, evicted_results, evicted_alarms), why
    assert balanced(box) and counts.bytes <= FOUR
    box.close()


def test_smaller_quota_takes_effect_at_the_start(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    add(box, A, *[R] * 1200)
    box.close()
    box = open_box(tmp_path, FOUR)
    assert len(seqs(box)) == 4 and seqs(box)[0] == 1 and balanced(box)
    assert box.counts().evicted_results == 1200 - 3
    box.close()


def test_oldest_result_is_found_again_after_delivery_and_restart(tmp_path: Path) -> None:
    box = open_box(tmp_path, FOUR)
    for kind in (R, R, R, A, R, R):
        add(box, kind)
    box.remove([3])
    box.close()
    box = open_box(tmp_path, FOUR)
    add(box, R)
    add(box, R)
    assert seqs(box) == [4, 6, 7, 8]
    box.close()


def test_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    """Ten times the quota goes through, half of it while the broker is away: space is used again."""
    quota = 400_000
    box = open_box(tmp_path, quota)
    part = 0
    while box.counts().added < 10 * quota // 1100:
        add(box, *[draft(size=random.Random(part).randrange(200, 1600))] * 20)
        part += 1
        if part % 2:
            box.remove(seqs(box)[:20])
    assert box.counts().evicted_results > 0
    wal = os.path.getsize(tmp_path / "outbox.db-wal")
    box.close()
    size = os.path.getsize(tmp_path / "outbox.db")
    assert size < 2 * quota, size
    assert wal < 4.5e6, wal
    assert not (tmp_path / "outbox.db-wal").exists() or os.path.getsize(tmp_path / "outbox.db-wal") == 0


def test_adding_waits_for_one_chunk_of_a_long_removal_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = open_box(tmp_path, 100_000_000)
    add(box, *[draft(size=50)] * (3 * CHUNK + 1))
    taken = []

    class CountingLock:
        """Notes each time the outbox is locked: between two of them an addition gets its turn."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            self._lock.acquire()
            taken.append(1)

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    monkeypatch.setattr(box, "_lock", CountingLock(threading.Lock()))
    box.remove(range(1, 3 * CHUNK + 2))
    assert len(taken) == 4, "the lock is taken anew for each chunk"
    assert box.counts().depth == 0
    box.close()


# Kill -9.


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_of_the_writer_loses_no_committed_row(tmp_path: Path, kills: int) -> None:
    """Killed at random: what it was told is committed is there, and rows and ledger belong together."""
    rng = random.Random(7)
    part = last = delivered = 0
    for round_ in range(kills):
        part, last = _run_and_kill(tmp_path / "outbox.db", f"boot{round_}", rng.uniform(0.0, 0.1), part, last)
        box = open_box(tmp_path, 10_000_000)
        counts, parts = box.ledger()
        assert box.set_aside is None and balanced(box) and counts is not None
        stored = box.counts()
        assert parts >= part and stored.added >= last, "a committed part is missing"
        assert parts == counts.triggers, "the ledger is of another part than the counter"
        assert stored.added == sum(1 + p % 3 for p in range(1, parts + 1)), "rows and ledger do not belong together"
        assert seqs(box) == list(range(stored.delivered + 1, stored.added + 1)), "a gap among the stored"
        assert stored.delivered >= delivered
        part, last, delivered = parts, stored.added, stored.delivered
        box.close()
    assert part > 5 * kills, "the writer got something done between the kills"


def _run_and_kill(path: Path, boot: str, after_s: float, part: int, last: int) -> tuple[int, int]:
    """Run the writer, kill it; the last part and seq it was told are committed."""
    command = [sys.executable, str(ROOT / "tests" / "outbox_writer.py"), str(path), boot]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert writer.stdout is not None
    first = writer.stdout.readline()
    assert first, "the writer did not start"
    time.sleep(after_s)
    writer.kill()
    said = (first + writer.stdout.read()).split(b"\n")[:-1]  # the last line may be cut off
    writer.stdout.close()
    writer.wait(10)
    committed = [tuple(map(int, line.split())) for line in said]
    return committed[-1] if committed else (part, last)


# Damage.


def test_second_process_is_refused(box: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.outbox.LOCK_WAIT_S", 0.1)
    add(box)
    with pytest.raises(OutboxError, match="another edge process uses it"):
        open_box(tmp_path)
    assert add(box) == [2]


def _row_lost(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DELETE FROM message WHERE seq = 7")
    db.close()


def _books_lost(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("DELETE FROM books")
    db.close()


@pytest.mark.parametrize(
    "damage", [garbage, cut_in_half, scribble, other_program, sql("PRAGMA user_version=99"), _row_lost, _books_lost]
)
def test_damaged_or_foreign_file_is_set_aside_and_numbers_go_on(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    box = open_box(tmp_path)
    box.add([draft(size=2000)] * 50, ledger.judged(ledger.empty(), VerdictKind.OK), 50)
    box.close()
    damage(tmp_path / "outbox.db")  # type: ignore[operator]
    spoilt = (tmp_path / "outbox.db").read_bytes()
    box = open_box(tmp_path)
    assert box.set_aside is not None and Path(box.set_aside).name.startswith("outbox.corrupt-")
    assert Path(box.set_aside).read_bytes()[100:] == spoilt[100:], "what is set aside is left as it was"
    assert "set aside" in caplog.text
    assert box.ledger()[0] is None and box.ledger()[1] >= 50, "part numbers do not come twice"
    (seq,) = add(box)
    assert 50 < seq <= 50 + RESERVE + 2 and box.counts().first_seq == seq
    box.close()
    again = open_box(tmp_path)
    assert again.set_aside is None and seqs(again) == [seq]
    again.close()


# Where the fields of the header of a SQLite file begin, and one byte within the text at its start.
HEADER_FIELDS = (0, 7, 16, 18, 19, 20, 21, 22, 23, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60, 64, 68, 72, 92, 96)


@pytest.mark.parametrize("offsets", [HEADER_FIELDS, pytest.param(range(100), marks=pytest.mark.slow)], ids=len)
def test_no_damage_to_the_header_stops_the_start(tmp_path: Path, offsets: Sequence[int]) -> None:
    box = open_box(tmp_path)
    add(box)
    box.close()
    good = (tmp_path / "outbox.db").read_bytes()
    for offset in offsets:
        folder = tmp_path / str(offset)
        folder.mkdir()
        (folder / "outbox.db").write_bytes(good[:offset] + b"\xff" + good[offset + 1 :])
        box = open_box(folder)
        add(box)
        assert balanced(box)
        box.close()


def test_lost_file_does_not_repeat_numbers(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    add(box, *[draft()] * 5)
    box.close()
    (tmp_path / "outbox.db").unlink()
    box = open_box(tmp_path)
    assert box.set_aside is None and add(box)[0] > 5
    box.close()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"{}", b'{"seq":"x"}', b"[1]"])
def test_unreadable_reserve_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    box = open_box(tmp_path)
    add(box)
    box.close()
    (tmp_path / "outbox.db.reserve").write_bytes(content)
    box = open_box(tmp_path)
    assert add(box) == [2]
    assert (tmp_path / "outbox.db.reserve").read_bytes().startswith(b'{"seq":')
    box.close()


def test_numbers_do_not_repeat_over_many_reserves(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    for _ in range(30):
        last = add(box, *[draft(size=0)] * 100)[-1]
    box.close()
    garbage(tmp_path / "outbox.db")
    box = open_box(tmp_path)
    assert last < add(box)[0] <= last + RESERVE + 2
    box.close()


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match=r"file/outbox\.db cannot be opened: (Not a directory|File exists); check"):
        open_box(tmp_path / "file")


def test_directory_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").mkdir()
    with pytest.raises(OutboxError, match="unable to open database file; check that the folder exists"):
        open_box(tmp_path)


def test_closed_outbox_refuses_with_its_own_error(tmp_path: Path) -> None:
    box = open_box(tmp_path)
    box.close()
    box.close()
    for use in (lambda: add(box), lambda: box.pending(0, 1), lambda: box.remove([1])):
        with pytest.raises(OutboxError, match="the service is stopping"):
            use()


# A full disk.


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MB of its own."""
    folder = Path(tempfile.mkdtemp())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system needs root; test_full_file covers SQLite's own limit")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


def _fill(box: Outbox) -> list[int]:
    stored: list[int] = []
    for _ in range(100_000):
        try:
            stored += add(box, draft(size=2000))
        except OutboxError as error:
            assert "cannot store a message: database or disk is full; free space on that disk" in str(error)
            return stored
    raise AssertionError("the disk did not fill up")


def test_full_disk_refuses_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    hog = small_disk / "hog"
    hog.write_bytes(bytes(1_000_000))
    box = open_box(small_disk, 100_000_000)
    stored = _fill(box)
    assert seqs(box) == stored and balanced(box) and box.counts().refused == 1
    with pytest.raises(OutboxError):
        add(box, *[draft(size=2000)] * 50)
    assert box.counts().refused == 51 and seqs(box) == stored, "all or nothing"
    hog.unlink()
    assert add(box) == [stored[-1] + 1], "a refusal uses no number up"
    box.close()
    box = open_box(small_disk, 100_000_000)
    assert box.set_aside is None and balanced(box) and box.counts().refused == 51
    box.close()


def test_full_disk_still_takes_in_what_it_can_deliver(small_disk: Path) -> None:
    """The broker is there, only the disk is full: delivered rows make the room for new ones."""
    hog = small_disk / "hog"
    box = open_box(small_disk, 100_000_000)
    add(box, *[draft(size=2000)] * 100)
    box._db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # as happens by itself every 1000 pages
    with open(hog, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    for _ in range(300):
        box.remove([row.seq for row in box.pending(0, 2)])
        add(box)
    assert balanced(box) and box.counts().added == 400
    box.close()


def test_read_only_disk_is_named_at_the_start(small_disk: Path) -> None:
    box = open_box(small_disk)
    add(box)
    box.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OutboxError, match=r"cannot be opened: .* is readonly here; .* not mounted read-only"):
        open_box(small_disk)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    box = open_box(small_disk)
    assert seqs(box) == [1] and add(box) == [2]
    box.close()


def test_full_file(tmp_path: Path) -> None:
    """The same without a disk of its own: SQLite's limit on pages gives the same error."""
    box = open_box(tmp_path, 100_000_000)
    box._db.execute("PRAGMA max_page_count=60")
    stored = _fill(box)
    assert seqs(box) == stored and balanced(box) and box.counts().refused == 1
    box._db.execute("PRAGMA max_page_count=100000")
    assert add(box) == [stored[-1] + 1]
    box.close()


# A machine that tries everything.


class OutboxMachine(RuleBasedStateMachine):
    """Adds, removes, reopens and abandons (as a crash does) in any order; a dictionary says what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model: dict[int, tuple[Kind, int]] = {}
        self.last = self.delivered = self.part = 0
        self.ledger: LedgerCounts | None = None

    @initialize(quota=st.sampled_from([3000, 20_000]))
    def begin(self, quota: int) -> None:
        self.quota = quota
        self.box = open_box(self.folder, quota)

    @rule(kinds=st.lists(st.sampled_from(Kind), max_size=4), size=st.integers(0, 3500))
    def add(self, kinds: list[Kind], size: int) -> None:
        self.part += 1
        self.ledger = ledger.judged(self.ledger or ledger.empty(), VerdictKind.OK)
        given = self.box.add([draft(kind, size) for kind in kinds], self.ledger, self.part)
        assert given == list(range(self.last + 1, self.last + 1 + len(kinds))), "a gap in the numbers"
        self.last += len(kinds)
        present = {row.seq: len(row.payload) for row in self.box.pending(0, 10_000)}
        self._check_eviction(dict(zip(given, kinds, strict=True)), present)
        kinds_of = {**{seq: kind for seq, (kind, _) in self.model.items()}, **dict(zip(given, kinds, strict=True))}
        self.model = {seq: (kinds_of[seq], size) for seq, size in present.items()}

    def _check_eviction(self, added: dict[int, Kind], present: dict[int, int]) -> None:
        gone = [(seq, kind) for seq, (kind, _) in self.model.items() if seq not in present]
        kept = [(seq, kind) for seq, (kind, _) in self.model.items() if seq in present]
        for kind in Kind:
            seqs_gone = [seq for seq, k in gone if k == kind]
            seqs_kept = [seq for seq, k in kept if k == kind]
            assert not seqs_gone or not seqs_kept or max(seqs_gone) < min(seqs_kept), "not the oldest went"
        if any(kind is Kind.ALARM for _, kind in gone):
            assert not any(kind is Kind.RESULT for _, kind in kept), "an alarm went before a result"
        if len(added) == 1 and not set(added) & set(present):
            assert not gone, "what can never fit drove others out"

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True))
        self.box.remove([*chosen, self.last + 100])
        self.delivered += len(chosen)
        for seq in chosen:
            del self.model[seq]

    @rule(boot=st.sampled_from(["b1", "b2"]))
    def reopen(self, boot: str) -> None:
        self.box.close()
        self.box = open_box(self.folder, self.quota, boot)
        assert self.box.set_aside is None

    @rule()
    def crash(self) -> None:
        """What a kill leaves: the file and its log as they are now, without a farewell."""
        left = Path(tempfile.mkdtemp())
        for file in self.folder.iterdir():
            shutil.copy(file, left / file.name)
        self.box.close()
        shutil.rmtree(self.folder)
        self.folder = left
        self.box = open_box(left, self.quota)
        assert self.box.set_aside is None

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "box"):
            return
        counts = self.box.counts()
        assert balanced(self.box)
        assert seqs(self.box) == sorted(self.model)
        assert (counts.added, counts.delivered) == (self.last, self.delivered)
        assert counts.bytes <= self.quota
        assert self.box.ledger() == (self.ledger, self.part)

    def teardown(self) -> None:
        if hasattr(self, "box"):
            self.box.close()
        shutil.rmtree(self.folder)


OutboxMachine.TestCase.settings = settings(max_examples=8, stateful_step_count=20, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase


@pytest.mark.slow
def test_machine_for_longer() -> None:
    run_state_machine_as_test(OutboxMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
