"""Heat, power and clock rates: what makes the same model slower than it was when it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "thermals"
HOT_C, TOO_HOT_C = 80.0, 95.0  # where the box itself names no limit
NEAR_K: Final = 5.0  # to the limit that it names
COOL_FIX: Final = "clean the fan and the fins, free the air around the box, check that the fan turns; lower the load"
POWER_FIX: Final = (
    "take the board's own supply (Raspberry Pi 5: 5.1 V 5 A; Pi 4: 5.1 V 3 A) and a short thick cable, and power USB "
    "cameras from a hub of their own"
)
_NAMELESS: Final = ("pmic", "iio", "battery")  # zones that say nothing of the processor

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Temperatures, what is throttled now or was, supply, power mode, governor."""
    system = context.system
    yield from _temperatures(system)
    yield from _slowed(system)
    yield from _raspberry(system)
    yield from _overcurrent(system)
    yield from _power_mode(system)
    yield from _rates(system)


# --- heat ---


@dataclass(frozen=True)
class Zone:
    """One thermal zone, degrees Celsius. `limit` is where the kernel or the hardware begins to act, if it says."""

    name: str
    celsius: float
    limit: float | None
    critical: float | None


def zones(system: System) -> list[Zone]:
    """All zones that have a temperature."""
    found = []
    for folder in system.glob("/sys/class/thermal/thermal_zone*"):
        milli = system.number(f"{folder}/temp")
        if milli is None or not -40_000 < milli < 200_000 or milli == 0:  # a sensor that is off
            continue
        trips = {
            system.text(path): system.number(path.replace("_type", "_temp"))
            for path in reversed(system.glob(f"{folder}/trip_point_*_type"))
        }
        limit, critical = ((trips.get(kind) or 0) / 1000 or None for kind in ("passive", "critical"))
        found.append(Zone(system.text(f"{folder}/type") or folder[-1], milli / 1000, limit, critical))
    return found


def _temperatures(system: System) -> Iterator[Finding]:
    found = [zone for zone in zones(system) if not any(part in zone.name.lower() for part in _NAMELESS)]
    if not found:
        yield _note.unknown(
            "no_sensor",
            "this box shows no temperature",
            "normal in a virtual machine; else see `sensors` (package lm-sensors)",
        )
        return
    judged = [zone_finding(zone) for zone in found]
    bad = [finding for finding in judged if finding.severity != "ok"]
    yield from bad
    if not bad:
        hottest = max(found, key=lambda zone: zone.celsius)
        yield _note.ok(
            "temperature",
            f"at most {hottest.celsius:.0f} °C ({hottest.name})",
            celsius={zone.name: zone.celsius for zone in found},
        )


def zone_finding(zone: Zone) -> Finding:
    """Whether a zone is too hot, by its own limits where it has them."""
    told = {"zone": zone.name, "celsius": zone.celsius, "limit": zone.limit, "critical": zone.critical}
    text = f"{zone.name} has {zone.celsius:.0f} °C"
    # The first passive trip is often far below what hurts (it only starts a fan): it counts from 70 °C on.
    limit = zone.limit if zone.limit and zone.limit >= 70 else HOT_C
    critical = zone.critical if zone.critical and zone.critical > limit else max(TOO_HOT_C, limit + NEAR_K)
    if zone.celsius >= critical - NEAR_K:
        return _note.error("too_hot", f"{text}: at {critical:.0f} °C the box shuts down", COOL_FIX, **told)
    if zone.celsius >= limit:
        return _note.warning("hot", f"{text}, from {limit:.0f} °C on it is slowed down", COOL_FIX, **told)
    return _note.ok("temperature", text, **told)


