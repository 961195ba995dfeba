"""What counts as a difference between two forms of a model, and when it is too large."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edge.recipe import DetectRecipe
from edge.records import Detections
from tools.errors import ToolError
from tools.parity import FP32, INT8, Agreement, accuracy_drops, compare, exceeded, pack, parse_limits, unpack

RECIPE = DetectRecipe(threshold=0.5, review=0.3)
CLASSES = ["hole", "bar"]


def found(*boxes: tuple[float, float, float, int]) -> Detections:
    """Boxes 20x20 as (x, y, confidence, class)."""
    rows = sorted(boxes, key=lambda b: -b[2])
    xyxy = np.array([[x, y, x + 20, y + 20] for x, y, _, _ in rows], np.float32).reshape(-1, 4)
    confidence = np.array([c for _, _, c, _ in rows], np.float32)
    return Detections(xyxy, confidence, np.array([k for *_, k in rows], np.int64))


def against(reference: Detections, other: Detections) -> Agreement:
    return compare([reference], [other], RECIPE, CLASSES)


A = (0.0, 0.0, 0.9, 0)


@pytest.mark.parametrize(
    ("other", "matched", "lost", "extra", "changes", "why"),
    [
        (found(A), 1, 0, 0, {}, "the same"),
        (found((3, 4, 0.9, 0)), 1, 0, 0, {}, "moved by 5 px"),
        (found((15, 0, 0.9, 0)), 0, 1, 1, {}, "moved too far to be the same box"),
        (found((0, 0, 0.9, 1)), 0, 1, 1, {}, "another class is another box"),
        (found(), 0, 1, 0, {"NG to OK": 1}, "lost"),
        (found((0, 0, 0.2, 0)), 1, 0, 0, {"NG to OK": 1}, "under what matters, but still there"),
        (found((0, 0, 0.4, 0)), 1, 0, 0, {"NG to REVIEW": 1}, "under the threshold"),
        (found(A, (60, 0, 0.2, 1)), 1, 0, 0, {}, "a new box that matters to no verdict"),
        (found(A, (60, 0, 0.6, 1)), 1, 0, 1, {}, "a new one that does"),
        (found(A, (1, 0, 0.6, 0)), 1, 0, 1, {}, "each box is matched once"),
    ],
)
def test_boxes_are_matched(
    other: Detections, matched: int, lost: int, extra: int, changes: dict[str, int], why: str
) -> None:
    a = against(found(A), other)
    assert (a.boxes, a.matched, a.lost, a.extra, a.changes) == (1, matched, lost, extra, changes), why


@pytest.mark.parametrize(("size", "changed"), [((100, 100), 0), ((20, 20), 1)])
def test_a_verdict_changes_only_by_boxes_in_the_recipes_region(size: tuple[int, int], changed: int) -> None:
    right = DetectRecipe(region=(0.5, 0.0, 0.5, 1.0))
    assert compare([found(A)], [found()], right, CLASSES, [size]).changed == changed


def test_distances_are_those_of_matched_boxes() -> None:
    reference = found((0, 0, 0.9, 0), (100, 0, 0.8, 1), (200, 0, 0.29, 1))
    a = against(reference, found((3, 4, 0.7, 0), (100, 0, 0.85, 1), (200, 0, 0.99, 1)))
    assert a.boxes == 2, "the third is under what matters in the reference"
    assert a.extra == 0, "and what it became was there before"
    assert a.shift_median_px == pytest.approx(2.5) and a.score_max == pytest.approx(0.2, abs=1e-6)
    assert a.score_mean == pytest.approx((-0.2 + 0.05) / 2, abs=1e-6)
    assert a.iou_median == pytest.approx((1 + 17 * 16 / (800 - 17 * 16)) / 2, abs=1e-4)


def test_two_forms_that_find_nothing_agree() -> None:
    a = compare([found()] * 3, [found()] * 3, RECIPE, CLASSES)
    assert (a.boxes, a.images, a.changed, a.unmatched) == (0, 3, 0, 0.0)
    assert math.isnan(a.iou_median) and a.as_dict()["iou_median"] is None
    assert exceeded("x", FP32, a, a) == []


def test_what_is_over_a_limit_is_named_once_with_its_worst_value() -> None:
    golden, validation = against(found(A), found((2, 0, 0.9, 0))), against(found(A), found((0, 4, 0.2, 0)))
    drops = {"ap33_drop": 0.0021, "class_ap33_drop": 0.0, "map50_drop": -0.1}
    said = exceeded("INT8", INT8, golden, validation, drops, output=1e9)
    names = [sentence.split(": ")[1].split(" is ")[0] for sentence in said]
    assert sorted(names) == ["ap33_drop", "iou", "score_p95", "shift_median_px", "verdicts"]
    assert "INT8: shift_median_px is 4, the limit is 1" in said, "the worse of the two sets"
    assert any(s.startswith("INT8: iou is 0.666") and s.endswith("the limit is 0.9") for s in said)


def test_a_verdict_that_changes_on_a_golden_sample_is_over_the_limit() -> None:
    said = exceeded("x", INT8, against(found(A), found()))
    assert said == ["x: golden_verdicts is 1, the limit is 0"]


def test_a_difference_that_is_no_number_is_over_every_limit() -> None:
    same = against(found(A), found(A))
    assert exceeded("x", FP32, same, same, {"ap33_drop": math.nan}, output=math.nan) == [
        "x: output is nan, the limit is 0.002",
        "x: ap33_drop is nan, the limit is 0.0005",
    ]


def test_accuracy_drops_leave_out_classes_without_labels() -> None:
    base = {"ap33_pooled": 0.9, "map50": 0.8, "ap33": {"hole": 0.9, "bar": math.nan}}
    other = {"ap33_pooled": 0.89, "map50": 0.81, "ap33": {"hole": 0.85, "bar": math.nan}}
    assert {k: round(v, 4) for k, v in accuracy_drops(base, other).items()} == {
        "ap33_drop": 0.01,
        "class_ap33_drop": 0.05,
        "map50_drop": -0.01,
    }


def test_limits_can_be_changed_one_by_one() -> None:
    limits = parse_limits(["int8.ap33_drop=0.01", "fp32.output=0.5"])
    assert limits["int8"].ap33_drop == 0.01 and limits["fp32"].output == 0.5
    assert limits["int8"].iou == INT8.iou and limits["fp32"].ap33_drop == FP32.ap33_drop


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int4.iou=1", "expected PRECISION.NAME=VALUE with fp32 or int8"),
        ("int8.speed=1", "one of output, ap33_drop"),
        ("int8.iou", "'' is not a number"),
        ("int8.iou=much", "'much' is not a number"),
        ("int8.iou=-1", "at least 0"),
        ("int8.iou=nan", "at least 0"),
    ],
)
def test_a_wrong_limit_is_refused(text: str, words: str) -> None:
    with pytest.raises(ToolError, match=words):
        parse_limits([text])


def test_detections_survive_being_packed_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    boxes = Detections(rng.random((9, 4)).astype(np.float32), rng.random(9).astype(np.float32), np.arange(9))
    back = unpack(json.loads(json.dumps(pack(boxes))))
    assert np.array_equal(back.xyxy, boxes.xyxy) and np.array_equal(back.confidence, boxes.confidence)
    assert back.class_id.tolist() == boxes.class_id.tolist()
