"""The black box holds what was judged, bit by bit, whatever happens to the process or the disk; gaps are told."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge import recorder as recorders
from edge.config import RecorderSettings
from edge.errors import IncidentError
from edge.part_record import record_of
from edge.recorder import SEGMENT_S, Recorder
from edge.recording import (
    MAGIC,
    MARK,
    EventEntry,
    Kind,
    PartEntry,
    Session,
    encode_record,
    pack,
    read_outline,
    read_segment,
    segments_in,
    unpack,
)
from edge.spool import DiskState
from tests.disks import small_disk
from tests.fakes import FakeClock, textured
from tests.parts import part

WAIT_S = 20.0
SESSION = {
    "boot": "boot1",
    "version": "0.1.0",
    "config": '[station]\nsite = "s"\n',
    "recipes": {"ab" * 32: 'name = "pcb"\n'},
    "product": "pcb",
    "product_version": 4,
    "bundle_digest": "d" * 64,
    "artifact": "detector.onnx",
    "runtime": "onnxruntime 1.23.2 fp32 any",
}


class Rig:
    """A recorder that is stopped at the end of a test."""

    def __init__(self, folder: Path, minutes: float = 15.0, quota_mb: float = 50.0, **more) -> None:
        self.folder, self.clock = folder, more.pop("clock", FakeClock())
        settings = RecorderSettings(minutes=minutes, quota_mb=quota_mb)
        more = {"retry_s": 0.05, "classes": ("open",), **more}
        self.recorder = Recorder(folder, settings, self.clock, SESSION, **more)

    def __enter__(self) -> Rig:
        self.recorder.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.recorder.stop(WAIT_S)

    def note(self, *parts) -> None:
        for one in parts:
            self.recorder.note_part(one)
            assert self.recorder.settled(WAIT_S)

    def until(self, state: DiskState) -> None:
        limit = time.monotonic() + WAIT_S
        while self.recorder.state is not state:
            assert time.monotonic() < limit, f"the state stays {self.recorder.state}"
            time.sleep(0.01)


def records(folder: Path):
    return [record for path in segments_in(folder) for record in read_segment(path).records]


def entries(folder: Path, kind):
    return [record.entry for record in records(folder) if isinstance(record.entry, kind)]


def numbers(folder: Path) -> list[int]:
    return [entry.part.number for entry in entries(folder, PartEntry)]


@given(
    arrays.arrays(
        np.uint8, st.one_of(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.just((5, 7, 3)), st.just((1, 1, 3)))
    )
)
def test_any_frame_comes_back_bit_by_bit(image):
    assert np.array_equal(unpack(pack(image), image.shape), image)
    turned = image[::-1]  # not contiguous in memory
    assert np.array_equal(unpack(pack(turned), turned.shape), turned)


@pytest.mark.parametrize(
    ("packed", "shape", "said", "why"),
    [
        (pack(textured(1)), (64, 65), "instead of 4160", "of another shape"),
        (pack(textured(1)), (64, 63), "instead of 4032", "too many bytes"),
        (pack(textured(1))[:-20], (64, 64), "instead of 4096", "cut short"),
        (pack(textured(1)) + b"x", (64, 64), "instead", "more behind it"),
        (b"", (64, 64), "0 bytes", "nothing"),
        (b"noise", (64, 64), "cannot be unpacked", "not packed"),
        (pack(np.zeros((16_000, 16_000), np.uint8)), (4, 4), "instead of 16", "a bomb"),
        (b"", (100_000, 64), "is none", "larger than any camera"),
        (b"", (64,), "is none", "a row"),
        (b"", (64, 64, 4), "is none", "four channels"),
        (b"", (-1, 64), "is none", "a negative side"),
    ],
)
def test_a_frame_that_is_none_is_refused(packed, shape, said, why):
    with pytest.raises(IncidentError, match=said):
        unpack(packed, shape)


def test_parts_and_events_are_there_in_order_with_all_that_is_known(tmp_path):
    colour = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    kept = part("NG", 7, "SN7", ("cam1", "cam2"), colour, missing={"cam3": "no frame in time"})
    lost = part("overrun", 8, cameras=())
    with Rig(tmp_path) as rig:
        rig.recorder.note_event("overrun", {"trigger": 6})
        rig.note(kept, lost)
        rig.recorder.note_event("recipe", {"number": 2})
    first, event, whole, without, last = records(tmp_path)
    assert first.entry.config == SESSION["config"]
    assert (event.entry.kind, event.entry.data) == ("overrun", {"trigger": 6})
    assert whole.entry.part == record_of(kept, ("open",))
    assert all(np.array_equal(unpack(x, (48, 64, 3)), colour) for x in whole.frames)
    assert [frame.camera for frame in whole.entry.frames] == ["cam1", "cam2"]
    assert (without.entry.part.loss, without.frames) == ("overrun", ())
    assert last.entry.kind == "recipe"


def test_every_segment_says_what_its_parts_were_judged_by(tmp_path):
    clock = FakeClock()
    with Rig(tmp_path, clock=clock) as rig:
        for n in range(3):
            rig.note(part("OK", n))
            clock.advance(SEGMENT_S + 0.1)
    paths = list(segments_in(tmp_path))
    assert len(paths) == 3
    for path in paths:
        first = read_segment(path).records[0].entry
        assert isinstance(first, Session)
        assert first.recipes == SESSION["recipes"]


def test_a_recorder_that_is_off_writes_nothing(tmp_path):
    recorder = Recorder(tmp_path / "none", RecorderSettings(use=False), FakeClock(), SESSION)
    recorder.note_part(part())
    recorder.note_event("x", {})
    assert recorder.counts().dropped == 0
    assert not (tmp_path / "none").exists()


def test_the_minutes_bound_it(tmp_path):
    clock = FakeClock()
    with Rig(tmp_path, minutes=1.0, clock=clock) as rig:
        for n in range(20):
            rig.note(part("OK", n))
            clock.advance(6)
        counts = rig.recorder.counts()
        assert 60 <= counts.reaches_s <= 60 + 2 * SEGMENT_S + 6
        assert counts.frames == len(numbers(tmp_path)) < 20
    assert numbers(tmp_path)[-1] == 19


def noise(number: int, cameras=("cam1",)):
    return part(
        "OK", number, cameras=cameras, image=np.random.default_rng(number).integers(0, 256, (100, 100), np.uint8)
    )


def test_the_quota_bounds_it_and_the_oldest_go(tmp_path):
    with Rig(tmp_path, quota_mb=0.2) as rig:
        for n in range(100):
            rig.note(noise(n))
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 0.2e6
        counts = rig.recorder.counts()
        held = numbers(tmp_path)
        assert held == list(range(held[0], 100))
        assert len(held) == counts.frames >= 10
        assert counts.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        assert rig.recorder.written_bytes > 10 * len(held) * 1000
        assert counts.dropped == counts.failed == 0


def test_a_restart_goes_on_and_forgets_what_is_too_old(tmp_path):
    clock = FakeClock()
    for run in range(3):
        with Rig(tmp_path, clock=clock) as rig:
            rig.note(part("OK", run))
            assert rig.recorder.counts().frames == run + 1
    assert numbers(tmp_path) == [0, 1, 2]
    assert [path.name for path in segments_in(tmp_path)] == [f"{n:010d}.rec" for n in (1, 2, 3)]


def test_segments_of_another_boot_age_by_the_wall_clock_and_a_jump_takes_nothing(tmp_path):
    with Rig(tmp_path) as rig:
        rig.note(part("OK", 1))

    class Jumping(FakeClock):
        jump_s = 30.0

        def ts(self):
            return super().ts() + self.jump_s

    clock = Jumping()
    with Rig(tmp_path, minutes=1.0, clock=clock) as rig:
        rig.note(part("OK", 2))
        clock.jump_s = 86_400.0
        rig.note(part("OK", 3))
        assert numbers(tmp_path) == [1, 2, 3], "a clock that jumps is not a day gone by"
        clock.advance(31)
        rig.note(part("OK", 4))
        assert numbers(tmp_path) == [2, 3, 4], "30 seconds old at the start, and 31 since"


def test_foreign_files_stay(tmp_path):
    (tmp_path / "notes.rec").write_text("mine")
    (tmp_path / "1.rec").write_text("mine")
    with Rig(tmp_path, quota_mb=0.05) as rig:
        for n in range(30):
            rig.note(noise(n))
    assert (tmp_path / "notes.rec").read_text() == (tmp_path / "1.rec").read_text() == "mine"


def test_what_cannot_be_kept_up_with_is_dropped_counted_and_told_in_the_recording(tmp_path, monkeypatch):
    release = threading.Event()
    real = recorders.pack

    def slow_pack(image):
        release.wait(WAIT_S)
        return real(image)

    monkeypatch.setattr(recorders, "pack", slow_pack)
    with Rig(tmp_path, most_bytes=100_000) as rig:
        for n in range(10):
            rig.recorder.note_part(noise(n, ("cam1", "cam2")))
        dropped = rig.recorder.counts().dropped
        release.set()
        assert rig.recorder.settled(WAIT_S)
        rig.note(noise(10))
    held = numbers(tmp_path)
    assert dropped == 2 * (11 - len(held)) > 0
    [gap] = [event for event in entries(tmp_path, EventEntry) if event.kind == "gap"]
    assert gap.data["parts"] == 11 - len(held)
    assert gap.data["frames"] == dropped
    assert gap.data["why"] == "the writer could not keep up"
    assert gap.data["from_ts"] <= gap.data["to_ts"]


def test_note_part_only_hands_over(tmp_path):
    """Nothing is packed or written in the thread that judges: here no writer runs at all."""
    parts = [part("NG", n, f"SN{n}", ("cam1", "cam2", "cam3")) for n in range(200)]
    recorder = Recorder(tmp_path, RecorderSettings(), FakeClock(), SESSION)
    for one in parts:
        recorder.note_part(one)
    assert list(tmp_path.iterdir()) == [] and recorder.counts().dropped == 0


def damaged(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    marks = [k for k in range(len(data)) if data.startswith(MARK, k)]
    if how == "torn in a head":
        del data[marks[-1] + 6 :]
    elif how == "torn in the frames":
        del data[-5:]
    elif how == "a bit of a frame":
        data[marks[-1] - 10] ^= 4
    elif how == "a length":
        data[marks[-2] + 7] ^= 0x40
    elif how == "a magic":
        data[0] ^= 1
    elif how == "zeros, as a power cut leaves them":
        data[marks[-2] :] = bytes(len(data) - marks[-2])
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("torn in a head", [0, 1, 2]),
        ("torn in the frames", [0, 1, 2]),
        ("a bit of a frame", [0, 1, 3]),
        ("a length", [0, 1, 3]),
        ("a magic", [0, 1, 2, 3]),
        ("zeros, as a power cut leaves them", [0, 1]),
    ],
)
def test_damage_costs_the_damaged_record_only_and_is_told(tmp_path, how, left):
    with Rig(tmp_path) as rig:
        rig.note(*[noise(n) for n in range(4)])
    [path] = segments_in(tmp_path)
    damaged(path, how)
    assert numbers(tmp_path) == left
    assert read_segment(path).skipped > 0
    with Rig(tmp_path) as again:  # and recording goes on beside it
        again.note(noise(9))
    assert numbers(tmp_path) == [*left, 9]


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_a_crash(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "0000000001.rec"
    whole = MAGIC + encode_record(Kind.EVENT, 1.0, b'{"kind":"a","data":{},"at_ts":1.0,"at_mono_ns":1}')
    path.write_bytes(whole + noise + whole[len(MAGIC) :])
    read = [record.entry.kind for record in read_segment(path).records]
    assert read[0] == "a"
    assert read[-1] == "a"
    read_outline(path)
    path.write_bytes(noise)
    read_segment(path)
    read_outline(path)


def test_a_full_disk_gives_up_the_oldest(tmp_path):
    clock = FakeClock()
    with small_disk(tmp_path / "disk", 1) as disk, Rig(disk / "recorder", clock=clock) as rig:
        for n in range(150):
            rig.note(noise(n))
            clock.advance(1)
        counts = rig.recorder.counts()
        assert counts.failed == 0
        assert rig.recorder.problem() == ""
        held = numbers(disk / "recorder")
        assert held == list(range(held[0], 150))
        assert 50 < len(held) < 120


def test_a_disk_that_others_have_filled_is_told_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk, Rig(disk / "recorder") as rig:
        filler = disk / "log"
        with filler.open("wb", 0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        rig.recorder.note_part(noise(1))
        rig.until(DiskState.FULL)
        assert "the recording cannot be written to" in rig.recorder.problem()
        assert rig.recorder.settled(WAIT_S)
        filler.unlink()
        rig.until(DiskState.OK)
        rig.note(noise(2))
        assert numbers(disk / "recorder") == [2]
        assert rig.recorder.counts().failed == 1
        [gap] = [event for event in entries(disk / "recorder", EventEntry) if event.kind == "gap"]
        assert gap.data["frames"] == 1


def test_a_read_only_disk_is_told_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        with Rig(disk / "recorder") as rig:
            rig.note(noise(1))
        remount(disk, "ro")
        with Rig(disk / "recorder", retry_s=0.2) as rig:
            rig.recorder.note_part(noise(2))
            rig.until(DiskState.READ_ONLY)
            remount(disk, "rw")
            rig.until(DiskState.OK)
            assert rig.recorder.settled(WAIT_S)
            rig.note(noise(3))
        assert numbers(disk / "recorder") == [1, 2, 3]


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True, timeout=10)


WRITER = """
import sys
from pathlib import Path
from tests.test_recorder import SESSION, noise
from edge.clock import SystemClock
from edge.config import RecorderSettings
from edge.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), RecorderSettings(quota_mb=2.0), SystemClock(), SESSION)
recorder.start()
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    recorder.note_part(noise(number, ("cam1", "cam2")))
    if number % 5 == 0:
        recorder.settled(5.0)
        print(number, flush=True)
"""


def kill_writers(folder: Path, times: int) -> None:
    chance = random.Random(7)
    for turn in range(times):
        command = [sys.executable, "-c", WRITER, str(folder), str(turn * 100_000)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.05, 0.4))
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        last = max([int(line) for line in child.stdout.read().split()], default=0)
        child.stdout.close()
        found = entries(folder, PartEntry)
        seen = [entry.part.number for entry in found]
        assert seen == sorted(seen)
        assert not last or last in seen, "what was said to be written is there"
        mine = [number for number in seen if number > turn * 100_000]
        assert mine == list(range(mine[0], mine[0] + len(mine))) if mine else True, "nothing is missing in between"
    for record in records(folder):
        if isinstance(record.entry, PartEntry):
            image = noise(record.entry.part.number).inspections[0].frame.image
            assert all(np.array_equal(unpack(packed, image.shape), image) for packed in record.frames)


def test_a_kill_costs_only_what_was_waiting(tmp_path):
    kill_writers(tmp_path, 2)


@pytest.mark.slow
def test_thirty_kills_cost_only_what_was_waiting(tmp_path):
    kill_writers(tmp_path, 30)
