"""A loopback test: what is sent on TX has to come back on RX, where somebody has bridged the two.

It says where a silent PLC link is broken: a port that passes is well up to the bridge, so the fault lies beyond it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

from edge.config import Plc
from edge.plc.port import SerialPort

LISTEN_S: Final = 0.3  # is somebody else on the line
GRACE_S: Final = 1.0  # beyond the time that the bytes take on the wire
PROBE: Final = b"\x55\xaa\x0f\xf0"  # goes first, alone: where nothing is bridged a controller gets no more than this
PATTERN: Final = bytes((37 * i + 11) % 256 for i in range(256)) * 2  # each byte twice, no two alike beside each other

Outcome = Literal["passed", "busy", "silent", "short", "seven_bits", "garbled"]


@dataclass(frozen=True)
class Loop:
    """What came back. `wrong` counts the bytes that differ or did not come, of `sent`."""

    outcome: Outcome
    sent: int = 0
    came: int = 0
    wrong: int = 0
    took_ms: float = 0.0


def test(settings: Plc) -> Loop:
    """Send a pattern and compare; takes some seconds at most, whatever the port does.

    Raises:
        PlcError: the port cannot be opened or does not take what is written.
    """
    port = SerialPort(settings)
    port.open()
    try:
        if _read(port, 1, LISTEN_S):
            return Loop("busy")
        began = time.monotonic()
        came = _exchange(port, PROBE, settings)
        if not came:
            return Loop("silent", sent=len(PROBE))
        if came == PROBE:
            came += _exchange(port, PATTERN, settings)
            sent = PROBE + PATTERN
        else:
            sent = PROBE
        return judge(sent, came, 1000 * (time.monotonic() - began))
    finally:
        port.close()


def judge(sent: bytes, came: bytes, took_ms: float = 0.0) -> Loop:
    """What the bytes that came back say.

    >>> judge(b"\\x55\\xaa", b"\\x55\\x2a").outcome, judge(b"\\x55\\xaa", b"\\x55").outcome
    ('seven_bits', 'short')
    """
    wrong = sum(a != b for a, b in zip(sent, came, strict=False)) + abs(len(sent) - len(came))
    outcome: Outcome
    if came == sent:
        outcome = "passed"
    elif came == bytes(byte & 0x7F for byte in sent):
        outcome = "seven_bits"
    elif sent.startswith(came):
        outcome = "short"
    else:
        outcome = "garbled"
    return Loop(outcome, len(sent), len(came), wrong, took_ms)


def _exchange(port: SerialPort, data: bytes, settings: Plc) -> bytes:
    """Send in small pieces, so that no buffer on the way is overrun, and take what comes."""
    byte_s = 12 / settings.baud  # start, eight bits, parity, two stop bits at most
    came = b""
    for begin in range(0, len(data), 64):
        piece = data[begin : begin + 64]
        port.write(piece)
        came += _read(port, len(piece), len(piece) * byte_s + GRACE_S)
        if len(came) < begin + len(piece):
            break
    return came


def _read(port: SerialPort, count: int, limit_s: float) -> bytes:
    until, came = time.monotonic() + limit_s, b""
    while len(came) < count and (left := until - time.monotonic()) > 0:
        came += port.read(timeout_s=left)
    return came
