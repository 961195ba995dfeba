"""The sequential detectors: when they speak, what they say of a change, what they do with points that are none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edge.drift import settings
from edge.drift.adwin import Adwin
from edge.drift.detectors import MOST_INVALID, Cusum, Ewma, Outcome, PageHinkley, Sequential
from edge.drift.psi import Psi, index

MIX = settings.Kinds(frames=1000, names=["none", "open", "short"], shares=[0.8, 0.15, 0.05])
MAKERS = {
    "cusum": lambda side="both": Cusum(settings.Cusum(allowance=0.5, limit=10, side=side)),
    "page_hinkley": lambda side="both": PageHinkley(
        settings.PageHinkley(allowance=0.5, limit=10, prior=500, side=side)
    ),
    "ewma": lambda side="both": Ewma(settings.Ewma(weight=0.1, limit=4.5, side=side)),
    "adwin": lambda side="both": Adwin(settings.Adwin(delta=0.01, prior=500, side=side)),
    "psi": lambda side="both": Psi(settings.Psi(window=200, limit=0.2), MIX),
}
SIDED = ("cusum", "page_hinkley", "ewma", "adwin")


def stream(kind: str, shift: float, seed: int = 7) -> list[float]:
    """1000 calm points, then 1000 whose mean is `shift` sigmas off."""
    rng = np.random.default_rng(seed)
    if kind == "psi":
        after = [0.8, 0.15, 0.05] if shift == 0 else [0.5, 0.3, 0.2]
        return [float(k) for k in (*rng.choice(3, 1000, p=MIX.shares), *rng.choice(3, 1000, p=after))]
    points = rng.normal(size=2000)
    points[1000:] += shift
    return [0.5 + 0.5 * math.erf(x / math.sqrt(2)) if kind == "adwin" else float(x) for x in points]


def drifts(detector: Sequential, points: list[float]) -> list[int]:
    return [k for k, x in enumerate(points) if detector.update(x) is Outcome.DRIFT]


@pytest.mark.parametrize(
    ("kind", "shift", "first"),
    [
        ("cusum", 1.0, 1010),
        ("cusum", -1.0, 1017),
        ("cusum", 3.0, 1003),
        ("page_hinkley", 1.0, 1009),
        ("page_hinkley", -1.0, 1017),
        ("ewma", 1.0, 1042),
        ("ewma", -0.7, 1022),
        ("adwin", 1.0, 1055),
        ("adwin", -2.0, 1031),
        ("psi", 1.0, 1199),
    ],
)
def test_a_shift_is_found_at_this_very_point_and_nothing_before(kind: str, shift: float, first: int) -> None:
    assert drifts(MAKERS[kind](), stream(kind, shift))[0] == first


@pytest.mark.parametrize("kind", MAKERS)
def test_a_calm_stream_stays_calm(kind: str) -> None:
    assert drifts(MAKERS[kind](), stream(kind, 0.0)) == []


@pytest.mark.parametrize("kind", SIDED)
@pytest.mark.parametrize(("side", "shift"), [("up", -1.5), ("down", 1.5)])
def test_a_shift_to_the_other_side_is_not_its_business(kind: str, side: str, shift: float) -> None:
    assert drifts(MAKERS[kind](side), stream(kind, shift)) == []
    assert drifts(MAKERS[kind](side), stream(kind, -shift)) != []


@pytest.mark.parametrize("kind", SIDED)
def test_the_change_says_how_long_ago_and_which_way(kind: str) -> None:
    detector = MAKERS[kind]()
    at = drifts(detector, stream(kind, -2.0)[: 1000 + 40])[0]
    change = detector.change
    assert change is not None
    assert abs(change.points - (at + 1 - 1000)) <= 10, "points since the change"
    assert -3.2 < change.shift < -0.7


@pytest.mark.parametrize("kind", MAKERS)
def test_after_a_change_it_begins_anew_and_finds_that_it_lasts(kind: str) -> None:
    assert len(drifts(MAKERS[kind](), stream(kind, 1.5))) >= 2


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_no_number_changes_nothing_and_a_row_of_it_is_named(kind: str) -> None:
    points = stream(kind, 1.0)
    with_holes, clean = MAKERS[kind](), MAKERS[kind]()
    found = []
    for k, x in enumerate(points):
        if k % 3 == 0:
            assert with_holes.update((math.nan, math.inf, -math.inf)[k % 9 // 3]) is Outcome.SKIPPED
        found += [k] if with_holes.update(x) is Outcome.DRIFT else []
    assert found == drifts(clean, points)
    assert with_holes.skipped == math.ceil(len(points) / 3) and with_holes.seen == len(points)
    outcomes = [with_holes.update(math.nan) for _ in range(MOST_INVALID + 2)]
    assert outcomes == [Outcome.SKIPPED] * (MOST_INVALID - 1) + [Outcome.INVALID] * 3
    assert with_holes.update(points[0]) is Outcome.CALM


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("cut", [0, 1, 13, 555, 1010])
def test_a_restart_changes_nothing(kind: str, cut: int) -> None:
    points = stream(kind, 1.0)
    whole, first, second = MAKERS[kind](), MAKERS[kind](), MAKERS[kind]()
    expected = drifts(whole, points)
    before = drifts(first, points[:cut])
    second.restore(json.loads(json.dumps(first.state())))
    assert before + [cut + k for k in drifts(second, points[cut:])] == expected
    assert second.seen == whole.seen


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda s: {}, "nothing left"),
        (lambda s: {**s, "seen": "many"}, "another type"),
        (lambda s: {**s, "inner": {k: "x" for k in s["inner"]}}, "another type further in"),
        (lambda s: {**s, "inner": [1, 2]}, "a list"),
    ],
)
def test_a_damaged_state_is_refused_and_leaves_the_detector_as_it_was(kind: str, damage, why: str) -> None:
    points = stream(kind, 1.0)
    detector = MAKERS[kind]()
    before = drifts(detector, points[:500])
    with pytest.raises(ValueError, match="not a state of"):
        detector.restore(damage(detector.state()))
    assert before + [500 + k for k in drifts(detector, points[500:])] == drifts(MAKERS[kind](), points), why


def test_a_state_of_another_detector_or_without_end_is_refused() -> None:
    adwin = MAKERS["adwin"]()
    bucket = {"total": 1.0, "square": 1.0}
    for rows in ([[bucket] * 6], [[bucket]] * 41):
        with pytest.raises(ValueError, match="more buckets"):
            adwin.restore({"seen": 1, "skipped": 0, "row": 0, "inner": {"rows": rows, "ticks": 0}})
    psi = MAKERS["psi"]()
    with pytest.raises(ValueError, match="counts of 2 kinds"):
        psi.restore({"seen": 1, "skipped": 0, "row": 0, "inner": {"counts": [1, 2]}})
    infinite = {"height": math.inf, "points": 1, "total": 1.0}
    with pytest.raises(ValueError, match="not finite"):
        inner = {"up": infinite, "down": infinite}
        MAKERS["cusum"]().restore({"seen": 1, "skipped": 0, "row": 0, "inner": inner})


@pytest.mark.parametrize("kind", SIDED)
def test_a_constant_stream_at_the_baseline_is_calm_and_one_off_it_is_not(kind: str) -> None:
    calm, off = (0.5, 0.9) if kind == "adwin" else (0.0, 1.3)
    assert drifts(MAKERS[kind](), [calm] * 5000) == []
    assert drifts(MAKERS[kind](), [off] * 500)[0] < 60


def test_memory_is_constant() -> None:
    rng = np.random.default_rng(0)
    for kind in SIDED:
        detector = MAKERS[kind]()
        sizes = []
        for k in range(20_000):
            detector.update(float(rng.uniform()) if kind == "adwin" else float(rng.normal(0, 0.5)))
            if k in (9_999, 19_999):
                sizes.append(len(json.dumps(detector.state())))
        assert sizes[1] < 1.2 * sizes[0], kind
    adwin = Adwin(settings.Adwin(delta=1e-9, longest=1000))
    for _ in range(5000):
        adwin.update(0.5)
    assert 900 < len(adwin) <= 1000, "the oldest bucket goes as a whole"


def test_adwin_finds_a_stream_that_is_off_from_its_first_point() -> None:
    rng = np.random.default_rng(1)
    points = [float(x) for x in rng.uniform(0.4, 1.0, 400)]
    assert drifts(Adwin(settings.Adwin(delta=0.01)), points) == [], "against itself it is calm"
    assert drifts(Adwin(settings.Adwin(delta=0.01, prior=500)), points) != []


def test_page_hinkley_corrects_the_baseline_but_follows_no_drift() -> None:
    how = settings.PageHinkley(allowance=0.25, limit=10, prior=100)
    rng = np.random.default_rng(0)
    off = rng.normal(0.2, 1, 20_000)
    learnt = len(drifts(PageHinkley(how), [float(x) for x in off]))
    fixed = len(drifts(Cusum(settings.Cusum(allowance=0.25, limit=10)), [float(x) for x in off]))
    assert learnt * 3 < fixed, "what is within the baseline's error is learned"
    slow = np.linspace(0, 2, 20_000) + rng.normal(size=20_000)
    assert drifts(PageHinkley(how), [float(x) for x in slow])[0] < 8_000, "0.8 sigmas"


def test_psi_knows_a_kind_that_was_never_seen() -> None:
    mix = settings.Kinds(frames=500, names=["none", "open"], shares=[1.0, 0.0])
    assert 0 <= index([200, 0], mix) < 0.005 < 0.1 < index([180, 20], mix)
    with pytest.raises(ValueError, match="kind 2 is none of the 2"):
        Psi(settings.Psi(window=10, limit=1.0), mix).update(2)
