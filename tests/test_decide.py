"""Verdicts follow the recipe's thresholds; doubt never passes a part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.decide import counting, decide, refuse
from edge.recipe import DetectRecipe
from edge.records import Cause, Detections, GateResult, Scores, VerdictKind

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


SIZE = (200, 100)  # width, height: a frame that is not square


def box_at(x, y, confidence=0.9, class_name="open"):
    """One box of 20 x 10 px around a centre."""
    xyxy = np.array([[x - 10, y - 5, x + 10, y + 5]], np.float32)
    return Detections(xyxy, np.array([confidence], np.float32), np.array([CLASSES.index(class_name)], np.int64))


@pytest.mark.parametrize(
    ("x", "y", "kind", "why"),
    [
        (150, 50, VerdictKind.NG, "well inside"),
        (50, 50, VerdictKind.OK, "left of it"),
        (150, 95, VerdictKind.OK, "below it: shares of the height, not of the width"),
        (95, 50, VerdictKind.OK, "its right half reaches in, its centre does not"),
        (105, 50, VerdictKind.NG, "its left half reaches out"),
        (100, 20, VerdictKind.NG, "exactly at the corner"),
        (200, 80, VerdictKind.NG, "at the frame's edge, where the region ends too"),
    ],
)
def test_a_box_counts_when_its_centre_is_in_the_region(x, y, kind, why):
    recipe = DetectRecipe(region=(0.5, 0.2, 0.5, 0.6))
    assert decide(box_at(x, y), recipe, CLASSES, size=SIZE).kind is kind, why


def test_a_region_up_to_the_edge_by_shares_that_come_out_a_hair_less():
    recipe = DetectRecipe(region=(0.1, 0.7, 0.7, 0.3))
    assert decide(box_at(100, 100), recipe, CLASSES, size=SIZE).kind is VerdictKind.NG


@pytest.mark.parametrize(
    ("classes", "kind", "why"),
    [
        ([], VerdictKind.NG, "all count"),
        (["open", "short"], VerdictKind.NG, "both are named"),
        (["short"], VerdictKind.REVIEW, "the sure one does not count, the doubtful one does"),
        (["open"], VerdictKind.NG, "the sure one counts"),
    ],
)
def test_only_the_classes_of_the_recipe_count(classes, kind, why):
    recipe = DetectRecipe(classes=classes)
    verdict = decide(found(("open", 0.9), ("short", 0.4)), recipe, CLASSES)
    assert verdict.kind is kind, why
    assert all(reason.code.split(".")[1] in (classes or CLASSES) for reason in verdict.reasons)


def test_what_does_not_count_is_not_even_doubtful():
    assert decide(found(("short", 0.4)), DetectRecipe(classes=["open"]), CLASSES).kind is VerdictKind.OK


def test_an_anomaly_counts_wherever_it_is():
    recipe = DetectRecipe(classes=["short"], region=(0.0, 0.0, 0.1, 0.1))
    verdict = decide(box_at(150, 50), recipe, CLASSES, Scores(9.0, 5.0), SIZE)
    assert verdict.kind is VerdictKind.REVIEW and verdict.reasons[0].code == "anomaly"


def test_a_region_without_the_size_of_the_frame_is_refused_not_ignored():
    with pytest.raises(ValueError, match="frame's size is needed"):
        decide(Detections.none(), DetectRecipe(region=(0, 0, 0.5, 1)), CLASSES)


share = st.floats(0, 1)
boxes_of = st.lists(st.tuples(st.floats(0, 200), st.floats(0, 100), share, st.sampled_from(CLASSES)), max_size=8)


@given(boxes=boxes_of, x=share, y=share, wide=share, high=share, classes=st.lists(st.sampled_from(CLASSES)))
def test_the_verdict_is_that_of_the_boxes_that_count(boxes, x, y, wide, high, classes):
    made = [box_at(cx, cy, confidence, name) for cx, cy, confidence, name in boxes] or [Detections.none()]
    detections = Detections(
        *(np.concatenate([getattr(d, k) for d in made]) for k in ("xyxy", "confidence", "class_id"))
    )
    recipe = DetectRecipe(region=(x, y, wide, high), classes=classes)
    counted = counting(detections, recipe, CLASSES, SIZE)
    plain = DetectRecipe()
    assert decide(detections, recipe, CLASSES, size=SIZE) == decide(counted, plain, CLASSES)
    assert set(counted.class_id.tolist()) <= {CLASSES.index(name) for name in classes or CLASSES}
    order = [VerdictKind.OK, VerdictKind.REVIEW, VerdictKind.NG]
    assert order.index(decide(counted, plain, CLASSES).kind) <= order.index(decide(detections, plain, CLASSES).kind)
