"""The wheelhouse is made on the host, and installed in the guest as on a box without a network."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.arm64.guest import Guest
from tests.arm64.report import Report, expect

PYTHON = "3.11"  # of the guest's Debian
WHEELHOUSE = "/mnt/wheelhouse"
MADE_FROM = ("setup.py", "pyproject.toml", "edge", "requirements", "systemd")
DOWNLOAD_TIMEOUT_S = 1200.0
INSTALL_TIMEOUT_S = 1800.0


def make_wheelhouse(source: Path, folder: Path, report: Report) -> None:
    """By the project's own script; one that was made from the same files stays."""
    mark = folder.with_name(f"{folder.name}.made-from")
    key = _digest(source, MADE_FROM)
    if not (folder.exists() and mark.exists() and mark.read_text() == key):
        shutil.rmtree(folder, ignore_errors=True)
        done = subprocess.run(
            [source / "requirements/wheelhouse.sh", folder, "--arch", "aarch64", "--python", PYTHON],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S,
        )  # fmt: skip
        expect(
            done.returncode == 0, f"wheelhouse.sh ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
        )
        mark.write_text(key)
    wheels = sorted(folder.rglob("*.whl"))
    foreign = [wheel.name for wheel in wheels if not re.search(r"(aarch64|-none-any)\.whl$", wheel.name)]
    expect(not foreign, f"the wheelhouse holds wheels for another machine: {', '.join(foreign)}")
    size_mb = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    report.show(f"{len(wheels)} wheels, {size_mb:.0f} MB, for aarch64 with Python {PYTHON}", wheels=len(wheels))


def _digest(source: Path, names: Iterable[str]) -> str:
    paths = [path for name in names for path in [source / name, *sorted((source / name).rglob("*"))]]
    total = hashlib.sha256()
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(f"{path.relative_to(source)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def install(guest: Guest, log: Path, report: Report) -> None:
    """By the wheelhouse's own installer, with the network cut; then look at what it has left."""
    network = guest.must("/bin/sh", "-c", "cat /proc/net/dev | tail -n +3; cat /proc/net/route | tail -n +2").out
    expect(network.split()[:1] == ["lo:"] and len(network.splitlines()) == 1, f"the guest has a network: {network}")
    report.show("network namespace of its own: no interface but a loopback that is down, no route")
    guest.must(f"{WHEELHOUSE}/systemd/install.sh", "--image", timeout_s=INSTALL_TIMEOUT_S, log=log)
    for place in ("/opt/edge/current", "/etc/edge/edge.toml", "/etc/systemd/system/edge.service", "/var/lib/edge"):
        expect(os.path.lexists(guest.path(place)), f"install.sh has not made {place}")
    users = guest.path("/etc/passwd").read_text()
    expect(re.search(r"^edge:", users, re.MULTILINE), "install.sh has not made the user edge")
    release = os.readlink(guest.path("/opt/edge/current"))
    report.show(f"install.sh --image: {release}, units, config and the user edge are there", release=release)


def check_install(guest: Guest, report: Report) -> None:
    """The command starts, and has what it needs: without an import error, on ONNX Runtime."""
    version = guest.must("/usr/local/bin/edge", "--version").out.strip()
    ask = "from edge.predictor import installed_runtimes as r; import edge.daemon, edge.line_assembly; print(r())"
    runtimes = guest.must("/opt/edge/current/bin/python", "-c", ask).out.strip()
    expect("'onnxruntime'" in runtimes and "paddlelite" not in runtimes, f"the runtimes are {runtimes}")
    report.show(f"{version}; runtimes {runtimes}", version=version, runtimes=runtimes)
    guest.must("/usr/local/bin/edge", "check-config", "--config", "/etc/edge/edge.toml")
    report.show("the config that was written is in order")


def forget(guest: Guest) -> None:
    """A state folder that is new and empty, as StateDirectory= makes it, and nobody trusted."""
    for place in ("/var/lib/edge", "/etc/edge/trust"):
        shutil.rmtree(guest.path(place), ignore_errors=True)
        guest.path(place).mkdir(parents=True)
    guest.must("/usr/bin/install", "-d", "-o", "edge", "-g", "edge", "-m", "0700", "/var/lib/edge")
