"""The box as the checks see it: files below a root, commands with a time limit, and what the kernel tells.

Every check reads through a `System`, so that the same check runs on this machine and on a tree of files that was
copied from another one. Nothing here raises for what is not there: a box lacks most of what can be asked for.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LARGEST_READ: Final = 1 << 20  # bytes; no file that a check reads is near this
COMMAND_S: Final = 5.0


@dataclass(frozen=True)
class Ran:
    """What became of a command. `code` is None when it did not end in time."""

    code: int | None
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its last words, for a message."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True)
class Discipline:
    """What the kernel's clock discipline says (adjtimex)."""

    synchronised: bool
    max_error_s: float


@dataclass(frozen=True)
class Usage:
    """Of a file system, for those who are not root."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int


class System:
    """Reads one box.

    Args:
        root: where its file tree begins; `/` is this machine.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    # --- files ---

    def path(self, name: str | Path) -> Path:
        """Where an absolute path of the box lies here."""
        return self.root / str(name).lstrip("/")

    def text(self, name: str | Path) -> str | None:
        """A small text file without its last line break; None when it is not there or cannot be read."""
        data = self.data(name)
        return None if data is None else data.decode("utf-8", "replace").strip("\x00").rstrip("\n")

    def data(self, name: str | Path) -> bytes | None:
        """As `text`, as bytes."""
        try:
            # Opened so that neither a pipe nor a device can hold us up.
            handle = os.open(self.path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError:
            return None
        try:
            return _read_all(handle)
        except OSError:  # some files of /sys exist and have nothing to say
            return None
        finally:
            os.close(handle)

    def number(self, name: str | Path) -> int | None:
        """A file that holds one integer, decimal or with 0x; None when it does not."""
        try:
            return int((self.text(name) or "").strip(), 0)
        except ValueError:
            return None

    def exists(self, name: str | Path) -> bool:
        """Whether it is there; a link that leads nowhere is not."""
        try:
            return self.path(name).exists()
        except OSError:
            return False

    def names(self, name: str | Path) -> list[str]:
        """What a folder holds, sorted; nothing when it is not there."""
        try:
            return sorted(os.listdir(self.path(name)))
        except OSError:
            return []

    def glob(self, pattern: str) -> list[str]:
        """Absolute paths of the box that match, sorted."""
        try:
            return sorted("/" + str(p.relative_to(self.root)) for p in self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []

    def real(self, name: str | Path) -> str:
        """The path of the box with every link followed."""
        found, root = os.path.realpath(self.path(name)), os.path.realpath(self.root)
        return "/" + os.path.relpath(found, root) if found.startswith(root) else found

    def link(self, name: str | Path) -> str | None:
        """What a link says; None when it is none."""
        try:
            return os.readlink(self.path(name))
        except OSError:
            return None

    def stat(self, name: str | Path) -> os.stat_result | None:
        """Its status, links followed; None when it is not there or may not be looked at."""
        try:
            return self.path(name).stat()
        except OSError:
            return None

    def may(self, name: str | Path, mode: int) -> bool:
        """Whether this user may (os.R_OK, os.W_OK, os.X_OK)."""
        return os.access(self.path(name), mode)

    def usage(self, name: str | Path) -> Usage | None:
        """How full the file system is that holds this path."""
        try:
            found = os.statvfs(self.path(name))
        except OSError:
            return None
        return Usage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail)

    # --- commands ---

    def which(self, program: str) -> str | None:
        """Where a program lies; also looked for where an ordinary user's PATH does not lead."""
        return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin:/usr/local/bin")

    def run(self, command: Sequence[str], limit_s: float = COMMAND_S) -> Ran | None:
        """Run a program to its end, without a shell, a terminal or an input. None: there is no such program.

        One that does not end in time is killed with all that it has started.
        """
        program = self.which(command[0])
        if program is None:
            return None
        try:
            child = subprocess.Popen(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
            )
        except OSError as error:
            return Ran(126, "", error.strerror or str(error))
        return _outcome(child, limit_s)

    # --- the kernel and this process ---

    def now(self) -> float:
        """Wall clock, seconds since 1970 UTC."""
        return time.time()

    def user(self) -> int:
        """Effective user id."""
        return os.geteuid()

    def groups(self) -> set[int]:
        """Group ids of this process."""
        return {os.getegid(), *os.getgroups()}

    def environment(self) -> Mapping[str, str]:
        """Of this process."""
        return os.environ

    def machine(self) -> str:
        """Architecture, such as `aarch64`."""
        return platform.machine()

    def python(self) -> tuple[int, int, int]:
        """Version of the Python that runs this."""
        return sys.version_info[:3]

    def discipline(self) -> Discipline | None:
        """The state of the kernel's clock discipline; None where it cannot be asked."""
        return _adjtimex()

    def ioctl(self, handle: int, request: int, buffer: bytearray) -> int:
        """Ask a driver; fills the buffer. Raises OSError as the driver says."""
        return int(fcntl.ioctl(handle, request, buffer, True))


def _read_all(handle: int) -> bytes:
    parts, left = [], LARGEST_READ
    while left > 0 and (part := os.read(handle, min(left, 65536))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _outcome(child: subprocess.Popen[bytes], limit_s: float) -> Ran:
    try:
        out, err = child.communicate(timeout=limit_s)
        return Ran(child.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
    except subprocess.TimeoutExpired:
        _kill(child)
        return Ran(None, "", f"it did not end within {limit_s:g} s")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """With everything that it started, and without waiting for ever for one that hangs in the kernel."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        child.kill()
    try:
        child.communicate(timeout=1.0)
    except subprocess.TimeoutExpired:
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


class _Timex(ctypes.Structure):
    """The head of the kernel's `struct timex`; what follows is not read, but has to have its room."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


_UNSYNCHRONISED = 0x40  # STA_UNSYNC
_TIME_ERROR = 5


def _adjtimex() -> Discipline | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    buffer = _Timex()
    state = call(ctypes.byref(buffer))
    if state < 0:
        return None
    unsynchronised = state == _TIME_ERROR or bool(buffer.status & _UNSYNCHRONISED)
    return Discipline(not unsynchronised, buffer.maxerror / 1e6)
