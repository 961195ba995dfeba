"""Frames in a stream of bytes, and what requests may ask for."""

from __future__ import annotations

import pytest
from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerRTU

from edge.plc.modbus_rtu import (
    LONGEST,
    READ,
    WRITE,
    Access,
    Answered,
    Expected,
    Frame,
    RefusedError,
    Splitter,
    access_of,
    answer_frame,
    crc_ok,
    exception_frame,
    find_answer,
    read_request,
    write_request,
)

UNIT, OTHER = 7, 9


def with_crc(text: str) -> bytes:
    body = bytes.fromhex(text)
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")


READING = read_request(UNIT, 100, 14)
WRITING = write_request(UNIT, 0, list(range(30)))


def test_the_crc_is_that_of_the_specification() -> None:
    # MODBUS over Serial Line V1.02, 6.2.2: unit 2, function 7 has the CRC 0x1241, low byte first.
    assert with_crc("0207") == bytes.fromhex("02074112")
    assert crc_ok(bytes.fromhex("02074112")) and not crc_ok(bytes.fromhex("02074113"))


@pytest.mark.parametrize(
    ("heard", "functions", "why"),
    [
        (READING, [3], "one request"),
        (READING + WRITING, [3, 16], "two that an adapter bunched: no silence is seen between them"),
        (read_request(OTHER, 0, 2) + with_crc("09030400010002") + READING, [3, 3, 3], "another slave asked, answering"),
        (write_request(OTHER, 0, [1]) + with_crc("091000000001") + READING, [16, 16, 3], "a write and its answer"),
        (read_request(OTHER, 0, 2) + with_crc("098302") + READING, [3, 0x83, 3], "another slave that refuses"),
        (with_crc("00060000 0001") + READING, [6, 3], "a broadcast"),
        (with_crc("0703"), [], "more is to come"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_frames_are_cut_off_by_their_length(heard: bytes, functions: list[int], why: str, piece: int) -> None:
    splitter = Splitter(UNIT)
    frames = [f for i in range(0, len(heard), piece) for f in splitter.feed(heard[i : i + piece])]
    assert [frame.pdu[0] for frame in frames] == functions, why
    assert splitter.garbage == 0


@pytest.mark.parametrize(
    ("heard", "functions", "garbage", "why"),
    [
        (b"\xff\x00\x12" + READING, [3], 1, "noise before a request"),
        (READING[:5] + READING, [3], 1, "a request that lost its end, then again"),
        (READING[:-1] + b"\x00", [], 1, "a damaged one"),
        (bytes([UNIT, 16, 0, 0, 0, 30, 200]) + READING, [3], 1, "a beginning that promises a long frame"),
        (b"\xff" * 9 + READING + b"\x01\x02" + WRITING + b"\xee", [3, 16], 1, "two between noise"),
        (with_crc(f"{UNIT:02x}41 0102"), [0x41], 0, "an unknown function: its silence says where it ends"),
        (b"\x00" * 700, [], 1, "a broken line"),
        (b"", [], 0, "nothing"),
    ],
)
def test_a_silence_ends_what_went_wrong(heard: bytes, functions: list[int], garbage: int, why: str) -> None:
    splitter = Splitter(UNIT)
    frames = splitter.feed(heard) + splitter.silence()
    assert [frame.pdu[0] for frame in frames] == functions, why
    assert (splitter.garbage, splitter.waiting) == (garbage, False)
    assert splitter.feed(READING) == [Frame(UNIT, READING[1:-2])], "it is in step again"


def test_a_flood_without_silence_is_kept_in_bounds() -> None:
    splitter = Splitter(UNIT)
    for _ in range(1000):
        splitter.feed(b"\x55" * 100)
        assert len(splitter._buffer) <= 2 * LONGEST


@pytest.mark.parametrize(
    ("pdu", "expected", "why"),
    [
        ("03 0064 000e", Access(3, 100, 14), "read"),
        ("04 0064 000e", Access(4, 100, 14), "read as input registers"),
        ("06 0005 1234", Access(6, write_at=5, values=(0x1234,)), "write one"),
        ("10 0005 0002 04 0001 0002", Access(16, write_at=5, values=(1, 2)), "write"),
        ("17 0064 000e 0000 0001 02 0007", Access(23, 100, 14, 0, (7,)), "exchange"),
        ("03 0064 007d", Access(3, 100, 125), "the most that can be read"),
    ],
)
def test_what_a_request_asks_for(pdu: str, expected: Access, why: str) -> None:
    assert access_of(bytes.fromhex(pdu)) == expected, why


@pytest.mark.parametrize(
    ("pdu", "code", "why"),
    [
        ("01 0000 0008", ExcCodes.ILLEGAL_FUNCTION, "coils"),
        ("05 0000 ff00", ExcCodes.ILLEGAL_FUNCTION, "a coil"),
        ("16 0000 ffff 0000", ExcCodes.ILLEGAL_FUNCTION, "a mask"),
        ("2b 0e 01 00", ExcCodes.ILLEGAL_FUNCTION, "identification"),
        ("41", ExcCodes.ILLEGAL_FUNCTION, "of a maker's own"),
        ("83 02", ExcCodes.ILLEGAL_FUNCTION, "an exception is no request"),
        ("03 0064 0000", ExcCodes.ILLEGAL_VALUE, "no register"),
        ("03 0064 007e", ExcCodes.ILLEGAL_VALUE, "one too many"),
        ("03 0064", ExcCodes.ILLEGAL_VALUE, "too short"),
        ("03 0064 0001 00", ExcCodes.ILLEGAL_VALUE, "too long"),
        ("10 0000 0000 00", ExcCodes.ILLEGAL_VALUE, "writes nothing"),
        ("10 0000 0003 04 0001 0002", ExcCodes.ILLEGAL_VALUE, "says three registers and brings two"),
        ("10 0000 0003 06 0001 0002", ExcCodes.ILLEGAL_VALUE, "says three and brings two, where the bytes agree"),
        ("10 0000 0002 05 0001 0002 00", ExcCodes.ILLEGAL_VALUE, "half a register"),
        ("10 0000 0002 06 0001 0002", ExcCodes.ILLEGAL_VALUE, "says six bytes and brings four"),
        ("17 0064 000e 0000 0002 02 0007", ExcCodes.ILLEGAL_VALUE, "writes two and brings one"),
        ("17 0064 0000 0000 0001 02 0007", ExcCodes.ILLEGAL_VALUE, "reads nothing"),
        ("17 0064 000e", ExcCodes.ILLEGAL_VALUE, "an exchange without its second half"),
    ],
)
def test_requests_that_are_refused(pdu: str, code: ExcCodes, why: str) -> None:
    with pytest.raises(RefusedError) as refused:
        access_of(bytes.fromhex(pdu))
    assert refused.value.code == code, why


@pytest.mark.parametrize(
    ("access", "registers", "expected"),
    [
        (Access(3, 0, 2), [1, 0xFFFF], "0703040001ffff"),
        (Access(4, 0, 1), [5], "0704020005"),
        (Access(6, write_at=5, values=(0x1234,)), [], "070600051234"),
        (Access(16, write_at=5, values=(1, 2)), [], "071000050002"),
        (Access(23, 0, 1, 0, (7,)), [9], "0717020009"),
    ],
)
def test_answers(access: Access, registers: list[int], expected: str) -> None:
    assert answer_frame(UNIT, access, registers) == with_crc(expected)


def test_an_exception_answers() -> None:
    assert exception_frame(UNIT, 0x41, ExcCodes.ILLEGAL_FUNCTION) == with_crc("07c101")


WANTED = Expected(UNIT, READ, 0, 1)
GOOD = with_crc("0703020005")


@pytest.mark.parametrize(
    ("heard", "expected", "why"),
    [
        (GOOD, Answered((5,)), "the answer"),
        (GOOD[:-1], None, "not whole yet"),
        (GOOD[:-1] + b"\x00", None, "damaged"),
        (with_crc("0903020005"), None, "another unit's"),
        (with_crc("070304 0005 0006"), None, "of another length: to another request"),
        (with_crc("0704020005"), None, "of another function"),
        (read_request(UNIT, 0, 1) + GOOD, Answered((5,)), "behind the echo that some adapters give"),
        (b"\x07\x03\x02\x00" + GOOD + b"\xff", Answered((5,)), "between noise"),
        (with_crc("078302"), Answered(refused=2), "an exception"),
        (with_crc("079002"), None, "an exception to another request"),
    ],
)
def test_an_answer_is_found(heard: bytes, expected: Answered | None, why: str) -> None:
    assert find_answer(heard, WANTED) == expected, why


def test_the_answer_to_a_write_repeats_what_was_written() -> None:
    wanted = Expected(UNIT, WRITE, 100, 14)
    assert find_answer(with_crc("07100064000e"), wanted) == Answered()
    assert find_answer(with_crc("07100064000d"), wanted) is None
    assert find_answer(with_crc("07100063000e"), wanted) is None
