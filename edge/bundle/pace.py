"""How fast a download may be, and how slow: the share of the network it may take, and when it is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 1 << 16
_PIECES_A_SECOND: Final = 4  # under a cap: so that it is even, not a burst and a pause


@dataclass(frozen=True)
class Limits:
    """What a mirror may take of our time.

    Attributes:
        connect_s: until a connection stands.
        silence_s: until it answers, and between two pieces.
        least_kb_s: what it has to give, as a mean over `window_s` of waiting. Whoever is slower could keep an update
            from ever coming to an end.
        idle_tries: attempts in a row that bring nothing, until a download is given up.
    """

    connect_s: float = 10.0
    silence_s: float = 20.0
    least_kb_s: float = 1.0
    window_s: float = 30.0
    idle_tries: int = 3


class TooSlow(Exception):
    """Less than the least rate came over a whole window; the text says how much."""


class Pace:
    """Watches one download, and slows it down.

    Args:
        kb_s: kilobytes a second that it may take at most; 0: no limit.
    """

    def __init__(
        self,
        limits: Limits,
        kb_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits, self._kb_s, self._clock, self._sleep = limits, kb_s, clock, sleep
        self._began = self._asked = clock()
        self._bytes = self._window_bytes = 0
        self._window_s = 0.0

    @property
    def piece_bytes(self) -> int:
        """How much to ask for at once."""
        if not self._kb_s:
            return _PIECE_BYTES
        return max(1, min(_PIECE_BYTES, int(self._kb_s * 1000 / _PIECES_A_SECOND)))

    def ask(self) -> None:
        """Now the mirror is waited for."""
        self._asked = self._clock()

    def got(self, count: int) -> None:
        """A piece has come; waits where the cap is exceeded.

        Raises:
            TooSlow: the mirror gives less than it has to.
        """
        self._judge(count)
        self._bytes += count
        if self._kb_s:
            early_s = self._bytes / (self._kb_s * 1000) - (self._clock() - self._began)
            if early_s > 0:
                self._sleep(early_s)

    def _judge(self, count: int) -> None:
        """Only time spent waiting for the mirror counts, not what the cap made us wait."""
        self._window_bytes += count
        self._window_s += self._clock() - self._asked
        if self._window_s < self._limits.window_s:
            return
        if self._window_bytes < self._limits.least_kb_s * 1000 * self._window_s:
            raise TooSlow(
                f"{self._window_bytes} bytes in {self._window_s:.3g} s, the least is {self._limits.least_kb_s:g} kB/s"
            )
        self._window_bytes, self._window_s = 0, 0.0
