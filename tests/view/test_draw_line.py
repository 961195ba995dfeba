"""The picture of a station that a PLC triggers, at the sizes that people have."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec
import pytest

pytest.importorskip("rich")

from edge import event
from edge.view.state import LineView
from edge.view.words import plain_line
from tests.view.messages import (
    AOI,
    TOPICS,
    TS,
    alarm,
    books,
    camera_state,
    info,
    line,
    line_health,
    line_node_health,
    master,
    part,
    put,
    reject,
    result,
    state,
)  # fmt: skip
from tests.view.test_draw import AWAY, SIZES, UP, render

SMALL, LARGE = (80, 24), (120, 40)


def triggered_view(parts: int = 40, alarms: int = 1) -> LineView:
    """A node that a PLC triggers, with two cameras, and everything there is to show."""
    view = LineView("edge")
    put(view, TOPICS.state, state("running"), stream="l")
    put(view, TOPICS.info, info(), stream="l")
    for camera in ("top", "side"):
        streaming = msgspec.structs.replace(camera_state("streaming"), camera=camera)
        put(view, TOPICS.camera(camera, "state"), streaming, stream="l")
    masters = [master("M-001", found_ts=TS - 7300), master("M-002", "due", 0.0)]
    put(view, TOPICS.line_state, line(masters=masters, due_s=-600.0), stream="l")
    for number in range(1, parts + 1):
        put(view, TOPICS.part, triggered_part(number), seq=number)
    for number in range(alarms):
        put(view, TOPICS.alarm(f"disk{number}"), alarm(f"disk{number}"), seq=parts + 1 + number)
    put(view, TOPICS.health, line_node_health(parts), stream="l")
    put(view, TOPICS.ledger, books(parts, in_flight=1), stream="l")
    view.nodes[AOI].heard_s = 5.0
    return view


def triggered_part(number: int) -> event.PartResult:
    """Every seventh too late, every fifth of the others bad."""
    both = ("top", "side")
    if number % 7 == 0:
        return part(number, "deadline", "side: no time was left", missing={"side": "no time was left"}, ms=203.4)
    if number % 5 == 0:
        return part(number, "NG", "top: short with confidence 0.93 at (120, 88)", cameras=both)
    return part(number, cameras=both)


def assert_shown(wanted: str, lines: Sequence[str], reason: str) -> None:
    assert any(wanted in text for text in lines), f"{reason}: {wanted!r} not in\n" + "\n".join(lines)


@cache
def rendered(size: tuple[int, int]) -> tuple[str, ...]:
    return tuple(render(triggered_view(), size=size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("parts", "alarms"), [(0, 0), (5, 9), (40, 0)])
def test_fits_every_size(size, alarms, parts) -> None:
    lines = render(triggered_view(parts, alarms), size=size)
    assert len(lines) >= size[1] - 1 or size[1] < 24, "and fills it"
    render(triggered_view(parts, alarms), AWAY, size=size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("line      READY  BUSY with 1  PLC connected", "first of all: can it take a part"),
        ("recipe    pcb-a (number 2)", "by both of its names"),
        ("challenge overdue for 10 min; M-002 DUE, never found; M-001 last found 2 h ago", "owed masters first"),
        ("answers   p50 41.2, p99 66.0, p99.9 71.3, max 88.1 ms of 1234; lately", "as the PLC sees it"),
        ("to PLC    1234 said, no overrun, none late, all acknowledged, no garbage", "nothing went wrong"),
        ("parts     OK 28  NG 7  REVIEW 0  RETAKE 0  deadline 5", "losses by name"),
        ("ALARM     disk0: disk0 is wrong - Repair it.", "alarms always"),
        ("parts, newest first", "they are no verdicts alone"),
        ("serial  trigger outcome", "columns have a head"),
        ("P000040      40 NG ", "serial and trigger of the newest"),
        ("top: short", "the first reason"),
    ],
)
def test_shows_what_matters_on_any_terminal(size, wanted, reason) -> None:
    if size == SMALL:
        wanted = wanted[:79]  # its row ends there
    lines = [text.replace("…", "") for text in rendered(size)]
    assert any(wanted in text or (text and wanted.startswith(text.strip()) and len(text) > 75) for text in lines), (
        f"{reason}: {wanted!r} not in\n" + "\n".join(lines)
    )


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("#40 P000040", "the number that the answer carried"),
        ("35 deadline FAIL    203.4 side    side: no time was left", "what the PLC was told, and who is missing"),
        ("no frame  none: every trigger had its frames", "of all cameras"),
        ("ledger    balanced: 40 = OK 40, 1 in flight", "the live one"),
        ("numbers   messages 1..41: all 41 held, no gap", "parts count"),
        ("evidence  37 parts, 120 MB, 40 written, evicted OK 3", "with what went"),
        ("recorder  1512 frames, 80 MB, reaches back 12 min", "how far an incident reaches"),
        ("genealogy 1300 rows, 2 MB, head 9f8e7d6c5b4a", "enough of the head to compare by eye"),
        ("up 3 min, 5.0 frames/s, 143 MB, edge 0.1.0", "the process"),
    ],
)
def test_shows_the_rest_where_there_is_room(wanted, reason) -> None:
    assert_shown(wanted, rendered(LARGE), reason)


def shows(topic: str, *messages: event.Envelope):
    """What a view is told before its picture is taken."""
    return lambda view: [put(view, topic, message, seq=9) for message in messages]


def line_is(**changes):
    return shows(TOPICS.line_state, line(**changes))


def health_is(**changes):
    return shows(TOPICS.health, line_node_health(**changes))


EVIDENCE = event.EvidenceCounts(files=1, bytes=10, written=1, evicted={}, dropped=2, failed=3)
ROWS = event.GenealogyCounts(rows=7, head="", bytes=0, failed=1)
RECORDED = event.RecorderCounts(frames=7, bytes=0, reaches_s=0.0, dropped=4, failed=0)


@pytest.mark.parametrize(
    ("prepare", "wanted", "reason"),
    [
        (
            line_is(error="challenge.missed", masters=[master("M-001", "missed")]),
            "line      ERROR a master was missed, no part passes until the masters are found (M-001)  READY",
            "what keeps parts from passing comes first",
        ),
        (
            line_is(error="challenge.overdue", masters=[master("M-001", "due")]),
            "ERROR the challenge is overdue, no part passes until the masters are found (M-001)",
            "the other way to be blocked",
        ),
        (line_is(error="odd.code"), "ERROR odd.code  READY", "a code of the future"),
        (
            line_is(link="silent", detail="nothing heard for 3 s"),
            "READY  BUSY with 1  PLC silent: nothing heard for 3 s",
            "the cable is in, nobody talks",
        ),
        (
            line_is(link="reconnecting", detail="cannot open /dev/ttyUSB0"),
            "PLC reconnecting: cannot open /dev/ttyUSB0",
            "the adapter is out",
        ),
        (line_is(ready=False), "line      NOT READY  BUSY", "no camera is to blame"),
        (
            lambda v: (line_is(ready=False)(v), shows(TOPICS.camera("top", "state"), camera_state("opening"))(v)),
            "line      NOT READY (waits for camera top)",
            "the camera that it waits for is named",
        ),
        (
            shows(TOPICS.state, state("offline")),
            "line      NOT READY, it is offline",
            "what is retained of a node that has gone must not look like now",
        ),
        (lambda v: v.connected(), "line      not known yet", "the broker came back and retained nothing yet"),
        (
            line_is(masters=[master("M-001")], due_s=7500.0),
            "challenge due in 2 h; M-001 last found 0 s ago",
            "all is well",
        ),
        (
            health_is(line=line_health(late=3, overruns=2, garbage=1)),
            "to PLC    1234 said, overruns 2, late 3, garbage 1",
            "each by its name",
        ),
        (
            health_is(line=line_health(no_frame={"top": 0, "side": 5})),
            "no frame  side 5",
            "a camera that was too late or is unplugged, even on a small terminal",
        ),
        (health_is(line=line_health(0)), "answers   none yet", "just started"),
        (
            lambda v: setattr(v.nodes[AOI], "health", None),
            "answers   told with the next health message; verdicts p50 41.2, p99 203.4 ms",
            "the view began a moment ago",
        ),
        (shows(TOPICS.ledger, books(40, ok=39)), "ledger    NOT BALANCED: 40 = OK 39", "the worst news, live"),
        (health_is(evidence=EVIDENCE), "evidence  3 FAILED, 2 DROPPED, 1 parts, 0 kB", "no disk for pictures"),
        (health_is(genealogy=ROWS), "genealogy 1 FAILED, 7 rows, 0 kB, head -", "nor for rows"),
        (health_is(recorder=RECORDED), "recorder  4 DROPPED, 7 frames", "nor for the last minutes"),
        (
            shows(event.Topics("edge", "plant", "smt1", "spi").state, state("running")),
            "plant/smt1/aoi  RUNNING  READY  BUSY with 1  PLC connected",
            "among several nodes",
        ),
        (
            lambda v: put(v, TOPICS.part, part(41, serial="\x1b[2J"), seq=42),
            "#41 ?[2J",
            "a serial cannot clear the terminal",
        ),
    ],
)
def test_shows_what_is_wrong(prepare, wanted, reason) -> None:
    view = triggered_view()
    prepare(view)
    assert_shown(wanted, render(view, size=(110, 24)), reason)


def test_on_a_narrow_terminal_the_reason_has_the_room_of_the_number() -> None:
    view = triggered_view(0)
    put(view, TOPICS.part, part(1, "NG", "short with confidence"), seq=2)
    lines = render(view, size=SMALL)
    assert_shown("P000001       1 NG      NG       41.2 short with confidence", lines, "all of it")


def test_a_reject_names_the_part_that_the_technician_holds() -> None:
    view = triggered_view(3)
    put(view, TOPICS.camera("top", "reject"), reject(3), seq=5)
    put(view, TOPICS.camera("top", "reject"), reject(77), seq=6)
    lines = render(view, size=LARGE)
    assert_shown("#3 P000003 aoi/top blur measured 41.2, limit 80", lines, "its serial")
    assert_shown("#77 aoi/top blur", lines, "one that this view did not see")


def test_a_free_node_that_keeps_pictures_and_rows_tells_of_them_too() -> None:
    view = LineView("edge")
    put(view, TOPICS.camera("top", "result"), result(1))
    put(view, TOPICS.health, line_node_health(line=None))
    lines = render(view, UP, size=LARGE)
    assert_shown("genealogy 1300 rows", lines, "a free line has its genealogy")
    assert_shown("verdicts, newest first", lines, "no part was triggered")
    assert not [text for text in lines if text.startswith((" line ", " answers ", " to PLC "))], "nor is there a PLC"


def test_lines_with_and_without_triggers_share_a_picture() -> None:
    view = triggered_view(3)
    topics = event.Topics("edge", "plant", "smt1", "spi")
    put(view, topics.camera("top", "result"), result(99, "NG", "short"), seq=1)
    lines = render(view, size=LARGE)
    assert any("#99 spi" in text and "NG" in text and "12.0 short" in text for text in lines), "\n".join(lines)
    assert any("#3 aoi" in text and "P000003" in text for text in lines), "\n".join(lines)


@pytest.mark.parametrize(
    ("topic", "message", "wanted"),
    [
        (TOPICS.part, part(7), "aoi part 7 serial P000007 trigger 7 OK 41.2 ms"),
        (TOPICS.part, part(7, "NG", "short", serial=""), "aoi part 7 serial - trigger 7 NG 41.2 ms: short"),
        (
            TOPICS.part,
            part(7, "deadline", "no time", missing={"top": "x", "side": "y"}),
            "aoi part 7 serial P000007 trigger 7 deadline, PLC told FAIL, 41.2 ms: no time; missing: side, top",
        ),
        (TOPICS.line_state, line(), "aoi line Ready, recipe pcb-a (number 2), PLC connected"),
        (TOPICS.line_state, line(number=0), "aoi line Ready, recipe pcb-a, PLC connected"),
        (
            TOPICS.line_state,
            line(False, "challenge.missed", "silent", "since 3 s", [master("M1", "missed"), master("M2")]),
            "aoi line ERROR a master was missed, no part passes until the masters are found (M1), not Ready, "
            "recipe pcb-a (number 2), PLC silent: since 3 s, master M1 missed",
        ),
        (
            TOPICS.health,
            line_node_health(10, line=line_health(late=2)),
            "aoi triggers 10 = OK 10 + NG 0: balanced; outbox 0 waiting; 1234 answers, "
            "p50 41.2, p99 66.0, p99.9 71.3, max 88.1 ms; late 2",
        ),
    ],
)
def test_plain_lines(topic, message, wanted) -> None:
    heard = put(LineView("edge"), topic, message)
    assert heard is not None
    assert plain_line(heard).split(" ", 1)[1] == wanted  # after the time of day


def test_the_live_ledger_is_no_plain_line_each_second() -> None:
    heard = put(LineView("edge"), TOPICS.ledger, books())
    assert heard is not None
    assert plain_line(heard) == ""
