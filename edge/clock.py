"""The clocks of this box behind small classes, so that tests can bring their own; and the beat of a thread by them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

# The wall clock of a box without a battery starts in 1970 or at its image's build: anything before this release is
# certainly wrong. A wheel also brings the time of the commit that it was built from (`setup.py`), so that nobody has
# to remember to raise this number.
RELEASED_TS: Final = 1_790_000_000.0  # 2026-09-21
BUILT_FILE: Final = "built.txt"
# A floor beyond the year 2100 is a fault of whoever said it; believed, it would make every clock wrong for ever.
ABSURD_TS: Final = 4_102_444_800.0


class Clock(Protocol):
    """Time as the daemon sees it."""

    def mono_ns(self) -> int:
        """Monotonic nanoseconds of this boot; for all differences."""

    def ts(self) -> float:
        """Seconds since 1970 UTC; for people."""

    def ok(self) -> bool:
        """False when `ts` is known to be wrong."""


def not_before_ts(folder: Path = Path(__file__).parent) -> float:
    """Before when it certainly is not: the time of this release or build, seconds since 1970.

    >>> not_before_ts(Path("/nowhere")) == RELEASED_TS
    True
    """
    try:
        return _later(RELEASED_TS, float((folder / BUILT_FILE).read_text(encoding="ascii")))
    except (OSError, ValueError):  # a checkout has none; a damaged one is no reason not to start
        return RELEASED_TS


def _later(known_ts: float, ts: float) -> float:
    return ts if known_ts < ts < ABSURD_TS else known_ts


class SystemClock:
    """The real clocks. The wall clock is not believed while it is behind what is known to be past.

    >>> clock = SystemClock()
    >>> clock.raise_floor(4.1e9); clock.ok()
    False
    """

    def __init__(self, floor_ts: float = 0.0) -> None:
        """`floor_ts`: a time that is past for certain, such as when signed metadata was accepted last."""
        self._floor_ts = _later(not_before_ts(), floor_ts)

    def mono_ns(self) -> int:
        """See `Clock`."""
        return time.monotonic_ns()

    def ts(self) -> float:
        """See `Clock`."""
        return time.time()

    def ok(self) -> bool:
        """See `Clock`."""
        return time.time() >= self._floor_ts

    def raise_floor(self, ts: float) -> None:
        """It is later than `ts` for certain; what is known already is never taken back. Any thread."""
        self._floor_ts = _later(self._floor_ts, ts)

    def floor(self) -> float:
        """It is not earlier than this, whatever the wall clock says: for what expires."""
        return max(self._floor_ts, time.time())


class Beat:
    """When a thread last moved: it says so itself, any other may ask.

    A thread that waits on purpose says for how long; what counts is the silence beyond that. No lock: it is written
    in one step.

    >>> now_ns = 0
    >>> beat = Beat("publisher", 2.0, lambda: now_ns)
    >>> beat.now(for_s=3.0); now_ns = 5_000_000_000; beat.silent_s(), beat.hangs()
    (2.0, False)
    >>> now_ns += 1; beat.hangs()
    True
    >>> beat.rest(); beat.hangs()
    False
    """

    def __init__(self, name: str, limit_s: float, mono_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """`name`: what hangs then, in the words of a technician; it rests until its first `now`."""
        self.name = name
        self.limit_s = limit_s
        self._mono_ns = mono_ns
        self._last: tuple[int, threading.Thread] | None = None

    def now(self, for_s: float = 0.0) -> None:
        """This thread moves, and waits for so long at most before it does again."""
        self._last = (self._mono_ns() + int(for_s * 1e9), threading.current_thread())

    def rest(self) -> None:
        """Nothing is asked of it until its next `now`."""
        self._last = None

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Of what many threads do in turn: one of them does it inside."""
        self.now()
        try:
            yield
        finally:
            self.rest()

    def silent_s(self) -> float:
        """How long it has not moved, beyond what it said that it would wait."""
        last = self._last
        return max(0.0, (self._mono_ns() - last[0]) / 1e9) if last is not None else 0.0

    def thread(self) -> threading.Thread | None:
        """The one that moved last; None when it rests."""
        last = self._last
        return last[1] if last is not None else None

    def hangs(self) -> bool:
        """Whether it is silent beyond its limit, or its thread has died at it."""
        thread = self.thread()
        return self.silent_s() > self.limit_s or (thread is not None and not thread.is_alive())
