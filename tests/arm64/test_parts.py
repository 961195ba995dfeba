"""The parts that judge: how a unit is read, and that a difference between two replays is seen."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.arm64.report import Report, StepError, expect
from tests.arm64.unit import read, seconds
from tests.arm64.verdicts import compare

ROOT = Path(__file__).parents[2]
BOX = {"xyxy": [10.0, 10.0, 50.0, 50.0], "class_name": "open", "confidence": 0.8}
WEAK = {"xyxy": [200.0, 10.0, 240.0, 50.0], "class_name": "short", "confidence": 0.3}


def lines(*boxes: dict[str, Any], verdict: str = "NG", cause: str | None = None) -> dict[str, dict[str, Any]]:
    return {"0.png": {"verdict": verdict, "cause": cause, "detections": [copy.deepcopy(box) for box in boxes]}}


def test_the_shipped_unit_is_understood() -> None:
    service = read(ROOT / "systemd/edge.service")
    assert service.command == ("/opt/edge/current/bin/edge", "run", "--config", "/etc/edge/edge.toml")
    assert (service.user, service.state) == ("edge", "/var/lib/edge")
    assert service.watchdog_s > 0 and service.no_new_privileges and service.no_capabilities
    assert service.argv()[-4:] == list(service.command)


def test_a_drop_in_goes_over_the_unit(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(
        "[Unit]\nUser=no\n[Service]\nUser=a\nStateDirectory=x\nExecStart=/bin/a\nWatchdogSec=30\n"
    )
    (tmp_path / "b").write_text("[Service]\nExecStart=\nExecStart=/bin/b 'two words'\nWatchdogSec=1min 30s\n")
    service = read(tmp_path / "a", tmp_path / "b")
    assert service.command == ("/bin/b", "two words")
    assert service.watchdog_s == 90 and service.user == "a" and not service.no_capabilities


@pytest.mark.parametrize("command", ["/bin/a %i", "/bin/a ${NAME}", "/bin/a\nExecStart=/bin/b"])
def test_what_is_not_understood_is_an_error(tmp_path: Path, command: str) -> None:
    (tmp_path / "a").write_text(f"[Service]\nUser=a\nStateDirectory=x\nExecStart={command}\n")
    with pytest.raises(ValueError, match="ExecStart"):
        read(tmp_path / "a")


def test_no_time_span() -> None:
    with pytest.raises(ValueError, match="not a time span"):
        seconds("infinity")


def test_the_same_is_the_same() -> None:
    apart = compare(lines(BOX, WEAK), lines(WEAK, BOX), least=0.4)
    assert (apart.verdicts, apart.matched, apart.confidence, apart.alone_count) == ((), 1, 0.0, 0)


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        (lines(BOX, verdict="OK"), {"verdicts": ("0.png: ('NG', None) and ('OK', None)",)}),
        (lines(BOX, verdict="RETAKE", cause="blur"), {"verdicts": ("0.png: ('NG', None) and ('RETAKE', 'blur')",)}),
        (lines({**BOX, "confidence": 0.7}), {"confidence": pytest.approx(0.1), "matched": 1}),
        (lines({**BOX, "xyxy": [10.0, 12.0, 50.0, 50.0]}), {"box_px": 2.0, "matched": 1}),
        (lines({**BOX, "class_name": "short"}), {"matched": 0, "alone_count": 2, "alone": 0.8}),
        (lines(), {"matched": 0, "alone_count": 1, "alone": 0.8}),
        (lines(BOX, {**WEAK, "confidence": 0.5}), {"matched": 2, "confidence": pytest.approx(0.2)}),
        (lines(BOX, {**BOX, "confidence": 0.6}), {"matched": 1, "alone_count": 1, "alone": 0.6}),
    ],
    ids=["verdict", "cause", "confidence", "box", "class", "lost", "surer", "twice"],
)
def test_each_difference_is_seen(other: Any, seen: dict[str, Any]) -> None:
    apart = compare(lines(BOX, WEAK), other, least=0.4)
    assert {name: getattr(apart, name) for name in seen} == seen


def test_other_images_cannot_be_compared() -> None:
    with pytest.raises(StepError, match="not the same images"):
        compare(lines(), {}, 0.4)


def test_a_step_that_fails_is_in_the_report(tmp_path: Path) -> None:
    report = Report(tmp_path / "report.json")
    with report.step("good"):
        report.show("seen", figure=3)
    assert report.passed
    with pytest.raises(StepError), report.step("bad"):
        expect(False, "it is not so")
    written = json.loads((tmp_path / "report.json").read_text())
    assert not written["passed"] and [step["passed"] for step in written["steps"]] == [True, False]
    assert written["steps"][0]["figures"] == {"figure": 3}
    assert written["steps"][1]["evidence"] == ["FAILED: StepError: it is not so"]
