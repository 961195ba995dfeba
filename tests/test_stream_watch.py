"""What watches the stream keeps its word over restarts, failures and full disks, and never stands in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.drift.learn import Learning
from edge.drift.report import evidence_name
from edge.drift.settings import Autoencoder
from edge.errors import PredictorError
from edge.judges import Judges
from edge.recipe import DriftRecipe, GateRecipe, Recipe
from edge.records import Detections, Frame, GateResult, Inspection, Scores, Verdict, VerdictKind
from edge.stream_watch import ANSWERS_TO_TRUST, MOMENT_FRAMES, STATE, Notice, StreamWatch
from tests.fakes import FakeClock

LEARNED = Learning().frames


class Line:
    """A camera's frames in time, and what watches them."""

    def __init__(self, folder: Path, judges: Judges | None = None, recipe: Recipe | None = None) -> None:
        self.folder, self.judges, self.recipe = folder, judges or Judges(), recipe or Recipe()
        self.classes: tuple[str, ...] = ("open",)
        self.model = "first"
        self.clock = FakeClock()
        self.rng = np.random.default_rng(4)
        self.number = 0
        self.start()

    def start(self) -> None:
        self.watch = StreamWatch(self.judges, self.recipe, self.classes, self.folder, self.clock, self.model)

    def inspection(self, level: float = 128.0, size: int = 64, ahead_s: float = 0.0) -> Inspection:
        self.number += 1
        self.clock.advance(1)
        grey = np.clip(self.rng.normal(level, 20, (size, size)), 0, 255).astype(np.uint8)
        frame = Frame(grey, "cam1", self.number, self.clock.mono_ns(), self.clock.ts() + ahead_s)
        gate = GateResult(True, None, 900.0, float(grey.mean()), 0.0)
        return Inspection(frame, gate, Detections.none(), Scores(), Verdict(VerdictKind.OK))

    def run(self, frames: int, **how: float) -> list[Notice]:
        return [n for _ in range(frames) for n in self.watch.look(self.inspection(**how))]  # type: ignore[arg-type]

    def status(self) -> str:
        return self.watch.messages()[0].status


def codes(notices: list[Notice]) -> list[tuple[str, bool]]:
    return [(notice.code, notice.alarm is not None) for notice in notices]


def test_a_product_that_was_never_calibrated_learns_says_so_and_then_watches(tmp_path: Path) -> None:
    line = Line(tmp_path)
    assert line.run(1) == [] and line.status() == "learning"
    assert "Nothing is known of drift" in line.watch.messages()[0].text
    assert line.run(LEARNED - 1) == [] and line.status() == "watching"


def test_what_moves_is_an_alarm_with_evidence_until_it_is_back(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 50)
    notices = line.run(60, level=112.0)
    assert ("drift_cam1_brightness", True) in codes(notices)
    alarm = next(n.alarm for n in notices if n.code == "drift_cam1_brightness")
    assert alarm is not None and "darker: 12" in alarm.text and "lamps" in alarm.advice
    message = line.watch.messages()[0]
    assert message.status == "drifted" and message.evidence == str(tmp_path / "cam1")
    kept = sorted(path.name for path in (tmp_path / "cam1").glob("brightness-*.jpg"))
    moved = next(m for m in message.moved if m.signal == "brightness")
    assert kept == sorted(evidence_name("brightness", ref) for ref in moved.kept) and len(kept) == 3
    assert moved.since is not None and abs(moved.since.number - (LEARNED + 51)) <= 2
    assert ("drift_cam1_brightness", False) in codes(line.run(400)), "and it is over when the light is back"


def test_a_restart_neither_forgets_the_baseline_nor_the_drift(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 50)
    line.run(60, level=112.0)
    line.watch.save()
    line.start()
    line.run(1, level=112.0)
    message = line.watch.messages()[0]
    assert message.status == "drifted" and "brightness" in [m.signal for m in message.moved]
    assert message.origin == "learned from cam1"


def test_what_stands_is_an_alarm_again_after_a_restart_and_ends_when_it_is_over(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 50)
    line.run(60, level=112.0)
    line.watch.save()
    line.start()
    notices = line.run(1, level=112.0)
    assert codes(notices) == [("drift_cam1_brightness", True)], "a new process has no alarm of the last one's"
    assert notices[0].alarm is not None and "darker: 12" in notices[0].alarm.text and "lamps" in notices[0].alarm.advice
    assert line.run(5, level=112.0) == [], "once"
    assert ("drift_cam1_brightness", False) in codes(line.run(400))


def test_what_was_learned_of_another_model_is_no_baseline(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 50)
    line.watch.save()
    line.model = "second"
    line.start()
    notices = line.run(1)
    assert codes(notices) == [("drift_cam1_state", True)] and line.status() == "learning"
    assert notices[0].alarm is not None and "the model is a new one" in notices[0].alarm.text
    assert line.watch._cameras["cam1"].state()["trend"]["seen"] > LEARNED, "the lens is the same"


@pytest.mark.parametrize("drift", [None, 7, [], {}])
@pytest.mark.parametrize("trend", [None, 7, [1], {}])
def test_a_state_of_another_shape_stops_nothing(tmp_path: Path, drift: object, trend: object) -> None:
    (tmp_path / STATE).write_text(json.dumps({"cam1": {"drift": drift, "trend": trend}}))
    assert codes(Line(tmp_path).run(1)) == [("drift_cam1_state", True)]


