"""Trees of files as three kinds of boxes have them, and a `System` that reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from edge.doctor.finding import Finding
from edge.doctor.system import Discipline, Ran, System, Usage

NOW = 1_796_000_000.0  # 2026-11-30
GB = 1_000_000_000
WELL_KEPT = Discipline(True, 0.012)


class Box(System):
    """A box whose files lie below a folder and whose kernel and programs say what they are told to.

    `commands` goes by the first word, or by as many words as the key has; a program that is in no key does not exist.
    """

    def __init__(
        self,
        root: Path,
        *,
        machine: str = "x86_64",
        commands: Mapping[str, Ran] | None = None,
        uid: int = 0,
        denied: tuple[str, ...] = (),
        discipline: Discipline | None = WELL_KEPT,
        now: float = NOW,
        usages: Mapping[str, Usage] | None = None,
        ioctl: Callable[[int, bytearray], int] | None = None,
    ) -> None:
        super().__init__(root)
        self.commands = dict(commands or {})
        self.uid, self.denied, self._machine, self._now = uid, denied, machine, now
        self._discipline, self._usages, self._ioctl = discipline, dict(usages or {}), ioctl
        self.ran: list[list[str]] = []

    def which(self, program: str) -> str | None:
        name = program.rpartition("/")[2]
        return f"/usr/bin/{name}" if any(key.split()[0] == name for key in self.commands) else None

    def run(self, command, limit_s: float = 5.0) -> Ran | None:
        words = [command[0].rpartition("/")[2], *command[1:]]
        self.ran.append(words)
        fitting = [key for key in self.commands if words[: len(key.split())] == key.split()]
        return self.commands[max(fitting, key=len)] if fitting else None

    def may(self, name, mode: int) -> bool:
        return str(name) not in self.denied and self.exists(name)

    def usage(self, name) -> Usage | None:
        return self._usages.get(str(name), Usage(64 * GB, 40 * GB, 4_000_000, 3_900_000))

    def user(self) -> int:
        return self.uid

    def groups(self) -> set[int]:
        return {self.uid}

    def machine(self) -> str:
        return self._machine

    def now(self) -> float:
        return self._now

    def discipline(self) -> Discipline | None:
        return self._discipline

    def ioctl(self, handle: int, request: int, buffer: bytearray) -> int:
        if self._ioctl is None:
            raise OSError(25, "Inappropriate ioctl for device")
        return self._ioctl(request, buffer)

    def put(self, name: str, text: str | bytes = "") -> Path:
        """Write a file of the box."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def link(self, name: str | Path, to: str | None = None) -> str | None:
        """With `to`: make a link, relative as the kernel's are. Without: as `System.link`."""
        if to is None:
            return super().link(name)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.symlink_to(to if to.startswith(".") else os.path.relpath(self.path(to), path.parent))
        return None


def codes(findings) -> dict[str, Finding]:
    """The findings by code; of several with one code the worst that came first."""
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(finding.code, finding)
    return found


def wrong(findings) -> list[str]:
    """Codes of what is not well, sorted."""
    return sorted(f"{f.severity}:{f.code}" for f in findings if f.severity in ("warning", "error", "unknown"))


def _common(box: Box) -> None:
    box.put("/proc/meminfo", "MemTotal:        8139420 kB\nMemFree:          412340 kB\nMemAvailable:    5321004 kB\n"
            "SwapTotal:       4069708 kB\nHugePages_Total:       0\n")  # fmt: skip
    box.put("/proc/vmstat", "nr_free_pages 103085\noom_kill 0\n")
    box.put(
        "/proc/pressure/memory",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 total=0\n",
    )
    for name in ("possible", "present"):
        box.put(f"/sys/devices/system/cpu/{name}", "0-3\n")
    box.put("/proc/1/comm", "systemd\n")
    box.put("/proc/412/comm", "systemd-timesyn\n")
    box.put("/proc/cmdline", "root=PARTUUID=1 rootwait\n")


