"""The site config itself: everything that depends on it is left out when it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edge.config import Config
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "config"

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """There, readable, right."""
    path = context.config_path
    if context.config is not None:
        yield _note.ok(
            "config", f"{path} is well", cameras=len(context.config.camera), plc=context.config.plc is not None
        )
        yield from _recipes(context.system, context.config)
    elif not context.config_readable:
        yield _note.unknown("unreadable", f"{path} may not be read by this user", "run `sudo edge doctor`")
    elif context.config_problem is not None:
        yield _note.error("invalid", context.config_problem, f"correct it, then `edge check-config --config {path}`")
    else:
        yield _note.info(
            "none",
            "no config was given and there is none at /etc/edge/edge.toml: cameras, broker and PLC are not looked at",
            "name it: `edge doctor --config FILE`; `edge check-config --sample` prints one to start from",
        )


def _recipes(system: System, config: Config) -> Iterator[Finding]:
    """Files that the config names instead of the bundle's own."""
    for key, path in (("paths.recipe", config.paths.recipe), ("paths.recipes", config.paths.recipes)):
        if path is not None and not system.exists(path):
            yield _note.error("no_recipe", f"{key} {path} is not there", "correct it, or copy the recipe there")