def test_it_saves_by_itself_every_minute(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(61)
    assert json.loads((tmp_path / STATE).read_text())["cam1"]["trend"]["seen"] > 50


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cam1": 7}', '{"cam1": {"drift": {"format": 9}, "trend": {}}}'])
def test_a_damaged_state_is_told_and_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    line = Line(tmp_path)
    line.run(LEARNED)
    assert line.status() == "watching"


def test_another_resolution_and_a_jump_of_the_clock_are_told_for_a_while(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 10)
    begun = codes(line.run(1, size=80))
    assert ("drift_cam1_resolution", True) in begun and line.status() == "learning", "no calm is claimed"
    assert ("drift_cam1_clock", True) in codes(line.run(1, size=80, ahead_s=7200.0))
    assert ("drift_cam1_resolution", False) in codes(line.run(MOMENT_FRAMES, size=80))


def test_frames_of_two_sizes_in_turn_are_one_alarm(tmp_path: Path) -> None:
    line = Line(tmp_path)
    notices = [n for k in range(2 * MOMENT_FRAMES) for n in line.run(1, size=64 if k % 2 else 80)]
    assert codes(notices) == [("drift_cam1_resolution", True)]
    assert ("drift_cam1_resolution", False) in codes(line.run(MOMENT_FRAMES + 1, size=80))


def test_frames_of_one_grey_are_an_alarm_for_as_long_as_they_are(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(5)
    notices = []
    for _ in range(3 * MOMENT_FRAMES):
        judged = line.inspection()
        grey = np.full_like(judged.frame.image, 99)
        notices += line.watch.look(replace(judged, frame=replace(judged.frame, image=grey)))
    assert codes(notices) == [("drift_cam1_constant", True)]
    assert ("drift_cam1_constant", False) in codes(line.run(MOMENT_FRAMES + 1))


def test_a_product_without_classes_is_watched_for_all_the_rest(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.classes = ()
    line.start()
    line.run(LEARNED + 50)
    assert line.status() == "watching"
    assert ("drift_cam1_brightness", True) in codes(line.run(60, level=112.0))


class Broken:
    """An autoencoder whose answer is no number, while it is broken."""

    providers = ()
    broken = True

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        if self.broken:
            raise PredictorError("the drift autoencoder answered with numbers that are not finite")
        return [tensor.copy()]


@pytest.mark.parametrize("every", [1, 10])
def test_an_autoencoder_that_fails_is_told_once_and_the_rest_goes_on(tmp_path: Path, every: int) -> None:
    learner = Line(tmp_path / "a")
    learner.run(LEARNED + 5)
    settings = learner.watch._cameras["cam1"].monitor.settings
    assert settings is not None
    settings = msgspec.structs.replace(settings, autoencoder=Autoencoder(width=16, height=16))
    autoencoder = Broken()
    line = Line(tmp_path / "b", Judges(drift=settings, autoencoder=autoencoder), Recipe(drift=DriftRecipe(every=every)))
    notices = codes(line.run(3 * MOMENT_FRAMES))
    assert notices == [("drift_cam1_autoencoder", True)], "and it stands for as long as it fails"
    autoencoder.broken = False
    assert ("drift_cam1_autoencoder", False) in codes(line.run(ANSWERS_TO_TRUST * every))
    assert ("drift_cam1_brightness", True) in codes(line.run(60, level=112.0))


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    line = Line(tmp_path / "file" / "drift")
    line.run(LEARNED + 50)
    assert ("drift_cam1_brightness", True) in codes(line.run(60, level=112.0))
    assert "cannot be written" in caplog.text and "evidence of drift cannot be kept" in caplog.text


def test_a_lens_that_gets_dirty_has_its_cleaning_forecast(tmp_path: Path) -> None:
    line = Line(tmp_path, recipe=Recipe(gate=GateRecipe(sharpness_min=500.0), drift=DriftRecipe(baseline="line")))
    notices = []
    for hour in range(14):
        for _ in range(8):
            judged = line.inspection()
            gate = GateResult(True, None, 900.0 * 0.98**hour, 128.0, 0.0)
            notices += line.watch.look(Inspection(judged.frame, gate, judged.detections, Scores(), judged.verdict))
            line.clock.advance(449)
    text = line.watch.messages()[0].forecast
    assert "sharpness falls by 2.0 % an hour; the lens needs cleaning in about" in text
    assert ("trend_cam1", True) in codes(notices)


def test_a_change_that_is_meant_is_learned_on_request_and_stays_learned(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.run(LEARNED + 50)
    line.run(60, level=112.0)
    assert line.status() == "drifted"
    line.watch.ask_relearn()
    assert ("drift_cam1_brightness", False) in codes(line.run(1, level=112.0))
    assert line.status() == "learning"
    line.run(LEARNED, level=112.0)
    assert line.status() == "watching", "what it is now counts as good"
    line.watch.save()
    line.start()
    assert ("drift_cam1_brightness", True) not in codes(line.run(60, level=112.0))
    assert ("drift_cam1_brightness", True) in codes(line.run(60, level=128.0)), "and the old light is the other one"