def _slowed(system: System) -> Iterator[Finding]:
    """Cooling that takes from the processor, not a fan that turns."""
    active = []
    for folder in system.glob("/sys/class/thermal/cooling_device*"):
        kind = system.text(f"{folder}/type") or ""
        now, most = system.number(f"{folder}/cur_state"), system.number(f"{folder}/max_state")
        if now and now > 0 and re.search(r"cpu|processor|gpu|devfreq|emc", kind, re.IGNORECASE):
            active.append(f"{kind} at {now} of {most}")
    if active:
        yield _note.warning(
            "slowed", f"the box is slowed down for heat now: {', '.join(active)}", COOL_FIX, devices=active
        )
    counts = [
        system.number(path) or 0
        for path in system.glob("/sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    ]
    if any(counts):
        yield _note.warning(
            "was_slowed",
            f"since it started the processor was slowed down for heat {max(counts)} times",
            COOL_FIX,
            count=max(counts),
        )


# --- Raspberry Pi ---

UNDER_VOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 0x1, 0x2, 0x4, 0x8
_SINCE: Final = 16  # the same bits, since the start


def _raspberry(system: System) -> Iterator[Finding]:
    bits = throttled_bits(system)
    if bits is not None:
        yield from throttled_findings(bits)


def throttled_bits(system: System) -> int | None:
    """The firmware's word; None on other boards."""
    for path in system.glob("/sys/devices/platform/soc*/*firmware/get_throttled"):
        text = system.text(path)
        if text:
            return int(text, 16)
    if "raspberry" not in (system.text("/proc/device-tree/model") or "").lower():
        return None
    ran = system.run(["vcgencmd", "get_throttled"], 3)
    found = re.search(r"throttled=(0x[0-9a-fA-F]+)", ran.out) if ran else None
    return int(found[1], 16) if found else None


def throttled_findings(bits: int) -> Iterator[Finding]:
    """What the firmware's word says, worst first."""
    told = {"throttled": f"{bits:#x}"}
    now, since = bits, bits >> _SINCE
    if now & UNDER_VOLTAGE:
        yield _note.error(
            "under_voltage", "the supply voltage is too low now: the board may fail at any moment", POWER_FIX, **told
        )
    elif since & UNDER_VOLTAGE:
        yield _note.warning(
            "was_under_voltage", "since it started the supply voltage was too low at times", POWER_FIX, **told
        )
    if now & (CAPPED | THROTTLED | SOFT_LIMIT):
        yield _note.warning(
            "throttled", "the firmware holds the processor's clock down now", f"{COOL_FIX}; {POWER_FIX}", **told
        )
    elif since & (CAPPED | THROTTLED | SOFT_LIMIT):
        yield _note.warning(
            "was_throttled",
            "since it started the firmware held the processor's clock down at times",
            f"{COOL_FIX}; {POWER_FIX}",
            **told,
        )
    if bits == 0:
        yield _note.ok("not_throttled", "supply and clock were well since the start (get_throttled 0x0)", **told)


# --- Jetson ---


def _overcurrent(system: System) -> Iterator[Finding]:
    counts = {
        path.rpartition("/")[2]: system.number(path) or 0
        for path in system.glob("/sys/class/hwmon/hwmon*/oc*_event_cnt")
    }
    if any(counts.values()):
        yield _note.warning(
            "over_current",
            f"since it started the module was slowed down {sum(counts.values())} times for over-current or low voltage",
            "take a supply of the wattage that the carrier board asks for, and a power mode that it can feed",
            counts=counts,
        )


@dataclass(frozen=True)
class PowerMode:
    """One mode of nvpmodel. `max_khz` of the CPU; inf: not limited."""

    number: int
    name: str
    cores: int
    max_khz: float


def power_modes(conf: str) -> list[PowerMode]:
    """The modes of /etc/nvpmodel.conf."""
    modes = []
    for block in re.split(r"(?=^< *POWER_MODEL )", conf, flags=re.MULTILINE):
        number, name = re.search(r"\bID=(\d+)", block), re.search(r"\bNAME=([^\s>]+)", block)
        if not block.startswith("<") or not number or not name:
            continue
        online = re.findall(r"^CPU_ONLINE CORE_\d+ 1", block, re.MULTILINE)
        rates = [int(rate) for rate in re.findall(r"^CPU_\S+ MAX_FREQ (-?\d+)", block, re.MULTILINE)]
        limited = [rate for rate in rates if rate > 0]
        modes.append(
            PowerMode(
                int(number[1]), name[1], len(online), max(limited) if limited and -1 not in rates else float("inf")
            )
        )
    return modes


def _power_mode(system: System) -> Iterator[Finding]:
    conf = system.text("/etc/nvpmodel.conf")
    if conf is None:
        return
    status = re.search(r"pmode:(\d+)", system.text("/var/lib/nvpmodel/status") or "")
    ran = None if status else system.run(["nvpmodel", "-q"], 5)
    number = int(status[1]) if status else _asked(ran.out if ran else "")
    modes = power_modes(conf)
    mode = next((mode for mode in modes if mode.number == number), None)
    if mode is None:
        yield _note.unknown(
            "power_mode_unknown", "the power mode of this Jetson cannot be read", "`sudo nvpmodel -q` tells it"
        )
        return
    yield power_mode_finding(mode, modes)


def _asked(text: str) -> int | None:
    found = re.search(r"^(\d+)\s*$", text, re.MULTILINE)
    return int(found[1]) if found else None


def power_mode_finding(mode: PowerMode, modes: list[PowerMode]) -> Finding:
    """Whether there is a faster one."""
    best = max(modes, key=lambda m: (m.max_khz, m.cores))
    told = {"mode": mode.name, "cores": mode.cores, "modes": [m.name for m in modes]}
    if (mode.max_khz, mode.cores) >= (best.max_khz, best.cores):
        return _note.ok("power_mode", f"power mode {mode.name}", **told)
    return _note.warning(
        "power_mode_low",
        f"the power mode is {mode.name}; {best.name} runs the processor faster",
        f"if supply and cooling allow it: `sudo nvpmodel -m {best.number}` (it may want a restart), then install the "
        "bundle again, so that it is measured at this speed",
        **told,
    )


# --- clock rates ---


def _rates(system: System) -> Iterator[Finding]:
    folders = system.glob("/sys/devices/system/cpu/cpufreq/policy*")
    if not folders:
        return
    governors = sorted({system.text(f"{folder}/scaling_governor") or "?" for folder in folders})
    drivers = {system.text(f"{folder}/scaling_driver") or "?" for folder in folders}
    shown = ", ".join(governors)
    told = {"governors": governors, "drivers": sorted(drivers)}
    # The Intel driver calls its default so, and still goes up to full speed.
    slow = "powersave" in governors and not any("pstate" in driver for driver in drivers)
    fix = (
        "`echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor`; to keep it: a unit "
        "or cpufrequtils; on a Jetson `sudo jetson_clocks`"
    )
    if slow:
        yield _note.warning(
            "governor_powersave", "the governor powersave holds the processor at its lowest clock rate", fix, **told
        )
    elif governors == ["performance"] or any("pstate" in driver for driver in drivers):
        yield _note.ok("governor", f"governor {shown}", **told)
    else:
        yield _note.info(
            "governor_dynamic",
            f"the governor {shown} raises the clock rate only under load: answers take longer after a pause",
            fix,
            **told,
        )
    yield from _capped(system, folders)


def _capped(system: System, folders: list[str]) -> Iterator[Finding]:
    for folder in folders:
        now, most = system.number(f"{folder}/scaling_max_freq"), system.number(f"{folder}/cpuinfo_max_freq")
        if now and most and now < 0.95 * most:
            yield _note.info(
                "rate_capped",
                f"the clock rate is limited to {now / 1e6:.2f} of {most / 1e6:.2f} GHz (power mode, setting, or heat)",
                "where nobody wanted that see the power mode and `cpupower frequency-info`",
                khz=now,
                most_khz=most,
            )
            return
