"""Runs commands in the emulated root, with mounts of their own, with or without a network."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.arm64.report import StepError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# The shell that `unshare` starts: mounts what follows its own name, ends them at `--`, and becomes the command.
PREPARE = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for name in $DEVICES; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
ln -s /proc/self/fd "$root/dev/fd"
mkdir -m 1777 "$root/dev/shm"
while [ "$1" != -- ]; do
    case $1 in
        ro:*) mkdir -p "$root${3}"; mount --bind "$2" "$root$3"; mount -o remount,bind,ro "$root$3"; shift 3 ;;
        stick:*)
            mkdir -p "$root${3}"; mount --bind "$2" "$root$3"
            mount -o remount,bind,ro,nosuid,nodev,noexec "$root$3"; shift 3 ;;
        noexec:*)
            mount --bind "$2" "$root$3"; mount -o remount,bind,nosuid,nodev,noexec "$root$3"; shift 3 ;;
        tmp:*) mount -t tmpfs -o mode=1777 tmpfs "$root$2"; shift 2 ;;
        strict:*) mount -o remount,bind,ro "$root"; shift ;;
    esac
done
shift
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Done:
    """How a command in the guest has ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """All it said, for a message."""
        return (self.out + self.err).strip()


@dataclass
class Guest:
    """The emulated box.

    Attributes:
        root: its `/`.
        shown: folders of the host that it sees, read only: place in the guest -> folder.
    """

    root: Path
    shown: dict[str, Path] = field(default_factory=dict)

    def run(
        self,
        *command: str,
        network: bool = False,
        mounts: Sequence[str] = (),
        timeout_s: float = 600.0,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command as root to its end.

        Args:
            network: leave it the host's network; else it has none at all, not even a loopback.
            mounts: instead of the usual folders, as `PREPARE` reads them.
            log: where all it says goes, too.
        """
        done = subprocess.run(
            self.command(command, network=network, mounts=mounts),
            env={**self.environment(), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if log is not None:
            log.write_text(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\nended with {done.returncode}\n")
        return Done(done.returncode, done.stdout, done.stderr)

    def must(self, *command: str, **how: object) -> Done:
        """The same; a command that fails fails the step."""
        done = self.run(*command, **how)  # type: ignore[arg-type]
        if done.code != 0:
            raise StepError(f"in the guest `{' '.join(command)[:200]}` ended with {done.code}: {done.said[-1500:]}")
        return done

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], mounts: Sequence[str], log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        """Start a service, whose process keeps the number of what is returned; on the host's network.

        Args:
            mounts: instead of the usual ones, as `PREPARE` reads them.
        """
        return subprocess.Popen(
            self.command(command, network=True, mounts=mounts), env={**self.environment(), **environment},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    def command(self, command: Sequence[str], *, network: bool, mounts: Sequence[str] = ()) -> list[str]:
        """What the host has to run for it."""
        apart = ["--mount", *([] if network else ["--net"])]
        shown = [part for place, folder in self.shown.items() for part in ("ro:", str(folder.resolve()), place)]
        return [
            "unshare", *apart, "--", "/bin/sh", "-c", PREPARE, "guest", str(self.root.resolve()),
            *(mounts or shown), "--", *command,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What every command is told, and nothing of the host's own environment."""
        return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "DEVICES": " ".join(DEVICES)}

    def path(self, inside: str) -> Path:
        """Where a file of the guest lies on the host."""
        return self.root / inside.lstrip("/")
