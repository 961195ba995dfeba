"""Draws an inspection on its image, for people."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image, to_channels
from edge.records import Detections, Inspection, VerdictKind

# BGR, told apart by people with any colour vision (Okabe and Ito's palette).
COLOURS = ((0, 94, 213), (178, 114, 0), (0, 159, 230), (115, 158, 0), (167, 121, 204), (233, 180, 86))
BANNER = {
    VerdictKind.OK: (96, 140, 0),
    VerdictKind.NG: (40, 40, 200),
    VerdictKind.REVIEW: (0, 150, 230),
    VerdictKind.RETAKE: (120, 120, 120),
}
WHITE = (255, 255, 255)
FOREIGN = (200, 60, 200)  # what was not in the training data: a magenta that no class and no banner has
VEIL = 0.35  # share of that colour over what is foreign
ROUNDED = 90  # of 255: where the edge of a cell is drawn between it and its neighbour; lower is larger and rounder
FONT = cv2.FONT_HERSHEY_SIMPLEX
BANNER_PX = 24


def annotate(
    inspection: Inspection,
    classes: Sequence[str],
    shown_from: float,
    max_width: int | None = None,
    foreign_from: float | None = None,
) -> Image:
    """A BGR copy of the frame with a banner above and the boxes that counted.

    What the anomaly map says is foreign lies under a veil with an outline, below the boxes.

    Args:
        classes: class names by class id.
        shown_from: where it is not known which boxes counted, those less sure than this are not drawn, 0 to 1.
        max_width: shrink to at most this many pixels, and a very tall image to four times as many rows; None keeps
            the size. The banner adds 24 rows.
        foreign_from: cells of the anomaly map from here on are shown; None: from the score's limit on.
    """
    picture = to_channels(inspection.frame.image, 3)
    height, width = picture.shape[:2]
    scale = min(1.0, max_width / width, 4 * max_width / height) if max_width else 1.0
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    banner = BANNER[inspection.verdict.kind]
    bordered = cv2.copyMakeBorder(picture, BANNER_PX, 0, 0, 0, cv2.BORDER_CONSTANT, value=banner)
    canvas = np.asarray(bordered, np.uint8)
    limit = inspection.scores.anomaly_limit if foreign_from is None else foreign_from
    if inspection.scores.anomaly_map is not None and limit is not None:
        draw_foreign(canvas[BANNER_PX:], inspection.scores.anomaly_map, limit)
    _draw_boxes(canvas[BANNER_PX:], inspection.told(shown_from), classes, scale)
    cv2.putText(canvas, _ascii(_headline(inspection)), (4, 17), FONT, 0.5, WHITE, 1, cv2.LINE_AA)
    return canvas


def draw_foreign(picture: Image, anomaly_map: Float, limit: float) -> None:
    """Put a veil and an outline over the cells that the map says are foreign, in place.

    Args:
        picture: (H, W, 3) BGR uint8. anomaly_map: (h, w) over the whole picture. limit: shown from here on.

    >>> board = np.full((8, 8, 3), 100, np.uint8)
    >>> draw_foreign(board, np.array([[0, 0], [0, 9]], np.float32), 5.0)
    >>> bool((board[0, 0] == 100).all()), bool((board[7, 7] != 100).any())
    (True, True)
    """
    over = np.asarray(anomaly_map >= limit, np.uint8) * np.uint8(255)
    if not over.any():  # most parts
        return
    height, width = picture.shape[:2]
    # Bytes all the way: a few tenths of a millisecond, where blending in floats takes ten.
    mask = cv2.resize(over, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = np.asarray(cv2.threshold(mask, ROUNDED, 255, cv2.THRESH_BINARY)[1], np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for outline in outlines:
        x, y, wide, high = cv2.boundingRect(outline)
        region, inside = picture[y : y + high, x : x + wide], mask[y : y + high, x : x + wide]
        plain = np.empty_like(region)
        plain[:] = FOREIGN
        cv2.copyTo(cv2.addWeighted(region, 1 - VEIL, plain, VEIL, 0), inside, region)
    cv2.drawContours(picture, outlines, -1, WHITE, 4)
    cv2.drawContours(picture, outlines, -1, FOREIGN, 2)


def _headline(inspection: Inspection) -> str:
    kind = inspection.verdict.kind.value
    cause = inspection.gate.cause
    count = "" if cause else f"  {len(inspection.verdict.reasons)} found" if inspection.verdict.reasons else ""
    why = f" {cause.value}" if cause else count
    return f"{kind}{why}  {inspection.frame.camera} #{inspection.frame.number} {inspection.frame.name}"


def _ascii(text: str) -> str:
    """What OpenCV's fonts have; anything else is `?`, and half a surrogate pair would crash the process."""
    return text.encode("ascii", "replace").decode()


def _draw_boxes(picture: Image, shown: Detections, classes: Sequence[str], scale: float) -> None:
    for xyxy, confidence, class_id in zip(shown.xyxy, shown.confidence, shown.class_id, strict=True):
        colour = COLOURS[int(class_id) % len(COLOURS)]
        left, top, right, bottom = (round(float(v) * scale) for v in xyxy)
        cv2.rectangle(picture, (left, top), (right, bottom), colour, 2)
        label = _ascii(f"{classes[int(class_id)]} {float(confidence):.2f}")
        (text_width, text_height), _ = cv2.getTextSize(label, FONT, 0.45, 1)
        base = top - 3 if top > text_height + 6 else min(picture.shape[0] - 3, bottom + text_height + 3)
        start = max(0, min(left, picture.shape[1] - text_width - 2))
        cv2.rectangle(picture, (start, base - text_height - 2), (start + text_width + 2, base + 3), colour, -1)
        cv2.putText(picture, label, (start + 1, base), FONT, 0.45, WHITE, 1, cv2.LINE_AA)


def to_jpeg(image: Image, quality: int) -> bytes:
    """The image as JPEG, `quality` 1 to 100."""
    ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded as JPEG")
    return bytes(encoded)
