"""Splits the time of one inspection into stages."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """Times consecutive stages; a lap ends one and begins the next.

    >>> ticks = iter([0, 2_000_000, 5_000_000])
    >>> watch = Stopwatch(lambda: next(ticks))
    >>> watch.lap("gate"), watch.lap("detect"), watch.stage_ms
    (None, None, {'gate': 2.0, 'detect': 3.0})
    """

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lap_began_ns = clock_ns()
        self.stage_ms: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """The time since the last lap was spent on `stage`, milliseconds."""
        now = self._clock_ns()
        self.stage_ms[stage] = (now - self._lap_began_ns) / 1e6
        self._lap_began_ns = now
