"""An incident is packed whole, read only when it is what it says, and judged again to the last bit."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge import incident, recipe
from edge.capture.simulated import SimulatedSource
from edge.config import Config, RecorderSettings, Runtime, SimulatedCamera, effective
from edge.errors import EdgeError, IncidentError, UsageError
from edge.fuse import fuse, looking
from edge.incident_export import export
from edge.incident_file import MANIFEST, TIMELINE, IncidentReader
from edge.incident_replay import first_difference, replay
from edge.part import Part, Trigger
from edge.part_record import look_of
from edge.predictor import installed_runtimes
from edge.recipes import hash_of
from edge.recorder import Recorder
from edge.recording import pack, segments_in, unpack
from edge.records import Frame, Loss
from edge.serving import open_product
from tests.bundle.tiny_bundle import install
from tests.fakes import FakeClock
from tests.flow.rig import PCB
from tests.parts import look
from tests.test_recorder import SESSION, WRITER, noise, part

CAMERAS = ("top", "side")
START_TS = FakeClock().ts()


def config() -> Config:
    return Config(camera=[SimulatedCamera(id=camera) for camera in CAMERAS])


def judged_part(product, number, which, kind="", serial="") -> Part:
    """A part of two cameras as the line settles it, with frames of the simulated line."""
    made_by = product.recipes.recipes[number % 2]
    bad = 0.0 if kind == "good" else 0.3
    source = SimulatedSource(SimulatedCamera(id="x", seed=3, fault_rate=bad, defect_rate=bad and 0.5))
    pipeline = product.pipeline_of(made_by, time.monotonic_ns)
    ts = START_TS + number
    looks = {
        camera: pipeline.inspect(Frame(source.image(2 * which + k), camera, number, number, ts, f"{camera}-{number}"))
        for k, camera in enumerate(CAMERAS)
    }
    missing: dict[str, str] = {}
    if kind == "one camera":
        del looks["side"]
        missing = {"side": "no frame within 50.0 ms"}
    verdict = fuse(looks, missing, made_by.fusion, looking(made_by.fusion, CAMERAS))
    loss = Loss.DEADLINE if kind == "deadline" else None
    trigger = Trigger(number, serial, made_by.number, number, ts - 0.05, 100 * number)
    return Part(
        number, made_by.name, hash_of(made_by), trigger, tuple(looks.values()), None if loss else verdict, loss, ts,
        missing, {}, "the verdict came too late" if loss else "",
    )  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """A state folder with the recording of a station of two cameras and two recipes."""
    state = tmp_path_factory.mktemp("state")
    own = recipe.load(PCB / "recipe.toml")
    folder = state / "recipes"
    folder.mkdir()
    stricter = msgspec.structs.replace(own.detect, threshold=0.9, class_threshold={})
    for made in (
        msgspec.structs.replace(own, name="pcb-a", number=1),
        msgspec.structs.replace(own, name="pcb-b", number=2, detect=stricter),
    ):
        (folder / f"{made.name}.toml").write_text(recipe.dump(made))
    product = open_product(PCB, Runtime(), recipe_folder=folder, cameras=CAMERAS)
    session = {
        "boot": "b1",
        "version": "0.1.0",
        "config": effective(config()),
        "recipes": {hash_of(each): recipe.dump(each) for each in product.recipes.recipes},
        "product": product.manifest.product,
        "product_version": product.manifest.version,
        "bundle_digest": product.digest,
        "artifact": product.artifact.file,
        "runtime": product.runtime,
    }
    clock = FakeClock()
    recorder = Recorder(state / "recorder", RecorderSettings(), clock, session, classes=product.classes)
    recorder.start()
    for number in range(1, 5):
        kind = "good" if number == 4 else ""
        recorder.note_part(judged_part(product, number, number + (kind == "good"), kind, serial=f"SN{number}"))
        recorder.note_event("overrun", {"trigger": 100 + number})
    recorder.note_part(judged_part(product, 5, 5, "one camera"))
    recorder.note_part(judged_part(product, 6, 6, "deadline"))
    free = judged_part(product, 7, 7)
    first = free.inspections[0]
    recorder.note_part(replace(free, trigger=None, inspections=(first,), verdict=first.verdict))
    recorder.note_part(Part(8, "", "", free.trigger, (), None, Loss.SHUTDOWN, START_TS, detail="the service stops"))
    assert recorder.stop(20.0)
    return state


@pytest.fixture(scope="module")
def packed(recorded) -> Path:
    """Its incident file."""
    out = recorded / "incident.zip"
    export(recorded, 600.0, out, START_TS + 10)
    return out


def rewrite(path: Path, out: Path, edit) -> Path:
    """A forged copy: `edit` changes the members by name, and all hashes are right again."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    manifest = json.loads(members.pop(MANIFEST))
    edit(members)
    manifest["members"] = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    with zipfile.ZipFile(out, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
        target.writestr(MANIFEST, json.dumps(manifest))
    return out


def edit_part(members: dict[str, bytes], number: int, change) -> None:
    lines = [json.loads(line) for line in members[TIMELINE].splitlines()]
    for line in lines:
        if line.get("part") and line["part"]["number"] == number:
            change(line["part"])
    members[TIMELINE] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_an_incident_is_judged_again_to_the_last_bit(packed, tmp_path, capsys):
    more = ("--state", str(packed.parent), "--frames", str(tmp_path / "frames"))
    code = run("replay", str(packed), "--bundle", str(PCB), *more)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "7 parts" in said
    assert "with 12 frames judged again by pcb" in said
    assert "identical: every verdict, box, score and reason, to the last bit" in said
    assert said.count("overrun trigger 10") == 4
    assert "part 6: deadline the verdict came too late" in said
    assert "part 8: shutdown the service stops" in said
    assert "not as it was then" not in said
    pictures = sorted((tmp_path / "frames").iterdir())
    assert len(pictures) == 12
    with closing(IncidentReader(packed)) as reader:
        frame = unpack(reader.read("frames/000001-top.z"), (640, 640))
    assert np.array_equal(cv2.imread(str(tmp_path / "frames" / "000001-top.png"), cv2.IMREAD_UNCHANGED), frame)


def test_the_recording_holds_what_the_test_wants_to_see(packed):
    with zipfile.ZipFile(packed) as file:
        lines = [json.loads(line) for line in file.read(TIMELINE).splitlines()]
        names = file.namelist()
    outcomes = {line["part"]["outcome"] for line in lines if line.get("part")}
    assert {"NG", "RETAKE", "deadline", "shutdown"} <= outcomes
    assert sum(len(x["boxes"]) for line in lines if line.get("part") for x in line["part"]["looks"]) > 5
    assert sum(name.startswith("recipes/") for name in names) == 2
    assert names[-1] == MANIFEST
    assert sum(name.startswith("frames/") for name in names) == 12


def test_an_altered_verdict_is_the_first_difference(packed, tmp_path, capsys):
    def flip(part):
        part["verdict"] = part["outcome"] = "REVIEW" if part["verdict"] != "REVIEW" else "OK"

    forged = rewrite(packed, tmp_path / "forged.zip", lambda members: edit_part(members, 3, flip))
    code = run("replay", str(forged), "--bundle", str(PCB), "--state", str(packed.parent))
    said = capsys.readouterr().out
    assert code == 1
    assert "1 of 7 parts differ; the first difference:" in said
    assert "  part 3 (SN3) at 2027-01-15 08:00:04.000 UTC, verdict: then '" in said
    assert "likely cause: nothing that is known: the file was altered, or one of the two machines is faulty" in said


def test_one_bit_of_one_box_is_a_difference(packed, tmp_path):
    told = []

    def nudge(part):
        for seen in part["looks"]:
            if seen["boxes"] and not told:
                old = np.float32(seen["boxes"][0]["xyxy"][2])
                new = np.nextafter(old, np.float32(1e9))
                seen["boxes"][0]["xyxy"][2] = float(new)
                told.append(f"camera {seen['camera']}, boxes 1 xyxy 3: then {float(new)!r}, now {float(old)!r}")

    def edit(members):
        for number in range(1, 8):
            edit_part(members, number, nudge)

    report = replay(rewrite(packed, tmp_path / "forged.zip", edit), PCB, packed.parent)
    assert report.differing == 1
    assert told[0] in report.first


def test_a_pixel_that_changed_is_named_or_refused(packed, tmp_path):
    with closing(IncidentReader(packed)) as reader:
        entry = next(e for e in reader.entries() if e.part is not None and e.part.looks[0].gate.passed)
    target = entry.frames[0]

    def flip(members):
        image = unpack(members[target.member], tuple(target.shape)).copy()
        image[300, 300] ^= 0x80
        members[target.member] = pack(image)

    report = replay(rewrite(packed, tmp_path / "forged.zip", flip), PCB, packed.parent)
    assert report.differing == 1
    assert f"part {entry.part.number}" in report.first
    assert f"camera {target.camera}, gate sharpness: then" in report.first
    data = bytearray(packed.read_bytes())
    data[data.find(target.member.encode()) + len(target.member) + 50] ^= 1
    bad = tmp_path / "bad.zip"
    bad.write_bytes(data)
    with pytest.raises(IncidentError, match=f"{target.member} is not as it was written"):
        replay(bad, PCB, tmp_path)


@pytest.mark.skipif({"paddlelite", "onnxruntime"} - set(installed_runtimes()) != set(), reason="one runtime only")
def test_another_runtime_is_named_as_the_cause(packed, tmp_path, capsys):
    def prefer(members):
        members["sessions/1.toml"] = members["sessions/1.toml"].replace(b'prefer = "auto"', b'prefer = "onnxruntime"')

    code = run(
        "replay",
        str(rewrite(packed, tmp_path / "forged.zip", prefer)),
        "--bundle",
        str(PCB),
        "--state",
        str(packed.parent),
    )
    said = capsys.readouterr().out
    assert code == 1
    assert "differ; the first difference:" in said
    assert (
        "likely cause: the model's file: detector.x86_64.int8.nb then, detector.onnx now; the runtime: paddle" in said
    )


def test_what_was_held_back_for_a_challenge_is_told_and_no_difference(packed, tmp_path):
    with closing(IncidentReader(packed)) as reader:
        parts = [entry.part for entry in reader.entries() if entry.part is not None]
    good = next(part for part in parts if part.verdict == "OK")

    def hold(part):
        part["verdict"] = part["outcome"] = "RETAKE"
        part["reasons"] = [{"code": "challenge.missed", "text": "MASTER-1 was not found"}]

    forged = rewrite(packed, tmp_path / "forged.zip", lambda members: edit_part(members, good.number, hold))
    report = replay(forged, PCB, packed.parent)
    assert report.identical
    assert any("held back, challenge.missed: MASTER-1" in line for line in report.not_again)


def test_another_bundle_cannot_judge_it(packed, tmp_path):
    with pytest.raises(EdgeError, match="is no class of this bundle"):
        replay(packed, PCB.parent / "ballscrew", tmp_path)
    with pytest.raises(EdgeError, match="no bundle"):
        replay(packed, None, tmp_path)


def renamed(name):
    def edit(members):
        members[name] = b"x"

    return edit


@pytest.mark.parametrize(
    ("edit", "said", "why"),
    [
        (renamed("../evil"), "is no member of such a file", "a way out of the folder"),
        (renamed("/etc/passwd"), "is no member of such a file", "an absolute path"),
        (renamed("frames/000001-..z/x"), "is no member of such a file", "a folder more"),
        (lambda m: m.pop(TIMELINE), "it has no timeline.jsonl", "the timeline is gone"),
        (lambda m: m.update({TIMELINE: b"[1, 2]"}), "timeline.jsonl, line 1", "lines of another kind"),
        (lambda m: m.update({TIMELINE: b'{"a":' * 5000}), "timeline.jsonl, line 1", "nested without end"),
        (lambda m: m.pop("sessions/1.toml"), "sessions/1.toml is missing", "a config is gone"),
        (lambda m: m.update({"sessions/1.json": b"{}"}), "sessions/1.json", "a session that says nothing"),
        (lambda m: m.update({"frames/000001-top.z": b""}), "has 0 bytes", "an empty frame"),
        (lambda m: edit_part(m, 1, lambda p: p.update(looks=p["looks"][:1])), "other frames", "a look is gone"),
        (lambda m: edit_part(m, 1, lambda p: p.update(recipe_hash="0" * 64)), "not in the file", "a recipe is gone"),
    ],
)
def test_a_forged_file_is_refused_with_a_sentence(packed, tmp_path, edit, said, why):
    forged = rewrite(packed, tmp_path / "forged.zip", edit)
    with pytest.raises(IncidentError, match=said) as caught:
        replay(forged, PCB, packed.parent)
    assert "\n" not in str(caught.value), why


def cut(path: Path, out: Path, keep: int) -> Path:
    out.write_bytes(path.read_bytes()[:keep])
    return out


def test_a_file_that_is_none_is_refused(packed, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(IncidentError, match="not an incident file"):
        replay(tmp_path / "notes.txt", PCB, tmp_path)
    with pytest.raises(IncidentError, match="cannot be read: No such file"):
        replay(tmp_path / "none.zip", PCB, tmp_path)
    with pytest.raises(IncidentError, match="cannot be read: Is a directory"):
        replay(tmp_path, PCB, tmp_path)
    for keep in (0, 10, 1000, packed.stat().st_size - 1, packed.stat().st_size // 2):
        with pytest.raises(IncidentError, match="cut short"):
            replay(cut(packed, tmp_path / "cut.zip", keep), PCB, tmp_path)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("timeline.jsonl", "x")
    with pytest.raises(IncidentError, match=r"it has no manifest.json"):
        replay(tmp_path / "other.zip", PCB, tmp_path)


def test_a_file_of_another_version_is_refused(packed, tmp_path):
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "new.zip", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, json.dumps({**json.loads(data), "format": 9}) if name == MANIFEST else data)
    with pytest.raises(IncidentError, match="it has format 9, this edge reads format 1"):
        replay(tmp_path / "new.zip", PCB, tmp_path)


def test_a_member_that_was_altered_is_named(packed, tmp_path):
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(tmp_path / "bad.zip", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b'"OK"', b'"NG"') if name == TIMELINE else data)
    with pytest.raises(IncidentError, match=r"timeline.jsonl is not as it was written: copy or export it again"):
        replay(tmp_path / "bad.zip", PCB, tmp_path)


def test_a_bomb_is_refused_before_it_is_read(packed, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(MANIFEST, b"0" * 50_000_000)
    with pytest.raises(IncidentError, match="larger than the file"):
        replay(bomb, PCB, tmp_path)
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr(MANIFEST, b"{}")
    with pytest.raises(IncidentError, match="compressed or encrypted"):
        replay(small, PCB, tmp_path)
    twice = tmp_path / "twice.zip"
    with zipfile.ZipFile(twice, "w") as target, pytest.warns(UserWarning, match="Duplicate"):
        target.writestr(MANIFEST, b"{}")
        target.writestr(MANIFEST, b"{}")
    with pytest.raises(IncidentError, match="in it twice"):
        replay(twice, PCB, tmp_path)


def test_random_damage_never_ends_in_a_traceback(packed, tmp_path):
    chance, data = random.Random(5), packed.read_bytes()
    path = tmp_path / "bad.zip"
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(chance.choice([1, 1, 4])):
            bad[chance.choice([chance.randrange(len(bad)), len(bad) - 1 - chance.randrange(3000)])] ^= (
                1 << chance.randrange(8)
            )
        path.write_bytes(bad)
        try:
            with closing(IncidentReader(path)) as reader:
                for entry in reader.entries():
                    for frame in entry.frames:
                        unpack(reader.read(frame.member), tuple(frame.shape))
        except IncidentError:
            continue


# Differences, without a model.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"anomaly": 0.25}, "camera cam1, anomaly: then 0.5, now 0.25"),
        ({"anomaly": None}, "camera cam1, anomaly: then 0.5, now nothing"),
        ({"boxes": []}, "camera cam1, boxes: then 1, now 0"),
        ({"verdict": "OK"}, "camera cam1, verdict: then 'NG', now 'OK'"),
        ({"anomaly_map": "ff"}, "camera cam1, anomaly_map: then"),
        ({"reasons": []}, "camera cam1, reasons: then 1, now 0"),
        ({"stage_ms": {}, "captured_ts": 0.0}, ""),
    ],
)
def test_the_first_difference_is_told_in_words(change, said):
    then = look_of(look("NG"), ["open"])
    now = msgspec.structs.replace(look_of(look("NG")), **change)
    assert first_difference(then, now).startswith(said) if said else not first_difference(then, now)


