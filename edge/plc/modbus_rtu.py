"""Modbus RTU on a stream of bytes: where a frame begins and ends, and what a request asks for. No I/O.

Protocol data units, frame sizes and the CRC are pymodbus's. Where frames lie in the stream is decided here: RTU marks
them by silence alone, and USB adapters bunch bytes, so that the silence between two frames may not be seen and one
may be seen inside of a frame. So a frame ends where its length says, if its CRC is right; silence only ends what went
wrong. (MODBUS over Serial Line, Specification and Implementation Guide V1.02, 2.5.1.1.)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu import register_message as messages

SHORTEST, LONGEST = 4, 256  # bytes of a frame: unit, function, data, CRC
BROADCAST = 0
CHARACTERS_OF_SILENCE, LEAST_SILENCE_S = 3.5, 0.00175
# USB adapters hold bytes back for up to 16 ms (FTDI's default), so a shorter pause means nothing.
ADAPTER_S = 0.02

READ, READ_INPUT, WRITE_ONE, WRITE, READ_WRITE = 3, 4, 6, 16, 23

_REQUESTS = DecodePDU(is_server=True)
_ANSWERS = DecodePDU(is_server=False)
_MALFORMED = (ModbusException, ValueError, IndexError, struct.error)


@dataclass(frozen=True)
class Frame:
    """A frame whose CRC was right; `pdu` begins with the function code."""

    unit: int
    pdu: bytes


@dataclass(frozen=True)
class Access:
    """What a request does to registers; it writes before it reads."""

    function: int
    read_at: int = 0
    read_count: int = 0
    write_at: int = 0
    values: Sequence[int] = ()


class RefusedError(Exception):
    """A request that gets a Modbus exception. Never leaves this package."""

    def __init__(self, code: ExcCodes) -> None:
        super().__init__(code.name)
        self.code = code


class Splitter:
    """Finds the frames in what a slave hears: requests to it and to others, and the others' answers.

    In step, frames are cut off by their length. What is damaged or unknown puts it out of step; then everything is kept
    until a silence, and what lies in it of requests to us is taken. The rest is thrown away and counted.

    >>> splitter = Splitter(unit=1)
    >>> request = read_request(1, 100, 13)
    >>> [frame.pdu.hex() for frame in splitter.feed(request + request[:3])]
    ['030064000d']
    >>> len(splitter.feed(request[3:])), splitter.silence(), splitter.garbage
    (1, [], 0)
    """

    def __init__(self, unit: int) -> None:
        """`unit` is ours: what goes to it is a request."""
        self._unit = unit
        self._buffer = bytearray()
        self._in_step = True
        self.garbage = 0  # pieces that were thrown away

    @property
    def waiting(self) -> bool:
        """Whether there is something that a silence would end."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes, oldest first."""
        self._buffer += data
        frames = []
        while self._in_step and (frame := self._first()) is not None:
            frames.append(frame)
        if len(self._buffer) > 2 * LONGEST:
            del self._buffer[:-LONGEST]
        return frames

    def silence(self) -> list[Frame]:
        """The line was silent for longer than a frame may be: what can be rescued, and a new beginning."""
        data = bytes(self._buffer)
        self._reset()
        if SHORTEST <= len(data) <= LONGEST and crc_ok(data):  # of a function whose length nobody knows
            return [Frame(data[0], data[1:-2])]
        self.garbage += bool(data)
        return self._rescued(data)

    def clear(self) -> None:
        """Forget what was heard: the port was opened anew."""
        self._reset()

    def _reset(self) -> None:
        self._buffer.clear()
        self._in_step = True

    def _first(self) -> Frame | None:
        if len(self._buffer) < SHORTEST:
            return None
        data = bytes(self._buffer[:LONGEST])
        sizes = self._sizes(data)
        for size in sizes:
            if size <= len(data) and crc_ok(data[:size]):
                del self._buffer[:size]
                return Frame(data[0], data[1 : size - 2])
        self._in_step = any(size > len(data) for size in sizes)
        return None

    def _rescued(self, data: bytes) -> list[Frame]:
        """The requests to us that lie between garbage."""
        frames = []
        at = 0
        while at <= len(data) - SHORTEST:
            size = _size(_REQUESTS, data[at:]) if data[at] == self._unit else None
            if size is not None and at + size <= len(data) and crc_ok(data[at : at + size]):
                frames.append(Frame(data[at], data[at + 1 : at + size - 2]))
                at += size
            else:
                at += 1
        return frames

    def _sizes(self, data: bytes) -> list[int]:
        """How long the frame that begins here may be, shortest first. What others answer is a frame too."""
        decoders = (_REQUESTS,) if data[0] in (self._unit, BROADCAST) else (_REQUESTS, _ANSWERS)
        sizes = {_size(decoder, data) for decoder in decoders}
        return sorted(size for size in sizes if size is not None)


def _size(decoder: DecodePDU, data: bytes) -> int | None:
    """Length of the frame that these bytes begin, more than there are when it cannot be told yet; None: unknown."""
    try:
        kind = decoder.lookupPduClass(data)
        if kind is None:
            return None
        return kind.calculateRtuFrameSize(data) or len(data) + 1
    except (ModbusException, IndexError, struct.error):
        return None


def pause_s(baud: int) -> float:
    """How long the line must be silent between two frames."""
    return max(CHARACTERS_OF_SILENCE * 11 / baud, LEAST_SILENCE_S)


def silence_s(baud: int) -> float:
    """The same as it is seen behind an adapter: after so long without a byte nothing more of a frame comes.

    >>> round(silence_s(9600) * 1000, 2), round(silence_s(115_200) * 1000, 2)
    (24.01, 21.75)
    """
    return pause_s(baud) + ADAPTER_S


