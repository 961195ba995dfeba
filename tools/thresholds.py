"""Choose the thresholds of a recipe for a wanted escape and overkill rate.

Two things are chosen, in this order:

1. The threshold of each class (a box over it makes the part NG). Together they may flag no more good parts than the
   wanted overkill; within that they are spent where they catch most.
2. The review threshold (a box over it stops the part for a person). As high as it can be so that no more defects than
   the wanted escape are under it, unless that sends more good parts to a person than is allowed.

Arrays in, no files. Scores are (parts, classes): the confidence of the surest box of each class on a part, 0 where
there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.boxes import Float, iou_matrix
from edge.records import Detections
from tools.metrics import IOU_DEEPPCB, Truth
from tools.temperature import logit

# A box that is more likely wrong than right is no ground to throw a part away, however clean the good parts here were.
# Confidence has to be calibrated for that to be so.
LEAST_THRESHOLD = 0.5
LEAST_REVIEW = 0.02


@dataclass(frozen=True)
class Parts:
    """What the choice goes by.

    Attributes:
        bad, good: (B, classes) and (G, classes) scores of parts with and without defects.
        kinds: (K, classes) a row for each part and kind of defect on it: scores of the boxes on defects of that kind.
        kind: (K,) which kind that is.
        imitated: the good parts are bad ones without the boxes that touch a defect, for want of real ones.
    """

    bad: Float
    good: Float
    kinds: Float
    kind: np.ndarray
    imitated: bool = False


@dataclass(frozen=True)
class Wanted:
    """Shares in [0, 1]: bad parts judged OK, good parts judged NG, good parts that go to a person."""

    escape: float
    overkill: float
    review: float


@dataclass(frozen=True)
class Choice:
    """Thresholds, and whether they do what is wanted on the parts they were chosen by.

    Attributes:
        threshold: (classes,) from here NG. review: from here REVIEW, where a class's threshold is not lower still.
        zone: whether there is a REVIEW at all. within: which of the wanted shares are kept; `escape_by_kind` takes each
            kind of defect on a part as if it were there alone.
    """

    threshold: Float
    review: float
    zone: bool
    within: dict[str, bool]


def scores(found: Detections, classes: int) -> Float:
    """Confidence of the surest box of each class, (classes,) float64: compared with thresholds as the device does."""
    best = np.zeros(classes, np.float64)
    np.maximum.at(best, found.class_id, found.confidence)
    return best


def collect(found: Sequence[Detections], truth: Sequence[Truth], good: Sequence[Detections], classes: int) -> Parts:
    """Parts from the boxes on labelled images (those without a label are left out) and on good parts.

    Without good parts, bad ones stand in for them with the boxes that touch no defect.
    """
    bad, kinds, kind, beside = [], [], [], []
    for detections, (gt, gt_class) in zip(found, truth, strict=True):
        if not len(gt):
            continue
        overlap = iou_matrix(detections.xyxy, gt)  # (N, M)
        bad.append(scores(detections, classes))
        beside.append(scores(_some(detections, overlap.max(axis=1) == 0), classes))
        for k in np.unique(gt_class):
            on_it = (overlap[:, gt_class == k] > IOU_DEEPPCB).any(axis=1)
            kinds.append(scores(_some(detections, on_it), classes))
            kind.append(k)
    clean = [scores(detections, classes) for detections in good]
    return Parts(
        _rows(bad, classes), _rows(clean or beside, classes), _rows(kinds, classes), np.array(kind, int), not clean
    )


def _some(found: Detections, keep: np.ndarray) -> Detections:
    return Detections(found.xyxy[keep], found.confidence[keep], found.class_id[keep])


def _rows(rows: Sequence[Float], classes: int) -> Float:
    return np.array(rows, np.float64).reshape(-1, classes)


def caught(rows: Float, threshold: Float | float) -> np.ndarray:
    """Which rows of scores reach a threshold of any class, (rows,) bool."""
    return (rows >= threshold).any(axis=1)


def class_thresholds(parts: Parts, overkill: float) -> Float:
    """The lowest useful threshold of each class, (classes,), that flag at most the share `overkill` of good parts.

    Greedy: at first no good part is flagged. Then the class and step go first that catch most kinds of defects for
    each good part they flag, until the budget is spent or nothing more is caught. Each threshold is then put in the
    middle, by logits, of the gap in which it changes nothing here.
    """
    classes = parts.good.shape[1]
    # Steps of each class: just over each score of a good part, highest first, and at last the least allowed.
    steps = [_steps(parts.good[:, k]) for k in range(classes)]
    at = [0] * classes
    budget = math.floor(overkill * len(parts.good) + 1e-9)
    while True:
        now = np.array([steps[k][at[k]] for k in range(classes)])
        held, flagged = caught(parts.kinds, now), caught(parts.good, now)
        best = (0.0, 0, 0)
        for k in range(classes):
            for step in range(at[k] + 1, len(steps[k])):
                lower = steps[k][step]
                cost = int((flagged | (parts.good[:, k] >= lower)).sum()) - int(flagged.sum())
                if int(flagged.sum()) + cost > budget:
                    break
                gain = int((~held & (parts.kinds[:, k] >= lower)).sum())
                best = max(best, (gain / max(cost, 0.5), k, step))
        if best[0] == 0:
            return np.array([_middle(parts, k, now[k]) for k in range(classes)])
        at[best[1]] = best[2]


def _steps(good: Float) -> list[float]:
    return [*(_over(v) for v in np.unique(good[good >= LEAST_THRESHOLD])[::-1]), LEAST_THRESHOLD]


def _over(score: float) -> float:
    """The lowest threshold of four decimals, as a recipe has them, that a score does not reach."""
    threshold = math.ceil(float(score) * 1e4) / 1e4
    near = threshold - score < 1e-6  # too near for a comparison in single precision
    return min(0.9999, round(threshold + 1e-4 * near, 4))


def _middle(parts: Parts, k: int, threshold: float) -> float:
    """A threshold of class k that flags and catches the same, as far from either side as it can be."""
    on_defects = parts.kinds[parts.kinds[:, k] >= threshold, k]
    if not len(on_defects):
        return threshold
    below = parts.good[parts.good[:, k] < threshold, k].max(initial=LEAST_THRESHOLD)
    return max(threshold, _between(float(below), float(on_defects.min())))


def _between(low: float, high: float) -> float:
    """The middle by logits, rounded down to four decimals and so never over `high`."""
    middle = (logit(np.array(low)) + logit(np.array(max(low, high)))) / 2
    return math.floor(1e4 / (1 + math.exp(-middle))) / 1e4


def choose(parts: Parts, wanted: Wanted) -> Choice:
    """Thresholds for the wanted rates.

    The review threshold goes by kinds, as if each defect were its part's only one: where parts have several, one that
    is found hides one that is missed, and a line's parts seldom have as many as those that were collected.
    """
    threshold = class_thresholds(parts, wanted.overkill)
    highest = float(threshold.max())
    needed, allowed = _review(parts.kinds, threshold, wanted.escape), _least_review(parts, threshold, wanted.review)
    review = min(highest, max(LEAST_REVIEW if needed is None else needed, allowed))
    reviewed = np.minimum(threshold, review)
    flagged = caught(parts.good, threshold)

    def kept(rows: np.ndarray, share: float) -> bool:
        return bool(rows.mean() <= share + 1e-9)

    within = {
        "escape": kept(~caught(parts.bad, reviewed), wanted.escape),
        "escape_by_kind": kept(~caught(parts.kinds, reviewed), wanted.escape),
        "overkill": kept(flagged, wanted.overkill),
        "review": kept(caught(parts.good, reviewed) & ~flagged, wanted.review),
    }
    return Choice(threshold, review, review < highest, within)


def _review(rows: Float, threshold: Float, escape: float) -> float | None:
    """The highest review threshold under which at most the share `escape` of the rows lies; None: there is none.

    It is the highest threshold itself when nothing needs a review.
    """
    missed = np.sort(rows[~caught(rows, threshold)].max(axis=1, initial=0))[::-1]
    needed = len(missed) - math.floor(escape * len(rows) + 1e-9)
    if needed <= 0:
        return float(threshold.max())
    last = float(missed[needed - 1])
    following = float(missed[needed]) if needed < len(missed) else LEAST_REVIEW
    return _between(max(following, LEAST_REVIEW), last) if last >= LEAST_REVIEW else None


def _least_review(parts: Parts, threshold: Float, share: float) -> float:
    """The lowest review threshold that sends at most this share of good parts to a person."""
    open_to = np.sort(parts.good[~caught(parts.good, threshold)].max(axis=1, initial=0))[::-1]
    budget = math.floor(share * len(parts.good) + 1e-9)
    if budget >= len(open_to):
        return LEAST_REVIEW
    return max(LEAST_REVIEW, _over(open_to[budget]))
