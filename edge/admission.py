"""Whether a part can still be judged in time, by what judging has taken so far.

A running inference cannot be stopped, so a part is begun only when the time that nearly all parts need (99.9 %) is
still there. What is not begun is answered at once, as not OK.

To refuse is safe and so is to admit: an OK that comes late is not said as one. So the estimate may be hopeful where
the alternative is to refuse for ever. While parts are refused nothing may be measured any more, hence three ways out:
probes (`wants_probe`), a short memory (while it refuses, the last `RECENT` measurements count alone as soon as they
are there), and trials (now and then a part is admitted all the same).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Literal

Kind = Literal["frame", "settle"]

MOST = 4096  # measurements kept of each kind: 68 s of 60 frames a second
OLDEST_NS = 120_000_000_000  # older ones are forgotten, but for the last
LEAST = 64  # of them: a line that pauses over night does not begin anew

ENOUGH = 1000  # so many, and the 99.9th percentile is measured; fewer: the longest, and on top
MARGIN = 0.25  # of it, when there are none; in proportion less when there are some
FIRST = 20  # so many, and what was measured before the first part does not count any more

JOINT = 300  # parts of the same number of frames, measured as a whole: from then on that is believed
MOST_FRAMES = 16  # of one part, measured as a whole

RECENT = 8
PROBE_EVERY_NS = 250_000_000
TRIAL_EVERY = 16  # refusals in a row: a part is admitted that would fit by the usual time
BLIND_TRIAL_EVERY = 256  # and one that would not


class Admission:
    """Measured durations, and what they allow. Pure: times come as arguments, monotonic nanoseconds.

    >>> admission = Admission(frame_prior_ns=8_000_000, settle_prior_ns=4_000_000)
    >>> for k in range(2000):
    ...     admission.add_frame(k * 50_000_000, 5_000_000 + k % 100 * 10_000)
    ...     admission.add_settle(k * 50_000_000, 2_000_000)
    >>> admission.need_ns(frames=1) / 1e6
    7.99
    >>> admission.admits(0, deadline_ns=8_000_000, frames=1), admission.admits(1_000_000, 8_000_000, 1)
    (True, False)
    """

    def __init__(self, frame_prior_ns: int, settle_prior_ns: int) -> None:
        """Begin with what the warm-up took at most; 0: not known, so that the first parts are admitted."""
        self._frame, self._settle = _Durations(frame_prior_ns), _Durations(settle_prior_ns)
        self._joint: dict[int, _Durations] = {}
        self._refused_in_a_row = 0
        self._probes_left = 0
        self._probed_ns: int | None = None
        self.refused = 0  # parts, since the start
        self.trials = 0  # parts admitted against the estimate

    def add_frame(self, now_ns: int, took_ns: int) -> None:
        """One frame was judged by its recipe's pipeline, as part of a part or as a probe."""
        self._frame.add(now_ns, took_ns)
        self._probed_ns = now_ns
        self._probes_left = max(0, self._probes_left - 1)
        if self._refused_in_a_row and self._frame.shorten():
            self._joint.clear()  # of before; until there are new ones the frames' own times say how long a part takes

    def add_frames(self, now_ns: int, frames: int, took_ns: int) -> None:
        """All frames of one part were judged; beside `add_frame` for each, since n frames are rarely all slow."""
        if 2 <= frames <= MOST_FRAMES:
            self._joint.setdefault(frames, _Durations(0)).add(now_ns, took_ns)

    def add_settle(self, now_ns: int, took_ns: int) -> None:
        """A part was settled: fused, made durable, its answer handed over. Also one that was refused."""
        self._settle.add(now_ns, took_ns)
        if self._refused_in_a_row:
            self._settle.shorten()

    def p999_ns(self, kind: Kind) -> int:
        """What 99.9 % stay below; with few measurements the longest and a margin."""
        return (self._frame if kind == "frame" else self._settle).p999_ns()

    def need_ns(self, frames: int) -> int:
        """From the first frame's judgement to the answer, for a part of so many frames."""
        return self._frames_ns(frames) + self._settle.p999_ns()

    def latest_start_ns(self, deadline_ns: int, frames: int) -> int:
        """Until when one may wait for the frames of a part."""
        return deadline_ns - self.need_ns(frames)

    def fits(self, now_ns: int, deadline_ns: int | None, frames: int) -> bool:
        """Whether so many frames can be judged in time; only asked, nothing is noted."""
        return deadline_ns is None or now_ns + self.need_ns(frames) <= deadline_ns

    def admits(self, now_ns: int, deadline_ns: int | None, frames: int) -> bool:
        """Whether a part is judged. Asked once for each part; `fits` is for all other questions.

        Args:
            deadline_ns: when the answer has to be out; None: there is no deadline.
            frames: how many are to be judged.
        """
        if self.fits(now_ns, deadline_ns, frames):
            self._refused_in_a_row = self._probes_left = 0
            return True
        self._refused_in_a_row += 1
        if self._refused_in_a_row == 1:
            self._frame.fresh = self._settle.fresh = 0
        if self._may_try(now_ns, deadline_ns, frames):
            self.trials += 1
            return True
        self.refused += 1
        self._probes_left = RECENT
        return False

    def wants_probe(self, now_ns: int) -> bool:
        """Whether a frame of a refused part should be judged, only to measure. Ask when no trigger waits."""
        rested = self._probed_ns is None or now_ns - self._probed_ns >= PROBE_EVERY_NS
        return self._probes_left > 0 and rested

    def _may_try(self, now_ns: int, deadline_ns: int | None, frames: int) -> bool:
        if deadline_ns is None or now_ns >= deadline_ns or self._refused_in_a_row % TRIAL_EVERY:
            return False
        usual_ns = frames * self._frame.usual_ns() + self._settle.usual_ns()
        return now_ns + usual_ns <= deadline_ns or self._refused_in_a_row % BLIND_TRIAL_EVERY == 0

    def _frames_ns(self, frames: int) -> int:
        """The frames of one part together: as measured, or from the times of single frames.

        n frames that do not depend on each other need n times the mean, and their deviations from it add up as the
        root of their squares: the excess over the mean grows with the root of n only.
        """
        joint = self._joint.get(frames)
        if joint is not None and len(joint) >= JOINT:
            return joint.p999_ns()
        single_ns, mean_ns = self._frame.p999_ns(), min(self._frame.mean_ns(), self._frame.p999_ns())
        return round(frames * mean_ns + math.sqrt(frames) * (single_ns - mean_ns))


