"""The terminal picture at the sizes that people have."""

from __future__ import annotations

import io

import msgspec
import pytest

pytest.importorskip("rich")

from rich.console import Console

from edge import event
from edge.view.draw import screen, sparkline
from edge.view.state import LineView
from edge.view.subscribe import Link
from edge.view.words import ledger_sentence, plain_line, proof_sentence, why
from tests.view.messages import AOI, TOPICS, alarm, camera_state, health, info, put, reject, result, state

UP = Link("127.0.0.1:1883", True, "", 0.0)
AWAY = Link("127.0.0.1:1883", False, "connection refused", 0.0)
SIZES = [(80, 24), (120, 40), (200, 60), (40, 10), (20, 5), (10, 3)]


def full_view(parts: int = 60, alarms: int = 1) -> LineView:
    """A node with everything there is to show."""
    view = LineView("edge")
    put(view, TOPICS.state, state("running"), stream="l")
    put(view, TOPICS.info, info(), stream="l")
    put(view, TOPICS.camera("top", "state"), camera_state("streaming", reopened=2), stream="l")
    seq = 0
    for part in range(1, parts + 1):
        verdict, text = [("OK", ""), ("NG", "short with confidence 0.93 at (120, 88)"), ("RETAKE", "blurred")][part % 3]
        put(view, TOPICS.camera("top", "result"), result(part, verdict, text, sharpness=50.0 * (part % 7)), seq=seq + 1)
        seq += 1
        if verdict == "RETAKE":
            put(
                view,
                TOPICS.camera("top", "reject"),
                reject(part, advice="Focus the lens and clean it. " * 4),
                seq=seq + 1,
            )
            seq += 1
    for number in range(alarms):
        put(view, TOPICS.alarm(f"disk{number}"), alarm(f"disk{number}"), seq=seq + 1 + number)
    put(view, TOPICS.health, health(parts), stream="l")
    return view


def render(
    view: LineView, link: Link = UP, size: tuple[int, int] = (80, 24), now_s: float = 5.0, **console
) -> list[str]:
    """The picture as lines of text, after checking that it fits."""
    width, height = size
    file = io.StringIO()
    drawn = Console(file=file, width=width, height=height, force_terminal=bool(console), **console)
    picture = screen(view, link, now_s=now_s, width=width, height=height)
    lines = drawn.render_lines(picture, pad=False)
    assert len(lines) <= height, f"{len(lines)} lines on a terminal of {height}"
    assert all(sum(segment.cell_length for segment in line) <= width for line in lines)
    drawn.print(picture)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alarms", [0, 1, 9])
@pytest.mark.parametrize("parts", [0, 1, 60])
def test_fits_every_size(size, alarms, parts) -> None:
    render(full_view(parts, alarms), size=size)
    render(LineView("edge"), AWAY, size=size)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
@pytest.mark.parametrize(
    "wanted",
    [
        "RUNNING  plant/smt1/aoi",
        "pcb 1.2.0 (1a2b3c4d5e6f), paddlelite 2.13rc0 int8 x86_64",
        "up 3 min, 5.0 frames/s, 143 MB, edge 0.1.0",
        "balanced: 60 = OK 60 + NG 0",
        "0 waiting, 12 delivered",
        "messages 1..81: all 81 held, no gap",
        "OK 20  NG 20  REVIEW 0  RETAKE 20   latency p50 12.0 ms, p99 12.0 ms",
        "top streaming  reopened 2 times  sharpness 200 ",
        "ALARM     disk0: disk0 is wrong - Repair it.",
        "#58 NG       12.0 ms short with confidence 0.93 at (120, 88)",
        "#59 top blur measured 41.2, limit 80",
        "Focus the lens and clean it.",
        "verdicts, newest first",
    ],
)
def test_shows(size, wanted) -> None:
    assert any(wanted in line for line in render(full_view(), size=size)), wanted


def test_newest_verdict_is_on_top() -> None:
    parts = [line for line in render(full_view()) if "#6" in line or "#5" in line]
    assert "#60" in parts[0]


def test_uses_the_whole_height() -> None:
    assert len(render(full_view(), size=(80, 24))) >= 23
    assert len(render(full_view(), size=(120, 40))) >= 38


@pytest.mark.parametrize(
    ("prepare", "link", "now_s", "wanted", "reason"),
    [
        (lambda v: None, AWAY, 12.0, "NO BROKER 127.0.0.1:1883 for 12 s (connection refused), trying again", "away"),
        (lambda v: v.nodes.clear(), UP, 0.0, "none heard yet", "connected, but nobody talks"),
        (lambda v: put(v, TOPICS.state, state("offline")), UP, 5.0, "OFFLINE  plant/smt1/aoi", "the will came"),
        (lambda v: v.connected(), UP, 5.0, "STATE UNKNOWN", "the broker came back, nothing retained yet"),
        (lambda v: None, UP, 300.0, "RUNNING but quiet for 119 s", "it says nothing though it is not offline"),
        (lambda v: put(v, TOPICS.health, health(10, ok=9)), UP, 5.0, "NOT BALANCED: 10 = OK 9", "the worst news"),
        (lambda v: put(v, TOPICS.health, health(9, depth=777)), UP, 5.0, "777 waiting", "a backlog"),
        (lambda v: put(v, TOPICS.health, health(9, evicted=5)), UP, 5.0, "5 evicted", "evicted"),
        (
            lambda v: put(v, TOPICS.camera("top", "result"), result(99), seq=200),
            UP,
            5.0,
            "118 MISSING (82-199)",
            "a gap is named",
        ),
        (
            lambda v: put(v, TOPICS.camera("top", "state"), camera_state("stalled", "no frame for 5 s")),
            UP,
            5.0,
            "top stalled",
            "a camera that is down",
        ),
        (lambda v: v.fold(TOPICS.state, b"{", at_s=0), UP, 5.0, "1 malformed messages", "malformed"),
        (
            lambda v: put(v, event.Topics("edge", "plant", "smt1", "spi").state, state("offline")),
            UP,
            5.0,
            "plant/smt1/spi  OFFLINE",
            "several nodes: one line each",
        ),
        (
            lambda v: put(v, TOPICS.camera("side", "result"), result(99, camera="side"), seq=82),
            UP,
            5.0,
            "aoi/side",
            "several cameras: a column says which",
        ),
        (
            lambda v: put(v, TOPICS.alarm("x"), alarm("x", text="\x1b[2Jgone\x07"), seq=82),
            UP,
            5.0,
            "x: ?[2Jgone?",
            "a message cannot clear the terminal",
        ),
    ],
)
def test_shows_what_is_wrong(prepare, link, now_s, wanted, reason) -> None:
    view = full_view()
    for node in view.nodes.values():
        node.heard_s = 181.0 if now_s > 100 else now_s
    prepare(view)
    lines = render(view, link, now_s=now_s)
    assert any(wanted in line for line in lines), f"{reason}: {wanted!r} not in\n" + "\n".join(lines)


