"""Figures of a detector from its boxes and the labels: which boxes are correct, AP, F, confusion. Arrays in, no files.

Boxes are matched greedily by confidence, as PASCAL VOC, COCO and DeepPCB do. Detections of equal confidence cannot be
told apart by any threshold, so AP and F are read only where a run of equal ones ends: their order changes nothing.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.boxes import Float
from edge.parity import assign
from edge.records import Detections

IOU_DEEPPCB = 0.33  # "larger than 0.33" is the data set's own rule
COCO_OVERLAPS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
COCO_DETECTIONS = 100  # an image and class; the detector gives no more than that an image
COCO_RULES = f"pycocotools, 101 points, area: all, maxDets: {COCO_DETECTIONS} an image and class"

Truth = tuple[Float, np.ndarray]  # boxes (N, 4) in pixels and class ids (N,) of one image


@dataclass(frozen=True)
class Ranking:
    """All detections of a set, most confident first, and how many truths there were to find."""

    confidence: Float  # (N,)
    correct: np.ndarray  # (N,) bool
    truths: int


def match(found: Detections, gt: Float, gt_class: np.ndarray, iou: float) -> np.ndarray:
    """Which detections of one image are correct, (N,) bool.

    Greedy by confidence: a detection takes the free truth of its own class that it overlaps most, if by more
    than `iou`; each truth is taken once. Equally confident ones take their turn in the order they have.
    """
    return assign(found, gt, gt_class, iou) >= 0


def rank(found: Sequence[Detections], truth: Sequence[Truth], iou: float, only: int | None = None) -> Ranking:
    """Pool the detections of all images in one ranking; `only` restricts both sides to one class."""
    correct = [match(detections, *labels, iou) for detections, labels in zip(found, truth, strict=True)]
    return pool(found, truth, correct, only)


def pool(
    found: Sequence[Detections], truth: Sequence[Truth], correct: Sequence[np.ndarray], only: int | None = None
) -> Ranking:
    """The ranking of detections that are matched already: `correct` is what `match` says of each image."""
    confidence = np.concatenate([np.empty(0, np.float32), *[d.confidence for d in found]])
    class_id = np.concatenate([np.empty(0, np.int64), *[d.class_id for d in found]])
    truth_class = np.concatenate([np.empty(0, np.int64), *[kinds for _, kinds in truth]])
    good = np.concatenate([np.empty(0, bool), *correct])
    mine = np.flatnonzero(class_id == only) if only is not None else np.arange(len(class_id))
    order = mine[np.argsort(-confidence[mine], kind="stable")]
    truths = len(truth_class) if only is None else int((truth_class == only).sum())
    return Ranking(confidence[order], good[order], truths)


@dataclass(frozen=True)
class Curve:
    """What each possible threshold gives, highest first; empty when nothing was found.

    Attributes:
        threshold: (K,) falling: each confidence that occurs. hits, found: (K,) correct ones and all at or over it.
        truths: how many there were to find.
    """

    threshold: Float
    hits: np.ndarray
    found: np.ndarray
    truths: int

    @property
    def precision(self) -> Float:
        """(K,) share of the detections that are correct."""
        return self.hits / self.found

    @property
    def recall(self) -> Float:
        """(K,) share of the truths that are found."""
        return self.hits / max(1, self.truths)

    @property
    def f(self) -> Float:
        """(K,) harmonic mean of precision and recall."""
        return 2 * self.hits / (self.found + self.truths)


def curve(ranking: Ranking) -> Curve:
    """The ranking read where runs of equal confidence end.

    >>> c = curve(Ranking(np.array([0.9, 0.8, 0.8]), np.array([True, False, True]), 2))
    >>> c.threshold.tolist(), c.hits.tolist(), c.found.tolist()
    ([0.9, 0.8], [1, 2], [1, 3])
    """
    n = len(ranking.confidence)
    ends = np.flatnonzero(np.append(np.diff(ranking.confidence) != 0, True)) if n else np.empty(0, np.intp)
    return Curve(ranking.confidence[ends], np.cumsum(ranking.correct)[ends], ends + 1, ranking.truths)


def average_precision(ranking: Ranking) -> float:
    """Area under the precision envelope over recall, in [0, 1]; NaN without any truth.

    >>> average_precision(Ranking(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2))
    0.8333333333333333
    """
    if ranking.truths == 0:
        return float("nan")
    c = curve(ranking)
    envelope = np.maximum.accumulate(c.precision[::-1])[::-1]
    return float((np.diff(c.hits, prepend=0) * envelope).sum() / ranking.truths)


def best_f(ranking: Ranking) -> tuple[float, float]:
    """The highest F score over all thresholds, and that threshold."""
    c = curve(ranking)
    if ranking.truths == 0 or len(c.threshold) == 0:
        return 0.0, 1.0
    best = int(c.f.argmax())
    return float(c.f[best]), float(c.threshold[best])


def mean_of(values: Sequence[float]) -> float:
    """Mean of those that are not NaN; NaN when there are none, without a warning."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else float("nan")


def drop_unknown(found: Sequence[Detections], known: Sequence[np.ndarray]) -> list[Detections]:
    """The detections without those of classes that nobody looked for on their image: they can be neither right nor
    wrong. `known` is (classes,) bool an image, as in `tools.dataset.Sample`."""
    kept = []
    for detections, looked_for in zip(found, known, strict=True):
        keep = looked_for[detections.class_id]
        kept.append(Detections(detections.xyxy[keep], detections.confidence[keep], detections.class_id[keep]))
    return kept


