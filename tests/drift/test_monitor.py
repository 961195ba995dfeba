"""A camera's monitor: what it tells when, also of streams that are not as they should be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from edge.drift import signals
from edge.drift.detectors import MOST_INVALID
from edge.drift.learn import Learning
from edge.drift.monitor import MOST_UNMEASURED, DriftMonitor
from edge.drift.report import REMEDIES, Event, EventKind
from edge.records import Cause, GateResult, Inspection
from tests.drift.frames import CLASSES, bundle_settings, grey, judged

LEARN = Learning(frames=100)


def run(monitor: DriftMonitor, frames: Iterable[Inspection]) -> list[Event]:
    return [event for frame in frames for event in monitor.update(frame)]


def calm(count: int, start: int = 0, seed: int = 1, **how: object) -> list[Inspection]:
    rng = np.random.default_rng(seed)
    return [judged(grey(rng), start + k, **how) for k in range(count)]  # type: ignore[arg-type]


def darker(count: int, start: int, by: float = 8.0, seed: int = 2) -> list[Inspection]:
    rng = np.random.default_rng(seed)
    return [judged(grey(rng, 128 - by), start + k) for k in range(count)]


def kinds(events: Iterable[Event]) -> list[EventKind]:
    return [event.kind for event in events]


def test_without_a_baseline_it_says_so_learns_and_only_then_watches() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    assert monitor.report().status == "no_baseline" and "Nothing is known" in monitor.report().text
    events = run(monitor, calm(60))
    assert kinds(events) == [EventKind.NO_BASELINE]
    report = monitor.report()
    assert (report.status, report.learned, report.wanted) == ("learning", 60, 100)
    assert kinds(run(monitor, darker(10, 60, by=100))) == [], "while learning nothing is called drift, nor calm"
    assert monitor.report().status == "learning"
    events = run(monitor, calm(30, 70))
    assert kinds(events) == [EventKind.LEARNED] and "brightness" in events[0].text
    assert monitor.report().status == "watching" and monitor.report().origin == "learned from cam1"


def test_frames_that_the_gate_refuses_or_of_one_grey_teach_nothing() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    run(monitor, calm(50, refused=True))
    run(monitor, [judged(np.full((48, 64), 90, np.uint8), 50 + k) for k in range(20)])
    assert monitor.report().learned == 0 and monitor.report().status == "no_baseline"


def test_a_drift_is_told_once_with_since_how_much_and_what_to_do() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    assert kinds(run(monitor, calm(200))) == []
    assert monitor.report().status == "watching"
    events = run(monitor, darker(100, 200, by=1.5))
    moved = [event for event in events if event.kind is EventKind.MOVED]
    assert [event.code for event in moved] == ["drift.brightness"]
    what = moved[0].moved
    assert what is not None and what.since is not None
    assert abs(what.since.number - 200) <= 3 and what.found.number == moved[0].number <= 220
    assert what.found.number - what.since.number + 1 == what.frames_ago
    assert what.direction == "down" and what.now - what.baseline == pytest.approx(-1.5, abs=0.6)
    assert moved[0].advice == REMEDIES["relight"]
    assert "darker" in moved[0].text and f"since {what.since.name}" in moved[0].text
    assert all(ref.number >= what.since.number for ref in what.best) and len(what.best) == 3
    assert [ref.score for ref in what.best] == sorted(ref.score for ref in what.best)
    report = monitor.report()
    assert report.status == "drifted" and report.advice == REMEDIES["relight"] and "200.png" in report.text


def test_a_drift_that_is_over_is_told_and_can_be_told_again() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    frames = [*calm(50), *darker(60, 50), *calm(300, 110, seed=3), *darker(40, 410, seed=4)]
    told = [e for e in run(monitor, frames) if e.signal == "brightness"]
    assert kinds(told) == [EventKind.MOVED, EventKind.RECOVERED, EventKind.MOVED]
    assert 50 <= told[0].number < 60 and 170 <= told[1].number < 300 and 410 <= told[2].number < 420


def test_a_drift_that_stays_stays_and_its_frames_are_kept_ever_more_seldom() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    run(monitor, calm(50))
    kept = []
    for frame in darker(600, 50, by=2.0):
        monitor.update(frame)
        kept += [frame.frame.number] if monitor.kept else []
    moved = monitor.report().moved
    assert [m.signal for m in moved] == ["brightness"]
    assert len(moved[0].kept) == 3 and {ref.number for ref in moved[0].kept} <= set(kept)
    assert len(kept) < 30, "as many as records fall: some a decade"


def test_causes_stand_before_effects_in_the_report() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    rng = np.random.default_rng(5)

    def frame(k: int, changed: bool) -> Inspection:
        confidence = float(np.clip(rng.normal(0.5 if changed else 0.9, 0.02), 0, 1))
        sharp = float(np.exp(rng.normal(5 if changed else 7, 0.1)))
        return judged(grey(rng), k, sharpness=sharp, confidence=confidence)

    run(monitor, [frame(k, False) for k in range(150)])
    run(monitor, [frame(150 + k, True) for k in range(150)])
    assert monitor.report().moved[0].signal == "sharpness"
    assert {"sharpness", "confidence"} <= {m.signal for m in monitor.report().moved}
    assert monitor.report().advice == REMEDIES["clean"]


def test_what_depends_on_the_line_is_learned_beside_a_bundles_baseline() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    rng = np.random.default_rng(6)

    def frames(start: int, count: int, bad: float) -> list[Inspection]:
        return [
            judged(grey(rng), start + k, confidence=0.9 if rng.random() < bad else None, class_id=1)
            for k in range(count)
        ]

    events = run(monitor, frames(0, 100, 0.1))
    assert kinds(events) == [EventKind.LEARNED] and "confidence, kind" in events[0].text
    assert monitor.settings is not None and {"confidence", "kind", "brightness", "contrast"} == set(
        monitor.settings.signals
    )
    assert kinds(run(monitor, frames(100, 400, 0.1))) == []
    moved = run(monitor, frames(500, 500, 0.6))
    assert {"kind", "confidence"} == {event.signal for event in moved if event.kind is EventKind.MOVED}
    mix = next(event.moved for event in moved if event.signal == "kind")
    assert mix is not None and mix.direction == "other" and "PSI" in mix.text and mix.frames_ago <= 200


def test_while_that_is_learned_the_rest_is_watched_and_the_report_says_both() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    run(monitor, calm(30))
    assert monitor.report().status == "watching"
    assert "confidence and kind not yet: learned from 30 of 100" in monitor.report().text
    assert EventKind.MOVED in kinds(run(monitor, darker(30, 30)))


def test_another_resolution_is_named_and_begins_anew() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    run(monitor, calm(20))
    rng = np.random.default_rng(1)
    events = run(monitor, [judged(grey(rng, size=(80, 60)), 20 + k) for k in range(150)])
    assert kinds(events) == [EventKind.RESOLUTION, EventKind.NO_BASELINE, EventKind.LEARNED]
    assert "80x60" in events[0].text and "64x48" in events[0].text
    back = run(monitor, calm(10, 170))
    assert kinds(back) == [EventKind.RESOLUTION], "its baseline is known"
    assert monitor.report().status == "watching"


def test_a_drift_that_stood_does_not_stand_for_ever_when_all_begins_anew() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    told = {event.signal for event in run(monitor, [*calm(20), *darker(40, 20)]) if event.kind is EventKind.MOVED}
    events = monitor.update(judged(grey(np.random.default_rng(1), size=(80, 60)), 60))
    over = {event.signal for event in events if event.kind is EventKind.RECOVERED}
    assert over == told != set() and all("anew" in event.text for event in events if event.signal in over)


def test_a_first_frame_of_another_size_than_the_bundles_has_no_baseline() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    events = monitor.update(judged(grey(np.random.default_rng(1), size=(80, 60)), 0))
    assert kinds(events) == [EventKind.RESOLUTION, EventKind.NO_BASELINE]
    assert monitor.report().status == "no_baseline" or monitor.report().learned == 1


@pytest.mark.parametrize("level", [0, 128, 255])
def test_frames_of_one_grey_are_named_once_and_count_as_what_they_are(level: int) -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    run(monitor, calm(20))
    black = [judged(np.full((48, 64), level, np.uint8), 20 + k) for k in range(22)]
    assert run(monitor, [*black[:2], *calm(30, 22)]) == [], "two bad pictures are the gate's business"
    events = run(monitor, black[2:])
    assert kinds(events).count(EventKind.CONSTANT) == 1 and f"one grey ({level})" in events[0].text
    assert "contrast" in {event.signal for event in events if event.kind is EventKind.MOVED}


@pytest.mark.parametrize("size", [(640, 1), (1, 640), (1, 1), (2, 2)])
def test_thin_frames_are_frames(size: tuple[int, int]) -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, Learning(frames=20))
    rng = np.random.default_rng(0)
    events = run(monitor, [judged(grey(rng, size=size), k) for k in range(60)])
    assert kinds(events)[0] is EventKind.NO_BASELINE
    assert monitor.report().status in ("watching", "no_baseline"), "of one pixel nothing but one grey is seen"


@pytest.mark.parametrize(
    ("step", "words"), [(-7200.0, "went back by 7200 s"), (86_400.0, "went ahead by 86400 s"), (math.nan, "no number")]
)
def test_a_clock_that_jumps_is_named_and_a_pause_is_none(step: float, words: str) -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    run(monitor, calm(5))
    later = judged(grey(np.random.default_rng(0)), 50_000)
    assert kinds(monitor.update(later)) == [], "half a day later by both clocks"
    jumped = judged(grey(np.random.default_rng(0)), 50_001, ts=1e9 + 50_001 + step)
    events = monitor.update(jumped)
    assert kinds(events) == [EventKind.CLOCK]
    assert words in events[0].text
    json.dumps(monitor.state(), allow_nan=False)


def test_a_signal_that_is_no_number_is_named_and_learned_from_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES)
    run(monitor, calm(10))
    measure = signals.measure

    def broken(*arguments, **named):  # type: ignore[no-untyped-def]
        return {**measure(*arguments, **named), "contrast": math.nan}

    monkeypatch.setattr(signals, "measure", broken)
    events = run(monitor, calm(MOST_INVALID + 10, 10))
    assert kinds(events) == [EventKind.INVALID] and events[0].signal == "contrast"
    assert monitor.report().status == "blind" and monitor.report().blind == ["contrast"]
    learning = DriftMonitor("cam1", None, CLASSES, LEARN)
    run(learning, calm(50))
    assert learning.report().learned == 0
    monkeypatch.setattr(signals, "measure", measure)
    assert run(monitor, calm(5, 60)) == [] and monitor.report().status == "watching"


def test_signals_that_the_gate_keeps_from_being_measured_are_no_calm() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    run(monitor, calm(120))
    events = run(monitor, calm(MOST_UNMEASURED + 5, 120, refused=True))
    unmeasured = {event.signal for event in events if event.kind is EventKind.UNMEASURED}
    assert {"confidence", "kind", "brightness"} <= unmeasured and monitor.report().status == "blind"


def test_frames_that_the_gate_refuses_are_no_drift() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    good, spoiled = calm(240), darker(60, 1000, by=6.0)
    run(monitor, good[:120])
    refused = [replace(f, gate=GateResult(False, Cause.UNDEREXPOSED, 9.0, 20.0, 0.0, 20.0, 32.0)) for f in spoiled]
    mixed = [frame for pair in zip(good[120:180], refused, strict=True) for frame in pair]
    assert run(monitor, mixed) == [] and monitor.report().status == "watching"


def test_a_restart_forgets_neither_baseline_nor_drift() -> None:
    frames = [*calm(130), *darker(8, 130, by=2.5), *darker(60, 138, by=2.5, seed=8)]
    whole, first = (DriftMonitor("cam1", None, CLASSES, LEARN) for _ in range(2))
    told = run(whole, frames)
    before = run(first, frames[:134])
    second = DriftMonitor("cam1", None, CLASSES, LEARN)
    assert second.restore(json.loads(json.dumps(first.state(), allow_nan=False))) == []
    after = run(second, frames[134:])
    assert [(e.code, e.number) for e in before + after] == [(e.code, e.number) for e in told]
    assert second.report().origin == "learned from cam1" and second.report().frames == whole.report().frames
    third = DriftMonitor("cam1", None, CLASSES, LEARN)
    third.restore(json.loads(json.dumps(second.state())))
    assert third.report().moved == second.report().moved
    fourth = DriftMonitor("cam1", None, CLASSES, LEARN)
    again = fourth.restore(json.loads(json.dumps(second.state())))
    assert [(e.kind, e.signal) for e in again] == [(EventKind.MOVED, m.signal) for m in second.report().moved]
    assert again and "darker" in again[0].text and again[0].advice == REMEDIES["relight"]


def test_what_was_not_measured_before_a_restart_is_no_calm_after_it() -> None:
    first, second = (DriftMonitor("cam1", None, CLASSES, LEARN) for _ in range(2))
    run(first, [*calm(120), *calm(MOST_UNMEASURED + 5, 120, refused=True)])
    second.restore(json.loads(json.dumps(first.state())))
    run(second, calm(1, 900, refused=True))
    assert {"confidence", "kind"} <= set(second.report().blind) and second.report().status == "blind"


def test_a_number_without_end_is_not_told_as_a_mean() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    rng = np.random.default_rng(3)

    def features(level: float) -> np.ndarray:
        return np.full((1, 4, 6, 6), level, np.float32) + rng.normal(0, 0.1, (1, 4, 1, 1)).astype(np.float32)

    for frame in calm(110):
        monitor.update(frame, features(1.0))
    for k, frame in enumerate(calm(60, 110)):
        monitor.update(frame, features(math.inf if k == 6 else 1.5))
    moved = {m.signal: m for m in monitor.report().moved}
    assert "feature_mean" in moved and moved["feature_mean"].now == pytest.approx(1.5, abs=0.1)


def test_a_detector_without_classes_has_nothing_of_the_line_to_learn() -> None:
    learned, given = DriftMonitor("cam1", None, (), LEARN), DriftMonitor("cam1", bundle_settings(), (), LEARN)
    run(learned, calm(150))
    run(given, calm(150))
    for monitor in (learned, given):
        assert monitor.report().status == "watching" and monitor.report().wanted == 0
        assert monitor.settings is not None and "kind" not in monitor.settings.signals


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: None, "Expected"),
        (lambda s: {}, "format"),
        (lambda s: [1, 2, 3], "Expected"),
        (lambda s: {**s, "format": 99}, "format 99"),
        (lambda s: {**s, "bundle": "0" * 16}, "another bundle"),
        (lambda s: {**s, "signals": {}}, "signals"),
        (lambda s: {**s, "signals": {**s["signals"], "contrast": {"sum": "x"}}}, "contrast"),
        (lambda s: {**s, "learned": {"format": 1}}, "frames: missing"),
        (lambda s: {**s, "size": [64]}, "size"),
    ],
)
def test_a_state_that_cannot_be_used_is_named_and_watching_begins_anew(damage, words: str) -> None:  # type: ignore[no-untyped-def]
    first = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    run(first, calm(150))
    second = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    events = second.restore(damage(first.state()))
    assert kinds(events) == [EventKind.STATE] and words in events[0].text and "begins anew" in events[0].text
    assert EventKind.MOVED in kinds(run(second, [*calm(20), *darker(40, 20)])), "it watches"


def test_what_is_now_can_be_made_the_baseline() -> None:
    monitor = DriftMonitor("cam1", bundle_settings(), CLASSES, LEARN)
    run(monitor, [*calm(20), *darker(40, 20)])
    assert monitor.report().status == "drifted"
    monitor.relearn()
    run(monitor, darker(150, 60, seed=9))
    assert monitor.report().status == "watching" and monitor.report().origin == "learned from cam1"


def test_features_and_their_distance_are_learned_and_watched() -> None:
    monitor = DriftMonitor("cam1", None, CLASSES, LEARN)
    rng = np.random.default_rng(3)
    level = rng.uniform(1, 2, (1, 16, 1, 1))

    def feed(start: int, count: int, turn: float) -> list[Event]:
        events = []
        for k in range(count):
            away = turn * np.where(np.arange(16) % 2, 1, -1).reshape(1, 16, 1, 1)  # the mean stays as it is
            features = level + away + rng.normal(0, 0.2, (1, 16, 12, 12)) + rng.normal(0, 0.02, (1, 16, 1, 1))
            events += monitor.update(judged(grey(rng), start + k), features.astype(np.float32))
        return events

    feed(0, 150, 0.0)
    assert monitor.settings is not None and monitor.settings.features is not None
    moved = {event.signal for event in feed(150, 60, 0.06)}
    assert "feature_distance" in moved and "feature_mean" not in moved