def crc_ok(frame: bytes) -> bool:
    """Whether a frame ends with its CRC."""
    return bool(FramerRTU.check_CRC(frame[:-2], int.from_bytes(frame[-2:], "big")))


def access_of(pdu: bytes) -> Access:
    """What a request asks for.

    Raises:
        RefusedError: it is no request for registers, or says two things at once.
    """
    kind: Any = _ACCESSES.get(pdu[0])
    if kind is None:
        raise RefusedError(ExcCodes.ILLEGAL_FUNCTION)
    request = kind()
    try:
        request.decode(pdu[1:])
    except _MALFORMED:
        raise RefusedError(ExcCodes.ILLEGAL_VALUE) from None
    access = _access(request)
    if len(pdu) != _length(access) or not _counts_agree(request, access.values):
        raise RefusedError(ExcCodes.ILLEGAL_VALUE)
    return access


_ACCESSES = {
    READ: messages.ReadHoldingRegistersRequest,
    READ_INPUT: messages.ReadInputRegistersRequest,
    WRITE_ONE: messages.WriteSingleRegisterRequest,
    WRITE: messages.WriteMultipleRegistersRequest,
    READ_WRITE: messages.ReadWriteMultipleRegistersRequest,
}
_MOST_WRITTEN = {WRITE: 123, READ_WRITE: 121}


def _access(request: Any) -> Access:
    function = request.function_code
    if function in (READ, READ_INPUT):
        return Access(function, read_at=request.address, read_count=request.count)
    if function in (WRITE, WRITE_ONE):
        return Access(function, write_at=request.address, values=tuple(request.registers))
    values = tuple(request.write_registers)
    return Access(function, request.read_address, request.read_count, request.write_address, values)


def _length(access: Access) -> int:
    """Bytes of the protocol data unit that says this."""
    head = {WRITE: 6, READ_WRITE: 10}.get(access.function)
    return 5 if head is None else head + 2 * len(access.values)


def _counts_agree(request: Any, values: Sequence[int]) -> bool:
    """pymodbus decodes both counts of a writing request without comparing them."""
    most = _MOST_WRITTEN.get(request.function_code)
    if most is None:
        return True
    plain = request.function_code == WRITE
    count: int = request.count if plain else request.write_count
    size: int = request.byte_count if plain else request.write_byte_count
    return 1 <= count <= most and count == len(values) and size == 2 * count


def answer_frame(unit: int, access: Access, registers: Sequence[int]) -> bytes:
    """The answer to a request that was done; `registers` are those read."""
    message: ModbusPDU
    if access.function == WRITE_ONE:
        message = messages.WriteSingleRegisterResponse(address=access.write_at, registers=list(access.values))
    elif access.function == WRITE:
        message = messages.WriteMultipleRegistersResponse(address=access.write_at, count=len(access.values))
    else:
        kinds: dict[int, type[ModbusPDU]] = {
            READ: messages.ReadHoldingRegistersResponse,
            READ_INPUT: messages.ReadInputRegistersResponse,
            READ_WRITE: messages.ReadWriteMultipleRegistersResponse,
        }
        message = kinds[access.function](registers=list(registers))
    return _frame(unit, message)


def exception_frame(unit: int, function: int, code: ExcCodes) -> bytes:
    """The answer to a request that was refused."""
    return _frame(unit, ExceptionResponse(function & 0x7F, code))


def read_request(unit: int, at: int, count: int) -> bytes:
    """Read holding registers."""
    return _frame(unit, messages.ReadHoldingRegistersRequest(address=at, count=count))


def write_request(unit: int, at: int, registers: Sequence[int]) -> bytes:
    """Write holding registers."""
    return _frame(unit, messages.WriteMultipleRegistersRequest(address=at, registers=list(registers)))


def _frame(unit: int, message: ModbusPDU) -> bytes:
    message.dev_id = unit
    return FramerRTU(_ANSWERS).buildFrame(message)


@dataclass(frozen=True)
class Expected:
    """The answer that a request of ours must get."""

    unit: int
    function: int
    at: int = 0  # of a write: the answer repeats it
    count: int = 0  # registers read or written

    @property
    def size(self) -> int:
        """Bytes of the answer when the request was done."""
        return 5 + 2 * self.count if self.function == READ else 8

    @property
    def begins(self) -> bytes:
        """How it begins, as far as that is known before."""
        if self.function == READ:
            return bytes((self.unit, self.function, 2 * self.count))
        return struct.pack(">BBHH", self.unit, self.function, self.at, self.count)


@dataclass(frozen=True)
class Answered:
    """An answer: the registers read, or the exception that refused the request."""

    registers: tuple[int, ...] = ()
    refused: int | None = None


def find_answer(data: bytes, expected: Expected) -> Answered | None:
    """The answer in what was heard since the request left; None: it is not there. Noise may stand around it.

    >>> expected = Expected(unit=1, function=READ, count=1)
    >>> find_answer(bytes.fromhex("ff 0103020007f986 00"), expected)
    Answered(registers=(7,), refused=None)
    >>> find_answer(bytes.fromhex("0103020007f987"), expected) is None
    True
    """
    done = _find(data, expected.begins, expected.size)
    if done is not None:
        values = done[3:-2] if expected.function == READ else b""
        return Answered(struct.unpack(f">{len(values) // 2}H", values))
    refused = _find(data, bytes((expected.unit, expected.function | 0x80)), 5)
    return Answered(refused=refused[2]) if refused is not None else None


def _find(data: bytes, begins: bytes, size: int) -> bytes | None:
    """The frame of this beginning and size whose CRC is right."""
    at = data.find(begins)
    while 0 <= at <= len(data) - size:
        if crc_ok(data[at : at + size]):
            return data[at : at + size]
        at = data.find(begins, at + 1)
    return None
