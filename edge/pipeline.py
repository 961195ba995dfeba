"""The inspection path, in one visible function. Stages come in through protocols: no adapter is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from edge import decide, gate
from edge.preprocess import Image, check_image
from edge.recipe import Recipe
from edge.records import Detections, Frame, Inspection, Scores
from edge.stopwatch import Stopwatch


class FrameDetector(Protocol):
    """Finds defects on an image."""

    def detect(self, image: Image, lap: Callable[[str], None]) -> Detections:
        """Detections in source pixels, most confident first; `lap` is told the end of each stage."""


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
        watch = Stopwatch(self._clock_ns)
        check_image(frame.image)
        gate_result = gate.check(frame.image, self._recipe.gate)
        watch.lap("gate")
        detections = Detections.none()
        if gate_result.passed or detect_refused:
            detections = self._detector.detect(frame.image, watch.lap)
        if gate_result.passed:
            verdict = decide.decide(detections, self._recipe.detect, self._classes)
        else:
            verdict = decide.refuse(gate_result)
        watch.lap("decide")
        return Inspection(frame, gate_result, detections, Scores(), verdict, watch.stage_ms)
