"""What is measured on a frame to watch for drift: cheap statistics, what the detector said, its features.

All of it together costs a small part of a millisecond: statistics are taken on every n-th pixel, noise on a few tiles
at full resolution, moments of the features on every n-th cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.boxes import Float
from edge.drift.settings import Features
from edge.gate import LEAST_SHARPNESS
from edge.preprocess import Image, to_channels
from edge.records import Detections, Inspection

# Statistics look at about so many pixels a side, the moments of features at about so many cells in all.
VIEW_PX = 160
CELLS = 800
TILE_PX = 48
TILES = 3  # a side
# Difference of two Laplacians: blind to edges and gradients, sees what differs from pixel to pixel (Immerkaer, CVIU 64,
# 1996).
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
_NOISE_SCALE = math.sqrt(math.pi / 2) / 6

Vector = NDArray[np.float64]


def measure(
    inspection: Inspection,
    features: Float | None,
    ae_error: float | None,
    expected: Features | None,
    least_confidence: float,
) -> dict[str, float]:
    """The signals of a frame by name; what was not measured on it is left out.

    On a frame that the gate refused only the statistics of the image are measured: the detector is not asked what it
    sees on such frames.

    Args:
        features: the detector's, (1, C, h, w), where its model gives them.
        ae_error: of the autoencoder, on frames that it looked at.
        expected: the features of the baseline; without it there is no `feature_distance`.
        least_confidence: boxes that are less sure do not count.
    """
    values = statistics(inspection.frame.image)
    values["sharpness"] = math.log2(max(inspection.gate.sharpness, LEAST_SHARPNESS))
    if not inspection.gate.passed:
        return values
    values |= detected(inspection.detections, least_confidence)
    if features is not None:
        values |= moments(features, expected)
    if ae_error is not None:
        values["ae_error"] = ae_error
    return values


def statistics(image: Image) -> dict[str, float]:
    """Brightness, contrast, noise, and of a colour image its balance.

    Args:
        image: uint8, (H, W) grey or (H, W, 3) BGR.

    Returns:
        brightness, contrast: mean and standard deviation of the grey level. noise: standard deviation, grey levels.
        red, blue: log2 of the mean of that channel over green's.

    >>> statistics(np.full((1, 50), 7, np.uint8))
    {'brightness': 7.0, 'contrast': 0.0, 'noise': 0.0}
    """
    height, width = image.shape[:2]
    step = max(1, min(height, width) // VIEW_PX)
    # Picked, not averaged: an average over pixels would take texture for flatness.
    view = np.asarray(cv2.resize(image, (width // step, height // step), interpolation=cv2.INTER_NEAREST), np.uint8)
    mean, deviation = cv2.meanStdDev(to_channels(view, 1))
    values = {"brightness": float(mean[0, 0]), "contrast": float(deviation[0, 0]), "noise": noise(image)}
    if image.ndim == 3:
        blue, green, red = (channel + 1.0 for channel in cv2.mean(view)[:3])  # black has no balance, but no infinity
        values |= {"red": math.log2(red / green), "blue": math.log2(blue / green)}
    return values


def noise(image: Image) -> float:
    """Standard deviation of the noise, grey levels: of the quietest quarter of some tiles, as texture looks like noise.

    >>> grey = np.random.default_rng(0).normal(128, 5, (200, 200)).round().astype(np.uint8)
    >>> 4 < noise(grey) < 5.2
    True
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return 0.0
    side_y, side_x = min(TILE_PX, height), min(TILE_PX, width)
    plane = image if image.ndim == 2 else image[:, :, 1]  # green: half of a colour sensor's pixels
    levels = []
    for row in range(TILES):
        y = (height - side_y) * row // (TILES - 1)
        for column in range(TILES):
            x = (width - side_x) * column // (TILES - 1)
            response = cv2.filter2D(plane[y : y + side_y, x : x + side_x], cv2.CV_16S, _NOISE)[1:-1, 1:-1]
            levels.append(cv2.norm(response, cv2.NORM_L1) / response.size)
    quietest = sorted(levels)[: len(levels) // 4]
    return _NOISE_SCALE * sum(quietest) / len(quietest)


def detected(detections: Detections, least_confidence: float) -> dict[str, float]:
    """Confidence of the surest box, 0 without one, and its kind: its class id + 1, or 0 without one.

    >>> detected(Detections.none(), 0.3)
    {'confidence': 0.0, 'kind': 0.0}
    """
    if not len(detections):
        return {"confidence": 0.0, "kind": 0.0}
    best = int(detections.confidence.argmax())
    confidence = float(detections.confidence[best])
    if confidence < least_confidence:
        return {"confidence": 0.0, "kind": 0.0}
    return {"confidence": confidence, "kind": float(detections.class_id[best] + 1)}


def channel_means(features: Float) -> Vector:
    """Mean of each channel over a frame, (C,), of features (1, C, h, w).

    >>> channel_means(np.ones((1, 2, 40, 80), np.float32)).tolist()
    [1.0, 1.0]
    """
    return np.asarray(_cells(features).mean(axis=1), np.float64)


def moments(features: Float, expected: Features | None) -> dict[str, float]:
    """Mean and standard deviation of the features, and how far their channels' means are from the baseline's.

    Args:
        features: (1, C, h, w). Another number of channels than the baseline's has no distance.

    Returns:
        feature_mean, feature_spread, and feature_distance: root mean square of the channels' deviations in sigmas,
        about 1 on the baseline.
    """
    cells = _cells(features)
    means = cells.mean(axis=1)
    power = float(np.vdot(cells, cells)) / cells.size
    mean = float(means.mean())
    values = {"feature_mean": mean, "feature_spread": math.sqrt(max(0.0, power - mean**2))}
    if expected is not None and len(expected.mean) == len(cells):
        values["feature_distance"] = distance(np.asarray(means, np.float64), expected)
    return values


def distance(means: Vector, expected: Features) -> float:
    """Root mean square of the channels' deviations from the baseline, in sigmas.

    >>> distance(np.array([1.0, 2.0]), Features(mean=[0.0, 2.0], sigma=[1.0, 1.0])) ** 2
    0.5000000000000001
    """
    deviation = (means - np.array(expected.mean)) / np.array(expected.sigma)
    return float(np.sqrt((deviation**2).mean()))


def _cells(features: Float) -> Float:
    flat = features.reshape(features.shape[1], -1)  # (C, h * w)
    step = max(1, flat.shape[1] // CELLS)
    return np.ascontiguousarray(flat[:, :: step | 1])  # an odd step: an even one would see the same columns in each row


def is_constant(values: Mapping[str, float]) -> bool:
    """Whether the frame is of one grey: no camera that looks at a part delivers that."""
    return values.get("contrast", 1.0) == 0.0
