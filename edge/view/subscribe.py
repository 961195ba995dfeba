"""The view's MQTT session: a client like any technician's, folding what it hears into a `LineView`."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.reasoncodes import ReasonCode

from edge import config
from edge.broker import brief, make_client
from edge.errors import PublishError
from edge.view.state import Heard, LineView

# Everything but the images: they are big and a terminal cannot show them.
LEAVES = (
    "state", "info", "health", "ledger", "line", "part", "alarm/+", "bundle", "bundle/disagreement",
    "camera/+/state", "camera/+/result", "camera/+/reject", "camera/+/drift",
)  # fmt: skip
RETRY_S = (1, 5)  # pause before a new attempt: first and longest
CLOSE_LIMIT_S = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Where:
    """Which nodes to look at; None: all of them."""

    site: str | None = None
    line: str | None = None
    node: str | None = None

    def topics(self, prefix: str) -> list[str]:
        """The subscriptions this takes.

        >>> Where(node="aoi").topics("edge")[0]
        'edge/v1/+/+/aoi/state'
        """
        root = "/".join([prefix, "v1", self.site or "+", self.line or "+", self.node or "+"])
        return [f"{root}/{leaf}" for leaf in LEAVES]


@dataclass(frozen=True)
class Link:
    """The connection to the broker.

    Attributes:
        address: host and port, as shown.
        connected: messages can come.
        text: why not; "" when connected, and while nothing is known yet.
        since_s: monotonic time of the last change, seconds.
    """

    address: str
    connected: bool
    text: str
    since_s: float


class Subscriber:
    """Listens until closed, reconnecting by itself. Hold `lock` while reading `view` or `link`.

    Args:
        settings: the broker and how to log in; `client_id` is not used, it belongs to the node.
        where: which nodes.
        on_heard: called in the network thread with each new message; must return at once.

    Raises:
        PublishError: the host's name, a password file or a certificate file cannot be used.
    """

    def __init__(self, settings: config.Mqtt, where: Where, on_heard: Callable[[Heard], None] | None = None) -> None:
        self.lock = threading.Lock()
        self.view = LineView(settings.prefix)
        self.refused: str | None = None  # set when the broker turned down our first login
        self.subscribed = False  # from the first time on that messages can reach us
        self._settings = settings
        self._topics = where.topics(settings.prefix)
        self._on_heard = on_heard
        self.ever_connected = False
        self.link = Link(f"{settings.host}:{settings.port}", False, "", time.monotonic())
        self._client = _client(settings)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._not_connected
        self._client.on_disconnect = self._disconnected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._message

    def __enter__(self) -> Subscriber:
        self._client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)
        self._client.loop_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        # loop_stop waits without a limit for a thread that may be inside a slow name look-up.
        closer = threading.Thread(target=self._client.loop_stop, name="view-close", daemon=True)
        closer.start()
        closer.join(CLOSE_LIMIT_S)

    def _set_link(self, connected: bool, text: str) -> None:
        """Call with the lock held. The moment is kept when only the wording changes."""
        since_s = self.link.since_s if connected == self.link.connected else time.monotonic()
        self.link = Link(self.link.address, connected, text, since_s)

    def _connected(self, client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _props: Any) -> None:
        with self.lock:
            if code.is_failure:
                self._set_link(False, f"login refused: {code}")
                if not self.ever_connected:
                    self.refused = str(code)
                return
            self.ever_connected = True
            self._set_link(True, "")
            self.view.connected()
        client.subscribe([(topic, 1) for topic in self._topics])

    def _not_connected(self, _client: mqtt.Client, _user: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this while it handles the error that it does not hand over
        with self.lock:
            self._set_link(False, brief(error))

    def _disconnected(self, _client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, _props: Any) -> None:
        with self.lock:
            if self.link.connected:
                self._set_link(False, f"connection lost: {code}")

    def _subscribed(self, _client: mqtt.Client, _user: Any, _mid: int, codes: list[ReasonCode], _props: Any) -> None:
        with self.lock:
            self.subscribed = True
            if any(code.is_failure for code in codes):
                self._set_link(True, "the broker does not let this user read these topics")

    def _message(self, _client: mqtt.Client, _user: Any, message: mqtt.MQTTMessage) -> None:
        try:
            with self.lock:
                heard = self.view.fold(
                    message.topic, bytes(message.payload), at_s=time.monotonic(), retained=message.retain
                )
            if heard is not None and self._on_heard is not None:
                self._on_heard(heard)
        except Exception:  # an error here would end paho's thread and freeze the view for good
            log.exception("a message could not be taken in")


def _client(settings: config.Mqtt) -> mqtt.Client:
    """A client of its own name, so that it never takes over a node's session."""
    try:
        settings.host.encode("idna")
    except UnicodeError as error:  # paho's thread would die of it without a word
        raise PublishError(f"{settings.host!r} is not the name of a host; correct mqtt.host") from error
    client_id = f"edge-view-{os.getpid()}-{secrets.token_hex(3)}"
    client = make_client(settings, client_id, reconnect=True)
    client.reconnect_delay_set(*RETRY_S)
    return client
