"""The table, the JSON, the exit code, and no secret in either."""

from __future__ import annotations

import json

import pytest

from edge.doctor import report
from edge.doctor.finding import ORDER, Reporter

disk, broker = Reporter("disk"), Reporter("broker")
WELL = disk.ok("space", "there is space", free_bytes=5)
FULL = disk.error("full", "the disk is full", "free some: `sudo du -x / | sort -n | tail`")
SLOW = disk.warning("sync_slow", "the disk is slow", "another one")
UNSEEN = broker.unknown("unseen", "it was not looked at", "run `sudo edge doctor`")
NOTE = broker.info("password_in_clear", "it goes in clear", "set tls")


@pytest.mark.parametrize(
    ("findings", "code", "status"),
    [
        ([], 0, "ok"),
        ([WELL, NOTE], 0, "ok"),
        ([WELL, UNSEEN], 0, "ok"),
        ([UNSEEN, SLOW], 1, "warning"),
        ([WELL, SLOW, FULL], 2, "error"),
    ],
)
def test_the_exit_code_is_the_worst(findings, code, status) -> None:
    made = report.make(findings, ts=0.0)
    assert (made.exit_code, made.status) == (code, status)


def test_the_json_is_versioned_and_whole() -> None:
    made = report.make([WELL, FULL, UNSEEN], ts=1.5, node="plant/smt1/aoi", config="/etc/edge/edge.toml")
    told = json.loads(report.as_json(made))
    assert told["schema"] == "edge.doctor.v1"
    assert told["summary"] == {"error": 1, "warning": 0, "unknown": 1, "info": 0, "ok": 1}
    assert [finding["code"] for finding in told["findings"]] == ["space", "full", "unseen"]
    assert told["findings"][0]["data"] == {"free_bytes": 5}
    assert set(told["summary"]) == set(ORDER)


def test_secrets_are_masked_in_both() -> None:
    url = "rtsp://admin:hunter2@10.0.0.7/live"
    found = Reporter("cameras").error("x", f"{url} is away", f"look at {url}", address=url, password="hunter2")
    made = report.make([found], ts=0.0)
    assert "hunter2" not in report.as_json(made) + report.as_text(made)
    assert "10.0.0.7" in report.as_json(made)


def test_the_worst_subject_comes_first_with_its_fix_below() -> None:
    rows = report.as_text(report.make([NOTE, WELL, SLOW, FULL], ts=0.0)).splitlines()
    table = rows[3:]
    assert table[0].split() == ["disk", "ERROR", "the", "disk", "is", "full"]
    assert table[1].strip().startswith("-> free some")
    assert [row.split()[0] for row in table if not row.startswith(" ")] == ["disk", "broker"]


def test_commands_are_not_broken_and_rows_fit() -> None:
    text = report.as_text(report.make([FULL], ts=0.0), width=60)
    assert "`sudo du -x / | sort -n | tail`" in text
    assert all(len(row) <= 60 for row in text.splitlines()[3:])


def test_what_is_left_out_is_said() -> None:
    text = report.as_text(report.make([WELL], ts=0.0, left_out={"broker": "there is no config"}))
    assert "broker" in text and "left out: there is no config" in text
