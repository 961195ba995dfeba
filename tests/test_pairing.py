"""The frame of a trigger: the right part's frame or none, whatever camera, clocks and cable do."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.config import SimulatedCamera
from edge.pairing import Choice, Chosen, Lack, NoFrame, Pairer, Wait
from edge.part import Trigger
from edge.records import Frame

IMAGE = np.zeros((2, 2), np.uint8)
RING = 8


def ns(ms: float) -> int:
    return round(ms * 1e6)


def frame(number: int, at_ms: float) -> Frame:
    return Frame(IMAGE, "a", number, ns(at_ms), 0.0)


def frames(*at_ms: float, first: int = 1) -> list[Frame]:
    return [frame(first + k, at) for k, at in enumerate(at_ms)]


def trigger(number: int, at_ms: float) -> Trigger:
    return Trigger(number, "", 1, ns(at_ms), 0.0)


def pairer(**keys: object) -> Pairer:
    return Pairer(SimulatedCamera(id="a", **keys))  # type: ignore[arg-type]


def said(choice: Choice) -> object:
    """What a choice comes to: a frame's number, the moment until when to wait in ms, or the lack."""
    if isinstance(choice, Chosen):
        return choice.frame.number
    return ("wait", choice.until_ns / 1e6) if isinstance(choice, Wait) else choice.lack.value


@pytest.mark.parametrize(
    ("why", "at_ms", "now_ms", "expected"),
    [
        ("a frame after the moment is there: the nearer of the two around", [80, 112], 113, 2),
        ("the one before is nearer, and one after is there", [95, 128], 129, 1),
        ("the frame before may be beaten until as long after", [90], 101, ("wait", 110)),
        ("no better one came by then", [90], 110, 1),
        ("only an early one beyond reach: one may come to the end of the reach", [40], 101, ("wait", 150)),
        ("nothing at all yet", [], 101, ("wait", 150)),
        ("nothing came", [], 150, "none_near"),
        ("too far off, and a later one is further off: no wait", [40, 151], 152, "none_near"),
        ("at the very end of the window", [150], 151, 1),
        ("exactly at the moment", [67, 100, 133], 140, 2),
    ],
)
def test_by_time_the_nearest_within_reach(why: str, at_ms: list[float], now_ms: float, expected: object) -> None:
    pair = pairer()
    pair.begin(trigger(1, 100))
    assert said(pair.look(frames(*at_ms), ns(now_ms))) == expected, why


def test_offset_and_latency_shift_what_is_wanted_and_when_it_can_be_there() -> None:
    pair = pairer(offset_ms=40, latency_ms=15)
    pair.begin(trigger(1, 100))
    assert said(pair.look(frames(150), ns(151))) == ("wait", 100 + 40 + 5 + 15)  # exposed at 135, wanted at 140
    choice = pair.look(frames(150, 157), ns(158))
    assert isinstance(choice, Chosen) and choice.frame.number == 2
    assert choice.pairing.offset_ms == 2.0


def test_without_time_to_wait_the_best_so_far_is_taken() -> None:
    pair = pairer()
    pair.begin(trigger(1, 100))
    assert isinstance(pair.look(frames(90), ns(101)), Wait)
    assert said(pair.look(frames(90), ns(101), final=True)) == 1


def test_a_frame_shows_one_part_only() -> None:
    pair = pairer()
    shots = frames(0, 40, 80, 120)
    numbers = []
    for k, at in enumerate((2, 22, 42, 62, 82)):  # twice as fast as the camera
        pair.begin(trigger(k, at))
        numbers.append(said(pair.look(shots, ns(at + 60))))
    assert numbers == [1, "none_near", 2, "none_near", 3]

    pair = pairer()
    pair.begin(trigger(7, 100))
    assert said(pair.look(frames(104), ns(105))) == 1
    pair.begin(trigger(8, 130))
    choice = pair.look(frames(104), ns(300))
    assert choice == NoFrame(Lack.ALREADY_SHOWN, "its nearest frame was already shown for trigger 7")


@pytest.mark.parametrize(
    ("why", "takt_ms", "before_ms", "late_ms", "expected"),
    [
        ("the window alone", None, None, 0, 1),
        ("within half of the takt", 70, None, 0, 1),
        ("beyond half of the takt it shows the next part", 60, None, 0, "none_near"),
        ("exactly half: it shows both or neither", 64, None, 0, "none_near"),
        ("beyond half the way from the trigger before", None, 40, 0, "none_near"),
        ("the trigger before is far away", None, 10, 0, 1),
        ("times that are read late take from what can be told", 70, None, 4, "none_near"),
        ("triggers nearer than their times are known", None, 92, 5, "too_close"),
        ("twice the same moment", None, 100, 0, "too_close"),
    ],
)
def test_a_frame_nearer_to_a_neighbour_is_not_taken(
    why: str, takt_ms: float | None, before_ms: float | None, late_ms: float, expected: object
) -> None:
    pair = pairer()
    if before_ms is not None:
        pair.begin(trigger(1, before_ms), takt_ms, wanted=False)
    pair.begin(trigger(2, 100), takt_ms, late_ms=late_ms)
    assert said(pair.look(frames(132), ns(200))) == expected, why


