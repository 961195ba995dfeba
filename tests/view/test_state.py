"""Messages folded into what is shown: tables of bytes in, state out."""

from __future__ import annotations

import re
from typing import get_args

import msgspec
import pytest

from edge import event
from edge.view.state import RECENT, TREND, WINDOW, AlarmCleared, LineView, NodeId, SequenceProof, Told, percentile
from edge.view.subscribe import LEAVES
from tests.view.messages import (
    AOI,
    TOPICS,
    alarm,
    books,
    camera_state,
    health,
    info,
    line,
    line_node_health,
    part,
    put,
    reject,
    result,
    state,
)  # fmt: skip


@pytest.mark.parametrize(
    ("message", "topic", "look", "expected", "reason"),
    [
        (state("running"), TOPICS.state, lambda n: n.state, "running", "retained state"),
        (state("offline"), TOPICS.state, lambda n: n.state, "offline", "the will"),
        (info(), TOPICS.info, lambda n: n.info.bundle, "pcb 1.2.0", "what runs here"),
        (health(triggers=3), TOPICS.health, lambda n: (n.health.ledger.triggers, n.healths), (3, 1), "health"),
        (camera_state("stalled"), TOPICS.camera("top", "state"), lambda n: n.cameras["top"].state.state, "stalled", ""),
        (result(1, "NG"), TOPICS.camera("top", "result"), lambda n: n.verdicts["NG"], 1, "verdicts are counted"),
        (result(1, ms=7.5), TOPICS.camera("top", "result"), lambda n: list(n.latency_ms), [7.5], "latency window"),
        (
            result(1, sharpness=9.0),
            TOPICS.camera("top", "result"),
            lambda n: list(n.cameras["top"].sharpness),
            [9.0],
            "sharpness trend even before the camera told its state",
        ),
        (alarm("disk"), TOPICS.alarm("disk"), lambda n: n.alarms["disk"].text, "disk is wrong", "an alarm stands"),
        (
            books(7, in_flight=1),
            TOPICS.ledger,
            lambda n: (n.books.ledger.triggers, n.books.in_flight),
            (7, 1),
            "ledger",
        ),
        (health(triggers=3), TOPICS.health, lambda n: n.books.ledger.triggers, 3, "a node that tells it only there"),
        (
            line(error="x"),
            TOPICS.line_state,
            lambda n: (n.line.error, n.is_triggered),
            ("x", True),
            "what the PLC sees",
        ),
        (line_node_health(), TOPICS.health, lambda n: (n.line, n.is_triggered), (None, True), "health tells it too"),
        (health(), TOPICS.health, lambda n: n.is_triggered, False, "a node that runs free"),
        (part(4, "NG"), TOPICS.part, lambda n: (n.verdicts["NG"], n.is_triggered), (1, True), "a part's verdict"),
        (part(4, "deadline"), TOPICS.part, lambda n: n.verdicts["deadline"], 1, "losses are counted by name"),
        (part(4, ms=9.5), TOPICS.part, lambda n: list(n.latency_ms), [9.5], "latency of parts"),
        (
            part(4, cameras=("top", "side")),
            TOPICS.part,
            lambda n: {name: list(camera.sharpness) for name, camera in n.cameras.items()},
            {"top": [300.0], "side": [300.0]},
            "every look has its sharpness",
        ),
    ],
)
def test_each_kind_of_message_shows(message, topic, look, expected, reason) -> None:
    view = LineView("edge")
    heard = view.fold(topic, event.encode(message), at_s=1.0)
    assert heard is not None, reason
    assert (heard.node, heard.message) == (AOI, message), reason
    assert look(view.nodes[AOI]) == expected, reason


