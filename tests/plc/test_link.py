"""The link's thread with the ASCII dialect, on real pseudo-terminals, between a desk and a PLC played by hand."""

from __future__ import annotations

import logging
import os
import random
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.clock import SystemClock
from edge.config import Output, Plc
from edge.part import Say, Trigger
from edge.plc.ascii_line import (
    AckLine,
    BeatLine,
    Command,
    ErrorLine,
    Garbage,
    Message,
    OutputLine,
    QueryLine,
    RecipeLine,
    SignalsLine,
    TakenLine,
    TriggerLine,
    VerdictLine,
    encode,
    messages,
)
from edge.plc.cable import PtyCable
from edge.plc.desk import Desk
from edge.plc.handshake import LinkState
from edge.plc.link import Link, make_link
from tests.plc.stations import EchoStation


class Hand:
    """A PLC that says what the test says."""

    def __init__(self, path: Path) -> None:
        self.cable = PtyCable(path)
        self.cable.plug()
        self._reader = messages(True)
        self._heard: list[Message | Garbage] = []

    def say(self, *lines: Command) -> None:
        self.cable.write(b"".join(encode(line, True) for line in lines))

    def wait_for(self, wanted: Callable[[Message], bool], timeout_s: float = 3.0) -> Message:
        """The next message of this kind; what comes before it is dropped."""
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            while self._heard:
                item = self._heard.pop(0)
                if not isinstance(item, Garbage) and wanted(item):
                    return item
            if select.select([self.cable], [], [], left)[0]:
                self._heard += self._reader.feed(self.cable.read())
        raise AssertionError("the station did not say it in time")

    def next(self, kind: type[Message], timeout_s: float = 3.0) -> Message:
        return self.wait_for(lambda message: isinstance(message, kind), timeout_s)

    def silence(self, kind: type[Message], seconds: float) -> None:
        """Nothing of this kind comes for so long."""
        with pytest.raises(AssertionError):
            self.next(kind, seconds)

    def replug(self) -> None:
        self.cable.pull()
        self.cable.plug()
        self._reader.reset()
        self._heard.clear()


class Rig:
    """A link with both of its ends."""

    def __init__(self, folder: Path, outputs: tuple[Output, ...] = (), plugged: bool = True, **settings: float) -> None:
        self.path = folder / "plc"
        self.plc = Hand(self.path)
        if not plugged:
            self.plc.cable.pull()
        self.desk = Desk(2, frozenset({1, 2}), 1)
        self.answered: list[tuple[int, float, Say]] = []
        self.late: list[int] = []
        self.link: Link = make_link(
            Plc(port=str(self.path), **settings),
            self.desk,
            SystemClock(),
            lambda answer, ms, said: self.answered.append((answer.result_id, ms, said)),
            lambda answer, again: self.late.append(answer.result_id),
            outputs,
        )
        self.link.start()

    def state(self, wanted: LinkState, timeout_s: float = 5.0) -> None:
        until = time.monotonic() + timeout_s
        while self.link.status().state is not wanted:
            assert time.monotonic() < until, self.link.status()
            time.sleep(0.005)

    def close(self) -> None:
        assert self.link.stop(3)
        self.plc.cable.pull()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    rig.state(LinkState.CONNECTED)
    yield rig
    rig.close()


def test_a_part_from_trigger_to_ack(rig: Rig) -> None:
    with EchoStation(rig.desk) as station:
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(17, "SN0017", 2, 5000))
        assert rig.plc.next(TakenLine) == TakenLine(17)
        assert rig.plc.next(VerdictLine) == VerdictLine(17, 1, Say.OK)
        rig.plc.say(AckLine(1))
        rig.plc.silence(VerdictLine, 0.8)
    trigger = station.taken[0]
    assert (trigger.serial, trigger.recipe, trigger.encoder) == ("SN0017", 2, 5000)
    assert [(result, said) for result, _, said in rig.answered] == [(1, Say.OK)]
    assert 0 < rig.answered[0][1] < 1000
    assert rig.link.status().answered == 1


def test_ready_and_busy_are_shown(rig: Rig) -> None:
    with EchoStation(rig.desk, takes_s=0.3):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready and not m.busy)
        rig.plc.say(TriggerLine(1, "", 0), TriggerLine(2, "", 0))
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and not m.ready and m.busy)
        rig.plc.say(TriggerLine(3, "", 0))
        assert rig.plc.next(ErrorLine) == ErrorLine(3, "OVERRUN")
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready and not m.busy)
    assert rig.link.status().overruns == 1


