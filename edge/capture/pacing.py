"""Keeps a source that could go faster at the pace of a line."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Says when the next frame is due: on a fixed schedule, without drift.

    A reader that comes late gets its frame at once, and the schedule then goes on from there: what was
    missed is not made up for in a burst, as a real line does not send its parts again.

    >>> pacer = Pacer(fps=1000)
    >>> pacer.wait(timeout_s=1), pacer.wait(timeout_s=0)
    (True, False)
    """

    def __init__(
        self,
        fps: float,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period_s = 1 / fps
        self._now, self._sleep = now, sleep
        self._due: float | None = None

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a frame is due; False, and the frame still to come, when that is after the time limit."""
        now = self._now()
        due = now if self._due is None else self._due
        if due - now > timeout_s:
            self._sleep(max(0.0, timeout_s))
            return False
        if due > now:
            self._sleep(due - now)
        late = self._now() - due > self._period_s
        self._due = (self._now() if late else due) + self._period_s
        return True
