"""`edge doctor` from its arguments to its report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edge import config as configs
from edge.doctor import report
from edge.doctor.context import Context
from edge.doctor.examine import LIMIT_S, chosen, examine
from edge.doctor.report import Report
from edge.doctor.subjects import CHECKS, WANT_CONFIG
from edge.doctor.system import System
from edge.errors import ConfigError

USUAL_CONFIG: Final = Path("/etc/edge/edge.toml")


def visit(
    config: Path | None,
    only: Sequence[str] | None = None,
    loopback: str | None = None,
    system: System | None = None,
    limit_s: float = LIMIT_S,
) -> Report:
    """Look at the box and report; never raises for what is wrong with it.

    Args:
        config: the site config; None: the service's own, if there is one.
        only: subjects; None: all. loopback: a serial port whose TX and RX are bridged.
    """
    system = system or System()
    context = make_context(system, config, loopback)
    checks = chosen(CHECKS, [*only, "config"] if only and context.config_problem else only)
    left_out = {}
    if context.config is None:
        left_out = {name: "there is no config that can be used" for name in WANT_CONFIG if name in checks}
    found = examine(context, {name: check for name, check in checks.items() if name not in left_out}, limit_s)
    return report.make(
        found,
        ts=system.now(),
        node=_node(context),
        machine=board(system),
        config=str(context.config_path or ""),
        left_out=left_out,
    )


def make_context(system: System, path: Path | None, loopback: str | None = None) -> Context:
    """Read the config, and keep why it cannot be used."""
    if path is None and system.exists(USUAL_CONFIG):
        path = USUAL_CONFIG
    if path is None:
        return Context(system, loopback=loopback)
    here = system.path(path) if path.is_absolute() else path
    if here.exists() and not os.access(here, os.R_OK):
        return Context(system, config_path=path, config_readable=False, loopback=loopback)
    try:
        return Context(system, config=configs.load(here), config_path=path, loopback=loopback)
    except ConfigError as error:
        return Context(system, config_path=path, config_problem=str(error), loopback=loopback)


def _node(context: Context) -> str:
    station = context.config.station if context.config is not None else None
    if station is not None:
        return f"{station.site}/{station.line}/{station.node}"
    return context.system.text("/etc/hostname") or ""


def board(system: System) -> str:
    """What kind of box this is, in its own words.

    The device tree names ARM boards, the firmware's tables name x86 ones.
    """
    tree = system.text("/proc/device-tree/model")
    if tree:
        return tree.strip()
    words = [system.text(f"/sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name")]
    return " ".join(word.strip() for word in words if word.strip()) or system.machine()
