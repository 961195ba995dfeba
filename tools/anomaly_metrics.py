"""How well an anomaly score tells the unknown from the known: AUROC, AuPRC, FPR95, and curves of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RECALL = 0.95  # of the unknown, at which the false positive rate is told


@dataclass(frozen=True)
class Separation:
    """Figures of a score; higher scores are to mean unknown.

    Attributes:
        auroc: chance that an unknown scores over a known one, in [0, 1].
        auprc: area under precision over recall of the unknown, in [0, 1]; chance gives `share`.
        fpr95: share of the known that score at least as high as what 95 % of the unknown reach.
        share: of the unknown among all. unknown, known: how many.
    """

    auroc: float
    auprc: float
    fpr95: float
    share: float
    unknown: int
    known: int


def separation(unknown: np.ndarray, known: np.ndarray) -> Separation:
    """Figures of the scores of unknown (N,) and of known (M,) things.

    Raises:
        ValueError: one of them is empty, or a score is not finite.

    >>> separation(np.array([3.0, 2.0]), np.array([1.0, 0.0]))
    Separation(auroc=1.0, auprc=1.0, fpr95=0.0, share=0.5, unknown=2, known=2)
    >>> separation(np.array([1.0]), np.array([1.0, 1.0, 1.0])).auroc
    0.5
    """
    precision, recall, false_rate = curves(unknown, known)
    auprc = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    middle = (recall + np.concatenate([[0.0], recall[:-1]])) / 2  # ties: the straight line between their ends
    auroc = float(np.sum(np.diff(false_rate, prepend=0.0) * middle))
    fpr95 = float(false_rate[int(np.searchsorted(recall, RECALL - 1e-12))])
    n, m = len(unknown), len(known)
    return Separation(*(round(v, 5) for v in (auroc, auprc, fpr95, n / (n + m))), n, m)


def curves(unknown: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and false positive rate as the limit falls from the highest score; ties count together.

    Raises:
        ValueError: see `separation`.

    >>> [x.tolist() for x in curves(np.array([2.0]), np.array([1.0]))]
    [[1.0, 0.5], [1.0, 1.0], [0.0, 1.0]]
    """
    if not len(unknown) or not len(known):
        raise ValueError(f"{len(unknown)} unknown and {len(known)} known scores: both must be there to be told apart")
    scores = np.concatenate([unknown, known])
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    order = np.argsort(-scores, kind="stable")
    hit = order < len(unknown)
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # ends of runs of equal scores
    found, wrong = np.cumsum(hit)[last], np.cumsum(~hit)[last]
    return found / (found + wrong), found / len(unknown), wrong / len(known)


def wilson(count: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share, `count` of `of` (Wilson 1927).

    >>> [round(x, 4) for x in wilson(0, 161)]
    [0.0, 0.0233]
    """
    if not of:
        return 0.0, 1.0
    p, square = count / of, z * z / of
    middle = (p + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(p * (1 - p) / of + square / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)
