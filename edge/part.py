"""A part of the line: what asks for its judgement, and how it was settled. Frozen records, as in `edge.records`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edge.records import Inspection, Loss, Verdict, VerdictKind


@dataclass(frozen=True)
class Trigger:
    """One request of the line to judge the part that stands before the cameras.

    Attributes:
        number: as the PLC counts them, 0 to 65535, over and over; the answer carries it back.
        serial: of the part, "" when the line has none.
        recipe: number of the recipe to judge it by; 0: the one that is set.
        at_mono_ns: monotonic clock when the last byte of the request was read, nanoseconds.
        at_ts: the same moment on the wall clock, seconds since 1970, UTC.
        encoder: count of the line's encoder at the trigger; None where there is no encoder.
    """

    number: int
    serial: str
    recipe: int
    at_mono_ns: int
    at_ts: float
    encoder: int | None = None


class Say(str, Enum):
    """The word of an answer on the wire. Only `OK` lets a part pass."""

    OK = "OK"
    NG = "NG"
    REVIEW = "REVIEW"  # a person should look: not OK
    RETAKE = "RETAKE"  # the frame could not be judged: not OK, take it again if the line can
    FAIL = "FAIL"  # there is no verdict (a named loss): not OK
    LATE = "LATE"  # an OK that could not be said in time: not OK


@dataclass(frozen=True)
class Answer:
    """What the line is told of a trigger. An OK exists only when all that it says is on the disk.

    Attributes:
        result_id: number of the part, higher each time, also over restarts.
        reason: the stable code of the first reason, such as `defect.short`, `gate.motion` or `deadline`; "" for OK.
        until_mono_ns: an OK that is not on the wire by then has to be said as `LATE`; None: there is no deadline.
    """

    trigger: Trigger
    result_id: int
    say: Say
    reason: str = ""
    until_mono_ns: int | None = None


@dataclass(frozen=True)
class Pairing:
    """How the frame of a camera was found for a trigger.

    Attributes:
        offset_ms: when the frame was taken against when it was wanted; negative: before.
        uncertainty_ms: the frame may have been taken by so much earlier or later than that.
    """

    offset_ms: float
    uncertainty_ms: float


@dataclass(frozen=True)
class Part:
    """One part as it was settled: a verdict, or a named loss.

    Attributes:
        number: counts parts, also over restarts; the result id of the answer.
        recipe: name of the recipe that it was judged by. recipe_hash: SHA-256 of that recipe's text.
        trigger: what asked for it; None on a line without triggers, where each frame is a part.
        inspections: one for each camera whose frame was judged, in the order of the config.
        missing: camera -> why there was no frame of it to judge.
        pairings: camera -> how its frame was found; empty without a trigger.
        settled_ts: wall clock, seconds since 1970, UTC.
    """

    number: int
    recipe: str
    recipe_hash: str
    trigger: Trigger | None
    inspections: tuple[Inspection, ...]
    verdict: Verdict | None
    loss: Loss | None
    settled_ts: float
    missing: Mapping[str, str] = field(default_factory=dict)
    pairings: Mapping[str, Pairing] = field(default_factory=dict)
    detail: str = ""  # of a loss: what happened, in one sentence

    def __post_init__(self) -> None:
        if (self.verdict is None) == (self.loss is None):
            raise ValueError(f"a part has a verdict or a loss: {self.verdict}, {self.loss}")

    @property
    def serial(self) -> str:
        """Of the part, "" when it has none."""
        return self.trigger.serial if self.trigger is not None else ""

    @property
    def outcome(self) -> str:
        """The verdict's or the loss's name: `OK`, `NG`, `REVIEW`, `RETAKE`, `deadline`, ..."""
        return self.verdict.kind.value if self.verdict is not None else _name(self.loss)

    @property
    def say(self) -> Say:
        """The word that the line is told."""
        return Say(self.verdict.kind.value) if self.verdict is not None else Say.FAIL

    @property
    def passed(self) -> bool:
        """Whether the part may go on."""
        return self.verdict is not None and self.verdict.kind is VerdictKind.OK

    @property
    def reason(self) -> str:
        """The stable code of the first reason; a loss's name; "" for OK."""
        if self.verdict is None:
            return _name(self.loss)
        return self.verdict.reasons[0].code if self.verdict.reasons else ""


def _name(loss: Loss | None) -> str:
    return loss.value if loss is not None else ""
