"""How long a bundle on trial has to stand, and for what it goes."""

from __future__ import annotations

import random

from edge.config import TrialSettings
from edge.probation import FAULTS_IN_A_ROW, FRAMES_LEAST, USUAL_LEAST, Probation, Usual

MINUTE = 60_000_000_000
LIMITS = TrialSettings(parts=100, minutes=2.0, reject_rise=0.1, latency_factor=2.0)


def usual(share: float = 0.1, ms: float = 30.0) -> Usual:
    known = Usual()
    for k in range(100):
        known.part(k < 100 * share)
    for _ in range(FRAMES_LEAST):
        known.frame(ms)
    return known


def on_trial(known: Usual | None = None, limits: TrialSettings = LIMITS) -> Probation:
    return Probation(limits, known or usual(), began_ns=0, starts=1)


def test_it_stays_after_so_many_parts_and_minutes() -> None:
    trial = on_trial()
    for _ in range(99):
        trial.part(not_ok=False)
    assert not trial.passed(3 * MINUTE), "one part is lacking"
    trial.part(not_ok=False)
    assert not trial.passed(int(1.9 * MINUTE)), "it is too early"
    assert trial.passed(2 * MINUTE) and trial.wrong(set()) is None


def test_a_few_more_rejects_are_chance_many_are_not() -> None:
    trial = on_trial()
    for k in range(60):
        trial.part(not_ok=k % 4 == 0)  # 25 %, usual 10 %, allowed 20 %
    assert trial.wrong(set()) is None
    for _ in range(60):
        trial.part(not_ok=True)
    why = trial.wrong(set())
    assert why is not None and why.code == "rejects" and "trial.reject_rise allows 20%" in why.text


def test_at_the_end_the_share_itself_counts() -> None:
    trial = on_trial()
    for k in range(99):
        trial.part(not_ok=k % 4 == 0)
    assert trial.wrong(set()) is None, "before the end it may be chance"
    trial.part(not_ok=False)
    why = trial.wrong(set())
    assert why is not None and "25% of 100 parts" in why.text


def test_a_bundle_that_is_as_good_as_the_one_before_is_hardly_ever_sent_back() -> None:
    chance, returned = random.Random(1), 0
    for _ in range(300):
        trial = on_trial()
        for _ in range(100):
            trial.part(not_ok=chance.random() < 0.1)
            if trial.wrong(set()) is not None:
                returned += 1
                break
    assert returned <= 3


def test_a_frame_that_takes_too_long_sends_it_back() -> None:
    trial = on_trial()
    for _ in range(FRAMES_LEAST - 1):
        trial.frame(90.0)
    assert trial.wrong(set()) is None, "too few to tell"
    trial.frame(90.0)
    why = trial.wrong(set())
    assert why is not None and why.code == "latency" and "allows 60.0 ms" in why.text


def test_faults_in_a_row_send_it_back_at_once() -> None:
    trial = on_trial()
    for _ in range(FAULTS_IN_A_ROW - 1):
        trial.fault("not finite")
    trial.frame(30.0)
    for _ in range(FAULTS_IN_A_ROW - 1):
        trial.fault("not finite")
    assert trial.wrong(set()) is None, "one in between was judged"
    trial.fault("not finite")
    why = trial.wrong(set())
    assert why is not None and why.code == "fault" and "not finite" in why.text


def test_drift_since_it_came_sends_it_back() -> None:
    why = on_trial().wrong({"features up on cam1"})
    assert why is not None and (why.code, "features up on cam1" in why.text) == ("drift", True)


def test_without_knowing_what_is_usual_shares_and_times_are_not_judged() -> None:
    few = Usual()
    for _ in range(USUAL_LEAST - 1):
        few.part(False)
    trial = on_trial(few)
    for _ in range(100):
        trial.part(not_ok=True)
        trial.frame(500.0)
    assert trial.wrong(set()) is None and trial.counts(MINUTE).usual_not_ok_share is None


def test_what_was_usual_is_known_over_a_restart() -> None:
    trial = on_trial(Usual(not_ok_share=0.1, frame_ms=30.0))
    for _ in range(USUAL_LEAST):
        trial.part(not_ok=True)
    assert trial.wrong(set()) is not None
    counts = trial.counts(MINUTE)
    assert (counts.parts, counts.minutes, counts.not_ok_share, counts.usual_not_ok_share) == (50, 1.0, 1.0, 0.1)
    assert (counts.starts, counts.usual_frame_ms) == (1, 30.0)
