"""Is the time right: results, certificates and the expiry of bundles go by it. The time zone does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edge.bundle.trust import time_floor
from edge.clock import not_before_ts
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "clock"
SET_FIX: Final = (
    'set it with `sudo timedatectl set-time "YYYY-MM-DD HH:MM:SS"`, or let NTP do it: `sudo timedatectl set-ntp true`'
)
NTP_FIX: Final = (
    "name a time server of the plant in /etc/systemd/timesyncd.conf (NTP=...), then "
    "`sudo timedatectl set-ntp true` and `sudo systemctl restart systemd-timesyncd`"
)
# Programs that set the clock, as /proc/<pid>/comm has them (15 characters at most).
KEEPERS: Final = ("systemd-timesyn", "chronyd", "ntpd", "ntpsec", "openntpd", "ptp4l", "phc2sys")
SHORTENED: Final = {"systemd-timesyn": "systemd-timesyncd"}
RTC_APART_S: Final = 60.0  # a hardware clock further off starts the box with a wrong time
FUTURE_S: Final = 120.0  # state files newer than now: the clock went back
RTC_CELL_UV: Final = 1_000_000  # the Pi 5's socket shows less without a cell

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Floor, NTP, hardware clock, and whether time went back."""
    system = context.system
    now = system.now()
    yield floor_finding(now, time_floor(system.path(context.state)))
    yield from _synchronised(system)
    yield from _hardware_clock(system, now)
    yield from _went_back(context, now)


def floor_finding(now: float, signed: float = 0.0) -> Finding:
    """A box without a battery starts in 1970 or at its image's build.

    Args:
        signed: when the newest metadata was signed that this box has accepted; 0: none.
    """
    floor = not_before_ts()
    if floor <= now < signed:
        return _note.error(
            "before_repository",
            f"the clock says {_moment(now)}, but this box has accepted what was signed on {_moment(signed)}",
            SET_FIX,
            now_ts=round(now, 3),
            floor_ts=signed,
        )
    if now >= floor:
        return _note.ok("set", f"the clock says {_moment(now)}", now_ts=round(now, 3))
    return _note.error(
        "before_release",
        f"the clock says {_moment(now)}, which is before this release was made ({_moment(floor)}): "
        "certificates and bundles are judged by a wrong date",
        SET_FIX,
        now_ts=round(now, 3),
        floor_ts=floor,
    )


def _synchronised(system: System) -> Iterator[Finding]:
    discipline = system.discipline()
    keepers = running(system, KEEPERS)
    if discipline is None:
        yield _note.unknown("ntp_unknown", "the kernel's clock discipline cannot be asked", NTP_FIX)
    elif discipline.synchronised:
        by = f" by {', '.join(keepers)}" if keepers else ""
        yield _note.ok(
            "synchronised",
            f"synchronised{by}, at most {1000 * discipline.max_error_s:.0f} ms off",
            max_error_s=round(discipline.max_error_s, 6),
            keepers=keepers,
        )
    elif keepers:
        yield _note.warning(
            "not_synchronised",
            f"{', '.join(keepers)} runs, but the clock is not synchronised: no time server has answered yet",
            f"check network and server with `timedatectl timesync-status` or `chronyc sources`; {NTP_FIX}",
            keepers=keepers,
        )
    else:
        yield _note.warning(
            "no_ntp", "nothing sets the clock: no NTP client runs on this box, so it drifts seconds a day", NTP_FIX
        )


def _hardware_clock(system: System, now: float) -> Iterator[Finding]:
    clocks = [name for name in system.names("/sys/class/rtc") if system.exists(f"/sys/class/rtc/{name}/since_epoch")]
    if not clocks:
        yield _note.info(
            "no_rtc",
            "there is no hardware clock: after a power cut the time is wrong until NTP has answered",
            "where the network may be away at start-up fit an RTC module with a battery",
        )
        return
    first = next((n for n in clocks if system.number(f"/sys/class/rtc/{n}/hctosys") == 1), clocks[0])
    folder = f"/sys/class/rtc/{first}"
    yield from _cell(system, folder, first)
    seconds = system.number(f"{folder}/since_epoch")
    if seconds is None:
        yield _note.warning(
            "rtc_unreadable", f"the hardware clock {first} does not answer", "check or change its battery"
        )
        return
    apart_s = seconds - now
    told = {"rtc": first, "apart_s": round(apart_s, 1)}
    if abs(apart_s) > RTC_APART_S:
        yield _note.warning(
            "rtc_apart",
            f"the hardware clock {first} is {_span(apart_s)} {'ahead' if apart_s > 0 else 'behind'}: the next start "
            "begins with that time",
            "once the time is right: `sudo hwclock --systohc`; off again after a power cut: its battery is empty",
            **told,
        )
    else:
        yield _note.ok("rtc", f"the hardware clock {first} agrees", **told)


def _cell(system: System, folder: str, name: str) -> Iterator[Finding]:
    """Only the Raspberry Pi 5 tells its battery's voltage."""
    microvolts = system.number(f"{folder}/battery_voltage")
    if microvolts is not None and microvolts < RTC_CELL_UV:
        yield _note.info(
            "rtc_no_battery",
            f"the hardware clock {name} has no battery ({microvolts / 1e6:.2f} V): it forgets the time with the power",
            "plug the board's RTC battery in (connector J5 of a Raspberry Pi 5)",
            microvolts=microvolts,
        )


def _went_back(context: Context, now: float) -> Iterator[Finding]:
    """Files of the daemon that are newer than now were written before the clock was put back."""
    newest = max(_stamps(context.system, context.state), default=(0.0, ""))
    if newest[0] > now + FUTURE_S:
        yield _note.error(
            "went_back",
            f"{newest[1]} was written {_span(newest[0] - now)} in the future ({_moment(newest[0])}): the clock was put "
            "back, or was ahead before",
            f"find out which is right, then {SET_FIX}",
            newest_ts=round(newest[0], 3),
        )


def _stamps(system: System, state: Path) -> Iterator[tuple[float, str]]:
    for name in system.names(state):
        found = system.stat(state / name)
        if found is not None:
            yield found.st_mtime, str(state / name)


def running(system: System, programs: tuple[str, ...]) -> list[str]:
    """Which of these programs run, by the names that the kernel gives their processes."""
    comms = {system.text(f"/proc/{pid}/comm") for pid in system.names("/proc") if pid.isdecimal()}
    return [SHORTENED.get(name, name) for name in programs if name in comms]


def _moment(ts: float) -> str:
    return datetime.fromtimestamp(ts, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    """
    >>> _span(-90), _span(7300), _span(400000)
    ('90 s', '2 h', '4.6 days')
    """
    seconds = abs(seconds)
    return (
        f"{seconds:.0f} s"
        if seconds < 600
        else f"{seconds / 3600:.0f} h"
        if seconds < 86400
        else f"{seconds / 86400:.1f} days"
    )
