"""Since when, and which frames show it."""

from __future__ import annotations

import numpy as np
import pytest

from edge.drift.history import LENGTH, History, change_point, clearest
from edge.records import Frame

IMAGE = np.zeros((2, 2), np.uint8)


def frame(number: int) -> Frame:
    return Frame(IMAGE, "cam1", number, 0, 1e9 + number, f"{number}.png")


def test_it_remembers_the_last_frames_in_order_and_no_more() -> None:
    history = History(("a", "b"))
    for k in range(LENGTH + 50):
        history.add(frame(k), {"a": float(k)}, {"a": k / 1000, "b": 1.0} if k % 2 else {"a": k / 1000})
    values, scores = history.columns("a")
    assert len(history) == LENGTH == len(values) == len(scores)
    assert values[0] == 50 and values[-1] == LENGTH + 49
    assert np.isnan(history.columns("b")[1]).sum() == LENGTH // 2
    first = history.ref(0, "a")
    assert (first.number, first.name, first.value) == (50, "50.png", 50.0)
    assert history.ref(0, "b").score == 0.0, "what was not measured has no number, and JSON has no NaN"


@pytest.mark.parametrize(("at", "shift"), [(200, 1.0), (200, 3.0), (350, 2.0), (5, 1.5)])
def test_the_change_is_found_where_it_was(at: int, shift: float) -> None:
    errors = []
    for seed in range(30):
        scores = np.random.default_rng(seed).normal(size=400)
        scores[at:] += shift
        found = change_point(scores)
        assert found is not None
        errors.append(abs(found - at))
    assert np.median(errors) <= 2


def test_holes_do_not_shift_it_and_nothing_is_nowhere() -> None:
    scores = np.full(100, np.nan)
    scores[::10] = [0, 0.1, -0.2, 0, 0.1, 2, 2.2, 1.9, 2.1, 2]
    assert change_point(scores) == 50
    assert change_point(np.full(10, np.nan)) is None and change_point(np.array([1.0, 2.0])) is None
    assert change_point(np.full(20, -1.0)) is None, "it fell"


def test_the_clearest_frames_are_of_after_the_change() -> None:
    scores = np.array([9.0, 0.1, 1.0, np.nan, 3.0, 2.0, 2.5])
    assert clearest(scores, 1) == [4, 6, 5]
    assert clearest(scores, 3) == [4, 6, 5] and clearest(np.full(3, np.nan), 0) == []