def test_what_is_nearest_to_the_cause_is_told_first():
    then = look_of(look("NG"))
    gate = replace(then.gate, sharpness=float(np.nextafter(then.gate.sharpness, 1e9)))
    now = msgspec.structs.replace(then, gate=gate, verdict="OK", boxes=[])
    assert first_difference(then, now) == "camera cam1, gate sharpness: then 123.4, now 123.40000000000002"


# Export alone.


class Station:
    """A recorder with its state folder."""

    def __init__(self, state: Path) -> None:
        self.state, self.clock = state, FakeClock()
        self.recorder = Recorder(state / "recorder", RecorderSettings(), self.clock, SESSION, retry_s=0.05)
        self.recorder.start()

    def note(self, *numbers: int) -> None:
        for number in numbers:
            self.recorder.note_part(noise(number))
            assert self.recorder.settled(20.0)
            self.clock.advance(1.0)

    def export(self, last_s: float, name: str = "out.zip"):
        return export(self.state, last_s, self.state / name, self.clock.ts())


@pytest.fixture
def station(tmp_path):
    made = Station(tmp_path)
    yield made
    made.recorder.stop(20.0)


def numbers_in(path: Path) -> list[int]:
    with closing(IncidentReader(path)) as reader:
        return [entry.part.number for entry in reader.entries() if entry.part is not None]


