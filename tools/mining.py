"""Which unlabelled images teach a detector most: scores for each reason, and a choice that does not repeat itself.

Reasons, each a score where higher is more worth labelling:

- near the threshold: a box so close to it that the verdict is chance (uncertainty sampling, Lewis and Gale, 1994);
- disagreement: two models, or one on the image and on its mirror images, differ in how sure they are (query by
  committee, Seung et al., 1992);
- unusual: a high anomaly score, or far from everything in the training set;
- shows a drift: a drift report points at it;
- diverse: unlike all that was chosen before (core-set, Sener and Savarese, arXiv:1708.00489).

Arrays in, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.boxes import Float, iou_matrix
from edge.preprocess import Image
from edge.records import Detections
from tools.temperature import logit

NEAR, DISAGREE, UNUSUAL, DIVERSE = "near the threshold", "models disagree", "unusual", "diverse"
DRIFT = "shows a drift"
# Parts of the choice, and the least score that counts as the reason.
SHARES: Mapping[str, int] = {DRIFT: 4, NEAR: 3, DISAGREE: 3, UNUSUAL: 2, DIVERSE: 2}
LEAST: Mapping[str, float] = {DRIFT: 0.25, NEAR: 0.3, DISAGREE: 0.2, UNUSUAL: 0.9}
POOL = 3  # a reason's images are chosen, as unlike each other as can be, from so many times as many of the best
SAME_PLACE_IOU = 0.33
NEIGHBOURS = 3


@dataclass(frozen=True)
class Finding:
    """A score with the words for it."""

    score: float
    text: str = ""


def near_threshold(found: Detections, thresholds: Float, classes: Sequence[str]) -> Finding:
    """How near the nearest box is to its class's threshold: 1 on it, 0.37 one logit off.

    >>> found = Detections(np.array([[1, 1, 9, 9]], np.float32), np.array([0.5], np.float32), np.array([0]))
    >>> near_threshold(found, np.array([0.5]), ["hole"])
    Finding(score=1.0, text='hole 0.50, threshold 0.50')
    """
    if not len(found):
        return Finding(0.0)
    limit = thresholds[found.class_id]
    closeness = np.exp(-np.abs(logit(found.confidence) - logit(limit)))
    i = int(closeness.argmax())
    name = classes[int(found.class_id[i])]
    return Finding(float(closeness[i]), f"{name} {found.confidence[i]:.2f}, threshold {limit[i]:.2f}")


def disagreement(one: Detections, other: Detections, classes: Sequence[str], called: str) -> Finding:
    """The largest difference in confidence about one place and class, in [0, 1]; no box counts as 0.

    Args:
        called: what `other` is, for the words.
    """
    worst = Finding(0.0)
    for first, second, turned in ((one, other, False), (other, one, True)):
        best = _confidence_there(first, second)
        gap = first.confidence - best
        if not len(gap) or gap.max() <= worst.score:
            continue
        i = int(gap.argmax())
        mine, theirs = (best[i], first.confidence[i]) if turned else (first.confidence[i], best[i])
        worst = Finding(float(gap[i]), f"{classes[int(first.class_id[i])]} {mine:.2f}, {called} {theirs:.2f}")
    return worst


def _confidence_there(boxes: Detections, others: Detections) -> Float:
    """For each box the surest one of the others in its place and of its class, 0 where there is none, (N,)."""
    if not len(others):
        return np.zeros(len(boxes), np.float32)
    same = (iou_matrix(boxes.xyxy, others.xyxy) > SAME_PLACE_IOU) & (boxes.class_id[:, None] == others.class_id)
    return np.asarray(np.where(same, others.confidence, 0).max(axis=1), np.float32)


def mirrored(image: Image, axis: int) -> Image:
    """The image flipped upside down (axis 0) or left to right (axis 1)."""
    return np.ascontiguousarray(np.flip(image, axis))


def mirror_back(found: Detections, axis: int, width: int, height: int) -> Detections:
    """Boxes found on the mirrored image, in the original's pixels.

    >>> found = Detections(np.array([[1, 2, 4, 8]], np.float32), np.array([0.5], np.float32), np.array([0]))
    >>> mirror_back(found, 1, 10, 20).xyxy.tolist(), mirror_back(found, 0, 10, 20).xyxy.tolist()
    ([[6.0, 2.0, 9.0, 8.0]], [[1.0, 12.0, 4.0, 18.0]])
    """
    x1, y1, x2, y2 = found.xyxy.T
    turned = [width - x2, y1, width - x1, y2] if axis == 1 else [x1, height - y2, x2, height - y1]
    return Detections(np.stack(turned, axis=1).astype(np.float32), found.confidence, found.class_id)


def standardised(features: Float, reference: Float) -> tuple[Float, Float]:
    """Both sets of features (N, D), (M, D) in units of their common spread, so that no feature outweighs the others."""
    both = np.concatenate([features, reference])
    centre, spread = both.mean(axis=0), both.std(axis=0)
    spread = np.where(spread > 1e-6, spread, 1.0)
    return (features - centre) / spread, (reference - centre) / spread


def distance_to(features: Float, reference: Float, leave_out: bool = False) -> Float:
    """Mean distance to the three nearest of the reference, (N,); `leave_out` when the two are the same rows."""
    squares = np.maximum(
        np.square(features).sum(axis=1)[:, None] + np.square(reference).sum(axis=1) - 2 * features @ reference.T, 0
    )
    skip = 1 if leave_out else 0
    nearest = np.sort(squares, axis=1)[:, skip : skip + NEIGHBOURS]
    return np.asarray(np.sqrt(nearest).mean(axis=1)) if nearest.shape[1] else np.zeros(len(features))


def percentile(values: Float) -> Float:
    """The share of the values that are lower, (N,) in [0, 1); NaN stays NaN.

    >>> percentile(np.array([5.0, np.nan, 1.0, 5.0, 9.0])).tolist()
    [0.25, nan, 0.0, 0.25, 0.75]
    """
    known = np.sort(values[~np.isnan(values)])
    return np.where(np.isnan(values), np.nan, np.searchsorted(known, values, side="left") / max(1, len(known)))


def keep_one_of_each(pairs: Sequence[tuple[int, int]], worth: Float) -> np.ndarray:
    """Which rows stay when of each set of look-alikes only the most worthwhile one is kept, (N,) bool.

    >>> keep_one_of_each([(0, 1), (1, 2)], np.array([0.1, 0.5, 0.2, 0.0])).tolist()
    [False, True, False, True]
    """
    keep = np.ones(len(worth), bool)
    like: dict[int, set[int]] = {}
    for i, j in pairs:
        like.setdefault(i, set()).add(j)
        like.setdefault(j, set()).add(i)
    for i in np.argsort(-worth, kind="stable"):
        if keep[i]:
            keep[list(like.get(int(i), ()))] = False
    return keep


def quotas(count: int, reasons: Sequence[str]) -> dict[str, int]:
    """How many images each reason may choose, by `SHARES`; they add up to `count`.

    >>> quotas(7, [NEAR, DIVERSE])
    {'near the threshold': 4, 'diverse': 3}
    """
    total = sum(SHARES[reason] for reason in reasons)
    exact = {reason: count * SHARES[reason] / total for reason in reasons}
    given = {reason: int(share) for reason, share in exact.items()}
    for reason in sorted(reasons, key=lambda r: given[r] - exact[r])[: count - sum(given.values())]:
        given[reason] += 1
    return given


def choose(
    scores: Mapping[str, Float], features: Float, reference: Float, usable: np.ndarray, count: int
) -> list[tuple[int, str]]:
    """Choose `count` rows, each with its reason.

    Each reason but diversity takes its share from its best rows, the ones farthest from all chosen before; what a
    reason leaves over goes to diversity.

    Args:
        scores: (N,) for each reason that can be judged, NaN where it cannot. features: (N, D), reference: (M, D) of the
            training set, may be empty; both standardised. usable: (N,) bool.
    """
    left = usable.copy()
    chosen: list[tuple[int, str]] = []
    nearest = distance_to_set(features, reference)

    def take(row: int, reason: str) -> None:
        left[row] = False
        chosen.append((row, reason))
        np.minimum(nearest, np.square(features - features[row]).sum(axis=1), out=nearest)

    for reason, quota in quotas(count, [*scores, DIVERSE]).items():
        if reason == DIVERSE:
            continue
        worth = np.where(np.isnan(scores[reason]), -np.inf, scores[reason])
        pool = np.flatnonzero(left & (worth >= LEAST[reason]))
        pool = pool[np.argsort(-worth[pool], kind="stable")][: POOL * quota]
        for _ in range(min(quota, len(pool))):
            pool = pool[left[pool]]
            take(int(pool[nearest[pool].argmax()]), reason)
    while left.any() and len(chosen) < count:
        rows = np.flatnonzero(left)
        take(int(rows[nearest[rows].argmax()]), DIVERSE)
    return chosen


def distance_to_set(features: Float, reference: Float) -> Float:
    """Squared distance to the nearest of the reference, (N,); infinite where there is none."""
    nearest = np.full(len(features), np.inf)
    for row in reference:
        np.minimum(nearest, np.square(features - row).sum(axis=1), out=nearest)
    return nearest
