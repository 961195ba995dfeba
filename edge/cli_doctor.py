"""`edge doctor`: what is wrong with this box, and how to mend it.

Exit codes, as monitoring plug-ins have them: 0 nothing is wrong, 1 warnings, 2 errors (or the command was called
wrongly; then there is no report on stdout). What could not be looked at changes nothing.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `edge`."""
    parser = commands.add_parser(
        "doctor",
        help="find what is wrong with this box, and how to mend it",
        epilog="exit code: 0 nothing is wrong, 1 warnings, 2 errors",
    )
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="the site config; without it /etc/edge/edge.toml if there is one")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON document (edge.doctor.v1), for a fleet")
    parser.add_argument("--only", nargs="+", metavar="SUBJECT", choices=SUBJECTS,
                        help=f"only these: {', '.join(SUBJECTS)}")  # fmt: skip
    parser.add_argument("--loopback", metavar="PORT",
                        help="test a serial port whose TX and RX are bridged: sends a pattern on it")  # fmt: skip
    parser.set_defaults(command=_doctor)


# As edge.doctor.subjects has them; written out so that other commands need not load every check to start.
SUBJECTS = (
    "config", "clock", "disk", "memory", "thermals", "cameras", "serial", "broker", "update", "network", "runtime",
    "bundle", "permissions", "service",
)  # fmt: skip


def _doctor(options: argparse.Namespace) -> int:
    from edge.doctor import report, visit

    only = options.only
    if only and options.loopback and "serial" not in only:
        only = [*only, "serial"]
    found = visit.visit(options.config, only, options.loopback)
    if options.json:
        print(report.as_json(found))
    else:
        print(report.as_text(found, min(shutil.get_terminal_size((100, 24)).columns, 140)))
    return found.exit_code
