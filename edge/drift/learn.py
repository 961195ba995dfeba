"""A baseline from the line itself, for a product that was never calibrated: the first good frames of a camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.boxes import Float
from edge.drift import plan, signals
from edge.drift.baseline import LEAST_FRAMES
from edge.drift.settings import Autoencoder, DriftSettings

# A signal that was measured on fewer of the frames is not watched: nobody knows what it usually is.
LEAST_SHARE = 0.9


@dataclass(frozen=True)
class Learning:
    """How a baseline is learned.

    Attributes:
        frames: good ones to learn from, at least 12: more make the limits tighter.
        arl0: frames between false alarms on average, of all signals together.
    """

    frames: int = 500
    arl0: float = plan.ARL0

    def __post_init__(self) -> None:
        if self.frames < LEAST_FRAMES + 2 or self.arl0 < 1:
            raise ValueError(f"a baseline wants at least {LEAST_FRAMES + 2} frames and an ARL0 of 1, got {self}")


@dataclass
class Learner:
    """Collects good frames' signals until they make a baseline.

    Attributes:
        only: just these signals are learned, of frames that have them all; empty: whatever is measured.

    >>> learner = Learner(Learning(frames=12), ("open",), 0.3)
    >>> for k in range(12):
    ...     learner.add({"brightness": 100 + k % 3}, None)
    >>> learner.done, sorted(learner.settings(64, 48, "learned").signals)
    (True, ['brightness'])
    """

    how: Learning
    classes: Sequence[str]
    least_confidence: float
    only: Sequence[str] = ()
    rows: list[Mapping[str, float]] = field(default_factory=list)
    means: list[plan.Means] = field(default_factory=list)

    def add(self, values: Mapping[str, float], features: Float | None) -> None:
        """Take a good frame's signals, and its features (1, C, h, w) where there are any."""
        wanted = {name: values[name] for name in self.only if name in values} if self.only else dict(values)
        if len(wanted) < len(self.only) or not all(math.isfinite(value) for value in wanted.values()):
            return
        self.rows.append(wanted)
        if features is not None and not self.only:
            means = signals.channel_means(features)
            self.means += [means] if np.isfinite(means).all() else []

    @property
    def done(self) -> bool:
        """Whether there are enough."""
        return len(self.rows) >= self.how.frames

    def settings(
        self, width: int, height: int, origin: str, autoencoder: Autoencoder | None = None, ae_every: int = 1
    ) -> DriftSettings:
        """The baseline, of frames of this size; `autoencoder` looked at each `ae_every`-th of them, if at all."""
        names = [name for name in plan.PLANS if self._measured(name)]
        values = {name: [row[name] for row in self.rows if name in row] for name in names}
        expected = None
        same = {len(means) for means in self.means}
        if len(same) == 1 and len(self.means) >= LEAST_SHARE * len(self.rows):
            expected, values["feature_distance"] = plan.expected_features(np.array(self.means))
        measured = plan.Measured(
            values,
            self.classes,
            width,
            height,
            ordered=True,
            ae_every=ae_every,
            features=expected,
            autoencoder=autoencoder if "ae_error" in values else None,
        )
        return plan.settings_for(measured, origin, self.how.arl0, self.least_confidence)

    def _measured(self, name: str) -> bool:
        seen = sum(name in row for row in self.rows)
        return seen >= LEAST_FRAMES if name == "ae_error" else seen >= LEAST_SHARE * len(self.rows)
