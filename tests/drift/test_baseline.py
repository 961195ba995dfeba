"""Scores against a baseline, the limits they are held against, and the settings that hold both."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edge.drift import limits, plan, settings
from edge.drift.baseline import MOST_SIGMAS, correlation, numbers, score, share
from edge.drift.plan import OF_THE_LINE, PLANS, Measured, expected_features, settings_for
from edge.errors import BundleError, ConfigError

RNG = np.random.default_rng


@pytest.mark.parametrize("frames", [15, 60, 500])
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: rng.exponential(size=n),
        lambda rng, n: rng.standard_t(2, size=n),
        lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, rng.normal(5, 0.1, n)),
    ],
    ids=["normal", "skewed", "heavy tails", "two modes, one a point"],
)
def test_scores_are_standard_whatever_the_signals_distribution(draw, frames: int) -> None:
    rng = RNG(1)
    means, deviations = [], []
    for _ in range(60):
        baseline = numbers(draw(rng, frames).tolist(), 1e-9)
        scores = [score(float(x), baseline) for x in draw(rng, 300)]
        means.append(np.mean(scores))
        deviations.append(np.std(scores))
    assert abs(np.mean(means)) < 0.09
    assert np.mean(deviations) < 1.08, "never wider than the limits are made for"


def test_scores_rise_with_the_value_and_end() -> None:
    baseline = numbers(RNG(0).normal(100, 5, 200).tolist(), 0.5)
    scores = [score(x, baseline) for x in np.linspace(0, 200, 400)]
    assert scores == sorted(scores)
    assert scores[0] == -MOST_SIGMAS and scores[-1] == MOST_SIGMAS
    assert score(100.0, baseline) == pytest.approx(0, abs=0.2)
    assert math.isnan(score(math.nan, baseline)) and math.isnan(score(math.inf, baseline))


def test_what_does_not_matter_in_practice_has_no_score() -> None:
    still = numbers([100.0] * 50, least=1.0)
    assert still.sigma == 1.0
    assert score(100.0, still) == 0.0
    assert score(100.4, still) < 0.05 and 2 < score(101.0, still) < score(103.0, still) < 3.5
    assert score(80.0, still) == -MOST_SIGMAS


def test_ties_count_half() -> None:
    baseline = numbers([0.0] * 90 + [1.0] * 10, 1e-9)
    assert share(0.0, baseline) == pytest.approx(0.45, abs=0.02)
    assert share(1.0, baseline) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("values", "why"), [([1.0] * 9, "too few"), ([*range(20), math.nan], "NaN"), ([], "none"), ([math.inf] * 20, "inf")]
)
def test_no_baseline_is_made_of_too_little(values, why: str) -> None:
    with pytest.raises(ValueError, match="at least 10 finite"):
        numbers(values, 1.0)


def test_neighbours_that_are_alike_are_told() -> None:
    rng = RNG(3)
    noise, walk = rng.normal(size=4000), np.zeros(4000)
    for k in range(1, 4000):
        walk[k] = 0.8 * walk[k - 1] + noise[k]
    assert 6 < correlation(walk) < 12, "of this process it is (1 + 0.8) / (1 - 0.8) = 9"
    assert correlation(noise) < 1.2 and correlation(np.ones(100)) == 1.0
    assert numbers(walk[:500].tolist(), 1e-9).correlation == 1.0, "of a data set the order says nothing"
    assert numbers(walk[:500].tolist(), 1e-9, ordered=True).correlation > 4
    assert numbers(walk[:30].tolist(), 1e-9, ordered=True).correlation == 1.0


@pytest.mark.parametrize("allowance", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("side", ["both", "up"])
def test_a_cusums_limit_gives_the_wanted_run_length(allowance: float, side: settings.Side) -> None:
    limit = limits.cusum_limit(500, allowance, side)
    rng, streams = RNG(0), 2000
    up, down, when = np.zeros(streams), np.zeros(streams), np.full(streams, np.inf)
    for at in range(5000):
        x = rng.normal(size=streams)
        up = np.maximum(0, up + x - allowance)
        down = np.maximum(0, down - x - allowance) if side == "both" else down
        when[(np.maximum(up, down) > limit) & np.isinf(when)] = at + 1
    assert np.isfinite(when).mean() > 0.99
    assert np.minimum(when, 5000).mean() == pytest.approx(500, rel=0.1)


def test_published_run_lengths() -> None:
    assert limits.cusum_arl(4.0, 0.5, "both") == pytest.approx(168, rel=0.02)  # Montgomery, table 9.3
    assert limits.cusum_arl(5.0, 0.5, "both") == pytest.approx(465, rel=0.02)
    assert limits.ewma_arl(2.814, 0.1, "both", 201) == pytest.approx(500, rel=0.02)  # Lucas and Saccucci
    assert limits.ewma_arl(2.998, 0.25, "both", 201) == pytest.approx(500, rel=0.02)


def measured(count: int = 200, **how) -> Measured:
    rng = RNG(5)
    values = {name: rng.normal(size=count).tolist() for name in PLANS if name not in OF_THE_LINE}
    values["confidence"] = rng.uniform(size=count).tolist()
    values["kind"] = [float(k) for k in rng.integers(0, 3, count)]
    return Measured(values, ("open", "short"), 64, 48, **how)


def test_a_bundles_settings_come_back_as_they_were_and_leave_the_line_its_part() -> None:
    features, distances = expected_features(RNG(0).normal(3, 1, (200, 8)))
    made = settings_for(measured(features=features), "pcb")
    assert set(made.signals) == set(PLANS) - set(OF_THE_LINE)
    assert settings.decode(settings.encode(made), "drift.json") == made
    assert len(distances) == 200 and 0.9 < np.mean(distances) < 1.1
    line = settings_for(measured(ordered=True), "line")
    assert set(line.signals) == set(PLANS)
    assert isinstance(line.signals["kind"].chart, settings.Psi)
    assert isinstance(line.signals["confidence"].chart, settings.Adwin)


def test_more_frames_make_tighter_limits_and_rarer_alarms_wider_ones() -> None:
    def brightness(count: int, arl0: float) -> settings.Cusum:
        chart = settings_for(measured(count), "x", arl0).signals["brightness"].chart
        assert isinstance(chart, settings.Cusum)
        return chart

    assert brightness(20, 1e5).allowance > brightness(200, 1e5).allowance > plan.ALLOWANCE
    assert brightness(200, 1e5).limit > brightness(200, 1e3).limit


def test_each_frame_is_compared_with_the_others() -> None:
    rng = RNG(2)
    means = rng.normal(size=(12, 64))
    features, distances = expected_features(means)
    later = [
        float(np.sqrt(np.mean(((x - features.mean) / np.array(features.sigma)) ** 2)))
        for x in rng.normal(size=(50, 64))
    ]
    assert np.mean(distances) == pytest.approx(np.mean(later), rel=0.15), "or each later frame would be further off"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d.update(format=9), "update edge"),
        (lambda d: d.update(signals={}), "signals"),
        (lambda d: d["signals"]["noise"]["baseline"].update(quantiles=[2.0, 1.0]), "quantiles fall"),
        (lambda d: d["signals"]["noise"]["baseline"].update(sigma=0), "sigma"),
        (lambda d: d["signals"]["noise"].update(chart={"type": "shewhart"}), "must be one of"),
        (lambda d: d["signals"]["noise"].update(chart={"type": "psi", "window": 100, "limit": 1}), "psi watches kinds"),
        (lambda d: d["signals"]["noise"].update(advice="pray"), "advice"),
        (lambda d: d.update(colour=1), "unknown key"),
        (lambda d: d.update(features={"mean": [1.0, 2.0], "sigma": [1.0]}), "2 means but 1 sigmas"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(change, problem: str) -> None:
    data = json.loads(settings.encode(settings_for(measured(), "pcb")))
    change(data)
    with pytest.raises((ConfigError, BundleError), match=problem):
        settings.decode(json.dumps(data).encode(), "drift.json")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_settings_file_is_refused(raw: bytes) -> None:
    with pytest.raises(BundleError, match=r"drift\.json"):
        settings.decode(raw, "drift.json")


def test_signals_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="no signal is called smell"):
        settings_for(Measured({"smell": [1.0] * 20}, (), 1, 1), "x")
    with pytest.raises(ValueError, match="nothing was measured"):
        settings_for(Measured({"confidence": [1.0] * 20}, (), 1, 1), "x")
