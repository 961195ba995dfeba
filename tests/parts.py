"""Parts as a station would have settled them."""

from __future__ import annotations

import numpy as np

from edge.part import Pairing, Part, Trigger
from edge.records import Cause, Detections, Frame, GateResult, Inspection, Loss, Reason, Scores, Verdict, VerdictKind
from tests.fakes import found, textured

TS = 1_795_703_415.0  # 2026-11-26 14:30:15 UTC

REASONS = {
    "NG": Reason("defect.open", "open 0.90 at 10,10 size 20x30 px"),
    "REVIEW": Reason("doubt.open", "open 0.40 at 10,10 size 20x30 px, threshold 0.50"),
    "RETAKE": Reason("gate.blur", "blur: measured 1, limit 10. Clean the lens."),
}


def verdict(kind: str) -> Verdict:
    """A verdict, with a reason where it needs one."""
    return Verdict(VerdictKind(kind), (REASONS[kind],) if kind in REASONS else ())


def look(kind: str = "NG", camera: str = "cam1", image=None, number: int = 1, ts: float = TS) -> Inspection:
    """One judged frame."""
    image = textured(number) if image is None else image
    refused = kind == "RETAKE"
    gate = GateResult(not refused, Cause.BLUR if refused else None, 123.4, 100.5, 0.01, limit=10.0 if refused else None)
    boxes = found(0.9) if kind == "NG" else Detections.none()
    scores = Scores() if refused else Scores(0.5, 1.0, np.full((4, 4), 0.5, np.float32))
    frame = Frame(image, camera, number, int(ts * 1e9), ts, f"{number}.png")
    features = np.zeros((1, 2, 4, 4), np.float32)
    return Inspection(frame, gate, boxes, scores, verdict(kind), {"gate": 0.1, "predict": 20.5}, features)


def part(
    kind: str = "NG", number: int = 1, serial: str = "", cameras=("cam1",), image=None, ts: float = TS, missing=None
) -> Part:
    """A triggered part; `kind` is a verdict or the name of a loss."""
    lost = kind not in VerdictKind.__members__
    looks = tuple(look("OK" if lost else kind, camera, image, number, ts) for camera in cameras)
    return Part(
        number=number,
        recipe="pcb",
        recipe_hash="ab" * 32,
        trigger=Trigger(number % 65536, serial, 1, int(ts * 1e9) - 50_000_000, ts - 0.05, 1000 + number),
        inspections=looks,
        verdict=None if lost else verdict(kind),
        loss=Loss(kind) if lost else None,
        settled_ts=ts,
        missing=missing or {},
        pairings={camera: Pairing(1.5, 0.5) for camera in cameras},
        detail="it took too long" if lost else "",
    )
