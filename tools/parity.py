"""How far two forms of one model agree, beyond what a device asks (`edge.parity`): accuracy, and limits as given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from edge.boxes import Float
from edge.parity import BY_PRECISION, FP32, INT8, Agreement, Limits, compare, exceeded, least_confidence, pairs
from edge.recipe import DetectRecipe
from edge.records import Detections
from tools.errors import ToolError

# Others import these from here too.
__all__ = ["FP32", "INT8", "Agreement", "Limits", "compare", "exceeded"]


def parse_limits(changes: Sequence[str]) -> dict[str, Limits]:
    """The limits of each precision, changed by `PRECISION.NAME=VALUE`.

    Raises:
        ToolError: no such precision or limit, or not a number that can be one.

    >>> parse_limits(["int8.ap33_drop=0.004"])["int8"].ap33_drop
    0.004
    """
    limits = dict(BY_PRECISION)
    names = [field.name for field in fields(Limits)]
    for change in changes:
        where, _, value = change.partition("=")
        precision, _, name = where.partition(".")
        if precision not in limits or name not in names:
            known = f"{' or '.join(limits)}, then one of {', '.join(names)}"
            raise ToolError(f"--limit {change}: expected PRECISION.NAME=VALUE with {known}")
        try:
            number = float(value)
        except ValueError as error:
            raise ToolError(f"--limit {change}: {value!r} is not a number") from error
        if not number >= 0:
            raise ToolError(f"--limit {change}: a limit is at least 0")
        limits[precision] = replace(limits[precision], **{name: number})
    return limits


def score_differences(reference: Sequence[Detections], other: Sequence[Detections], recipe: DetectRecipe) -> Float:
    """Confidence of the form minus the reference's, of every matched box that matters, (M,)."""
    least = least_confidence(recipe)
    found = [pairs(r, o, least)[2] for r, o in zip(reference, other, strict=True)]
    return np.concatenate([np.empty(0, np.float32), *found])


def pack(found: Detections) -> dict[str, Any]:
    """Detections as plain data, exactly: floats of 32 bits survive JSON."""
    return {"xyxy": found.xyxy.tolist(), "confidence": found.confidence.tolist(), "class": found.class_id.tolist()}


def unpack(stored: dict[str, Any]) -> Detections:
    """What `pack` made plain.

    >>> unpack(pack(Detections.none())).xyxy.shape
    (0, 4)
    """
    xyxy = np.array(stored["xyxy"], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array(stored["confidence"], np.float32), np.array(stored["class"], np.int64))


def accuracy_drops(reference: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """Loss of accuracy between two results of `tools.metrics.figures`, by the names of `Limits`; negative is a gain.

    Classes without any label in the set have no accuracy and are left out.
    """
    by_class = [
        reference["ap33"][name] - value
        for name, value in other["ap33"].items()
        if not (math.isnan(value) or math.isnan(reference["ap33"][name]))
    ]
    return {
        "ap33_drop": reference["ap33_pooled"] - other["ap33_pooled"],
        "class_ap33_drop": max(by_class, default=0.0),
        "map50_drop": reference["map50"] - other["map50"],
    }
