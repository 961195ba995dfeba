"""Serial ports: there, named, free; and a loopback on real pseudo terminals, good and bad."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.config import Config, Output, Plc, SimulatedCamera
from edge.doctor import loopback, serial_ports
from edge.doctor.context import Context
from edge.doctor.system import System
from tests.doctor.boxes import Box, codes, raspberry, wrong

FTDI = "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"


def config(port: str, *outputs: Output) -> Config:
    return Config(camera=[SimulatedCamera(id="a")], plc=Plc(port=port), output=list(outputs))


def box_with_adapter(root: Path, **more) -> Box:
    box = raspberry(root, **more)
    box.put("/dev/ttyUSB0")
    box.link(FTDI, "../../ttyUSB0")
    box.put("/sys/bus/usb-serial/devices/ttyUSB0/latency_timer", "16\n")
    box.path("/proc/1/fd").mkdir()
    return box


def look(box: Box, port: str = FTDI, *outputs: Output):
    found = list(serial_ports.check(Context(box, config(port, *outputs))))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


def test_an_adapter_by_its_own_name(tmp_path: Path) -> None:
    found = look(box_with_adapter(tmp_path))
    assert wrong(found) == []
    assert codes(found)["name"].data["device"] == "/dev/ttyUSB0"
    assert "the daemon lowers that" in codes(found)["latency"].text


def test_a_name_that_may_change_is_told_with_one_that_does_not(tmp_path: Path) -> None:
    assert FTDI in codes(look(box_with_adapter(tmp_path), "/dev/ttyUSB0"))["name_not_stable"].fix


def test_an_unplugged_adapter_is_told_with_what_is_there(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path)
    found = codes(look(box, "/dev/serial/by-id/usb-Prolific-if00"))["missing"]
    assert FTDI in found.text and "dmesg" in found.fix
    box.path(FTDI).unlink()
    assert "no USB serial adapter at all" in codes(look(box, "/dev/ttyUSB7"))["missing"].text


def test_a_link_that_leads_nowhere_is_an_unplugged_adapter(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path)
    box.path("/dev/ttyUSB0").unlink()
    assert wrong(look(box)) == ["error:missing"]


def test_who_holds_the_port(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path)
    box.put("/proc/977/comm", "agetty\n")
    box.put("/proc/977/cmdline", b"/sbin/agetty\0-o\0ttyUSB0\0")
    box.path("/proc/977/fd").mkdir(parents=True)
    box.path("/proc/977/fd/0").symlink_to("/dev/ttyUSB0")
    found = codes(look(box))["held"]
    assert "agetty (process 977)" in found.text and "serial-getty@ttyUSB0" in found.fix


def test_the_daemon_may_hold_it_and_then_latency_counts(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path)
    box.put("/proc/500/comm", "edge\n")
    box.put(
        "/proc/500/cmdline",
        b"/opt/edge/current/bin/python\0/opt/edge/current/bin/edge\0run\0--config\0/etc/edge/edge.toml\0",
    )
    box.path("/proc/500/fd").mkdir(parents=True)
    box.path("/proc/500/fd/9").symlink_to("/dev/ttyUSB0")
    assert wrong(look(box)) == ["warning:latency"]
    box.put("/sys/bus/usb-serial/devices/ttyUSB0/latency_timer", "1\n")
    assert wrong(look(box)) == []


def test_what_only_root_can_see_is_unknown(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path, uid=1000, denied=("/proc/1/fd", FTDI))
    assert wrong(look(box)) == ["error:no_permission", "unknown:holder_unknown"]


def test_a_console_and_a_modem_manager_are_rivals(tmp_path: Path) -> None:
    box = box_with_adapter(tmp_path)
    box.put("/proc/cmdline", "console=tty1 console=ttyAMA0,115200 root=/dev/mmcblk0p2\n")
    box.put("/dev/ttyAMA0")
    assert "error:console" in wrong(look(box, "/dev/ttyAMA0"))
    box.put("/proc/800/comm", "ModemManager\n")
    assert "warning:modem_manager" in wrong(look(box))


def test_ports_of_outputs_are_looked_at_too(tmp_path: Path) -> None:
    relay = Output(id="light", on=["NG"], delay_ms=0.0, via="rts", port="/dev/ttyUSB9")
    assert "output light" in codes(look(box_with_adapter(tmp_path), FTDI, relay))["missing"].text


# --- loopback, on real pseudo terminals ---


@contextmanager
def bridge(change: Callable[[bytes], bytes]) -> Iterator[str]:
    """A port whose other end sends back what it gets, as `change` has it."""
    ours, theirs = os.openpty()
    stop = threading.Event()

    def echo() -> None:
        while not stop.is_set():
            try:
                os.write(ours, change(os.read(ours, 4096)))
            except OSError:  # nobody has it open just now
                stop.wait(0.01)

    thread = threading.Thread(target=echo, daemon=True)
    os.set_blocking(ours, False)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        stop.set()
        thread.join(5)
        os.close(ours)
        os.close(theirs)


def every_20th_wrong() -> Callable[[bytes], bytes]:
    count = 0

    def change(data: bytes) -> bytes:
        nonlocal count
        changed = bytearray(data)
        for index in range(len(data)):
            count += 1
            if count % 20 == 0:
                changed[index] ^= 0x04
        return bytes(changed)

    return change


def only_the_first(most: int) -> Callable[[bytes], bytes]:
    left = most

    def change(data: bytes) -> bytes:
        nonlocal left
        kept, left = data[:left], max(left - len(data), 0)
        return kept

    return change


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda data: data, "loopback", "all 516 bytes came back"),
        (lambda data: b"", "loopback_silent", "nothing of 4 bytes"),
        (lambda data: bytes(b & 0x7F for b in data), "loopback_seven_bits", "eighth bit"),
        (lambda data: bytes(b ^ 0xFF for b in data), "loopback_garbled", "4 of 4 bytes"),
        (every_20th_wrong(), "loopback_garbled", "of 516 bytes came back wrong"),
        (only_the_first(100), "loopback_short", "100 of 516 bytes"),
    ],
    ids=["bridged", "open", "seven bits", "swapped", "noisy", "stuck"],
)
def test_a_loopback_on_a_real_port(monkeypatch, change, code, words) -> None:
    monkeypatch.setattr(loopback, "LISTEN_S", 0.05)
    monkeypatch.setattr(loopback, "GRACE_S", 0.3)
    with bridge(change) as port:
        found = list(serial_ports.check(Context(System(), None, loopback=port)))[-1]
    assert found.code == code and words in found.text
    assert (found.severity == "ok") == (code == "loopback")


def test_a_line_on_which_somebody_talks_is_left_alone() -> None:
    ours, theirs = os.openpty()
    heard = bytearray()
    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.02):
            os.write(ours, b"#TRIG 1\r\n")

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        found = serial_ports.loopback_finding(os.ttyname(theirs), None)
        os.set_blocking(ours, False)
        with contextlib.suppress(BlockingIOError):
            heard += os.read(ours, 4096)
    finally:
        stop.set()
        thread.join(5)
        os.close(theirs)
        os.close(ours)
    assert found.code == "loopback_busy"
    assert loopback.PROBE not in heard


def test_a_loopback_uses_the_plc_settings_and_says_why_it_cannot_open() -> None:
    found = serial_ports.loopback_finding("/dev/ttyNONE7", Plc(port="/dev/x", baud=9600))
    assert found.code == "loopback_failed" and "/dev/ttyNONE7" in found.text
