"""The MQTT session against a real mosquitto: retained topics, alarms, live messages, requests, and its words."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edge import ledger
from edge.clock import SystemClock
from edge.config import Mqtt
from edge.errors import OutboxError
from edge.event import Alarm, Envelope, Health, LedgerCounts, OutboxCounts, Response, State, Topics
from edge.outbox import Draft, Kind, Outbox, Row
from edge.publish import Publisher, Timing
from tests.brokers import Broker, Reader, free_port, needs_mosquitto, wait_until

QUICK = Timing(connect_s=2.0, backoff_min_s=0.05, backoff_max_s=0.2)
IMPATIENT = Timing(connect_s=0.4, backoff_min_s=0.05, backoff_max_s=0.2)
ALARM = Alarm(code="blur", severity="warning", text="blurred", advice="clean the lens")


def health() -> Health:
    return Health(
        uptime_s=1.0,
        rss_bytes=1,
        fps=1.0,
        ledger=LedgerCounts(triggers=0, verdicts={}, losses={}),
        in_flight=0,
        balanced=True,
        outbox=OutboxCounts(depth=0, bytes=0, added=0, delivered=0, evicted_results=0, evicted_alarms=0, refused=0),
        stages={},
        live_dropped=0,
    )


class Node:
    """One box under test: outbox and publisher, on topics of its own."""

    def __init__(self, folder: Path, name: str, settings: Mqtt, timing: Timing = QUICK, boot: str = "b") -> None:
        self.topics = Topics("edge", "plant", "line", name)
        self.requests: list[tuple[str, bytes]] = []
        self.handler: Callable[[str, bytes], Response] = lambda _v, _p: Response(transaction="", ok=True, text="done")
        clock = SystemClock()
        self.outbox = Outbox(folder / "outbox.db", 10_000_000, boot, clock)
        self.publisher = Publisher(
            settings, self.topics, self.outbox, boot, clock, self._answer, ("status", "slow"), timing
        )

    def _answer(self, verb: str, payload: bytes) -> Response:
        self.requests.append((verb, payload))
        return self.handler(verb, payload)

    def start(self) -> Node:
        self.publisher.start()
        wait_until(self.publisher.connected, 10, "a connection")
        return self

    def alarm(self, message: Alarm = ALARM) -> int:
        draft = Draft(self.topics.alarm(message.code), Kind.ALARM, True, message)
        (seq,) = self.outbox.add([draft], ledger.empty(), 0)
        return seq

    def result(self) -> int:
        draft = Draft(self.topics.camera("cam1", "result"), Kind.RESULT, False, ALARM)
        (seq,) = self.outbox.add([draft], ledger.empty(), 0)
        return seq

    def drained(self) -> None:
        wait_until(lambda: self.outbox.counts().depth == 0, 10, "an empty outbox")

    def close(self) -> None:
        self.publisher.stop(3)
        self.outbox.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, request: pytest.FixtureRequest, broker: Broker) -> Iterator[Node]:
    made = Node(tmp_path, request.node.name, Mqtt(port=broker.port))
    yield made
    made.close()


def reader_of(broker: Broker, node: Node) -> Reader:
    return Reader(broker.port, node.topics.state.removesuffix("state") + "#")


def head(payload: bytes) -> Envelope:
    return msgspec.json.decode(payload, type=Envelope)


def state(payload: bytes) -> str:
    return msgspec.json.decode(payload, type=State).state


def retained(broker: Broker, topic: str) -> bytes | None:
    """What the broker keeps on a topic now."""
    with Reader(broker.port, topic) as reader:
        time.sleep(0.1)
        return reader.heard[0].payload if reader.heard else None


# Live and retained messages.


@needs_mosquitto
def test_live_messages_are_numbered_by_topic_and_named_for_good(broker: Broker, node: Node) -> None:
    with reader_of(broker, node) as reader:
        node.start()
        node.publisher.live(node.topics.health, health())
        node.publisher.live(node.topics.state, State(state="running"), retain=True)
        node.publisher.live(node.topics.health, health())
        heads = [head(heard.payload) for heard in reader.wait_for(node.topics.health, 2)]
        assert [(h.seq, h.id, h.boot) for h in heads] == [(1, "b-health-1", "b"), (2, "b-health-2", "b")]
        assert head(reader.wait_for(node.topics.state)[0].payload).id == "b-state-1"


@needs_mosquitto
def test_retained_are_said_again_after_a_reconnect_and_others_are_counted(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        node = Node(tmp_path, "n", Mqtt(port=broker.port)).start()
        node.publisher.live(node.topics.state, State(state="running"), retain=True)
        node.publisher.live(node.topics.camera("cam1", "state"), State(state="x"), retain=True)
        node.publisher.clear(node.topics.camera("cam1", "state"))
        with reader_of(broker, node) as reader:
            reader.wait_for(node.topics.state)
        broker.kill()  # without persistence it forgets everything
        wait_until(lambda: not node.publisher.connected(), 5, "the loss to be noticed")
        assert not node.publisher.live_bytes(node.topics.camera("cam1", "image"), b"jpeg")
        node.publisher.live(node.topics.health, health())
        assert node.publisher.live_dropped() == 2
        broker.start()
        wait_until(node.publisher.connected, 5, "a new connection")
        wait_until(lambda: retained(broker, node.topics.state), 5, "the retained state")
        assert state(retained(broker, node.topics.state) or b"") == "running"
        assert retained(broker, node.topics.camera("cam1", "state")) is None
        assert node.publisher.live_bytes(node.topics.camera("cam1", "image"), b"jpeg")
        assert node.publisher.status().connects == 2
        node.close()


@needs_mosquitto
def test_broker_speaks_for_a_box_that_vanished_and_the_box_for_itself_when_it_stops(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker") as broker:
        node = Node(tmp_path, "n", Mqtt(port=broker.port)).start()
        node.publisher.live(node.topics.state, State(state="running"), retain=True)
        with reader_of(broker, node) as reader:
            reader.wait_for(node.topics.state)
            with socket.socket() as thief:  # another client of the same name: the broker drops ours without a farewell
                thief.connect(("127.0.0.1", broker.port))
                thief.send(b"\x10\x12\x00\x04MQTT\x04\x02\x00\x3c\x00\x06edge-n")
                heard = reader.wait_for(node.topics.state, 2)
            assert state(heard[1].payload) == "offline" and head(heard[1].payload).id == "b-will-1"
            assert [state(h.payload) for h in reader.wait_for(node.topics.state, 3)][2] == "running"
            node.close()
            assert state(reader.wait_for(node.topics.state, 4)[3].payload) == "offline"
        assert state(retained(broker, node.topics.state) or b"") == "offline"
        assert node.publisher.beat.thread() is None and not node.publisher.connected()


# Alarms: durable and retained.


@needs_mosquitto
def test_alarm_is_delivered_stands_and_is_taken_down(broker: Broker, node: Node) -> None:
    topic = node.topics.alarm("blur")
    with reader_of(broker, node) as reader:
        node.start()
        seq = node.alarm()
        assert head(reader.wait_for(topic)[0].payload).seq == seq
        assert head(retained(broker, topic) or b"{}").seq == seq
        node.publisher.clear(topic)
        assert reader.wait_for(topic, 2)[1].payload == b""
        assert retained(broker, topic) is None
        node.drained()


@needs_mosquitto
def test_alarm_that_ended_while_it_waited_is_delivered_but_does_not_stand(broker: Broker, node: Node) -> None:
    topic = node.topics.alarm("blur")
    first = node.alarm()  # before there is a connection
    node.publisher.clear(topic)
    with reader_of(broker, node) as reader:
        node.start()
        node.drained()
        heard = reader.wait_for(topic, 2)
        assert first in [head(h.payload).seq for h in heard if h.payload]
        wait_until(lambda: reader.on(topic)[-1].payload == b"", 5, "the last word to be that it is over")
    assert retained(broker, topic) is None


@needs_mosquitto
def test_latest_alarm_of_a_code_stands_after_a_backlog(broker: Broker, node: Node) -> None:
    for text in ("one", "two", "three"):
        last = node.alarm(msgspec.structs.replace(ALARM, text=text))
    for _ in range(40):  # two windows
        node.result()
    with reader_of(broker, node) as reader:
        node.start()
        node.drained()
        heard = [head(h.payload).seq for h in reader.wait_for(node.topics.alarm("blur"), 3)]
        assert {1, 2, 3} <= set(heard)
    assert head(retained(broker, node.topics.alarm("blur")) or b"{}").seq == last


@needs_mosquitto
def test_what_an_earlier_run_left_standing_is_taken_down(broker: Broker, tmp_path: Path) -> None:
    node = Node(tmp_path, "earlier", Mqtt(port=broker.port)).start()
    topics = node.topics
    node.alarm()
    for what in ("state", "drift"):
        node.publisher.live(topics.camera("old", what), State(state="streaming"), retain=True)
    node.drained()
    wait_until(lambda: retained(broker, topics.camera("old", "state")), 5, "the camera's state")
    node.close()
    pending = Outbox(tmp_path / "outbox.db", 10_000_000, "b", SystemClock())
    pending.add([Draft(topics.alarm("late"), Kind.ALARM, True, ALARM)], ledger.empty(), 0)
    pending.close()
    later = Node(tmp_path, "earlier", Mqtt(port=broker.port), boot="later").start()
    try:
        later.publisher.live(topics.camera("new", "state"), State(state="streaming"), retain=True)
        later.drained()
        cameras = (topics.camera("old", "state"), topics.camera("old", "drift"))
        for topic in (topics.alarm("blur"), topics.alarm("late"), *cameras):
            wait_until(lambda topic=topic: retained(broker, topic) is None, 5, f"{topic} to be taken down")
        assert retained(broker, topics.camera("new", "state"))
    finally:
        later.close()


# Requests.


def ask(reader: Reader, node: Node, verb: str, payload: bytes, n: int = 1) -> Response:
    reader.publish(node.topics.request(verb), payload)
    return msgspec.json.decode(reader.wait_for(node.topics.response(verb), n)[n - 1].payload, type=Response)


@needs_mosquitto
def test_request_is_answered_once_and_a_repeated_one_alike(broker: Broker, node: Node) -> None:
    with reader_of(broker, node) as reader:
        node.start()
        first = ask(reader, node, "status", b'{"transaction":"t1","more":[1]}')
        assert (first.ok, first.transaction, first.text) == (True, "t1", "done")
        assert node.requests == [("status", b'{"transaction":"t1","more":[1]}')]
        assert ask(reader, node, "status", b'{"transaction":"t1"}', 2) == first, "the same answer, id and all"
        assert ask(reader, node, "status", b'{"transaction":"t2"}', 3).seq == 2
        assert len(node.requests) == 2


@needs_mosquitto
def test_retained_request_is_not_carried_out(broker: Broker, node: Node) -> None:
    with reader_of(broker, node) as reader:
        reader.publish(node.topics.request("status"), b'{"transaction":"old"}', retain=True)
        node.start()
        assert ask(reader, node, "status", b'{"transaction":"new"}').transaction == "new"
        assert [payload for _, payload in node.requests] == [b'{"transaction":"new"}']
        reader.publish(node.topics.request("status"), b"", retain=True)


@needs_mosquitto
def test_slow_handler_does_not_hold_up_the_outbox(broker: Broker, node: Node) -> None:
    release = threading.Event()
    node.handler = lambda _v, _p: (release.wait(10), Response(transaction="", ok=True, text="late"))[1]
    with reader_of(broker, node) as reader:
        node.start()
        reader.publish(node.topics.request("slow"), b'{"transaction":"t"}')
        wait_until(lambda: node.requests, 5, "the handler to begin")
        node.result()
        node.drained()
        for i in range(40):
            reader.publish(node.topics.request("slow"), b'{"transaction":"x%d"}' % i)
        busy = reader.wait_for(node.topics.response("slow"))[0]
        assert "requests are waiting already" in msgspec.json.decode(busy.payload, type=Response).text
        release.set()


# The outbox in trouble.


class TroubledOutbox:
    """An outbox whose removals, then readings, fail for a while, as on a full or dying disk."""

    def __init__(self, rows: int) -> None:
        self.rows = {seq: Row(seq, "edge/t", False, b"%d" % seq) for seq in range(1, rows + 1)}
        self.failing = True
        self.attempts = 0

    def pending(self, after_seq: int, limit: int) -> list[Row]:
        return [row for seq, row in sorted(self.rows.items()) if seq > after_seq][:limit]

    def remove(self, seqs: object) -> None:
        self.attempts += 1
        if self.failing:
            raise OutboxError("the disk is full")
        for seq in list(seqs):  # type: ignore[call-overload]
            self.rows.pop(seq, None)

    def listen(self, listener: object) -> None:
        pass


@needs_mosquitto
def test_outbox_that_cannot_remove_neither_stops_delivery_nor_is_sent_again(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.publish.RETRY_OUTBOX_S", 0.1)
    outbox = TroubledOutbox(200)
    topics = Topics("edge", "plant", "line", "troubled")
    publisher = Publisher(Mqtt(port=broker.port), topics, outbox, "b", SystemClock(), _no_request, (), QUICK)
    with Reader(broker.port, "edge/t") as reader:
        publisher.start()
        reader.wait_for("edge/t", 200)
        wait_until(lambda: outbox.attempts >= 2, 5, "a second attempt")
        outbox.failing = False
        wait_until(lambda: not outbox.rows, 5, "the removal")
        assert [int(heard.payload) for heard in reader.on("edge/t")] == list(range(1, 201))
    assert caplog.text.count("the disk is full") == 1, "said once, not at each attempt"
    publisher.stop(3)


def _no_request(_verb: str, _payload: bytes) -> Response:
    raise AssertionError("nobody asked")


# What it says when there is no connection.


def _status(settings: Mqtt, tmp_path: Path, words: str, timing: Timing = QUICK) -> str:
    """Start a node with these settings, and wait for words in its status."""
    node = Node(tmp_path, "n", settings, timing)
    try:
        node.publisher.start()
        wait_until(lambda: words in node.publisher.status().detail, 8, f"{words!r} in the status")
        assert not node.publisher.connected()
        assert node.publisher.beat.thread() is not None and not node.publisher.beat.hangs()
        return node.publisher.status().detail
    finally:
        begun = time.monotonic()
        node.close()
        assert time.monotonic() - begun < 4.5, "it stops in time without a connection, too"


def test_nobody_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(tmp_path, "n", Mqtt(port=free_port()))
    node.publisher.start()
    time.sleep(0.5)  # several attempts
    node.close()
    assert caplog.text.count("refuses the connection") == 1, "said once, not at each attempt"


def test_unknown_host(tmp_path: Path) -> None:
    _status(Mqtt(host="no-such-broker.invalid"), tmp_path, "the name 'no-such-broker.invalid' of the MQTT broker")


def test_name_service_that_says_nothing_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: release.wait(10))
    _status(Mqtt(host="aoi"), tmp_path, "no address of the MQTT broker 'aoi' was found within 0.4 s", IMPATIENT)
    release.set()


def test_peer_that_says_nothing_does_not_hang(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = Mqtt(port=silent.getsockname()[1])
        words = _status(settings, tmp_path, "accepted the connection but did not answer", IMPATIENT)
        assert "is it an MQTT broker?" in words


def test_tls_peer_that_says_nothing_does_not_hang(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = Mqtt(port=silent.getsockname()[1], tls=True)
        _status(settings, tmp_path, "did not answer within 0.4 s", IMPATIENT)


@needs_mosquitto
def test_tls_to_a_plain_port(broker: Broker, tmp_path: Path) -> None:
    _status(Mqtt(port=broker.port, tls=True), tmp_path, "MQTT broker 127.0.0.1")
