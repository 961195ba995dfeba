"""A program that runs beside the demo and does not outlive it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STOP_LIMIT_S = 20.0  # for it to end by itself after SIGTERM
KILL_LIMIT_S = 5.0
LOG_LINES_SHOWN = 6
LOG_TAIL_BYTES = 8192
# Asks the kernel for SIGTERM when the thread that started us ends (PR_SET_PDEATHSIG), then becomes the program.
# Popen's preexec_fn could do it, but is not safe beside threads.
DIE_WITH_PARENT = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execvp(sys.argv[1], sys.argv[1:])"


class ChildProcess:
    """A running program, its output in a log file.

    It is a session of its own, so that Ctrl-C reaches only us and we end it in order.
    """

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        self.log_file = log_file
        with log_file.open("ab") as sink:
            self._child = subprocess.Popen(
                [sys.executable, "-ISc", DIE_WITH_PARENT, *command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def stop(self, limit_s: float = STOP_LIMIT_S) -> bool:
        """Ask it to end and wait. False: it had to be killed."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(limit_s)
            return True
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(KILL_LIMIT_S)
            return False

    def last_lines(self) -> str:
        """The end of its log, indented."""
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
        return "\n".join(f"  {line}" for line in [x for x in lines if x.strip()][-LOG_LINES_SHOWN:])