@pytest.mark.parametrize(
    ("topic", "payload", "malformed", "newer", "reason"),
    [
        (TOPICS.state, b"{", 1, 0, "not JSON"),
        (TOPICS.state, b"\xff\xfe", 1, 0, "not text"),
        (TOPICS.state, b"[1]", 1, 0, "JSON of another shape"),
        (TOPICS.state, b"[" * 100_000, 1, 0, "nested without end"),
        (TOPICS.state, b'{"state":5}', 1, 0, "a field of another type"),
        (TOPICS.health, b'{"schema":"edge.health.v1"}', 1, 0, "fields are missing though it is our version"),
        (TOPICS.health, b'{"schema":"edge.health.v2","fps":"fast"}', 0, 1, "another version that cannot be read"),
        (TOPICS.health, b'{"schema":"other.thing.v2"}', 1, 0, "another family is no version of ours"),
        (TOPICS.camera("top", "image"), b"\xff\xd8\xff", 0, 0, "images are not for a terminal"),
        (TOPICS.camera("top", "new-thing"), b"{", 0, 0, "a topic that this program does not know"),
        ("edge/v1/plant", b"{}", 0, 0, "too short to name a node"),
        ("edge/v2/plant/smt1/aoi/state", b"{", 0, 0, "another version of the whole tree"),
        ("other/v1/plant/smt1/aoi/state", b"{", 0, 0, "another prefix"),
        (TOPICS.alarm("disk"), b"", 0, 0, "an alarm cleared that was never heard of"),
    ],
)
def test_what_cannot_be_read_is_counted_and_changes_nothing(topic, payload, malformed, newer, reason) -> None:
    view = LineView("edge")
    assert view.fold(topic, payload, at_s=1.0) is None, reason
    assert (view.malformed, view.newer, view.nodes) == (malformed, newer, {}), reason


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b'{"schema":"edge.state.v1","state":"running","mood":"fine"}', "an unknown field"),
        (b'{"schema":"edge.state.v9","state":"running","since":1}', "a newer version that still has what we need"),
        (b'{"schema":"edge.state.v1","state":"running"}', "no envelope but the schema"),
    ],
)
def test_is_tolerant_of_what_it_does_not_need(payload, reason) -> None:
    view = LineView("edge")
    assert view.fold(TOPICS.state, payload, at_s=1.0) is not None, reason
    assert view.nodes[AOI].state == "running", reason


def test_a_prefix_of_several_levels() -> None:
    view = LineView("acme/edge")
    topics = event.Topics("acme/edge", "plant", "smt1", "aoi")
    view.fold(topics.state, event.encode(state("running")), at_s=1.0)
    assert list(view.nodes) == [AOI]


def test_an_alarm_stands_until_its_empty_message() -> None:
    view = LineView("edge")
    put(view, TOPICS.alarm("disk"), alarm("disk"), seq=1)
    cleared = view.fold(TOPICS.alarm("disk"), b"", at_s=2.0)
    assert cleared == (AOI, AlarmCleared("disk"))
    assert view.nodes[AOI].alarms == {}
    assert view.fold(TOPICS.alarm("disk"), b"", at_s=3.0) is None, "it is over only once"


def test_a_node_taken_off_the_line_disappears() -> None:
    view = LineView("edge")
    put(view, TOPICS.state, state("offline"))
    view.fold(TOPICS.state, b"", at_s=2.0)
    assert view.nodes == {}


def test_what_was_retained_is_learned_anew_after_the_broker_was_away() -> None:
    view = LineView("edge")
    put(view, TOPICS.state, state("running"))
    put(view, TOPICS.alarm("disk"), alarm("disk"), seq=1)
    put(view, TOPICS.camera("top", "state"), camera_state("streaming"))
    put(view, TOPICS.camera("top", "result"), result(1), seq=2)
    view.connected()  # the alarm was cleared meanwhile: its empty message never reaches this view
    node = view.nodes[AOI]
    assert (node.state, node.alarms, node.cameras["top"].state) == ("", {}, None)
    assert len(view.verdicts) == 1, "what was seen stays seen"


