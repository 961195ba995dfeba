"""What a station is connected to, as protocols: the disk, the wire, and what looks or keeps beside the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge.chain import About
from edge.clock import Beat
from edge.event import Drift, Envelope, EvidenceCounts, GenealogyCounts, LedgerCounts, OutboxCounts, RecorderCounts
from edge.evidence import Served
from edge.outbox import Draft
from edge.part import Part
from edge.records import Inspection
from edge.stream_watch import Notice


class Store(Protocol):
    """The durable side: what `Outbox` gives the station."""

    def add(self, drafts: Sequence[Draft], ledger: LedgerCounts, parts: int) -> list[int]:
        """Make messages and ledger durable together; their seq numbers."""

    def save_ledger(self, counts: LedgerCounts, parts: int) -> None:
        """Make the ledger durable on its own."""

    def counts(self) -> OutboxCounts:
        """What the outbox holds and has done."""


class Wire(Protocol):
    """The live side: what `Publisher` gives the station. Never blocks, never raises."""

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        """Tell what is only about now."""

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        """Send an image; False when there is no connection."""

    def clear(self, topic: str) -> None:
        """Take a retained message down."""

    def connected(self) -> bool:
        """Whether somebody would hear it."""

    def live_dropped(self) -> int:
        """Live messages that nobody heard."""


class Watch(Protocol):
    """What looks at the stream of frames after their verdicts: what `StreamWatch` gives the station."""

    def look(self, inspection: Inspection) -> Sequence[Notice]:
        """Take one judged frame; the alarms that begin or end."""

    def messages(self) -> Sequence[Drift]:
        """How each camera's stream stands."""

    def standing(self) -> Sequence[Notice]:
        """The alarms that stand."""

    def save(self) -> None:
        """Make the state durable."""


class Rows(Protocol):
    """The genealogy: what `Genealogy` gives the station."""

    def serve(self, about: About) -> None:
        """Another bundle is in charge."""

    def append_part(self, part: Part, evidence: str) -> str:
        """Make the part's row durable; its hash. Raises an `EdgeError` when that cannot be done."""

    def append(self, kind: str, body: Mapping[str, Any]) -> str:
        """Make a row of another kind durable; its hash. Raises as `append_part`."""

    def counts(self) -> GenealogyCounts:
        """What the chain holds."""


class Pictures(Protocol):
    """The evidence: what `Evidence` gives the station. Never blocks, never raises."""

    def serve(self, served: Served) -> None:
        """Another bundle is in charge."""

    def keep(self, part: Part) -> str:
        """The folder that will hold the part's pictures, "" when none are kept."""

    def keep_opinion(self, part: Part, other: Inspection, opinion: Served) -> str:
        """As `keep`, of one frame of a part as a bundle in shadow judges it."""

    def counts(self) -> EvidenceCounts:
        """What is kept."""

    @property
    def beat(self) -> Beat:
        """Moves while the thread that writes does."""

    def problem(self) -> str:
        """What keeps pictures from the disk, "" for nothing."""


class BlackBox(Protocol):
    """The recorder: what `Recorder` gives the station. Never blocks, never raises."""

    def serve(self, session: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Another bundle is in charge."""

    def note_part(self, part: Part) -> None:
        """A part with its frames."""

    def note_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """What else happened."""

    def counts(self) -> RecorderCounts:
        """What is recorded."""

    @property
    def beat(self) -> Beat:
        """Moves while the thread that writes does."""

    def problem(self) -> str:
        """What keeps records from the disk, "" for nothing."""


class Beside(Protocol):
    """What follows the parts to judge a bundle by them: what `Changeover` gives the station. Never raises."""

    def settled(self, part: Part) -> None:
        """A part was settled; its answer may still be to be given."""

    def fault(self, text: str) -> None:
        """A frame could not be judged."""


@dataclass(frozen=True)
class Kept:
    """What is kept of parts beside the outbox; None where the config wants none."""

    rows: Rows | None = None
    pictures: Pictures | None = None
    recorder: BlackBox | None = None
