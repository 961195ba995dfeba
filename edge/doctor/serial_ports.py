"""The serial ports to the PLC and to outputs: there, named so that it stays, free, fast, and wired right."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edge.config import Config, Plc
from edge.doctor import loopback
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.permissions import group_of
from edge.doctor.processes import holders, processes
from edge.doctor.system import System
from edge.errors import PlcError

SUBJECT: Final = "serial"
BY_ID: Final = "/dev/serial/by-id"
BRIDGE_FIX: Final = (
    "bridge TX and RX at the plug that goes to the PLC (RS-232 DB9: pins 2 and 3; RS-422: T+ to R+, T- to R-; a "
    "two-wire RS-485 adapter hears itself only if its echo is on)"
)

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Each port of the config, then the loopback if it was asked for."""
    ports = ports_of(context.config) if context.config is not None else {}
    for port, use in ports.items():
        yield from check_port(context.system, port, use)
    if context.config is None:
        yield from _present(context.system)
    elif not ports:
        yield _note.ok("none", "no serial port is used")
    if context.loopback is not None:
        plc = context.config.plc if context.config is not None else None
        yield loopback_finding(context.loopback, plc)


def ports_of(config: Config) -> dict[str, str]:
    """Ports and what each is for."""
    ports = {config.plc.port: "plc.port"} if config.plc is not None else {}
    for output in config.output:
        if output.via in ("rts", "dtr") and output.port is not None:
            ports.setdefault(output.port, f"the port of the output {output.id}")
    return ports


def _present(system: System) -> Iterator[Finding]:
    names = system.names(BY_ID)
    if names:
        shown = ", ".join(f"{BY_ID}/{name}" for name in names)
        yield _note.info("present", f"serial adapters at this box: {shown}", "name one as plc.port, if a PLC is on it")


def check_port(system: System, port: str, use: str) -> Iterator[Finding]:
    """One port of the config."""
    if not system.exists(port):
        yield missing_finding(system, port, use)
        return
    yield from _name(system, port, use)
    if not system.may(port, os.R_OK | os.W_OK):
        yield _note.error(
            "no_permission",
            f"{use}: this user may not open {port}",
            f"`sudo usermod -aG {group_of(system, port, 'dialout')} $USER`, then log in again; or `sudo edge doctor`",
            port=port,
        )
    held = yield from _held(system, port, use)
    yield from _rivals(system, port)
    yield from _latency(system, port, use, held)


def missing_finding(system: System, port: str, use: str) -> Finding:
    """An adapter that is not plugged in, with what is."""
    there = [f"{BY_ID}/{name}" for name in system.names(BY_ID)]
    seen = f"this box has {', '.join(there)}" if there else "this box sees no USB serial adapter at all"
    return _note.error(
        "missing",
        f"{use}: there is no {port}; {seen}",
        "plug the adapter in, try another socket; `sudo dmesg | tail -20` shows what the kernel saw (on Ubuntu the "
        f"package brltty takes CH340 adapters away: `sudo apt remove brltty`); if it was exchanged correct {use}",
        port=port,
        present=there,
    )


def _name(system: System, port: str, use: str) -> Iterator[Finding]:
    if not re.fullmatch(r"/dev/tty(USB|ACM)\d+", port):
        yield _note.ok("name", f"{use}: {port} is there", port=port, device=system.real(port))
        return
    names = [f"{BY_ID}/{name}" for name in system.names(BY_ID) if system.real(f"{BY_ID}/{name}") == system.real(port)]
    fix = f'write "{names[0]}"' if names else "an udev rule by the socket it is plugged in can give it a name"
    yield _note.warning(
        "name_not_stable",
        f"{use}: {port} may be another adapter after a restart or a re-plug",
        fix,
        port=port,
        stable=names[0] if names else None,
    )


def _held(system: System, port: str, use: str) -> Generator[Finding, None, bool]:
    """Yields what is wrong; returns whether our own daemon holds it."""
    found, all_seen = holders(system, port)
    others = [process for process in found if not process.is_daemon]
    if others:
        yield _note.error(
            "held",
            f"{use}: {port} is held by {', '.join(map(str, others))}",
            f"end it: `sudo fuser -v {port}`; a login on it ends with "
            f"`sudo systemctl disable --now serial-getty@{Path(system.real(port)).name}`",
            port=port,
            holders=[process.name for process in others],
        )
    elif not found and not all_seen:
        yield _note.unknown(
            "holder_unknown", f"{use}: whether another program holds {port} only root can see", "run `sudo edge doctor`"
        )
    return len(found) > len(others)


