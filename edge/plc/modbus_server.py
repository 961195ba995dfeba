"""The link as a Modbus RTU server: the PLC is the master, writes its commands and reads the status. See MODBUS.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pymodbus.constants import ExcCodes

from edge.clock import Clock
from edge.config import Plc
from edge.plc.desk import Desk
from edge.plc.handshake import OnAnswered, OnLate, Saying
from edge.plc.modbus_exchange import Exchange
from edge.plc.modbus_map import COMMAND_AT, COMMAND_COUNT, STATUS_AT, TEXT_AT, At, In
from edge.plc.modbus_rtu import (
    Access,
    Frame,
    RefusedError,
    Splitter,
    access_of,
    answer_frame,
    exception_frame,
    silence_s,
)
from edge.plc.outputs import Outputs
from edge.plc.thread import LOOK_S, LinkThread

LAST_S = 0.25  # at the end the master has so long to read the results and to acknowledge them


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

    def reply(self, frame: Frame, heard_ns: int, now: Callable[[], int]) -> Reply:
        """Do a request to us, heard at `heard_ns`; what it reads is as of `now()`."""
        try:
            access = access_of(frame.pdu)
            if access.read_count:
                self._block_of(access, heard_ns)  # may it be read at all: before anything is written
            if access.values:
                self._write(access, heard_ns)
            registers, saying = self._read(access, now()) if access.read_count else ([], None)
        except RefusedError as refused:
            return Reply(exception_frame(frame.unit, frame.pdu[0], refused.code))
        return Reply(answer_frame(frame.unit, access, registers), saying)

    def _write(self, access: Access, heard_ns: int) -> None:
        begin, end = access.write_at - COMMAND_AT, access.write_at - COMMAND_AT + len(access.values)
        if begin < 0 or end > COMMAND_COUNT:
            raise RefusedError(ExcCodes.ILLEGAL_ADDRESS)
        command = [*self._command[:begin], *access.values, *self._command[end:]]
        if not self._check:
            self._command = command
            self._exchange.take(command, heard_ns, begin <= At.SEQUENCE < end)
            return
        complete = end == COMMAND_COUNT  # one that is written piece by piece ends with the check
        if complete and not self._exchange.valid(command):
            raise RefusedError(ExcCodes.ILLEGAL_VALUE)
        self._command = command
        if complete:
            self._exchange.take(command, heard_ns)

    def _read(self, access: Access, now_ns: int) -> tuple[Sequence[int], Saying | None]:
        start, block, saying = self._block_of(access, now_ns)
        begin = access.read_at - start
        end = begin + access.read_count
        with_result = start == STATUS_AT and begin <= In.RESULT_TRIGGER and end > In.RESULT_WORD
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
        self._silence_ns = round(silence_s(settings.baud) * 1e9)
        self._heard_ns = 0
        self._owed: Frame | None = None  # a request that was done and not answered

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
        self.handshake.collect(now_ns)
        self.outputs.run(now_ns)  # the PLC reads what changes in the status
        times = [now_ns + round(LOOK_S * 1e9), self.outputs.next_ns()]
        times += [self._heard_ns + self._silence_ns] if self._splitter.waiting else []
        return min(ns for ns in times if ns is not None)

    def _listen(self) -> None:
        before_ns = self.clock.mono_ns()
        data = self.port.read()
        now_ns = self.clock.mono_ns()
        if data:
            self._heard_ns = now_ns
            self._answer(self._splitter.feed(data), now_ns)
        elif self._splitter.waiting and before_ns - self._heard_ns >= self._silence_ns:
            self._answer(self._splitter.silence(), self._heard_ns)
        self.garbage = self._splitter.garbage

    def _answer(self, frames: list[Frame], heard_ns: int) -> None:
        """Do all requests to us and answer the last one: behind it the master waits for no other.

        What follows it may be the next request, or noise. Which of them shows a silence; until then we hold our peace.
        """
        reply = None
        for frame in frames:
            ours = frame.unit == self.settings.unit
            reply = self._registers.reply(frame, heard_ns, self.clock.mono_ns) if ours else None
            self._owed = frame if ours else None
        if self._owed is None or self._splitter.waiting:
            return
        if reply is None:  # it had to wait: what the master reads is as of now
            reply = self._registers.reply(self._owed, heard_ns, self.clock.mono_ns)
        self._owed = None
        self.port.write(reply.frame)
        if reply.saying is not None:
            self.handshake.sent(reply.saying, self.clock.mono_ns())

    def _linger(self) -> None:
        """Let the master read what it was not told yet, and acknowledge it."""
        until_ns = self.clock.mono_ns() + round(LAST_S * 1e9)
        while (now_ns := self.clock.mono_ns()) < until_ns and self.handshake.head(now_ns) is not None:
            self.port.wait((until_ns - now_ns) / 1e9)
            self._listen()
