"""The link as a Modbus RTU server: the PLC is the master, writes its commands and reads the status. See MODBUS.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymodbus.constants import ExcCodes

from edge.clock import Clock
from edge.config import Plc
from edge.plc.desk import Desk
from edge.plc.handshake import OnAnswered, OnLate, Saying
from edge.plc.modbus_exchange import LAST_S, Exchange
from edge.plc.modbus_map import COMMAND_AT, COMMAND_COUNT, STATUS_AT, TEXT_AT, In
from edge.plc.modbus_rtu import (
    Access,
    Frame,
    RefusedError,
    Splitter,
    access_of,
    answer_frame,
    exception_frame,
    pause_s,
    silence_s,
)
from edge.plc.outputs import Outputs
from edge.plc.thread import LOOK_S, LinkThread

HELD_S = 0.1  # a request behind which noise came is answered within this time or not at all


@dataclass(frozen=True)
class Request:
    """A request to us: what it asked for, which is done as far as it writes, or why it was refused."""

    unit: int
    function: int
    access: Access | ExcCodes
    heard_ns: int


@dataclass(frozen=True)
class Reply:
    """What a request is answered with.

    Attributes:
        saying: the result that the master reads with it; None: there is none, or it did not ask for it.
    """

    frame: bytes
    saying: Saying | None = None


class Registers:
    """What a master finds at the addresses. A request is done whole or not at all."""

    def __init__(self, exchange: Exchange, check: bool) -> None:
        """`check` as for the exchange."""
        self._exchange = exchange
        self._check = check
        self._command = [0] * COMMAND_COUNT
        self.wrong_checks = 0

    def do(self, frame: Frame, heard_ns: int) -> Request:
        """Write what a request heard at `heard_ns` writes. What it reads is read when it is answered."""
        try:
            access = access_of(frame.pdu)
            if access.read_count:
                self._block_of(access, heard_ns)  # may it be read at all: before anything is written
            if access.values:
                self._write(access, heard_ns)
        except RefusedError as refused:
            return Request(frame.unit, frame.pdu[0], refused.code, heard_ns)
        return Request(frame.unit, frame.pdu[0], access, heard_ns)

    def answer(self, request: Request, now_ns: int) -> Reply:
        """The answer, with what is there now."""
        access = request.access
        if isinstance(access, ExcCodes):
            return Reply(exception_frame(request.unit, request.function, access))
        registers, saying = self._read(access, now_ns) if access.read_count else ([], None)
        return Reply(answer_frame(request.unit, access, registers), saying)

    def _write(self, access: Access, heard_ns: int) -> None:
        begin, end = access.write_at - COMMAND_AT, access.write_at - COMMAND_AT + len(access.values)
        if begin < 0 or end > COMMAND_COUNT:
            raise RefusedError(ExcCodes.ILLEGAL_ADDRESS)
        command = [*self._command[:begin], *access.values, *self._command[end:]]
        # One that is written piece by piece ends with the check; without it, with the sequence number.
        complete = end == COMMAND_COUNT or not self._check
        if complete and not self._exchange.valid(command):
            self.wrong_checks += 1
            raise RefusedError(ExcCodes.ILLEGAL_VALUE)
        self._command = command
        if complete:
            self._exchange.take(command, heard_ns)

    def _read(self, access: Access, now_ns: int) -> tuple[Sequence[int], Saying | None]:
        start, block, saying = self._block_of(access, now_ns)
        begin = access.read_at - start
        end = begin + access.read_count
        with_result = start == STATUS_AT and begin <= In.RESULT_WORD < end
        return block[begin:end], saying if with_result else None

    def _block_of(self, access: Access, now_ns: int) -> tuple[int, list[int], Saying | None]:
        """The block that holds all that is read, and where it begins."""
        blocks = self._exchange.blocks(now_ns)
        for start, block in ((COMMAND_AT, self._command), (STATUS_AT, blocks.status), (TEXT_AT, blocks.text)):
            if start <= access.read_at and access.read_at + access.read_count <= start + len(block):
                return start, block, blocks.saying
        raise RefusedError(ExcCodes.ILLEGAL_ADDRESS)


class ModbusServerLink(LinkThread):
    """Answers what the PLC asks of our unit, and nothing else on the line."""

    def __init__(
        self,
        settings: Plc,
        desk: Desk,
        clock: Clock,
        on_answered: OnAnswered,
        on_late: OnLate,
        outputs: Outputs | None = None,
    ) -> None:
        """See `edge.plc.link.make_link`."""
        super().__init__(settings, desk, clock, on_answered, on_late, outputs)
        self._exchange = Exchange(self.handshake, self.outputs, clock, settings.check)
        self._registers = Registers(self._exchange, settings.check)
        self._splitter = Splitter(settings.unit)
        self._pause_ns = round(pause_s(settings.baud) * 1e9)
        self._silence_ns = round(silence_s(settings.baud) * 1e9)
        self._heard_ns = 0
        self._owed: Request | None = None  # it is not answered yet

    def opened(self) -> None:
        """See `LinkThread`."""
        self._splitter.clear()
        self._owed = None
        self._exchange.out_of_touch()

    def turn(self) -> int:
        """See `LinkThread`."""
        self._listen()
        if self._stop.is_set():
            self._linger()
        now_ns = self.clock.mono_ns()
        saying = self.handshake.head(now_ns)
        if saying is None or not saying.first:
            self.handshake.collect(now_ns)  # whoever answers waits a moment for the master to read it
        self.outputs.run(now_ns)  # the PLC reads what changes in the status
        times = [now_ns + round(LOOK_S * 1e9), self._next_ns(), self.outputs.next_ns()]
        return min(ns for ns in times if ns is not None)

    def _listen(self) -> None:
        before_ns = self.clock.mono_ns()
        data = self.port.read()
        if data:
            self._heard_ns = self.clock.mono_ns()
            self._do(self._splitter.feed(data))
        elif self._splitter.waiting and before_ns - self._heard_ns >= self._silence_ns:
            self._do(self._splitter.silence())
        if self._owed is not None:
            self._answer(self._owed, before_ns)
        self.garbage = self._splitter.garbage + self._registers.wrong_checks

    def _next_ns(self) -> int | None:
        """When a silence will be long enough for what waits for it."""
        if self._splitter.waiting:
            return self._heard_ns + self._silence_ns
        return self._heard_ns + self._pause_ns if self._owed is not None else None

    def _do(self, frames: list[Frame]) -> None:
        """Do all requests to us. The last one is to be answered, since behind it the master waits for no other."""
        for frame in frames:
            ours = frame.unit == self.settings.unit
            self._owed = self._registers.do(frame, self._heard_ns) if ours else None

    def _answer(self, request: Request, now_ns: int) -> None:
        """After the pause that must be between two frames, with what is there by now.

        What follows the request may be the next one, or noise. It shows in time, or no master waits any more.
        """
        if self._splitter.waiting:
            if now_ns - request.heard_ns > HELD_S * 1e9:
                self._owed = None
            return
        if now_ns - self._heard_ns < self._pause_ns:
            return
        reply = self._registers.answer(request, self.clock.mono_ns())
        self._owed = None
        self.port.write(reply.frame)
        if reply.saying is not None:
            self.handshake.sent(reply.saying, self.clock.mono_ns())

    def _linger(self) -> None:
        """Let the master read what it was not told yet, and acknowledge it."""
        until_ns = self.clock.mono_ns() + round(LAST_S * 1e9)
        while (now_ns := self.clock.mono_ns()) < until_ns and self.handshake.head(now_ns) is not None:
            self.port.wait((min(self._next_ns() or until_ns, until_ns) - now_ns) / 1e9)
            self._listen()
