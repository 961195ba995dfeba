"""What a signal is on good frames, and how far a new value is from that, as a score.

A score is the normal score of a value's rank among the baseline's: while nothing changes its mean is 0 and its standard
deviation 1 whatever the signal's distribution, so limits that are exact for normal points hold for every signal
(distribution-free charts by ranks: McDonald, Nav. Res. Logist. 37, 1990; Hackl and Ledolter, J. Qual. Technol. 23,
1991). A single rogue frame cannot weigh much. Beyond the baseline's extremes ranks know nothing; there a heavy tail
that starts from the extreme makes a value that is far out count for more than one that is just out.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edge.drift.settings import Kinds, Numbers

# A baseline of fewer frames says nothing of a stream.
LEAST_FRAMES = 10
MOST_QUANTILES = 129
# Fewer frames do not tell how alike neighbours are: what looks so is mostly chance.
LEAST_FOR_CORRELATION = 50
# No score is further out: what is impossible by the baseline still needs a few frames in a row for an alarm.
MOST_SIGMAS = 4.0
# Shape of the tail beyond the extremes (generalised Pareto): heavier than any signal's, as a baseline is short.
TAIL_SHAPE = 0.25
_NORMAL = NormalDist()

Values = NDArray[np.float64]


def numbers(values: Sequence[float], least: float, ordered: bool = False) -> Numbers:
    """The baseline of a signal from its values on good frames.

    Args:
        values: finite, at least 10.
        least: a difference that matters in practice, above 0.
        ordered: the values are of frames in a row, so that their correlation can be told, from 50 frames on.

    >>> baseline = numbers(list(range(101)), least=0.5)
    >>> baseline.centre, round(baseline.sigma, 1), baseline.quantiles[-1]
    (50.0, 34.1, 100.0)
    """
    data = np.asarray(values, np.float64)
    n = len(data)
    if n < LEAST_FRAMES or not np.isfinite(data).all():
        raise ValueError(f"a baseline wants at least {LEAST_FRAMES} finite values, got {n}")
    quantiles = np.quantile(data, np.linspace(0, 1, min(n, MOST_QUANTILES)))
    low, centre, high = np.quantile(data, (0.1587, 0.5, 0.8413))
    sigma = max(least, float(high - low) / 2)
    first, third = np.quantile(data, (0.25, 0.75))
    # The mean excess of an exponential tail that leads from a quartile to the extreme of n values.
    tail = max(float(quantiles[-1] - third), float(first - quantiles[0])) / math.log(max(4.0, n / 4))
    return Numbers(
        frames=n,
        quantiles=[float(q) for q in quantiles],
        centre=float(centre),
        sigma=sigma,
        least=least,
        tail=max(tail, sigma / 2),
        correlation=correlation(data) if ordered and n >= LEAST_FOR_CORRELATION else 1.0,
    )


def correlation(values: Values) -> float:
    """Variance of the mean of values in a row over that of independent ones: 1 + 2 (sum of autocorrelations).

    The sum ends at the first autocorrelation that could be chance (Geyer, Statist. Sci. 7, 1992, in a simple form).

    >>> correlation(np.random.default_rng(0).normal(size=500))
    1.0
    >>> 3 < correlation(np.repeat(np.random.default_rng(0).normal(size=100), 5)) < 7
    True
    """
    n = len(values)
    centred = values - values.mean()
    power = float(centred @ centred)
    if power <= 0:
        return 1.0
    total = 0.0
    for lag in range(1, n // 4):
        rho = float(centred[lag:] @ centred[:-lag]) / power
        if rho < 2 / math.sqrt(n):
            break
        total += rho
    return min(1000.0, 1 + 2 * total)


def kinds(values: Sequence[int], names: Sequence[str]) -> Kinds:
    """The baseline of a signal of kinds from the kinds' numbers on good frames.

    >>> kinds([0, 0, 0, 1], ["none", "open"]).shares
    [0.75, 0.25]
    """
    counts = np.bincount(np.asarray(values, np.int64), minlength=len(names))
    return Kinds(frames=len(values), names=list(names), shares=[float(c) / len(values) for c in counts])


def share(x: float, baseline: Numbers) -> float:
    """The share of frames under `x` while nothing changes, between 0 and 1.

    Frames that are nearer than half of what matters in practice count half, as ties do: so a signal that hardly varies
    raises no alarm over nothing, and the mean share stays 1/2 whatever the distribution.

    >>> b = numbers(list(range(99)), least=0.5)
    >>> round(share(49, b), 4), round(share(98, b), 4), round(share(1000, b), 4)
    (0.5, 0.9888, 1.0)
    """
    reach = baseline.least / 2
    return (_under(x - reach, baseline, bisect_left) + _under(x + reach, baseline, bisect_right)) / 2


def _under(x: float, baseline: Numbers, place: Callable[[list[float], float], int]) -> float:
    """The share under `x`, or with `bisect_right` under or at it."""
    q, n = baseline.quantiles, baseline.frames
    if x < q[0] or x > q[-1]:
        excess = (q[0] - x if x < q[0] else x - q[-1]) / baseline.tail
        beyond = math.pow(1 + TAIL_SHAPE * excess, -1 / TAIL_SHAPE) / (n + 1)
        return beyond if x < q[0] else 1 - beyond
    at = place(q, x)  # quantiles before it
    inside = 0 < at < len(q)
    position = at - 1 + (x - q[at - 1]) / (q[at] - q[at - 1]) if inside else max(0, at - 1)
    return (1 + position / (len(q) - 1) * (n - 1)) / (n + 1)


def score(x: float, baseline: Numbers) -> float:
    """How far `x` is from the baseline, in sigmas, -4 to 4; NaN for a value that is not finite.

    >>> b = numbers(list(range(99)), least=0.5)
    >>> [round(score(x, b), 2) for x in (49, 49.1, 98, 1000, -1e9)], score(math.nan, b)
    ([0.0, 0.0, 2.28, 4.0, -4.0], nan)
    """
    if not math.isfinite(x):
        return math.nan
    p = min(1 - 1e-5, max(1e-5, share(x, baseline)))
    return min(MOST_SIGMAS, max(-MOST_SIGMAS, _NORMAL.inv_cdf(p)))
