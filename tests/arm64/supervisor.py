"""Plays the service manager: starts a service in the guest, and hears what it notifies."""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.arm64.guest import Guest
from tests.arm64.report import StepError
from tests.arm64.unit import Service

NOTIFY = "/run/notify"  # as the guest sees it


class Note(NamedTuple):
    """One datagram of sd_notify."""

    mono_s: float
    pid: int  # of the sender, as the kernel says
    text: str


class Supervisor:
    """One run of a service. As a context it is gone at the end, whatever happened.

    Args:
        log: takes what the service prints.
    """

    def __init__(self, guest: Guest, service: Service, log: Path) -> None:
        self.service = service
        self.notes: list[Note] = []
        self._guest = guest
        self._log_path = log
        self._socket = _bound(guest.path(NOTIFY))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.started_s = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Supervisor:
        service = self.service
        environment = {
            **service.environment,
            "HOME": service.state,
            "USER": service.user,
            "LOGNAME": service.user,
            "STATE_DIRECTORY": service.state,
            "NOTIFY_SOCKET": NOTIFY,
            "WATCHDOG_USEC": str(round(service.watchdog_s * 1e6)),
        }
        self._thread.start()
        self.started_s = time.monotonic()
        with self._log_path.open("wb") as log:
            self.process = self._guest.start(service.argv(), environment, _mounts(self._guest, service), log)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        self._end.set()
        self._thread.join(5)
        self._socket.close()
        self._guest.path(NOTIFY).unlink(missing_ok=True)

    def said(self, word: str) -> list[Note]:
        """The notes with that line, of the main process: systemd takes no others (NotifyAccess=main)."""
        assert self.process is not None
        return [note for note in self.notes if word in note.text.split("\n") and note.pid == self.process.pid]

    def wait(self, condition: Callable[[], object], timeout_s: float, what: str) -> None:
        """Wait for something that the service brings about.

        Raises:
            StepError: it did not come in time, or the service has ended.
        """
        assert self.process is not None
        limit_s = time.monotonic() + timeout_s
        while not condition():
            if self.process.poll() is not None:
                raise StepError(f"the service ended with {self.process.returncode} before {what}: {self.tail()}")
            if time.monotonic() > limit_s:
                raise StepError(f"waited {timeout_s:g} s in vain for {what}: {self.tail()}")
            time.sleep(0.05)

    def stop(self) -> tuple[int, float]:
        """SIGTERM, as systemd does it; exit code and seconds that it took.

        Raises:
            StepError: it took longer than TimeoutStopSec.
        """
        assert self.process is not None
        began_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(self.service.stop_s)
        except subprocess.TimeoutExpired as error:
            raise StepError(f"no end within {self.service.stop_s:g} s of SIGTERM: {self.tail()}") from error
        return code, time.monotonic() - began_s

    def longest_silence_s(self) -> float:
        """Between READY and now, without a sign of life."""
        times = [note.mono_s for word in ("READY=1", "WATCHDOG=1") for note in self.said(word)]
        times = [*sorted(times), time.monotonic()]
        return max(b - a for a, b in itertools.pairwise(times))

    def log(self) -> str:
        """All it has printed."""
        return self._log_path.read_text(errors="replace")

    def tail(self) -> str:
        """The last it has printed."""
        return self.log()[-1500:]

    def _listen(self) -> None:
        while not self._end.is_set():
            if select.select([self._socket], [], [], 0.2)[0]:
                data, ancillary, _flags, _address = self._socket.recvmsg(65536, socket.CMSG_SPACE(12))
                pid = struct.unpack("iII", ancillary[0][2])[0] if ancillary else 0
                self.notes.append(Note(time.monotonic(), pid, data.decode(errors="replace")))


def _mounts(guest: Guest, service: Service) -> list[str]:
    """As the unit has it: a system that is read only but for the state, and a temporary folder of its own."""
    state = str(guest.path(service.state).resolve())
    return ["noexec:", state, service.state, "tmp:", "/tmp", "strict:"]


def _bound(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path itself may be longer than a socket's name may be
    finally:
        os.close(folder)
    path.chmod(0o777)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return made
