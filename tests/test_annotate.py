"""What is drawn on an image: here the anomaly map; boxes and banner are seen through replay's tests."""

import numpy as np
import pytest

from edge.annotate import BANNER_PX, annotate
from edge.records import Detections, Frame, GateResult, Inspection, Reason, Scores, Verdict, VerdictKind

PASSED = GateResult(True, None, 500.0, 120.0, 0.0)
REVIEW = Verdict(VerdictKind.REVIEW, (Reason("anomaly", "anomaly 9"),))


def inspected(anomaly_map, limit=5.0, size=(640, 640)):
    frame = Frame(np.full(size, 100, np.uint8), "cam", 1, 0, 0.0)
    score = float(anomaly_map.max()) if anomaly_map is not None else None
    scores = Scores(score, limit if score is not None else None, anomaly_map)
    return Inspection(frame, PASSED, Detections.none(), scores, REVIEW)


def changed(picture):
    return (picture[BANNER_PX:] != 100).any(axis=2)


def spot(height, width, y, x, value=9.0):
    out = np.zeros((height, width), np.float32)
    out[y, x] = value
    return out


def test_a_foreign_cell_is_marked_where_it_lies_and_nowhere_else():
    marked = changed(annotate(inspected(spot(40, 40, 10, 20)), ["a"], 0.5))
    y, x = np.nonzero(marked)
    assert marked.any() and abs(y.mean() - 10.5 * 16) < 2 and abs(x.mean() - 20.5 * 16) < 2
    assert y.max() - y.min() < 4 * 16 and x.max() - x.min() < 4 * 16
    assert y.max() - y.min() >= 12  # a single cell is still to be seen


@pytest.mark.parametrize("anomaly_map", [None, np.zeros((40, 40), np.float32), np.full((40, 40), 4.9, np.float32)])
def test_under_the_limit_nothing_is_drawn(anomaly_map):
    assert not changed(annotate(inspected(anomaly_map), ["a"], 0.5)).any()


def test_another_limit_shows_more():
    quiet = inspected(np.full((40, 40), 4.0, np.float32))
    assert not changed(annotate(quiet, ["a"], 0.5)).any()
    assert changed(annotate(quiet, ["a"], 0.5, foreign_from=3.0)).all()


@pytest.mark.parametrize("size", [(1, 640), (640, 1), (100, 300), (7, 5)])
@pytest.mark.parametrize("cells", [(1, 1), (3, 7), (40, 40)])
def test_any_size_of_map_fits_any_image(size, cells):
    picture = annotate(inspected(np.full(cells, 9.0, np.float32), size=size), ["a"], 0.5)
    assert picture.shape == (size[0] + BANNER_PX, size[1], 3) and changed(picture).all()


def test_a_shrunk_picture_has_its_mark_at_the_same_place():
    picture = annotate(inspected(spot(40, 40, 30, 10)), ["a"], 0.5, max_width=320)
    y, x = np.nonzero((np.abs(picture[BANNER_PX:].astype(int) - 100) > 10).any(axis=2))
    assert abs(y.mean() - 30.5 * 8) < 2 and abs(x.mean() - 10.5 * 8) < 2
