"""What is worth a look is kept, whole, under a quota, and a bad disk is told rather than suffered."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import evidence_folder
from edge.annotate import annotate
from edge.config import EvidenceSettings
from edge.evidence import Evidence, Served
from edge.evidence_folder import BLOCK, PARTIAL, EvidenceFolder, path_of, safe_name
from edge.spool import ATTEMPTS, DiskState, Spool
from tests.disks import small_disk
from tests.fakes import FakeClock, textured
from tests.parts import TS, look, part

ABOUT = {"bundle_digest": "d" * 64, "config_hash": "c" * 64}
DAY = "2026-11-26"
NG, OK = f"{DAY}/NG", f"{DAY}/OK"
WAIT_S = 20.0


def draw(inspection):
    return annotate(inspection, ["open"], 0.3)


class Rig:
    """An evidence writer that is stopped at the end of a test."""

    def __init__(self, folder: Path, quota_mb: float = 50.0, ok_every: int = 2, **more) -> None:
        self.folder = folder
        settings = EvidenceSettings(quota_mb=quota_mb, ok_every=ok_every)
        more = {"retry_s": 0.05, **more}
        served = Served(ABOUT, more.pop("draw", draw), more.pop("classes", ("open",)))
        self.evidence = Evidence(folder, settings, FakeClock(), served, **more)

    def __enter__(self) -> Rig:
        self.evidence.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.evidence.stop(WAIT_S)

    def keep(self, *parts) -> list[str]:
        paths = [self.evidence.keep(one) for one in parts]
        assert self.evidence.settled(WAIT_S)
        return paths

    def until(self, state: DiskState) -> None:
        limit = time.monotonic() + WAIT_S
        while self.evidence.state is not state:
            assert time.monotonic() < limit, f"the state stays {self.evidence.state}"
            time.sleep(0.01)

    def held(self) -> list[str]:
        return held(self.folder)


def held(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in folder.glob("*/*/*/part.json"))


def test_a_part_is_kept_with_picture_raw_image_and_record(tmp_path):
    colour = np.random.default_rng(5).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    kept = part("NG", 123, "SN4711", ("cam1", "cam2"), colour, missing={"cam3": "no frame in time"})
    with Rig(tmp_path) as rig:
        [path] = rig.keep(kept)
    assert path == f"{NG}/143015-000123-SN4711"
    place = tmp_path / path
    assert sorted(os.listdir(place)) == ["cam1.jpg", "cam1.png", "cam2.jpg", "cam2.png", "part.json"]
    assert np.array_equal(cv2.imread(str(place / "cam1.png"), cv2.IMREAD_UNCHANGED), colour)
    assert cv2.imread(str(place / "cam1.jpg")).shape == (48 + 24, 64, 3)
    told = json.loads((place / "part.json").read_bytes())
    assert told["about"] == ABOUT
    said = told["part"]
    assert (said["number"], said["trigger"]["serial"], said["outcome"]) == (123, "SN4711", "NG")
    assert said["missing"] == {"cam3": "no frame in time"}
    assert said["pairings"]["cam2"] == {"offset_ms": 1.5, "uncertainty_ms": 0.5}
    assert said["reasons"][0]["code"] == "defect.open"
    seen = said["looks"][0]
    assert seen["boxes"] == [
        {"xyxy": [10.0, 10.0, 30.0, 40.0], "confidence": float(np.float32(0.9)), "class_id": 0, "class_name": "open"}
    ]
    assert seen["gate"]["sharpness"] == 123.4
    assert seen["stage_ms"] == {"gate": 0.1, "predict": 20.5}


def test_a_grey_image_comes_back_bit_by_bit(tmp_path):
    image = textured(3)
    with Rig(tmp_path) as rig:
        [path] = rig.keep(part("REVIEW", image=image))
    assert np.array_equal(cv2.imread(str(tmp_path / path / "cam1.png"), cv2.IMREAD_UNCHANGED), image)


@pytest.mark.parametrize(
    ("kinds", "expected", "why"),
    [
        (["NG", "REVIEW", "RETAKE"], [True] * 3, "each of them is worth a look"),
        (["deadline", "processing_fault"], [True] * 2, "losses that have frames"),
        (["OK"] * 5, [False, True, False, True, False], "each second one that passed"),
        (["OK", "NG", "OK"], [False, True, True], "what failed does not count in the sample"),
    ],
)
def test_what_is_kept(tmp_path, kinds, expected, why):
    with Rig(tmp_path) as rig:
        paths = rig.keep(*[part(kind, n) for n, kind in enumerate(kinds, 1)])
    assert [bool(path) for path in paths] == expected, why
    assert rig.held() == sorted(path for path in paths if path)


@pytest.mark.parametrize(
    ("settings", "kind", "cameras", "why"),
    [
        (EvidenceSettings(use=False), "NG", ("cam1",), "it is switched off"),
        (EvidenceSettings(ok_every=0), "OK", ("cam1",), "no sample is wanted"),
        (EvidenceSettings(), "overrun", (), "there is no frame of it"),
    ],
)
def test_what_is_not_kept(tmp_path, settings, kind, cameras, why):
    evidence = Evidence(tmp_path, settings, FakeClock(), Served(ABOUT, draw))
    assert [evidence.keep(part(kind, n, cameras=cameras)) for n in range(200)] == [""] * 200, why


@pytest.mark.parametrize(
    ("serial", "why"),
    [
        ("../../etc/passwd", "a way out of the folder"),
        ("..", "the folder above"),
        ("a/b\\c", "separators"),
        ("x" * 500, "longer than a file's name may be"),
        ("Teil-äöü-日本", "not ASCII"),
        ("\udcff\udc80", "bytes that are no text"),
        ("a\x00b\nc", "control characters"),
        ("-rf *", "an option, a wildcard"),
        ("SN.", "ends in a point, which Windows drops"),
    ],
)
def test_any_serial_can_be_a_name(tmp_path, serial, why):
    with Rig(tmp_path) as rig:
        [path] = rig.keep(part("NG", 1, serial))
    assert (tmp_path / path / "part.json").is_file(), why
    assert len(Path(path).parts) == 3
    assert (tmp_path / path).resolve().is_relative_to(tmp_path.resolve())
    with Rig(tmp_path) as again:  # and it is known again after a restart
        assert again.evidence.settled(WAIT_S)
        again.keep(part("NG", 2))
        assert again.evidence.counts().files == 2


@settings(max_examples=40)
@given(st.text(), st.text())
def test_two_serials_never_share_a_name(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)
    assert evidence_folder._PART.fullmatch(Path(path_of("NG", 7, one, TS)).name)


@pytest.mark.parametrize("ts", [0.0, -5.0, 1e18, float(2**62)])
def test_any_clock_gives_a_path(ts):
    assert len(Path(path_of("NG", 1, "s", ts)).parts) == 3


def size_of(folder: Path, path: str) -> int:
    files = [file.stat().st_size for file in (folder / path).iterdir()]
    return BLOCK + sum(-(-size // BLOCK) * BLOCK for size in files)


def test_the_quota_takes_the_least_valuable_and_of_these_the_oldest(tmp_path):
    with Rig(tmp_path / "one", ok_every=1) as rig:
        [path] = rig.keep(part("NG"))
        each = size_of(tmp_path / "one", path)
        assert rig.evidence.counts().bytes == each
    order = ["NG", "OK", "deadline", "RETAKE", "REVIEW", "OK"]
    with Rig(tmp_path / "many", quota_mb=6.5 * each / 1e6, ok_every=1) as rig:
        paths = rig.keep(*[part(kind, n) for n, kind in enumerate(order, 1)])
        assert rig.held() == sorted(paths)
        gone = []
        for n in range(10, 16):
            before = set(rig.held())
            rig.keep(part("NG", n))
            gone += [path.split("/")[1] + path[-2:] for path in before - set(rig.held())]
        assert gone == ["OK02", "OK06", "RETAKE04", "REVIEW05", "NG01", "deadline03"]
        counts = rig.evidence.counts()
        assert sum(counts.evicted.values()) == 6
        assert (counts.evicted["OK"], counts.evicted["RETAKE"], counts.evicted["REVIEW"]) == (2, 1, 1)
        assert counts.files == 6
        assert counts.written == 12
        assert counts.bytes <= 6.5 * each


def test_a_sample_does_not_displace_what_is_worth_more(tmp_path):
    with Rig(tmp_path, quota_mb=0.06, ok_every=1) as rig:
        rig.keep(*[part("NG", n) for n in range(1, 10)])
        before = rig.held()
        rig.keep(part("OK", 20))
        assert rig.held() == before
        assert rig.evidence.counts().evicted["OK"] == 1
        assert rig.evidence.problem() == ""


def test_a_restart_goes_on_with_what_is_there(tmp_path):
    with Rig(tmp_path, ok_every=1) as rig:
        rig.keep(*[part(kind, n) for n, kind in enumerate(["NG", "OK", "OK", "REVIEW"], 1)])
        before = rig.evidence.counts()
    with Rig(tmp_path, quota_mb=before.bytes / 1e6, ok_every=1) as again:
        again.keep(part("NG", 9))
        assert again.evidence.counts().evicted == {"OK": 1}
        assert not any(path.endswith("-000002") for path in again.held()), "the oldest of the least worth"
        assert any(path.endswith("-000003") for path in again.held())


def test_the_oldest_goes_first_over_days_and_restarts(tmp_path):
    days = [TS + 86_400 * k for k in (2, 0, 1)]
    with Rig(tmp_path) as rig:
        rig.keep(*[part("NG", n, ts=ts) for n, ts in enumerate(days, 1)])
    folder = EvidenceFolder(tmp_path, 10**9)
    folder.open()
    assert [folder.make_room("NG") for _ in range(4)] == [True, True, True, False]
    with Rig(tmp_path) as rig:
        rig.keep(*[part("NG", n, ts=ts) for n, ts in enumerate(days, 1)])
    folder.open()
    folder.make_room("NG")
    assert [path[:10] for path in held(tmp_path)] == ["2026-11-27", "2026-11-28"]
    assert not (tmp_path / DAY).exists(), "an empty day does not stay"


def test_files_of_others_are_counted_and_never_touched(tmp_path):
    with Rig(tmp_path, ok_every=1) as rig:
        [path] = rig.keep(part("NG", 1))
    foreign = [
        tmp_path / "notes.txt",
        tmp_path / DAY / "shift.xlsx",
        tmp_path / NG / "look.txt",
        tmp_path / path / "remark.txt",
        tmp_path / path / "crop.png",  # a picture without its pair is none of ours
        tmp_path / "lost+found" / "x",
        tmp_path / DAY / "NG" / "sorted" / "part.json",
        tmp_path / PARTIAL / "mine.txt",
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "part.json").write_text("{}")
    (tmp_path / NG / "143015-000777").symlink_to(outside)
    with Rig(tmp_path, quota_mb=0.11, ok_every=1) as rig:
        rig.keep(*[part("NG", n) for n in range(2, 20)])
        assert rig.evidence.counts().evicted["NG"] > 10
        assert rig.evidence.counts().bytes < 0.11e6 - len(foreign) * BLOCK + 2 * BLOCK
    assert all(file.is_file() for file in foreign)
    assert (outside / "part.json").is_file()
    assert not (tmp_path / path / "part.json").exists(), "of the old part only the remarks are left"


def test_files_of_others_that_take_the_whole_quota_are_told(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"x" * 2_000_000)
    with Rig(tmp_path, quota_mb=1.0) as rig:
        assert rig.evidence.keep(part("NG", 1))
        rig.until(DiskState.FULL)
        assert "taken by files of others" in rig.evidence.problem()
        (tmp_path / "film.mp4").unlink()
        rig.until(DiskState.OK)
        rig.keep(part("NG", 2))
        assert any(path.endswith("000002") for path in rig.held())


def test_a_count_of_parts_that_began_anew_replaces_and_says_so(tmp_path):
    with Rig(tmp_path) as rig:
        rig.keep(part("NG", 1, image=textured(1)), part("NG", 1, image=textured(2)))
        counts = rig.evidence.counts()
        [path] = rig.held()
    assert (counts.files, counts.written, counts.evicted) == (1, 2, {"NG": 1})
    assert np.array_equal(cv2.imread(str(tmp_path / path / "cam1.png"), cv2.IMREAD_UNCHANGED), textured(2))


@pytest.mark.parametrize("name", ["143015-000009-SN9", "143015-000009", "143015-000009~gone", "143015-000009-a~gone"])
def test_what_a_crash_left_half_written_or_half_removed_goes_at_the_start(tmp_path, name):
    half = tmp_path / PARTIAL / name
    half.mkdir(parents=True)
    (half / "cam1.png").write_bytes(b"half")
    with Rig(tmp_path) as rig:
        rig.keep(part("NG", 1))
        assert not half.exists()


def test_the_queue_is_bounded_in_bytes_and_refusals_are_counted(tmp_path):
    slow = threading.Event()

    def slowly(inspection):
        slow.wait(WAIT_S)
        return draw(inspection)

    image = np.zeros((1000, 1000), np.uint8)
    with Rig(tmp_path, most_bytes=3_500_000, draw=slowly) as rig:
        paths = [rig.evidence.keep(part("NG", n, image=image)) for n in range(1, 7)]
        assert [bool(path) for path in paths] == [True] * 3 + [False] * 3
        assert rig.evidence.counts().dropped == 3
        assert rig.evidence.state is DiskState.SLOW
        assert "cannot keep up" in rig.evidence.problem()
        slow.set()
        assert rig.evidence.settled(WAIT_S)
        assert rig.evidence.problem() == ""
        assert rig.held() == sorted(path for path in paths if path)


def test_one_frame_larger_than_the_bound_is_taken_alone(tmp_path):
    with Rig(tmp_path, most_bytes=10_000) as rig:
        assert rig.keep(part("NG", 1, image=np.zeros((200, 200), np.uint8)))[0]


def test_a_part_that_cannot_be_drawn_costs_only_itself(tmp_path):
    def picky(inspection):
        if inspection.frame.number == 1:
            raise ValueError("no")
        return draw(inspection)

    with Rig(tmp_path, draw=picky) as rig:
        rig.keep(part("NG", 1), part("NG", 2))
        assert rig.held() == [f"{NG}/143015-000002"]
        assert rig.evidence.counts().failed == 1


def test_keep_only_hands_over(tmp_path):
    """Nothing is drawn or written in the thread that judges: here no writer runs at all."""
    parts = [part("NG", n, f"SN{n}", ("cam1", "cam2", "cam3")) for n in range(200)]
    evidence = Evidence(tmp_path, EvidenceSettings(), FakeClock(), Served(ABOUT, draw))
    assert all(evidence.keep(one) for one in parts) and list(tmp_path.iterdir()) == []


def noise(number: int, kind: str = "NG"):
    """A part of about 140 kB."""
    return part(kind, number, image=np.random.default_rng(number).integers(0, 256, (256, 256), dtype=np.uint8))


def test_a_full_disk_gives_up_its_own_least_valuable(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk, Rig(disk / "evidence", ok_every=1) as rig:
        rig.keep(*[noise(n, "OK") for n in range(1, 10)])
        rig.keep(*[noise(n, "NG") for n in range(20, 24)])
        counts = rig.evidence.counts()
        assert counts.evicted["OK"] >= 1
        assert "NG" not in counts.evicted
        assert counts.failed == counts.dropped == 0
        assert rig.evidence.problem() == ""
        assert sum("/NG/" in path for path in rig.held()) == 4
        assert counts.files == len(rig.held())


def test_a_disk_that_others_have_filled_is_told_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk, Rig(disk / "evidence") as rig:
        assert rig.evidence.settled(WAIT_S)
        rig.keep(part("NG", 1))  # the folder is there
        rig.evidence._sink.folder.make_room("NG")
        filler = disk / "log"
        with filler.open("wb", 0) as file, pytest.raises(OSError):
            while True:
                file.write(b"x" * 4096)
        assert rig.evidence.keep(noise(2))
        rig.until(DiskState.FULL)
        assert "No space left on device; free some space on it" in rig.evidence.problem()
        assert rig.evidence.settled(WAIT_S), "given up in the end"
        assert rig.evidence.counts().failed == 1
        filler.unlink()
        rig.until(DiskState.OK)
        assert rig.evidence.problem() == ""
        rig.keep(noise(3))
        assert [path[-1] for path in rig.held()] == ["3"]


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True, timeout=10)


def test_a_read_only_disk_is_told_and_recovers(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk, Rig(disk / "evidence") as rig:
        rig.keep(noise(1))
        remount(disk, "ro")
        assert rig.evidence.keep(noise(2))
        rig.until(DiskState.READ_ONLY)
        assert "Read-only file system; mount it writable" in rig.evidence.problem()
        remount(disk, "rw")
        rig.until(DiskState.OK)
        assert rig.evidence.settled(WAIT_S)
        assert [path[-1] for path in rig.held()] == ["1", "2"] or rig.evidence.counts().failed == 1
        rig.keep(noise(3))
        assert [path[-1] for path in rig.held()][-1] == "3"


def test_a_disk_that_is_read_only_at_the_start_recovers_too(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        remount(disk, "ro")
        with Rig(disk / "evidence") as rig:
            rig.until(DiskState.READ_ONLY)
            assert rig.evidence.keep(noise(1))
            remount(disk, "rw")
            assert rig.evidence.settled(WAIT_S)
            assert [path[-1] for path in rig.held()] == ["1"]


def test_stop_on_a_bad_disk_does_not_hang(tmp_path):
    with small_disk(tmp_path / "disk", 8) as disk:
        remount(disk, "ro")
        rig = Rig(disk / "evidence", retry_s=60.0)
        rig.evidence.start()
        rig.until(DiskState.READ_ONLY)
        for n in range(3):
            rig.evidence.keep(noise(n))
        began = time.monotonic()
        assert rig.evidence.stop(5.0)
        assert time.monotonic() - began < 4
        assert rig.evidence.counts().failed == 3


class Scripted:
    """A sink that does what it is told."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self.outcomes = list(outcomes)
        self.written: list[int] = []
        self.gone: list[int] = []

    def begin(self) -> None: ...

    def write(self, item: int) -> None:
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        self.written.append(item)

    def make_room(self, item: int) -> bool:
        return False

    def lost(self, item: int) -> None:
        self.gone.append(item)

    def idle(self, in_trouble: bool) -> None: ...

    def end(self) -> None: ...


