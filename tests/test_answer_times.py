"""Percentiles of trigger-to-answer times in constant memory, and their picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.answer_times import BUCKETS, LONGEST_MS, SHORTEST_MS, AnswerTimes, Histogram, bucket_of

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


def test_memory_is_constant() -> None:
    assert bucket_of(23.4) < BUCKETS < 600
