"""Outputs: when they are on, told time and counts; and the lines that carry them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.config import Output, Plc
from edge.errors import PlcError
from edge.part import Answer, Say, Trigger
from edge.plc.cable import PtyCable
from edge.plc.outputs import ENCODER, PENDING, Outputs, Schedule, Switch

MS = 1_000_000
T0 = 5_000 * MS


def trigger(encoder: int | None = None, at_ns: int = T0) -> Trigger:
    return Trigger(1, "", 1, at_ns, 0.0, encoder)


def timed(delay_ms: float = 100, pulse_ms: float = 50, *on: str) -> Schedule:
    return Schedule(Output(id="o", on=list(on) or ["NG"], delay_ms=delay_ms, pulse_ms=pulse_ms))


def by_belt(delay: int = 100, pulse_ms: float = 50) -> Schedule:
    return Schedule(Output(id="o", on=["NG"], delay_counts=delay, pulse_ms=pulse_ms))


def timeline(schedule: Schedule, until_ms: int, from_ms: int = 0) -> list[tuple[int, bool]]:
    """The changes, in ms after the trigger."""
    changes, was = [], False
    for ms in range(from_ms, until_ms):
        on = schedule.step(T0 + ms * MS)
        if on != was:
            changes.append((ms, on))
            was = on
    return changes


@pytest.mark.parametrize(
    ("on", "said", "fires", "why"),
    [
        (["NG"], Say.NG, True, "its word"),
        (["NG"], Say.OK, False, "another word"),
        (["OK"], Say.OK, True, "a lamp for good parts"),
        (["OK"], Say.LATE, False, "an OK that came too late is none"),
        (["FAIL"], Say.LATE, True, "it counts as no verdict"),
        (["NG", "FAIL"], Say.FAIL, True, "one of several"),
    ],
)
def test_what_fires_an_output(on: list[str], said: Say, fires: bool, why: str) -> None:
    schedule = timed(100, 50, *on)
    schedule.answered(trigger(), said, T0 + 10 * MS)
    assert bool(timeline(schedule, 300)) is fires, why


@pytest.mark.parametrize(
    ("delay_ms", "answer_ms", "expected", "dropped", "why"),
    [
        (100, 10, [(100, True), (150, False)], 0, "counted from the trigger, not from the answer"),
        (0, 10, [(10, True), (60, False)], 0, "without a delay: a whole pulse from the answer on"),
        (100, 120, [(120, True), (150, False)], 0, "the answer came within the pulse: what is left of it"),
        (100, 150, [], 1, "the part has gone by: a pulse would hit another one"),
    ],
)
def test_a_pulse_by_time(
    delay_ms: float, answer_ms: int, expected: list[tuple[int, bool]], dropped: int, why: str
) -> None:
    schedule = timed(delay_ms)
    schedule.answered(trigger(), Say.NG, T0 + answer_ms * MS)
    assert timeline(schedule, 400, answer_ms) == expected, why
    assert schedule.dropped["missed"] == dropped


def test_pulses_that_overlap_are_one() -> None:
    schedule = timed()
    for at_ms in (0, 30):
        schedule.answered(trigger(at_ns=T0 + at_ms * MS), Say.NG, T0 + 40 * MS)
    assert timeline(schedule, 400) == [(100, True), (180, False)]


def test_a_pulse_that_nobody_could_give_in_time_is_counted() -> None:
    schedule = timed()
    schedule.answered(trigger(), Say.NG, T0)
    assert not schedule.step(T0 + 200 * MS)
    assert schedule.dropped == {"missed": 1}


def test_the_next_change_by_time_is_foreseen() -> None:
    schedule = timed()
    assert schedule.next_ns() is None
    schedule.answered(trigger(), Say.NG, T0)
    assert schedule.next_ns() == T0 + 100 * MS
    schedule.step(T0 + 100 * MS)
    assert schedule.next_ns() == T0 + 150 * MS


@pytest.mark.parametrize(
    ("at", "counts", "expected", "why"),
    [
        (1000, [1050, 1099], False, "not there yet"),
        (1000, [1050, 1100], True, "there"),
        (1000, [1050, 1500], True, "the count was not told in between"),
        (1000, [1050, 1050, 1050], False, "the belt stands still"),
        (1000, [], False, "no count was told"),
        (ENCODER - 50, [ENCODER - 1, 0, 49], False, "over the end of the counter, not there yet"),
        (ENCODER - 50, [ENCODER - 1, 50], True, "over the end of the counter"),
        (1000, [1050, 990, 1050], False, "the belt went back a little"),
        (1000, [1050, 990, 1100], True, "and forth again"),
    ],
)
def test_a_pulse_by_the_way_of_the_belt(at: int, counts: list[int], expected: bool, why: str) -> None:
    schedule = by_belt()
    schedule.counted(at)
    schedule.answered(trigger(at), Say.NG, T0)
    on = False
    for count in counts:
        schedule.counted(count)
        on |= schedule.step(T0 + 20 * MS)
    assert on is expected, why


@pytest.mark.parametrize(
    ("encoder", "now", "cause", "why"),
    [
        (None, 1000, "no_encoder", "the trigger told no count"),
        (1000, 1101, "missed", "the part has gone by when the answer comes"),
    ],
)
def test_a_belt_pulse_that_cannot_be_is_dropped_by_name(encoder: int | None, now: int, cause: str, why: str) -> None:
    schedule = by_belt()
    schedule.counted(now)
    schedule.answered(trigger(encoder), Say.NG, T0)
    assert not schedule.step(T0), why
    assert schedule.dropped == {cause: 1}


def test_an_encoder_that_begins_anew_drops_what_waits() -> None:
    schedule = by_belt()
    schedule.counted(50_000)
    schedule.answered(trigger(50_000), Say.NG, T0)
    schedule.counted(3)
    schedule.counted(50_100)
    assert not schedule.step(T0)
    assert schedule.dropped == {"encoder_reset": 1}


def test_what_waits_is_bounded_and_the_oldest_goes() -> None:
    by_count, by_time = by_belt(), timed(600_000)
    for number in range(PENDING + 3):
        by_count.answered(trigger(number), Say.NG, T0)
        by_time.answered(trigger(at_ns=T0 + number), Say.NG, T0)
    assert by_count.dropped == by_time.dropped == {"overflow": 3}
    by_count.counted(102)
    assert not by_count.step(T0), "pulses 0 to 2 are gone"
    by_count.counted(103)
    assert by_count.step(T0)


def test_a_lost_link_turns_all_off_and_forgets() -> None:
    schedule = timed(0)
    schedule.answered(trigger(), Say.NG, T0)
    assert schedule.step(T0)
    schedule.answered(trigger(), Say.NG, T0 + 10 * MS)
    schedule.reset()
    assert not schedule.step(T0 + 11 * MS)
    assert schedule.dropped == {"link_lost": 1}


class FakeLines:
    """The modem lines of an adapter, as `SerialPort` sets them."""

    def __init__(self) -> None:
        self.is_open = True
        self.history: list[tuple[str, bool]] = []

    def set_line(self, line: str, high: bool) -> None:
        if not self.is_open:
            raise PlcError("not open")
        self.history.append((line, high))


def answer(outputs: Outputs, said: Say, now_ns: int = T0) -> None:
    outputs.listening(lambda answer, ms, word: None, lambda: now_ns)(Answer(trigger(), 1, said), 1.0, said)


def test_a_line_of_the_links_own_port_is_an_output() -> None:
    outputs = Outputs([Output(id="lamp", on=["NG"], delay_ms=0.0, pulse_ms=10.0, via="rts")], Plc(port="/dev/x"))
    lines = FakeLines()
    outputs.use_port(lines)  # type: ignore[arg-type]
    assert outputs.own_lines == ("rts",), "it is low from the opening on"
    answer(outputs, Say.NG)
    assert outputs.run(T0) == [] and outputs.run(T0 + 5 * MS) == []
    assert outputs.run(T0 + 10 * MS) == []
    assert lines.history == [("rts", True), ("rts", False)]
    answer(outputs, Say.NG)
    outputs.run(T0)
    outputs.link_lost()
    assert lines.history[-1] == ("rts", False)
    assert outputs.dropped() == {}


def test_a_line_that_is_not_there_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    cable = PtyCable(tmp_path / "lamp")
    cable.plug()  # a pty has no such lines
    here = Output(id="a", on=["NG"], delay_ms=0.0, pulse_ms=10.0, via="rts", port=str(tmp_path / "lamp"))
    gone = Output(id="b", on=["NG"], delay_ms=0.0, pulse_ms=10.0, via="dtr", port=str(tmp_path / "none"))
    outputs = Outputs([here, gone], Plc(port="/dev/x"))
    assert outputs.own_lines == ()
    outputs.rest()
    answer(outputs, Say.NG)
    outputs.run(T0)
    outputs.run(T0 + 10 * MS)
    assert outputs.dropped() == {"line": 2}
    outputs.close()
    cable.pull()


def test_outputs_by_way_of_the_plc_have_bits_in_the_order_of_the_config() -> None:
    a = Output(id="a", on=["NG"], delay_ms=0.0, pulse_ms=10.0)
    lamp = Output(id="lamp", on=["NG"], delay_ms=0.0, via="rts")
    b = Output(id="b", on=["NG", "OK"], delay_ms=0.0, pulse_ms=20.0)
    outputs = Outputs([a, lamp, b], Plc(port="/dev/x"))
    outputs.use_port(FakeLines())  # type: ignore[arg-type]
    assert outputs.plc_ids == ("a", "b")
    answer(outputs, Say.NG)
    assert outputs.run(T0) == [Switch("a", True), Switch("b", True)]
    assert outputs.bits() == 0b11
    assert outputs.run(T0 + 10 * MS) == [Switch("a", False)]
    assert (outputs.bits(), outputs.states()) == (0b10, [Switch("a", False), Switch("b", True)])
    outputs.link_lost()
    assert outputs.bits() == 0
