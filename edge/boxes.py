"""Axis-aligned boxes as `xyxy` arrays: overlap, suppression, clipping. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Index = NDArray[np.intp]


def area(xyxy: Float) -> Float:
    """Area of each box in square pixels; a box turned inside out has none.

    >>> area(np.array([[0, 0, 4, 2], [5, 5, 1, 9]], np.float32)).tolist()
    [8.0, 0.0]
    """
    size = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)  # (N, 2)
    return np.asarray(size[:, 0] * size[:, 1], np.float32)


def iou_matrix(a: Float, b: Float) -> Float:
    """Intersection over union of every box of `a` (N, 4) with every box of `b` (M, 4), in [0, 1].

    Two boxes without area overlap by 0, not by NaN.

    >>> iou_matrix(np.array([[0, 0, 2, 2]], np.float32), np.array([[1, 0, 3, 2]], np.float32)).round(3).tolist()
    [[0.3330000042915344]]
    """
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])  # (N, M, 2)
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])  # (N, M, 2)
    size = np.maximum(bottom_right - top_left, 0)
    intersection = size[..., 0] * size[..., 1]  # (N, M)
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return np.asarray(intersection / np.maximum(union, 1e-9), np.float32)


def nms(
    xyxy: Float,
    confidence: Float,
    class_id: NDArray[np.int64],
    iou_threshold: float,
    max_detections: int,
) -> Index:
    """Greedy non-maximum suppression within each class.

    Args:
        xyxy: (N, 4) boxes in pixels.
        confidence: (N,) scores; higher is better.
        class_id: (N,) only boxes of one class suppress each other.
        iou_threshold: a box that overlaps a kept one by more than this is dropped.
        max_detections: how many boxes are kept at most, over all classes.

    Returns:
        Indices of the kept boxes, most confident first; ties keep their input order.

    >>> boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 10], [0, 0, 9, 9]], np.float32)
    >>> nms(boxes, np.array([0.5, 0.9, 0.4], np.float32), np.array([0, 0, 1]), 0.5, 10).tolist()
    [1, 2]
    """
    order = np.argsort(-confidence, kind="stable")
    kept: list[int] = []
    # Few boxes are kept and each strikes out many, so a row of overlaps for each kept one is far less work than all
    # of them at once: 100 times less on 1000 candidates.
    while len(order) and len(kept) < max_detections:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        overlap = iou_matrix(xyxy[best : best + 1], xyxy[rest])[0]
        order = rest[(overlap <= iou_threshold) | (class_id[rest] != class_id[best])]
    return np.asarray(kept, np.intp)


def clip(xyxy: Float, width: int, height: int) -> Float:
    """Boxes cut to the image: x to [0, width], y to [0, height].

    >>> clip(np.array([[-3, 2, 12, 20]], np.float32), 10, 8).tolist()
    [[0.0, 2.0, 10.0, 8.0]]
    """
    limits = np.array([width, height, width, height], np.float32)
    return np.asarray(np.clip(xyxy, 0, limits), np.float32)