def test_a_frame_that_turns_out_to_show_the_next_part_is_told() -> None:
    pair = pairer()
    assert pair.begin(trigger(11, 100)) == ""
    assert said(pair.look(frames(130), ns(131))) == 1
    told = pair.begin(trigger(12, 140))
    assert "given to trigger 11 (30.0 ms off) is nearer to trigger 12 (10.0 ms off)" in told
    assert pair.crossed == 1
    assert said(pair.look(frames(130), ns(200))) == "already_shown", "nor does it show both"
    assert pair.begin(trigger(13, 400)) == "", "once"


def test_why_there_is_none_is_said_and_counted() -> None:
    pair = pairer()
    for k, (shots, words) in enumerate(
        [
            ([], "no new frame came within 50.0 ms"),
            (frames(20), "the nearest is 80.0 ms too early"),
            (frames(180), "the nearest is 80.0 ms too late"),
        ]
    ):
        pair = pairer()
        pair.begin(trigger(k, 100))
        choice = pair.look(shots, ns(1000))
        assert isinstance(choice, NoFrame) and words in choice.why
        assert (pair.paired, pair.lacks) == (0, {Lack.NONE_NEAR: 1})
    pair.begin(trigger(4, 2000))
    pair.begin(trigger(5, 3000))
    assert pair.lacks[Lack.GIVEN_UP] == 1
    pair.begin(trigger(6, 4000), wanted=False)
    with pytest.raises(ValueError, match="trigger that was begun"):
        pair.look([], ns(4000))


@pytest.mark.parametrize(
    ("why", "at_ms", "uncertainty_ms"),
    [
        ("half the interval around the moment", [60, 93, 126], 16.5),
        ("a dropped frame makes it longer", [27, 60, 126], 33.0),
        ("none after it: the usual interval", [27, 60, 93], 16.5),
        ("none after it, and it is further off than that", [37, 57, 77], 23.0),
        ("a single frame says nothing of an interval", [93], 50.0),
    ],
)
def test_the_uncertainty(why: str, at_ms: list[float], uncertainty_ms: float) -> None:
    for late_ms in (0.0, 3.0):
        pair = pairer()
        pair.begin(trigger(1, 100), late_ms=late_ms)
        choice = pair.look(frames(*at_ms), ns(1000))
        assert isinstance(choice, Chosen)
        assert choice.pairing.uncertainty_ms == uncertainty_ms + late_ms, why


# By counter.


def counted(parts: list[tuple[float, list[Frame]]], takt_ms: float | None = 50) -> tuple[Pairer, list[object]]:
    """Each part's trigger and what was in the ring when it was looked at."""
    pair = pairer(pairing="counter")
    told = []
    for k, (at, shots) in enumerate(parts):
        pair.begin(trigger(k, at), takt_ms)
        told.append(said(pair.look(shots, ns(at + 100))))
    return pair, told


def every(*at_ms: float) -> list[tuple[float, list[Frame]]]:
    return [(at, []) for at in at_ms]


def with_all(parts: list[tuple[float, list[Frame]]], shots: list[Frame]) -> list[tuple[float, list[Frame]]]:
    return [(at, shots) for at, _ in parts]


@pytest.mark.parametrize(
    ("why", "triggers_ms", "frames_ms", "expected", "resynced"),
    [
        ("all is well; the frame comes a little before its trigger is read", [0, 50, 100], [-3, 47, 97], [1, 2, 3], 0),
        ("frames from before the arm do not count", [500, 550], [100, 150, 500, 550], [3, 4], 0),
        (
            "one frame is lost: its part has none, the next is in doubt, then the count follows",
            [0, 50, 100, 150, 200],
            [0, 50, 150, 200],
            [1, 2, "none_near", "out_of_step", 4],
            1,
        ),
        (
            "a trigger that was refused fired the camera",
            [0, 50, 150, 200],
            [0, 50, 100, 150, 200],
            [1, 2, "out_of_step", 5],
            1,
        ),
        (
            "noise fired the camera",
            [0, 50, 100, 150],
            [0, 50, 77, 100, 150],
            [1, 2, "out_of_step", 5],
            1,
        ),
        (
            "a trigger that was read a whole part late: by its time it would get the next part's frame",
            [0, 50, 150, 151, 200],
            [0, 50, 100, 150, 200],
            [1, 2, "out_of_step", "none_near", 5],
            0,
        ),
        (
            "a frame that was stamped a whole part late: by its time the next part would get it",
            [0, 50, 100, 150, 200],
            [0, 50, 149, 152, 200],
            [1, 2, "none_near", "out_of_step", 5],
            0,
        ),
    ],
)
def test_by_counter_count_and_time_must_agree(
    why: str, triggers_ms: list[float], frames_ms: list[float], expected: list[object], resynced: int
) -> None:
    pair, told = counted(with_all(every(*triggers_ms), frames(*frames_ms)))
    assert told == expected, why
    assert pair.resynced == resynced


