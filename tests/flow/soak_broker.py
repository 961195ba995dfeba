"""Ends a real mosquitto 20 times under 50 messages a second, and prints what arrived.

    python -m tests.flow.soak_broker [--kills 20] [--rate 50]

Each way of ending it is run: SIGKILL and SIGTERM. What each can prove stands at the head of `test_broker.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.flow.test_broker import Figures, kill_under_load


def main() -> int:
    """0 when every number arrived, and each under one id."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second")
    args = parser.parse_args()
    good = True
    for how, signal in (("kill", "SIGKILL"), ("stop", "SIGTERM")):
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures = kill_under_load(Path(folder), how, kills=args.kills, up_s=1.5, down_s=0.5, gap_s=1 / args.rate)
        print(f"{signal} x {args.kills} in {time.monotonic() - begun:.0f} s: {sentence(figures)}", flush=True)
        good = good and not figures.missing and not figures.other_ids and not figures.left
    return 0 if good else 1


def sentence(f: Figures) -> str:
    """The figures in one line."""
    slowest = max(f.reconnect_s, default=0.0)
    return (
        f"{f.added} added, {len(f.missing)} missing {f.missing[:10]}, {f.duplicates} came twice or more, "
        f"{f.other_ids} under another id, {f.left} left in the outbox, {f.connects} connections, "
        f"reconnected after at most {slowest:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
