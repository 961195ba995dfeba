"""The only way to a serial device: bounded reads and writes, and every failure of it is a `PlcError`.

Nothing here waits for the line to drain: `tcdrain` has no time limit and never comes back where the other end holds
the line. The path is looked up anew at each opening, so `/dev/serial/by-id/...` finds an adapter that came back under
another device name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import serial

from edge.config import Plc
from edge.errors import PlcError

BY_ID = Path("/dev/serial/by-id")
WRITE_S = 0.5  # for one message; the kernel's buffer takes it at once unless the line is stuck
DRAIN_S = 0.2  # at closing, for what the kernel still holds
READ_MOST = 4096  # bytes of one read, so that a flood of input cannot keep the answers waiting
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 0.5  # before an attempt to open the port again

_PARITY = {"none": serial.PARITY_NONE, "even": serial.PARITY_EVEN, "odd": serial.PARITY_ODD}
# pyserial lets these through: `termios.error` is no OSError, and a port closed meanwhile is a TypeError inside it.
_FAULTS = (OSError, ValueError, TypeError, termios.error)

Line = Literal["rts", "dtr"]


class SerialPort:
    """One serial device, held for this process alone while it is open. For one thread.

    Every method that meets a fault closes the port and raises `PlcError`; `open` begins anew.
    """

    def __init__(self, settings: Plc, idle_lines: Sequence[Line] = ()) -> None:
        """Opens nothing yet.

        Args:
            idle_lines: modem lines that are low while nobody sets them; the others stand high, as adapters expect.
        """
        self.path = settings.port
        self._settings = settings
        self._idle_lines = tuple(idle_lines)
        self._serial: serial.Serial | None = None

    @property
    def is_open(self) -> bool:
        """Whether it was opened and met no fault since."""
        return self._serial is not None

    def open(self) -> None:
        """Open the device that the path leads to now.

        What came in before is thrown away: a trigger of unknown age would be judged by the wrong frame. The PLC sends
        it again, since it got no answer.

        Raises:
            PlcError: with the cause and the remedy.
        """
        self.close()
        try:
            self._serial = _opened(self._settings, self._idle_lines)
        except _FAULTS as error:
            raise PlcError(open_problem(self.path, error)) from error

    def close(self) -> None:
        """Let go of the device within `DRAIN_S`; output that does not leave by then is thrown away.

        The kernel would wait for it up to half a minute inside of `close`.
        """
        port, self._serial = self._serial, None
        if port is None:
            return
        with contextlib.suppress(*_FAULTS):
            until = time.monotonic() + DRAIN_S
            while port.out_waiting and time.monotonic() < until and not _hung_up(port.fileno()):
                time.sleep(0.005)
            port.reset_output_buffer()
        with contextlib.suppress(*_FAULTS):
            port.close()

    def fileno(self) -> int:
        """For `select`; readable too when the device is gone."""
        return self._open_port().fileno()

    def wait(self, timeout_s: float, also: Sequence[int] = ()) -> None:
        """Until there is something to read here or from one of the other descriptors, at most so long."""
        poll = select.poll()
        for fd in (self.fileno(), *also):
            poll.register(fd, select.POLLIN)
        poll.poll(max(timeout_s, 0.0) * 1000)

    def read(self, most: int = READ_MOST, timeout_s: float = 0.0) -> bytes:
        """What has come in; b"" when nothing comes within the time.

        Raises:
            PlcError: the device is gone.
        """
        port = self._open_port()
        try:
            self.wait(timeout_s)
            waiting = port.in_waiting
            if waiting:
                return bytes(port.read(min(waiting, most)))
            gone = _hung_up(port.fileno())
        except _FAULTS as error:
            raise self._failed("cannot be read", error) from error
        if gone:
            raise self._failed("hung up", None)
        return b""

    def write(self, data: bytes) -> None:
        """Hand the whole message to the kernel.

        Raises:
            PlcError: it was not taken whole within `WRITE_S`; how much of it left is not known.
        """
        port = self._open_port()
        try:
            written = port.write(data)
        except serial.SerialTimeoutException as error:
            raise self._failed(f"took no {len(data)} bytes within {WRITE_S:g} s: the line is stuck", None) from error
        except _FAULTS as error:
            raise self._failed("cannot be written", error) from error
        if written != len(data):
            raise self._failed(f"took {written} of {len(data)} bytes", None)

    def set_line(self, line: Line, high: bool) -> None:
        """Set a modem line.

        Raises:
            PlcError: the device has no such lines (it stays open), or it is gone.
        """
        port = self._open_port()
        try:
            setattr(port, line, high)
        except _FAULTS as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTTY, errno.EINVAL):
                raise PlcError(f"{self.path} has no line {line.upper()}: choose another port for the output") from error
            raise self._failed(f"cannot set its line {line.upper()}", error) from error

    def check(self) -> None:
        """Whether the path still leads to the device that is open; to be asked about once a second.

        Raises:
            PlcError: it leads nowhere or to another one: the adapter was unplugged, or is in again.
        """
        port = self._open_port()
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(port.fileno()))
            gone = _hung_up(port.fileno())
        except _FAULTS as error:
            raise self._failed("is gone", error) from error
        if gone:
            raise self._failed("hung up", None)
        if not same:
            raise self._failed("leads to another device now", None)

    def _open_port(self) -> serial.Serial:
        if self._serial is None:
            raise PlcError(f"{self.path} is not open")
        return self._serial

    def _failed(self, what: str, error: Exception | None) -> PlcError:
        self.close()
        cause = f" ({_words(error)})" if error is not None else ""
        return PlcError(f"{self.path} {what}{cause}: check the adapter and its cable; the port is opened again")


class Retry:
    """The pauses between attempts to open a port: short ones first, never over `LONGEST_PAUSE_S`.

    >>> retry = Retry()
    >>> [round(retry.pause_s(), 1) for _ in range(6)]
    [0.1, 0.2, 0.4, 0.5, 0.5, 0.5]
    """

    def __init__(self) -> None:
        self._next_s = SHORTEST_PAUSE_S

    def pause_s(self) -> float:
        """Before the next attempt."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s

    def reset(self) -> None:
        """The port works."""
        self._next_s = SHORTEST_PAUSE_S