def test_only_the_last_minutes_are_packed_while_the_recorder_runs(station):
    station.note(*range(1, 41))
    summary = station.export(10.0)
    assert numbers_in(summary.out) == list(range(31, 41))
    assert (summary.parts, summary.frames, summary.gaps) == (10, 10, [])
    assert "10 parts, 10 frames, 0 events" in summary.told()[0]
    station.note(41)
    assert numbers_in(station.export(3600.0).out) == list(range(1, 42))
    assert [path.name for path in station.state.iterdir() if "partial" in path.name] == []


def test_the_same_recording_gives_the_same_file(station):
    station.note(1, 2, 3)
    at = station.clock.ts()
    one = export(station.state, 60.0, station.state / "one.zip", at).out
    other = export(station.state, 60.0, station.state / "other.zip", at).out
    assert one.read_bytes() == other.read_bytes()


def test_gaps_and_damage_are_told(station):
    station.note(1, 2)
    station.recorder.note_event("gap", {"frames": 7, "parts": 7, "why": "the writer could not keep up"})
    station.note(3)
    station.recorder.stop(20.0)
    [path] = segments_in(station.state / "recorder")
    path.write_bytes(path.read_bytes()[:-100])
    summary = station.export(60.0)
    assert numbers_in(summary.out) == [1, 2]
    assert summary.gaps[0] == "7 frames of 7 parts: the writer could not keep up"
    assert "bytes of the recording are damaged or were cut off by a crash" in summary.gaps[1]


