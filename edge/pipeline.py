"""The inspection path, in one visible function. Stages come in through protocols: no adapter is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from edge import decide, gate
from edge.align import moved
from edge.boxes import Float
from edge.detect import Seen
from edge.errors import ImageError
from edge.preprocess import Image, check_image
from edge.recipe import Recipe
from edge.records import Detections, Frame, GateResult, Inspection, Scores
from edge.stopwatch import Stopwatch

# A frame with a shorter side than this shows no part, whatever the judges find on it: a cut-off transfer, a wrong
# format. "Nothing found" on such a frame must not pass a part.
LEAST_SIDE_PX = 16


class FrameDetector(Protocol):
    """Finds defects on an image."""

    def look(self, image: Image, lap: Callable[[str], None]) -> Seen:
        """What the network says of the image; `lap` is told the end of each stage."""


class FrameClassifier(Protocol):
    """Names what is wrong with a frame, where the cheap measures do not decide."""

    def judge(self, image: Image, cheap: GateResult) -> GateResult:
        """`cheap` as it is where that decides; else the classifier's own judgement."""


class FeatureJudge(Protocol):
    """Finds on the detector's features what the detector never learned."""

    def judge(self, features: Float) -> Scores:
        """Score, limit and map over the network's input, for features (1, C, h, w)."""


class Pipeline:
    """Judges frames by one recipe. Lives in the thread that owns the predictors."""

    def __init__(
        self,
        detector: FrameDetector,
        recipe: Recipe,
        classes: Sequence[str],
        clock_ns: Callable[[], int],
        *,
        classifier: FrameClassifier | None = None,
        anomaly: FeatureJudge | None = None,
    ) -> None:
        self._detector = detector
        self._recipe = recipe
        self._classes = tuple(classes)
        self._clock_ns = clock_ns
        self._classifier = classifier
        self._anomaly = anomaly

    def inspect(self, frame: Frame, *, detect_refused: bool = False) -> Inspection:
        """Judge one frame: gate, detect, anomaly, decide.

        Args:
            frame: as captured.
            detect_refused: also look for defects on a frame that the gate refuses (its verdict stays RETAKE);
                offline accuracy is measured that way.

        Raises:
            ImageError: an image the pipeline cannot take.
            PredictorError: the runtime failed, or a model answered with what is no number.
        """
        watch = Stopwatch(self._clock_ns)
        check_image(frame.image)
        _check_size(frame.image)
        gate_result = gate.check(frame.image, self._recipe.gate)
        watch.lap("gate")
        if self._classifier is not None:
            gate_result = self._classifier.judge(frame.image, gate_result)
            watch.lap("classify")
        detections, scores, features = Detections.none(), Scores(), None
        if gate_result.passed or detect_refused:
            seen = self._detector.look(frame.image, watch.lap)
            detections, features = seen.detections, seen.features
            if self._anomaly is not None and features is not None:
                scores = _on_frame(self._anomaly.judge(features), seen, frame)
                watch.lap("anomaly")
        size = frame.image.shape[1], frame.image.shape[0]
        counted = decide.deciding(detections, self._recipe.detect, self._classes, size)
        if gate_result.passed:
            verdict = decide.decide(counted, self._recipe.detect, self._classes, scores, size)
        else:
            verdict = decide.refuse(gate_result)
        watch.lap("decide")
        return Inspection(frame, gate_result, detections, scores, verdict, watch.stage_ms, features, counted)


def _check_size(image: Image) -> None:
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE_PX:
        raise ImageError(
            f"the image is {width}x{height} pixels and a part wants at least {LEAST_SIDE_PX} a side: check the "
            "camera's resolution and format"
        )


def _on_frame(scores: Scores, seen: Seen, frame: Frame) -> Scores:
    """The scores with their map over the frame as it was taken: without the padding, and shifted back with the part."""
    if scores.anomaly_map is None:
        return scores
    height, width = frame.image.shape[:2]
    stride = seen.input_width / scores.anomaly_map.shape[1]
    cells = seen.placement.on_source(scores.anomaly_map, width, height, stride)
    x, y = (round(pixels * seen.placement.scale / stride) for pixels in seen.shift)
    return replace(scores, anomaly_map=moved(cells, x, y))