def test_by_counter_there_is_no_wait_for_a_nearer_frame() -> None:
    pair = pairer(pairing="counter")
    pair.begin(trigger(1, 100))
    assert isinstance(pair.look(frames(97), ns(101)), Wait), "the count begins here: time alone must be sure"
    assert said(pair.look(frames(97), ns(103))) == 1
    pair.begin(trigger(2, 200))
    assert said(pair.look(frames(97, 195), ns(201))) == 2


def test_a_part_of_another_recipe_keeps_the_count() -> None:
    shots = frames(0, 50, 100)
    pair = pairer(pairing="counter")
    pair.begin(trigger(1, 0), 50)
    assert said(pair.look(shots, ns(200))) == 1
    pair.begin(trigger(2, 50), 50, wanted=False)
    pair.begin(trigger(3, 100), 50)
    assert said(pair.look(shots, ns(200))) == 3
    assert pair.resynced == 0 and not pair.lacks


def test_the_uncertainty_of_a_fired_camera_is_the_spread_of_its_offsets() -> None:
    pair = pairer(pairing="counter")
    told = []
    for k, off in enumerate((0.0, 2.0, -1.0, 1.0)):
        pair.begin(trigger(k, 100 * k), 100)
        choice = pair.look([frame(k + 1, 100 * k + off)], ns(100 * k + 60))
        assert isinstance(choice, Chosen)
        told.append(choice.pairing.uncertainty_ms)
    assert told == [50.0, 1.0, 1.5, 1.5], "the first has only the reach to tell"


# Whole lines, with the truth about each frame.


@dataclass
class Line:
    """A line with its truth: when each part really was there, and which frames really show it.

    Attributes:
        parts: real times of all parts, ms. read: trigger index -> when its trigger was read; missing: refused.
        exposed: real exposure of each delivered frame, ms. stamped: when it was in memory, by the clock.
    """

    parts: list[float]
    read: dict[int, float]
    exposed: list[float]
    stamped: list[float]
    wrong: list[int] = field(default_factory=list)
    paired: int = 0
    late_ms: float = 0.0

    def run(
        self,
        pair: Pairer,
        takt_ms: float | None,
        busy_ms: Callable[[int], float] = lambda k: 0.0,
        late_ms: float = 0.0,
    ) -> Line:
        """Serve the triggers as a station does: one after the other, each when the one before is settled."""
        self.late_ms = late_ms
        shots = [frame(k + 1, at) for k, at in enumerate(self.stamped)]
        free_ms = 0.0
        for k in sorted(self.read, key=lambda k: self.read[k]):
            pair.begin(trigger(k, self.read[k]), takt_ms, late_ms=late_ms)
            choice, free_ms = self._serve(pair, shots, max(self.read[k], free_ms))
            free_ms += busy_ms(k)
            if isinstance(choice, Chosen):
                self.paired += 1
                if self.shows(choice.frame.number) != k:
                    self.wrong.append(k)
        return self

    def _serve(self, pair: Pairer, shots: list[Frame], now_ms: float) -> tuple[Choice, float]:
        while True:
            come = bisect.bisect_right(self.stamped, now_ms)
            choice = pair.look(shots[max(0, come - RING) : come], ns(now_ms), late_ns=lambda _frame: ns(self.late_ms))
            if not isinstance(choice, Wait):
                return choice, now_ms
            assert choice.until_ns > ns(now_ms), "a wait must end"
            now_ms = min([choice.until_ns / 1e6, *self.stamped[come : come + 1]])

    def shows(self, number: int) -> int:
        """The part that was nearest to the camera's moment."""
        return int(np.argmin(np.abs(np.array(self.parts) - self.exposed[number - 1])))


