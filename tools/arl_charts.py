"""The detectors of `edge.drift` for many streams at once, as arrays: for run lengths that take 10^8 points to see.

Each class does to a column of points what its namesake in `edge.drift` does to one stream; a test holds them together.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge.drift import settings
from edge.drift.adwin import LEAST_POINTS, PRIOR_MEAN, PRIOR_SQUARE, allowed
from edge.drift.psi import PSEUDO_COUNT
from edge.drift.settings import Chart, Kinds, Signal

Column = NDArray[np.float64]
Flags = NDArray[np.bool_]


class Many(Protocol):
    """A detector of many streams."""

    def step(self, x: Column) -> Flags:
        """Take a point of each stream, (streams,); which of them alarm. Those begin anew."""


class CusumMany:
    """`edge.drift.detectors.Cusum`."""

    def __init__(self, how: settings.Cusum, streams: int):
        self._how = how
        self._up, self._down = np.zeros(streams), np.zeros(streams)

    def step(self, x: Column) -> Flags:
        """See `Many.step`."""
        how = self._how
        return _sums(self._up, self._down, x, how.allowance, how.limit, how.side)


def _sums(up: Column, down: Column, x: Column, allowance: float, limit: float, side: str) -> Flags:
    alarm = np.zeros(len(x), bool)
    if side != "down":
        np.maximum(0, up + x - allowance, out=up)
        alarm |= up > limit
    if side != "up":
        np.maximum(0, down - x - allowance, out=down)
        alarm |= down > limit
    up[alarm] = down[alarm] = 0
    return alarm


class PageHinkleyMany:
    """`edge.drift.detectors.PageHinkley`."""

    def __init__(self, how: settings.PageHinkley, streams: int):
        self._how = how
        self._up, self._down = np.zeros(streams), np.zeros(streams)
        self._points, self._total = np.zeros(streams), np.zeros(streams)
        self._reach = 3 / math.sqrt(how.prior) if how.prior > 0 else math.inf

    def step(self, x: Column) -> Flags:
        """See `Many.step`."""
        how = self._how
        self._points += 1
        self._total += x
        mean = np.clip(self._total / (self._points + how.prior), -self._reach, self._reach)
        alarm = _sums(self._up, self._down, x - mean, how.allowance, how.limit, how.side)
        self._points[alarm] = self._total[alarm] = 0
        return alarm


class EwmaMany:
    """`edge.drift.detectors.Ewma`."""

    def __init__(self, how: settings.Ewma, streams: int):
        self._how = how
        self._mean, self._points = np.zeros(streams), np.zeros(streams)

    def step(self, x: Column) -> Flags:
        """See `Many.step`."""
        how = self._how
        self._points += 1
        self._mean += how.weight * (x - self._mean)
        variance = how.weight / (2 - how.weight) * (1 - (1 - how.weight) ** (2 * self._points))
        height = np.abs(self._mean) if how.side == "both" else self._mean if how.side == "up" else -self._mean
        alarm = np.asarray(height > how.limit * np.sqrt(variance) + how.allowance)
        self._mean[alarm] = self._points[alarm] = 0
        return alarm


class AdwinMany:
    """`edge.drift.adwin.Adwin`. A stream that has alarmed alarms no more: windows of one length are one array."""

    def __init__(self, how: settings.Adwin, streams: int):
        self._how = how
        self._rows: list[list[tuple[Column, Column]]] = []
        self._ticks = 0
        self._alive = np.ones(streams, bool)

    def step(self, x: Column) -> Flags:
        """See `Many.step`."""
        x = np.clip(x, 0, 1)
        self._insert((x, x * x))
        self._ticks += 1
        if self._ticks < self._how.every:
            return np.zeros(len(x), bool)
        self._ticks = 0
        alarm = np.asarray(self._look(len(x)) & self._alive)
        self._alive &= ~alarm
        return alarm

    def _insert(self, bucket: tuple[Column, Column]) -> None:
        rows, size = self._rows, 0
        while True:
            if size == len(rows):
                rows.append([])
            rows[size].append(bucket)
            if len(rows[size]) <= self._how.buckets:
                break
            (a, b), (c, d) = rows[size].pop(0), rows[size].pop(0)
            bucket, size = (a + c, b + d), size + 1
        while sum(len(row) << k for k, row in enumerate(rows)) > self._how.longest:
            rows[-1].pop(0)
            if not rows[-1]:
                rows.pop()

    def _look(self, streams: int) -> Flags:
        how = self._how
        buckets = [(1 << k, *b) for k in range(len(self._rows) - 1, -1, -1) for b in self._rows[k]]
        sizes = np.array([how.prior, *(n for n, _, _ in buckets)])[:, None]  # (parts, 1)
        totals = np.stack([np.full(streams, how.prior * PRIOR_MEAN), *(t for _, t, _ in buckets)])  # (parts, streams)
        square = how.prior * PRIOR_SQUARE + sum(s for _, _, s in buckets)
        points, total = sizes.sum(), totals.sum(axis=0)
        older, older_total = sizes.cumsum(axis=0)[:-1], totals.cumsum(axis=0)[:-1]
        fit = ((older >= LEAST_POINTS) & (points - older >= LEAST_POINTS))[:, 0]
        if not fit.any():
            return np.zeros(streams, bool)
        older, older_total, younger = older[fit], older_total[fit], points - older[fit]
        shift = (total - older_total) / younger - older_total / older
        variance = np.maximum(0, square / points - (total / points) ** 2)
        log_term = math.log(2 * max(1.0, math.log(points)) / how.delta)
        height = np.abs(shift) if how.side == "both" else shift if how.side == "up" else -shift
        return np.asarray((height > allowed(1 / older + 1 / younger, variance, log_term)).any(axis=0))


class PsiMany:
    """`edge.drift.psi.Psi`."""

    def __init__(self, how: settings.Psi, baseline: Kinds, streams: int):
        self._how = how
        expected = baseline.frames * np.array(baseline.shares) + PSEUDO_COUNT
        self._expected = expected / expected.sum()
        self._counts = np.zeros((streams, len(expected)))
        self._seen = 0

    def step(self, x: Column) -> Flags:
        """See `Many.step`."""
        self._counts[np.arange(len(x)), x.astype(int)] += 1
        self._seen += 1
        if self._seen < self._how.window:
            return np.zeros(len(x), bool)
        share = self._counts + PSEUDO_COUNT
        share /= share.sum(axis=1, keepdims=True)
        moved = ((share - self._expected) * np.log(share / self._expected)).sum(axis=1)
        self._counts[:] = 0
        self._seen = 0
        return np.asarray(moved > self._how.limit)


def many(signal: Signal, streams: int) -> Many:
    """The detector of a signal, for many streams."""
    chart: Chart = signal.chart
    if isinstance(chart, settings.Psi):
        assert isinstance(signal.baseline, Kinds), "checked when the settings were read"
        return PsiMany(chart, signal.baseline, streams)
    if isinstance(chart, settings.Adwin):
        return AdwinMany(chart, streams)
    if isinstance(chart, settings.Ewma):
        return EwmaMany(chart, streams)
    return PageHinkleyMany(chart, streams) if isinstance(chart, settings.PageHinkley) else CusumMany(chart, streams)