def _rivals(system: System, port: str) -> Iterator[Finding]:
    """What will take or disturb the port sooner or later."""
    device = Path(system.real(port)).name
    if re.search(rf"\bconsole={re.escape(device)}\b", system.text("/proc/cmdline") or ""):
        yield _note.error(
            "console",
            f"{port} is the console of the kernel: its messages go to the PLC",
            "take console=... off the kernel's command line (Raspberry Pi: raspi-config, Interface, Serial Port, login "
            "shell: no; Jetson: APPEND in /boot/extlinux/extlinux.conf), then restart",
            port=port,
        )
    if device.startswith(("ttyACM", "ttyUSB")) and any(p.name == "ModemManager" for p in processes(system)):
        yield _note.warning(
            "modem_manager",
            "ModemManager runs: it sends modem commands to each adapter that is plugged in, and so to the PLC",
            "`sudo systemctl disable --now ModemManager` where there is no modem",
        )


def _latency(system: System, port: str, use: str, held: bool) -> Iterator[Finding]:
    """An FTDI adapter collects bytes for so long before it hands them on."""
    device = Path(system.real(port)).name
    timer_ms = system.number(f"/sys/bus/usb-serial/devices/{device}/latency_timer")
    if timer_ms is None:
        return
    if held and timer_ms > 2:
        yield _note.warning(
            "latency",
            f"{use}: the adapter {device} holds bytes back for {timer_ms} ms, although the daemon asks it not to",
            f"`echo 1 | sudo tee /sys/bus/usb-serial/devices/{device}/latency_timer`; to keep it an udev rule",
            latency_ms=timer_ms,
        )
    else:
        note = "" if timer_ms <= 2 or held else "; the daemon lowers that when it opens it"
        yield _note.ok("latency", f"{use}: {device} holds bytes back for {timer_ms} ms{note}", latency_ms=timer_ms)


# --- loopback ---


def loopback_finding(port: str, plc: Plc | None) -> Finding:
    """Run the test and say where the fault lies."""
    settings = Plc(port=port) if plc is None else msgspec.structs.replace(plc, port=port)
    try:
        found = loopback.test(settings)
    except PlcError as error:
        return _note.error(
            "loopback_failed", f"loopback: {error}", "if the service holds it: `sudo systemctl stop edge`", port=port
        )
    return _said(port, settings, found)


def _said(port: str, settings: Plc, found: loopback.Loop) -> Finding:
    told = {"port": port, "baud": settings.baud, "sent": found.sent, "came": found.came, "wrong": found.wrong}
    at = f"{port} at {settings.baud} baud"
    if found.outcome == "passed":
        text = f"loopback: all {found.sent} bytes came back on {at}: adapter and cable are well up to the bridge"
        return _note.ok("loopback", text, took_ms=round(found.took_ms, 1), **told)
    if found.outcome == "busy":
        text = f"loopback: something already sends on {at}; nothing was sent"
        return _note.error("loopback_busy", text, f"take the PLC off the line, then {BRIDGE_FIX}", **told)
    if found.outcome == "silent":
        text = f"loopback: nothing of {found.sent} bytes came back on {at}"
        return _note.error(
            "loopback_silent", text, f"{BRIDGE_FIX}; if it is bridged a wire is broken, or this is another port", **told
        )
    if found.outcome == "short":
        text = f"loopback: {found.came} of {found.sent} bytes came back on {at}, the rest did not"
        return _note.error(
            "loopback_short", text, "a loose contact, or flow control in the adapter: switch it off", **told
        )
    if found.outcome == "seven_bits":
        text = f"loopback: the eighth bit is lost on {at}"
        return _note.error(
            "loopback_seven_bits", text, "adapter or converter is set to 7 data bits: set it to 8", **told
        )
    text = f"loopback: {found.wrong} of {found.sent} bytes came back wrong on {at}"
    fix = (
        "lower plc.baud; check ground, shield, termination (120 ohms at both ends of RS-422/485), and that A and B are "
        "not swapped"
    )
    return _note.error("loopback_garbled", text, fix, **told)
