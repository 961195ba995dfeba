"""Damaged, invented and spliced frames against both roles: no crash, no hang, no command that was not sent."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from pymodbus.framer import FramerRTU

from edge.plc.desk import Refusal
from edge.plc.modbus_map import COMMAND_AT, STATUS_AT, STATUS_COUNT, At, Code, Command, command_registers
from edge.plc.modbus_rtu import LONGEST, READ, read_request
from tests.plc.modbus_bench import UNIT, Bench, command_frame

QUICK, MANY = 10_000, 1_000_000  # for each role
SLOWEST_S = 0.5  # of one turn, on a machine that does other things too
PRINTABLE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/ ."

amount = pytest.mark.parametrize(
    "frames", [QUICK, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)


def with_crc(body: bytes) -> bytes:
    return body + FramerRTU.compute_CRC(body).to_bytes(2, "big")


class Line:
    """Makes commands that a PLC sends, and damages frames. Knows every command that was sent."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.triggers: set[tuple[int, str, int, int | None]] = set()
        self.recipes: set[int] = set()
        self.acks: set[int] = set()
        self.sequence = 0

    def command(self) -> Command:
        chance = self.chance
        self.sequence = self.sequence % 0xFFFF + 1
        serial = "".join(chance.choices(PRINTABLE, k=chance.randrange(33))).strip()
        encoder = chance.choice((None, chance.getrandbits(32)))
        command = Command(
            heartbeat=chance.getrandbits(16),
            ack=chance.choice((0, chance.getrandbits(32))),
            sequence=self.sequence,
            code=chance.choice((Code.TRIGGER, Code.TRIGGER, Code.RECIPE)),
            trigger=chance.getrandbits(16),
            recipe=chance.getrandbits(16),
            encoder=encoder,
            serial=serial,
        )
        self.acks.add(command.ack)
        if command.code == Code.TRIGGER:
            self.triggers.add((command.trigger, serial, command.recipe, encoder))
        else:
            self.recipes.add(command.recipe)
        return command

    def damaged(self, frame: bytes, other: bytes) -> bytes:
        """The frame, as it is or damaged in one of many ways."""
        ways: tuple[Callable[[bytes], bytes], ...] = (
            lambda data: data,
            self._flipped,
            lambda data: with_crc(self._flipped(data[:-2])),
            lambda data: with_crc(self._replaced(data[:-2])),
            lambda data: with_crc(self._swapped(data[:-2])),
            self._cut,
            lambda data: with_crc(self._cut(data[:-2])),
            lambda data: data[: self.chance.randrange(len(data))] + other[self.chance.randrange(len(other)) :],
            lambda data: with_crc((data[: self.chance.randrange(len(data))] + other)[: LONGEST - 2]),
            lambda data: data + other,
            lambda data: self.chance.randbytes(self.chance.randrange(1, 40)) + data,
            lambda data: self.chance.randbytes(self.chance.randrange(1, 300)),
            lambda data: with_crc(bytes([UNIT]) + self.chance.randbytes(self.chance.randrange(1, 250))),
        )
        return self.chance.choice(ways)(frame)

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.chance.choice((1, 1, 2, 3, 8))):
            changed[self.chance.randrange(len(changed))] ^= 1 << self.chance.randrange(8)
        return bytes(changed)

    def _replaced(self, data: bytes) -> bytes:
        begin = self.chance.randrange(len(data))
        end = min(len(data), begin + self.chance.randrange(1, 9))
        return data[:begin] + self.chance.randbytes(end - begin) + data[end:]

    def _swapped(self, data: bytes) -> bytes:
        """Two registers exchanged."""
        changed = bytearray(data)
        a, b = (self.chance.randrange(len(data) - 1) for _ in range(2))
        changed[a : a + 2], changed[b : b + 2] = data[b : b + 2], data[a : a + 2]
        return bytes(changed[: len(data)])

    def _cut(self, data: bytes) -> bytes:
        begin = self.chance.choice((0, 0, self.chance.randrange(len(data) - 1)))
        return data[begin : self.chance.randrange(begin + 1, len(data) + 1)]

    def pieces(self, data: bytes) -> list[bytes]:
        """As an adapter hands them over: in one, in two, or byte by byte."""
        if self.chance.random() < 0.02:
            return [bytes([byte]) for byte in data]
        at = self.chance.choice((0, 0, self.chance.randrange(len(data) + 1)))
        return [data[:at], data[at:]]


class Watched(Bench):
    """Notes Acks too, and how long the slowest turn took."""

    def __init__(self, dialect: str, line: Line, check: bool = True) -> None:
        super().__init__(dialect, check=check)
        self.line = line
        self.acks: set[int] = set()
        self.slowest_s = 0.0
        self.desk.refuse = Refusal.OVERRUN  # noted all the same; what is taken would wait for its answer for ever
        self.link.handshake.acknowledge = self._noted

    def _noted(self, result_id: int) -> bool:
        self.acks.add(result_id)
        return False

    def turn(self, data: bytes = b"") -> None:
        self.port.put(data)
        begin = time.perf_counter()
        self.link.turn()
        self.slowest_s = max(self.slowest_s, time.perf_counter() - begin)

    def false_ones(self) -> list[object]:
        """What was taken and never sent."""
        desk, line = self.desk, self.line
        asked = {(t.number, t.serial, t.recipe, t.encoder) for t in desk.triggers}
        return [*(asked - line.triggers), *(set(desk.recipes) - line.recipes), *(self.acks - line.acks)]

    def forget(self) -> None:
        """Keep the memory of a long run bounded. What was sent long ago may come again by splicing only at once."""
        for kept in (self.desk.triggers, self.desk.recipes):
            kept.clear()
        self.acks.clear()


