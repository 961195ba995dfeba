"""The path in order: a refused frame is not searched, unless accuracy is being measured."""

import numpy as np
import pytest

from edge.errors import ImageError, PredictorError
from edge.pipeline import Pipeline
from edge.recipe import GateRecipe, Recipe
from edge.records import Detections, VerdictKind
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
