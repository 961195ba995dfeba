"""Run lengths of a drift monitor by simulation: how long it stays calm, and how soon it speaks after a change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edge.drift import plan, settings
from edge.drift.baseline import numbers, score
from edge.drift.settings import DriftSettings, Kinds, Signal
from edge.drift.signals import distance
from tools.arl_charts import many
from tools.stream_table import Rows

Points = NDArray[np.float64]
Rng = np.random.Generator

CALM_FIRST = 100  # frames before a change
# A score as a share, as ADWIN takes it; finer than any baseline.
_GRID = np.linspace(-4.5, 4.5, 1801)
_CDF = np.array([NormalDist().cdf(float(x)) for x in _GRID])


def points_of(values: Sequence[float] | Points, signal: Signal) -> Points:
    """What a signal's detector is fed for each value, as `edge.drift.watch` does it for batches of one."""
    if isinstance(signal.baseline, Kinds):
        return np.asarray(values, np.float64)
    assert signal.batch == 1, "frames drawn by chance have no correlation"
    scores = np.array([score(float(v), signal.baseline) for v in values])
    return np.interp(scores, _GRID, _CDF) if isinstance(signal.chart, settings.Adwin) else scores


@dataclass(frozen=True)
class Calm:
    """Alarms without a change: of each signal, over so many frames of all streams together."""

    alarms: dict[str, int]
    frames: int

    @property
    def arl0(self) -> float:
        """Frames between alarms of the whole monitor; of less than one alarm as if there had been one."""
        return self.frames / max(1, sum(self.alarms.values()))


def calm(
    signals: Mapping[str, Signal], points: Mapping[str, Points], frames: int, streams: int, ae_every: int, rng: Rng
) -> Calm:
    """Alarms over streams whose frames are drawn from the rows of `points`, all signals of a frame from one row."""
    rows = len(next(iter(points.values())))
    drawn = rng.integers(0, rows, (frames, streams))
    alarms = {}
    for name, signal in signals.items():
        detector, column, total = many(signal, streams), points[name], 0
        for at in range(0, frames, ae_every if name == "ae_error" else 1):
            total += int(detector.step(column[drawn[at]]).sum())
        alarms[name] = total
    return Calm(alarms, frames * streams)


@dataclass(frozen=True)
class Delays:
    """Frames from a change to the first alarm.

    Attributes:
        by_signal: of each signal, (streams,); infinite where it did not speak in time.
        horizon: frames that were waited for.
    """

    by_signal: dict[str, Points]
    horizon: int

    def of(self, names: Sequence[str]) -> Points:
        """Of whichever of these signals speaks first, (streams,); streams with an alarm before the change are out."""
        each = np.stack([self.by_signal[name] for name in names if name in self.by_signal])
        whole = np.stack(list(self.by_signal.values()))
        return np.asarray(each.min(axis=0)[(whole > 0).all(axis=0)])

    def first(self) -> dict[str, float]:
        """Share of streams in which each signal was the first, or among the first."""
        names = list(self.by_signal)
        each = np.stack([self.by_signal[name] for name in names])
        best = each.min(axis=0)
        found = np.isfinite(best)
        return {n: float((each[k][found] == best[found]).mean()) if found.any() else 0.0 for k, n in enumerate(names)}


def delays(
    signals: Mapping[str, Signal],
    before: Mapping[str, Points],
    after: Mapping[str, Points],
    horizon: int,
    streams: int,
    ae_every: int,
    rng: Rng,
) -> Delays:
    """Frames until each signal speaks after 100 calm frames; 0 or less: it spoke before the change."""
    calm_rows = rng.integers(0, len(next(iter(before.values()))), (CALM_FIRST, streams))
    then_rows = rng.integers(0, len(next(iter(after.values()))), (horizon, streams))
    found = {}
    for name, signal in signals.items():
        every = ae_every if name == "ae_error" else 1
        detector, when = many(signal, streams), np.full(streams, np.inf)
        for at in range(0, CALM_FIRST + horizon, every):
            changed = at - CALM_FIRST
            x = before[name][calm_rows[at]] if changed < 0 else after[name][then_rows[changed]]
            when[detector.step(x) & np.isinf(when)] = changed + 1 if changed >= 0 else min(0, changed)
            if np.isfinite(when).all():
                break
        found[name] = when
    return Delays(found, horizon)


# --- Real frames ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """A monitor fitted on one half of the good frames, and what its detectors are fed on the other half."""

    settings: DriftSettings
    signals: dict[str, Signal]
    clean: dict[str, Points]
    others: frozenset[int]


