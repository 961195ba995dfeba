"""What a node says about now: live messages, answers and retained topics, until the session has sent them.

Any thread may say something and none of them waits: what waits to be sent is bounded, and what finds no connection
or no room is dropped and counted. What each retained topic has to say is remembered, to be said anew after each
connect, so that a broker that lost its memory has the truth again.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from edge.clock import Clock
from edge.event import Envelope, Response, State, Topics, encode, stamp

LIVE_MESSAGES = 256  # bounds of what waits to be sent; the oldest is dropped, and counted
LIVE_BYTES = 8_000_000


@dataclass(frozen=True)
class Message:
    """One message to be sent as it is."""

    topic: str
    payload: bytes
    qos: int
    retain: bool = False


class LiveMessages:
    """The live messages of one node, stamped as they come in. `seq` counts each topic from 1."""

    def __init__(self, topics: Topics, boot: str, clock: Clock) -> None:
        self._topics = topics
        self._boot = boot
        self._clock = clock
        self._retained: dict[str, bytes] = {}  # what each retained topic has to say; b"": nothing
        self._unsent: dict[str, None] = {}  # retained topics whose latest word is not sent, in order
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._seqs: dict[str, int] = {}
        self._connected = False
        self._dropped = 0
        self._lock = threading.Lock()  # guards all of the above; held for microseconds

    @property
    def connected(self) -> bool:
        """Whether somebody would hear a message."""
        return self._connected

    @property
    def dropped(self) -> int:
        """Messages that nobody heard."""
        return self._dropped

    # For those who have something to say.

    def say(self, topic: str, message: Envelope, retain: bool) -> None:
        """Once, when connected (QoS 0); or, retained, also after each connect (QoS 1)."""
        with self._lock:
            payload = self._stamped(topic, message)
            if retain:
                self._retain(topic, payload)
            else:
                self._enqueue(Message(topic, payload, qos=0))

    def say_bytes(self, topic: str, payload: bytes) -> bool:
        """As it is (QoS 0, not retained); False when it was dropped for want of a connection."""
        with self._lock:
            return self._enqueue(Message(topic, payload, qos=0))

    def respond(self, verb: str, known: bool, response: Response, remembered: bytes | None) -> bytes:
        """Say a response, stamped; or the very one that was given before.

        Args:
            known: whether there is such a request.
        """
        with self._lock:
            topic = self._topics.response(verb)
            # Whoever invents verbs must not make this box keep a counter for each.
            counter = topic if known else self._topics.response("")
            stream = f"response/{verb}" if known else "response"
            payload = remembered or encode(self._stamp(response, counter, stream))
            self._enqueue(Message(topic, payload, qos=1))
        return payload

    def clear(self, topic: str) -> None:
        """Take a retained message down, now and after each connect."""
        with self._lock:
            self._retain(topic, b"")

    # For retained topics of which the outbox has messages, too.

    def remember(self, topic: str, payload: bytes, say_now: bool) -> None:
        """The outbox has this as the latest word of a retained topic, and will send it in its turn."""
        with self._lock:
            self._retained[topic] = payload
            if say_now:
                self._unsent[topic] = None

    def stands(self, topic: str, payload: bytes) -> bool:
        """Whether this is what a retained topic has to say now; if not, that is said again after it."""
        with self._lock:
            if self._retained.setdefault(topic, b"") == payload:
                return True
            self._unsent[topic] = None
        return False

    def disown(self, topic: str) -> None:
        """The broker retains something here: take it down if nobody stands for it."""
        with self._lock:
            if topic not in self._retained:
                self._retain(topic, b"")

    # For the session.

    def begin(self) -> None:
        """There is a connection: all that is retained is to be said anew."""
        with self._lock:
            self._connected = True
            self._unsent = dict.fromkeys(self._retained)

    def end(self) -> None:
        """There is none: what waits will not be heard."""
        with self._lock:
            self._connected = False
            self._dropped += len(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0

    def next(self) -> Message | None:
        """Take what is to be sent next: what is retained first."""
        with self._lock:
            if self._unsent:
                topic = next(iter(self._unsent))
                del self._unsent[topic]
                return Message(topic, self._retained[topic], qos=1, retain=True)
            if self._waiting:
                message = self._waiting.popleft()
                self._waiting_bytes -= len(message.payload)
                return message
            return None

    def is_empty(self) -> bool:
        """Whether all is sent."""
        with self._lock:
            return not (self._unsent or self._waiting)

    def will(self) -> bytes:
        """What the broker is to say on the `state` topic when this node vanishes."""
        with self._lock:
            return encode(self._stamp(State(state="offline"), "will", stream="will"))

    def farewell(self) -> Message:
        """The node's own last word; nothing more is taken in."""
        with self._lock:
            self._connected = False
            offline = self._stamped(self._topics.state, State(state="offline"))
            return Message(self._topics.state, offline, qos=1, retain=True)

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

    def _enqueue(self, message: Message) -> bool:
        if not self._connected:
            self._dropped += 1
            return False
        self._waiting.append(message)
        self._waiting_bytes += len(message.payload)
        while len(self._waiting) > LIVE_MESSAGES or (self._waiting_bytes > LIVE_BYTES and len(self._waiting) > 1):
            self._waiting_bytes -= len(self._waiting.popleft().payload)
            self._dropped += 1
        return True
