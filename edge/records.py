"""What flows through the runtime: frozen records, checked when they are made.

A record that exists is valid, so no later stage checks it again. Shapes: N boxes, (H, W) pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class VerdictKind(str, Enum):
    """What became of a part that was judged."""

    OK = "OK"
    NG = "NG"
    REVIEW = "REVIEW"
    RETAKE = "RETAKE"


class Loss(str, Enum):
    """Why a trigger ended without a verdict. There is no other way to end without one."""

    OVERRUN = "overrun"
    CAPTURE_FAULT = "capture_fault"
    DEADLINE = "deadline"
    SHUTDOWN = "shutdown"
    PROCESSING_FAULT = "processing_fault"


class Cause(str, Enum):
    """Why the gate refused a frame.

    `BLUR` is what the cheap measure says; where a classifier runs it tells motion from defocus.
    """

    BLUR = "blur"
    MOTION = "motion"
    DEFOCUS = "defocus"
    OVEREXPOSED = "overexposed"
    UNDEREXPOSED = "underexposed"
    OCCLUDED = "occluded"
    DIRTY_LENS = "dirty_lens"


@dataclass(frozen=True)
class Frame:
    """One image as a camera delivered it, before anything judged it.

    Attributes:
        image: uint8, (H, W) grey or (H, W, 3) BGR; not to be written to.
        camera: id of the camera, as in the site config.
        number: counts the camera's frames from 1 since the daemon started.
        captured_mono_ns: monotonic clock when the frame was in memory, nanoseconds.
        captured_ts: the same moment on the wall clock, seconds since 1970, UTC.
        name: what a person would call it: a file's name, or "" for a live camera.
    """

    image: NDArray[np.uint8]
    camera: str
    number: int
    captured_mono_ns: int
    captured_ts: float
    name: str = ""


@dataclass(frozen=True)
class GateResult:
    """The gate's judgement of one frame, with what it measured.

    Attributes:
        passed: the frame may be judged; False exactly when `cause` is set.
        cause: why it was refused.
        sharpness: variance of the Laplacian over the region of interest; higher is sharper.
        brightness: mean grey level, 0 to 255.
        saturated: share of pixels at 255, 0 to 1.
        measured: what crossed a threshold: the sharpness, brightness or saturated share; 0 when it passed.
        limit: that threshold, in the same unit; None when it passed.
        advice: what a technician should try, "" when it passed.
        probabilities: of a good frame (`ok`) and of each cause, by the classifier; empty where it did not run.
    """

    passed: bool
    cause: Cause | None
    sharpness: float
    brightness: float
    saturated: float
    measured: float = 0.0
    limit: float | None = None
    advice: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.passed == (self.cause is not None):
            raise ValueError(f"a gate result passes or has a cause: passed={self.passed}, cause={self.cause}")


@dataclass(frozen=True)
class Detections:
    """Boxes found on one frame, most confident first.

    Attributes:
        xyxy: (N, 4) float32, absolute pixels of the source frame.
        confidence: (N,) float32, 0 to 1; higher is surer.
        class_id: (N,) int64, index into the bundle's classes.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.confidence)
        if self.xyxy.shape != (n, 4) or self.confidence.shape != (n,) or self.class_id.shape != (n,):
            raise ValueError(
                f"detections want xyxy (N, 4), confidence (N,) and class_id (N,), got "
                f"{self.xyxy.shape}, {self.confidence.shape} and {self.class_id.shape}"
            )

    def __len__(self) -> int:
        return len(self.confidence)

    @classmethod
    def none(cls) -> Detections:
        """No boxes: what a frame has that was not searched.

        >>> len(Detections.none())
        0
        """
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def above(self, confidence: float) -> Detections:
        """Those at least this sure."""
        keep = self.confidence >= confidence
        return Detections(self.xyxy[keep], self.confidence[keep], self.class_id[keep])


@dataclass(frozen=True)
class Scores:
    """Judgements beside the detector's; None where the product has no such model.

    Attributes:
        anomaly: of the whole part; higher is worse, in the units of its limit.
        anomaly_limit: from here on the part goes to a person; None where there is no score.
        anomaly_map: (h, w) float32 over the whole frame, higher is worse; None where there is no score.
    """

    anomaly: float | None = None
    anomaly_limit: float | None = None
    anomaly_map: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.anomaly is not None and not math.isfinite(self.anomaly):
            raise ValueError(f"an anomaly score is a finite number, got {self.anomaly}")
        if (self.anomaly is None) != (self.anomaly_limit is None):
            raise ValueError(f"an anomaly score comes with its limit, got {self.anomaly} and {self.anomaly_limit}")

    @property
    def anomalous(self) -> bool:
        """Whether the part holds something that was not in the training data."""
        return self.anomaly is not None and self.anomaly_limit is not None and self.anomaly >= self.anomaly_limit


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict: a stable code for machines, a sentence for people."""

    code: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """What was decided on a part. Everything but OK says why."""

    kind: VerdictKind
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind is VerdictKind.OK) == bool(self.reasons):
            raise ValueError(f"a verdict has reasons exactly when it is not OK: {self.kind}, {self.reasons}")


@dataclass(frozen=True)
class Inspection:
    """All that is known of one judged frame.

    Attributes:
        detections: all boxes that were found.
        stage_ms: wall time of each stage, in the order they ran, milliseconds.
        features: (1, C, h, w) float32, what the detector's boxes are computed from; None where there is none.
        counted: of the detections, those that its recipe lets count; None where that is not known.
    """

    frame: Frame
    gate: GateResult
    detections: Detections
    scores: Scores
    verdict: Verdict
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None
    counted: Detections | None = None

    def told(self, confidence: float) -> Detections:
        """The boxes to be shown: those that counted, since any other on a part that is OK would want an explanation.

        Where it is not known which counted, those at least so sure.
        """
        return self.counted if self.counted is not None else self.detections.above(confidence)