def fit(rows: Rows, chosen: NDArray[np.int64], classes: Sequence[str], ae_every: int, arl0: float) -> DriftSettings:
    """Settings from the chosen good frames, with what a line learns for itself as if it were learned from them."""
    values = {name: column[chosen].tolist() for name, column in rows.values.items()}
    expected = None
    if rows.means.shape[1]:
        expected, values["feature_distance"] = plan.expected_features(rows.means[chosen])
    known = plan.Measured(values, classes, 1, 1, ae_every=ae_every, features=expected)
    whole = plan.settings_for(known, "simulation", arl0)
    of_line: dict[str, list[float]] = {name: values[name] for name in plan.OF_THE_LINE if name in values}
    if not of_line:
        return whole
    line = plan.settings_for(plan.Measured(of_line, classes, 1, 1, ordered=True), "simulation", arl0)
    signals = {**whole.signals, **{n: s for n, s in line.signals.items() if s.batch == 1}}
    return settings.DriftSettings(arl0=arl0, frames=whole.frames, width=1, height=1, signals=signals, features=expected)


def points_under(rows: Rows, fitted: DriftSettings, only: frozenset[int] | None = None) -> dict[str, Points]:
    """What the detectors are fed on the rows; `only` those made of these good frames."""
    keep = np.array([only is None or int(k) in only for k in rows.frame])
    points = {
        name: points_of(rows.values[name][keep], signal)
        for name, signal in fitted.signals.items()
        if name in rows.values
    }
    if fitted.features is not None and "feature_distance" in fitted.signals:
        distances = [distance(means, fitted.features) for means in rows.means[keep]]
        points["feature_distance"] = points_of(distances, fitted.signals["feature_distance"])
    return points


def halves(rows: Rows, classes: Sequence[str], count: int, ae_every: int, arl0: float, rng: Rng) -> list[Half]:
    """Monitors fitted on random halves of the good frames, each to be tried on its other half."""
    made = []
    for _ in range(count):
        order = rng.permutation(len(rows.frame))
        chosen, rest = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = fit(rows, chosen, classes, ae_every, arl0)
        others = frozenset(int(rows.frame[k]) for k in rest)
        made.append(Half(fitted, dict(fitted.signals), points_under(rows, fitted, others), others))
    return made


# --- Normal scores ----------------------------------------------------------------------------------------------------


def normal_streams(baseline_frames: int, frames: int, streams: int, shift: float, rng: Rng) -> Points:
    """Scores of normal values against a baseline of its own for each stream, (frames, streams).

    Args:
        shift: of the values from the baseline's mean, in sigmas.
    """
    grid = np.linspace(-7, 7, 561)
    out = np.empty((frames, streams))
    for k in range(streams):
        baseline = numbers(rng.normal(size=baseline_frames).tolist(), 1e-6)
        table = np.array([score(float(x), baseline) for x in grid])
        out[:, k] = np.interp(rng.normal(shift, 1.0, frames), grid, table)
    return out


def normal_signal(kind: plan.Kind, side: settings.Side, baseline_frames: int, arl0: float) -> Signal:
    """A signal of normal values, watched by one kind of detector."""
    spread = [NormalDist().inv_cdf((k + 0.5) / baseline_frames) for k in range(baseline_frames)]
    baseline = numbers(spread, 1e-6)
    return Signal(baseline=baseline, chart=plan.chart_for(kind, side, baseline, arl0), advice="clean")


def normal_alarms(signal: Signal, scores: Points) -> Points:
    """The frame of each stream's first alarm, from 1; infinite without one."""
    points = np.interp(scores, _GRID, _CDF) if isinstance(signal.chart, settings.Adwin) else scores
    detector, when = many(signal, points.shape[1]), np.full(points.shape[1], np.inf)
    for at in range(len(points)):
        when[detector.step(points[at]) & np.isinf(when)] = at + 1
        if np.isfinite(when).all():
            break
    return when


def run_length(when: Points, frames: int) -> tuple[float, int]:
    """Mean run length and how many alarms it rests on; runs that were cut count for as long as they were watched.

    For run lengths without memory, as ARL0's are but for their first points, this is the maximum likelihood estimate.
    """
    watched = np.where(np.isfinite(when), when, frames).sum()
    alarms = int(np.isfinite(when).sum())
    return float(watched / max(1, alarms)), alarms


def poisson_interval(alarms: int) -> tuple[float, float]:
    """95 % interval of a mean count, from one count (Byar's approximation to the exact one).

    >>> [round(x, 1) for x in poisson_interval(10)]
    [4.8, 18.4]
    """
    if alarms == 0:
        return 0.0, 3.7
    low = alarms * (1 - 1 / (9 * alarms) - 1.96 / (3 * math.sqrt(alarms))) ** 3
    high = (alarms + 1) * (1 - 1 / (9 * (alarms + 1)) + 1.96 / (3 * math.sqrt(alarms + 1))) ** 3
    return low, high
