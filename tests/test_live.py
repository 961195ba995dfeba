"""What is said live: its bounds, its numbers, and what retained topics have to say after a connect."""

from __future__ import annotations

import msgspec
import pytest

from edge.clock import SystemClock
from edge.event import Envelope, Response, State, Topics
from edge.live import LIVE_BYTES, LIVE_MESSAGES, LiveMessages, Message

TOPICS = Topics("edge", "plant", "line", "n")
IMAGE = TOPICS.camera("cam1", "image")
ANSWER = Response(transaction="t", ok=True, text="")


@pytest.fixture
def live() -> LiveMessages:
    return LiveMessages(TOPICS, "b", SystemClock())


def drain(live: LiveMessages) -> list[Message]:
    found = []
    while (message := live.next()) is not None:
        found.append(message)
    assert live.is_empty()
    return found


def head(message: Message) -> Envelope:
    return msgspec.json.decode(message.payload, type=Envelope)


@pytest.mark.parametrize(
    ("sizes", "kept", "why"),
    [
        ([1] * (LIVE_MESSAGES + 10), LIVE_MESSAGES, "too many"),
        ([LIVE_BYTES // 4] * 6, 4, "too big together"),
        ([LIVE_BYTES + 1], 1, "a single one goes, however big"),
        ([1, LIVE_BYTES + 1], 1, "and drives others out"),
    ],
)
def test_beyond_the_bound_the_oldest_are_dropped_and_counted(
    live: LiveMessages, sizes: list[int], kept: int, why: str
) -> None:
    live.begin()
    images = [bytes(size) for size in sizes]
    assert all(live.say_bytes(IMAGE, image) for image in images)
    assert [m.payload is image for m, image in zip(drain(live), images[-kept:], strict=True)] == [True] * kept, why
    assert live.dropped == len(sizes) - kept


def test_without_a_connection_nothing_waits_but_what_is_retained(live: LiveMessages) -> None:
    assert not live.say_bytes(IMAGE, b"x")
    live.say(TOPICS.health, State(state="x"), retain=False)
    live.say(TOPICS.state, State(state="running"), retain=True)
    assert live.dropped == 2 and not live.connected
    live.begin()
    live.say_bytes(IMAGE, b"y")
    live.end()
    assert live.dropped == 3 and not live.connected
    assert [m.topic for m in drain(live)] == [TOPICS.state]


def test_what_is_retained_goes_first_and_again_after_each_connect(live: LiveMessages) -> None:
    live.begin()
    live.say_bytes(IMAGE, b"x")
    live.say(TOPICS.state, State(state="starting"), retain=True)
    live.say(TOPICS.state, State(state="running"), retain=True)
    live.clear(TOPICS.alarm("blur"))
    first = drain(live)
    assert [(m.topic, m.qos, m.retain) for m in first] == [
        (TOPICS.state, 1, True),
        (TOPICS.alarm("blur"), 1, True),
        (IMAGE, 0, False),
    ]
    assert head(first[0]).seq == 2 and first[1].payload == b""
    live.begin()
    assert drain(live) == first[:2]


def test_a_word_of_the_outbox_stands_until_there_is_a_later_one(live: LiveMessages) -> None:
    alarm = TOPICS.alarm("blur")
    live.begin()
    live.remember(alarm, b"one", say_now=False)
    assert live.is_empty() and live.stands(alarm, b"one")
    live.remember(alarm, b"two", say_now=True)
    assert [m.payload for m in drain(live)] == [b"two"]
    assert not live.stands(alarm, b"one"), "its turn comes late"
    assert [m.payload for m in drain(live)] == [b"two"], "so the later one is said again after it"
    assert not live.stands(TOPICS.alarm("earlier"), b"x"), "of an earlier run: nobody stands for it now"
    assert [m.payload for m in drain(live)] == [b""]


def test_only_what_nobody_stands_for_is_taken_down(live: LiveMessages) -> None:
    live.begin()
    live.remember(TOPICS.alarm("ours"), b"x", say_now=False)
    for code in ("ours", "stale"):
        live.disown(TOPICS.alarm(code))
    assert [(m.topic, m.payload) for m in drain(live)] == [(TOPICS.alarm("stale"), b"")]


def test_invented_verbs_share_one_counter(live: LiveMessages) -> None:
    live.begin()
    for verb, known in (("a", False), ("b", False), ("status", True), ("status", True)):
        live.respond(verb, known, ANSWER, None)
    assert [(m.topic.rpartition("/")[2], head(m).id) for m in drain(live)] == [
        ("a", "b-response-1"),
        ("b", "b-response-2"),
        ("status", "b-response/status-1"),
        ("status", "b-response/status-2"),
    ]


def test_last_words(live: LiveMessages) -> None:
    live.begin()
    will = msgspec.json.decode(live.will(), type=State)
    assert (will.state, will.id) == ("offline", "b-will-1")
    farewell = live.farewell()
    assert (farewell.topic, head(farewell).id, farewell.retain) == (TOPICS.state, "b-state-1", True)
    assert not live.connected and not live.say_bytes(IMAGE, b"too late")
