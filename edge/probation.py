"""A new bundle in charge: after enough healthy parts and minutes it stays; out of its limits it goes.

Pure: times come as arguments, monotonic nanoseconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Set
from dataclasses import dataclass

from edge.config import TrialSettings
from edge.event import TrialCounts

USUAL_PARTS = 500  # of the bundle before, which a new one is compared with
USUAL_LEAST = 50  # fewer say nothing about a share
FRAMES = 64  # whose time counts
FRAMES_LEAST = 16
SURE = 2.6  # standard errors that a share must be above its limit before the end: one in 200 by chance
FAULTS_IN_A_ROW = 3  # frames that its models could not be run on


class Usual:
    """How parts usually end, and how long a frame usually takes."""

    def __init__(self, not_ok_share: float | None = None, frame_ms: float | None = None) -> None:
        """Begin with what an earlier run found, if it is known."""
        self._given = not_ok_share, frame_ms
        self._not_ok: deque[bool] = deque(maxlen=USUAL_PARTS)
        self._ms: deque[float] = deque(maxlen=FRAMES)

    def part(self, not_ok: bool) -> None:
        """A part ended."""
        self._not_ok.append(not_ok)

    def frame(self, ms: float) -> None:
        """A frame was judged within so many milliseconds."""
        self._ms.append(ms)

    def fault(self, text: str) -> None:
        """A frame could not be judged: nothing that is usual."""

    @property
    def not_ok_share(self) -> float | None:
        """Of the latest parts; None while there were too few."""
        enough = len(self._not_ok) >= USUAL_LEAST
        return sum(self._not_ok) / len(self._not_ok) if enough else self._given[0]

    @property
    def frame_ms(self) -> float | None:
        """The median of the latest frames; None while there were too few."""
        return _median(self._ms) if len(self._ms) >= FRAMES_LEAST else self._given[1]


@dataclass(frozen=True)
class Return:
    """Why a bundle on trial goes: a word for machines, a sentence for people."""

    code: str
    text: str


class Probation:
    """One bundle on trial."""

    def __init__(self, limits: TrialSettings, usual: Usual, began_ns: int, starts: int) -> None:
        """`usual`: of the bundle before. `starts`: of the daemon under this trial, this one included."""
        self._limits = limits
        self._usual_not_ok, self._usual_ms = usual.not_ok_share, usual.frame_ms
        self._began_ns = began_ns
        self._ended_ns: int | None = None
        self._starts = starts
        self._parts = self._not_ok = self._faults = 0
        self._fault = ""
        self._ms: deque[float] = deque(maxlen=FRAMES)

    def part(self, not_ok: bool) -> None:
        """A part ended with a verdict, or with a loss that a slow bundle makes."""
        self._parts += 1
        self._not_ok += not_ok

    def frame(self, ms: float) -> None:
        """A frame was judged within so many milliseconds."""
        self._faults = 0
        self._ms.append(ms)

    def fault(self, text: str) -> None:
        """A frame could not be judged: its models failed."""
        self._faults += 1
        self._fault = text

    def wrong(self, drifted: Set[str]) -> Return | None:
        """Why it has to go; None as long as it may stay.

        Args:
            drifted: signals of cameras that moved since it came, as people read them.
        """
        if self._faults >= FAULTS_IN_A_ROW:
            return Return("fault", f"{self._faults} frames in a row could not be judged, last: {self._fault}")
        if (why := self._too_slow()) or (why := self._too_many_rejects()):
            return why
        if drifted:
            return Return("drift", f"since it is in charge drift was found: {', '.join(sorted(drifted))}")
        return None

    def _too_slow(self) -> Return | None:
        if self._usual_ms is None or len(self._ms) < FRAMES_LEAST:
            return None
        ms, limit_ms = _median(self._ms), self._limits.latency_factor * self._usual_ms
        if ms <= limit_ms:
            return None
        text = f"a frame takes {ms:.1f} ms, the bundle before took {self._usual_ms:.1f} ms, and trial.latency_factor"
        return Return("latency", f"{text} allows {limit_ms:.1f} ms")

    def _too_many_rejects(self) -> Return | None:
        """Before the end only what can hardly be chance."""
        if self._usual_not_ok is None or self._parts < USUAL_LEAST:
            return None
        share, limit = self._not_ok / self._parts, self._usual_not_ok + self._limits.reject_rise
        margin = 0.0 if self._parts >= self._limits.parts else SURE * math.sqrt(share * (1 - share) / self._parts)
        if share - margin <= limit:
            return None
        text = f"{share:.0%} of {self._parts} parts were not OK, before it were {self._usual_not_ok:.0%}"
        return Return("rejects", f"{text}, and trial.reject_rise allows {limit:.0%}")

    def passed(self, now_ns: int) -> bool:
        """Whether it has been healthy for long enough to stay."""
        return self._parts >= self._limits.parts and self._minutes(now_ns) >= self._limits.minutes

    def end(self, now_ns: int) -> None:
        """It is over: its counts stand still."""
        self._ended_ns = now_ns if self._ended_ns is None else self._ended_ns

    def _minutes(self, now_ns: int) -> float:
        return ((now_ns if self._ended_ns is None else self._ended_ns) - self._began_ns) / 60e9

    def counts(self, now_ns: int) -> TrialCounts:
        """As they are told."""
        return TrialCounts(
            parts=self._parts,
            wanted=self._limits.parts,
            minutes=round(self._minutes(now_ns), 1),
            wanted_minutes=self._limits.minutes,
            starts=self._starts,
            not_ok_share=round(self._not_ok / self._parts, 4) if self._parts else 0.0,
            usual_not_ok_share=_rounded(self._usual_not_ok),
            frame_ms=round(_median(self._ms), 3) if self._ms else 0.0,
            usual_frame_ms=_rounded(self._usual_ms),
        )


def _median(values: deque[float]) -> float:
    return sorted(values)[len(values) // 2]


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None else None
