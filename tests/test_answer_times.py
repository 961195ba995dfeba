"""Percentiles of trigger-to-answer times in constant memory, and their picture."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import answer_chart
from edge.answer_times import BUCKETS, LONGEST_MS, SHORTEST_MS, AnswerTimes, Histogram, bucket_of
from edge.errors import UsageError

TIMES = st.floats(SHORTEST_MS, LONGEST_MS)


def of(*ms: float) -> Histogram:
    histogram = Histogram()
    for each in ms:
        histogram.add(each)
    return histogram


@given(st.lists(TIMES, min_size=1, max_size=300), st.sampled_from([0.1, 1, 50, 99, 99.9, 100]))
def test_every_percentile_is_within_2_percent(times: list[float], percent: float) -> None:
    true = float(np.quantile(times, percent / 100, method="inverted_cdf"))
    assert of(*times).percentile(percent) == pytest.approx(true, rel=0.02)


def test_a_long_run_is_within_2_percent_and_its_maximum_exact() -> None:
    times = np.random.default_rng(1).lognormal(3, 0.4, 100_000)
    told = of(*times).percentiles()
    true = np.quantile(times, [0.5, 0.99, 0.999], method="inverted_cdf")
    assert [told.p50, told.p99, told.p999] == pytest.approx(true.tolist(), rel=0.02)
    assert (told.count, told.max) == (100_000, round(float(times.max()), 3))


@pytest.mark.parametrize(
    ("why", "times", "percent", "expected"),
    [
        ("no time at all", [], 50, 0),
        ("a single one is all of them", [7.0], 0.1, 7.0),
        ("999 of 1000 stay within the usual", [7.0] * 999 + [90.0], 99.9, 7.0),
        ("998 do not make 99.9 %", [7.0] * 998 + [90.0] * 2, 99.9, 90.0),
        ("with few the longest is the percentile", [7.0] * 99 + [90.0], 99.9, 90.0),
        ("shorter than the first bucket", [0.0, 0.0, 0.0], 50, 0.0),
        ("longer than the last", [1e9, 1e9, 2e9], 50, 1e9),
    ],
)
def test_percentiles_by_nearest_rank(why: str, times: list[float], percent: float, expected: float) -> None:
    assert of(*times).percentile(percent) == pytest.approx(expected, rel=0.02), why


@pytest.mark.parametrize("ms", [-0.001, float("nan"), float("inf")])
def test_what_is_no_time_is_refused(ms: float) -> None:
    with pytest.raises(ValueError, match="milliseconds from 0 on"):
        Histogram().add(ms)
    with pytest.raises(ValueError, match="above 0"):
        of(1.0).percentile(0)


@given(st.lists(TIMES, max_size=50), st.lists(TIMES, max_size=50))
def test_merged_is_as_if_counted_in_one(first: list[float], second: list[float]) -> None:
    merged = of(*first)
    merged.merge(of(*second))
    assert merged.state() == of(*first, *second).state()


@given(st.lists(TIMES, max_size=50))
def test_its_state_goes_through_json(times: list[float]) -> None:
    histogram = of(*times)
    again = Histogram.from_state(json.loads(json.dumps(histogram.state(), allow_nan=False)))
    assert again.state() == histogram.state() and again.percentiles() == histogram.percentiles()
    again.add(5.0)
    assert again.count == len(times) + 1


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("other buckets", {"growth": 1.1}),
        ("none", {"buckets": None}),
        ("a bucket that is not there", {"buckets": {str(BUCKETS): 1}}),
        ("a negative count", {"buckets": {"5": -1}}),
        ("no number", {"buckets": {"five": 1}}),
    ],
)
def test_what_is_no_state_is_refused(why: str, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no state of a histogram"):
        Histogram.from_state({**of(5.0).state(), **change})


def test_how_many_were_over_a_budget() -> None:
    histogram = of(*[20.0] * 10, *[200.0] * 3)
    assert [histogram.over(ms) for ms in (10, 50, 150, 199.9, 200)] == [13, 3, 3, 1, 0]


def test_the_bars_cover_all_times_without_a_gap() -> None:
    bars = of(1.0, 50.0, 50.0, 900.0).bars()
    assert sum(count for _, _, count in bars) == 4
    assert bars[0][0] <= 1.0 < bars[0][1] and bars[-1][0] <= 900.0 < bars[-1][1]
    assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(bars))
    assert Histogram().bars() == []


def test_the_window_begins_anew_and_the_run_goes_on() -> None:
    times = AnswerTimes()
    for ms in (10.0, 500.0):
        times.add(ms)
    assert times.reset_window().max == 500.0
    times.add(12.0)
    assert (times.window.count, times.window.max_ms, times.whole.count, times.whole.max_ms) == (1, 12.0, 3, 500.0)


def test_a_call_takes_microseconds() -> None:
    histogram, best_us = AnswerTimes(), np.inf
    for _ in range(2000):
        began = time.perf_counter()
        histogram.add(23.4)
        best_us = min(best_us, (time.perf_counter() - began) * 1e6)
    assert best_us < 50
    assert bucket_of(23.4) < BUCKETS < 600, "constant memory"


# The picture.


def red(picture: np.ndarray) -> int:
    return int(((picture[:, :, 2] > 170) & (picture[:, :, 1] < 90) & (picture[:, :, 0] < 80)).sum())


def test_the_picture_shows_the_times_and_the_budget(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    histogram = of(*np.random.default_rng(0).lognormal(3, 0.3, 5000))
    answer_chart.draw(histogram, "a run", tmp_path / "sub" / "with.png", budget_ms=90)
    answer_chart.draw(histogram, "a run", tmp_path / "without.png")
    pictures = [cv2.imread(str(tmp_path / name)) for name in ("sub/with.png", "without.png")]
    assert pictures[0] is not None and pictures[0].shape[1] > 600
    assert red(pictures[0]) > 100 > red(pictures[1]), "the budget's line"


def test_times_that_are_all_the_same_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    answer_chart.draw(of(5.0), "one", tmp_path / "one.png", budget_ms=5000)
    assert cv2.imread(str(tmp_path / "one.png")) is not None


def test_what_keeps_the_picture_from_being_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is nothing to draw"):
        answer_chart.draw(Histogram(), "empty", tmp_path / "x.png")
    pytest.importorskip("matplotlib")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        answer_chart.draw(of(1.0), "x", tmp_path / "taken" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib, which is not installed"):
        answer_chart.draw(of(1.0), "x", tmp_path / "x.png")
