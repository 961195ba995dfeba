"""Overlap and suppression, against hand-made cases and a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.boxes import clip, iou_matrix, nms


@pytest.mark.parametrize(
    ("a", "b", "iou", "why"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0, "same box"),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0, "touching"),
        ([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175, "a quarter each"),
        ([0, 0, 10, 10], [2, 2, 4, 4], 0.04, "inside"),
        ([3, 3, 3, 9], [3, 3, 3, 9], 0.0, "no area: 0, not NaN"),
        ([9, 9, 1, 1], [0, 0, 10, 10], 0.0, "inside out"),
    ],
)
def test_iou(a, b, iou, why):
    assert iou_matrix(np.array([a], np.float32), np.array([b], np.float32))[0, 0] == pytest.approx(iou), why


def slow_nms(boxes, confidence, classes, threshold, most):
    order = sorted(range(len(boxes)), key=lambda i: -confidence[i])
    kept = []
    for i in order:
        overlaps = (iou_matrix(boxes[i : i + 1], boxes[j : j + 1])[0, 0] for j in kept if classes[i] == classes[j])
        if all(o <= threshold for o in overlaps):
            kept.append(i)
    return kept[:most]


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.sampled_from([0.2, 0.5, 0.8]), st.sampled_from([3, 100]))
def test_nms_agrees_with_a_slow_one(seed, n, threshold, most):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, (n, 2))
    boxes = np.hstack([start, start + rng.uniform(1, 40, (n, 2))]).astype(np.float32)
    confidence, classes = rng.random(n).astype(np.float32), rng.integers(0, 3, n)
    kept = nms(boxes, confidence, classes, threshold, most)
    assert kept.tolist() == slow_nms(boxes, confidence, classes, threshold, most)


def test_nms_of_nothing():
    assert len(nms(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), 0.5, 10)) == 0


def test_clip():
    assert clip(np.array([[-5, -5, 50, 5]], np.float32), 20, 10).tolist() == [[0, 0, 20, 5]]