def server_frame(line: Line) -> bytes:
    """What is heard on a line: mostly commands to us, but also reads, single writes, others' requests and answers."""
    kind = line.chance.randrange(8)
    if kind < 4:
        return command_frame(line.command())
    if kind == 4:
        return read_request(UNIT, STATUS_AT, STATUS_COUNT)
    if kind == 5:
        value = line.chance.getrandbits(16)
        return with_crc(bytes([UNIT, 6, 0, line.chance.randrange(At.CHECK)]) + value.to_bytes(2, "big"))
    if kind == 6:
        block = command_registers(line.command())
        body = bytes([UNIT, 23, 0, STATUS_AT, 0, STATUS_COUNT, 0, COMMAND_AT, 0, len(block), 2 * len(block)])
        return with_crc(body + b"".join(register.to_bytes(2, "big") for register in block))
    return line.chance.choice((command_frame(line.command(), UNIT + 1), with_crc(bytes([UNIT + 1, 3, 4, 1, 2, 3, 4]))))


def fuzz_server(frames: int, check: bool, seed: int = 1) -> tuple[int, list[object], float]:
    """How many commands were done, those that were never sent, the slowest turn."""
    line = Line(seed)
    bench = Watched("modbus_server", line, check)
    bench.turn(command_frame(Command()))  # in touch
    done, wrong = 0, []
    for number in range(frames):
        data = line.damaged(server_frame(line), server_frame(line))
        for piece in line.pieces(data):
            bench.turn(piece)
        if line.chance.random() < 0.8:
            bench.clock.advance(0.03)
            bench.turn()
        assert len(bench.link._splitter._buffer) <= 3 * LONGEST
        bench.port.take()
        if number % 1000 == 999 or number == frames - 1:
            done += len(bench.desk.triggers) + len(bench.desk.recipes)
            wrong += bench.false_ones()
            bench.forget()
    return done, wrong, bench.slowest_s


@amount
def test_a_server_does_no_command_that_was_not_sent(frames: int) -> None:
    done, wrong, slowest_s = fuzz_server(frames, check=True)
    print(f"server: {frames} frames, {done} commands done, slowest turn {slowest_s * 1000:.1f} ms", flush=True)
    assert wrong == []
    assert done > frames / 50, "commands that are whole get through between the others"
    assert slowest_s < SLOWEST_S


def test_without_the_check_it_would() -> None:
    _, wrong, _ = fuzz_server(QUICK // 10, check=False)
    assert wrong, "this test could not fail"


def answer_to(request: bytes, block: list[int]) -> bytes:
    """What a PLC's registers answer."""
    function, at = request[1], int.from_bytes(request[2:4], "big")
    if function == READ:
        return with_crc(bytes([UNIT, READ, 2 * len(block)]) + b"".join(r.to_bytes(2, "big") for r in block))
    return with_crc(bytes([UNIT, function]) + at.to_bytes(2, "big") + request[4:6])


def fuzz_client(frames: int, check: bool, seed: int = 2) -> tuple[int, list[object], float]:
    """As `fuzz_server`, with damaged answers to what the link asks."""
    line = Line(seed)
    bench = Watched("modbus_client", line, check)
    block, given = command_registers(Command()), 0
    done, wrong = 0, []
    while given < frames:
        bench.clock.advance(0.003)
        bench.turn()
        request = bench.port.take()
        if not request:
            continue
        if line.chance.random() < 0.5:
            block = command_registers(line.command())
        answer = answer_to(request, block)
        for piece in line.pieces(line.damaged(answer, answer_to(read_request(UNIT, 0, 1), block))):
            bench.turn(piece)
        given += 1
        bench.clock.advance(line.chance.choice((0.003, 0.03, 0.3)))
        bench.turn()
        assert len(bench.link._heard) <= 4 * LONGEST
        if given % 1000 == 0 or given == frames:
            done += len(bench.desk.triggers) + len(bench.desk.recipes)
            wrong += bench.false_ones()
            bench.forget()
    return done, wrong, bench.slowest_s


@amount
def test_a_client_does_no_command_that_was_not_sent(frames: int) -> None:
    done, wrong, slowest_s = fuzz_client(frames, check=True)
    print(f"client: {frames} answers, {done} commands done, slowest turn {slowest_s * 1000:.1f} ms", flush=True)
    assert wrong == []
    assert done > frames / 200, "commands that are whole get through between the others"
    assert slowest_s < SLOWEST_S


def test_without_the_check_a_client_would() -> None:
    _, wrong, _ = fuzz_client(QUICK // 10, check=False)
    assert wrong, "this test could not fail"
