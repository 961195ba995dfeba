"""The MQTT session: the only importer of paho.

One thread owns the connection and everything paho: it sends the outbox in order, at most `Timing.in_flight` messages
unacknowledged, and takes a message out of the outbox when its PUBACK has come. Every connection has a paho client of
its own, so that no queue of paho's outlives it; the outbox and the retained messages kept here are what is sent anew.
Callers of `live` and its like only append to a bounded queue, they never wait for the network.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import select
import socket
import ssl
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edge.clock import Clock
from edge.config import Mqtt
from edge.errors import EdgeError, OutboxError, PublishError
from edge.event import Envelope, Request, Response, State, Topics, encode, stamp

log = logging.getLogger(__name__)

TURN_S = 0.5  # how long the thread waits for the network before it looks around
REMOVE_EVERY_S = 0.5  # acknowledged rows leave the outbox in batches, which spares the flash
REMOVE_BATCH = 50
RETRY_OUTBOX_S = 1.0
SHORT_LIVED_S = 5.0  # a connection that ended sooner does not count as success
FAREWELL_S = 1.0  # for saying `offline` and DISCONNECT
LIVE_MESSAGES = 256  # bounds of what waits to be sent live; the oldest is dropped, and counted
LIVE_BYTES = 8_000_000
REQUEST_BYTES = 65_536
REQUESTS_WAITING = 32
RESPONSES_REMEMBERED = 64


class OutboxRow(Protocol):
    """A stored message, as the outbox gives it."""

    @property
    def seq(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def retain(self) -> bool: ...
    @property
    def payload(self) -> bytes: ...


class OutboxReader(Protocol):
    """What the publisher needs of the outbox; see `edge.outbox.Outbox`."""

    def pending(self, after_seq: int, limit: int) -> Sequence[OutboxRow]:
        """The oldest rows over `after_seq`, in order."""

    def remove(self, seqs: Sequence[int]) -> None:
        """These have been delivered."""

    def listen(self, listener: Callable[[Sequence[OutboxRow]], None]) -> None:
        """Call back after each addition, with its rows that are to be retained."""


@dataclass(frozen=True)
class Timing:
    """Limits of the session.

    Attributes:
        connect_s: for the TCP connection, again for the TLS handshake, and again for the broker's answer.
        backoff_min_s, backoff_max_s: pause before the next attempt, doubling, with jitter.
        in_flight: rows sent and not yet acknowledged, at most.
        ack_s: without any acknowledgement for so long the connection is given up.
    """

    connect_s: float = 5.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 10.0
    in_flight: int = 20
    ack_s: float = 60.0


@dataclass(frozen=True)
class PublisherStatus:
    """How the session is.

    Attributes:
        detail: in words for a technician: what it is connected to, or why it is not and what to do.
        connects: connections made since the start.
        in_flight: rows sent and not yet acknowledged.
        delivered: rows acknowledged since the start; one that was sent twice counts twice.
        live_dropped: live messages that nobody heard, since there was no connection or no room.
    """

    connected: bool
    detail: str
    connects: int
    in_flight: int
    delivered: int
    live_dropped: int


class Publisher:
    """Publishes a node's messages and answers its requests. `live`, `live_bytes` and `clear` never block or raise.

    Retained topics (`live(..., retain=True)` and rows of the outbox that are to be retained) are remembered by topic
    and sent again after each connect, so that a broker that lost its memory has the truth again; retained alarms and
    camera states of an earlier run that nobody stands for any more are taken down.
    """

    def __init__(
        self,
        settings: Mqtt,
        topics: Topics,
        outbox: OutboxReader,
        boot: str,
        clock: Clock,
        on_request: Callable[[str, bytes], Response],
        verbs: Collection[str],
        timing: Timing | None = None,
    ) -> None:
        """Prepare; nothing is sent before `start`.

        Args:
            on_request: answers a request (verb, payload) in a thread of its own; the transaction is filled in here.
            verbs: what may be requested.
        """
        self._settings = settings
        self._topics = topics
        self._outbox = outbox
        self._boot = boot
        self._clock = clock
        self._timing = timing or Timing()
        self._retained: dict[str, bytes] = {}  # what each retained topic has to say; b"": nothing
        self._unsent: dict[str, None] = {}  # retained topics whose latest word is not sent, in order
        self._live: deque[_Message] = deque()
        self._live_bytes = 0
        self._seqs: dict[str, int] = {}
        self._lock = threading.Lock()  # guards the five above and the figures below; held for microseconds
        self._connected = False
        self._detail = "not started"
        self._connects = self._dropped = self._delivered = self._rows_in_flight = 0
        self._cursor = 0  # the last seq sent over this connection
        self._more = True  # the outbox may have rows beyond the cursor
        self._behind = False
        self._acked: dict[int, None] = {}  # acknowledged, still in the outbox
        self._removed_s = self._read_retry_s = self._remove_retry_s = 0.0
        self._outbox_trouble = ""
        self._stopping = threading.Event()
        self._deadline_s = 0.0
        self._waker = _Waker()
        self._requests = _Requests(verbs, on_request, self._respond)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        outbox.listen(self._on_added)

    def start(self) -> None:
        """Begin to connect. A broker that is away or refuses is no error: see `status`."""
        self._requests.start()
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send what can be sent within `timeout_s`, say `offline`, disconnect. What is left stays in the outbox."""
        self._deadline_s = time.monotonic() + timeout_s
        self._stopping.set()
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s + FAREWELL_S)
        self._requests.stop()
        if self._thread.is_alive():  # e.g. in the system's name resolution, which has no time limit
            log.warning("the MQTT session did not end within %g s; it is left behind", timeout_s + FAREWELL_S)
        else:
            self._waker.close()

    def alive(self) -> bool:
        """Whether the thread runs; it survives every trouble with broker and outbox, so False is a fault."""
        return self._thread.is_alive()

    def connected(self) -> bool:
        """Whether somebody would hear a live message."""
        return self._connected

    def live_dropped(self) -> int:
        """Live messages that nobody heard."""
        return self._dropped

    def status(self) -> PublisherStatus:
        """How the session is now."""
        with self._lock:
            return PublisherStatus(
                self._connected, self._detail, self._connects, self._rows_in_flight, self._delivered, self._dropped
            )

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        """Publish what is only about now: once when connected (QoS 0), or, retained, also after each connect (QoS 1).

        The envelope is filled in here; `seq` counts each topic from 1.
        """
        with self._lock:
            payload = self._stamped(topic, message)
            if retain:
                self._retain(topic, payload)
            else:
                self._enqueue(_Message(topic, payload, qos=0))
        self._waker.wake()

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        """Publish an image (QoS 0, not retained); False when it was dropped for want of a connection."""
        with self._lock:
            queued = self._enqueue(_Message(topic, payload, qos=0))
        self._waker.wake()
        return queued

    def clear(self, topic: str) -> None:
        """Take a retained message down, now and after each connect."""
        with self._lock:
            self._retain(topic, b"")
        self._waker.wake()

    # Called with the lock held.

    def _stamped(self, topic: str, message: Envelope) -> bytes:
        base = self._topics.state.removesuffix("state")
        return encode(self._stamp(message, topic, stream=topic.removeprefix(base)))

    def _stamp(self, message: Envelope, counter: str, stream: str) -> Envelope:
        seq = self._seqs[counter] = self._seqs.get(counter, 0) + 1
        now, mono_ns, ok = self._clock.ts(), self._clock.mono_ns(), self._clock.ok()
        return stamp(message, seq=seq, boot=self._boot, ts=now, mono_ns=mono_ns, clock_ok=ok, stream=stream)

    def _retain(self, topic: str, payload: bytes) -> None:
        self._retained[topic] = payload
        self._unsent[topic] = None

    def _enqueue(self, message: _Message) -> bool:
        if not self._connected:
            self._dropped += 1
            return False
        self._live.append(message)
        self._live_bytes += len(message.payload)
        while len(self._live) > LIVE_MESSAGES or (self._live_bytes > LIVE_BYTES and len(self._live) > 1):
            self._live_bytes -= len(self._live.popleft().payload)
            self._dropped += 1
        return True

    # Called by other threads.

    def _on_added(self, rows: Sequence[OutboxRow]) -> None:
        """The outbox has more: note what its topics now stand for, and go on sending."""
        if rows:
            with self._lock:
                for row in rows:
                    self._retained[row.topic] = row.payload
                    if self._behind:  # its turn comes late: those who look at the topic should know now
                        self._unsent[row.topic] = None
        self._more = True
        self._waker.wake()

    def _respond(self, verb: str, response: Response, remembered: bytes | None) -> bytes:
        """Queue a response, stamped; or the very one that was given before."""
        with self._lock:
            topic = self._topics.response(verb)
            # Whoever invents verbs must not make this box keep a counter for each.
            counter = topic if verb in self._requests.verbs else self._topics.response("")
            stream = f"response/{verb}" if counter == topic else "response"
            payload = remembered or encode(self._stamp(response, counter, stream))
            self._enqueue(_Message(topic, payload, qos=1))
        self._waker.wake()
        return payload

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        requests = self._topics.request("")
        if topic.startswith(requests):
            if not retained:  # a retained request would be carried out again at each connect
                self._requests.put(topic.removeprefix(requests), payload)
        elif retained and payload:
            with self._lock:
                if topic not in self._retained:
                    self._retain(topic, b"")

    # The publisher thread.

    def _run(self) -> None:
        failures = cut_short = 0
        while not self._stopping.is_set():
            session = _Session(self._settings, self._timing, self._waker, self._on_message)
            begun_s = time.monotonic()
            try:
                self._serve(session)
                detail = session.end
            except PublishError as error:
                detail = str(error)
            except Exception as error:  # a fault here must not silence the box for good
                detail = f"the MQTT session failed ({type(error).__name__}: {error}); it is tried again"
                log.debug("MQTT session failed", exc_info=True)
            session.drop()
            lasted = session.was_up and time.monotonic() - begun_s >= SHORT_LIVED_S
            failures = 0 if lasted else failures + 1
            cut_short = cut_short + 1 if session.was_up and not lasted else 0
            if cut_short > 2:
                detail += f"; is another client called {client_id(self._settings, self._topics)}, too?"
            self._disconnected(detail)
            ceiling_s = min(self._timing.backoff_max_s, self._timing.backoff_min_s * 2.0 ** min(failures, 16))
            self._stopping.wait(random.uniform(self._timing.backoff_min_s, ceiling_s))
        with contextlib.suppress(OutboxError):
            self._remove_acked()

    def _serve(self, session: _Session) -> None:
        """One connection, from CONNECT to its end."""
        topics = self._topics
        with self._lock:
            will = encode(self._stamp(State(state="offline"), "will", stream="will"))
        session.open(client_id(self._settings, topics), topics.state, will)
        session.subscribe([topics.request("+"), topics.alarm("+"), topics.camera("+", "state")])
        self._welcome(session)
        while not session.lost and not self._is_drained(session):
            self._send_live(session)
            self._send_rows(session)
            session.turn(TURN_S)
            self._settle(session)
        if self._stopping.is_set():
            self._say_farewell(session)

    def _welcome(self, session: _Session) -> None:
        with self._lock:
            self._connected = True
            self._connects += 1
            self._unsent = dict.fromkeys(self._retained)
        self._cursor, self._more = 0, True
        self._note(f"connected to {session.broker}", logging.INFO)

    def _disconnected(self, detail: str) -> None:
        with self._lock:
            self._connected = False
            self._rows_in_flight = 0
            self._dropped += len(self._live)
            self._live.clear()
            self._live_bytes = 0
        if not self._stopping.is_set():
            self._note(detail, logging.WARNING)

    def _note(self, detail: str, level: int) -> None:
        """Remember and log how it stands, once a change."""
        if detail != self._detail:
            log.log(level, "%s", detail)
        self._detail = detail

    def _send_live(self, session: _Session) -> None:
        while not session.lost and not session.congested():
            with self._lock:
                message = self._next_live()
            if message is None:
                return
            session.send(message.topic, message.payload, message.qos, message.retain)

    def _next_live(self) -> _Message | None:
        if self._unsent:
            topic = next(iter(self._unsent))
            del self._unsent[topic]
            return _Message(topic, self._retained[topic], qos=1, retain=True)
        if self._live:
            message = self._live.popleft()
            self._live_bytes -= len(message.payload)
            return message
        return None

    def _send_rows(self, session: _Session) -> None:
        room = self._timing.in_flight - len(session.in_flight)
        if not self._more or room <= 0 or session.congested() or time.monotonic() < self._read_retry_s:
            return
        self._more = False  # before reading: an addition in between sets it again
        try:
            rows = self._outbox.pending(self._cursor, room)
        except OutboxError as error:
            self._more = True
            self._read_retry_s = time.monotonic() + RETRY_OUTBOX_S
            self._note_outbox(str(error))
            return
        self._behind = len(rows) == room
        self._more = self._more or self._behind
        for row in rows:
            self._cursor = row.seq
            if row.seq not in self._acked and not session.lost:
                session.send_row(row.seq, row.topic, row.payload, self._stands(row))
        with self._lock:
            self._rows_in_flight = len(session.in_flight)

    def _stands(self, row: OutboxRow) -> bool:
        """Whether this row is what its retained topic has to say now.

        An alarm that ended while it waited here is history: it is delivered, but must not stand at the broker; and
        those who hear it now must hear after it how it stands.
        """
        if not row.retain:
            return False
        with self._lock:
            if self._retained.setdefault(row.topic, b"") == row.payload:
                return True
            self._unsent[row.topic] = None
        return False

    def _settle(self, session: _Session) -> None:
        """Take acknowledged rows out of the outbox, in batches."""
        now = time.monotonic()
        acked = session.take_acked()
        self._acked.update(dict.fromkeys(acked))
        with self._lock:
            self._delivered += len(acked)
            self._rows_in_flight = len(session.in_flight)
        due = len(self._acked) >= REMOVE_BATCH or now - self._removed_s >= REMOVE_EVERY_S
        if self._acked and due and now >= self._remove_retry_s:
            try:
                self._remove_acked()
                self._note_outbox("")
            except OutboxError as error:  # delivery goes on: what is acknowledged is remembered here meanwhile
                self._remove_retry_s = now + RETRY_OUTBOX_S
                self._note_outbox(str(error))

    def _remove_acked(self) -> None:
        if self._acked:
            self._outbox.remove(list(self._acked))
        self._acked.clear()
        self._removed_s = time.monotonic()

    def _note_outbox(self, trouble: str) -> None:
        if trouble and trouble != self._outbox_trouble:
            log.warning("%s", trouble)
        self._outbox_trouble = trouble

    def _is_drained(self, session: _Session) -> bool:
        """When stopping: whether everything is sent and acknowledged, or there is no time left for it."""
        if not self._stopping.is_set():
            return False
        with self._lock:
            waiting = bool(self._unsent or self._live)
        done = not (waiting or self._more or session.in_flight or session.others or session.congested())
        return done or time.monotonic() >= self._deadline_s

    def _say_farewell(self, session: _Session) -> None:
        with self._lock:
            offline = self._stamped(self._topics.state, State(state="offline"))
            self._connected = False
        session.send(self._topics.state, offline, qos=1, retain=True)
        limit_s = time.monotonic() + FAREWELL_S / 2
        while (session.others or session.in_flight) and not session.lost and time.monotonic() < limit_s:
            session.turn(0.1)
        self._settle(session)
        session.close()
        self._note(f"disconnected from {session.broker}", logging.INFO)