def test_a_ready_that_falls_is_told_before_the_trigger_is_taken(rig: Rig) -> None:
    with EchoStation(rig.desk, takes_s=0.2):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(1, "", 0), TriggerLine(2, "", 0))
        told = [rig.plc.wait_for(lambda m: not isinstance(m, VerdictLine)) for _ in range(3)]
        assert told[0] == TakenLine(1)
        assert isinstance(told[1], SignalsLine) and not told[1].ready
        assert told[2] == TakenLine(2)


def test_before_the_station_runs_triggers_are_refused_by_name(rig: Rig) -> None:
    rig.plc.say(TriggerLine(1, "", 0))
    assert rig.plc.next(ErrorLine) == ErrorLine(1, "NOT_RUNNING")


def test_an_unacknowledged_answer_is_said_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ack_s=0.05)
    with EchoStation(rig.desk):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(1, "", 0))
        for _ in range(6):
            assert rig.plc.next(VerdictLine) == VerdictLine(1, 1, Say.OK)
        rig.plc.silence(VerdictLine, 0.2)
    assert (rig.link.status().unacknowledged, len(rig.answered)) == (1, 1)
    rig.close()


def test_an_ok_after_its_time_is_late_on_the_wire(rig: Rig) -> None:
    with EchoStation(rig.desk, takes_s=0.05, until_s=0.02):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(1, "", 0))
        answer = rig.plc.next(VerdictLine)
        assert isinstance(answer, VerdictLine) and answer.say is Say.LATE
        rig.plc.say(AckLine(1))
    assert (rig.late, rig.link.status().late) == ([1], 1)


def test_a_recipe_is_set_by_request_or_refused_by_name(rig: Rig) -> None:
    rig.plc.say(RecipeLine(2))
    rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.recipe == 2)
    rig.plc.say(RecipeLine(3))
    assert rig.plc.next(ErrorLine) == ErrorLine(None, "UNKNOWN_RECIPE")
    rig.plc.say(RecipeLine(2))
    rig.plc.next(SignalsLine, 0.5)  # said again, though nothing changed
    rig.plc.say(QueryLine())
    rig.plc.next(SignalsLine, 0.5)


def test_garbage_is_answered_at_a_rate_that_leaves_the_line_free(rig: Rig) -> None:
    with EchoStation(rig.desk):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        for number in range(20):
            rig.plc.cable.write(b"garbage\n" * 50)
            rig.plc.say(TriggerLine(number, "", 0))
            rig.plc.wait_for(lambda m, n=number: isinstance(m, VerdictLine) and m.number == n)  # type: ignore[misc]
            rig.plc.say(AckLine(number + 1))
    rig.plc.say(QueryLine())
    rig.plc.next(SignalsLine)  # by now it has counted
    assert (rig.link.status().garbage, rig.link.status().answered) == (1000, 20)


def test_a_silent_plc_is_named_and_comes_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, heartbeat_s=0.1)
    rig.state(LinkState.CONNECTED)
    rig.state(LinkState.SILENT)
    assert "nothing came from the PLC for 0.3 s" in rig.link.status().detail
    rig.plc.say(BeatLine(1))
    rig.state(LinkState.CONNECTED)
    rig.plc.cable.write(b"\x00\x80" * 70)
    rig.state(LinkState.SILENT)
    assert "pieces of garbage" in rig.link.status().detail and "baud" in rig.link.status().detail
    rig.close()


def test_a_port_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, plugged=False)
    time.sleep(0.2)
    status = rig.link.status()
    assert status.state is LinkState.RECONNECTING
    assert f"there is no serial port {rig.path}" in status.detail and "/dev/serial/by-id" in status.detail
    assert rig.link.beat.thread() is not None and not rig.link.beat.hangs()
    rig.plc.cable.plug()
    rig.state(LinkState.CONNECTED)
    rig.plc.next(SignalsLine)
    rig.close()


