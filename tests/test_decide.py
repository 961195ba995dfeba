"""Verdicts follow the recipe's thresholds; doubt never passes a part."""

import numpy as np
import pytest

from edge.decide import decide, refuse
from edge.recipe import DetectRecipe
from edge.records import Cause, Detections, GateResult, VerdictKind

CLASSES = ["open", "short"]
RECIPE = DetectRecipe(threshold=0.5, review=0.3, class_threshold={"short": 0.8})


def found(*pairs):
    n = len(pairs)
    xyxy = np.tile(np.array([10, 20, 40, 60], np.float32), (n, 1))
    confidence = np.array([c for _, c in pairs], np.float32)
    return Detections(xyxy, confidence, np.array([CLASSES.index(k) for k, _ in pairs], np.int64))


@pytest.mark.parametrize(
    ("detections", "kind", "why"),
    [
        (Detections.none(), VerdictKind.OK, "nothing found"),
        (found(("open", 0.29)), VerdictKind.OK, "under the review threshold"),
        (found(("open", 0.30001)), VerdictKind.REVIEW, "at the review threshold"),
        (found(("open", 0.5)), VerdictKind.NG, "at the threshold"),
        (found(("short", 0.79)), VerdictKind.REVIEW, "a class's own threshold is higher"),
        (found(("short", 0.81)), VerdictKind.NG, "over its own threshold"),
        (found(("open", 0.4), ("short", 0.9)), VerdictKind.NG, "the worst rules"),
    ],
)
def test_decide(detections, kind, why):
    verdict = decide(detections, RECIPE, CLASSES)
    assert verdict.kind is kind, why
    assert bool(verdict.reasons) == (kind is not VerdictKind.OK)


def test_a_class_threshold_under_the_review_threshold_counts():
    recipe = DetectRecipe(threshold=0.5, review=0.3, class_threshold={"open": 0.1})
    assert decide(found(("open", 0.15)), recipe, CLASSES).kind is VerdictKind.NG


def test_reason_says_what_and_where():
    reason = decide(found(("open", 0.93)), RECIPE, CLASSES).reasons[0]
    assert reason.code == "defect.open"
    assert reason.text == "open 0.93 at 10,20 size 30x40 px"


def test_a_refused_frame_is_a_retake_with_cause_and_advice():
    gate = GateResult(False, Cause.BLUR, 12.0, 100.0, 0.0, measured=12.0, limit=80.0, advice="Check focus.")
    verdict = refuse(gate)
    assert verdict.kind is VerdictKind.RETAKE
    assert verdict.reasons[0].code == "gate.blur"
    assert verdict.reasons[0].text == "blur: measured 12, limit 80. Check focus."


def test_a_passed_frame_cannot_be_refused():
    with pytest.raises(ValueError, match="cause"):
        refuse(GateResult(True, None, 1.0, 1.0, 0.0))
