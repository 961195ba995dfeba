"""Limits of the detectors for a wanted average run length without change (ARL0).

Every formula is for independent normal points of mean 0 and deviation 1, which scores are while nothing changes. The
baseline's own error is allowed for by `baseline_error`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from edge.drift.settings import Side

# Standard errors of the baseline that a detector allows for. With 1.5 baselines of 60 and 500 frames that the line gave
# itself keep the wanted ARL0 on average over baselines, those of 15 frames about half of it (`tools arl` measures it).
# The frames of a data set are a sample of their own beside, and its mean is as far again from the line's.
BASELINE_ERRORS = 1.5
DATA_SET_ERRORS = 2.5
LEARNT_ERRORS = 0.5  # fewer for a detector that learns the mean from the stream as well

# The normal distribution by table: exact to 5 parts in 100,000 in the tails, and numpy has none.
_GRID = np.linspace(-8, 8, 4001)
_CDF = np.array([NormalDist().cdf(float(x)) for x in _GRID])


def baseline_error(frames: float, errors: float = BASELINE_ERRORS) -> float:
    """How far the mean score may be off because the baseline rests on so many frames only, in sigmas.

    Without it a baseline of 500 frames would divide the ARL0 of a CUSUM by three, one of 60 by thirty (Jensen et al.,
    J. Qual. Technol. 38, 2006, on what estimated parameters do to charts).

    >>> baseline_error(225)
    0.1
    """
    return errors / math.sqrt(frames)


def cusum_arl(limit: float, allowance: float, side: Side) -> float:
    """ARL0 of a CUSUM, by Siegmund's corrected diffusion (Sequential Analysis, 1985).

    >>> round(cusum_arl(4.77, 0.5, "both"))
    371
    """
    reach = 2 * allowance * (limit + 1.166)
    one_sided = (math.exp(reach) - reach - 1) / (2 * allowance**2)
    return one_sided / 2 if side == "both" else one_sided


def cusum_limit(arl0: float, allowance: float, side: Side) -> float:
    """The limit of a CUSUM; also of a Page-Hinkley test, whose mean moves little.

    >>> round(cusum_limit(1e6, 0.5, "both"), 2)
    12.65
    """
    return _solve(lambda limit: cusum_arl(limit, allowance, side), arl0, 0.1, 400.0, steps=40)


def ewma_arl(limit: float, weight: float, side: Side, states: int = 61) -> float:
    """ARL0 of an EWMA chart, by a Markov chain (Brook and Evans, Biometrika 59, 1972; Lucas and Saccucci,
    Technometrics 32, 1990). Limits are those of a long run.

    Args:
        limit: in sigmas of the weighted mean.
        states: of the chain; fewer give a shorter ARL0, and so a limit on the safe side.

    >>> round(ewma_arl(2.814, 0.1, "both", states=201))
    499
    """
    height = limit * math.sqrt(weight / (2 - weight))
    width = 2 * height / states
    middles = width * (np.arange(states) + 0.5) - height
    edges = width * np.arange(states + 1) - height
    upper = (edges[None, :] - (1 - weight) * middles[:, None]) / weight  # (from, edge)
    cumulative = np.interp(upper, _GRID, _CDF)
    moves = np.diff(cumulative, axis=1)
    if side != "both":  # a one-sided chart stays in its lowest state instead of leaving below
        moves[:, 0] += cumulative[:, 0]
    lengths = np.linalg.solve(np.eye(states) - moves, np.ones(states))
    return float(np.interp(0.0, middles, lengths))


def ewma_limit(arl0: float, weight: float, side: Side) -> float:
    """The limit of an EWMA chart.

    >>> round(ewma_limit(500, 0.1, "both"), 2)
    2.82
    """
    return _solve(lambda limit: ewma_arl(limit, weight, side), arl0, 1.0, 7.0, steps=14)


def adwin_delta(arl0: float) -> float:
    """Chance of a false cut that an ADWIN is set to, for windows looked at every 8 points.

    The theorem's bound (ARL0 of at least 8 / delta) is so wide that runs would be a thousand times longer than wanted,
    and changes found late. This is fitted to simulated runs of uniform points: ARL0 of 10,500 at 0.5, 90,000 at 0.1 and
    1,800,000 at 0.01, much the same for priors of 15 to 500 points (`tools arl` measures it).

    >>> round(adwin_delta(1.2e6), 4)
    0.0136
    """
    return min(0.5, 0.1 * math.pow(90_000 / arl0, 1 / 1.3))


def psi_limit(arl0: float, window: int, frames: int, kinds: int) -> float:
    """The limit of a PSI: a chi-square quantile (Wilson and Hilferty, PNAS 17, 1931) times 1/window + 1/frames.

    >>> round(psi_limit(1e6, 200, 1000, 4), 3)
    0.121
    """
    z = NormalDist().inv_cdf(1 - min(0.5, window / arl0))
    degrees = kinds - 1
    quantile = degrees * (1 - 2 / (9 * degrees) + z * math.sqrt(2 / (9 * degrees))) ** 3
    return quantile * (1 / window + 1 / frames)


def _solve(arl: Callable[[float], float], wanted: float, low: float, high: float, steps: int) -> float:
    """The least limit between `low` and `high` whose run length is at least the wanted one."""
    if arl(low) >= wanted:
        return low
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if arl(middle) >= wanted else (middle, high)
    return high
