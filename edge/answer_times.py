"""How long the line waited for its answers: percentiles and histogram of any number of them, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Buckets grow by 4 %, so that the middle of one (by ratio) is within 2 % of all in it.
GROWTH = 1.04
SHORTEST_MS = 0.01  # shorter ones are counted as this long
LONGEST_MS = 3_600_000.0  # longer ones are counted in the last bucket; the maximum is exact all the same
_LOG_GROWTH = math.log(GROWTH)
BUCKETS = math.ceil(math.log(LONGEST_MS / SHORTEST_MS) / _LOG_GROWTH) + 1


@dataclass(frozen=True)
class Percentiles:
    """Of so many times, milliseconds: within 2 %, the maximum exact. All 0 where there is none."""

    count: int
    p50: float
    p99: float
    p999: float
    max: float


class Histogram:
    """Counts times by length on a logarithmic scale; in constant memory.

    >>> times = Histogram()
    >>> for ms in (10.0, 11.0, 12.0, 90.0):
    ...     times.add(ms)
    >>> round(times.percentile(50), 1), times.percentile(99.9), times.over(50)
    (11.0, 90.0, 1)
    """

    def __init__(self) -> None:
        self._counts = [0] * BUCKETS
        self.count = 0
        self.min_ms = math.inf
        self.max_ms = 0.0

    def add(self, ms: float) -> None:
        """Take in one time.

        Raises:
            ValueError: it is negative or no number.
        """
        if not 0 <= ms < math.inf:
            raise ValueError(f"a time is a number of milliseconds from 0 on, got {ms}")
        self._counts[bucket_of(ms)] += 1
        self.count += 1
        if ms < self.min_ms:
            self.min_ms = ms
        if ms > self.max_ms:
            self.max_ms = ms

    def percentile(self, percent: float) -> float:
        """The time that this share of all stay within, by the nearest rank; 0 without any.

        Args:
            percent: above 0, to 100.
        """
        if not 0 < percent <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100, got {percent}")
        # The share is rounded before its ceiling is taken: 99.9 % of 1000 is not 999.0000000000001.
        rank = math.ceil(round(self.count * percent / 100, 6))
        if rank >= self.count:
            return self.max_ms
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(max(_middle_ms(index), self.min_ms), self.max_ms)
        return self.max_ms

    def percentiles(self) -> Percentiles:
        """What a health message tells."""
        p50, p99, p999 = (round(self.percentile(percent), 3) for percent in (50, 99, 99.9))
        return Percentiles(self.count, p50, p99, p999, round(self.max_ms, 3))

    def over(self, ms: float) -> int:
        """How many were longer than this: whether any is exact, of those within 4 % of it some may be missed."""
        return max(1, sum(self._counts[bucket_of(ms) + 1 :])) if ms < self.max_ms else 0

    def bars(self) -> list[tuple[float, float, int]]:
        """From, to (milliseconds) and count of each bucket between the shortest and the longest; empty ones too."""
        used = [index for index, count in enumerate(self._counts) if count]
        if not used:
            return []
        return [(_edge_ms(i), _edge_ms(i + 1), self._counts[i]) for i in range(used[0], used[-1] + 1)]


class AnswerTimes:
    """Times from trigger to answer: of the whole run, and of the window since the last `reset_window`.

    >>> times = AnswerTimes()
    >>> times.add(12.5)
    >>> times.reset_window().max, times.window.count, times.whole.count
    (12.5, 0, 1)
    """

    def __init__(self) -> None:
        self.whole, self.window = Histogram(), Histogram()

    def add(self, ms: float) -> None:
        """Take in one answer."""
        self.whole.add(ms)
        self.window.add(ms)

    def reset_window(self) -> Percentiles:
        """The window's percentiles; a new one begins."""
        told = self.window.percentiles()
        self.window = Histogram()
        return told


def bucket_of(ms: float) -> int:
    """The index of the bucket that counts a time of so many milliseconds.

    >>> bucket_of(0.0), bucket_of(0.0105), bucket_of(1e12) == BUCKETS - 1
    (0, 1, True)
    """
    if ms <= SHORTEST_MS:
        return 0
    return min(BUCKETS - 1, int(math.log(ms / SHORTEST_MS) / _LOG_GROWTH))


def _edge_ms(index: int) -> float:
    return float(SHORTEST_MS * GROWTH**index)


def _middle_ms(index: int) -> float:
    return float(SHORTEST_MS * GROWTH ** (index + 0.5))