def test_a_result_that_comes_twice_counts_once() -> None:
    view = LineView("edge")
    assert put(view, TOPICS.camera("top", "result"), result(1), seq=1) is not None
    assert put(view, TOPICS.camera("top", "result"), result(1), seq=1) is None
    node = view.nodes[AOI]
    assert (node.verdicts["OK"], len(view.verdicts), node.proof.duplicates) == (1, 1, 1)


def test_parts_count_among_the_numbers_without_gap() -> None:
    view = LineView("edge")
    put(view, TOPICS.part, part(1), seq=1)
    put(view, TOPICS.camera("top", "reject"), reject(2), seq=3)
    node = view.nodes[AOI]
    assert node.proof.missing() == [(2, 2)]
    put(view, TOPICS.part, part(2, "RETAKE"), seq=2)
    assert put(view, TOPICS.part, part(2, "RETAKE"), seq=2) is None, "sent again: it is here already"
    assert (node.proof.held, node.proof.missing(), node.proof.duplicates) == (3, [], 1)
    assert (dict(node.verdicts), [settled.part for _, settled in view.verdicts]) == ({"OK": 1, "RETAKE": 1}, [1, 2])


def test_what_is_only_about_now_has_numbers_of_its_own() -> None:
    view = LineView("edge")
    put(view, TOPICS.part, part(1), seq=40)
    for seq, (topic, message) in enumerate([(TOPICS.line_state, line()), (TOPICS.ledger, books())], 1):
        put(view, topic, message, seq=seq, stream="live")
    proof = view.nodes[AOI].proof
    assert (proof.held, proof.missing(), proof.renumbered) == (1, [], 0)


@pytest.mark.parametrize(
    ("told", "expected", "reason"),
    [
        ([("b1", 5, books(4)), ("b1", 9, health(6))], 6, "health is the later word"),
        ([("b1", 9, books(6)), ("b1", 5, health(4))], 6, "a ledger that overtook a health message stays"),
        ([("b1", 5, books(4)), ("b1", 5, health(4))], 4, "both at once"),
        ([("b1", 9, books(6)), ("b2", 5, books(7))], 7, "after a restart of the box its clock begins anew"),
        ([("", 0, health(4)), ("", 0, health(5))], 5, "nodes that tell no clock"),
    ],
)
def test_the_ledger_is_the_latest_word(told, expected, reason) -> None:
    view = LineView("edge")
    for boot, mono_ns, message in told:
        stamped = event.stamp(message, seq=1, boot=boot, ts=0.0, mono_ns=mono_ns, clock_ok=True, stream="l")
        topic = TOPICS.ledger if isinstance(message, event.Books) else TOPICS.health
        view.fold(topic, event.encode(stamped), at_s=1.0)
    assert view.nodes[AOI].books.ledger.triggers == expected, reason


def test_a_station_that_no_plc_triggers_any_more_is_shown_as_free() -> None:
    view = LineView("edge")
    put(view, TOPICS.line_state, line())
    put(view, TOPICS.part, part(1))
    view.fold(TOPICS.line_state, b"", at_s=2.0)
    assert not view.nodes[AOI].is_triggered
    put(view, TOPICS.line_state, line())
    view.connected()
    assert view.nodes[AOI].line is None, "what the station shows is learned anew with the broker"


def test_the_health_of_a_node_before_there_were_triggers_can_be_read() -> None:
    old = msgspec.to_builtins(health(3))
    for key in ("line", "evidence", "genealogy", "recorder"):
        del old[key]
    view = LineView("edge")
    assert view.fold(TOPICS.health, msgspec.json.encode(old), at_s=1.0) is not None
    node = view.nodes[AOI]
    assert (view.malformed, node.books.ledger.triggers, node.is_triggered) == (0, 3, False)