def coco_map(found: Sequence[Detections], truth: Sequence[Truth], classes: int) -> dict[str, Any]:
    """COCO's AP by the reference implementation, pycocotools.

    Returns:
        `map50`, `map50_95`: class means; `map50_95_class`: (classes,) list. NaN where there is no truth.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        labels = _coco([xyxy for xyxy, _ in truth], [kinds for _, kinds in truth], None, classes)
        boxes = _coco([d.xyxy for d in found], [d.class_id for d in found], [d.confidence for d in found], classes)
        judge = COCOeval(labels, boxes, "bbox")
        judge.params.iouThrs = np.array(COCO_OVERLAPS)
        judge.params.maxDets = [COCO_DETECTIONS]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, 0]  # (overlaps, recalls, classes); -1: no truth
    per_class = np.where(precision[0, 0] < 0, np.nan, precision.mean(axis=1))  # (overlaps, classes)
    return {
        "map50": mean_of(per_class[0].tolist()),
        "map50_95": mean_of(per_class.mean(axis=0).tolist()),
        "map50_95_class": per_class.mean(axis=0).tolist(),
    }


def _coco(boxes: Sequence[Float], kinds: Sequence[np.ndarray], scores: Sequence[Float] | None, classes: int) -> Any:
    """A pycocotools index of what is on each image, labels or (with scores) detections."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, (xyxy, kind) in enumerate(zip(boxes, kinds, strict=True), 1):
        size = xyxy[:, 2:] - xyxy[:, :2]
        for i in range(len(xyxy)):
            box = [*xyxy[i, :2].tolist(), *size[i].tolist()]
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": int(kind[i]) + 1, "bbox": box}
            entry |= {"area": box[2] * box[3], "iscrowd": 0}
            annotations.append(entry if scores is None else {**entry, "score": float(scores[image - 1][i])})
    index = COCO()
    index.dataset = {
        "images": [{"id": image} for image in range(1, len(boxes) + 1)],
        "categories": [{"id": k + 1} for k in range(classes)],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def figures(
    found: Sequence[Detections],
    truth: Sequence[Truth],
    classes: Sequence[str],
    known: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
    """All figures of one set of detections, rounded to five digits.

    Args:
        found, truth: of each image. known: which classes were looked for on each; None: all.
    """
    found = found if known is None else drop_unknown(found, known)
    correct = [match(detections, *labels, IOU_DEEPPCB) for detections, labels in zip(found, truth, strict=True)]
    pooled = pool(found, truth, correct)
    f, threshold = best_f(pooled)
    per_class = [average_precision(pool(found, truth, correct, k)) for k in range(len(classes))]
    coco = coco_map(found, truth, len(classes))
    return {
        "images": len(found),
        "truths": pooled.truths,
        "ap33_pooled": round(average_precision(pooled), 5),
        "ap33_class_mean": round(mean_of(per_class), 5),
        "ap33": {name: round(value, 5) for name, value in zip(classes, per_class, strict=True)},
        "map50": round(coco["map50"], 5),
        "map50_95": round(coco["map50_95"], 5),
        "ap50_95": {name: round(v, 5) for name, v in zip(classes, coco["map50_95_class"], strict=True)},
        "f33_best": round(f, 5),
        "f33_threshold": round(threshold, 4),
    }


def operating_point(
    found: Sequence[Detections], truth: Sequence[Truth], thresholds: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Precision, recall and F at IoU over 0.33 of the boxes that reach their class's threshold, (classes,)."""
    sure = [_over(detections, thresholds) for detections in found]
    correct = [match(detections, *labels, IOU_DEEPPCB) for detections, labels in zip(sure, truth, strict=True)]
    rankings = {name: pool(sure, truth, correct, k) for k, name in enumerate(classes)}
    return {**_point(pool(sure, truth, correct)), "class": {name: _point(r) for name, r in rankings.items()}}


def _over(found: Detections, thresholds: np.ndarray) -> Detections:
    keep = found.confidence >= thresholds[found.class_id]
    return Detections(found.xyxy[keep], found.confidence[keep], found.class_id[keep])


def _point(ranking: Ranking) -> dict[str, Any]:
    hits, boxes = int(ranking.correct.sum()), len(ranking.correct)
    return {
        "f33": round(2 * hits / max(1, boxes + ranking.truths), 5),
        "precision": round(hits / boxes, 5) if boxes else None,
        "recall": round(hits / ranking.truths, 5) if ranking.truths else None,
        "hits": hits,
        "boxes": boxes,
        "truths": ranking.truths,
    }


def confusion(found: Sequence[Detections], truth: Sequence[Truth], thresholds: np.ndarray, classes: int) -> np.ndarray:
    """What became of each labelled defect, and where each box belongs: (classes + 1, classes + 1) counts.

    Rows are labels, the last one "none there"; columns are the class found, the last one "missed". Boxes of the right
    class take their truths first, what is left over is matched whatever its class.
    """
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for detections, (gt, gt_class) in zip(found, truth, strict=True):
        sure = _over(detections, thresholds)
        taken = assign(sure, gt, gt_class, IOU_DEEPPCB)
        rest, free = np.flatnonzero(taken < 0), np.setdiff1d(np.arange(len(gt)), taken)
        any_class = Detections(sure.xyxy[rest], sure.confidence[rest], np.zeros(len(rest), np.int64))
        second = assign(any_class, gt[free], np.zeros(len(free), np.int64), IOU_DEEPPCB)
        taken[rest[second >= 0]] = free[second[second >= 0]]
        rows = np.where(taken >= 0, np.append(gt_class, classes)[taken], classes)
        np.add.at(table, (rows, sure.class_id), 1)
        missed = np.setdiff1d(np.arange(len(gt)), taken)
        np.add.at(table, (gt_class[missed], classes), 1)
    return table
