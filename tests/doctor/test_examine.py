"""One check that hangs or fails does not keep the others from telling."""

from __future__ import annotations

import threading
from pathlib import Path

from edge.doctor.context import Context
from edge.doctor.examine import chosen, examine
from edge.doctor.finding import Reporter
from tests.doctor.boxes import Box


def saying(subject):
    def check(_context):
        yield Reporter(subject).ok("well", f"{subject} is well")

    return check


def test_findings_come_in_the_order_of_the_subjects(tmp_path: Path) -> None:
    checks = {name: saying(name) for name in ("clock", "disk", "memory")}
    found = examine(Context(Box(tmp_path)), checks)
    assert [finding.subject for finding in found] == ["clock", "disk", "memory"]


def test_a_check_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    def broken(_context):
        yield Reporter("disk").ok("space", "there is space")
        raise ZeroDivisionError("of nothing")

    found = examine(Context(Box(tmp_path)), {"disk": broken, "clock": saying("clock")})
    assert [(f.code, f.severity) for f in found] == [("space", "ok"), ("check_failed", "warning"), ("well", "ok")]
    assert "ZeroDivisionError: of nothing" in found[1].text and "--only disk" in found[1].fix


def test_a_check_that_hangs_keeps_what_it_had_and_is_not_waited_for(tmp_path: Path) -> None:
    release = threading.Event()

    def stuck(_context):
        yield Reporter("disk").error("full", "the disk is full", "")
        release.wait(60)

    try:
        found = examine(Context(Box(tmp_path)), {"disk": stuck, "clock": saying("clock")}, 0.3)
    finally:
        release.set()
    assert [f.code for f in found] == ["full", "check_timed_out", "well"]


def test_only_what_was_asked_for_runs() -> None:
    checks = {name: saying(name) for name in ("clock", "disk")}
    assert list(chosen(checks, ["disk"])) == ["disk"]
    assert list(chosen(checks, None)) == ["clock", "disk"]
