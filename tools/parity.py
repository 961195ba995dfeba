"""How far two forms of one model agree: boxes, confidences, verdicts, accuracy; and the limits of that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from edge.boxes import Float, iou_matrix
from edge.recipe import DetectRecipe
from edge.records import Detections
from tools.errors import ToolError
from tools.golden import least_confidence
from tools.metrics import assign
from tools.verdicts import Seen, verdict

IOU_SAME = 0.5  # boxes of two forms that overlap more, and are of one class, are the same box


@dataclass(frozen=True)
class Limits:
    """What a form may differ from the reference by, at most.

    Attributes:
        output: largest absolute difference of a raw output (class logits and distances).
        ap33_drop, class_ap33_drop, map50_drop: loss of accuracy, in shares of 1: pooled, of the worst class, mean.
        iou: the median overlap of matched boxes must reach it.
        shift_median_px, shift_p95_px: how far centres of matched boxes are apart, pixels of the source image.
        score_p95: 95th percentile of the difference in confidence.
        unmatched: share of boxes that only one of the two has.
        verdicts: share of images with another verdict.
        golden_verdicts: the same on the golden set, whose samples are clear cases.
        kernels: 95th percentile of the difference in confidence between a device's form and the simulation of it, which
            is left to the device's arithmetic alone: sums that saturate show here.
    """

    output: float
    ap33_drop: float
    class_ap33_drop: float
    map50_drop: float
    iou: float
    shift_median_px: float
    shift_p95_px: float
    score_p95: float
    unmatched: float
    verdicts: float
    golden_verdicts: float = 0.0
    kernels: float = 0.03


# The same weights in the same arithmetic: only the order of sums differs.
FP32 = Limits(2e-3, 0.0005, 0.002, 0.001, 0.995, 0.05, 0.25, 0.005, 0.002, 0.002)
# Eight bits. 0.2 points of AP is what was promised; the rest follows from what thresholds and a robot arm bear.
INT8 = Limits(math.inf, 0.002, 0.02, 0.005, 0.9, 1.0, 4.0, 0.1, 0.05, 0.03)
BY_PRECISION = {"fp32": FP32, "int8": INT8}


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


@dataclass(frozen=True)
class Agreement:
    """Boxes and verdicts of one form against those of the reference, over a set of images.

    Boxes that matter to a verdict are compared; a box whose confidence fell under that is still matched, so that
    crossing the line counts as a difference in confidence and not as a lost box. NaN where nothing was matched.

    Attributes:
        boxes: of the reference. matched: found by the form too. lost: not found by it. extra: found by it alone.
        iou_median, iou_p05: overlap of matched boxes. shift_*: distance of their centres, pixels of the source image.
        score_mean: form minus reference. score_p95, score_max: of the absolute difference.
        images, changed: all, and those with another verdict. changes: how often which became which.
    """

    boxes: int
    matched: int
    lost: int
    extra: int
    iou_median: float
    iou_p05: float
    shift_median_px: float
    shift_p95_px: float
    score_mean: float
    score_p95: float
    score_max: float
    images: int
    changed: int
    changes: dict[str, int]

    @property
    def unmatched(self) -> float:
        """Share of boxes that only one of the two has, in [0, 1]."""
        return (self.lost + self.extra) / max(1, self.boxes + self.extra)

    def as_dict(self) -> dict[str, Any]:
        """For a record: rounded, None where nothing was matched."""
        values = {k: _plain(v) for k, v in asdict(self).items()}
        return {**values, "unmatched": round(self.unmatched, 5)}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 5)
    return value


def compare(
    reference: Sequence[Detections],
    other: Sequence[Detections],
    recipe: DetectRecipe,
    classes: Sequence[str],
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Agreement:
    """Compare two forms on the same images; both with all boxes down to well under what matters.

    Args:
        sizes: width and height of each image, pixels; only a recipe with a region asks for it.

    >>> found = Detections(np.array([[0, 0, 10, 10]], np.float32), np.array([0.9], np.float32), np.array([0]))
    >>> moved = Detections(np.array([[1, 0, 11, 10]], np.float32), np.array([0.8], np.float32), np.array([0]))
    >>> a = compare([found], [moved], DetectRecipe(), ["hole"])
    >>> a.matched, a.shift_median_px, round(a.score_mean, 2), a.changed
    (1, 1.0, -0.1, 0)
    """
    least = least_confidence(recipe)
    pairs = [_pairs(r, o, least) for r, o in zip(reference, other, strict=True)]
    iou = np.concatenate([p[0] for p in pairs]) if pairs else np.empty(0)
    shift = np.concatenate([p[1] for p in pairs]) if pairs else np.empty(0)
    score = np.concatenate([p[2] for p in pairs]) if pairs else np.empty(0)
    kinds = [
        tuple(verdict(Seen("", "", d, size=size), recipe, classes).value for d in both)
        for *both, size in zip(reference, other, sizes or [None] * len(reference), strict=True)
    ]
    changes = Counter(f"{was} to {now}" for was, now in kinds if was != now)
    boxes = sum(len(r.above(least)) for r in reference)
    return Agreement(
        boxes=boxes,
        matched=len(iou),
        lost=boxes - len(iou),
        extra=sum(p[3] for p in pairs),
        iou_median=_percentile(iou, 50),
        iou_p05=_percentile(iou, 5),
        shift_median_px=_percentile(shift, 50),
        shift_p95_px=_percentile(shift, 95),
        score_mean=float(score.mean()) if len(score) else math.nan,
        score_p95=_percentile(np.abs(score), 95),
        score_max=_percentile(np.abs(score), 100),
        images=len(kinds),
        changed=sum(changes.values()),
        changes=dict(sorted(changes.items())),
    )


def score_differences(reference: Sequence[Detections], other: Sequence[Detections], recipe: DetectRecipe) -> Float:
    """Confidence of the form minus the reference's, of every matched box that matters, (M,)."""
    least = least_confidence(recipe)
    found = [_pairs(r, o, least)[2] for r, o in zip(reference, other, strict=True)]
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


