"""sd_notify against a real datagram socket, as systemd holds one."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge import notify


@contextmanager
def listener(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield sock


@pytest.mark.parametrize(
    ("call", "expected", "why"),
    [
        (lambda: notify.ready(), b"READY=1", "the plain form"),
        (lambda: notify.ready("pcb on paddlelite"), b"READY=1\nSTATUS=pcb on paddlelite", "state and status at once"),
        (lambda: notify.watchdog(), b"WATCHDOG=1", "a sign of life"),
        (lambda: notify.stopping(), b"STOPPING=1", "the stop"),
        (lambda: notify.extend_timeout(1.5), b"EXTEND_TIMEOUT_USEC=1500000", "more time, in whole microseconds"),
        (lambda: notify.extend_timeout(60, "a"), b"EXTEND_TIMEOUT_USEC=60000000\nSTATUS=a", "and why"),
        (lambda: notify.extend_timeout(-1), b"EXTEND_TIMEOUT_USEC=0", "never a number that systemd refuses"),
        (lambda: notify.status("a\nREADY=1\r\n b"), b"STATUS=a READY=1 b", "a line break would forge an assignment"),
        (lambda: notify.status("50 \u00b5s"), "STATUS=50 \u00b5s".encode(), "UTF-8"),
    ],
)
def test_systemd_hears(
    call: Callable[[], bool], expected: bytes, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(str(tmp_path / "n"), monkeypatch) as sock:
        assert call(), why
        assert sock.recv(4096) == expected, why


def test_a_socket_in_the_abstract_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(f"@edge-test-{os.getpid()}", monkeypatch) as sock:
        assert notify.ready()
        assert sock.recv(4096) == b"READY=1"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (None, "not started by systemd"),
        ("", "an empty variable"),
        ("/nonexistent/notify", "systemd is gone"),
        ("vsock:2:1234", "a kind that is not spoken here"),
        ("/" + "x" * 200, "too long for a socket"),
    ],
)
def test_without_a_listener_nothing_happens(address: str | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.ready(), why
    assert not notify.watchdog(), why


def test_a_full_socket_does_not_hold_up_the_inspection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(str(tmp_path / "n"), monkeypatch):
        began = time.monotonic()
        assert not all(notify.watchdog() for _ in range(100_000)), "the queue of a listener that hangs fills up"
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("usec", "pid", "expected", "why"),
    [
        ("30000000", "ours", 30.0, "as systemd sets it"),
        ("30000000", "", 30.0, "without a process id it is for whoever reads it"),
        ("30000000", "1", 0.0, "meant for another process"),
        ("", "", 0.0, "no watchdog"),
        ("soon", "", 0.0, "nonsense"),
    ],
)
def test_the_interval_of_the_watchdog(
    usec: str, pid: str, expected: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_interval_s() == expected, why
