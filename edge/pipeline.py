"""The inspection path, in one visible function. Stages come in through protocols: no adapter is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edge import decide, gate
from edge.preprocess import Image, check_image
from edge.recipe import Recipe
from edge.records import Detections, Frame, Inspection, Scores


class FrameDetector(Protocol):
    """Finds defects on an image."""

    def detect(self, image: Image) -> Detections:
        """Detections in source pixels, most confident first."""


class Pipeline:
    """Judges frames by one recipe. Lives in the thread that owns the predictors."""

    def __init__(
        self, detector: FrameDetector, recipe: Recipe, classes: Sequence[str], clock_ns: Callable[[], int]
    ) -> None:
        self._detector = detector
        self._recipe = recipe
        self._classes = tuple(classes)
        self._clock_ns = clock_ns

    def inspect(self, frame: Frame, *, detect_refused: bool = False) -> Inspection:
        """Judge one frame: gate, detect, decide.

        Args:
            frame: as captured.
            detect_refused: also look for defects on a frame that the gate refuses (its verdict stays RETAKE);
                offline accuracy is measured that way.

        Raises:
            ImageError: an image the pipeline cannot take.
            PredictorError: the runtime failed.
        """
        begun = self._clock_ns()
        check_image(frame.image)
        gate_result = gate.check(frame.image, self._recipe.gate)
        gated = self._clock_ns()
        stage_ms = {"gate": (gated - begun) / 1e6}
        detections = Detections.none()
        if gate_result.passed or detect_refused:
            detections = self._detector.detect(frame.image)
            stage_ms["detect"] = (self._clock_ns() - gated) / 1e6
        if gate_result.passed:
            verdict = decide.decide(detections, self._recipe.detect, self._classes)
        else:
            verdict = decide.refuse(gate_result)
        return Inspection(frame, gate_result, detections, Scores(), verdict, stage_ms)