def open_problem(path: str, error: Exception, listed: Callable[[], list[str]] | None = None) -> str:
    """Why a port cannot be opened and what to do, in one sentence."""
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR):
        there = (listed or _adapters)()
        seen = f"{BY_ID} has {', '.join(there)}" if there else f"{BY_ID} has no adapter at all"
        return f"there is no serial port {path}: plug the adapter in or correct plc.port; {seen}"
    if code in (errno.EACCES, errno.EPERM):
        return f"{path} may not be opened: let this user into the group `dialout` and start the service again"
    if code in (errno.EBUSY, errno.EAGAIN):
        return f"{path} is in use by another process: end it, `fuser -v {path}` names it"
    return f"{path} cannot be opened as a serial port ({_words(error)}): check plc.port, plc.baud and the adapter"


def _opened(settings: Plc, idle_lines: Sequence[Line]) -> serial.Serial:
    port = serial.Serial(
        baudrate=settings.baud,
        parity=_PARITY[settings.parity],
        stopbits=settings.stop_bits,
        timeout=0,
        write_timeout=WRITE_S,
        exclusive=True,
    )
    port.port = settings.port
    for line in idle_lines:
        setattr(port, line, False)
    port.open()
    with contextlib.suppress(*_FAULTS, NotImplementedError):  # not every driver has it
        port.set_low_latency_mode(True)  # an FTDI adapter otherwise holds bytes back for 16 ms
    return port


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # errors and hang-ups are told anyway
    return bool(poll.poll(0))


def _adapters() -> list[str]:
    try:
        return sorted(entry.name for entry in BY_ID.iterdir())
    except OSError:
        return []


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return " ".join(str(part) for part in error.args) or type(error).__name__
