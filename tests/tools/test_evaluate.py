"""The metrics on cases computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edge.records import Detections
from tools.evaluate import Ranking, average_precision, best_f, figures, match, rank

BOX = [10, 10, 30, 30]
SHIFTED = [20, 10, 40, 30]  # IoU with BOX: 1/3
FAR = [60, 60, 80, 80]


def found(*rows: tuple[list[int], float, int]) -> Detections:
    """Detections from (box, confidence, class)."""
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


def truth(*rows: tuple[list[int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes."""
    return np.array([r[0] for r in rows], np.float32).reshape(-1, 4), np.array([r[1] for r in rows], np.int64)


@pytest.mark.parametrize(
    ("detections", "truths", "iou", "correct"),
    [
        pytest.param(found((BOX, 0.9, 0)), truth((BOX, 0)), 0.5, [True], id="exact"),
        pytest.param(found((BOX, 0.9, 1)), truth((BOX, 0)), 0.5, [False], id="wrong class"),
        pytest.param(found((SHIFTED, 0.9, 0)), truth((BOX, 0)), 0.33, [True], id="a third is larger than 0.33"),
        pytest.param(found((SHIFTED, 0.9, 0)), truth((BOX, 0)), 0.34, [False], id="a third is not larger than 0.34"),
        pytest.param(found((BOX, 0.9, 0), (BOX, 0.8, 0)), truth((BOX, 0)), 0.5, [True, False], id="taken once"),
        pytest.param(found((BOX, 0.8, 0), (BOX, 0.9, 0)), truth((BOX, 0)), 0.5, [False, True], id="by confidence"),
        pytest.param(found((FAR, 0.9, 0)), truth(), 0.5, [False], id="nothing to find"),
        pytest.param(found(), truth((BOX, 0)), 0.5, [], id="nothing found"),
        pytest.param(
            found((SHIFTED, 0.9, 0), (BOX, 0.8, 0)),
            truth((BOX, 0), (SHIFTED, 0)),
            0.3,
            [True, True],
            id="takes the one it overlaps most",
        ),
    ],
)
def test_match(detections: Detections, truths: tuple, iou: float, correct: list[bool]) -> None:
    assert match(detections, *truths, iou).tolist() == correct


@pytest.mark.parametrize(
    ("correct", "truths", "value"),
    [
        pytest.param([True, True], 2, 1.0, id="perfect"),
        pytest.param([True, False], 1, 1.0, id="a false one behind all hits costs nothing"),
        pytest.param([False, True], 1, 0.5, id="a false one in front halves"),
        pytest.param([True, False, True], 2, (1 + 2 / 3) / 2, id="interleaved"),
        pytest.param([False, True, True, True], 3, 3 / 4, id="envelope lifts early precision"),
        pytest.param([True], 4, 0.25, id="misses limit recall"),
        pytest.param([], 3, 0.0, id="nothing found"),
    ],
)
def test_average_precision(correct: list[bool], truths: int, value: float) -> None:
    ranking = Ranking(np.linspace(0.9, 0.1, len(correct), dtype=np.float32), np.array(correct, bool), truths)
    assert average_precision(ranking) == pytest.approx(value)


def test_average_precision_without_truth_is_nan() -> None:
    assert np.isnan(average_precision(Ranking(np.empty(0), np.empty(0, bool), 0)))


def test_pooled_ranking_mixes_images_and_classes() -> None:
    detections = [found((BOX, 0.6, 0), (FAR, 0.9, 1)), found((BOX, 0.7, 1))]
    truths = [truth((BOX, 0)), truth((BOX, 1))]
    ranking = rank(detections, truths, 0.33)
    assert ranking.confidence == pytest.approx([0.9, 0.7, 0.6]) and ranking.correct.tolist() == [False, True, True]
    assert average_precision(ranking) == pytest.approx(2 / 3)


def test_best_f_names_its_threshold() -> None:
    f, threshold = best_f(Ranking(np.array([0.9, 0.8, 0.3]), np.array([True, True, False]), 2))
    assert (f, threshold) == (1.0, 0.8)


def test_figures_of_a_small_set() -> None:
    result = figures([found((BOX, 0.9, 0), (SHIFTED, 0.2, 1))], [truth((BOX, 0), (BOX, 1))], ("open", "short", "spur"))
    assert result["ap33_pooled"] == 1.0 and result["ap33"]["short"] == 1.0
    assert result["map50"] == pytest.approx(0.5)  # the shifted one does not reach 0.5
    assert result["truths"] == 2 and np.isnan(result["ap33"]["spur"])