def test_the_cable_is_pulled_at_any_byte_and_no_trigger_is_lost(rig: Rig) -> None:
    chance = random.Random(3)
    longest_s = 0.0
    with EchoStation(rig.desk):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        for number in range(20):
            data = encode(TriggerLine(number, "SN", 0), True)
            rig.plc.cable.write(data[: chance.randrange(len(data) + 1)])
            time.sleep(chance.choice([0, 0.001, 0.01]))
            rig.plc.replug()
            plugged = time.monotonic()
            rig.plc.next(SignalsLine, 5)
            longest_s = max(longest_s, time.monotonic() - plugged)
            rig.plc.say(TriggerLine(number, "SN", 0))
            answer = rig.plc.wait_for(lambda m, n=number: isinstance(m, VerdictLine) and m.number == n)  # type: ignore[misc]
            assert isinstance(answer, VerdictLine)
            rig.plc.say(AckLine(answer.result_id))
    assert longest_s < 2
    assert rig.link.status().reopened == 20
    assert rig.link.status().answered == 20


def test_an_answer_ready_while_the_cable_is_out_is_said_when_it_is_in(rig: Rig) -> None:
    with EchoStation(rig.desk, takes_s=0.2):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(5, "SN", 0))
        rig.plc.next(TakenLine)
        rig.plc.cable.pull()
        time.sleep(0.4)
        rig.plc.replug()
        assert rig.plc.next(VerdictLine) == VerdictLine(5, 1, Say.OK)


def test_a_line_that_takes_nothing_is_opened_again(rig: Rig) -> None:
    with EchoStation(rig.desk):
        until = time.monotonic() + 20
        while not rig.link.status().reopened:
            assert time.monotonic() < until
            rig.plc.say(*[QueryLine()] * 50)  # and nobody reads the answers
            rig.plc.cable.write(b"")
            time.sleep(0.001)
        rig.plc.replug()
        rig.plc.next(SignalsLine, 5)


def test_what_is_answered_before_the_stop_is_still_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.desk.open()
    rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
    rig.plc.say(TriggerLine(1, "", 0))
    rig.plc.next(TakenLine)
    with EchoStation(rig.desk, judge=lambda trigger: Say.FAIL) as station:
        while not station.parts:
            time.sleep(0.001)
    assert rig.link.stop(3)
    answer = rig.plc.next(VerdictLine)
    assert isinstance(answer, VerdictLine) and answer.say is Say.FAIL
    rig.plc.cable.pull()


def test_outputs_by_way_of_the_plc_pulse_after_the_verdict(tmp_path: Path) -> None:
    ejector = Output(id="ejector", on=["NG"], delay_ms=60.0, pulse_ms=50.0)
    lamp = Output(id="lamp", on=["OK"], delay_ms=0.0)
    rig = Rig(tmp_path, (ejector, lamp))
    assert rig.plc.next(OutputLine) == OutputLine("ejector", False), "told at the start"
    assert rig.plc.next(OutputLine) == OutputLine("lamp", False)
    with EchoStation(rig.desk, judge=lambda trigger: Say.NG):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        began = time.monotonic()
        rig.plc.say(TriggerLine(1, "", 0))
        assert rig.plc.next(OutputLine) == OutputLine("ejector", True)
        on_s = time.monotonic() - began
        assert rig.plc.next(OutputLine) == OutputLine("ejector", False)
        off_s = time.monotonic() - began
    assert 0.055 < on_s < 0.3 and 0.1 < off_s < 0.5
    rig.close()


def test_an_output_by_the_way_of_the_belt_waits_for_the_belt(tmp_path: Path) -> None:
    rig = Rig(tmp_path, (Output(id="ejector", on=["NG"], delay_counts=100, pulse_ms=20.0),))
    with EchoStation(rig.desk, judge=lambda trigger: Say.NG):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(1, "", 0, 2**32 - 50))
        rig.plc.next(VerdictLine)
        rig.plc.say(AckLine(1), BeatLine(1, 2**32 - 1), BeatLine(2, 49))
        rig.plc.silence(OutputLine, 0.2)
        rig.plc.say(BeatLine(3, 50))
        assert rig.plc.next(OutputLine) == OutputLine("ejector", True)
    rig.close()


def test_a_repeated_trigger_tells_where_the_belt_was_not_where_it_is(tmp_path: Path) -> None:
    rig = Rig(tmp_path, (Output(id="ejector", on=["NG"], delay_counts=100, pulse_ms=20.0),))
    first, second = TriggerLine(1, "A", 0, 1000), TriggerLine(2, "B", 0, 5000)
    with EchoStation(rig.desk, judge=lambda trigger: Say.NG):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(first)
        rig.plc.next(VerdictLine)
        rig.plc.say(second)
        rig.plc.wait_for(lambda m: m == OutputLine("ejector", True))  # of the first: the belt is far beyond
        rig.plc.wait_for(lambda m: m == OutputLine("ejector", False))
        rig.plc.say(first, BeatLine(1, 5100))
        rig.plc.wait_for(lambda m: m == OutputLine("ejector", True))
    assert rig.link.status().outputs_dropped == 0
    rig.close()


