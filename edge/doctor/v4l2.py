"""What a V4L2 camera offers, asked of its driver. Asking does not disturb whoever is streaming from it."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge.doctor.system import System

# Numbers and layouts of linux/videodev2.h, the same on 32 and 64 bits.
QUERYCAP, ENUM_FMT, ENUM_FRAMESIZES, ENUM_FRAMEINTERVALS = 0x80685600, 0xC0405602, 0xC02C564A, 0xC034564B
CAP_CAPTURE, CAP_CAPTURE_MPLANE, CAP_DEVICE_CAPS = 0x1, 0x1000, 0x80000000
BUFFER_CAPTURE, BUFFER_CAPTURE_MPLANE = 1, 9
DISCRETE: Final = 1
MOST: Final = 256  # of anything that is counted up; a driver that never says "no more" ends there


@dataclass(frozen=True)
class Size:
    """A frame size in pixels and the frames a second that it is offered with; none told: any."""

    width: int
    height: int
    fps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Offer:
    """What a camera offers.

    Attributes:
        captures: False for a node that only carries metadata, as many USB cameras have beside the real one.
        formats: frame sizes by FourCC.
        stepwise: formats whose sizes are free up to the largest that is listed.
    """

    card: str
    driver: str
    captures: bool
    formats: dict[str, list[Size]] = field(default_factory=dict)
    stepwise: frozenset[str] = frozenset()

    def has(self, fourcc: str | None, width: int | None, height: int | None) -> bool:
        """Whether a format and size is offered; None: any."""
        return any(
            self._fits(size, code in self.stepwise, width, height)
            for code, sizes in self.formats.items()
            if fourcc is None or code == fourcc
            for size in sizes
        )

    @staticmethod
    def _fits(size: Size, stepwise: bool, width: int | None, height: int | None) -> bool:
        if stepwise:
            return (width or 0) <= size.width and (height or 0) <= size.height
        return width in (None, size.width) and height in (None, size.height)


def ask(system: System, device: str | Path) -> Offer:
    """Open a camera's node and ask.

    Raises:
        OSError: it cannot be opened, or is no V4L2 device.
    """
    handle = os.open(system.path(device), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return _asked(system, handle)
    finally:
        os.close(handle)


def _asked(system: System, handle: int) -> Offer:
    cap = bytearray(104)
    system.ioctl(handle, QUERYCAP, cap)
    capabilities, device_caps = struct.unpack_from("=II", cap, 84)
    caps = device_caps if capabilities & CAP_DEVICE_CAPS else capabilities
    kind = BUFFER_CAPTURE if caps & CAP_CAPTURE else BUFFER_CAPTURE_MPLANE if caps & CAP_CAPTURE_MPLANE else None
    card, driver = _text(cap[16:48]), _text(cap[0:16])
    if kind is None:
        return Offer(card, driver, False)
    formats, stepwise = {}, set()
    for code in _formats(system, handle, kind):
        sizes, free = _sizes(system, handle, code)
        name = code.to_bytes(4, "little").decode("latin-1")
        formats[name] = sizes
        if free:
            stepwise.add(name)
    return Offer(card, driver, True, formats, frozenset(stepwise))


def _formats(system: System, handle: int, kind: int) -> Iterator[int]:
    for index in range(MOST):
        buffer = bytearray(64)
        struct.pack_into("=II", buffer, 0, index, kind)
        if not _told(system, handle, ENUM_FMT, buffer):
            return
        yield struct.unpack_from("=I", buffer, 44)[0]


def _sizes(system: System, handle: int, code: int) -> tuple[list[Size], bool]:
    """The sizes of a format, or the largest one where they are free."""
    sizes: list[Size] = []
    for index in range(MOST):
        buffer = bytearray(44)
        struct.pack_into("=II", buffer, 0, index, code)
        if not _told(system, handle, ENUM_FRAMESIZES, buffer):
            break
        if struct.unpack_from("=I", buffer, 8)[0] != DISCRETE:
            width, height = struct.unpack_from("=I", buffer, 16)[0], struct.unpack_from("=I", buffer, 28)[0]
            return [Size(width, height)], True
        width, height = struct.unpack_from("=II", buffer, 12)
        sizes.append(Size(width, height, tuple(_rates(system, handle, code, width, height))))
    return sizes, False


def _rates(system: System, handle: int, code: int, width: int, height: int) -> Iterator[float]:
    for index in range(MOST):
        buffer = bytearray(52)
        struct.pack_into("=IIII", buffer, 0, index, code, width, height)
        if not _told(system, handle, ENUM_FRAMEINTERVALS, buffer):
            return
        if struct.unpack_from("=I", buffer, 16)[0] != DISCRETE:
            return
        numerator, denominator = struct.unpack_from("=II", buffer, 20)
        if numerator:
            yield round(denominator / numerator, 2)


def _told(system: System, handle: int, request: int, buffer: bytearray) -> bool:
    """False when the driver says that there is no more, or does not know the question."""
    try:
        system.ioctl(handle, request, buffer)
    except OSError:
        return False
    return True


def _text(raw: bytes | bytearray) -> str:
    return bytes(raw).split(b"\0")[0].decode("utf-8", "replace")