@pytest.mark.parametrize("kind", event.PAYLOADS)
def test_every_kind_that_is_shown_is_subscribed(kind) -> None:
    examples = {
        event.State: TOPICS.state, event.Info: TOPICS.info, event.Health: TOPICS.health, event.Books: TOPICS.ledger,
        event.LineState: TOPICS.line_state, event.PartResult: TOPICS.part, event.Alarm: TOPICS.alarm("disk"),
        event.CameraState: TOPICS.camera("top", "state"), event.Result: TOPICS.camera("top", "result"),
        event.Reject: TOPICS.camera("top", "reject"), event.Drift: TOPICS.camera("top", "drift"),
        event.BundleState: TOPICS.bundle, event.Disagreement: TOPICS.disagreement,
    }  # fmt: skip
    shown = kind in get_args(Told)
    assert shown == (kind in examples), f"{kind.__name__}: a view that knows it has to subscribe to it"
    if shown:
        patterns = [leaf.replace("+", "[^/]+") for leaf in LEAVES]
        leaf = examples[kind].removeprefix(TOPICS.state.removesuffix("state"))
        assert any(re.fullmatch(pattern, leaf) for pattern in patterns), leaf


def test_a_retained_alarm_is_not_the_next_number() -> None:
    view = LineView("edge")
    put(view, TOPICS.alarm("disk"), alarm("disk"), seq=3, retained=True)
    put(view, TOPICS.camera("top", "result"), result(90), seq=120)
    assert view.nodes[AOI].proof.missing() == []
    assert view.nodes[AOI].proof.first == 120


def test_an_alarm_told_live_has_numbers_of_its_own() -> None:
    view = LineView("edge")
    put(view, TOPICS.camera("top", "result"), result(1), seq=50)
    put(view, TOPICS.alarm("outbox"), alarm("outbox"), seq=1, stream="alarm")
    proof = view.nodes[AOI].proof
    assert (proof.held, proof.renumbered, proof.missing()) == (1, 0, [])
    assert "outbox" in view.nodes[AOI].alarms


def test_an_alarm_told_again_stands_again_but_is_news_only_once() -> None:
    view = LineView("edge")
    assert put(view, TOPICS.alarm("disk"), alarm("disk"), seq=1) is not None
    assert put(view, TOPICS.alarm("disk"), alarm("disk"), seq=1) is None, "the node was away and tells it again"
    view.connected()  # the broker was away and has forgotten it; the node comes back after us
    assert put(view, TOPICS.alarm("disk"), alarm("disk"), seq=1) is not None
    assert list(view.nodes[AOI].alarms) == ["disk"]
    assert view.nodes[AOI].proof.held == 1


def test_each_node_has_its_own_numbers() -> None:
    view = LineView("edge")
    other = event.Topics("edge", "plant", "smt1", "spi")
    for seq in (1, 2, 3):
        put(view, TOPICS.camera("top", "result"), result(seq), seq=seq)
        put(view, other.camera("top", "result"), result(seq), seq=seq, boot="other")
    assert [(str(node_id), node.proof.held) for node_id, node in view.nodes.items()] == [
        ("plant/smt1/aoi", 3),
        ("plant/smt1/spi", 3),
    ]
    assert [node_id.node for node_id, _ in view.verdicts] == ["aoi", "spi"] * 3


def test_memory_is_bounded() -> None:
    view = LineView("edge")
    for seq in range(1, 2001):
        put(view, TOPICS.camera("top", "result"), result(seq), seq=2 * seq - 1)
        put(view, TOPICS.camera("top", "reject"), reject(seq), seq=2 * seq)
    node = view.nodes[AOI]
    assert (len(view.verdicts), len(view.rejects)) == (RECENT, RECENT)
    assert (len(node.latency_ms), len(node.cameras["top"].sharpness)) == (WINDOW, TREND)
    assert (node.verdicts["OK"], node.proof.held) == (2000, 4000)


