"""One connection to the broker, in the hands of one thread that waits for the network and for its own work at once."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edge.broker import await_address, explain, explain_refusal, explain_silence, make_client
from edge.clock import Beat
from edge.config import Mqtt
from edge.errors import PublishError

log = logging.getLogger(__name__)

GOODBYE_S = 0.5  # for DISCONNECT to leave

# What paho calls an end, in words that help.
_ENDS = {
    "Unspecified error": "closed by the broker or the network",
    "Keep alive timeout": "the broker was not heard of for too long",
}


class Waker:
    """Ends a wait for the network from another thread."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def wake(self) -> None:
        """End the wait, now or as soon as it begins; any thread."""
        with contextlib.suppress(OSError):  # full: it is awake anyway; closed: it has ended
            self._write.send(b"\0")

    def fileno(self) -> int:
        """What to wait for, beside the network's socket."""
        return self._read.fileno()

    def drain(self) -> None:
        """Forget the wakings so far."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        """Free its sockets; `wake` does nothing from here on."""
        self._read.close()
        self._write.close()


class Session:
    """One connection and the paho client that belongs to it. Used by one thread only.

    Attributes:
        in_flight: rows sent and not acknowledged: MQTT message id -> seq.
        others: message ids of other messages sent and not acknowledged.
        was_up: the broker let us in.
        lost: the connection is over, `end` says how.
    """

    def __init__(
        self,
        settings: Mqtt,
        waker: Waker,
        on_message: Callable[[str, bytes, bool], None],
        *,
        connect_s: float,
        ack_s: float,
        beat: Beat,
    ) -> None:
        """Prepare; see `open`.

        Args:
            waker: what else ends a wait for the network.
            on_message: called in `turn` with topic, payload and whether the broker sent it from its store.
            connect_s: for the broker's address, and again for the TCP connection, the TLS handshake, the broker's
                answer.
            ack_s: without any acknowledgement for so long the connection is given up.
            beat: of the thread; told of each step.
        """
        self._settings = settings
        self._connect_s = connect_s
        self._ack_s = ack_s
        self._beat = beat
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
        client = self._client = make_client(self._settings, name, reconnect=False)
        client.connect_timeout = self._connect_s
        client.max_inflight_messages_set(0)  # we count ourselves: paho would queue the rest in memory
        client.will_set(will_topic, will, qos=1, retain=True)
        client.on_connect = self._guarded(self._on_connect)
        client.on_disconnect = self._guarded(self._on_disconnect)
        client.on_publish = self._guarded(self._on_publish)
        client.on_message = self._guarded(self._on_paho_message)
        try:
            self._beat.now(self._connect_s)
            await_address(self._settings, self._connect_s)
            self._beat.now()
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        except (OSError, ValueError) as error:
            raise PublishError(explain(error, self._settings, self._connect_s)) from error
        limit_s = time.monotonic() + self._connect_s
        while self._answer is None and not self.lost and time.monotonic() < limit_s:
            self.turn(0.1)
        if self._answer is None:
            raise PublishError(explain_silence(self._settings, self.lost, self._connect_s))
        if self._answer.is_failure:
            raise PublishError(explain_refusal(self._answer, self._settings, name))
        self.was_up = True
        self._heard_s = time.monotonic()

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for what others say on these topics (QoS 1)."""
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
        self._beat.now(timeout_s)
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
        if self.in_flight and time.monotonic() - self._heard_s > self._ack_s:
            self._lose(f"no acknowledgement for {self._ack_s:g} s")

    def close(self) -> None:
        """Take leave of the broker: it then does not publish the will."""
        with contextlib.suppress(OSError):
            self._paho().disconnect()
            limit_s = time.monotonic() + GOODBYE_S
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
