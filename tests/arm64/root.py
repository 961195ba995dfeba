"""Makes a Debian root for arm64 on a machine of another kind, without root's second stage, which takes minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.arm64.report import Report, expect

QEMU = "qemu-aarch64-static"
BINFMT = Path("/proc/sys/fs/binfmt_misc")
# ELF, 64 bits, little endian, executable or shared, machine 183 (aarch64); F: opened now, so that a chroot has it too.
HANDLER = (
    r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:"
)
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"  # what Raspberry Pi OS is made of
# What such a system has, and no more: a Python that can make environments, and what useradd and the like come with.
PACKAGES = ("python3", "python3-venv", "libgomp1", "passwd", "util-linux")
# What PAM includes everywhere, and the package's script writes.
PAM = {
    "auth": "auth required pam_unix.so",
    "account": "account required pam_unix.so",
    "password": "password required pam_unix.so",
    "session": "session required pam_unix.so",
    "session-noninteractive": "session required pam_unix.so",
}
UNPACKED = ".unpacked"
TIMEOUT_S = 1200.0


def missing() -> str:
    """What this machine lacks for it, in words; "" when nothing."""
    if os.geteuid() != 0:
        return "it needs root, for chroot and mount"
    for command in ("debootstrap", QEMU, "unshare", "chroot", "dpkg-deb", "mosquitto"):
        if shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"{command} is not installed"
    if not (BINFMT / "register").exists():
        return f"binfmt_misc is not mounted at {BINFMT}"
    return ""


def register_handler(report: Report) -> None:
    """Have the kernel run programs for aarch64 through QEMU."""
    name = BINFMT / "qemu-aarch64"
    if not name.exists():
        interpreter = shutil.which(QEMU) or ""
        (BINFMT / "register").write_text(f"{HANDLER}{interpreter}:OCF")
        report.show(f"programs for aarch64 run through {interpreter}")
    text = name.read_text()
    expect("enabled" in text and "F" in text.partition("flags:")[2].split()[0], f"{name} is no use: {text}")


def make(root: Path, debs: Path, report: Report) -> None:
    """A root with the packages above; one that is complete stays as it is.

    Args:
        root: the folder that becomes `/`.
        debs: keeps packages between runs.
    """
    wanted = " ".join((SUITE, *PACKAGES))
    mark = root / UNPACKED
    if not (mark.exists() and mark.read_text() == wanted):
        if root.exists():
            shutil.rmtree(root)
        debs.mkdir(parents=True, exist_ok=True)
        _debootstrap(root, debs)
        _unpack(root)
        _configure(root)
        mark.write_text(wanted)
    about = _ask(
        root, "/usr/bin/python3", "-c", "import platform; print(platform.machine(), platform.python_version())"
    )
    expect(about.startswith("aarch64 3."), f"the root's Python says {about!r}")
    packages = len(list((root / "var/cache/apt/archives").glob("*.deb")))
    report.show(f"{SUITE} of {packages} packages, Python on {about}", python=about.split()[1], packages=packages)


def _debootstrap(root: Path, debs: Path) -> None:
    _run(
        "debootstrap", "--foreign", "--arch=arm64", "--variant=minbase", f"--include={','.join(PACKAGES)}",
        f"--cache-dir={debs.resolve()}", SUITE, str(root), MIRROR,
    )  # fmt: skip


def _unpack(root: Path) -> None:
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        _run("dpkg-deb", "--extract", str(package), str(root))


def _configure(root: Path) -> None:
    """What the packages' own scripts would have done, as far as anything here depends on it."""
    for name in ("passwd", "group"):
        shutil.copyfile(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    for name in ("shadow", "gshadow"):
        (root / "etc" / name).touch(0o640)
    for name, line in PAM.items():
        (root / "etc/pam.d" / f"common-{name}").write_text(f"{line}\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    _ask(root, "/usr/sbin/ldconfig")
    _ask(root, "/usr/sbin/pwconv")


def _ask(root: Path, *command: str) -> str:
    return _run("chroot", str(root), *command)


def _run(*command: str) -> str:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        command, env={"PATH": path, "LC_ALL": "C.UTF-8"}, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    said = (done.stdout + done.stderr)[-800:]
    expect(done.returncode == 0, f"{' '.join(command)[:200]} ended with {done.returncode}: {said}")
    return done.stdout.strip()
