"""Judged frames of drawn noise, for monitors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edge.drift.plan import Measured, settings_for
from edge.drift.settings import DriftSettings
from edge.preprocess import Image
from edge.records import Cause, Detections, Frame, GateResult, Inspection, Reason, Scores, Verdict, VerdictKind

CLASSES = ("open", "short")
SIZE = (64, 48)


def grey(rng: np.random.Generator, level: float = 128.0, spread: float = 20.0, size: tuple[int, int] = SIZE) -> Image:
    return np.clip(rng.normal(level, spread, (size[1], size[0])), 0, 255).astype(np.uint8)


def judged(
    image: Image,
    number: int,
    *,
    sharpness: float = 1000.0,
    confidence: float | None = None,
    class_id: int = 0,
    refused: bool = False,
    ts: float | None = None,
) -> Inspection:
    """A frame each second, as a pipeline would judge it."""
    frame = Frame(image, "cam1", number, number * 10**9, 1e9 + number if ts is None else ts, f"{number}.png")
    gate = GateResult(True, None, sharpness, float(image.mean()), 0.0)
    if refused:
        gate = replace(gate, passed=False, cause=Cause.BLUR)
    found = Detections.none()
    if confidence is not None:
        box = np.array([[1, 1, 9, 9]], np.float32)
        found = Detections(box, np.array([confidence], np.float32), np.array([class_id], np.int64))
    verdict = Verdict(VerdictKind.RETAKE, (Reason("gate.blur", "blurred"),)) if refused else Verdict(VerdictKind.OK)
    return Inspection(frame, gate, found, Scores(), verdict)


def bundle_settings(frames: int = 300, arl0: float = 100_000.0, size: tuple[int, int] = SIZE) -> DriftSettings:
    """A baseline of drawn noise, brightness and contrast alone."""
    rng = np.random.default_rng(99)
    images = [grey(rng, size=size) for _ in range(frames)]
    values = {"brightness": [float(i.mean()) for i in images], "contrast": [float(i.std()) for i in images]}
    return settings_for(Measured(values, CLASSES, *size), "drawn frames", arl0)
