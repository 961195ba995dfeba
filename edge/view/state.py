"""What a view knows of a line: MQTT messages folded into state. Pure: no clock, no socket, constant memory a node."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from edge import event

WINDOW = 300  # results whose latency is summarised
TREND = 200  # sharpness values kept a camera
RECENT = 100  # verdicts, parts and rejects kept for showing
REACH = 1000  # how far back a late or repeated message can be; anything further back is another numbering
MAX_AHEAD = 5000  # numbers held beyond a gap before the gap is given up as lost

# The kinds that carry the gap-free `seq`.
OUTBOX = (event.Result, event.PartResult, event.Reject, event.Alarm, event.Disagreement)


class NodeId(NamedTuple):
    """Which box: three levels of every topic."""

    site: str
    line: str
    node: str

    def __str__(self) -> str:
        return "/".join(self)


class AlarmCleared(NamedTuple):
    """An alarm that is over: its retained message was replaced by an empty one."""

    code: str


Told = (
    event.State
    | event.Info
    | event.Health
    | event.Books
    | event.LineState
    | event.CameraState
    | event.Result
    | event.PartResult
    | event.Reject
    | event.Alarm
    | event.Drift
    | event.BundleState
    | event.Disagreement
)
Message = Told | AlarmCleared
Settled = event.Result | event.PartResult  # a part of a line without triggers, or of one that a PLC triggers


class Heard(NamedTuple):
    """One message that said something new."""

    node: NodeId
    message: Message


class SequenceProof:
    """Proves from the reader's side that no numbered message of a node is missing, in constant memory.

    Attributes:
        first: the first number held; None before any.
        upto: every number from `first` to here is held, was given up as `lost`, or was missed `away`.
        duplicates: messages that came again with the same id.
        lost: numbers given up: the gap before them stayed open for too long.
        away: numbers that passed while this reader had no connection.
        renumbered: how often the node began its numbers anew (its state was wiped).

    >>> proof = SequenceProof()
    >>> for seq in (7, 8, 10):
    ...     _ = proof.take(seq, f"b-o-{seq}")
    >>> proof.missing(), proof.held
    ([(9, 9)], 3)
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.renumbered = 0
        self._reset()

    def _reset(self) -> None:
        self.first: int | None = None
        self.upto = 0
        self.lost = 0
        self.away = 0
        self._ahead: set[int] = set()
        self._ids: OrderedDict[int, str] = OrderedDict()
        self._resuming = False
        self._source = ""

    @property
    def held(self) -> int:
        """How many different numbers are held."""
        if self.first is None:
            return 0
        return self.upto - self.first + 1 - self.lost - self.away + len(self._ahead)

    @property
    def last(self) -> int:
        """The highest number held, 0 before any."""
        return max(self._ahead, default=self.upto)

    def take(self, seq: int, message_id: str) -> bool:
        """Take in one number (from 1) with its message's id. False: it is here already, with this same id."""
        known = self._ids.get(seq)
        source = message_id.rpartition("-")[0]  # all but the number: one start of the node
        far_back = self.first is not None and seq < self.upto - REACH
        if known == message_id or (far_back and source == self._source):  # e.g. an old alarm that still stands
            self.duplicates += 1
            return False
        if known is not None or far_back:
            self.renumbered += 1
            self._reset()
        self._source = source
        self._remember(seq, message_id)
        self._place(seq)
        return True

    def resume(self) -> None:
        """The reader was away: a jump at the next number is its own doing, not the node's."""
        self._resuming = self.first is not None

    def missing(self) -> list[tuple[int, int]]:
        """Open gaps as (from, to), both included; numbers that may still come."""
        gaps, next_wanted = [], self.upto + 1
        for seq in sorted(self._ahead):
            if seq > next_wanted:
                gaps.append((next_wanted, seq - 1))
            next_wanted = seq + 1
        return gaps

    def _remember(self, seq: int, message_id: str) -> None:
        self._ids[seq] = message_id
        if len(self._ids) > REACH + MAX_AHEAD:
            self._ids.popitem(last=False)

    def _place(self, seq: int) -> None:
        if self.first is None:
            self.first = self.upto = seq
        elif seq < self.first:
            pass  # sent again from before this reader began: not part of what it set out to prove
        elif seq <= self.upto:
            self._fill_late()
        else:
            self._ahead.add(seq)
            if self._resuming:
                self._close_gap_as_away(seq)
            self._advance()
            if len(self._ahead) > MAX_AHEAD:
                self._give_up_first_gap()

    def _fill_late(self) -> None:
        """A number that was written off came after all."""
        if self.away:
            self.away -= 1
        elif self.lost:
            self.lost -= 1

    def _close_gap_as_away(self, seq: int) -> None:
        self._resuming = False
        below = [held for held in self._ahead if held <= seq]
        self.away += seq - self.upto - len(below)
        self._ahead.difference_update(below)
        self.upto = seq

    def _give_up_first_gap(self) -> None:
        next_held = min(self._ahead)
        self.lost += next_held - self.upto - 1
        self.upto = next_held - 1
        self._advance()

    def _advance(self) -> None:
        while self.upto + 1 in self._ahead:
            self.upto += 1
            self._ahead.discard(self.upto)


