"""Parts are admitted by what judging has taken: nearly none late, none refused for ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import admission as module
from edge.admission import MOST, PROBE_EVERY_NS, RECENT, TRIAL_EVERY, Admission

MS = 1_000_000
TAKT = 50 * MS


def after(*frame_ms: float, settle_ms: float = 2.0, prior_ms: float = 0.0) -> Admission:
    admission = Admission(round(prior_ms * MS), 0)
    for k, ms in enumerate(frame_ms):
        admission.add_frame(k * TAKT, round(ms * MS))
        admission.add_settle(k * TAKT, round(settle_ms * MS))
    return admission


@pytest.mark.parametrize(
    ("why", "frame_ms", "prior_ms", "expected_ms"),
    [
        ("nothing is known: the first part is let in", [], 0, 0),
        ("only the warm-up, and a quarter on top", [], 8, 10),
        ("the warm-up still counts among few", [5] * 19, 8, 8 * (1.25 - 0.25 * 19 / 1000)),
        ("and no more when there are some", [5] * 20, 8, 5 * (1.25 - 0.25 * 20 / 1000)),
        ("the longest of few, with a margin", [5] * 499 + [9], 0, 9 * 1.125),
        ("of a thousand one may be longer", [5] * 999 + [90], 0, 5),
        ("but not two", [5] * 998 + [90, 91], 0, 90),
        ("of 4000 four may", [5] * 3996 + [90] * 4, 0, 5),
        ("not five", [5] * 3995 + [90] * 5, 0, 90),
        ("what fell out of the window does not count", [90] * 50 + [5] * MOST, 0, 5),
    ],
)
def test_the_999th_of_a_thousand(why: str, frame_ms: list[float], prior_ms: float, expected_ms: float) -> None:
    # Close enough in time that none is too old.
    admission = Admission(round(prior_ms * MS), 0)
    for k, ms in enumerate(frame_ms):
        admission.add_frame(k * MS, round(ms * MS))
    assert admission.p999_ns("frame") / MS == pytest.approx(expected_ms), why


def test_old_measurements_fade_but_a_pause_over_night_forgets_not_all() -> None:
    admission = after(*[90.0] * 10, *[5.0] * 100)
    minute = 60_000 * MS
    for k in range(60):
        admission.add_frame(100 * minute + k, 5 * MS)
    assert admission.p999_ns("frame") < 7 * MS, "the ten long ones are past"
    alone = after(*[5.0] * 30)
    alone.add_frame(600 * minute, 6 * MS)
    assert 7 * MS < alone.p999_ns("frame") < 8 * MS, "the longest of 31"


@pytest.mark.parametrize(
    ("why", "now_ms", "deadline_ms", "frames", "expected"),
    [
        ("just in time", 0, 17, 3, True),
        ("a little late", 0.1, 17, 3, False),
        ("fewer frames fit", 0.1, 17, 2, True),
        ("no frame to judge: there is only the answer to give", 14, 17, 0, True),
        ("no deadline", 1e9, None, 3, True),
        ("the deadline is past", 18, 17, 0, False),
    ],
)
def test_admits(why: str, now_ms: float, deadline_ms: float | None, frames: int, expected: bool) -> None:
    admission = after(*[5.0] * 1000)  # 5 ms each and 2 ms to settle
    deadline = None if deadline_ms is None else round(deadline_ms * MS)
    assert admission.fits(round(now_ms * MS), deadline, frames) is expected, why
    assert admission.admits(round(now_ms * MS), deadline, frames) is expected, why
    assert admission.refused == (not expected)


def test_the_latest_start() -> None:
    admission = after(*[5.0] * 1000)
    assert admission.latest_start_ns(100 * MS, 3) == 83 * MS
    assert admission.admits(83 * MS, 100 * MS, 3) and not admission.admits(83 * MS + 1, 100 * MS, 3)


def test_frames_of_one_part_are_rarely_all_slow() -> None:
    rng = np.random.default_rng(1)
    took = rng.gamma(4, 1.0, (4000, 3)) + 4  # of mean 8, with a tail
    admission = Admission(0, 0)
    for k, part in enumerate(took):
        for ms in part:
            admission.add_frame(k * 20 * MS, round(ms * MS))
    single, true = admission.p999_ns("frame") / MS, float(np.quantile(took.sum(1), 0.999))
    need = admission.need_ns(3) / MS
    assert 0.95 * true < need < 1.1 * true, "from single frames: about what they really need"
    assert need < 0.85 * 3 * single

    for k, part in enumerate(took):
        admission.add_frames(k * 20 * MS, 3, round(part.sum() * MS))
    assert admission.need_ns(3) / MS == pytest.approx(true, rel=0.03), "as a whole: what they need"


def test_frames_that_are_slow_together_are_measured_together() -> None:
    admission = Admission(0, 0)
    for k in range(3000):
        slow = 20 if k % 500 == 0 else 5  # all three of a part, or none
        for _ in range(3):
            admission.add_frame(k * 20 * MS, slow * MS)
        admission.add_frames(k * 20 * MS, 3, 3 * slow * MS)
    assert admission.need_ns(3) == 60 * MS


# Lines.


@dataclass
class Station:
    """Serves a part each takt as the station does. `settles`: also refused parts are settled and measured."""

    admission: Admission
    budget_ms: float
    frames: int
    settles: bool = True
    probes: bool = True
    now: int = 0
    admitted: list[bool] = field(default_factory=list)
    late: int = 0

    def part(self, frame_ms: Callable[[], float], settle_ms: Callable[[], float]) -> None:
        began = self.now
        deadline = began + round(self.budget_ms * MS)
        ok = self.admission.admits(self.now, deadline, self.frames)
        self.admitted.append(ok)
        if ok:
            for _ in range(self.frames):
                self._judge(frame_ms())
            self.admission.add_frames(self.now, self.frames, self.now - began)
        if ok or self.settles:
            took = round(settle_ms() * MS)
            self.now += took
            self.admission.add_settle(self.now, took)
        self.late += ok and self.now > deadline
        if self.probes and self.admission.wants_probe(self.now):
            self._judge(frame_ms())
        self.now = max(self.now, began + TAKT)

    def _judge(self, ms: float) -> None:
        self.now += round(ms * MS)
        self.admission.add_frame(self.now, round(ms * MS))


def run(station: Station, frame_ms: float, settle_ms: float, parts: int) -> list[bool]:
    for _ in range(parts):
        station.part(lambda: frame_ms, lambda: settle_ms)
    return station.admitted[-parts:]


def test_a_hiccup_of_few_measurements_refuses_for_seconds_only() -> None:
    station = Station(Admission(0, 0), budget_ms=40, frames=3)
    assert all(run(station, 6, 3, 100))
    run(station, 500, 3, 1)
    told = run(station, 6, 3, 100)
    assert not told[0], "what happened is believed"
    assert all(told[60:]), "and over after eight probes, four a second"


def test_a_hiccup_of_the_disk_too() -> None:
    station = Station(Admission(0, 0), budget_ms=40, frames=3)
    run(station, 6, 3, 100)
    run(station, 6, 800, 1)
    told = run(station, 6, 3, 100)
    assert told.index(True) == RECENT, "each refused part is settled, so eight of them tell"
    assert all(told[told.index(True) :])


def test_one_hiccup_among_thousands_refuses_nothing() -> None:
    station = Station(Admission(0, 0), budget_ms=40, frames=3)
    run(station, 6, 3, 2000)
    run(station, 500, 3, 1)
    assert all(run(station, 6, 3, 100))


def test_a_box_that_became_slow_is_noticed_at_once() -> None:
    station = Station(Admission(0, 0), budget_ms=40, frames=3)
    run(station, 6, 3, 2000)
    told = run(station, 20, 3, 200)
    assert sum(told) <= 5 + 200 // TRIAL_EVERY, "nearly nothing is begun that cannot end in time"
    assert station.late <= 16
    assert all(run(station, 6, 3, 80)[-20:]), "and cool again"


def test_probes_are_few_and_end_with_the_refusals() -> None:
    admission = after(*[50.0] * 20)
    assert not admission.wants_probe(TAKT * 20), "nothing was refused"
    now = TAKT * 20 + PROBE_EVERY_NS
    assert not admission.admits(now, now + 10 * MS, 1)
    asked = 0
    for _ in range(1000):
        if admission.wants_probe(now):
            asked += 1
            admission.add_frame(now, 50 * MS)
            assert not admission.wants_probe(now + PROBE_EVERY_NS - 1), "not one after the other"
        now += 10 * MS
    assert asked == RECENT, "a line that stands still is not measured for ever"
    assert admission.admits(now, now + 100 * MS, 1) and not admission.wants_probe(now + PROBE_EVERY_NS)


@settings(max_examples=80, deadline=None)
@given(
    before=st.lists(st.tuples(st.floats(0.1, 5000), st.floats(0.1, 5000)), max_size=60),  # frame and settle, ms
    prior_ms=st.floats(0, 10_000),
    frame_ms=st.floats(0.1, 30),
    settle_ms=st.floats(0.1, 30),
    frames=st.integers(1, 4),
    settles=st.booleans(),
    probes=st.booleans(),
)
def test_what_fits_is_admitted_again_whatever_happened(
    before: list[tuple[float, float]],
    prior_ms: float,
    frame_ms: float,
    settle_ms: float,
    frames: int,
    settles: bool,
    probes: bool,
) -> None:
    budget = 1.001 * (frames * frame_ms + settle_ms) + 0.01  # hardly more than it takes
    station = Station(Admission(round(prior_ms * MS), round(prior_ms * MS)), budget, frames, settles, probes)
    for frame, settle in before:
        station.part(lambda ms=frame: ms, lambda ms=settle: ms)
    # Also without probes and without settling what is refused, by trials alone: these measure eight of each, and
    # may have to outnumber what was before.
    limit = 20 * RECENT if settles and probes else (RECENT + 1) * module.BLIND_TRIAL_EVERY
    told: list[bool] = []
    while len(told) < limit and not (len(told) >= 20 and all(told[-20:])):
        told += run(station, frame_ms, settle_ms, 1)
    assert all(told[-20:]), f"still refused after {len(told)} parts"


def test_admitted_parts_are_rarely_late_on_a_noisy_line() -> None:
    rng = np.random.default_rng(3)
    station = Station(Admission(0, 0), budget_ms=38, frames=3)
    for _ in range(6000):
        station.part(lambda: 5 + float(rng.gamma(2, 0.8)), lambda: 2 + float(rng.exponential(0.5)))
    assert sum(station.admitted) > 0.97 * 6000
    assert station.late <= 12


def test_its_memory_is_bounded() -> None:
    rng = np.random.default_rng(0)
    admission = Admission(0, 0)
    took = [int(ns) for ns in rng.gamma(4, 1e6, 3 * MOST)]
    for k, ns in enumerate(took):
        admission.add_frame(k * MS, ns)
        admission.admits(k * MS, k * MS + 20 * MS, 3)
    assert len(admission._frame) <= MOST and len(admission._frame._sorted) == len(admission._frame)