def _disk(box: Box, number: str, disk: str, partition: str, kind: str = "ext4", bus: str = "pci0000:00") -> None:
    folder = f"/sys/devices/{bus}/block/{disk}"
    box.put(f"{folder}/{partition}/partition", "1\n")
    box.put(f"{folder}/size", "125042688\n")
    box.link(f"/sys/dev/block/{number}", f"{folder}/{partition}")
    box.link(f"/sys/block/{disk}", folder)
    box.put("/proc/self/mountinfo",
            f"22 27 0:21 / /proc rw,relatime - proc proc rw\n"
            f"26 1 {number} / / rw,noatime shared:1 - {kind} /dev/{partition} rw,errors=remount-ro\n"
            "31 26 0:27 / /run rw,nosuid,nodev shared:11 - tmpfs tmpfs rw,size=813944k,mode=755\n")  # fmt: skip
    box.put(f"/sys/fs/ext4/{partition}/errors_count", "0\n")


def _zone(box: Box, number: int, kind: str, milli: int, **trips: int) -> None:
    folder = f"/sys/class/thermal/thermal_zone{number}"
    box.put(f"{folder}/type", f"{kind}\n")
    box.put(f"{folder}/temp", f"{milli}\n")
    for index, (trip, value) in enumerate(trips.items()):
        box.put(f"{folder}/trip_point_{index}_type", f"{trip}\n")
        box.put(f"{folder}/trip_point_{index}_temp", f"{value}\n")


def _cooling(box: Box, number: int, kind: str, now: int, most: int) -> None:
    folder = f"/sys/class/thermal/cooling_device{number}"
    for name, value in {"type": kind, "cur_state": now, "max_state": most}.items():
        box.put(f"{folder}/{name}", f"{value}\n")


def _policy(box: Box, number: int, governor: str, driver: str, most_khz: int, limit_khz: int | None = None) -> None:
    folder = f"/sys/devices/system/cpu/cpufreq/policy{number}"
    values = {
        "scaling_governor": governor,
        "scaling_driver": driver,
        "cpuinfo_max_freq": most_khz,
        "scaling_max_freq": limit_khz or most_khz,
    }
    for name, value in values.items():
        box.put(f"{folder}/{name}", f"{value}\n")


def arm_cpuinfo(part: str, cores: int, model: str = "") -> str:
    """/proc/cpuinfo of an ARM box; with `asimddp` among its features."""
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    block = (
        "processor\t: {}\nBogoMIPS\t: 62.50\nFeatures\t: {}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x0\nCPU part\t: {}\nCPU revision\t: 1\n\n"
    )
    return "".join(block.format(core, features, part) for core in range(cores)) + (
        f"Model\t\t: {model}\n" if model else ""
    )


NVPMODEL = """
###########################
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online

# MODE DEFINITIONS
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_ONLINE CORE_3 1
CPU_ONLINE CORE_4 1
CPU_ONLINE CORE_5 1
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ 1497600
GPU MAX_FREQ 612000000

< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_ONLINE CORE_3 1
CPU_ONLINE CORE_4 1
CPU_ONLINE CORE_5 1
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ 1344000
GPU MAX_FREQ 918000000

< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 1
CPU_ONLINE CORE_3 1
CPU_ONLINE CORE_4 1
CPU_ONLINE CORE_5 1
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ -1
GPU MAX_FREQ -1

< PM_CONFIG DEFAULT=0 >
"""