def test_records_whose_session_is_damaged_are_told(station):
    station.note(1, 2)
    station.recorder.stop(20.0)
    [path] = segments_in(station.state / "recorder")
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)
    with pytest.raises(IncidentError, match="nothing was recorded in that time"):
        station.export(60.0)


def test_what_cannot_be_exported_is_told(tmp_path, station):
    with pytest.raises(IncidentError, match=r"there is no recording in .*recorder: No such file"):
        export(tmp_path / "nowhere", 60.0, tmp_path / "x.zip", 0.0)
    (tmp_path / "empty" / "recorder").mkdir(parents=True)
    with pytest.raises(IncidentError, match="the recording is empty"):
        export(tmp_path / "empty", 60.0, tmp_path / "x.zip", 0.0)
    station.note(1)
    station.clock.advance(3600.0)
    with pytest.raises(IncidentError, match="the last was 61 minutes ago: use --last 71m"):
        station.export(60.0)
    assert station.export(4260.0).parts == 1
    with pytest.raises(IncidentError, match=r"cannot be written to .*x.zip: No such file"):
        export(station.state, 1e6, tmp_path / "no" / "folder" / "x.zip", station.clock.ts())
    assert not (tmp_path / "x.zip.partial").exists()


def test_sessions_are_kept_apart(tmp_path):
    clock = FakeClock()
    for boot in ("a", "b", "a"):
        recorder = Recorder(tmp_path / "recorder", RecorderSettings(), clock, {**SESSION, "boot": boot})
        recorder.start()
        recorder.note_part(part("OK", 1))
        recorder.stop(20.0)
    summary = export(tmp_path, 60.0, tmp_path / "x.zip", clock.ts())
    with closing(IncidentReader(summary.out)) as reader:
        assert [entry.session for entry in reader.entries()] == [1, 2, 1]
        assert reader.manifest.sessions == 2


