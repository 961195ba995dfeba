"""What the daemon knows of its own well-being: stage times and memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge.event import StageTimes

WINDOW = 4096  # inspections; 2 minutes at 30 a second


class StageWindow:
    """Times of the latest inspections by stage, in constant memory.

    >>> window = StageWindow()
    >>> for ms in (1.0, 2.0, 9.0):
    ...     window.add({"gate": ms})
    >>> window.summary()["gate"].p50
    2.0
    """

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._stages: dict[str, deque[float]] = {}
        self.inspections = 0

    def add(self, stage_ms: Mapping[str, float]) -> None:
        """Take in one inspection's stages, milliseconds."""
        self.inspections += 1
        for stage, ms in stage_ms.items():
            self._stages.setdefault(stage, deque(maxlen=self._size)).append(ms)

    def note(self, stage: str, ms: float) -> None:
        """Take in the time of what is no stage of an inspection, but goes on beside them."""
        self._stages.setdefault(stage, deque(maxlen=self._size)).append(ms)

    def summary(self) -> dict[str, StageTimes]:
        """Percentiles of each stage over the window."""
        return {stage: stage_times(np.array(times)) for stage, times in self._stages.items()}

    def reset(self) -> None:
        """Begin the next period."""
        self._stages.clear()
        self.inspections = 0


def stage_times(ms: np.ndarray[tuple[int], np.dtype[np.float64]]) -> StageTimes:
    """Median, 99th percentile and maximum of a stage's times, milliseconds."""
    p50, p99 = np.percentile(ms, [50, 99])
    return StageTimes(p50=round(float(p50), 3), p99=round(float(p99), 3), max=round(float(ms.max()), 3))


def rss_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
