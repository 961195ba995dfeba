"""A part as plain data, exactly: what lies beside its pictures, and what an incident is judged against.

Messages round what they tell; here every number is whole, so that one bit of difference shows. JSON keeps a float32:
it is written as the float64 of the same value, with as many digits as lead back to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from edge.event import Why
from edge.part import Pairing, Part, Trigger
from edge.records import GateResult, Inspection, Reason


class ExactBox(msgspec.Struct, kw_only=True, frozen=True):
    """One detection: pixels of the source frame, float32 each."""

    xyxy: list[float]
    confidence: float
    class_id: int
    class_name: str = ""


class ExactLook(msgspec.Struct, kw_only=True, frozen=True):
    """All that is known of one judged frame, but its pixels."""

    camera: str
    frame: int
    name: str
    captured_mono_ns: int
    captured_ts: float
    shape: list[int]  # rows, columns and, for colour, 3
    verdict: str
    reasons: list[Why]
    gate: GateResult
    boxes: list[ExactBox]
    anomaly: float | None
    anomaly_limit: float | None
    anomaly_map: str  # SHA-256 of its float32, row by row; "" where there is none
    stage_ms: dict[str, float]


class PartRecord(msgspec.Struct, kw_only=True, frozen=True):
    """One part as it was settled."""

    number: int
    recipe: str
    recipe_hash: str
    trigger: Trigger | None
    settled_ts: float
    outcome: str  # OK, NG, REVIEW, RETAKE or the name of a loss
    verdict: str | None
    reasons: list[Why]
    loss: str | None
    detail: str
    looks: list[ExactLook]
    missing: dict[str, str]
    pairings: dict[str, Pairing]


def record_of(part: Part, classes: Sequence[str] = ()) -> PartRecord:
    """The record of a part; boxes are named where `classes`, by class id, has a name for them."""
    verdict = part.verdict
    return PartRecord(
        number=part.number,
        recipe=part.recipe,
        recipe_hash=part.recipe_hash,
        trigger=part.trigger,
        settled_ts=part.settled_ts,
        outcome=part.outcome,
        verdict=verdict.kind.value if verdict is not None else None,
        reasons=_whys(verdict.reasons) if verdict is not None else [],
        loss=part.loss.value if part.loss is not None else None,
        detail=part.detail,
        looks=[look_of(inspection, classes) for inspection in part.inspections],
        missing=dict(part.missing),
        pairings=dict(part.pairings),
    )


def look_of(inspection: Inspection, classes: Sequence[str] = ()) -> ExactLook:
    """The record of one judged frame."""
    frame, scores, anomaly_map = inspection.frame, inspection.scores, inspection.scores.anomaly_map
    return ExactLook(
        camera=frame.camera,
        frame=frame.number,
        name=frame.name,
        captured_mono_ns=frame.captured_mono_ns,
        captured_ts=frame.captured_ts,
        shape=list(frame.image.shape),
        verdict=inspection.verdict.kind.value,
        reasons=_whys(inspection.verdict.reasons),
        gate=inspection.gate,
        boxes=_boxes(inspection, classes),
        anomaly=scores.anomaly,
        anomaly_limit=scores.anomaly_limit,
        anomaly_map=hashlib.sha256(anomaly_map.tobytes()).hexdigest() if anomaly_map is not None else "",
        stage_ms=dict(inspection.stage_ms),
    )


def _whys(reasons: Sequence[Reason]) -> list[Why]:
    return [Why(code=reason.code, text=reason.text) for reason in reasons]


def _boxes(inspection: Inspection, classes: Sequence[str]) -> list[ExactBox]:
    found = inspection.detections
    rows = zip(found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True)
    return [
        ExactBox(
            xyxy=xyxy,
            confidence=confidence,
            class_id=class_id,
            class_name=classes[class_id] if 0 <= class_id < len(classes) else "",
        )
        for xyxy, confidence, class_id in rows
    ]
