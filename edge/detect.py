"""The detector: preprocess, predict, decode, suppress. Anchor-free, one pair of outputs a feature level."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.align import moved
from edge.boxes import Float, clip, nms
from edge.errors import PredictorError
from edge.preprocess import Image, InputSpec, Placement, check_image, preprocess
from edge.records import Detections

# A box thinner than this in the source image is none.
LEAST_SIDE_PX = 1.0


class Predictor(Protocol):
    """What the detector needs of an inference runtime."""

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of the network for one input (1, C, H, W), in the model's own order."""


def decode(
    outputs: Sequence[Float], strides: Sequence[int], min_confidence: float
) -> tuple[Float, Float, NDArray[np.int64]]:
    """Network outputs to boxes, before suppression.

    A level of stride s has class logits (1, C, H, W) and raw distances (1, 4, H, W). A cell (x, y) speaks for
    the point ((x + 0.5) s, (y + 0.5) s); softplus(raw) * s are its distances to the left, top, right and bottom
    side, as in FCOS (Tian et al., arXiv:1904.01355). Logits are compared before the sigmoid, and distances
    computed for the cells that pass only: most of a map is background, and its exponentials would cost more
    than the rest of the decoding.

    Args:
        outputs: [class logits, distances] for each level in turn; one more at the end, the features, is not looked at.
        strides: input pixels a cell, one a level.
        min_confidence: cells under it are left out, in (0, 1).

    Raises:
        PredictorError: the outputs are not finite.

    Returns:
        xyxy (N, 4) in pixels of the network's input, confidence (N,) in (0, 1), class_id (N,).

    >>> logits, raw = np.full((1, 2, 4, 4), -9, np.float32), np.zeros((1, 4, 4, 4), np.float32)
    >>> logits[0, 1, 2, 3] = 3
    >>> xyxy, confidence, class_id = decode([logits, raw], [8], 0.5)
    >>> xyxy.round(1).tolist(), confidence.round(3).tolist(), class_id.tolist()
    ([[22.5, 14.5, 33.5, 25.5]], [0.953000009059906], [1])
    """
    if len(outputs) - 2 * len(strides) not in (0, 1):
        raise ValueError(f"{len(strides)} strides want {2 * len(strides)} outputs, the model gave {len(outputs)}")
    if not strides:
        return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    threshold = math.log(min_confidence / (1 - min_confidence))
    parts = [
        _decode_level(outputs[2 * i][0], outputs[2 * i + 1][0], stride, threshold) for i, stride in enumerate(strides)
    ]
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] for p in parts]),
    )


def _decode_level(logits: Float, raw: Float, stride: int, threshold: float) -> tuple[Float, Float, NDArray[np.int64]]:
    _, height, width = logits.shape
    if not np.isfinite(logits.max()):  # a comparison with NaN is false: such a map would read as "nothing found"
        raise PredictorError("the model answered with numbers that are not finite; install the bundle again")
    flat = np.flatnonzero(logits.reshape(-1) >= threshold)  # (N,) over C*H*W
    class_id, cell = np.divmod(flat, height * width)
    y, x = np.divmod(cell, width)
    distance = np.logaddexp(0, raw.reshape(4, -1)[:, cell]) * stride  # (4, N)
    centre_x, centre_y = (x + 0.5) * stride, (y + 0.5) * stride
    xyxy = np.stack(
        [centre_x - distance[0], centre_y - distance[1], centre_x + distance[2], centre_y + distance[3]], axis=1
    )
    confidence = 1 / (1 + np.exp(-logits.reshape(-1)[flat]))
    return xyxy.astype(np.float32), confidence.astype(np.float32), class_id.astype(np.int64)