# Each row: the numbers as they arrive; "x" marks a moment without a connection, a letter another boot of the node.
@pytest.mark.parametrize(
    ("arrivals", "held", "missing", "duplicates", "lost", "away", "renumbered", "reason"),
    [
        ([], 0, [], 0, 0, 0, 0, "nothing yet"),
        ([1, 2, 3], 3, [], 0, 0, 0, 0, "in order"),
        ([7, 8, 9], 3, [], 0, 0, 0, 0, "a reader that came later proves from where it began"),
        ([1, 3, 2], 3, [], 0, 0, 0, 0, "out of order is no gap"),
        ([1, 2, 5], 3, [(3, 4)], 0, 0, 0, 0, "a gap is open"),
        ([1, 3, 5], 3, [(2, 2), (4, 4)], 0, 0, 0, 0, "two gaps"),
        ([1, 2, 5, 3, 4], 5, [], 0, 0, 0, 0, "a gap that closes late"),
        ([1, 2, 2, 3], 3, [], 1, 0, 0, 0, "sent again with the same id"),
        ([1, 2, 3, 4, 2, 3, 4, 5], 5, [], 3, 0, 0, 0, "a window sent again after a reconnect"),
        ([1, 4, 4], 2, [(2, 3)], 1, 0, 0, 0, "a duplicate beyond a gap"),
        ([5, 6, 3, 7], 3, [], 0, 0, 0, 0, "one from before this reader began, sent again"),
        ([1, 2, "x", 3], 3, [], 0, 0, 0, 0, "away, but nothing passed"),
        ([1, 2, "x", 6, 7], 4, [], 0, 0, 3, 0, "three passed while away"),
        ([1, 2, "x", 6, 5, 7], 5, [], 0, 0, 2, 0, "one of those that passed came after all"),
        ([1, 2, "x", 2, 3], 3, [], 1, 0, 0, 0, "first a duplicate, then the next"),
        ([1, 4, "x", 6], 3, [], 0, 0, 3, 0, "an open gap cannot be told from what passed while away"),
        ([1, 2, "x", 4, 7], 4, [(5, 6)], 0, 0, 1, 0, "only the first jump after a reconnect is our own"),
        (["x", 4, 6], 2, [(5, 5)], 0, 0, 0, 0, "the first connection excuses no gap"),
        ([1, 2, 3, "b1", "b2"], 2, [], 0, 0, 0, 1, "numbers begin anew under other ids: the node's state was wiped"),
        ([5000, 5001, "b1", "b2"], 2, [], 0, 0, 0, 1, "far behind is another numbering, even without an id to compare"),
        ([1, *range(2, 8000), 5], 7999, [], 1, 0, 0, 0, "an alarm that stands since long ago is told again"),
        ([1, *range(3, 5004)], 5002, [], 0, 1, 0, 0, "a gap that stays open is given up in the end: memory is bounded"),
    ],
)
def test_sequence_proof(arrivals, held, missing, duplicates, lost, away, renumbered, reason) -> None:
    proof = SequenceProof()
    for arrival in arrivals:
        if arrival == "x":
            proof.resume()
        elif isinstance(arrival, str):
            proof.take(int(arrival[1:]), f"{arrival[0]}-o-{arrival[1:]}")
        else:
            proof.take(arrival, f"a-o-{arrival}")
    assert proof.held == held, reason
    assert proof.missing() == missing, reason
    assert (proof.duplicates, proof.lost, proof.away, proof.renumbered) == (duplicates, lost, away, renumbered), reason


@pytest.mark.parametrize(
    ("values", "share", "expected", "reason"),
    [
        ([], 0.5, None, "nothing measured"),
        ([4.0], 0.99, 4.0, "one value is every percentile"),
        (list(range(1, 101)), 0.5, 50, "half of a hundred"),
        (list(range(1, 101)), 0.99, 99, "all but one"),
        (list(range(1, 101)), 1.0, 100, "the greatest"),
        (list(range(1, 101)), 0.0, 1, "the least"),
    ],
)
def test_percentile(values, share, expected, reason) -> None:
    assert percentile(values, share) == expected, reason


def test_a_node_id_reads_like_its_topic() -> None:
    assert str(NodeId("plant", "smt1", "aoi")) == "plant/smt1/aoi"