def jetson(root: Path, **more) -> Box:
    """A Jetson Orin Nano developer kit on NVMe, in its 15 W mode."""
    box = Box(root, machine="aarch64", **more)
    _common(box)
    _disk(box, "259:1", "nvme0n1", "nvme0n1p1")
    box.put("/sys/block/nvme0n1/device/model", "Samsung SSD 980 500GB                   \n")
    box.put("/sys/block/nvme0n1/device/state", "live\n")
    box.put("/proc/device-tree/model", b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    box.put("/proc/cpuinfo", arm_cpuinfo("0xd42", 6))
    box.put("/etc/nvpmodel.conf", NVPMODEL)
    box.put("/var/lib/nvpmodel/status", "pmode:0000\n")
    zones = {"cpu-thermal": 51312, "gpu-thermal": 50093, "soc0-thermal": 49531, "tj-thermal": 51312}
    for number, (kind, milli) in enumerate(zones.items()):
        _zone(box, number, kind, milli, passive=99000, critical=104500)
    _zone(box, 7, "cv0-thermal", 0)
    _cooling(box, 0, "pwm-fan", 1, 3)
    _cooling(box, 1, "cpufreq-cpu0", 0, 14)
    _cooling(box, 2, "devfreq-17000000.gpu", 0, 8)
    _cooling(box, 3, "cpu-throttle-alert", 0, 1)
    for name in ("oc1_event_cnt", "oc2_event_cnt", "oc3_event_cnt"):
        box.put(f"/sys/class/hwmon/hwmon3/{name}", "0\n")
    for number in (0, 4):
        _policy(box, number, "schedutil", "tegra194", 1728000, 1497600)
    for rtc, system in (("rtc0", 1), ("rtc1", 0)):
        box.put(f"/sys/class/rtc/{rtc}/since_epoch", f"{int(NOW)}\n")
        box.put(f"/sys/class/rtc/{rtc}/hctosys", f"{system}\n")
    return box


def raspberry(root: Path, **more) -> Box:
    """A Raspberry Pi 5 on an SD card, without an RTC battery."""
    box = Box(root, machine="aarch64", **more)
    _common(box)
    _disk(box, "179:2", "mmcblk0", "mmcblk0p2", bus="platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa")
    box.put("/sys/block/mmcblk0/device/type", "SD\n")
    box.put("/sys/block/mmcblk0/device/name", "SN64G\n")
    box.put("/proc/device-tree/model", b"Raspberry Pi 5 Model B Rev 1.0\0")
    box.put("/proc/cpuinfo", arm_cpuinfo("0xd0b", 4, "Raspberry Pi 5 Model B Rev 1.0"))
    _zone(box, 0, "cpu-thermal", 58400, critical=110000, active=50000)
    _cooling(box, 0, "pwm-fan", 2, 4)
    box.put("/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", "0\n")
    _policy(box, 0, "ondemand", "cpufreq-dt", 2400000)
    box.put("/sys/class/rtc/rtc0/since_epoch", f"{int(NOW) - 1}\n")
    box.put("/sys/class/rtc/rtc0/hctosys", "1\n")
    box.put("/sys/class/rtc/rtc0/battery_voltage", "0\n")
    return box


def industrial_pc(root: Path, **more) -> Box:
    """An x86 box with eMMC."""
    box = Box(root, machine="x86_64", **more)
    _common(box)
    _disk(box, "179:2", "mmcblk1", "mmcblk1p2", bus="pci0000:00/0000:00:1a.0/mmc_host/mmc1/mmc1:0001")
    for name, value in {"type": "MMC", "name": "DG4064", "life_time": "0x01 0x02", "pre_eol_info": "0x01"}.items():
        box.put(f"/sys/block/mmcblk1/device/{name}", f"{value}\n")
    box.put("/sys/class/dmi/id/sys_vendor", "AAEON\n")
    box.put("/sys/class/dmi/id/product_name", "BOXER-6404U\n")
    box.put("/proc/cpuinfo", "".join(
        f"processor\t: {core}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Atom(TM) x6425E\n"
        "flags\t\t: fpu vme sse4_2 aes\n\n" for core in range(4)))  # fmt: skip
    _zone(box, 0, "acpitz", 27800, critical=119000)
    _zone(box, 1, "x86_pkg_temp", 61000, passive=-274000)
    _zone(box, 2, "iwlwifi_1", 0)
    _cooling(box, 0, "Processor", 0, 3)
    _cooling(box, 1, "intel_powerclamp", -1, 100)
    for core in range(4):
        box.put(f"/sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", "0\n")
    _policy(box, 0, "powersave", "intel_pstate", 3000000)
    box.put("/sys/class/rtc/rtc0/since_epoch", f"{int(NOW)}\n")
    box.put("/sys/class/rtc/rtc0/hctosys", "1\n")
    return box
