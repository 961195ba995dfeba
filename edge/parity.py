"""How far two forms of one model agree: boxes, confidences, verdicts; and the limits of that.

The toolchain asks it of every form of a bundle where that is made, a device of every form that it could run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.boxes import Float, iou_matrix
from edge.decide import decide
from edge.recipe import DetectRecipe
from edge.records import Detections

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


def least_confidence(recipe: DetectRecipe) -> float:
    """Boxes under this confidence change no verdict.

    >>> least_confidence(DetectRecipe(review=0.3, class_threshold={"open": 0.2}))
    0.2
    """
    return min([recipe.review, recipe.threshold, *recipe.class_threshold.values()])


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
    given: Sequence[tuple[int, int] | None] = sizes or [None] * len(reference)
    kinds = [
        (decide(r, recipe, classes, size=size).kind.value, decide(o, recipe, classes, size=size).kind.value)
        for r, o, size in zip(reference, other, given, strict=True)
    ]
    return agreement(reference, other, least_confidence(recipe), kinds)


def agreement(
    reference: Sequence[Detections],
    other: Sequence[Detections],
    least: float,
    verdicts: Sequence[tuple[str, str]],
) -> Agreement:
    """`compare` with verdicts that are known already.

    Args:
        least: boxes under this confidence change no verdict. verdicts: of each image, the reference's and the other's.
    """
    matched = [pairs(r, o, least) for r, o in zip(reference, other, strict=True)]
    iou, shift, score = (np.concatenate([np.empty(0, np.float32), *[p[k] for p in matched]]) for k in range(3))
    changes = Counter(f"{was} to {now}" for was, now in verdicts if was != now)
    boxes = sum(len(r.above(least)) for r in reference)
    return Agreement(
        boxes=boxes,
        matched=len(iou),
        lost=boxes - len(iou),
        extra=sum(p[3] for p in matched),
        iou_median=_percentile(iou, 50),
        iou_p05=_percentile(iou, 5),
        shift_median_px=_percentile(shift, 50),
        shift_p95_px=_percentile(shift, 95),
        score_mean=float(score.mean()) if len(score) else math.nan,
        score_p95=_percentile(np.abs(score), 95),
        score_max=_percentile(np.abs(score), 100),
        images=len(verdicts),
        changed=sum(changes.values()),
        changes=dict(sorted(changes.items())),
    )


def assign(found: Detections, gt: Float, gt_class: NDArray[np.int64], iou: float) -> NDArray[np.int64]:
    """The box of `gt` that each detection takes, (N,) int64; -1: none.

    Greedy by confidence: a detection takes the free box of its own class that it overlaps most, if by more than `iou`;
    each box is taken once. Equally confident ones take their turn in the order they have.
    """
    taken = np.full(len(found), -1, np.int64)
    if not len(gt) or not len(found):
        return taken
    overlaps = iou_matrix(found.xyxy, gt)  # (N, M)
    overlaps[(overlaps <= iou) | (found.class_id[:, None] != gt_class)] = -1
    hopeful = np.flatnonzero(overlaps.max(axis=1) > 0)
    for i in hopeful[np.argsort(-found.confidence[hopeful], kind="stable")]:
        best = int(overlaps[i].argmax())
        if overlaps[i, best] > 0:
            taken[i] = best
            overlaps[:, best] = -1
    return taken


def _percentile(values: Float, share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else math.nan


def pairs(reference: Detections, other: Detections, least: float) -> tuple[Float, Float, Float, int]:
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