@dataclass(frozen=True)
class _Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False


class _Waker:
    """Ends the publisher thread's wait for the network from another thread."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._write.send(b"\0")

    def fileno(self) -> int:
        return self._read.fileno()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        self._read.close()
        self._write.close()


# What paho calls an end, in words that help.
_ENDS = {
    "Unspecified error": "closed by the broker or the network",
    "Keep alive timeout": "the broker was not heard of for too long",
}


class _Session:
    """One connection and the paho client that belongs to it. Used by the publisher thread only.

    Attributes:
        in_flight: rows sent and not acknowledged: MQTT message id -> seq.
        others: message ids of other messages sent and not acknowledged.
        lost: the connection is over, `end` says how.
    """

    def __init__(
        self, settings: Mqtt, timing: Timing, waker: _Waker, on_message: Callable[[str, bytes, bool], None]
    ) -> None:
        self._settings = settings
        self._timing = timing
        self._waker = waker
        self._on_message = on_message
        self._client: mqtt.Client | None = None
        self._answer: ReasonCode | None = None
        self._acked: list[int] = []
        self._heard_s = 0.0
        self.broker = f"{settings.host}:{settings.port}"
        self.in_flight: dict[int, int] = {}
        self.others: set[int] = set()
        self.was_up = False
        self.lost = False
        self.end = ""

    def open(self, name: str, will_topic: str, will: bytes) -> None:
        """Connect and wait for the broker's consent.

        Raises:
            PublishError: it cannot be done now; the message says why and what to do.
        """
        client = self._client = _make_client(self._settings, name)
        client.connect_timeout = self._timing.connect_s
        client.max_inflight_messages_set(0)  # we count ourselves: paho would queue the rest in memory
        client.will_set(will_topic, will, qos=1, retain=True)
        client.on_connect = self._guarded(self._on_connect)
        client.on_disconnect = self._guarded(self._on_disconnect)
        client.on_publish = self._guarded(self._on_publish)
        client.on_message = self._guarded(self._on_paho_message)
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        except (OSError, ValueError) as error:
            raise PublishError(explain(error, self._settings, self._timing.connect_s)) from error
        limit_s = time.monotonic() + self._timing.connect_s
        while self._answer is None and not self.lost and time.monotonic() < limit_s:
            self.turn(0.1)
        if self._answer is None:
            raise PublishError(_explain_silence(self._settings, self.lost, self._timing.connect_s))
        if self._answer.is_failure:
            raise PublishError(_explain_refusal(self._answer, self._settings, name))
        self.was_up = True
        self._heard_s = time.monotonic()

    def subscribe(self, filters: Sequence[str]) -> None:
        self._paho().subscribe([(each, 1) for each in filters])

    def send_row(self, seq: int, topic: str, payload: bytes, retain: bool) -> None:
        """Send a row of the outbox; its seq comes back through `take_acked`."""
        if not self.in_flight:
            self._heard_s = time.monotonic()
        info = self._paho().publish(topic, payload, qos=1, retain=retain)
        self.in_flight[info.mid] = seq
        self._check(info.rc)

    def send(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send any other message."""
        info = self._paho().publish(topic, payload, qos=qos, retain=retain)
        if qos:
            self.others.add(info.mid)
        self._check(info.rc)

    def congested(self) -> bool:
        """Whether the network is slower than what was sent."""
        return self._paho().want_write()

    def take_acked(self) -> list[int]:
        """The rows acknowledged since the last call."""
        acked, self._acked = self._acked, []
        return acked

    def turn(self, timeout_s: float) -> None:
        """Wait for the network or a wake-up, and do what there is to do."""
        client = self._paho()
        sock = client.socket()
        if sock is None or self.lost:
            self._lose("the connection was closed")
            return
        buffered = sock.pending() if isinstance(sock, ssl.SSLSocket) else 0
        poller = select.poll()
        poller.register(self._waker.fileno(), select.POLLIN)
        poller.register(sock.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        events = dict(poller.poll(0 if buffered else timeout_s * 1000))
        if self._waker.fileno() in events:
            self._waker.drain()
        if buffered or events.get(sock.fileno(), 0) & ~select.POLLOUT:
            self._check(client.loop_read())
        if client.want_write():
            self._check(client.loop_write())
        self._check(client.loop_misc())
        if self.in_flight and time.monotonic() - self._heard_s > self._timing.ack_s:
            self._lose(f"no acknowledgement for {self._timing.ack_s:g} s")

    def close(self) -> None:
        """Take leave of the broker: it then does not publish the will."""
        with contextlib.suppress(OSError):
            self._paho().disconnect()
            limit_s = time.monotonic() + FAREWELL_S / 2
            while self._paho().want_write() and time.monotonic() < limit_s:
                self._paho().loop_write()
                time.sleep(0.01)
        self.drop()

    def drop(self) -> None:
        """Close the socket, whatever state it is in."""
        self.lost = True
        sock = self._client.socket() if self._client is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    def _paho(self) -> mqtt.Client:
        if self._client is None:
            raise PublishError("the session was used before it was opened")
        return self._client

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose(mqtt.error_string(code).rstrip(".").lower())

    def _lose(self, why: str) -> None:
        if not self.lost:
            self.lost = True
            self.end = f"the connection to the MQTT broker {self.broker} was lost ({why}); connecting again"

    def _guarded(self, callback: Callable[..., None]) -> Callable[..., None]:
        """An exception in a callback would leave paho half way through a packet."""

        def call(*args: Any) -> None:
            try:
                callback(*args)
            except Exception as error:
                log.error("MQTT callback failed: %s: %s", type(error).__name__, error)
                log.debug("MQTT callback failed", exc_info=True)

        return call

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._answer = reason

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        self._lose(_ENDS.get(str(reason), str(reason).lower()))

    def _on_publish(self, _client: Any, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        self._heard_s = time.monotonic()
        self.others.discard(mid)
        if mid in self.in_flight:
            self._acked.append(self.in_flight.pop(mid))

    def _on_paho_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._on_message(message.topic, bytes(message.payload), message.retain)


class _Requests:
    """Answers requests in a thread of its own, each transaction once: a repeated one gets the answer it had."""

    def __init__(
        self,
        verbs: Collection[str],
        handler: Callable[[str, bytes], Response],
        respond: Callable[[str, Response, bytes | None], bytes],
    ) -> None:
        self.verbs = frozenset(verbs)
        self._handler = handler
        self._respond = respond
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(REQUESTS_WAITING)
        self._answered: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, verb: str, payload: bytes) -> None:
        try:
            self._waiting.put_nowait((verb, payload))
        except queue.Full:
            busy = f"{REQUESTS_WAITING} requests are waiting already; try again later"
            self._respond(verb, Response(transaction="", ok=False, text=busy), None)

    def stop(self) -> None:
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(FAREWELL_S)

    def _run(self) -> None:
        while (request := self._waiting.get()) is not None:
            self._answer(*request)

    def _answer(self, verb: str, payload: bytes) -> None:
        transaction, problem = self._read(verb, payload)
        if problem:
            self._respond(verb, Response(transaction=transaction, ok=False, text=problem), None)
            return
        key = (verb, transaction)
        if key in self._answered:
            self._respond(verb, Response(transaction=transaction, ok=True, text=""), self._answered[key])
            return
        response = msgspec.structs.replace(self._handle(verb, payload), transaction=transaction)
        self._answered[key] = self._respond(verb, response, None)
        if len(self._answered) > RESPONSES_REMEMBERED:
            self._answered.popitem(last=False)

    def _read(self, verb: str, payload: bytes) -> tuple[str, str]:
        """The transaction, and what is wrong with the request ("" for nothing)."""
        if verb not in self.verbs:
            return "", f"there is no request {verb[:64]!r}; there are: {', '.join(sorted(self.verbs)) or 'none'}"
        if len(payload) > REQUEST_BYTES:
            return "", f"the request has {len(payload)} bytes, at most {REQUEST_BYTES} are read"
        try:
            transaction = msgspec.json.decode(payload, type=Request).transaction
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return "", f'the request is not understood ({error}); it is JSON with a "transaction" of your choice'
        if not 1 <= len(transaction) <= 128:
            return "", "the transaction has 1 to 128 characters"
        return transaction, ""

    def _handle(self, verb: str, payload: bytes) -> Response:
        try:
            return self._handler(verb, payload)
        except EdgeError as error:
            text = str(error)
        except Exception as error:
            text = f"{verb} failed inside ({type(error).__name__}: {error}); see the log of the service"
            log.error("request %s failed: %s: %s", verb, type(error).__name__, error)
            log.debug("request failed", exc_info=True)
        return Response(transaction="", ok=False, text=text)


def client_id(settings: Mqtt, topics: Topics) -> str:
    """What this box is called at the broker, where two clients of one name throw each other out.

    >>> client_id(Mqtt(), Topics("edge", "plant", "smt1", "aoi"))
    'edge-aoi'
    """
    return settings.client_id or f"edge-{topics.node}"


def _make_client(settings: Mqtt, name: str) -> mqtt.Client:
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=name,
        clean_session=True,
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=False,
    )
    if settings.username is not None:
        client.username_pw_set(settings.username, read_password(settings))
    if settings.tls:
        client.tls_set_context(tls_context(settings))
    return client