def free_running(seed: int, period: float, takt: float, late: float, latency: float, drops: float, n: int) -> Line:
    rng = np.random.default_rng(seed)
    parts = 1000 + np.cumsum(takt + rng.exponential(0.1 * takt, n))
    count = int((parts[-1] + 500) / period)
    exposed = rng.uniform(0, period) + period * np.arange(count) + rng.uniform(0, 0.05 * period, count)
    exposed = exposed[rng.random(count) >= drops]
    stamped = np.maximum.accumulate(exposed + latency + rng.uniform(0, late, len(exposed)))
    read = parts + rng.uniform(0, late, n)
    return Line(list(parts), dict(enumerate(np.maximum.accumulate(read))), list(exposed), list(stamped))


@pytest.mark.parametrize(
    ("why", "period", "takt", "late", "latency", "drops", "least"),
    [
        ("a camera much faster than the line", 10, 50, 0, 12, 0.0, 1.0),
        ("30 frames a second, 20 parts a second", 33.3, 50, 0, 20, 0.0, 1.0),
        ("times read late by an inference", 20, 100, 12, 20, 0.0, 1.0),
        ("one frame of ten is dropped", 20, 50, 3, 20, 0.1, 0.85),
        ("half are dropped", 20, 50, 3, 20, 0.5, 0.5),
        ("a camera slower than the line", 100, 50, 0, 20, 0.0, 0.3),
        ("late by more than the parts are apart", 20, 50, 30, 20, 0.0, 0.0),
    ],
)
def test_no_wrong_part_on_lines_with_a_free_running_camera(
    why: str, period: float, takt: float, late: float, latency: float, drops: float, least: float
) -> None:
    for seed in range(3):
        line = free_running(seed, period, takt, late, latency, drops, 250)
        chance = np.random.default_rng(seed + 100)
        pair = pairer(latency_ms=latency)
        line.run(pair, takt, lambda k, chance=chance: float(chance.uniform(0, 0.7 * 50)), late)
        assert line.wrong == [], why
        assert line.paired >= least * 250, (why, line.paired, pair.lacks)
        assert pair.paired + pair.lacks.total() == 250


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    period=st.floats(5, 150),
    takt=st.floats(20, 300),
    late=st.floats(0, 40),
    latency=st.floats(0, 60),
    drops=st.floats(0, 0.8),
)
def test_no_wrong_part_whatever_the_line(
    seed: int, period: float, takt: float, late: float, latency: float, drops: float
) -> None:
    line = free_running(seed, period, takt, late, latency, drops, 40)
    pair = pairer(latency_ms=latency)
    assert line.run(pair, takt, late_ms=late).wrong == []
    assert pair.crossed == 0


def fired(seed: int, n: int, takt: float = 50.0) -> Line:
    """A fired camera and single faults, each a few parts after the one before: any of them, in any order."""
    rng = np.random.default_rng(seed)
    parts = list(1000 + takt * np.arange(n) + rng.uniform(0, 0.1 * takt, n).cumsum())
    shots = [(at, at + rng.uniform(0, 3)) for at in parts]  # exposed, stamped
    read = {k: at + rng.uniform(0, 5) for k, at in enumerate(parts)}
    lost, extra = set(), []
    for k in range(4, n - 4, 6):
        fault = rng.choice(["lost", "extra", "refused", "read late", "stamped late", "none"])
        if fault == "lost":
            lost.add(k)
        elif fault == "extra":
            at = parts[k] + rng.uniform(0.1, 0.9) * takt
            extra.append((at, at + rng.uniform(0, 3)))
        elif fault == "refused":
            del read[k]
        elif fault == "read late":
            read[k] += rng.uniform(0, 1.5) * takt
            read[k + 1] = max(read[k] + 0.1, read[k + 1])  # one cable: in their order
            read[k + 2] = max(read[k + 1] + 0.1, read[k + 2])
        elif fault == "stamped late":
            shots[k] = (shots[k][0], shots[k][1] + rng.uniform(0, 1.5) * takt)
    kept = sorted([shot for k, shot in enumerate(shots) if k not in lost] + extra)
    stamps = np.maximum.accumulate([stamped for _, stamped in kept])
    return Line(parts, read, [exposed for exposed, _ in kept], list(stamps))


def test_no_wrong_part_with_a_fired_camera_whatever_single_fault() -> None:
    resynced = 0
    for seed in range(30):
        line = fired(seed, 150)
        pair = pairer(pairing="counter", latency_ms=1.5)
        line.run(pair, 50)
        assert line.wrong == [], f"seed {seed}"
        assert line.paired > 0.6 * len(line.read), (seed, pair.lacks)
        assert pair.paired + pair.lacks.total() == len(line.read)
        resynced += pair.resynced
    assert resynced > 100


def test_by_time_alone_such_faults_would_pass_wrong_parts() -> None:
    """The truth above can fail: without the second proof it does."""
    wrong = sum(len(fired(seed, 150).run(pairer(latency_ms=1.5), 50).wrong) for seed in range(30))
    assert wrong > 20
