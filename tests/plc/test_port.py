"""The serial port, on real pseudo-terminals. A link that is pointed to a new one plays an adapter that comes back."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.config import Plc
from edge.errors import PlcError
from edge.plc import port as port_module
from edge.plc.cable import PtyCable
from edge.plc.port import SerialPort, open_problem


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[PtyCable]:
    cable = PtyCable(tmp_path / "plc")
    cable.plug()
    yield cable
    cable.pull()


@pytest.fixture
def port(cable: PtyCable, tmp_path: Path) -> Iterator[SerialPort]:
    port = SerialPort(Plc(port=str(tmp_path / "plc")))
    port.open()
    yield port
    port.close()


def test_bytes_go_both_ways_unchanged(cable: PtyCable, port: SerialPort) -> None:
    every = bytes(range(256))
    cable.write(every)
    read = b""
    while len(read) < 256:
        piece = port.read(timeout_s=1)
        assert piece
        read += piece
    port.write(every)
    assert (read, cable.read()) == (every, every), "no echo, no translation, no flow control"


def test_a_read_without_input_comes_back_in_time(port: SerialPort) -> None:
    began = time.monotonic()
    assert port.read(timeout_s=0.05) == b""
    assert 0.04 < time.monotonic() - began < 1


def test_a_read_takes_no_more_than_it_is_told(cable: PtyCable, port: SerialPort) -> None:
    cable.write(b"abcdef")
    assert port.read(4, timeout_s=1) == b"abcd"
    assert port.read(4, timeout_s=1) == b"ef"


def test_what_came_before_it_was_opened_is_thrown_away(cable: PtyCable, port: SerialPort) -> None:
    port.close()
    cable.write(b"T 1 - 1\n")
    port.open()
    cable.write(b"new")
    assert port.read(timeout_s=1) == b"new"


def test_nobody_else_gets_it_while_it_is_open(port: SerialPort) -> None:
    with pytest.raises(PlcError, match="in use by another process"):
        SerialPort(Plc(port=port.path)).open()
    port.close()
    other = SerialPort(Plc(port=port.path))
    other.open()
    other.close()


def test_a_stuck_line_is_an_error_within_its_time(port: SerialPort, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with pytest.raises(PlcError, match="the line is stuck"):
        for _ in range(1000):
            port.write(b"x" * 1000)  # nobody reads
    assert time.monotonic() - began < port_module.WRITE_S + 1
    assert not port.is_open
    began = time.monotonic()
    port.open()
    port.close()
    assert time.monotonic() - began < 1, "output that cannot leave does not hold up the close"


@pytest.mark.parametrize("use", ["read", "write", "check"])
def test_an_unplug_is_an_error_and_closes(use: str, cable: PtyCable, port: SerialPort) -> None:
    cable.pull()
    uses = {"read": lambda: port.read(timeout_s=1), "write": lambda: port.write(b"x"), "check": port.check}
    with pytest.raises(PlcError, match="the port is opened again"):
        uses[use]()
    assert not port.is_open
    with pytest.raises(PlcError, match="no serial port"):
        port.open()
    cable.plug()
    port.open()
    cable.write(b"back")
    assert port.read(timeout_s=1) == b"back"


def test_an_unplug_ends_a_wait_at_once(cable: PtyCable, port: SerialPort) -> None:
    threading.Timer(0.05, cable.pull).start()
    began = time.monotonic()
    with pytest.raises(PlcError):
        port.read(timeout_s=10)
    assert time.monotonic() - began < 2


def test_a_path_that_leads_to_another_device_is_noticed(cable: PtyCable, port: SerialPort, tmp_path: Path) -> None:
    port.check()
    other = PtyCable(tmp_path / "plc")
    other.plug()
    with pytest.raises(PlcError, match="leads to another device now"):
        port.check()
    port.open()
    other.write(b"other")
    assert port.read(timeout_s=1) == b"other"
    other.pull()


def test_a_device_without_modem_lines_says_so_and_goes_on(cable: PtyCable, port: SerialPort) -> None:
    with pytest.raises(PlcError, match="has no line RTS"):
        port.set_line("rts", True)
    cable.write(b"on")
    assert port.read(timeout_s=1) == b"on"


@pytest.mark.parametrize(
    ("path", "expected", "why"),
    [
        ("/dev/serial/by-id/usb-none", "there is no serial port /dev/serial/by-id/usb-none: plug the adapter in", ""),
        ("/dev/null", "cannot be opened as a serial port", "a device, but none with a line"),
        (str(Path(__file__)), "cannot be opened as a serial port", "a file"),
        (str(Path(__file__).parent), "cannot be opened as a serial port", "a folder"),
    ],
)
def test_what_cannot_be_opened_is_named(path: str, expected: str, why: str) -> None:
    with pytest.raises(PlcError) as caught:
        SerialPort(Plc(port=path)).open()
    assert expected in str(caught.value), why


@pytest.mark.parametrize(
    ("code", "expected", "why"),
    [
        (errno.ENOENT, "/dev/serial/by-id has usb-FTDI_A, usb-FTDI_B", "what is plugged in helps to find the name"),
        (errno.EACCES, "group `dialout`", "the remedy"),
        (errno.EAGAIN, "in use by another process", "the lock of pyserial"),
        (errno.EBUSY, "in use by another process", "the kernel's"),
        (errno.EIO, os.strerror(errno.EIO), "anything else in the system's words"),
    ],
)
def test_the_remedy_fits_the_cause(code: int, expected: str, why: str) -> None:
    text = open_problem("/dev/ttyUSB0", OSError(code, "x"), lambda: ["usb-FTDI_A", "usb-FTDI_B"])
    assert expected in text, why
    assert "/dev/ttyUSB0" in text


def test_a_baud_that_the_device_cannot_is_a_named_error(cable: PtyCable, tmp_path: Path) -> None:
    odd = SerialPort(Plc(port=str(tmp_path / "plc"), baud=123_457, parity="even", stop_bits=2))
    try:
        odd.open()  # a pty takes any
    except PlcError as fault:
        assert "plc.baud" in str(fault)
    odd.close()
