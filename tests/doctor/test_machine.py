"""Clock, disk, memory and heat of three kinds of boxes, as they are and with one thing wrong at a time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.bundle import trust_floor
from edge.config import Config, EvidenceSettings, Paths, SimulatedCamera
from edge.doctor import clock, disk, memory, thermals, visit
from edge.doctor.context import Context
from edge.doctor.mounts import mount_of, partition_of
from edge.doctor.system import Discipline, Ran, System, Usage
from tests.disks import small_disk
from tests.doctor.boxes import GB, NOW, Box, codes, industrial_pc, jetson, raspberry, wrong

BOXES = {"jetson": jetson, "raspberry": raspberry, "industrial_pc": industrial_pc}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (jetson, ["unknown:wear_unknown", "warning:power_mode_low"]),
        (raspberry, []),
        (industrial_pc, []),
    ],
)
def test_a_box_as_it_comes(tmp_path: Path, make, expected) -> None:
    context = Context(make(tmp_path))
    found = [f for module in (clock, disk, memory, thermals) for f in module.check(context)]
    assert wrong(found) == expected
    assert all(f.fix for f in found if f.severity not in ("ok", "info"))


@pytest.mark.parametrize(
    ("make", "name"),
    [(jetson, "NVIDIA Jetson Orin Nano"), (raspberry, "Raspberry Pi 5 Model B"), (industrial_pc, "AAEON BOXER-6404U")],
)
def test_the_board_is_named(tmp_path: Path, make, name) -> None:
    assert visit.board(make(tmp_path)).startswith(name)


# --- clock ---


def clock_of(box: Box, state: str = "/var/lib/edge"):
    return codes(clock.check(Context(box, Config(camera=[SimulatedCamera(id="a")], paths=Paths(state=state)))))


def test_a_clock_before_the_release_is_an_error(tmp_path: Path) -> None:
    found = clock_of(jetson(tmp_path, now=86_400.0))
    assert found["before_release"].severity == "error" and "1970-01-02" in found["before_release"].text


def test_a_clock_before_what_the_repository_signed(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    trust_floor.write(box.put("/var/lib/edge/trust/x").parent, trust_floor.Floor(time=NOW + 86_400 * 30))
    assert "2026-12-30" in clock_of(box)["before_repository"].text


def test_an_ntp_client_without_an_answer_is_told_from_none(tmp_path: Path) -> None:
    box = jetson(tmp_path, discipline=Discipline(False, 16.0))
    assert "systemd-timesyncd runs" in clock_of(box)["not_synchronised"].text
    box.path("/proc/412/comm").unlink()
    assert clock_of(box)["no_ntp"].severity == "warning"


def test_the_hardware_clock_is_compared(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    box.put("/sys/class/rtc/rtc0/since_epoch", f"{int(NOW) - 7300}\n")
    found = clock_of(box)["rtc_apart"]
    assert "2 h behind" in found.text and found.data["apart_s"] == pytest.approx(-7300, abs=1)


def test_a_raspberry_without_an_rtc_battery_is_told(tmp_path: Path) -> None:
    assert "J5" in clock_of(raspberry(tmp_path))["rtc_no_battery"].fix


def test_state_files_from_the_future_mean_that_time_went_back(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    file = box.put("/var/lib/edge/outbox.db", "x")
    os.utime(file, (NOW + 86_400 * 3, NOW + 86_400 * 3))
    assert "outbox.db was written 3.0 days in the future" in clock_of(box)["went_back"].text
    os.utime(file, (NOW - 5, NOW - 5))
    assert "went_back" not in clock_of(box)


# --- disk ---


def disk_of(box: Box, config: Config | None = None):
    return codes(disk.check(Context(box, config)))


@pytest.mark.parametrize(
    ("total", "free", "severity", "why"),
    [
        (64 * GB, 40 * GB, "ok", "room enough"),
        (64 * GB, 450_000_000, "warning", "soon"),
        (64 * GB, 90_000_000, "error", "now"),
        (500_000_000, 30_000_000, "ok", "a small disk with 6 %"),
        (500_000_000, 20_000_000, "warning", "a small disk with 4 %"),
        (500_000_000, 1_000_000, "error", "a small disk with 0.2 %"),
        (4000 * GB, 30 * GB, "ok", "a share of a large disk is still a lot"),
    ],
)
def test_space(total, free, severity, why) -> None:
    assert disk.space_finding("the disk", "/", total, free).severity == severity, why


def test_inodes_run_out_before_bytes_do(tmp_path: Path) -> None:
    box = raspberry(tmp_path, usages={"/": Usage(64 * GB, 40 * GB, 1_000_000, 5_000)})
    assert disk_of(box)["no_inodes"].severity == "error"


def test_a_disk_that_the_kernel_made_read_only(tmp_path: Path) -> None:
    box = raspberry(tmp_path)
    lines = box.path("/proc/self/mountinfo").read_text().replace("rw,errors=remount-ro", "ro,errors=remount-ro")
    box.put("/proc/self/mountinfo", lines)
    box.put("/sys/fs/ext4/mmcblk0p2/errors_count", "17\n")
    found = disk_of(box)
    assert found["read_only"].severity == "error" and "fsck" in found["read_only"].fix
    assert found["file_system_errors"].data["count"] == 17


def test_state_on_an_overlay_is_lost_with_the_power(tmp_path: Path) -> None:
    box = raspberry(tmp_path)
    box.put("/proc/self/mountinfo", "26 1 0:24 / / rw,noatime - overlay overroot rw,lowerdir=/lower\n")
    assert disk_of(box)["volatile"].severity == "error"


@pytest.mark.parametrize(
    ("life", "reserve", "severity"),
    [
        ([1, 2], 1, "ok"),
        ([9, 3], 1, "warning"),
        ([2, 2], 2, "warning"),
        ([11, 4], 1, "error"),
        ([3, 3], 3, "error"),
        ([0, 0], 1, "ok"),
    ],
)
def test_emmc_wear(life, reserve, severity) -> None:
    assert disk.emmc_finding("mmcblk0", life, reserve).severity == severity


def test_emmc_registers_are_read_from_their_files(tmp_path: Path) -> None:
    assert disk_of(industrial_pc(tmp_path))["wear"].data == {"disk": "mmcblk1", "life_time": [1, 2], "pre_eol_info": 1}


def test_an_sd_card_tells_nothing(tmp_path: Path) -> None:
    assert "SN64G" in disk_of(raspberry(tmp_path))["sd_card"].text


NVME = (
    '{"smart_status":{"passed":true},"nvme_smart_health_information_log":'
    '{"critical_warning":%d,"percentage_used":%d,"media_errors":%d}}'
)


@pytest.mark.parametrize(
    ("critical", "used", "media", "severity"),
    [(0, 3, 0, "ok"), (0, 93, 0, "warning"), (0, 3, 2, "warning"), (4, 3, 0, "error")],
)
def test_nvme_health_by_smartctl(tmp_path: Path, critical, used, media, severity) -> None:
    box = jetson(tmp_path, commands={"smartctl": Ran(0, NVME % (critical, used, media), "")})
    found = [f for f in disk.check(Context(box)) if f.code in ("wear", "worn", "worn_out")]
    assert [f.severity for f in found] == [severity]
    assert box.ran[-1][-1] == "/dev/nvme0"


def test_without_root_the_wear_is_unknown_and_says_how_to_know(tmp_path: Path) -> None:
    found = disk_of(jetson(tmp_path, uid=1000))["wear_unknown"]
    assert found.severity == "unknown" and "sudo edge doctor" in found.fix


def test_smartctl_that_says_nothing_is_unknown() -> None:
    assert disk.smart_finding("sda", "X", "").severity == "unknown"
    assert disk.smart_finding("sda", "X", "[]").severity == "unknown"
    assert disk.smart_finding("sda", "X", '{"smart_status":{"passed":false}}').severity == "error"


def test_quotas_that_do_not_fit_the_disk(tmp_path: Path) -> None:
    config = Config(camera=[SimulatedCamera(id="a")], evidence=EvidenceSettings(quota_mb=70_000))
    assert "evidence 70000 MB" in disk_of(raspberry(tmp_path), config)["quotas_too_large"].text


@pytest.mark.parametrize(
    ("times", "severity"), [([2.0, 3.0, 90.0], "ok"), ([40.0, 60.0, 50.0], "warning"), ([250.0] * 3, "error")]
)
def test_the_middle_of_the_sync_times_counts(times, severity) -> None:
    assert disk.sync_finding(Path("/s"), times).severity == severity


def test_a_state_folder_is_really_written_to_and_left_clean(tmp_path: Path) -> None:
    box = raspberry(tmp_path)
    state = box.path("/var/lib/edge")
    state.mkdir(parents=True)
    found = disk_of(box)["sync"] if "sync" in disk_of(box) else disk_of(box)["sync_slow"]
    assert found.data["writes"] == disk.FSYNCS
    assert list(state.iterdir()) == []


def test_a_full_disk_is_really_full(tmp_path: Path) -> None:
    with small_disk(tmp_path / "state", 4) as folder:
        (folder / "fill").write_bytes(b"\0" * 1_000_000)
        with open(folder / "rest", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"\0" * 65536)
        config = Config(camera=[SimulatedCamera(id="a")], paths=Paths(state=str(folder)))
        found = codes(disk.check(Context(System(), config)))
    assert found["full"].severity == "error" and str(folder) in found["full"].text
    assert set(found["full"].data["largest_bytes"]) == {"fill", "rest"}
    assert found["volatile"].data["kind"] == "tmpfs"
    assert found["cannot_write"].severity == "error" and "No space" in found["cannot_write"].text


@contextmanager
def ext4(folder: Path) -> Iterator[str]:
    """A real ext4 in a file, mounted at the folder; the name of its device."""
    image = folder.with_suffix(".img")
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 24_000_000)
    for command in (["mkfs.ext4", "-q", "-F", image], ["mount", "-o", "loop,errors=remount-ro", image, folder]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except OSError as error:
            pytest.skip(f"{command[0]}: {error}")
        if done.returncode != 0:
            pytest.skip(f"an ext4 cannot be mounted here: {done.stderr.strip()}")
    try:
        mount = mount_of(System(), folder)
        assert mount is not None and mount.point == str(folder)
        yield partition_of(System(), mount)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_real_file_system_that_met_an_error(tmp_path: Path) -> None:
    with ext4(tmp_path / "state") as device:
        config = Config(camera=[SimulatedCamera(id="a")], paths=Paths(state=str(tmp_path / "state")))
        before = codes(disk.check(Context(System(), config)))
        trigger = Path(f"/sys/fs/ext4/{device}/trigger_fs_error")
        if not trigger.exists():
            pytest.skip("this kernel cannot be asked for an ext4 error")
        trigger.write_text("doctor")
        after = codes(disk.check(Context(System(), config)))
    assert not {"file_system_errors", "read_only", "cannot_write"} & set(before) and "no_errors" in before
    assert after["file_system_errors"].data["count"] == 1
    assert after["read_only"].severity == after["cannot_write"].severity == "error"


# --- memory ---


@pytest.mark.parametrize(
    ("total_mb", "free_mb", "severity"),
    [(8000, 5000, "ok"), (8000, 350, "warning"), (8000, 100, "error"), (1000, 120, "ok"), (1000, 70, "warning")],
)
def test_memory_that_is_available(total_mb, free_mb, severity) -> None:
    told = {"MemTotal": total_mb * 1024, "MemAvailable": free_mb * 1024}
    assert memory.available_finding(told).severity == severity


def test_killed_processes_and_waiting_ones(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    box.put("/proc/vmstat", "oom_kill_other 9\noom_kill 3\n")
    box.put("/proc/pressure/memory", "some avg10=31.00 avg60=12.50 avg300=3.00 total=1\n")
    found = codes(memory.check(Context(box)))
    assert found["killed"].data["kills"] == 3 and found["stalled"].data["avg60_percent"] == 12.5


# --- heat and power ---


def heat_of(box: Box):
    return codes(thermals.check(Context(box)))


@pytest.mark.parametrize(
    ("celsius", "limit", "critical", "severity", "why"),
    [
        (60, 99, 104.5, "ok", "a Jetson at work"),
        (99.5, 99, 104.5, "error", "5 K below its shutdown"),
        (99.2, 99, 115, "warning", "slowed down"),
        (82, None, 110, "warning", "a Pi without a passive trip"),
        (60, 50, 110, "ok", "a trip that only starts the fan"),
        (92, None, None, "error", "near what no box likes, no limit told"),
    ],
)
def test_heat_by_the_limits_of_the_box(celsius, limit, critical, severity, why) -> None:
    assert thermals.zone_finding(thermals.Zone("cpu", celsius, limit, critical)).severity == severity, why


def test_cooling_that_takes_from_the_processor(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    assert "slowed" not in heat_of(box)  # the fan turns, that is all
    box.put("/sys/class/thermal/cooling_device1/cur_state", "5\n")
    assert "cpufreq-cpu0 at 5 of 14" in heat_of(box)["slowed"].text


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("0", ["not_throttled"]),
        ("50005", ["throttled", "under_voltage"]),
        ("50000", ["was_throttled", "was_under_voltage"]),
        ("80008", ["throttled"]),
        ("10000", ["was_under_voltage"]),
        ("e0002", ["throttled"]),
    ],
)
def test_the_word_of_the_raspberry_firmware(tmp_path: Path, word, expected) -> None:
    box = raspberry(tmp_path)
    box.put("/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled", f"{word}\n")
    assert sorted(code for code in heat_of(box) if "throttled" in code or "voltage" in code) == expected


def test_vcgencmd_is_asked_where_the_file_is_not(tmp_path: Path) -> None:
    box = raspberry(tmp_path, commands={"vcgencmd get_throttled": Ran(0, "throttled=0x50000\n", "")})
    box.path("/sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled").unlink()
    assert "was_under_voltage" in heat_of(box)


def test_a_jetson_in_a_low_power_mode(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    found = heat_of(box)["power_mode_low"]
    assert "is 15W; MAXN_SUPER runs" in found.text and "nvpmodel -m 2" in found.fix
    box.put("/var/lib/nvpmodel/status", "pmode:0002\n")
    assert heat_of(box)["power_mode"].severity == "ok"


def test_nvpmodel_is_asked_where_the_file_is_not(tmp_path: Path) -> None:
    box = jetson(tmp_path, commands={"nvpmodel -q": Ran(0, "NV Power Mode: 25W\n1\n", "")})
    box.path("/var/lib/nvpmodel/status").unlink()
    assert heat_of(box)["power_mode_low"].data["mode"] == "25W"
    box.commands.clear()
    assert heat_of(box)["power_mode_unknown"].severity == "unknown"


def test_over_current_of_a_jetson(tmp_path: Path) -> None:
    box = jetson(tmp_path)
    box.put("/sys/class/hwmon/hwmon3/oc3_event_cnt", "37\n")
    assert heat_of(box)["over_current"].data["counts"]["oc3_event_cnt"] == 37


def test_governors(tmp_path: Path) -> None:
    assert heat_of(industrial_pc(tmp_path / "x"))["governor"].severity == "ok"  # powersave of intel_pstate
    box = raspberry(tmp_path / "pi")
    assert heat_of(box)["governor_dynamic"].severity == "info"
    box.put("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n")
    assert heat_of(box)["governor_powersave"].severity == "warning"


def test_an_intel_processor_that_was_slowed_down(tmp_path: Path) -> None:
    box = industrial_pc(tmp_path)
    box.put("/sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count", "412\n")
    assert heat_of(box)["was_slowed"].data["count"] == 412


def test_a_box_without_sensors_is_unknown(tmp_path: Path) -> None:
    assert heat_of(Box(tmp_path))["no_sensor"].severity == "unknown"
