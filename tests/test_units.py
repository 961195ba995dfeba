"""What systemd/ holds: valid from systemd 249 on, hardened, complete, and not too tight for what the daemon does."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.brokers import wait_until

ROOT = Path(__file__).parents[1]
SYSTEMD = ROOT / "systemd"
UNITS = sorted(path.name for pattern in ("*.service", "*.timer") for path in SYSTEMD.glob(pattern))
HOME = "/opt/edge/current/"
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")

# The version of systemd that brought each directive, as its manual has it; below 240 it is said as 0.
SINCE = {
    "Unit": {"Description": 0, "After": 0, "Wants": 0, "BindsTo": 0, "ConditionPathExists": 0,
             "StartLimitIntervalSec": 0, "StartLimitBurst": 0},
    "Install": {"WantedBy": 0},
    "Timer": {"OnCalendar": 0, "RandomizedDelaySec": 0, "FixedRandomDelay": 247, "AccuracySec": 0, "Persistent": 0},
    "Service": {
        "Type": 0, "NotifyAccess": 0, "ExecStart": 0, "User": 0, "Group": 0, "StateDirectory": 0,
        "StateDirectoryMode": 0, "WorkingDirectory": 0, "UMask": 0, "Environment": 0, "WatchdogSec": 0,
        "TimeoutStartSec": 0, "TimeoutStopSec": 0, "Restart": 0, "RestartSec": 0, "KillMode": 0, "SendSIGKILL": 0,
        "OOMScoreAdjust": 0, "Nice": 0, "IOSchedulingClass": 0, "CPUWeight": 0, "LogRateLimitIntervalSec": 240,
        "LogRateLimitBurst": 240, "LoadCredential": 247, "NoNewPrivileges": 0, "CapabilityBoundingSet": 0,
        "AmbientCapabilities": 0, "ProtectSystem": 0, "ProtectHome": 0, "ReadWritePaths": 0, "NoExecPaths": 248,
        "PrivateTmp": 0, "PrivateMounts": 239, "PrivateNetwork": 0, "BindPaths": 0, "ProtectKernelTunables": 0,
        "ProtectKernelModules": 0, "ProtectKernelLogs": 244, "ProtectControlGroups": 0, "ProtectHostname": 242,
        "ProtectClock": 245, "ProtectProc": 247, "RestrictNamespaces": 0, "RestrictRealtime": 0,
        "RestrictSUIDSGID": 242, "RestrictAddressFamilies": 0, "LockPersonality": 0, "RemoveIPC": 0,
        "SystemCallArchitectures": 0, "SystemCallFilter": 0, "SystemCallErrorNumber": 0, "DevicePolicy": 0,
        "DeviceAllow": 0, "IPAddressDeny": 0, "IPAddressAllow": 0,
    },
}  # fmt: skip


def run(*command: object, limit_s: float = 100) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL)


def directives(path: Path) -> list[tuple[str, str, str]]:
    """(section, name, value) of each line that says something."""
    section, found = "", []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.append((section, name, value))
    return found


def values(unit: str, name: str) -> list[str]:
    return [value for _, key, value in directives(SYSTEMD / unit) if key == name]


def installed() -> dict[str, tuple[str, str]]:
    """Name in systemd/ -> (mode, place), as systemd/FILES says."""
    lines = [line.split() for line in (SYSTEMD / "FILES").read_text().splitlines() if not line.startswith("#")]
    return {name: (mode, place) for name, mode, place in lines}


# --- valid ---


@needs_analyze
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    for unit in UNITS:  # verify wants programs that exist
        (tmp_path / unit).write_text(re.sub(rf"{HOME}\S+", "/bin/true", (SYSTEMD / unit).read_text()))
    done = run("systemd-analyze", "verify", "--man=no", "--generators=no", *(tmp_path / unit for unit in UNITS))
    said = [line for line in done.stderr.splitlines() if "edge" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.parametrize("path", [*UNITS, "examples/credentials.conf", "examples/network.conf"])
def test_every_directive_is_known_to_systemd_249(path: str) -> None:
    for section, name, _ in directives(SYSTEMD / path):
        assert name in SINCE[section], f"{name} in [{section}]: look up since when systemd has it, and add it here"
        assert SINCE[section][name] <= 249, f"{name} came with systemd {SINCE[section][name]}"


# --- hardened ---


@needs_analyze
@pytest.mark.parametrize(
    ("unit", "most", "why"),
    [
        ("edge.service", 16, "what is left: network, devices, /proc, code that Paddle Lite writes"),
        ("edge-update.service", 16, "the same, for the proof of a bundle"),
        ("edge-import@.service", 21, "root, which it needs for mount; the reader of the stick is not"),
    ],
)
def test_exposure(unit: str, most: int, why: str) -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most}", SYSTEMD / unit)
    assert done.returncode == 0, f"{why}: {done.stdout.splitlines()[-1:]} {done.stderr}"


@pytest.mark.parametrize("unit", [name for name in UNITS if name.endswith(".service")])
def test_no_service_forgets_the_basics(unit: str) -> None:
    lines = (SYSTEMD / unit).read_text().splitlines()
    wanted = ["NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateMounts=yes"]
    wanted += ["UMask=0077", "RestrictNamespaces=yes", "SystemCallFilter=@system-service", "DevicePolicy=closed"]
    assert [line for line in wanted if not any(have.startswith(line) for have in lines)] == []
    for name in ("TimeoutStartSec", "TimeoutStopSec", "LogRateLimitBurst"):
        assert values(unit, name), f"{unit} has no {name}"


def test_the_daemon_is_watched_and_comes_back() -> None:
    lines = (SYSTEMD / "edge.service").read_text().splitlines()
    for line in ("Type=notify", "WatchdogSec=30", "Restart=on-failure", "StateDirectory=edge", "StartLimitBurst=20"):
        assert line in lines
    assert not values("edge.service", "MemoryDenyWriteExecute"), "Paddle Lite writes its kernels at run time"
    assert not values("edge.service", "ProcSubset"), "Paddle Lite reads /proc/cpuinfo"
    assert not values("edge.service", "LoadCredential"), "for a secret that is absent the start would fail"
    assert not values("edge.service", "SupplementaryGroups"), "for a group that is absent, too"


# --- complete ---


def test_everything_here_is_installed_or_stays_with_the_release() -> None:
    files = installed()
    stays = {"FILES", "install.sh", "edge-import"}
    assert {path.name for path in SYSTEMD.iterdir() if path.is_file()} == set(files) | stays
    for name, (_, place) in files.items():
        assert (SYSTEMD / name).is_file(), name
        assert not place.startswith("/usr"), f"{place}: that is the distribution's"
    assert len({place for _, place in files.values()}) == len(files)


@pytest.mark.parametrize("unit", [name for name in UNITS if name.endswith(".service")])
def test_what_a_unit_runs_is_there(unit: str) -> None:
    for value in values(unit, "ExecStart"):
        program = value.split()[0]
        assert program.startswith(HOME)
        if program != f"{HOME}bin/edge":
            path = SYSTEMD / program.removeprefix(f"{HOME}systemd/")
            assert os.access(path, os.X_OK), f"{unit} runs {program}"


def test_units_name_each_other() -> None:
    rule = (SYSTEMD / "90-edge-import.rules").read_text()
    wanted = re.findall(r'SYSTEMD_WANTS\}\+?="([^"@]+)@%k\.service"', rule)
    assert [f"{name}@.service" for name in wanted] == ["edge-import@.service"]
    for timer in (name for name in UNITS if name.endswith(".timer")):
        assert timer.replace(".timer", ".service") in installed()
    for unit in re.findall(r"\.wants/(edge[a-z-]*\.(?:service|timer))\"", (SYSTEMD / "install.sh").read_text()):
        assert unit in installed() and values(unit, "WantedBy"), unit
    for unit in UNITS:
        assert installed()[unit] == ("0644", f"/etc/systemd/system/{unit}")


def test_folders_that_a_unit_writes_to_are_made_at_boot() -> None:
    made = [line.split()[1] for line in (SYSTEMD / "edge.tmpfiles.conf").read_text().splitlines() if line[0] == "d"]
    paths = " ".join(values("edge-import@.service", "ReadWritePaths")).split()
    assert [path for path in paths if not path.startswith("-") and path not in made] == []
    assert values("edge.service", "StateDirectory") == ["edge"]


@pytest.mark.skipif(shutil.which("udevadm") is None, reason="no udevadm here")
def test_udev_reads_the_rule() -> None:
    if run("udevadm", "verify", "--help").returncode != 0:
        pytest.skip("this udevadm cannot verify rules")
    done = run("udevadm", "verify", SYSTEMD / "90-edge-import.rules")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sample_config_and_the_example_agree_on_the_credential() -> None:
    names = [value.partition(":")[0] for value in values("examples/credentials.conf", "LoadCredential")]
    sample = (ROOT / "edge/sample.toml").read_text()
    assert set(re.findall(r"/run/credentials/edge\.service/(\w+)", sample)) <= set(names)


# --- not too tight: the daemon under the very filter of its unit ---

LIBSECCOMP = ctypes.util.find_library("seccomp")

# Loads the filter as systemd would, then becomes the command. Its first argument is the names that are allowed.
UNDER_FILTER = """
import ctypes, json, os, sys
lib = ctypes.CDLL(sys.argv[1])
lib.seccomp_init.restype = ctypes.c_void_p
allow, eperm = 0x7FFF0000, 0x00050001
filter = ctypes.c_void_p(lib.seccomp_init(ctypes.c_uint32(eperm)))
for name in json.loads(sys.argv[2]):
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        assert lib.seccomp_rule_add(filter, ctypes.c_uint32(allow), number, 0) == 0, name
assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0  # no_new_privs
assert lib.seccomp_load(filter) == 0
os.execv(sys.argv[3], sys.argv[3:])
"""


def calls_of(group: str) -> set[str]:
    """Names of the system calls of a group such as @system-service, with those of the groups in it."""
    done = run("systemd-analyze", "syscall-filter", "--no-pager", group)
    assert done.returncode == 0, done.stderr
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    names = {word for word in words if word and not word.startswith(("#", "@"))}
    return names.union(*(calls_of(word) for word in words if word.startswith("@")))


def allowed_calls(unit: str) -> set[str]:
    """As systemd reads SystemCallFilter: the first line allows, those with ~ take away."""
    allowed: set[str] = calls_of("@default")
    for value in values(unit, "SystemCallFilter"):
        for word in value.removeprefix("~").split():
            names = calls_of(word) if word.startswith("@") else {word}
            allowed = allowed - names if value.startswith("~") else allowed | names
    return allowed


def under_filter(unit: str, *command: object) -> list[str]:
    names = json.dumps(sorted(allowed_calls(unit)))
    return [str(word) for word in (sys.executable, "-c", UNDER_FILTER, LIBSECCOMP, names, *command)]


needs_seccomp = pytest.mark.skipif(
    LIBSECCOMP is None or shutil.which("systemd-analyze") is None, reason="no libseccomp or systemd-analyze here"
)


@needs_seccomp
def test_the_filter_of_these_tests_is_a_filter() -> None:
    code = "import os; os.sched_setaffinity(0, os.sched_getaffinity(0)); print('so far'); os.setuid(os.getuid())"
    done = run(*under_filter("edge.service", sys.executable, "-c", code))
    assert (done.returncode, done.stdout) == (1, "so far\n")
    assert "PermissionError" in done.stderr


def pattern(path: Path) -> Path:
    noise = np.random.default_rng(1).integers(0, 255, (640, 640, 3), np.uint8)
    assert cv2.imwrite(str(path), noise)
    return path


@needs_seccomp
@pytest.mark.parametrize("runtime", ["paddlelite", "onnxruntime"])
def test_the_daemon_works_under_its_filter(runtime: str, tmp_path: Path) -> None:
    """Canary in a child, inference, a camera's child process, the ledger on disk, a broker that is away, the stop."""
    pytest.importorskip(runtime)
    pattern(tmp_path / "a.png")
    frames = "import os, sys\nwhile True: sys.stdout.buffer.write(os.urandom(30000))"
    config, log = tmp_path / "edge.toml", tmp_path / "log"
    config.write_text(
        f'[paths]\nstate = "{tmp_path / "state"}"\nbundle = "{ROOT / "models/pcb"}"\n'
        f'[mqtt]\nport = 1\n[runtime]\nprefer = "{runtime}"\n'
        f'[[camera]]\nid = "files"\nsource = "folder"\npath = "{tmp_path}/*.png"\nloop = true\n'
        f'[[camera]]\nid = "child"\nsource = "pipe"\nwidth = 100\nheight = 100\nformat = "bgr"\n'
        f"command = {json.dumps([sys.executable, '-c', frames])}\n"
    )
    command = under_filter("edge.service", sys.executable, "-m", "edge", "run", "--config", config)
    with log.open("wb") as file:
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        wanted = (f"on {runtime}", "camera files: streaming", "camera child: streaming", "first verdict")
        wait_until(lambda: all(words in log.read_text() for words in wanted), 90, f"{wanted} in {log}")
        daemon.terminate()
        assert daemon.wait(30) == 0, log.read_text()
    finally:
        daemon.kill()
    assert "Operation not permitted" not in log.read_text()
