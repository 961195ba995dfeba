"""Population stability index: has the mix of kinds changed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.drift import settings
from edge.drift.detectors import Change, Sequential

# Added to each count, as a kind that was never seen has no logarithm (Jeffreys' prior).
PSEUDO_COUNT = 0.5


def index(counts: Sequence[int], baseline: settings.Kinds) -> float:
    """PSI of counts by kind against the baseline: sum of (share - expected) ln(share / expected); 0 is the same mix.

    >>> mix = settings.Kinds(frames=1000, names=["none", "open"], shares=[0.9, 0.1])
    >>> round(index([90, 10], mix), 4), round(index([50, 50], mix), 2)
    (0.0001, 0.88)
    """
    share, expected = (
        _smooth(np.array(counts, np.float64)),
        _smooth(baseline.frames * np.array(baseline.shares, np.float64)),
    )
    return float(((share - expected) * np.log(share / expected)).sum())


def _smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = counts + PSEUDO_COUNT
    return np.asarray(padded / padded.sum())


class Counts(msgspec.Struct):
    """Of each kind in the running window."""

    counts: list[int]


class Psi(Sequential[Counts]):
    """PSI over windows, one after the other, against fixed bins (Siddiqi, Credit Risk Scorecards, 2006).

    A point is the number of a kind. While nothing changes PSI / (1/window + 1/frames) is chi-square with kinds - 1
    degrees of freedom (Yurdakul and Naranjo, 2020), which gives the limit: not the customary 0.2, whose false alarms
    depend on the window.

    >>> rng = np.random.default_rng(5)
    >>> mix = settings.Kinds(frames=1000, names=["none", "open", "short"], shares=[0.8, 0.15, 0.05])
    >>> stream = [*rng.choice(3, 2000, p=[0.8, 0.15, 0.05]), *rng.choice(3, 1000, p=[0.4, 0.3, 0.3])]
    >>> test = Psi(settings.Psi(window=200, limit=0.2), mix)
    >>> [i for i, kind in enumerate(stream) if test.update(kind).value == "drift"][:2]
    [2199, 2399]
    """

    def __init__(self, how: settings.Psi, baseline: settings.Kinds) -> None:
        self._how = how
        self._baseline = baseline
        super().__init__()

    def _reset(self) -> Counts:
        return Counts([0] * len(self._baseline.names))

    def _add(self, x: float) -> Change | None:
        counts = self._state.counts
        kind = int(x)
        if not 0 <= kind < len(counts):
            raise ValueError(f"kind {kind} is none of the {len(counts)} of the baseline")
        counts[kind] += 1
        if sum(counts) < self._how.window:
            return None
        moved = index(counts, self._baseline)
        self._state = self._reset()
        return Change(self._how.window, moved) if moved > self._how.limit else None

    def _check(self, inner: Counts) -> None:
        super()._check(inner)
        if len(inner.counts) != len(self._baseline.names) or min(inner.counts) < 0:
            raise ValueError(f"not a state of this Psi: counts of {len(inner.counts)} kinds")
