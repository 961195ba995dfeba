"""The clocks of this box behind one small class, so that tests can bring their own."""

from __future__ import annotations

import time
from typing import Protocol

# The wall clock of a box without a battery starts in 1970 or at its image's build: anything before this release
# is certainly wrong.
NOT_BEFORE_TS = 1_790_000_000.0  # 2026-09-21


class Clock(Protocol):
    """Time as the daemon sees it."""

    def mono_ns(self) -> int:
        """Monotonic nanoseconds of this boot; for all differences."""

    def ts(self) -> float:
        """Seconds since 1970 UTC; for people."""

    def ok(self) -> bool:
        """False when `ts` is known to be wrong."""


class SystemClock:
    """The real clocks."""

    def mono_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def ts(self) -> float:
        """See `Clock`."""
        return time.time()

    def ok(self) -> bool:
        """See `Clock`."""
        return time.time() >= NOT_BEFORE_TS