def test_an_item_that_no_disk_takes_does_not_stand_in_the_way(tmp_path):
    sink = Scripted(*[OSError(5, "Input/output error")] * ATTEMPTS, None, ValueError("odd"), None)
    spool = Spool("evidence", tmp_path, sink, retry_s=0.001)
    spool.start()
    for item in range(4):
        assert spool.offer(item, 1)
    assert spool.settled(WAIT_S)
    assert spool.stop(WAIT_S)
    assert (sink.written, sink.gone) == ([1, 3], [0, 2])
    assert (spool.failed, spool.dropped) == (2, 0)
    assert not spool.offer(9, 1)


def test_a_stop_that_takes_too_long_counts_what_it_leaves(tmp_path):
    release = threading.Event()
    sink = Scripted()
    sink.write = lambda item: release.wait(WAIT_S)
    spool = Spool("evidence", tmp_path, sink)
    spool.start()
    assert all(spool.offer(item, 1) for item in range(3))
    assert not spool.stop(0.05)
    assert spool.failed == 3
    release.set()
    spool._thread.join(WAIT_S)


WRITER = """
import sys
from pathlib import Path
from tests.parts import part
from tests.test_evidence import ABOUT, draw, noise
from edge.config import EvidenceSettings
from edge.evidence import Evidence, Served
from tests.fakes import FakeClock
evidence = Evidence(Path(sys.argv[1]), EvidenceSettings(quota_mb=2.0), FakeClock(), Served(ABOUT, draw))
evidence.start()
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    evidence.keep(noise(number))
    evidence.settled(5.0)
"""


