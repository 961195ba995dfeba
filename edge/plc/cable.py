"""What connects the simulated PLC to a station: a pty with a name that stays, or a real serial port."""

from __future__ import annotations

import contextlib
import os
import tty
from pathlib import Path
from typing import Protocol

from edge.config import Plc
from edge.errors import PlcError
from edge.plc.port import SerialPort


class Cable(Protocol):
    """The PLC's end of the line. What cannot be written at once is lost, as on a real line."""

    @property
    def is_in(self) -> bool:
        """Whether it can carry anything."""

    def plug(self) -> None:
        """Put it in; nothing when it is, or cannot be just now."""

    def pull(self) -> None:
        """Take it out."""

    def fileno(self) -> int:
        """For `select`; only while it is in."""

    def read(self) -> bytes:
        """What has come; b"" for nothing."""

    def write(self, data: bytes) -> int:
        """Bytes that were written."""


class PtyCable:
    """A pseudo-terminal. Each plug makes a new one, and the link points to it: so does /dev/serial/by-id.

    The link is there only while the cable is in.
    """

    def __init__(self, link: Path | None = None) -> None:
        """`link`: where the station finds the port; None: it has to be told `path` after each plug."""
        self.path = ""
        self._link = link
        self._fds: tuple[int, int] | None = None

    @property
    def is_in(self) -> bool:
        """See `Cable`."""
        return self._fds is not None

    def plug(self) -> None:
        """See `Cable`.

        Raises:
            PlcError: the link cannot be made there.
        """
        if self._fds is not None:
            return
        master, slave = os.openpty()
        tty.setraw(slave)  # until the station sets it: no echo of what we say
        os.set_blocking(master, False)
        # The other end stays open here too, so that a station that comes and goes is no end of the line for us.
        self._fds = master, slave
        self.path = os.ttyname(slave)
        if self._link is not None:
            try:
                _point(self._link, self.path)
            except OSError as error:
                self.pull()
                raise PlcError(f"cannot make the link {self._link} to the pty: {error.strerror}") from error

    def pull(self) -> None:
        """See `Cable`. Who has the other end open sees it hang up."""
        if self._link is not None and self._link.is_symlink():
            with contextlib.suppress(OSError):
                self._link.unlink()
        for fd in self._fds or ():
            os.close(fd)
        self._fds = None

    def fileno(self) -> int:
        """See `Cable`."""
        return self._master()

    def read(self) -> bytes:
        """See `Cable`."""
        try:
            return os.read(self._master(), 65536)
        except BlockingIOError:
            return b""

    def write(self, data: bytes) -> int:
        """See `Cable`."""
        try:
            return os.write(self._master(), data)
        except BlockingIOError:
            return 0

    def _master(self) -> int:
        if self._fds is None:
            raise PlcError("the cable is out")
        return self._fds[0]


class PortCable:
    """A real serial port. Pulling it only lets go of it; `plug` opens it again."""

    def __init__(self, settings: Plc) -> None:
        self._port = SerialPort(settings)
        self.problem = ""

    @property
    def is_in(self) -> bool:
        """See `Cable`."""
        return self._port.is_open

    def plug(self) -> None:
        """See `Cable`."""
        if not self._port.is_open:
            try:
                self._port.open()
                self.problem = ""
            except PlcError as fault:
                self.problem = str(fault)

    def pull(self) -> None:
        """See `Cable`."""
        self._port.close()

    def fileno(self) -> int:
        """See `Cable`."""
        return self._port.fileno()

    def read(self) -> bytes:
        """See `Cable`."""
        try:
            return self._port.read()
        except PlcError as fault:
            self.problem = str(fault)
            return b""

    def write(self, data: bytes) -> int:
        """See `Cable`."""
        try:
            self._port.write(data)
        except PlcError as fault:
            self.problem = str(fault)
            return 0
        return len(data)


def _point(link: Path, target: str) -> None:
    if link.exists() and not link.is_symlink():
        raise FileExistsError(17, "there is a file of this name")
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