@dataclass
class CameraView:
    """One camera as its node tells it."""

    state: event.CameraState | None = None
    drift: event.Drift | None = None
    sharpness: deque[float] = field(default_factory=lambda: deque(maxlen=TREND))


@dataclass
class NodeView:
    """One box as it tells itself.

    Attributes:
        state: starting, running, stopping, offline; "" while unknown.
        books: its ledger, from the newer of `ledger` and `health` messages.
        line: what a triggered station shows to its PLC; None: none is triggered, or it did not tell yet.
        bundle: which one is in charge, and which is coming.
        verdicts: outcomes, counted since this view began; those of a triggered station may be losses.
        latency_ms: of the latest `WINDOW` results.
        healths: health messages heard.
        heard_s: when it last said anything, on the caller's monotonic clock, seconds.
    """

    state: str = ""
    info: event.Info | None = None
    health: event.Health | None = None
    healths: int = 0
    books: event.Books | None = None
    line: event.LineState | None = None
    bundle: event.BundleState | None = None
    parts: int = 0  # heard of a triggered station
    cameras: dict[str, CameraView] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    alarms: dict[str, event.Alarm] = field(default_factory=dict)
    proof: SequenceProof = field(default_factory=SequenceProof)
    heard_s: float = 0.0

    @property
    def is_triggered(self) -> bool:
        """Whether a PLC triggers it, as far as it told."""
        by_health = self.health is not None and self.health.line is not None
        return self.line is not None or by_health or self.parts > 0


class LineView:
    """Folds the messages of one or many nodes into what is shown.

    Attributes:
        malformed: messages that are not what their topic says, counted and otherwise ignored.
        newer: messages of another schema version that this program cannot read.

    >>> view = LineView("edge")
    >>> _ = view.fold("edge/v1/plant/smt1/aoi/state", b'{"schema":"edge.state.v1","state":"running"}', at_s=0.0)
    >>> view.nodes[NodeId("plant", "smt1", "aoi")].state
    'running'
    """

    def __init__(self, prefix: str) -> None:
        self._root = [*prefix.split("/"), "v1"]
        self.nodes: dict[NodeId, NodeView] = {}
        self.verdicts: deque[tuple[NodeId, Settled]] = deque(maxlen=RECENT)
        self.rejects: deque[tuple[NodeId, event.Reject]] = deque(maxlen=RECENT)
        self.malformed = 0
        self.newer = 0

    def fold(self, topic: str, payload: bytes, *, at_s: float, retained: bool = False) -> Heard | None:
        """Take in one message.

        Args:
            topic: where it came.
            payload: as it came; may be anything.
            at_s: monotonic time of its arrival, seconds.
            retained: the broker sent it from its store, so it is not the next of its numbers.

        Returns:
            What it said, or None when it said nothing new (a duplicate, unreadable, not of this contract).
        """
        levels = topic.split("/")
        depth = len(self._root)
        if levels[:depth] != self._root or len(levels) < depth + 4:
            return None
        node_id, leaf = NodeId(*levels[depth : depth + 3]), levels[depth + 3 :]
        if not payload:
            return self._forget(node_id, leaf)
        message = self._decode(leaf, payload)
        if message is None:
            return None
        node = self.nodes.setdefault(node_id, NodeView())
        if not retained:
            node.heard_s = at_s
        fresh = retained or not _is_numbered(message) or node.proof.take(message.seq, message.id)
        if isinstance(message, event.Alarm):  # told again after each reconnect of the node: new if it does not stand
            fresh = node.alarms.get(message.code) != message
        elif not fresh:
            return None
        self._apply(node_id, node, message)
        return Heard(node_id, message) if fresh else None

    def connected(self) -> None:
        """The broker is there (again): what it retains comes next, so anything retained earlier may be out of date."""
        for node in self.nodes.values():
            node.state = ""
            node.line = None
            node.alarms.clear()
            node.proof.resume()
            for camera in node.cameras.values():
                camera.state = None

    def _decode(self, leaf: Sequence[str], payload: bytes) -> Told | None:
        kind = _kind_of(leaf)
        if kind is None:
            return None
        try:
            message: Told = _DECODERS[kind].decode(payload)
            return message
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if _is_other_version(kind, payload):
                self.newer += 1
            else:
                self.malformed += 1
            return None

    def _forget(self, node_id: NodeId, leaf: Sequence[str]) -> Heard | None:
        """An empty retained message takes back what stood there."""
        node = self.nodes.get(node_id)
        if node is None:
            return None
        if len(leaf) == 2 and leaf[0] == "alarm" and node.alarms.pop(leaf[1], None) is not None:
            return Heard(node_id, AlarmCleared(leaf[1]))
        if list(leaf) == ["state"]:  # the node was taken off the line
            del self.nodes[node_id]
        elif list(leaf) == ["line"]:  # no PLC triggers it any more
            node.line, node.parts = None, 0
        return None

    def _apply(self, node_id: NodeId, node: NodeView, message: Message) -> None:
        if isinstance(message, event.State):
            node.state = message.state
        elif isinstance(message, event.Info):
            node.info = message
        elif isinstance(message, event.Health):
            node.health = message
            node.healths += 1
            self._apply_books(node, _books_of(message))
        elif isinstance(message, event.Books):
            self._apply_books(node, message)
        elif isinstance(message, event.LineState):
            node.line = message
        elif isinstance(message, event.BundleState):
            node.bundle = message
        elif isinstance(message, event.CameraState):
            node.cameras.setdefault(message.camera, CameraView()).state = message
        elif isinstance(message, event.Drift):
            node.cameras.setdefault(message.camera, CameraView()).drift = message
        elif isinstance(message, event.Alarm):
            node.alarms[message.code] = message
        elif isinstance(message, event.Reject):
            self.rejects.append((node_id, message))
        elif isinstance(message, event.Result):
            self._apply_result(node_id, node, message)
        elif isinstance(message, event.PartResult):
            self._apply_part(node_id, node, message)

    def _apply_books(self, node: NodeView, books: event.Books) -> None:
        """Of one start of the node the later word counts: what is retained may overtake a health message."""
        known = node.books
        if known is None or known.boot != books.boot or books.mono_ns >= known.mono_ns:
            node.books = books

    def _apply_result(self, node_id: NodeId, node: NodeView, result: event.Result) -> None:
        node.verdicts[result.verdict] += 1
        node.latency_ms.append(result.latency_ms)
        node.cameras.setdefault(result.camera, CameraView()).sharpness.append(result.sharpness)
        self.verdicts.append((node_id, result))

    def _apply_part(self, node_id: NodeId, node: NodeView, part: event.PartResult) -> None:
        node.parts += 1
        node.verdicts[part.outcome] += 1
        node.latency_ms.append(part.latency_ms)
        for look in part.looks:
            node.cameras.setdefault(look.camera, CameraView()).sharpness.append(look.sharpness)
        self.verdicts.append((node_id, part))


