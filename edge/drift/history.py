"""The last frames' signals, to say since when something moved and which frames show it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge.drift.report import FrameRef
from edge.records import Frame

LENGTH = 1024  # frames
BEST = 3
# A change is looked for no nearer to the newest frame than this.
LEAST_POINTS = 3


class History:
    """A ring of the last 1024 frames: references, values and scores by signal; NaN where not measured."""

    def __init__(self, signals: tuple[str, ...]) -> None:
        self._column = {name: k for k, name in enumerate(signals)}
        self._frames: deque[tuple[int, str, float]] = deque(maxlen=LENGTH)
        self._values = np.full((LENGTH, len(signals)), np.nan)
        self._scores = np.full((LENGTH, len(signals)), np.nan)
        self._next = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, frame: Frame, values: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Remember a frame, forget the oldest."""
        self._frames.append((frame.number, frame.name, frame.captured_ts))
        self._values[self._next] = [values.get(name, math.nan) for name in self._column]
        self._scores[self._next] = [scores.get(name, math.nan) for name in self._column]
        self._next = (self._next + 1) % LENGTH

    def columns(self, signal: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and scores of a signal, (frames,) each, the oldest first."""
        rows = (np.arange(len(self)) + self._next - len(self)) % LENGTH
        k = self._column[signal]
        return self._values[rows, k], self._scores[rows, k]

    def ref(self, index: int, signal: str) -> FrameRef:
        """Frame `index`, counted from the oldest."""
        row, k = (self._next - len(self) + index) % LENGTH, self._column[signal]
        number, name, captured_ts = self._frames[index]
        value, score = float(self._values[row, k]), float(self._scores[row, k])
        return FrameRef(
            number=number,
            name=name,
            captured_ts=captured_ts,
            value=value if math.isfinite(value) else 0.0,
            score=score if math.isfinite(score) else 0.0,
        )


def change_point(scores: NDArray[np.float64]) -> int | None:
    """Where the mean most likely rose from 0 to what it has been since: index of the first point after the change.

    Maximum likelihood for normal points of known mean and deviation before: (sum since)^2 / points since is greatest
    there (Pignatiello and Samuel, J. Qual. Technol. 33, 2001). NaN is left out.

    Returns:
        None when there are too few points, or none that rose.

    >>> change_point(np.array([0.1, -0.2, 0.1, 1.2, 0.8, 1.1]))
    3
    """
    at = np.flatnonzero(np.isfinite(scores))
    if len(at) < LEAST_POINTS:
        return None
    sums = scores[at][::-1].cumsum()  # of the newest 1, 2, ... points
    points = np.arange(1, len(at) + 1)
    likelihood = np.where(sums > 0, sums**2 / points, -1.0)
    likelihood[: LEAST_POINTS - 1] = -1
    best = int(likelihood.argmax())
    return int(at[len(at) - 1 - best]) if likelihood[best] > 0 else None


def clearest(scores: NDArray[np.float64], since: int) -> list[int]:
    """The frames from `since` on with the highest scores, the clearest first."""
    later = np.nan_to_num(scores[since:], nan=-np.inf)
    best = np.argsort(-later, kind="stable")[:BEST]
    return [since + int(k) for k in best if np.isfinite(later[k])]
