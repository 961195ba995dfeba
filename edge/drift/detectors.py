"""Sequential detectors of a change in the mean of a stream: one point at a time, constant memory, scale-free.

Points are scores against a baseline (mean 0, standard deviation 1 while nothing changes; see `edge.drift.baseline`), so
one limit serves every signal. A detector that has found a change begins anew with the next point. Its state is plain
JSON. A point that is no number changes nothing but is counted, and a row of them is an outcome of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from edge.drift import settings

# That many points in a row that are no numbers: what feeds the detector is broken.
MOST_INVALID = 20
LONGEST = 1 << 53  # counts are JSON numbers


class Outcome(str, Enum):
    """What a detector says of a point."""

    CALM = "calm"
    DRIFT = "drift"  # a change is certain enough; the detector's `change` tells of it
    SKIPPED = "skipped"  # the point is no number and changed nothing
    INVALID = "invalid"  # too many such points in a row: calm cannot be claimed


@dataclass(frozen=True)
class Change:
    """What a detector knows of the change it has found.

    Attributes:
        points: how many points ago it began, as far as this detector can tell; 1 is the newest.
        shift: by how much the mean has moved since, in sigmas of the score.
    """

    points: int
    shift: float


State = TypeVar("State", bound=msgspec.Struct)


class Sequential(ABC, Generic[State]):
    """What all detectors have in common: outcomes, points that are no numbers, the state.

    Attributes:
        change: the last change found, None before.
        seen, skipped: points taken, and points that were no numbers.
    """

    def __init__(self) -> None:
        self.change: Change | None = None
        self.seen = 0
        self.skipped = 0
        self._row = 0  # of points that are no numbers
        self._state = self._reset()

    @abstractmethod
    def _reset(self) -> State:
        """The state before the first point."""

    @abstractmethod
    def _add(self, x: float) -> Change | None:
        """Take one point; the change if one is certain enough now."""

    def update(self, x: float) -> Outcome:
        """Take one point."""
        if not math.isfinite(x):
            self.skipped += 1
            self._row += 1
            return Outcome.INVALID if self._row >= MOST_INVALID else Outcome.SKIPPED
        self._row = 0
        self.seen += 1
        found = self._add(x)
        if found is None:
            return Outcome.CALM
        self.change = found
        self._state = self._reset()
        return Outcome.DRIFT

    def state(self) -> dict[str, Any]:
        """All that the next points depend on, as JSON has it."""
        inner = msgspec.to_builtins(self._state)
        return {"seen": self.seen, "skipped": self.skipped, "row": self._row, "inner": inner}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is not a state of this kind of detector; the detector stays as it was.
        """
        try:
            kept = msgspec.convert(state, _Kept)
            inner = msgspec.convert(kept.inner, type(self._state))
            self._check(inner)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a state of {type(self).__name__}: {error}") from error
        self.seen, self.skipped, self._row, self._state = kept.seen, kept.skipped, kept.row, inner

    def _check(self, inner: State) -> None:
        """Raise ValueError when the state cannot come from this detector; the types of its fields are right."""
        if not _finite(msgspec.to_builtins(inner)):
            raise ValueError(f"not a state of {type(self).__name__}: it holds numbers that are not finite")


class _Kept(msgspec.Struct):
    seen: int
    skipped: int
    row: int
    inner: dict[str, Any]


