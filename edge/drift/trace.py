"""What a monitor saw over a run of frames, for a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge.drift.report import Event


@dataclass(frozen=True)
class Mark:
    """An event at a frame, counted from 0."""

    at: int
    event: Event


@dataclass
class Trace:
    """Scores frame by frame, and what was told when.

    >>> trace = Trace()
    >>> trace.add("a.png", {"brightness": 0.5}, [])
    >>> trace.add("b.png", {}, [])
    >>> trace.column("brightness").tolist()
    [0.5, nan]
    """

    names: list[str] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def add(self, name: str, scores: Mapping[str, float], events: Sequence[Event]) -> None:
        """Note a frame."""
        self.marks += [Mark(len(self.names), event) for event in events]
        self.names.append(name)
        self.scores.append(dict(scores))

    @property
    def signals(self) -> list[str]:
        """Those that were watched at some time, in their own order."""
        return list(dict.fromkeys(name for scores in self.scores for name in scores))

    def column(self, signal: str) -> NDArray[np.float64]:
        """A signal's scores, (frames,); NaN where it was not measured."""
        return np.array([scores.get(signal, math.nan) for scores in self.scores], np.float64)