def kill_writers(folder: Path, times: int) -> None:
    chance = random.Random(7)
    for turn in range(times):
        command = [sys.executable, "-c", WRITER, str(folder), str(turn * 10_000)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.05, 0.4))
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait(10)
            child.stdout.close()
        for path in held(folder):
            record = json.loads((folder / path / "part.json").read_bytes())["part"]
            image = cv2.imread(str(folder / path / "cam1.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(image, noise(record["number"]).inspections[0].frame.image)
            assert len(os.listdir(folder / path)) == 3
    with Rig(folder, quota_mb=2.0) as rig:
        rig.keep(noise(9_999_999))
        counts = rig.evidence.counts()
        assert counts.files == len(rig.held()) > 5
        assert counts.bytes == sum(size_of(folder, path) for path in rig.held()) <= 2e6
        assert os.listdir(folder / PARTIAL) == []


def test_a_kill_leaves_whole_parts_only(tmp_path):
    kill_writers(tmp_path, 2)


@pytest.mark.slow
def test_thirty_kills_leave_whole_parts_only(tmp_path):
    kill_writers(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_folder_of_many_parts_starts_in_seconds(tmp_path):
    for n in range(30_000):
        place = tmp_path / path_of("NG", n, f"SN{n}", TS + n)
        place.mkdir(parents=True)
        for name in ("cam1.jpg", "cam1.png", "part.json"):
            (place / name).touch()
    began = time.monotonic()
    with Rig(tmp_path, quota_mb=10_000) as rig:
        rig.keep(part("NG", 1))
        took_s = time.monotonic() - began
        assert rig.evidence.counts().files == 30_001
    print(f"30,000 parts: {took_s:.1f} s")
    assert took_s < 20  # about 1.5 on an idle machine, and 5 for 100,000


def test_a_look_has_no_features_in_the_queue(tmp_path):
    assert look().features is not None
    evidence = Evidence(tmp_path, EvidenceSettings(), FakeClock(), Served(ABOUT, draw))
    evidence.keep(part("NG"))
    assert evidence._spool._waiting[0][0].part.inspections[0].features is None
