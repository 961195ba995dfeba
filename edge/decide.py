"""From measurements to a verdict, by the recipe. Doubt never passes a part."""

from __future__ import annotations

from collections.abc import Sequence

from edge.recipe import DetectRecipe
from edge.records import Detections, GateResult, Reason, Scores, Verdict, VerdictKind

NO_SCORES = Scores()


def refuse(gate: GateResult) -> Verdict:
    """RETAKE, with the gate's cause, what it measured and its limit."""
    if gate.cause is None or gate.limit is None:
        raise ValueError("only a frame with a cause can be refused")
    text = f"{gate.cause.value}: measured {gate.measured:.4g}, limit {gate.limit:.4g}. {gate.advice}"
    return Verdict(VerdictKind.RETAKE, (Reason(f"gate.{gate.cause.value}", text),))


def decide(detections: Detections, recipe: DetectRecipe, classes: Sequence[str], scores: Scores = NO_SCORES) -> Verdict:
    """NG when a box reaches its class's threshold, REVIEW when one comes near it or the part is anomalous, else OK.

    Reasons list the boxes that made the verdict, most confident first.

    >>> import numpy as np
    >>> found = Detections(np.array([[1, 2, 11, 22]], np.float32), np.array([0.4], np.float32), np.array([0]))
    >>> decide(found, DetectRecipe(threshold=0.5, review=0.3), ["open"]).kind.value
    'REVIEW'
    """
    sure: list[Reason] = []
    doubtful: list[Reason] = []
    for xyxy, confidence, class_id in zip(detections.xyxy, detections.confidence, detections.class_id, strict=True):
        name = classes[int(class_id)]
        threshold = recipe.class_threshold.get(name, recipe.threshold)
        if confidence < min(recipe.review, threshold):
            continue
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
