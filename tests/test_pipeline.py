"""The path in order: a refused frame is not searched, unless accuracy is being measured."""

from dataclasses import replace

import numpy as np
import pytest

from edge import event
from edge.annotate import annotate
from edge.errors import ImageError, PredictorError
from edge.pipeline import Pipeline
from edge.recipe import DetectRecipe, GateRecipe, Recipe
from edge.records import Cause, Detections, GateResult, Scores, VerdictKind
from tests.fakes import FakeClock, ScriptedDetector, flat, found, frame, textured

RECIPE = Recipe(gate=GateRecipe(sharpness_min=10))


def pipeline(detector):
    return Pipeline(detector, RECIPE, ["open"], FakeClock().mono_ns)


@pytest.mark.parametrize(
    ("detections", "kind"),
    [(Detections.none(), VerdictKind.OK), (found(0.4), VerdictKind.REVIEW), (found(0.9), VerdictKind.NG)],
)
def test_a_sharp_frame_is_judged_by_what_is_found(detections, kind):
    inspection = pipeline(ScriptedDetector(detections)).inspect(frame(textured()))
    assert inspection.verdict.kind is kind
    assert list(inspection.stage_ms) == ["gate", "predict", "decide"]


def test_a_refused_frame_is_not_searched():
    detector = ScriptedDetector(found(0.9))
    inspection = pipeline(detector).inspect(frame(flat()))
    assert inspection.verdict.kind is VerdictKind.RETAKE and detector.asked == 0 and len(inspection.detections) == 0


def test_a_refused_frame_can_be_searched_all_the_same():
    inspection = pipeline(ScriptedDetector(found(0.9))).inspect(frame(flat()), detect_refused=True)
    assert inspection.verdict.kind is VerdictKind.RETAKE and len(inspection.detections) == 1


def test_an_image_it_cannot_take_is_named_before_anything_is_measured():
    with pytest.raises(ImageError, match="uint16"):
        pipeline(ScriptedDetector(found(0.9))).inspect(frame(np.zeros((8, 8), np.uint16)))


def test_a_failed_runtime_is_not_a_verdict():
    with pytest.raises(PredictorError):
        pipeline(ScriptedDetector(PredictorError("gone"))).inspect(frame(textured()))


class NamesMotion:
    """A classifier that refuses every frame. Implements `edge.pipeline.FrameClassifier`."""

    def judge(self, image, cheap):
        return GateResult(False, Cause.MOTION, cheap.sharpness, cheap.brightness, cheap.saturated, 0.9, 0.5, "Shorten.")


class Foreign:
    """An anomaly judge with one score for every part. Implements `edge.pipeline.FeatureJudge`."""

    def __init__(self, score):
        self.score = score

    def judge(self, features):
        assert features.shape == (1, 2, 4, 4)
        return Scores(self.score, 3.0, np.arange(16, dtype=np.float32).reshape(4, 4))


def judged(detections, image=None, **judges):
    detector = ScriptedDetector(detections)
    line = Pipeline(detector, RECIPE, ["open"], FakeClock().mono_ns, **judges)
    return line.inspect(frame(textured() if image is None else image)), detector


def test_the_classifier_can_refuse_what_the_cheap_measures_pass():
    inspection, detector = judged(found(0.9), classifier=NamesMotion())
    assert inspection.verdict.reasons[0].code == "gate.motion" and detector.asked == 0
    assert list(inspection.stage_ms) == ["gate", "classify", "decide"]


@pytest.mark.parametrize(
    ("detections", "score", "kind", "codes", "why"),
    [
        (Detections.none(), 2.9, VerdictKind.OK, [], "under the limit nothing changes"),
        (Detections.none(), 3.0, VerdictKind.REVIEW, ["anomaly"], "what nobody taught goes to a person"),
        (found(0.4), 3.5, VerdictKind.REVIEW, ["doubt.open", "anomaly"], "two doubts"),
        (found(0.9), 9.0, VerdictKind.NG, ["defect.open"], "what the detector is sure of stays as it is"),
    ],
)
def test_an_anomaly_turns_ok_into_review_and_touches_no_ng(detections, score, kind, codes, why):
    inspection, _ = judged(detections, anomaly=Foreign(score))
    assert inspection.verdict.kind is kind, why
    assert [reason.code for reason in inspection.verdict.reasons] == codes
    assert inspection.detections is detections or len(inspection.detections) == len(detections)
    assert "anomaly" in inspection.stage_ms and inspection.scores.anomaly == score


def test_a_score_that_is_no_number_is_no_verdict():
    with pytest.raises(ValueError, match="finite number, got nan"):
        judged(Detections.none(), anomaly=Foreign(float("nan")))


def test_the_map_lies_on_the_frame_without_the_padding():
    inspection, _ = judged(Detections.none(), anomaly=Foreign(1.0), image=textured()[:, :])
    height, width = inspection.frame.image.shape[:2]
    expected = (4 * height // width if height < width else 4, 4)
    assert inspection.scores.anomaly_map.shape == expected


@pytest.mark.parametrize("size", [(1, 640), (640, 1), (15, 15), (2, 2)])
def test_a_frame_that_can_show_no_part_passes_none(size):
    detector = ScriptedDetector(Detections.none())
    with pytest.raises(ImageError, match=f"is {size[1]}x{size[0]} pixels.*check the camera's resolution"):
        pipeline(detector).inspect(frame(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)))
    assert detector.asked == 0


@pytest.mark.parametrize(
    ("recipe", "counts", "why"),
    [
        (DetectRecipe(), True, "in the frame and sure enough"),
        (DetectRecipe(region=(0.5, 0.5, 0.5, 0.5)), False, "its centre lies elsewhere"),
        (DetectRecipe(classes=["short"]), False, "the recipe is about another class"),
        (DetectRecipe(threshold=0.95, review=0.92, class_threshold={"short": 0.1}), False, "not sure enough, for it"),
    ],
)
def test_a_box_that_does_not_count_is_neither_told_nor_drawn(recipe, counts, why):
    judging = Pipeline(ScriptedDetector(found(0.9)), Recipe(detect=recipe), ["open", "short"], FakeClock().mono_ns)
    seen = judging.inspect(frame(textured(size=200)))
    assert (seen.verdict.kind is VerdictKind.NG) is counts, why
    result = event.result_of(seen, 1, ["open", "short"], 0.1, "digest", 1.0)
    assert [box.class_name for box in result.detections] == ["open"] * counts, why
    bare = annotate(replace(seen, counted=Detections.none()), ["open", "short"], 0.1)
    drawn = (annotate(seen, ["open", "short"], 0.1) != bare).any()
    assert drawn == counts, why
    assert len(seen.detections) == 1, "what was found is kept as it is, for replay"