def test_rich_markup_in_a_message_is_only_text() -> None:
    view = LineView("edge")
    put(view, TOPICS.camera("top", "result"), result(1, "NG", "[red]pad[/red] [1, 2]"))
    assert any("[red]pad[/red] [1, 2]" in line for line in render(view))


def test_alarms_are_red_and_no_color_takes_all_colour_away(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured = "\n".join(render(full_view(), color_system="standard"))
    assert "\x1b[1;31m ALARM" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = "\n".join(render(full_view(), color_system="standard"))
    assert " ALARM" in plain
    assert not any(f"\x1b[{code}m" in plain or f";{code}m" in plain for code in range(30, 50))


@pytest.mark.parametrize(
    ("values", "width", "expected", "reason"),
    [
        ([], 8, "", "nothing yet"),
        ([5.0], 8, "▁", "one value has no range"),
        ([5.0, 5.0], 8, "▁▁", "constant"),
        ([0.0, 7.0], 8, "▁█", "least and greatest"),
        ([9.0, 0.0, 7.0], 2, "▁█", "only the latest that fit"),
    ],
)
def test_sparkline(values, width, expected, reason) -> None:
    assert sparkline(values, width) == expected, reason


@pytest.mark.parametrize(
    ("topic", "message", "wanted"),
    [
        (TOPICS.camera("top", "result"), result(7), "aoi part 7 camera top OK 12.0 ms"),
        (TOPICS.camera("top", "result"), result(7, "NG", "short"), "aoi part 7 camera top NG 12.0 ms: short"),
        (
            TOPICS.camera("top", "reject"),
            reject(7),
            "aoi part 7 camera top rejected, blur: measured 41.2, limit 80; Clean the lens.",
        ),
        (TOPICS.alarm("disk"), alarm("disk"), "aoi ALARM error disk: disk is wrong; Repair it."),
        (TOPICS.state, state("offline"), "aoi is offline"),
        (TOPICS.camera("top", "state"), camera_state("stalled", "no frame"), "aoi camera top stalled: no frame"),
        (TOPICS.health, health(10), "aoi triggers 10 = OK 10 + NG 0: balanced; outbox 0 waiting"),
        (TOPICS.info, info(), "aoi runs pcb 1.2.0 on paddlelite 2.13rc0 int8 x86_64, edge 0.1.0"),
    ],
)
def test_plain_lines(topic, message, wanted) -> None:
    heard = put(LineView("edge"), topic, message)
    assert heard is not None
    assert plain_line(heard).split(" ", 1)[1] == wanted  # after the time of day


@pytest.mark.parametrize(
    ("verdicts", "losses", "triggers", "wanted"),
    [
        (
            {"OK": 60, "NG": 40},
            {"overrun": 3, "deadline": 0},
            103,
            "triggers 103 = OK 60 + NG 40 + overrun 3: balanced",
        ),
        ({"OK": 1}, {}, 3, "triggers 3 = OK 1: NOT BALANCED by 2"),
        ({}, {}, 0, "triggers 0 = 0: balanced"),
    ],
)
def test_ledger_sentence(verdicts, losses, triggers, wanted) -> None:
    assert ledger_sentence(event.LedgerCounts(triggers=triggers, verdicts=verdicts, losses=losses)) == wanted


@pytest.mark.parametrize(
    ("texts", "cause", "wanted", "reason"),
    [
        ([], None, "", "nothing to say of a good part"),
        (["short", "open"], None, "short; open", "all of a few"),
        (list("abcde"), None, "a; b; c; and 2 more", "a hopeless part has a hundred"),
        ([], "blur", "blur", "only a cause"),
    ],
)
def test_why(texts, cause, wanted, reason) -> None:
    whys = [event.Why(code="c", text=text) for text in texts]
    assert why(msgspec.structs.replace(result(1, "NG"), reasons=whys, cause=cause)) == wanted, reason


def test_proof_sentence_names_at_most_three_gaps() -> None:
    view = LineView("edge")
    for seq in (1, 3, 5, 7, 9, 12):
        put(view, TOPICS.camera("top", "result"), result(seq), seq=seq)
    assert proof_sentence(view.nodes[AOI].proof) == "messages 1..12: 6 MISSING (2, 4, 6, ...)"