def _books_of(health: event.Health) -> event.Books:
    """The ledger as a health message tells it; nodes that say it nowhere else have only this."""
    return event.Books(
        boot=health.boot,
        ts=health.ts,
        mono_ns=health.mono_ns,
        clock_ok=health.clock_ok,
        ledger=health.ledger,
        in_flight=health.in_flight,
        balanced=health.balanced,
    )


def _is_numbered(message: Told) -> bool:
    """Whether its `seq` is the node's gap-free one: an alarm that could not be stored is told live, numbered apart."""
    return isinstance(message, OUTBOX) and message.seq > 0 and message.id.endswith(f"-o-{message.seq}")


def _kind_of(leaf: Sequence[str]) -> type[event.Envelope] | None:
    """The payload that belongs to a topic below its node; None for topics a view has no use for."""
    if len(leaf) == 1:
        return _NODE_KINDS.get(leaf[0])
    if len(leaf) == 2 and leaf[0] == "alarm":
        return event.Alarm
    if list(leaf) == ["bundle", "disagreement"]:
        return event.Disagreement
    if len(leaf) == 3 and leaf[0] == "camera":
        return _CAMERA_KINDS.get(leaf[2])
    return None


_NODE_KINDS: dict[str, type[event.Envelope]] = {
    "state": event.State, "info": event.Info, "health": event.Health, "ledger": event.Books, "line": event.LineState,
    "part": event.PartResult, "bundle": event.BundleState,
}  # fmt: skip
_CAMERA_KINDS: dict[str, type[event.Envelope]] = {
    "state": event.CameraState, "result": event.Result, "reject": event.Reject, "drift": event.Drift,
}  # fmt: skip
_OTHERS = (event.Alarm, event.Disagreement)
_KINDS: tuple[type[event.Envelope], ...] = (*_NODE_KINDS.values(), *_CAMERA_KINDS.values(), *_OTHERS)
_DECODERS: dict[type[event.Envelope], msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(kind) for kind in _KINDS}
_ENVELOPE = msgspec.json.Decoder(event.Envelope)


def _is_other_version(kind: type[event.Envelope], payload: bytes) -> bool:
    """Whether an unreadable payload is of the right family (`edge.result.`) but not of our version."""
    ours = str(msgspec.structs.fields(kind)[0].default)
    try:
        theirs = _ENVELOPE.decode(payload).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return theirs != ours and theirs.rpartition(".")[0] == ours.rpartition(".")[0]


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of all values do not exceed; None of nothing.

    >>> percentile([3.0, 1.0, 2.0], 0.5), percentile([], 0.5)
    (2.0, None)
    """
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