def read_password(settings: Mqtt) -> str | None:
    """The password, read anew at each connect, so that a rotated file works without a restart.

    Raises:
        PublishError: the file cannot be read.
    """
    if settings.password_file is None:
        return settings.password
    try:
        return Path(settings.password_file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PublishError(
            f"mqtt.password_file {settings.password_file} cannot be read: {reason}; "
            "check the path and that the service's user may read it"
        ) from error


def tls_context(settings: Mqtt) -> ssl.SSLContext:
    """The TLS set-up of the config, with its files read anew.

    Raises:
        PublishError: one of the files is missing or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificate and host name, TLS 1.2 or later
    if settings.ca_file is None:
        context.load_default_certs()
    else:
        with _naming("mqtt.ca_file", settings.ca_file, "the PEM file of the authority that signed the broker"):
            context.load_verify_locations(settings.ca_file)
    if settings.cert_file is not None:
        for field, file in (("mqtt.cert_file", settings.cert_file), ("mqtt.key_file", settings.key_file)):
            if file is not None:
                with _naming(field, file, "a readable PEM file"), open(file, "rb"):
                    pass
        with _naming("mqtt.cert_file", settings.cert_file, "a PEM certificate, and mqtt.key_file its unencrypted key"):
            # An empty password: asking for one on the terminal would hang a service.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    return context


@contextlib.contextmanager
def _naming(field: str, file: str, wanted: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise PublishError(f"{field} {file} cannot be used ({_reason(error)}); it must be {wanted}") from error
    except OSError as error:
        raise PublishError(f"{field} {file} cannot be read: {error.strerror}; it must be {wanted}") from error


def _reason(error: ssl.SSLError) -> str:
    return str(getattr(error, "reason", None) or error)


def explain(error: Exception, settings: Mqtt, connect_s: float) -> str:
    """Why there is no connection, and what to do, in one sentence for a technician."""
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"{broker} has a certificate that is not trusted: {error.verify_message}; "
            "check mqtt.ca_file, that mqtt.host is a name in the certificate, and this box's clock"
        )
    if isinstance(error, ssl.SSLError):
        return (
            f"no TLS session with {broker} ({_reason(error)}); check that this port speaks TLS, "
            "and whether it wants a client certificate (mqtt.cert_file)"
        )
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name {settings.host!r} of the MQTT broker is unknown; check mqtt.host and this box's DNS"
    if isinstance(error, ConnectionRefusedError):
        return f"{broker} refuses the connection; check that the broker runs and that mqtt.port is right"
    if isinstance(error, TimeoutError):
        return f"{broker} did not answer within {connect_s:g} s; check the cable, mqtt.host and the firewall"
    if isinstance(error, ConnectionError):
        return _explain_silence(settings, True, connect_s)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{broker} cannot be reached: {reason}; check the network of this box and mqtt.host"


def _explain_silence(settings: Mqtt, closed: bool, connect_s: float) -> str:
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    if not closed:
        return f"{broker} accepted the connection but did not answer within {connect_s:g} s; is it an MQTT broker?"
    if settings.tls:
        hint = "check whether it wants a client certificate (mqtt.cert_file)"
        hint = "check that it accepts the client certificate in mqtt.cert_file" if settings.cert_file else hint
    else:
        hint = "check that this port speaks MQTT, and whether it wants TLS (mqtt.tls)"
    return f"{broker} closed the connection without a word; {hint}"


def _explain_refusal(reason: ReasonCode, settings: Mqtt, name: str) -> str:
    broker = f"the MQTT broker {settings.host}:{settings.port}"
    text = str(reason)
    if text in ("Bad user name or password", "Not authorized"):
        if settings.username is None:
            return f"{broker} wants a user name and a password; set mqtt.username and mqtt.password_file"
        return (
            f"{broker} refused the password of user {settings.username!r}; "
            "check mqtt.username and mqtt.password or mqtt.password_file, and the broker's user list"
        )
    if text == "Client identifier not valid":
        return f"{broker} refused the client name {name!r}; set mqtt.client_id to one that it accepts"
    return f"{broker} refused the session: {text.lower()}; look into the broker's log"