@dataclass(frozen=True)
class DetectSettings:
    """How boxes are chosen from a network's outputs.

    Attributes:
        strides: input pixels a cell, one a level.
        min_confidence: what is less sure is not a detection at all, in (0, 1).
        nms_iou: boxes of one class that overlap more are one, in (0, 1).
        max_detections: at most so many a frame, the most confident.
        max_candidates: suppression looks at the most confident so many, which bounds its time on noise.
    """

    strides: tuple[int, ...]
    min_confidence: float = 0.01
    nms_iou: float = 0.5
    max_detections: int = 100
    max_candidates: int = 1000


@dataclass(frozen=True)
class Seen:
    """What the detector's network says of one frame.

    Attributes:
        detections: in pixels of the frame, most confident first.
        features: (1, C, h, w) float32, what the boxes are computed from; None where the model does not give it.
        placement: where the frame lies on the network's input.
        input_width: of the network's input, pixels.
        shift: whole pixels (x, y) by which the part lay off its place and was brought back for the network.
    """

    detections: Detections
    features: Float | None
    placement: Placement
    input_width: int
    shift: tuple[int, int] = (0, 0)


class Aligner(Protocol):
    """What the detector needs of `edge.align.Aligner`."""

    def shift(self, image: Image) -> tuple[int, int]:
        """Whole pixels (x, y) by which the part lies off its place."""


class Detector:
    """Finds the defects on a frame. Made and used in one thread, as its predictor is.

    Args:
        aligner: brings parts to the place that an anomaly judge knows; what is found is told where it lies.
    """

    def __init__(
        self, predictor: Predictor, spec: InputSpec, settings: DetectSettings, aligner: Aligner | None = None
    ) -> None:
        self._aligner = aligner
        self._predictor = predictor
        self._spec = spec
        self._settings = settings
        self._tensor = np.empty((1, spec.channels, spec.height, spec.width), np.float32)

    @property
    def settings(self) -> DetectSettings:
        """How it chooses boxes."""
        return self._settings

    def under(self, settings: DetectSettings) -> Detector:
        """The same network, and the same memory for its input, by other settings."""
        other = copy.copy(self)
        other._settings = settings
        return other

    def detect(self, image: Image, lap: Callable[[str], None] = lambda _stage: None) -> Detections:
        """Detections in pixels of `image`, most confident first: `look` for those who need no more."""
        return self.look(image, lap).detections

    def look(self, image: Image, lap: Callable[[str], None] = lambda _stage: None) -> Seen:
        """Run the network once on `image`.

        Args:
            image: uint8, (H, W) grey or (H, W, 3) BGR.
            lap: told the end of each stage: preprocess, predict, decode.

        Raises:
            ImageError: an image the pipeline cannot take.
            PredictorError: the runtime failed.
        """
        check_image(image)
        x, y = self._aligner.shift(image) if self._aligner is not None else (0, 0)
        tensor, placement = preprocess(moved(image, -x, -y), self._spec, out=self._tensor)
        lap("preprocess")
        outputs = self._predictor.run(tensor)
        lap("predict")
        s = self._settings
        xyxy, confidence, class_id = decode(outputs, s.strides, s.min_confidence)
        if len(confidence) > s.max_candidates:
            best = np.argpartition(-confidence, s.max_candidates)[: s.max_candidates]
            xyxy, confidence, class_id = xyxy[best], confidence[best], class_id[best]
        keep = nms(xyxy, confidence, class_id, s.nms_iou, s.max_detections)
        height, width = image.shape[:2]
        in_source = placement.to_source(xyxy[keep], width, height)
        if x or y:
            in_source = clip(in_source + np.array([x, y, x, y], np.float32), width, height)
        # What lies on the padding around the image is clipped to nothing.
        seen = (in_source[:, 2:] - in_source[:, :2]).min(axis=1, initial=np.inf) >= LEAST_SIDE_PX
        found = Detections(in_source[seen], confidence[keep][seen], class_id[keep][seen])
        lap("decode")
        features = outputs[2 * len(s.strides)] if len(outputs) > 2 * len(s.strides) else None
        return Seen(found, features, placement, self._spec.width, (x, y))