def _finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_finite(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(_finite(v) for v in value)
    return not isinstance(value, float) or math.isfinite(value)


class Excursion(msgspec.Struct):
    """One side of a cumulative sum: its height, and the points and their sum since it was last zero."""

    height: float = 0.0
    points: int = 0
    total: float = 0.0

    def add(self, step: float, x: float) -> None:
        """Go up by `step` for a point `x`, never below zero."""
        height = self.height + step
        if height <= 0:
            self.height, self.points, self.total = 0.0, 0, 0.0
        else:
            self.height, self.points, self.total = height, self.points + 1, self.total + x

    def change(self) -> Change:
        """The change, if it began where the sum was last zero."""
        return Change(self.points, self.total / max(1, self.points))


class Sides(msgspec.Struct):
    """The state of a two-sided sum."""

    up: Excursion = msgspec.field(default_factory=Excursion)
    down: Excursion = msgspec.field(default_factory=Excursion)


class Cusum(Sequential[Sides]):
    """Tabular CUSUM: sums of what exceeds an allowance, never below zero (Page, Biometrika 41, 1954).

    The quickest of all detectors for a shift of twice the allowance at a given rate of false alarms (Moustakides, Ann.
    Statist. 14, 1986). For signals that jump: a lamp, a white balance.

    >>> import numpy as np
    >>> stream = np.random.default_rng(1).normal(size=3000)
    >>> stream[2000:] += 1
    >>> cusum = Cusum(settings.Cusum(allowance=0.5, limit=10))
    >>> [i for i, x in enumerate(stream) if cusum.update(x) is Outcome.DRIFT][:2]
    [2016, 2028]
    """

    def __init__(self, how: settings.Cusum) -> None:
        self._how = how
        super().__init__()

    def _reset(self) -> Sides:
        return Sides()

    def _add(self, x: float) -> Change | None:
        s, how = self._state, self._how
        if how.side != "down":
            s.up.add(x - how.allowance, x)
        if how.side != "up":
            s.down.add(-x - how.allowance, x)
        higher = s.up if s.up.height >= s.down.height else s.down
        return higher.change() if higher.height > how.limit else None


class PageHinkleyState(Sides):
    """The sums, and the running mean they are taken against."""

    points: float = 0.0
    total: float = 0.0


class PageHinkley(Sequential[PageHinkleyState]):
    """Page-Hinkley test: a cumulative sum against the running mean (Hinkley, Biometrika 58, 1971).

    The mean starts as `prior` points of zero, what the baseline says, and learns from the stream, which takes out the
    error of a baseline of few frames. It may leave zero by no more than three standard errors of the baseline: it
    corrects the baseline and cannot follow a slow drift. For signals whose level the baseline knows least well.

    >>> import numpy as np
    >>> stream = np.random.default_rng(2).normal(size=3000)
    >>> stream[2000:] -= 1
    >>> test = PageHinkley(settings.PageHinkley(allowance=0.5, limit=10, prior=500, side="down"))
    >>> [i for i, x in enumerate(stream) if test.update(x) is Outcome.DRIFT][:2]
    [2045, 2064]
    """

    def __init__(self, how: settings.PageHinkley) -> None:
        self._how = how
        self._reach = 3 / math.sqrt(how.prior) if how.prior > 0 else math.inf
        super().__init__()

    def _reset(self) -> PageHinkleyState:
        return PageHinkleyState()

    def _add(self, x: float) -> Change | None:
        s, how = self._state, self._how
        s.points, s.total = s.points + 1, s.total + x
        mean = s.total / (s.points + how.prior)
        mean = min(self._reach, max(-self._reach, mean))
        if how.side != "down":
            s.up.add(x - mean - how.allowance, x)
        if how.side != "up":
            s.down.add(mean - x - how.allowance, x)
        higher = s.up if s.up.height >= s.down.height else s.down
        return higher.change() if higher.height > how.limit else None


class EwmaState(msgspec.Struct):
    """The weighted mean, its points, and the points and their sum since it last changed sides."""

    mean: float = 0.0
    points: int = 0
    run: int = 0
    total: float = 0.0


class Ewma(Sequential[EwmaState]):
    """Exponentially weighted moving average chart (Roberts, Technometrics 1, 1959).

    The limit is in sigmas of the weighted mean, which are small for the first points: weight / (2 - weight) times
    1 - (1 - weight)^(2 points) is its variance, so a change that is there from the start is found at once. A change
    began where the mean last crossed zero (Nishina, Qual. Reliab. Engng. Int. 8, 1992). For small lasting shifts.

    >>> import numpy as np
    >>> stream = np.random.default_rng(3).normal(size=3000)
    >>> stream[2000:] += 0.7
    >>> chart = Ewma(settings.Ewma(weight=0.1, limit=4.5))
    >>> [i for i, x in enumerate(stream) if chart.update(x) is Outcome.DRIFT][:2]
    [2039, 2054]
    """

    def __init__(self, how: settings.Ewma) -> None:
        self._how = how
        super().__init__()

    def _reset(self) -> EwmaState:
        return EwmaState()

    def _add(self, x: float) -> Change | None:
        s, how = self._state, self._how
        before = s.mean
        s.mean += how.weight * (x - s.mean)
        s.points = min(s.points + 1, LONGEST)
        s.run, s.total = (1, x) if before * s.mean <= 0 else (s.run + 1, s.total + x)
        variance = how.weight / (2 - how.weight) * (1 - (1 - how.weight) ** (2 * s.points))
        allowed = how.limit * math.sqrt(variance) + how.allowance
        height = abs(s.mean) if how.side == "both" else s.mean if how.side == "up" else -s.mean
        return Change(s.run, s.total / s.run) if height > allowed else None
