"""Reads of a systemd unit what is needed to start its service as systemd would, where no systemd runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Service:
    """How a service is started, watched and stopped."""

    command: tuple[str, ...]
    user: str
    group: str
    groups: tuple[str, ...]
    environment: dict[str, str]
    state: str  # its state folder
    folder: str  # where it is started
    umask: str
    watchdog_s: float
    start_s: float
    stop_s: float
    no_new_privileges: bool
    no_capabilities: bool

    def argv(self) -> list[str]:
        """The command as that user, in that folder: for `chroot`, or any root."""
        privileges = ["--no-new-privs"] if self.no_new_privileges else []
        if self.no_capabilities:
            privileges += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        groups = f"--groups={','.join((self.group, *self.groups))}" if self.groups else "--init-groups"
        enter = 'umask "$1"; cd "$2"; shift 2; exec "$@"'
        return [
            "/bin/sh", "-c", enter, "service", self.umask, self.folder,
            "/usr/bin/setpriv", f"--reuid={self.user}", f"--regid={self.group}", groups, *privileges,
            "--", *self.command,
        ]  # fmt: skip


def read(*paths: Path) -> Service:
    """A unit and its drop-ins, in this order.

    Raises:
        ValueError: it has what is not understood here, such as a specifier in its command.
    """
    values: dict[str, list[str]] = {}
    for path in paths:
        _collect(path.read_text(encoding="utf-8"), values)
    command = _last(values, "ExecStart").lstrip("@-:+!")
    if re.search(r"[%$]", command) or len(values["ExecStart"]) != 1:
        raise ValueError(f"ExecStart is more than this can do: {values['ExecStart']}")
    state = f"/var/lib/{_last(values, 'StateDirectory')}"
    user = _last(values, "User")
    return Service(
        command=tuple(shlex.split(command)),
        user=user,
        group=_last(values, "Group", user),
        groups=tuple(word for line in values.get("SupplementaryGroups", []) for word in line.split()),
        environment=dict(part.split("=", 1) for line in values.get("Environment", []) for part in shlex.split(line)),
        state=state,
        folder=_last(values, "WorkingDirectory", "/"),
        umask=_last(values, "UMask", "0022"),
        watchdog_s=seconds(_last(values, "WatchdogSec", "0")),
        start_s=seconds(_last(values, "TimeoutStartSec", "90")),
        stop_s=seconds(_last(values, "TimeoutStopSec", "90")),
        no_new_privileges=_last(values, "NoNewPrivileges", "no") in ("yes", "true", "on", "1"),
        no_capabilities="CapabilityBoundingSet" in values and not "".join(values["CapabilityBoundingSet"]),
    )


def seconds(text: str) -> float:
    """A time span as systemd writes it.

    >>> seconds("90"), seconds("1min 30s"), seconds("500ms")
    (90.0, 90.0, 0.5)
    """
    if re.sub(r"\d+(\.\d+)?\s*[a-z]*", "", text).strip():
        raise ValueError(f"{text!r} is not a time span")
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text))


def _collect(text: str, values: dict[str, list[str]]) -> None:
    """Settings of [Service]; an empty one takes back those before it, as in systemd."""
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and line[0] not in "#;":
            key, _, value = (part.strip() for part in line.partition("="))
            if value:
                values.setdefault(key, []).append(value)
            else:
                values[key] = []


def _last(values: dict[str, list[str]], key: str, otherwise: str | None = None) -> str:
    found: Sequence[str] = values.get(key, [])
    if found:
        return found[-1]
    if otherwise is None:
        raise ValueError(f"the unit has no {key}")
    return otherwise
