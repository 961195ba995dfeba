"""From measurements to a verdict, by the recipe. Doubt never passes a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.recipe import DetectRecipe
from edge.records import Detections, GateResult, Reason, Scores, Verdict, VerdictKind

NO_SCORES = Scores()
WHOLE = (0.0, 0.0, 1.0, 1.0)
HAIR_PX = 1e-3  # a region up to the frame's edge, as shares such as 0.7 + 0.3, may come out a hair within it


def refuse(gate: GateResult) -> Verdict:
    """RETAKE, with the gate's cause, what it measured and its limit."""
    if gate.cause is None or gate.limit is None:
        raise ValueError("only a frame with a cause can be refused")
    text = f"{gate.cause.value}: measured {gate.measured:.4g}, limit {gate.limit:.4g}. {gate.advice}"
    return Verdict(VerdictKind.RETAKE, (Reason(f"gate.{gate.cause.value}", text),))


def counting(
    detections: Detections, recipe: DetectRecipe, classes: Sequence[str], size: tuple[int, int] | None = None
) -> Detections:
    """The boxes that can make a part bad or doubtful: of the recipe's classes, and centred in its region.

    Args:
        classes: the bundle's, by class id.
        size: width and height of the frame, pixels; only a recipe with a region asks for it.

    Raises:
        ValueError: the recipe has a region, and the frame's size is not given.

    >>> import numpy as np
    >>> xyxy = np.array([[10, 10, 30, 30], [70, 10, 90, 30]], np.float32)
    >>> found = Detections(xyxy, np.array([0.9, 0.8], np.float32), np.array([0, 1]))
    >>> counting(found, DetectRecipe(region=(0.5, 0, 0.5, 1)), ["open", "short"], (100, 40)).class_id.tolist()
    [1]
    >>> counting(found, DetectRecipe(classes=["open"]), ["open", "short"]).class_id.tolist()
    [0]
    """
    keep = np.ones(len(detections), bool)
    if recipe.classes:
        named = np.array([name in recipe.classes for name in classes], bool)
        keep &= named[detections.class_id]
    if recipe.region != WHOLE:
        if size is None:
            raise ValueError("the recipe's detect.region is a part of the frame: the frame's size is needed")
        keep &= _centred_in(detections.xyxy, recipe.region, size)
    if keep.all():
        return detections
    return Detections(detections.xyxy[keep], detections.confidence[keep], detections.class_id[keep])


def deciding(
    detections: Detections, recipe: DetectRecipe, classes: Sequence[str], size: tuple[int, int] | None = None
) -> Detections:
    """Of those that are `counting` the ones sure enough to make a part bad or doubtful.

    Args:
        classes: the bundle's, by class id. size: as for `counting`.

    Raises:
        ValueError: as `counting`.

    >>> import numpy as np
    >>> xyxy = np.array([[10, 10, 30, 30], [70, 10, 90, 30]], np.float32)
    >>> found = Detections(xyxy, np.array([0.25, 0.25], np.float32), np.array([0, 1]))
    >>> deciding(found, DetectRecipe(review=0.3, class_threshold={"open": 0.2}), ["open", "short"]).class_id.tolist()
    [0]
    """
    if recipe.classes or recipe.region != WHOLE:  # most recipes have neither
        detections = counting(detections, recipe, classes, size)
    least = [min(recipe.review, recipe.class_threshold.get(name, recipe.threshold)) for name in classes]
    pairs = zip(detections.confidence, detections.class_id, strict=True)
    keep = np.array([not confidence < least[int(class_id)] for confidence, class_id in pairs], bool)
    if keep.all():
        return detections
    return Detections(detections.xyxy[keep], detections.confidence[keep], detections.class_id[keep])


def _centred_in(
    xyxy: NDArray[np.float32], region: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which boxes (N, 4) have their centre in the region or on its edge, (N,)."""
    x, y, wide, high = region
    low, past = np.array([x, y]) * size, np.array([x + wide, y + high]) * size
    centres = (xyxy[:, :2].astype(np.float64) + xyxy[:, 2:]) / 2  # (N, 2)
    inside = (centres >= low - HAIR_PX) & (centres <= past + HAIR_PX)
    return np.asarray(inside.all(axis=1), bool)


def decide(
    detections: Detections,
    recipe: DetectRecipe,
    classes: Sequence[str],
    scores: Scores = NO_SCORES,
    size: tuple[int, int] | None = None,
) -> Verdict:
    """NG when a box reaches its class's threshold, REVIEW when one comes near it or the part is anomalous, else OK.

    Only boxes of the recipe's classes and in its region count. Reasons list those that made the verdict, most
    confident first.

    Args:
        classes: the bundle's, by class id.
        scores: of the whole part; the recipe's classes and region change nothing in them.
        size: width and height of the frame, pixels; only a recipe with a region asks for it.

    Raises:
        ValueError: the recipe has a region, and the frame's size is not given.

    >>> import numpy as np
    >>> found = Detections(np.array([[1, 2, 11, 22]], np.float32), np.array([0.4], np.float32), np.array([0]))
    >>> decide(found, DetectRecipe(threshold=0.5, review=0.3), ["open"]).kind.value
    'REVIEW'
    """
    detections = deciding(detections, recipe, classes, size)
    sure: list[Reason] = []
    doubtful: list[Reason] = []
    for xyxy, confidence, class_id in zip(detections.xyxy, detections.confidence, detections.class_id, strict=True):
        name = classes[int(class_id)]
        threshold = recipe.class_threshold.get(name, recipe.threshold)
        left, top, right, bottom = (round(float(v)) for v in xyxy)
        where = f"{name} {float(confidence):.2f} at {left},{top} size {right - left}x{bottom - top} px"
        if confidence >= threshold:
            sure.append(Reason(f"defect.{name}", where))
        else:
            doubtful.append(Reason(f"doubt.{name}", f"{where}, threshold {threshold:.2f}"))
    if sure:
        return Verdict(VerdictKind.NG, tuple(sure))
    if scores.anomalous:
        limit = f"limit {scores.anomaly_limit:.4g}: something here was not in the training data"
        doubtful.append(Reason("anomaly", f"anomaly {scores.anomaly:.4g}, {limit}"))
    if doubtful:
        return Verdict(VerdictKind.REVIEW, tuple(doubtful))
    return Verdict(VerdictKind.OK)
