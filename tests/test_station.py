"""Every trigger ends once, durably, whatever fails; alarms begin and end."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import ledger
from edge.capture.intake import Taken
from edge.config import Publishing
from edge.errors import EdgeError, PredictorError
from edge.event import Topics
from edge.outbox import Outbox
from edge.pipeline import Pipeline
from edge.recipe import GateRecipe, Recipe
from edge.records import Detections, Loss, VerdictKind
from edge.station import FAULTS_BEFORE_RESTART, FRAMES_TO_TRUST, Serving, Station
from tests.fakes import FakeClock, FakeWire, FullStore, ScriptedDetector, decoded, flat, found, frame, textured

TOPICS = Topics("edge", "s", "l", "n")


class Rig:
    """A station on a real outbox."""

    def __init__(self, folder, *answers, connected=True, image_every_s=1.0):
        self.clock, self.wire, self.captured = FakeClock(), FakeWire(connected), 4
        self.outbox = Outbox(folder / "outbox.db", 10_000_000, "boot", self.clock)
        self.store = FullStore(self.outbox)
        self.detector = ScriptedDetector(*answers)
        recipe = Recipe(gate=GateRecipe(sharpness_min=10))
        self.station = Station(
            Pipeline(self.detector, recipe, ["open"], self.clock.mono_ns),
            Serving(("open",), 0.3, "digest"),
            self.store,
            self.wire,
            TOPICS,
            self.clock,
            Publishing(image_every_s=image_every_s),
            ledger.empty(),
            0,
            lambda: self.captured,
        )

    def settle(self, image, number=1, overruns=0, faults=0):
        taken = Taken(frame(image, number), overruns, faults, "cam1" if faults else "", "cut.jpg is truncated")
        return self.station.settle(taken)

    def stored(self, ending=""):
        rows = self.outbox.pending(0, 1000)
        return [decoded(row.payload) for row in rows if row.topic.endswith(ending)]


@pytest.fixture
def rig(tmp_path):
    made = []

    def make(*answers, **keywords):
        made.append(Rig(tmp_path, *answers, **keywords))
        return made[-1]

    yield make
    for r in made:
        r.outbox.close()


def test_a_verdict_and_its_ledger_are_stored_together(rig):
    r = rig(found(0.9))
    inspection = r.settle(textured())
    assert inspection.verdict.kind is VerdictKind.NG
    (result,) = r.stored("/result")
    assert result["verdict"] == "NG" and result["part"] == 1 and result["reasons"][0]["code"] == "defect.open"
    assert result["detections"][0] == {"xyxy": [10, 10, 30, 40], "class_name": "open", "confidence": 0.9}
    counts, parts = r.outbox.ledger()
    assert counts == r.station.counts and parts == 1


def test_drops_are_counted_with_the_next_frame(rig):
    r = rig(Detections.none())
    r.settle(textured(), overruns=2, faults=1)
    counts = r.station.counts
    assert counts.triggers == 4 and counts.losses["overrun"] == 2 and counts.losses["capture_fault"] == 1


def test_a_refused_frame_is_told_twice_as_result_and_reject(rig):
    r = rig(found(0.9))
    r.settle(flat())
    assert r.stored("/result")[0]["verdict"] == "RETAKE"
    assert r.stored("/reject")[0]["cause"] == "occluded"


def test_a_row_of_refusals_is_an_alarm_that_ends_with_a_good_frame(rig):
    r = rig(Detections.none())
    for number in range(1, 5):
        r.settle(flat(), number)
    assert [a["code"] for a in r.stored("refusing_cam1")] == ["refusing_cam1"], "told once"
    r.settle(textured(), 5)
    assert r.wire.cleared == [TOPICS.alarm("refusing_cam1")]


def test_an_image_of_another_format_is_a_capture_fault_with_an_alarm(rig):
    r = rig(Detections.none())
    assert r.settle(np.zeros((8, 8), np.uint16)) is None
    assert r.station.counts.losses["capture_fault"] == 1
    assert "uint16" in r.stored("format_cam1")[0]["text"]
    r.settle(textured())
    assert r.wire.cleared == [TOPICS.alarm("format_cam1")]


def test_an_unexpected_error_is_a_named_loss_not_a_crash(rig):
    r = rig(ZeroDivisionError("division by zero"), Detections.none())
    assert r.settle(textured(), 1) is None
    assert r.station.counts.losses["processing_fault"] == 1
    assert "ZeroDivisionError" in r.stored("inference")[0]["text"]
    assert r.settle(textured(), 2) is not None


def test_a_model_that_always_fails_ends_the_process(rig):
    r = rig(PredictorError("the runtime is gone"))
    for number in range(1, FAULTS_BEFORE_RESTART):
        r.settle(textured(), number)
    with pytest.raises(EdgeError, match="the runtime is gone"):
        r.settle(textured(), FAULTS_BEFORE_RESTART)
    assert r.station.counts.balanced and r.station.counts.losses["processing_fault"] == FAULTS_BEFORE_RESTART


def test_without_room_there_is_no_verdict_but_a_named_loss(rig):
    r = rig(found(0.9))
    r.store.full = True
    assert r.settle(textured()) is None
    counts = r.station.counts
    assert counts.losses["processing_fault"] == 1 and sum(counts.verdicts.values()) == 0 and r.station.parts == 0
    assert r.wire.told[-1][1].code == "outbox", "told live, since it cannot be stored"
    r.store.full = False
    assert r.settle(textured(), 2) is not None
    assert r.stored("/result")[0]["part"] == 1
    assert TOPICS.alarm("outbox") in r.wire.cleared


def test_images_are_rate_limited_by_camera(rig):
    r = rig(found(0.9))
    for _ in range(3):
        r.settle(textured())
        r.clock.advance(0.6)
    assert len(r.wire.images) == 2, "at 0 s and at 1.2 s"
    picture = cv2.imdecode(np.frombuffer(r.wire.images[0][1], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (64 + 24, 64, 3)


@pytest.mark.parametrize(("connected", "every_s"), [(False, 1.0), (True, 0.0)])
def test_no_image_is_drawn_for_nobody(rig, connected, every_s):
    r = rig(found(0.9), connected=connected, image_every_s=every_s)
    r.settle(textured())
    assert r.wire.images == []


def test_health_tells_the_period_and_begins_the_next(rig):
    r = rig(Detections.none())
    for number in range(1, 5):
        r.settle(textured(), number)
        r.clock.advance(0.5)
    health = r.station.health()
    assert health.fps == 2.0 and health.balanced and health.ledger.triggers == 4 and health.outbox.depth == 4
    assert {"gate", "predict", "decide", "commit", "latency"} <= set(health.stages)
    assert r.station.health().stages == {}


STEP = st.tuples(
    st.sampled_from(["good", "flat", "deep", "fails", "nothing"]), st.integers(0, 3), st.integers(0, 3), st.booleans()
)


@settings(max_examples=40, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_the_ledger_holds_over_any_history(tmp_path_factory, steps):
    """Triggers in equal triggers out, what is stored equals what is counted, in every order of faults."""
    r = Rig(tmp_path_factory.mktemp("station"), Detections.none())
    images = {"good": textured(), "fails": textured(), "flat": flat(), "deep": np.zeros((8, 8), np.uint16)}
    expected = 0
    for what, overruns, faults, full in steps:
        r.store.full = full
        r.detector.answers = [PredictorError("gone") if what == "fails" else Detections.none()]
        taken = Taken(frame(images[what]) if what in images else None, overruns, faults, "cam1", "gone")
        expected += overruns + faults + (what in images)
        try:
            r.station.settle(taken)
        except EdgeError:
            assert what == "fails"
        counts = r.station.counts
        assert counts.balanced and counts.triggers == expected
        assert len(r.stored("/result")) == sum(counts.verdicts.values()) == r.station.parts
    r.store.full = False
    r.station.lose(Loss.SHUTDOWN, 1)
    r.station.save()
    assert r.outbox.ledger() == (r.station.counts, r.station.parts)
    r.outbox.close()


def test_what_is_captured_and_not_settled_is_in_flight(rig):
    r = rig(Detections.none())
    r.settle(textured())
    assert (r.station.health().in_flight, r.station.health().balanced) == (3, True)
    r.captured = 0
    assert not r.station.health().balanced, "more was settled than captured"


def test_one_bad_file_in_a_loop_is_one_alarm(rig):
    r = rig(Detections.none())
    for number in range(1, FRAMES_TO_TRUST):
        r.settle(textured(), number, faults=number % 2)
    assert len(r.stored("capture_cam1")) == 1 and r.wire.cleared == []
    for number in range(FRAMES_TO_TRUST):
        r.settle(textured(), number)
    assert r.wire.cleared == [TOPICS.alarm("capture_cam1")]


@pytest.mark.parametrize("shape", [(16, 5120), (9000, 16), (66000, 640)])
def test_an_image_of_any_shape_can_be_shown(rig, shape):
    r = rig(found(0.9))
    r.settle(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert len(r.wire.images) == 1


@pytest.mark.parametrize("shape", [(1, 640), (640, 1)])
def test_a_frame_of_one_line_is_a_named_loss_with_an_alarm_and_passes_no_part(rig, shape):
    r = rig(Detections.none())
    assert r.settle(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)) is None
    assert r.station.counts.losses["capture_fault"] == 1
    assert "check the camera's resolution" in r.stored("/alarm/format_cam1")[0]["text"]


def test_a_picture_that_cannot_be_drawn_is_no_reason_to_stop(rig, monkeypatch, caplog):
    r = rig(found(0.9))
    monkeypatch.setattr("edge.station.annotate", lambda *_: 1 / 0)
    assert r.settle(textured()) is not None
    assert r.wire.images == [] and "cannot be shown" in caplog.text


def test_a_name_that_is_not_text_is_settled_all_the_same(rig):
    r = rig(Detections.none())
    name = b"Pr\xfcfling.png".decode("utf-8", "surrogateescape")
    taken = Taken(replace(frame(textured()), name=name), 0, 0)
    assert r.station.settle(taken) is not None
    assert r.stored("/result")[0]["name"] == "Pr?fling.png"
