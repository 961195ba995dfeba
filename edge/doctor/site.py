"""The site config itself: everything that depends on it is left out when it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter

SUBJECT: Final = "config"

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """There, readable, right."""
    path = context.config_path
    if context.config is not None:
        yield _note.ok(
            "config", f"{path} is well", cameras=len(context.config.camera), plc=context.config.plc is not None
        )
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