class _Durations:
    """The latest durations of one kind, bounded in number and age; every question is answered in constant time."""

    def __init__(self, prior_ns: int) -> None:
        self._prior_ns = prior_ns
        self._latest: deque[tuple[int, int]] = deque()  # when, how long
        self._sorted: list[int] = []
        self._sum_ns = 0
        self._short = False  # a fresh start after refusals: no margin, no prior
        self.fresh = 0  # measured since the first of the refusals in a row

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, now_ns: int, took_ns: int) -> None:
        self._latest.append((now_ns, took_ns))
        insort(self._sorted, took_ns)
        self._sum_ns += took_ns
        self.fresh += 1
        if len(self) > MOST:
            self._drop()
        while len(self) > LEAST and now_ns - self._latest[0][0] > OLDEST_NS:
            self._drop()

    def shorten(self) -> bool:
        """While parts are refused: forget all but the last few, as soon as that many are fresh."""
        if self.fresh < RECENT:
            return False
        while len(self) > RECENT:
            self._drop()
        self._short = True
        return True

    def p999_ns(self) -> int:
        count = len(self)
        if count >= ENOUGH:
            return self._sorted[math.ceil(0.999 * count) - 1]
        longest_ns = self._sorted[-1] if count else 0
        if self._short and count:
            return longest_ns
        if count < FIRST:
            longest_ns = max(longest_ns, self._prior_ns)
        return round(longest_ns * (1 + MARGIN * (1 - count / ENOUGH)))

    def mean_ns(self) -> float:
        return self._sum_ns / len(self) if self._latest else self._prior_ns

    def usual_ns(self) -> int:
        return self._sorted[len(self) // 2] if self._sorted else self._prior_ns

    def _drop(self) -> None:
        _, took_ns = self._latest.popleft()
        del self._sorted[bisect_left(self._sorted, took_ns)]
        self._sum_ns -= took_ns
