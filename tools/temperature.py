"""Confidence that means what it says: temperature scaling, and how far confidence is from the truth.

The device decodes sigmoid(logit). Dividing the logits by a temperature (Guo et al., arXiv:1706.04599) changes no order
of boxes, only what their confidence says. It ends where it acts: in the output layer of the network
(`fold_temperature`), or in thresholds that are mapped back (`uncalibrated`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from edge.boxes import Float
from edge.records import Detections
from tools.errors import ToolError

BINS = 15
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.1, 10.0
LEAST_OF_EACH = 20  # correct and wrong boxes that a temperature of a class's own wants
NEAREST = 1e-7  # confidence is kept so far from 0 and 1, where the logit has no end


def logit(confidence: Float) -> Float:
    """The network's output that a confidence came from: log(p / (1 - p)).

    >>> logit(np.array([0.5, 0.9])).round(3).tolist()
    [0.0, 2.197]
    """
    p = np.clip(np.asarray(confidence, np.float64), NEAREST, 1 - NEAREST)
    return np.log(p / (1 - p))


def calibrated(confidence: Float, temperature: Float | float) -> Float:
    """Confidence after its logits are divided by the temperature: over 1 makes it more modest.

    >>> calibrated(np.array([0.9, 0.5]), 2.0).round(3).tolist()
    [0.75, 0.5]
    """
    return 1 / (1 + np.exp(-logit(confidence) / temperature))


def uncalibrated(confidence: Float, temperature: Float | float) -> Float:
    """The confidence that `calibrated` makes this one of: a threshold for a network whose temperature is not folded.

    >>> uncalibrated(np.array([0.75, 0.5]), 2.0).round(3).tolist()
    [0.9, 0.5]
    """
    return calibrated(confidence, 1 / np.asarray(temperature))


def fit_temperature(confidence: Float, correct: np.ndarray) -> float:
    """The temperature of least negative log-likelihood, in [0.1, 10].

    Args:
        confidence: (N,) of boxes. correct: (N,) bool, whether each is right.

    The likelihood is concave in the inverse temperature, so the search cannot end at a false optimum.
    """
    if not len(correct):
        return 1.0
    z, sign = logit(confidence), np.where(correct, 1.0, -1.0)
    found = minimize_scalar(
        lambda inverse: np.logaddexp(0, -sign * z * inverse).mean(),
        bounds=(1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / found.x)


def fit_temperatures(
    confidence: Float, correct: np.ndarray, class_id: np.ndarray, classes: int, per_class: bool
) -> Float:
    """A temperature for each class, (classes,): the same for all, or each its own where it has enough boxes."""
    common = fit_temperature(confidence, correct)
    chosen = np.full(classes, common)
    for k in range(classes) if per_class else ():
        mine = class_id == k
        if min(correct[mine].sum(), (~correct[mine]).sum()) >= LEAST_OF_EACH:
            chosen[k] = fit_temperature(confidence[mine], correct[mine])
    return chosen


def rescale(found: Detections, temperature: Float) -> Detections:
    """The same boxes with calibrated confidence; `temperature` is (classes,)."""
    confidence = calibrated(found.confidence, temperature[found.class_id])
    return Detections(found.xyxy, confidence.astype(np.float32), found.class_id)


@dataclass(frozen=True)
class Reliability:
    """Confidence against the share that is correct, in bins of equal width.

    Attributes:
        count, confidence, correct: (bins,) boxes, their mean confidence, the share that is correct; 0 in empty bins.
    """

    count: np.ndarray
    confidence: Float
    correct: Float

    @property
    def error(self) -> float:
        """Expected calibration error (Naeini et al., AAAI 2015), in [0, 1]: 0 when confidence is the truth."""
        return float((self.count * np.abs(self.confidence - self.correct)).sum() / max(1, self.count.sum()))


def reliability(confidence: Float, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Sort boxes into bins of confidence.

    >>> reliability(np.array([0.9, 0.9, 0.1]), np.array([True, False, False]), bins=2).error.__round__(3)
    0.3
    """
    place = np.minimum((np.asarray(confidence) * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    total = np.maximum(count, 1)
    mean = np.bincount(place, weights=confidence, minlength=bins) / total
    return Reliability(count, mean, np.bincount(place, weights=correct, minlength=bins) / total)


def fold_temperature(checkpoint: Path, out: Path, temperature: Float | float) -> None:
    """Write a checkpoint whose class logits are those of `checkpoint` divided by the temperature.

    The output layer's weights and bias are divided, so nothing is left to do on the device: export as usual. Meant
    for export, not for going on with training.

    Args:
        temperature: one, or one for each class, (classes,).

    Raises:
        ToolError: not a checkpoint, or a temperature that cannot be.
    """
    import paddle

    from tools.checkpoint import read_checkpoint

    saved = read_checkpoint(checkpoint)
    divisor = np.broadcast_to(np.asarray(temperature, np.float64), len(saved.classes))
    if not (np.isfinite(divisor).all() and (divisor > 0).all()):
        raise ToolError(f"{checkpoint}: temperature {np.asarray(temperature).tolist()}, expected numbers over 0")
    before = np.asarray(saved.state.get("temperature", np.ones(len(divisor))))
    state: dict[str, Any] = {**saved.state, "temperature": (before * divisor).tolist()}
    for weights in ("network", "average"):
        layer = dict(state[weights])
        layer["cls.weight"] = (layer["cls.weight"] / divisor[:, None, None, None]).astype(np.float32)
        layer["cls.bias"] = (layer["cls.bias"] / divisor).astype(np.float32)
        state[weights] = layer
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial")
    paddle.save(state, str(partial))
    partial.replace(out)
