"""An adaptive window over a stream, kept as an exponential histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.drift import settings
from edge.drift.detectors import Change, Sequential

Column = NDArray[np.float64]

# Of what stands before the window: a uniform score, as every score is while nothing changes.
PRIOR_MEAN = 0.5
PRIOR_SQUARE = 1 / 3
UNIFORM_SIGMA = math.sqrt(1 / 12)
# A cut leaves at least so many points on its younger side.
LEAST_POINTS = 5


class Bucket(msgspec.Struct):
    """2^row points: their sum and the sum of their squares."""

    total: float
    square: float


class Window(msgspec.Struct):
    """Rows of buckets, the smallest first; in a row the oldest first. `ticks` counts points since the last look."""

    rows: list[list[Bucket]] = msgspec.field(default_factory=list)
    ticks: int = 0


class Adwin(Sequential[Window]):
    """Adaptive windowing, after Bifet and Gavalda (SIAM Data Mining 2007), for scores in [0, 1].

    The window is cut where the means of its older and younger part differ by more than chance allows, whatever the size
    of the change and wherever it lies. Points are kept in buckets of 1, 2, 4, ... points, at most `buckets` of a size,
    and the window holds at most `longest` points: memory grows with the logarithm of that. Before the window stand
    `prior` points of a calm stream, so a stream that is other than the baseline from its first frame is found as well.

    >>> stream = np.random.default_rng(4).uniform(size=3000)
    >>> stream[2000:] **= 2
    >>> window = Adwin(settings.Adwin(delta=1e-5, prior=500))
    >>> [i for i, x in enumerate(stream) if window.update(x).value == "drift"][:2]
    [2191, 2631]
    """

    def __init__(self, how: settings.Adwin) -> None:
        self._how = how
        super().__init__()

    def _reset(self) -> Window:
        return Window()

    def __len__(self) -> int:
        return sum(len(row) << size for size, row in enumerate(self._state.rows))

    def _add(self, x: float) -> Change | None:
        x = min(1.0, max(0.0, x))
        self._insert(Bucket(x, x * x))
        self._state.ticks += 1
        if self._state.ticks < self._how.every:
            return None
        self._state.ticks = 0
        return self._look()

    def _insert(self, bucket: Bucket) -> None:
        rows, most = self._state.rows, self._how.buckets
        size = 0
        while True:
            if size == len(rows):
                rows.append([])
            rows[size].append(bucket)
            if len(rows[size]) <= most:
                break
            first, second = rows[size].pop(0), rows[size].pop(0)
            bucket = Bucket(first.total + second.total, first.square + second.square)
            size += 1
        while len(self) > self._how.longest:
            rows[-1].pop(0)
            if not rows[-1]:
                rows.pop()

    def _oldest_first(self) -> Iterator[tuple[int, Bucket]]:
        for size in range(len(self._state.rows) - 1, -1, -1):
            for bucket in self._state.rows[size]:
                yield 1 << size, bucket

    def _look(self) -> Change | None:
        """The most certain cut of prior and window into an older and a younger part, if any is certain enough."""
        sizes, totals, squares = self._columns()
        points, total = sizes.sum(), totals.sum()
        older, older_total = sizes.cumsum()[:-1], totals.cumsum()[:-1]  # (cuts,)
        younger = points - older
        fit = (older >= LEAST_POINTS) & (younger >= LEAST_POINTS)
        if not fit.any():
            return None
        older, older_total, younger = older[fit], older_total[fit], younger[fit]
        shift = (total - older_total) / younger - older_total / older
        variance = max(0.0, squares.sum() / points - (total / points) ** 2)
        log_term = math.log(2 * max(1.0, math.log(points)) / self._how.delta)
        certainty = self._height(shift) - allowed(1 / older + 1 / younger, variance, log_term)
        best = int(certainty.argmax())
        return Change(round(younger[best]), float(shift[best]) / UNIFORM_SIGMA) if certainty[best] > 0 else None

    def _columns(self) -> tuple[Column, Column, Column]:
        """Points, sums and sums of squares of the prior and of each bucket, the oldest first."""
        buckets = list(self._oldest_first())
        prior = self._how.prior
        sizes = np.array([prior, *(n for n, _ in buckets)], np.float64)
        totals = np.array([prior * PRIOR_MEAN, *(b.total for _, b in buckets)], np.float64)
        squares = np.array([prior * PRIOR_SQUARE, *(b.square for _, b in buckets)], np.float64)
        return sizes, totals, squares

    def _height(self, shift: Column) -> Column:
        return np.abs(shift) if self._how.side == "both" else shift if self._how.side == "up" else -shift

    def _check(self, inner: Window) -> None:
        super()._check(inner)
        if len(inner.rows) > 40 or any(len(row) > self._how.buckets for row in inner.rows):
            raise ValueError("not a state of this Adwin: more buckets than it keeps")


def allowed(spread: Column, variance: float, log_term: float) -> Column:
    """The difference of two means that chance allows: Bernstein's bound; `spread` is 1/n0 + 1/n1."""
    return np.asarray(np.sqrt(2 * spread * variance * log_term) + 2 / 3 * spread * log_term)
