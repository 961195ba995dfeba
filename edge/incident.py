"""`edge incident`: pack the last minutes of a station into one file, and judge such a file again anywhere.

This module is the command line; it imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import Final

from edge.errors import UsageError

IDENTICAL, DIFFERS = 0, 1  # and 2, as of every command, where it cannot be told
MOST_LINES: Final = 40  # of what was not judged again
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?[smhd])+")


def duration_s(text: str) -> float:
    """A time span as people write it, in seconds.

    Raises:
        UsageError: it is none.

    >>> duration_s("90s"), duration_s("10m"), duration_s("1h30m")
    (90.0, 600.0, 5400.0)
    """
    total = 0.0
    if _DURATION.fullmatch(text):
        total = sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", text))
    if total <= 0:
        raise UsageError(f"{text!r} is not a time: use one such as 90s, 10m or 2h")
    return total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `edge incident`; each of its commands sets `command`."""
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    state = Path("/var/lib/edge")
    export = what.add_parser("export", help="pack frames, config, recipes, triggers and results of the last minutes")
    export.add_argument("--last", default="10m", metavar="TIME", help="how far back, such as 90s, 10m or 2h")
    export.add_argument("--state", type=Path, default=state, help="the daemon's state folder")
    export.add_argument("--out", type=Path, metavar="FILE", help="the file to write; without it, one named by the time")
    export.set_defaults(command=run_export)
    replay = what.add_parser("replay", help="judge an incident again: identical to the last bit, or what differs first")
    replay.add_argument("file", type=Path, metavar="FILE", help="what export wrote")
    replay.add_argument("--bundle", type=Path, help="the model bundle; without it, the one installed on this machine")
    replay.add_argument("--state", type=Path, default=state, help="the state folder that has the installed bundle")
    replay.add_argument("--frames", type=Path, metavar="DIR", help="write the frames there too, as PNG")
    replay.set_defaults(command=run_replay)


def run_export(options: argparse.Namespace) -> int:
    """What `edge incident export` does; 0 when the file is written."""
    from edge import incident_export

    last_s, now_ts = duration_s(options.last), time.time()
    out = options.out or Path(time.strftime("incident-%Y%m%d-%H%M%S.zip", time.localtime(now_ts)))
    summary = incident_export.export(options.state, last_s, out, now_ts)
    print("\n".join(summary.told()))
    return 0


def run_replay(options: argparse.Namespace) -> int:
    """What `edge incident replay` does; 0: every verdict is the same to the last bit, 1: it is not."""
    from edge import incident_replay

    report = incident_replay.replay(options.file, options.bundle, options.state, options.frames)
    print("\n".join(report.told(MOST_LINES)))
    return IDENTICAL if report.identical else DIFFERS
