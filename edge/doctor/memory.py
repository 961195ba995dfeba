"""Is there memory enough, and was a process killed for want of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "memory"
SHORT_SHARE, SHORT_MB = 0.05, 150.0
SCARCE_SHARE, SCARCE_MB = 0.10, 400.0
STALLED_PERCENT: Final = 5.0  # of the last minute in which something waited for memory
FIX: Final = (
    "see who takes it with `ps aux --sort=-rss | head`; stop what the box does not need (a desktop: "
    "`sudo systemctl set-default multi-user.target`, then restart); lower recorder.minutes"
)

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """What is available, who was killed, and what waits."""
    system = context.system
    told = fields_kb(system.text("/proc/meminfo") or "")
    if "MemAvailable" not in told:
        yield _note.unknown("unknown", "/proc/meminfo cannot be read", "see whether /proc is mounted")
        return
    yield available_finding(told)
    yield from _killed(system)
    yield from _stalled(system)


def fields_kb(text: str) -> dict[str, int]:
    """/proc/meminfo as numbers of kB."""
    return {name: int(value) for name, value in re.findall(r"^(\S+):\s+(\d+)(?: kB)?$", text, re.MULTILINE)}


def available_finding(told: Mapping[str, int]) -> Finding:
    """How much memory a process could still get."""
    total_mb, free_mb = told["MemTotal"] / 1024, told["MemAvailable"] / 1024
    text = f"{free_mb:.0f} of {total_mb:.0f} MB are available"
    data = {"available_mb": round(free_mb), "total_mb": round(total_mb), "swap_mb": told.get("SwapTotal", 0) // 1024}
    if free_mb < min(SHORT_SHARE * total_mb, SHORT_MB):
        return _note.error("short", f"{text}: the kernel is about to end a process", FIX, **data)
    if free_mb < min(SCARCE_SHARE * total_mb, SCARCE_MB):
        return _note.warning("scarce", text, FIX, **data)
    return _note.ok("available", text, **data)


def _killed(system: System) -> Iterator[Finding]:
    found = re.search(r"^oom_kill (\d+)$", system.text("/proc/vmstat") or "", re.MULTILINE)
    if found and int(found[1]):
        yield _note.warning(
            "killed",
            f"since it started this box has ended {found[1]} processes for want of memory",
            f"`journalctl -k | grep -i 'out of memory'` names them; {FIX}",
            kills=int(found[1]),
        )


def _stalled(system: System) -> Iterator[Finding]:
    found = re.search(r"^some avg10=\S+ avg60=([\d.]+)", system.text("/proc/pressure/memory") or "", re.MULTILINE)
    if found and float(found[1]) > STALLED_PERCENT:
        yield _note.warning(
            "stalled",
            f"in the last minute processes waited {found[1]} % of the time for memory",
            FIX,
            avg60_percent=float(found[1]),
        )
