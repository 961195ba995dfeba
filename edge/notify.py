"""What systemd hears of the daemon: the sd_notify protocol, which is one datagram with lines of KEY=VALUE.

Without systemd (no NOTIFY_SOCKET) every call does nothing. A lost notification is never a reason to stop inspecting,
so nothing here raises; systemd's own time limits catch a daemon that stays silent.
"""

from __future__ import annotations

import os
import socket
from typing import Final

# The socket's buffer is full only when systemd itself hangs: give up soon and keep inspecting.
SEND_TIMEOUT_S: Final = 0.5


def ready(text: str = "") -> bool:
    """The start is complete; with Type=notify units that wait for this one go on. True when systemd was told."""
    return _send("READY=1", *_status(text))


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return _send(*_status(text))


def watchdog() -> bool:
    """Sign of life; systemd restarts a daemon that gives none for WatchdogSec."""
    return _send("WATCHDOG=1")


def extend_timeout(seconds: float, text: str = "") -> bool:
    """Ask for so many more seconds from now on, for a start or a stop that takes longer than the unit allows.

    To be said again while there is progress, with a margin over the time until the next word: it replaces what was
    asked for before. Not for steps that may hang, since systemd then waits as long.
    """
    return _send(f"EXTEND_TIMEOUT_USEC={max(0, round(seconds * 1e6))}", *_status(text))


def stopping(text: str = "") -> bool:
    """The ordered stop has begun."""
    return _send("STOPPING=1", *_status(text))


def watchdog_interval_s() -> float:
    """Within how many seconds systemd wants a sign of life; 0.0 when it watches nothing, or not this process.

    Call `watchdog` several times as often: the documented advice is at most half of this interval.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 1e6


def _status(text: str) -> list[str]:
    # A line break would begin another assignment.
    return ["STATUS=" + " ".join(text.split())] if text else []


def _send(*lines: str) -> bool:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not lines or address[:1] not in ("/", "@"):  # a path, or a name in the abstract namespace
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(SEND_TIMEOUT_S)
            sock.sendto("\n".join(lines).encode("utf-8", "replace"), address)
    except OSError:
        return False
    return True
