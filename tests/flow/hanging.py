"""The daemon as it ships, but with short deadlines, and with one call of it that hangs while a file is there.

    python -m tests.flow.hanging WHAT FILE run --config edge.toml

`WHAT` is a key of `CALLS`, or "nothing". The call hangs as a driver does: it is entered and does not come back.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

# One call of each thread, and of what it stands on.
CALLS = {
    "capture": ("edge.capture.simulated", "SimulatedSource.read"),
    "inference": ("edge.detect", "Detector.look"),
    "inference_with_gil": ("edge.detect", "Detector.look"),
    "outbox": ("edge.outbox", "Outbox._store"),
    "publisher": ("edge.session", "await_address"),
    "plc": ("edge.plc.port", "SerialPort.wait"),
    "requests": ("edge.daemon", "Daemon._answer"),
    "evidence": ("edge.evidence", "_Writer.write"),
    "recorder": ("edge.recorder", "_Writer.write"),
}
LIMIT_S = 2.5
DEADLINES = ("edge.capture.camera", "edge.outbox", "edge.plc.thread", "edge.publish", "edge.requests", "edge.spool")


def hang(file: Path) -> None:
    """Lets the other threads run, as a call into a driver does."""
    while file.exists():
        time.sleep(0.02)


def hang_with_gil(file: Path) -> None:
    """Lets no other thread of Python run, as Paddle Lite's `run` does: until a signal comes, for ever."""
    if file.exists():
        ctypes.PyDLL(None).pause()


def main() -> int:
    """Shorten the deadlines, plant the hang, and be the daemon."""
    what, file, arguments = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    for module in DEADLINES:
        importlib.import_module(module).HUNG_S = LIMIT_S  # type: ignore[attr-defined]
    importlib.import_module("edge.outbox").CHECK_EVERY_S = 1.0  # type: ignore[attr-defined]
    publish: Any = importlib.import_module("edge.publish")
    publish.Timing = partial(publish.Timing, connect_s=1.0, backoff_max_s=1.0)
    if what != "nothing":
        _plant(*CALLS[what], file, hang_with_gil if what.endswith("with_gil") else hang)
    from edge.cli import main as edge

    return edge(arguments)


def _plant(module: str, name: str, file: Path, hold: Callable[[Path], None]) -> None:
    owner: Any = importlib.import_module(module)
    *outer, last = name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    call = getattr(owner, last)

    @wraps(call)
    def hangs(*arguments: Any, **keywords: Any) -> Any:
        hold(file)
        return call(*arguments, **keywords)

    setattr(owner, last, hangs)


if __name__ == "__main__":
    raise SystemExit(main())