def test_a_part_without_frames_is_nothing_to_judge(tmp_path, station):
    station.recorder.note_part(part("overrun", 1, cameras=()))
    assert station.recorder.settled(20.0)
    with pytest.raises(IncidentError, match="holds no frame that was judged"):
        replay(station.export(60.0).out, PCB, tmp_path)


def test_after_a_kill_all_that_was_written_is_exported(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "recorder"), "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    while_it_runs = export(tmp_path, 600.0, tmp_path / "a.zip", time.time())
    child.send_signal(signal.SIGKILL)
    child.wait(10)
    last = max(int(line) for line in child.stdout.read().split())
    child.stdout.close()
    after = export(tmp_path, 600.0, tmp_path / "b.zip", time.time())
    assert last in numbers_in(after.out)
    assert while_it_runs.parts > 0
    assert set(numbers_in(while_it_runs.out)) <= set(numbers_in(after.out)) or after.parts >= 30


# The command line.


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    incident.add_arguments(parser)
    options = parser.parse_args(words)
    return options.command(options)


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 m", "0s", "1e3s", "ten", "5w", "m10"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="is not a time"):
        incident.duration_s(text)


def test_export_by_the_command_line(station, capsys, tmp_path):
    station.note(1)
    seconds = int(time.time() - START_TS) + 10**8  # this recording's clock is not of today
    assert run("export", "--state", str(tmp_path), "--last", f"{seconds}s", "--out", str(tmp_path / "i.zip")) == 0
    assert "1 parts, 1 frames" in capsys.readouterr().out
    assert numbers_in(tmp_path / "i.zip") == [1]


def test_the_installed_bundle_of_that_digest_is_taken(recorded, packed, tmp_path):
    from edge.incident_replay import _installed

    with closing(IncidentReader(packed)) as reader:
        digest = reader.session(1).bundle_digest
    install(PCB, tmp_path)
    install(PCB.parent / "ballscrew", tmp_path)
    assert _installed(tmp_path, digest).resolve().name.startswith("pcb-")
    assert _installed(tmp_path, "0" * 64).resolve().name.startswith("ballscrew-")
