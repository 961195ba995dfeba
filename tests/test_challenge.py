"""Challenge parts: what finds and misses a master, what blocks and until when, and clocks that jump."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.challenge import ChallengeEvent, ChallengeWatch
from edge.config import Challenge, Master

TS = 1_800_000_000.0
HOUR = 3600.0
A, B = Master(serial="A"), Master(serial="B", verdict="REVIEW")
YEAR = 365 * 24 * HOUR


class Box:
    """A box with its two clocks, and the watch that runs on it."""

    def __init__(self, settings: Challenge, state: Mapping[str, Any] | None = None) -> None:
        self.settings = settings
        self.ts, self.mono_s = TS, 1000.0
        self.watch = ChallengeWatch(settings, self.ts, self.now_ns, state)

    @property
    def now_ns(self) -> int:
        return int(self.mono_s * 1e9)

    def wait(self, seconds: float) -> list[ChallengeEvent]:
        self.ts += seconds
        self.mono_s += seconds
        return self.tick()

    def tick(self) -> list[ChallengeEvent]:
        return self.watch.tick(self.ts, self.now_ns)

    def show(self, serial: str, outcome: str = "NG", *codes: str) -> str | None:
        event = self.watch.look(serial, outcome, codes, self.ts, self.now_ns)
        return event.kind if event else None

    def restart(self, off_s: float, wall_s: float | None = None, reboot: bool = False) -> None:
        """Off for so long, and for so long by the wall clock; the state goes through JSON as on the disk."""
        saved = json.loads(json.dumps(self.watch.state()))
        self.ts += off_s if wall_s is None else wall_s
        self.mono_s = 30.0 if reboot else self.mono_s + off_s
        self.watch = ChallengeWatch(self.settings, self.ts, self.now_ns, saved)

    def standings(self) -> dict[str, str]:
        return {master.serial: master.standing for master in self.watch.masters()}


def box(*masters: Master, overdue: Any = "block", missed: Any = "block", found: bool = True) -> Box:
    """A box whose masters were all found just now."""
    made = Box(Challenge(master=list(masters or (A, B)), every_h=8, overdue=overdue, missed=missed))
    if found:
        for master in made.settings.master:
            assert made.show(master.serial, "NG", f"defect.{master.defect}") == "found"
    return made


@pytest.mark.parametrize(
    ("master", "outcome", "codes", "expected", "why"),
    [
        (A, "NG", ["defect.short"], "found", "any defect will do"),
        (A, "OK", [], "missed", "it passed"),
        (A, "REVIEW", ["doubt.short"], "missed", "a doubt is less than was asked for"),
        (B, "REVIEW", ["doubt.short"], "found", "a doubt was asked for"),
        (B, "NG", ["defect.short"], "found", "NG is more than a doubt"),
        (B, "OK", [], "missed", "it passed"),
        (Master(serial="A", defect="short"), "NG", ["defect.open", "defect.short"], "found", "among the reasons"),
        (Master(serial="A", defect="short"), "NG", ["defect.open"], "missed", "NG for something else"),
        (Master(serial="A", defect="short"), "NG", ["defect.open", "doubt.short"], "found", "a doubt of it counts"),
        (Master(serial="A", defect="short"), "NG", ["defect.shorts"], "missed", "another class with a longer name"),
        (A, "RETAKE", ["gate.motion"], "again", "a blurred frame says nothing of the model"),
        (A, "RETAKE", ["challenge.overdue"], "missed", "it was OK, and held back like any part"),
        (A, "RETAKE", ["challenge"], "missed", "the same without its cause"),
        (A, "capture_fault", [], "again", "the camera was away"),
        (A, "deadline", [], "again", "no verdict in time"),
    ],
)
def test_verdict_of_a_master(master: Master, outcome: str, codes: list[str], expected: str, why: str) -> None:
    made = box(master)
    assert made.show(master.serial, outcome, *codes) == expected, why
    assert made.watch.blocked == ("challenge.missed" if expected == "missed" else ""), why
    assert made.standings() == {master.serial: "missed" if expected == "missed" else "found"}


@pytest.mark.parametrize("serial", ["", "a", "A ", "SN-1"])
def test_other_parts_are_no_masters(serial: str) -> None:
    made = box()
    assert made.show(serial, "OK") is None and made.watch.blocked == ""


def test_words_say_what_to_do() -> None:
    made = box(Master(serial="M7", defect="short"), B)
    event = made.watch.look("M7", "NG", ["defect.open"], made.ts, made.now_ns)
    assert event is not None and event.text == "master M7 is NG, but not for short"
    assert "show every master again" in event.advice
    assert event.body == {"serial": "M7", "outcome": "missed", "text": event.text}
    assert made.watch.standing == {"challenge.missed": "master M7 was missed; to be found since: M7, B"}
    event = made.watch.look("B", "NG", [], made.ts, made.now_ns)
    assert event is not None and (event.kind, event.advice) == ("found", "Show the masters M7 too.")
    event = made.watch.look("M7", "RETAKE", ["gate.blur"], made.ts, made.now_ns)
    assert event is not None and event.advice == "Show master M7 again."


def test_miss_blocks_until_every_master_was_found_since() -> None:
    made = box()
    made.wait(60)
    assert made.show("B", "REVIEW") == "found"
    assert made.show("A", "OK") == "missed"
    assert made.watch.blocked == "challenge.missed" and made.standings() == {"A": "missed", "B": "found"}
    assert made.show("A") == "found"
    assert made.watch.blocked == "challenge.missed", "B was found before the miss, not since"
    assert made.show("B") == "found"
    assert made.watch.blocked == "" and made.watch.standing == {}


def test_second_miss_begins_the_round_anew() -> None:
    made = box()
    made.show("A", "OK")
    made.show("A")
    assert made.show("B", "OK") == "missed"
    assert made.show("B") == "found" and made.watch.blocked == "challenge.missed", "A was found before that miss"
    made.show("A")
    assert made.watch.blocked == ""


@pytest.mark.parametrize(("overdue", "missed"), [("alarm", "alarm"), ("block", "alarm"), ("alarm", "block")])
def test_alarm_only_stands_and_does_not_block(overdue: str, missed: str) -> None:
    made = box(overdue=overdue, missed=missed)
    made.show("A", "OK")
    assert made.watch.blocked == ("challenge.missed" if missed == "block" else "")
    assert list(made.watch.standing) == ["challenge.missed"]
    made.show("A")
    made.show("B")
    assert made.watch.standing == {}
    made.wait(9 * HOUR)
    assert made.watch.blocked == ("challenge.overdue" if overdue == "block" else "")
    assert list(made.watch.standing) == ["challenge.overdue"]


def test_overdue_begins_once_and_ends_with_the_last_master() -> None:
    made = box()
    assert made.wait(8 * HOUR - 1) == [] and made.watch.due_in_s == pytest.approx(1)
    made.show("B")
    (event,) = made.wait(2)
    assert event.kind == "overdue" and event.text == "masters to be found every 8 h are overdue: A"
    assert made.wait(1) == [] and made.watch.due_in_s == pytest.approx(-2)
    assert made.watch.blocked == "challenge.overdue" and made.standings() == {"A": "due", "B": "found"}
    assert made.show("A", "RETAKE", "gate.blur") == "again" and made.watch.blocked == "challenge.overdue"
    assert made.show("A") == "found" and made.watch.blocked == ""
    assert [event.kind for event in made.wait(8 * HOUR)] == ["overdue"], "and again in the next shift"


def test_a_miss_goes_before_overdue() -> None:
    made = box()
    made.wait(9 * HOUR)
    made.show("A", "OK")
    assert made.watch.blocked == "challenge.missed" and len(made.watch.standing) == 2
    made.show("A")
    made.show("B")
    assert made.watch.blocked == ""


def test_without_a_record_masters_are_due_at_once() -> None:
    made = box(found=False)
    assert made.watch.blocked == "challenge.overdue" and made.watch.due_in_s == 0
    (event,) = made.tick()
    assert event.text.endswith("overdue: A, B (there is no record of them)")
    made.show("A")
    assert made.standings() == {"A": "found", "B": "due"} and made.watch.blocked == "challenge.overdue"
    made.show("B")
    assert made.watch.blocked == ""


# Clocks.


@pytest.mark.parametrize("jump_s", [-20 * YEAR, -9 * HOUR, -1.0, 9 * HOUR, 20 * YEAR])
def test_wall_clock_that_jumps_while_it_runs_changes_nothing(jump_s: float) -> None:
    made = box()
    made.ts += jump_s
    assert made.wait(8 * HOUR - 10) == [] and made.watch.blocked == ""
    assert [event.kind for event in made.wait(11)] == ["overdue"]


@pytest.mark.parametrize(
    ("off_s", "wall_s", "reboot", "due", "why"),
    [
        (5.0, 5.0, False, False, "a restart of the service"),
        (5.0, 5.0, True, False, "a restart of the box"),
        (5.0, -30.0, False, False, "the wall clock was put right by seconds"),
        (7.5 * HOUR, 7.5 * HOUR, True, True, "off for the rest of the shift"),
        (5.0, 20 * YEAR, False, True, "set ahead by years: too early rather than never"),
        (7.5 * HOUR, -20 * YEAR, True, True, "set back by years while it was off"),
        (7.5 * HOUR, 0.0, True, False, "no battery: it goes on where it stood, until it hears the network's time"),
        (7.5 * HOUR, 60.0, False, True, "set back within one boot: the monotonic clock knows better"),
        (5.0, -2 * HOUR, False, True, "set back by hours: nobody knows how long it was off"),
    ],
)
def test_clocks_over_a_restart(off_s: float, wall_s: float, reboot: bool, due: bool, why: str) -> None:
    made = box()
    made.wait(HOUR)
    made.restart(off_s, wall_s, reboot)
    assert bool(made.watch.blocked) == due, why


def test_gap_that_shows_only_when_the_clock_is_put_right_is_counted() -> None:
    made = box()
    made.wait(HOUR)
    made.restart(7.5 * HOUR, 0.0, reboot=True)
    assert made.show("B") == "found"
    made.ts += 7.5 * HOUR
    (event,) = made.wait(1)
    assert event.text.endswith("overdue: A"), "B was found in this run, whatever the wall clock does"
    assert made.show("A") == "found" and made.watch.blocked == ""


def test_clock_that_is_set_back_is_named() -> None:
    made = box()
    made.restart(10, -YEAR)
    (event,) = made.tick()
    assert "the clock was set back while the station was off" in event.text


def test_monotonic_clock_never_takes_time_back() -> None:
    made = box()
    made.wait(8 * HOUR - 10)
    made.watch.tick(made.ts, 0)
    assert made.wait(11) != []


@given(
    steps=st.lists(st.tuples(st.floats(0, 3 * HOUR), st.floats(-YEAR, YEAR), st.sampled_from(["run", "off", "boot"])))
)
def test_no_jump_of_the_clock_silences_what_is_due(steps: list[tuple[float, float, str]]) -> None:
    """Whatever is done to the wall clock while it runs: what ran for 8 h since a master was found is overdue."""
    made = box()
    ran_s = 0.0
    for seconds, jump_s, how in steps:
        if how == "run":
            made.ts += jump_s
            made.wait(seconds)
            ran_s += seconds
        else:
            made.restart(seconds, reboot=how == "boot")
            ran_s += seconds
        assert made.watch.blocked or ran_s < 8 * HOUR + 1


# The record over a restart.


def test_miss_stands_over_a_restart() -> None:
    made = box()
    made.show("A", "OK")
    made.show("B")
    made.restart(5)
    assert made.watch.blocked == "challenge.missed" and made.standings() == {"A": "missed", "B": "found"}
    made.show("A")
    assert made.watch.blocked == ""


def test_found_times_stand_over_a_restart() -> None:
    made = box()
    made.wait(HOUR)
    made.restart(HOUR, reboot=True)
    assert made.watch.origin == "" and made.watch.due_in_s == pytest.approx(6 * HOUR)
    assert [master.found_ts for master in made.watch.masters()] == [TS, TS]


@pytest.mark.parametrize(
    ("master", "due", "why"),
    [
        (Master(serial="A"), False, "as it was"),
        (Master(serial="A", verdict="REVIEW"), True, "another verdict is asked for"),
        (Master(serial="A", defect="short"), True, "a defect is asked for"),
        (Master(serial="C"), True, "another part"),
    ],
)
def test_changed_entry_was_never_found(master: Master, due: bool, why: str) -> None:
    made = box(A)
    made.settings = Challenge(master=[master], every_h=1000, overdue="block")
    made.restart(5)
    assert (made.watch.blocked == "challenge.overdue") == due, why
    assert [event.kind for event in made.tick()] == (["overdue"] if due else []), why


def test_new_master_has_to_be_found_after_an_old_miss_too() -> None:
    made = box(A)
    made.show("A", "OK")
    made.settings = Challenge(master=[A, B], overdue="alarm")
    made.restart(5)
    made.show("A")
    assert made.watch.blocked == "challenge.missed"
    made.show("B")
    assert made.watch.blocked == ""


def _with(**changes: Any) -> dict[str, Any]:
    return {**box(A).watch.state(), **changes}


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 1},
        {"found": []},
        _with(mono_ns="soon"),
        _with(found={"A": {"verdict": "NG", "defect": None, "age_s": -1e9, "found_ts": TS}}),
        _with(found={"A": {"verdict": "NG", "defect": None, "age_s": float("nan"), "found_ts": TS}}),
        _with(ts=float("nan")),
        _with(ts=float("inf")),
    ],
)
def test_state_that_makes_no_sense_leaves_masters_due(state: dict[str, Any]) -> None:
    made = Box(Challenge(master=[A], overdue="block"), state)
    assert made.watch.blocked == "challenge.overdue" and made.watch.origin
    assert made.show("A") == "found" and made.watch.blocked == ""
