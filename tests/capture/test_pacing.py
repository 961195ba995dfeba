"""The schedule of a source that could go faster."""

from __future__ import annotations

from edge.capture.pacing import Pacer


class Time:
    """A clock that moves only when slept on, or by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_frames_keep_their_schedule_while_the_reader_dawdles_a_little() -> None:
    time = Time()
    pacer = Pacer(10, time, time.sleep)
    due = []
    for k in range(50):
        assert pacer.wait(1.0)
        due.append(round(time.now - 100, 6))
        time.now += 0.03 * (k % 3)  # at most 60 of 100 ms
    assert due == [round(0.1 * k, 6) for k in range(50)], "what a reader took must not push the next frame back"


def test_a_late_reader_gets_one_frame_at_once_and_no_burst() -> None:
    time = Time()
    pacer = Pacer(10, time, time.sleep)
    pacer.wait(1.0)
    time.now += 5.0
    stamps = []
    for _ in range(3):
        pacer.wait(1.0)
        stamps.append(round(time.now - 105, 6))
    assert stamps == [0.0, 0.1, 0.2]


def test_a_frame_not_due_in_time_stays_due() -> None:
    time = Time()
    pacer = Pacer(1, time, time.sleep)
    assert pacer.wait(0)
    assert [pacer.wait(0.4) for _ in range(3)] == [False, False, True]
    assert round(time.now, 6) == 101.0