def _percentile(values: Float, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else math.nan


def _pairs(reference: Detections, other: Detections, least: float) -> tuple[Float, Float, Float, int]:
    """Overlap, distance of centres and difference in confidence of the matched boxes that matter, (M,) each; and how
    many boxes only `other` has."""
    taken = assign(other, reference.xyxy, reference.class_id, IOU_SAME)  # (N,) index into reference
    matters = (taken >= 0) & (reference.confidence[taken] >= least) if len(reference) else np.zeros(len(other), bool)
    mine = np.flatnonzero(matters)
    theirs = taken[mine]
    a, b = reference.xyxy[theirs], other.xyxy[mine]
    iou = iou_matrix(a, b).diagonal()
    shift = np.hypot(*((a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2).T)
    score = other.confidence[mine] - reference.confidence[theirs]
    return iou, shift, score, int(((taken < 0) & (other.confidence >= least)).sum())


def exceeded(
    name: str,
    limits: Limits,
    golden: Agreement,
    validation: Agreement | None = None,
    drops: dict[str, float] | None = None,
    output: float | None = None,
) -> list[str]:
    """What of a form goes over its limits, one sentence each; empty when nothing does.

    Args:
        validation, drops: on labelled images; `drops` as `accuracy_drops` gives them. output: see `Limits`.
    """
    values: list[tuple[str, float, float]] = [("golden_verdicts", _share(golden), limits.golden_verdicts)]
    if output is not None:
        values.append(("output", output, limits.output))
    for where in (golden, validation):
        if where is not None and where.matched:
            values += [(key, getattr(where, key), getattr(limits, key)) for key in ("shift_median_px", "shift_p95_px")]
            values.append(("score_p95", where.score_p95, limits.score_p95))
            values.append(("iou", -where.iou_median, -limits.iou))
    if validation is not None:
        values.append(("unmatched", validation.unmatched, limits.unmatched))
        values.append(("verdicts", _share(validation), limits.verdicts))
    values += [(key, value, getattr(limits, key)) for key, value in (drops or {}).items()]
    worst: dict[str, tuple[float, float]] = {}
    for key, value, limit in values:
        if not value <= limit and not value <= worst.get(key, (-math.inf, 0))[0]:  # NaN is over every limit
            worst[key] = (value, limit)
    said = "{}: {} is {:.5g}, the limit is {:.5g}"
    return [said.format(name, key, abs(value), abs(limit)) for key, (value, limit) in worst.items()]


def _share(agreement: Agreement) -> float:
    return agreement.changed / max(1, agreement.images)


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