def test_outputs_are_off_when_the_link_was_lost(tmp_path: Path) -> None:
    rig = Rig(tmp_path, (Output(id="lamp", on=["OK"], delay_ms=0.0, pulse_ms=60_000.0),))
    with EchoStation(rig.desk):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        rig.plc.say(TriggerLine(1, "", 0))
        rig.plc.wait_for(lambda m: m == OutputLine("lamp", True))
        rig.plc.replug()
        assert rig.plc.next(OutputLine, 5) == OutputLine("lamp", False)
        rig.plc.silence(OutputLine, 0.1)
    rig.close()


def test_the_link_follows_the_path_to_another_device(rig: Rig) -> None:
    rig.plc.next(SignalsLine)
    first, rig.plc.cable = rig.plc.cable, PtyCable(rig.path)
    rig.plc.cable.plug()  # the old one still answers, as a second adapter would
    rig.plc.next(SignalsLine, 5)
    assert rig.link.status().reopened == 1
    first.pull()
    rig.plc.cable.plug()


def test_nothing_is_logged_for_a_part_and_little_for_a_bad_cable(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with EchoStation(rig.desk):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        for number in range(50):
            rig.plc.say(TriggerLine(number, "", 0))
            rig.plc.wait_for(lambda m, n=number: isinstance(m, VerdictLine) and m.number == n)  # type: ignore[misc]
            rig.plc.say(AckLine(number + 1))
        assert not caplog.records
        for _ in range(10):
            rig.plc.replug()
            rig.plc.next(SignalsLine, 5)
            rig.plc.say(QueryLine())
            rig.plc.next(SignalsLine, 5)
    assert len(caplog.records) < 6
    assert not [record for record in caplog.records if record.exc_info]


def test_no_fault_of_a_dialect_ends_the_thread(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(rig.link).turn  # type: ignore[attr-defined]
    monkeypatch.setattr(type(rig.link), "turn", lambda self: 1 // 0)
    rig.state(LinkState.RECONNECTING)
    assert "ZeroDivisionError" in rig.link.status().detail
    monkeypatch.setattr(type(rig.link), "turn", real)
    rig.state(LinkState.CONNECTED)
    assert rig.link.beat.thread() is not None and not rig.link.beat.hangs()


def test_file_descriptors_are_given_back(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        rig = Rig(tmp_path)
        rig.state(LinkState.CONNECTED)
        rig.plc.replug()
        rig.plc.next(SignalsLine, 5)
        rig.close()
    assert descriptors() <= before


@pytest.mark.slow
def test_trigger_to_answer_and_recovery_are_measured(rig: Rig) -> None:
    """Figures, not limits: 5000 parts answered at once, and 20 unplugs."""
    recovery = []

    def judged(trigger: Trigger) -> Say:
        return Say.OK

    with EchoStation(rig.desk, judge=judged):
        rig.plc.wait_for(lambda m: isinstance(m, SignalsLine) and m.ready)
        seen_ms = []
        for number in range(5000):
            began = time.perf_counter()
            rig.plc.say(TriggerLine(number, "", 0))
            answer = rig.plc.next(VerdictLine)
            seen_ms.append((time.perf_counter() - began) * 1e3)
            assert isinstance(answer, VerdictLine)
            rig.plc.say(AckLine(answer.result_id))
            time.sleep(0.002)
        for _ in range(20):
            rig.plc.replug()
            began = time.perf_counter()
            rig.plc.next(SignalsLine, 5)
            rig.plc.say(QueryLine())
            recovery.append(time.perf_counter() - began)
    for name, values in (("link", [ms for _, ms, _ in rig.answered]), ("PLC", seen_ms)):
        ordered = sorted(values)
        marks = {p: round(ordered[min(int(p * len(ordered)), len(ordered) - 1)], 3) for p in (0.5, 0.99, 0.999, 1.0)}
        print(f"\ntrigger to answer, clock of the {name}, ms: {marks}")
    print(f"recovery from {len(recovery)} unplugs: {min(recovery):.3f} to {max(recovery):.3f} s")
    assert max(recovery) < 5
