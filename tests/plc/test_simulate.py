"""The simulated PLC against the real link, on a pty."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import pytest

from edge.clock import SystemClock
from edge.config import Plc
from edge.errors import PlcError
from edge.part import Say, Trigger
from edge.plc.book import Book
from edge.plc.cable import PtyCable
from edge.plc.desk import Desk
from edge.plc.link import Link, make_link
from edge.plc.players import Answered, Ask, make_player
from edge.plc.simulate import in_words, is_good, main
from edge.plc.simulator import Plan, Simulator
from tests.plc.stations import EchoStation, always_ok

ROOT = Path(__file__).parents[2]


@contextmanager
def station(port: Path, **kwargs: object) -> Iterator[tuple[EchoStation, Link]]:
    desk = Desk(2, frozenset({1, 2, 3}), 1)
    link = make_link(Plc(port=str(port)), desk, SystemClock(), lambda *_: None, lambda *_: None)
    link.start()
    with EchoStation(desk, **kwargs) as echo:  # type: ignore[arg-type]
        yield echo, link
    assert link.stop(3)


def simulator(port: Path, plan: Plan, log: StringIO | None = None) -> Simulator:
    return Simulator(plan, PtyCable(port), make_player(Plc(port=str(port))), log)


def recipe_of(trigger: Trigger, recipes: tuple[int, ...], every: int) -> int:
    return recipes[(int(trigger.serial[1:]) - 1) // every % len(recipes)]


def test_a_quiet_line(tmp_path: Path) -> None:
    log = StringIO()
    said = {0: Say.OK, 1: Say.NG, 2: Say.REVIEW, 3: Say.RETAKE, 4: Say.FAIL}
    with station(tmp_path / "plc", judge=lambda trigger: said[trigger.number % 5]) as (echo, _):
        plan = Plan(rate=100, triggers=50, encoder_per_s=1000.0, first_number=65500)
        report = simulator(tmp_path / "plc", plan, log).run()
    assert is_good(report), report
    assert report["sent"] == 50 and sum(report["answered"].values()) == 50
    assert set(report["answered"]) == {"OK", "NG", "REVIEW", "RETAKE", "FAIL"}
    assert report["answer_ms"]["count"] == 50 and report["repeated_triggers"] == report["duplicates"] == 0
    assert [trigger.number for trigger in echo.taken] == [(65500 + n) % 65536 for n in range(50)], "numbers wrap"
    encoders = [trigger.encoder for trigger in echo.taken]
    assert None not in encoders and encoders == sorted(encoders)  # type: ignore[type-var]
    rows = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [row["serial"] for row in rows] == [f"P{n:06d}" for n in range(1, 51)]
    assert [row["result_id"] for row in rows] == list(range(1, 51))
    assert "every trigger was answered" in in_words(report)


@pytest.mark.parametrize("recipe_by", ["trigger", "request"])
def test_a_bad_line_with_recipes_loses_nothing_and_mixes_nothing_up(recipe_by: str, tmp_path: Path) -> None:
    plan = Plan(
        rate=60, seconds=3, recipes=(1, 2, 3), recipe_every=10, recipe_by=recipe_by, pulls=2, garbage_per_s=30, seed=7
    )
    with station(tmp_path / "plc", takes_s=0.005) as (echo, link):
        report = simulator(tmp_path / "plc", plan).run()
        status = link.status()
    assert is_good(report), report
    assert report["pulls"] == 2 and report["garbage_sent"] > 5 and status.garbage > 0
    assert report["recovery_s"]["max"] < 5
    assert all(trigger.recipe == recipe_of(trigger, (1, 2, 3), 10) for trigger in echo.taken)
    serials = [trigger.serial for trigger in echo.taken]
    assert len(serials) == len(set(serials)), "no part was judged twice"
    assert len(serials) + sum(report["refused"].values()) == report["sent"]


def test_a_line_that_is_too_fast_is_told_so(tmp_path: Path) -> None:
    with station(tmp_path / "plc", takes_s=0.05) as (_, link):
        report = simulator(tmp_path / "plc", Plan(rate=100, triggers=40)).run()
        assert link.status().overruns == report["refused"]["OVERRUN"] > 5
    assert is_good(report), report


def test_a_line_that_waits_for_ready_is_never_too_fast(tmp_path: Path) -> None:
    with station(tmp_path / "plc", takes_s=0.02):
        report = simulator(tmp_path / "plc", Plan(rate=200, triggers=40, wait_ready=True)).run()
    assert is_good(report) and not report["refused"], report


def test_a_station_that_starts_anew_gets_the_open_triggers_again(tmp_path: Path) -> None:
    sim = simulator(tmp_path / "plc", Plan(rate=20, seconds=1.5, heartbeat_s=0.2))
    reports: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: reports.append(sim.run()))
    with station(tmp_path / "plc", judge=lambda trigger: time.sleep(0.2) or Say.OK) as (first, link):  # type: ignore[func-returns-value]
        thread.start()
        while len(first.taken) < 3:
            time.sleep(0.01)
        link.stop(3)  # it is gone without a word
    with station(tmp_path / "plc") as (second, _):
        thread.join(10)
    report = reports[0]
    assert report["unanswered"] == 0 and report["repeated_triggers"], report
    assert {trigger.serial for trigger in first.taken} & {trigger.serial for trigger in second.taken}


def test_a_station_that_never_answers_is_found_out(tmp_path: Path) -> None:
    desk = Desk(2, frozenset({1}), 1)
    desk.open()
    link = make_link(Plc(port=str(tmp_path / "plc")), desk, SystemClock(), lambda *_: None, lambda *_: None)
    link.start()
    report = simulator(tmp_path / "plc", Plan(rate=50, triggers=2, settle_s=0.3)).run()
    assert link.stop(3)
    assert not is_good(report) and report["unanswered"] == 2
    assert "NOT every trigger was answered" in in_words(report)


def test_without_a_station_no_trigger_is_sent_and_that_is_no_success(tmp_path: Path) -> None:
    report = simulator(tmp_path / "plc", Plan(seconds=0.2)).run()
    assert not is_good(report)
    assert "NO trigger was sent" in in_words(report)


def test_it_can_be_stopped(tmp_path: Path) -> None:
    sim = simulator(tmp_path / "plc", Plan(rate=50))
    with station(tmp_path / "plc"):
        thread = threading.Thread(target=sim.run)
        thread.start()
        while sim.book.sent < 5:
            time.sleep(0.01)
        sim.stop()
        thread.join(5)
    assert not thread.is_alive() and not (tmp_path / "plc").exists()


@pytest.mark.parametrize(
    ("told", "contradiction", "why"),
    [
        ([(1, 7, "OK"), (1, 7, "OK")], False, "said again"),
        ([(1, 7, "OK"), (1, 7, "LATE")], False, "said again after its time"),
        ([(1, 7, "NG"), (1, 7, "OK")], True, "another word"),
        ([(1, 7, "LATE"), (1, 7, "OK")], True, "what was late cannot be in time"),
        ([(1, 7, "OK"), (1, 8, "OK")], True, "another result"),
        ([(9, 7, "OK")], True, "of a trigger that nobody gave"),
    ],
)
def test_answers_that_contradict_each_other_are_found(
    told: list[tuple[int, int, str]], contradiction: bool, why: str
) -> None:
    book = Book()
    book.ask(Ask(1, "A", 0), 0)
    for number, result_id, word in told:
        book.answered(Answered(number, result_id, word, ""), 1_000_000)
    report = book.report()
    assert bool(report["contradictions"]) is contradiction, why


@pytest.mark.parametrize(
    ("steps", "increasing", "why"),
    [
        (((1, 5), (2, 6), (3, 9)), True, "gaps are other parts"),
        (((1, 5), (2, 5), (3, 9)), False, "the same twice"),
        (((1, 5), (2, 9), (3, 6)), False, "back"),
        (((1, 0), (2, 5), (3, 0)), True, "0 is no number: nothing of that part is on the disk"),
    ],
)
def test_result_ids_have_to_increase(steps: tuple[tuple[int, int], ...], increasing: bool, why: str) -> None:
    book = Book()
    for number, result_id in steps:
        book.ask(Ask(number, "A", 0), 0)
        book.answered(Answered(number, result_id, "OK", ""), 1_000_000)
    assert book.report()["result_ids_increasing"] is increasing, why


def test_of_triggers_open_at_once_any_may_be_judged_first() -> None:
    """A station that was killed begins with the one that is repeated first."""
    book = Book()
    for number in (1, 2, 3):
        book.ask(Ask(number, "A", 0), 0)
    for number, result_id in ((3, 5), (2, 7), (1, 6)):
        book.answered(Answered(number, result_id, "OK", ""), 1_000_000)
    assert book.report()["result_ids_increasing"]


def test_a_link_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "plc").write_text("mine")
    with pytest.raises(PlcError, match="there is a file of this name"):
        PtyCable(tmp_path / "plc").plug()
    assert (tmp_path / "plc").read_text() == "mine"


def test_the_command(tmp_path: Path) -> None:
    port, report, log = tmp_path / "plc", tmp_path / "report.json", tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "edge.plc.simulate", "--link", str(port), "--triggers", "20", "--rate", "50"]
    command += ["--report", str(report), "--log", str(log), "--recipes", "1,2", "--recipe-every", "5"]
    with station(port, judge=always_ok):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the PLC is on {port}" in done.stdout and "every trigger was answered" in done.stdout
    assert json.loads(report.read_text())["answered"] == {"OK": 20}
    assert len(log.read_text().splitlines()) == 20
    assert not port.is_symlink(), "the link goes with the cable"


def test_the_command_without_a_station_fails_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--link", str(tmp_path / "plc"), "--seconds", "0.2"]) == 1
    assert "NO trigger was sent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port", "/dev/none"], "there is no serial port /dev/none"),
        (["--link", "/none/plc"], "cannot make the link /none/plc"),
        (["--pull", "3"], "need an end of the run"),
    ],
)
def test_what_cannot_be_played_is_named(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
