"""The publisher: one thread that brings the outbox and what is said live to the broker.

It sends the outbox in order, at most `Timing.in_flight` messages unacknowledged, and takes a message out of the outbox
when its PUBACK has come. Every connection has a paho client of its own (`edge.session`), so that no queue of paho's
outlives it; the outbox and the retained messages of `edge.live` are what is sent anew.
Callers of `live` and its like only append to a bounded queue, they never wait for the network.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.broker import client_id
from edge.clock import Beat, Clock
from edge.config import Mqtt
from edge.errors import OutboxError, PublishError
from edge.event import Envelope, Response, Topics
from edge.live import LiveMessages
from edge.requests import RequestDesk
from edge.session import Session, Waker

log = logging.getLogger(__name__)

TURN_S = 0.5  # how long the thread waits for the network before it looks around
REMOVE_EVERY_S = 0.5  # acknowledged rows leave the outbox in batches, which spares the flash
REMOVE_BATCH = 50
RETRY_OUTBOX_S = 1.0
SHORT_LIVED_S = 5.0  # a connection that ended sooner does not count as success
FAREWELL_S = 1.0  # for saying `offline` and DISCONNECT
# A thread without progress for so long hangs. Its longest step is the way to a broker that does not answer: the
# system's look-up, and then each address in turn; nothing is lost meanwhile.
HUNG_S = 120.0


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
        connect_s: for the broker's address, and again for the TCP connection, the TLS handshake, the broker's answer.
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
    and sent again after each connect, so that a broker that lost its memory has the truth again; retained alarms,
    camera states and drift reports of an earlier run that nobody stands for any more are taken down.

    Attributes:
        beat: moves with each step of the session, also while the broker is away.
        beat_of_requests: of the thread that answers requests.
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
        self._timing = timing or Timing()
        self._live = LiveMessages(topics, boot, clock)
        self._detail = "not started"
        self._connects = self._delivered = self._rows_in_flight = 0
        self._cursor = 0  # the last seq sent over this connection
        self._more = True  # the outbox may have rows beyond the cursor
        self._behind = False
        self._acked: dict[int, None] = {}  # acknowledged, still in the outbox
        self._removed_s = self._read_retry_s = self._remove_retry_s = 0.0
        self._outbox_trouble = ""
        self._stopping = threading.Event()
        self._deadline_s = 0.0
        self._waker = Waker()
        self._requests = RequestDesk(verbs, on_request, self._respond)
        self.beat = Beat("publisher", HUNG_S)
        self.beat_of_requests = self._requests.beat
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
        if self._thread.is_alive():  # each step of connecting is limited, but not all of them together
            log.warning("the MQTT session did not end within %g s; it is left behind", timeout_s + FAREWELL_S)
        else:
            self._waker.close()

    def connected(self) -> bool:
        """Whether somebody would hear a live message."""
        return self._live.connected

    def live_dropped(self) -> int:
        """Live messages that nobody heard."""
        return self._live.dropped

    def status(self) -> PublisherStatus:
        """How the session is now."""
        return PublisherStatus(
            connected=self._live.connected,
            detail=self._detail,
            connects=self._connects,
            in_flight=self._rows_in_flight,
            delivered=self._delivered,
            live_dropped=self._live.dropped,
        )

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        """Publish what is only about now: once when connected (QoS 0), or, retained, also after each connect (QoS 1).

        The envelope is filled in here; `seq` counts each topic from 1.
        """
        self._live.say(topic, message, retain)
        self._waker.wake()

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        """Publish an image (QoS 0, not retained); False when it was dropped for want of a connection."""
        queued = self._live.say_bytes(topic, payload)
        self._waker.wake()
        return queued

    def clear(self, topic: str) -> None:
        """Take a retained message down, now and after each connect."""
        self._live.clear(topic)
        self._waker.wake()

    # Called by other threads.

    def _on_added(self, rows: Sequence[OutboxRow]) -> None:
        """The outbox has more: note what its topics now stand for, and go on sending."""
        for row in rows:  # those whose turn comes late are said now, too, for whoever looks at the topic
            self._live.remember(row.topic, row.payload, say_now=self._behind)
        self._more = True
        self._waker.wake()

    def _respond(self, verb: str, response: Response, remembered: bytes | None) -> bytes:
        payload = self._live.respond(verb, verb in self._requests.verbs, response, remembered)
        self._waker.wake()
        return payload

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        requests = self._topics.request("")
        if topic.startswith(requests):
            if not retained:  # a retained request would be carried out again at each connect
                self._requests.put(topic.removeprefix(requests), payload)
        elif retained and payload:
            self._live.disown(topic)

    # The publisher thread.

    def _run(self) -> None:
        failures = cut_short = 0
        while not self._stopping.is_set():
            self.beat.now()
            session = self._new_session()
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
            pause_s = random.uniform(self._timing.backoff_min_s, ceiling_s)
            self.beat.now(pause_s)
            self._stopping.wait(pause_s)
        with contextlib.suppress(OutboxError):
            self._remove_acked()
        self.beat.rest()

    def _new_session(self) -> Session:
        timing = self._timing
        return Session(
            self._settings, self._waker, self._on_message,
            connect_s=timing.connect_s, ack_s=timing.ack_s, beat=self.beat,
        )  # fmt: skip

    def _serve(self, session: Session) -> None:
        """One connection, from CONNECT to its end."""
        topics = self._topics
        session.open(client_id(self._settings, topics), topics.state, self._live.will())
        session.subscribe(
            [topics.request("+"), topics.alarm("+"), topics.camera("+", "state"), topics.camera("+", "drift")]
        )
        self._welcome(session)
        while not session.lost and not self._is_drained(session):
            self._send_live(session)
            self._send_rows(session)
            session.turn(TURN_S)
            self._settle(session)
        if self._stopping.is_set():
            self._say_farewell(session)

    def _welcome(self, session: Session) -> None:
        self._connects += 1
        self._live.begin()
        self._cursor, self._more = 0, True
        self._note(f"connected to {session.broker}", logging.INFO)

    def _disconnected(self, detail: str) -> None:
        self._live.end()
        self._rows_in_flight = 0
        if not self._stopping.is_set():
            self._note(detail, logging.WARNING)

    def _note(self, detail: str, level: int) -> None:
        """Remember and log how it stands, once a change."""
        if detail != self._detail:
            log.log(level, "%s", detail)
        self._detail = detail

    def _send_live(self, session: Session) -> None:
        while not session.lost and not session.congested():
            message = self._live.next()
            if message is None:
                return
            session.send(message.topic, message.payload, message.qos, message.retain)

    def _send_rows(self, session: Session) -> None:
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
        self._rows_in_flight = len(session.in_flight)

    def _stands(self, row: OutboxRow) -> bool:
        """Whether this row is what its retained topic has to say now.

        An alarm that ended while it waited here is history: it is delivered, but must not stand at the broker; and
        those who hear it now must hear after it how it stands.
        """
        return row.retain and self._live.stands(row.topic, row.payload)

    def _settle(self, session: Session) -> None:
        """Take acknowledged rows out of the outbox, in batches."""
        now = time.monotonic()
        acked = session.take_acked()
        self._acked.update(dict.fromkeys(acked))
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

    def _is_drained(self, session: Session) -> bool:
        """When stopping: whether everything is sent and acknowledged, or there is no time left for it."""
        if not self._stopping.is_set():
            return False
        waiting = self._more or session.in_flight or session.others or session.congested()
        done = self._live.is_empty() and not waiting
        return done or time.monotonic() >= self._deadline_s

    def _say_farewell(self, session: Session) -> None:
        offline = self._live.farewell()
        session.send(offline.topic, offline.payload, offline.qos, offline.retain)
        limit_s = time.monotonic() + FAREWELL_S / 2
        while (session.others or session.in_flight) and not session.lost and time.monotonic() < limit_s:
            session.turn(0.1)
        self._settle(session)
        session.close()
        self._note(f"disconnected from {session.broker}", logging.INFO)
