"""What a signal asks for. Imports next to nothing, so that it is in force before the rest of the daemon is loaded."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by SIGTERM and SIGINT, read by the loop: a signal handler does nothing else."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Take over the two signals of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
