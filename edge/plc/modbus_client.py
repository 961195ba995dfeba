"""The link as a Modbus RTU client: the PLC is a slave whose registers we read and write. See MODBUS.md."""

from __future__ import annotations

from dataclasses import dataclass

from pymodbus.constants import ExcCodes

from edge.clock import Clock
from edge.config import Plc
from edge.plc.desk import Desk
from edge.plc.handshake import OnAnswered, OnLate, Saying
from edge.plc.modbus_exchange import LAST_S, Exchange
from edge.plc.modbus_map import (
    COMMAND_AT,
    COMMAND_COUNT,
    STATUS_AT,
    STATUS_COUNT,
    TEXT_AT,
    TEXT_COUNT,
)
from edge.plc.modbus_rtu import (
    READ,
    WRITE,
    Answered,
    Expected,
    find_answer,
    pause_s,
    read_request,
    silence_s,
    write_request,
)
from edge.plc.outputs import Outputs
from edge.plc.thread import LinkThread, byte_ns

ANSWER_S = 0.2  # a slave without an answer after so long, and the time of both on the wire, is asked again
REFUSED_S = 0.25  # a request that was refused is tried again so often
STALE_S, STALE_POLLS = 0.5, 3  # what is found in the command block after so long without a look is of unknown age
TEXT_S = 1.0  # texts wait at most so long for a moment without anything else to do
TEXT_MISSED_S = 5.0  # a slave that leaves them unanswered is told again so often
NEVER_NS = 1 << 62
NOT_YET = (ExcCodes.ACKNOWLEDGE, ExcCodes.DEVICE_BUSY)  # refusals that pass by themselves
SHORTEST_ANSWER = 5  # bytes
HEARD_MOST = 1024  # bytes kept while an answer is waited for


@dataclass(frozen=True)
class Flight:
    """A request that is on its way.

    Attributes:
        block: the registers that it writes; empty for a reading one.
        saying: the answer that the PLC has when it did that.
    """

    expected: Expected
    until_ns: int
    block: tuple[int, ...] = ()
    saying: Saying | None = None


class ModbusClientLink(LinkThread):
    """Reads the command block at its pace, and writes the status block as soon as it changes."""

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
        self._pause_ns = round(pause_s(settings.baud) * 1e9)
        self._silence_ns = round(silence_s(settings.baud) * 1e9)
        self._stale_ns = round(max(STALE_S * 1e9, STALE_POLLS * settings.poll_ms * 1e6))
        self._looked_ns = 0  # when a valid command block was read last
        self._refused = ""
        self.opened()

    def opened(self) -> None:
        """See `LinkThread`."""
        self._flight: Flight | None = None
        self._heard = bytearray()
        self._heard_ns = 0
        self._status: tuple[int, ...] = ()  # what the PLC has of us
        self._text: tuple[int, ...] = ()
        self._text_ns = self.clock.mono_ns()
        self._text_free_ns = 0
        self._free_ns = self._poll_ns = self.clock.mono_ns()
        self._exchange.out_of_touch()

    def turn(self) -> int:
        """See `LinkThread`."""
        next_ns = self._step()
        until_ns = self.clock.mono_ns() + round(LAST_S * 1e9)
        # At the end the PLC gets what it was not told yet, and acknowledges it.
        while self._stop.is_set() and (now_ns := self.clock.mono_ns()) < until_ns and self.handshake.head(now_ns):
            self.port.wait((min(next_ns, until_ns) - now_ns) / 1e9)
            next_ns = self._step()
        return next_ns

    def _step(self) -> int:
        before_ns = self.clock.mono_ns()
        data = self.port.read()
        now_ns = self.clock.mono_ns()
        if self._flight is not None:
            self._hear(self._flight, data, before_ns, now_ns)
        elif data:  # nobody was asked
            self.garbage += 1
            self._free_ns = now_ns + self._silence_ns
        self.outputs.run(now_ns)  # their states are in the status
        if self._flight is None and self.clock.mono_ns() >= self._free_ns:
            self._depart()
        saying = self.handshake.head(self.clock.mono_ns())
        if saying is None or not saying.first:
            self.handshake.collect(self.clock.mono_ns())  # whoever answers need not wait: there is nothing to say
        return self._next_ns()

    def _next_ns(self) -> int:
        if self._flight is not None:
            own_ns = self._patience_ns(self._flight)
        elif self._free_ns > self.clock.mono_ns():
            own_ns = self._free_ns  # what is to be written waits for this
        else:
            own_ns = self._poll_ns
        outputs_ns = self.outputs.next_ns()
        return own_ns if outputs_ns is None else min(own_ns, outputs_ns)

    # Requests.

    def _depart(self) -> None:
        """Send what is most urgent: our status, a look at the command block, the texts."""
        now_ns = self.clock.mono_ns()
        blocks = self._exchange.blocks(now_ns)
        status, text = tuple(blocks.status), tuple(blocks.text)
        news = now_ns >= self._text_free_ns and text != self._text
        waited = now_ns - self._text_ns > TEXT_S * 1e9  # on a slow line a look is always due
        if status != self._status:
            self._write(STATUS_AT, status, blocks.saying)
        elif now_ns >= self._poll_ns and not (news and waited):
            self._poll_ns = now_ns + round(self.settings.poll_ms * 1e6)
            expected = Expected(self.settings.unit, READ, COMMAND_AT, COMMAND_COUNT)
            self._send(read_request(self.settings.unit, COMMAND_AT, COMMAND_COUNT), expected)
        elif news:
            self._text_ns = now_ns
            self._write(TEXT_AT, text, None)

    def _write(self, at: int, block: tuple[int, ...], saying: Saying | None) -> None:
        expected = Expected(self.settings.unit, WRITE, at, len(block))
        self._send(write_request(self.settings.unit, at, block), expected, block, saying)

    def _send(
        self, request: bytes, expected: Expected, block: tuple[int, ...] = (), saying: Saying | None = None
    ) -> None:
        self._heard.clear()
        self.port.write(request)
        wire_ns = (len(request) + expected.size) * byte_ns(self.settings)
        until_ns = self.clock.mono_ns() + round(ANSWER_S * 1e9 + wire_ns)
        self._flight = Flight(expected, until_ns, block, saying)

    # Answers.

    def _hear(self, flight: Flight, data: bytes, before_ns: int, now_ns: int) -> None:
        if data:
            self._heard += data
            self._heard_ns = now_ns
        del self._heard[:-HEARD_MOST]
        answered = find_answer(bytes(self._heard), flight.expected)
        if answered is not None:
            self._flight = None
            self._free_ns = now_ns + self._pause_ns
            self._land(flight, answered, now_ns)
        elif not data and before_ns >= self._patience_ns(flight):
            self._flight = None
            self._free_ns = now_ns + self._silence_ns
            self._miss(flight, now_ns)

    def _patience_ns(self, flight: Flight) -> int:
        """Until when the answer may come. Behind what may have been it, damaged, the silence is the end."""
        if len(self._heard) < SHORTEST_ANSWER:
            return flight.until_ns
        return min(flight.until_ns, self._heard_ns + self._silence_ns)

    def _land(self, flight: Flight, answered: Answered, now_ns: int) -> None:
        expected = flight.expected
        if answered.refused is not None:
            self._refuse(expected, answered.refused, now_ns)
        elif expected.function == READ:
            self._refused = ""
            self._look_at(list(answered.registers), now_ns)
        elif expected.at == TEXT_AT:
            self._text = flight.block
        else:
            self._refused = ""
            self._status = flight.block
            if flight.saying is not None:
                self.handshake.sent(flight.saying, now_ns)

    def _look_at(self, registers: list[int], now_ns: int) -> None:
        if not self._exchange.valid(registers):
            self.garbage += 1
            return
        if now_ns - self._looked_ns > self._stale_ns:
            self._exchange.out_of_touch()
        self._looked_ns = now_ns
        self._exchange.take(registers, now_ns)

    def _miss(self, flight: Flight, now_ns: int) -> None:
        """No answer: what the PLC has of a block that was written is not known."""
        self.garbage += bool(self._heard)
        if flight.expected.at == TEXT_AT:
            self._text_free_ns = now_ns + round(TEXT_MISSED_S * 1e9)
        elif flight.block:
            self._status = ()

    def _refuse(self, expected: Expected, code: int, now_ns: int) -> None:
        if code in NOT_YET:
            self._free_ns = now_ns + round(self.settings.poll_ms * 1e6)
        elif expected.at == TEXT_AT:
            self._text_free_ns = NEVER_NS  # it is the PLC's choice to have no texts
        else:
            self._refused = _refusal(expected, code)
            self._free_ns = now_ns + round(REFUSED_S * 1e9)

    def _silence(self) -> str:
        return self._refused or super()._silence()


def _refusal(expected: Expected, code: int) -> str:
    name = ExcCodes(code).name if code in set(ExcCodes) else f"exception {code}"
    what = "read" if expected.function == READ else "written"
    commands, status = _span(COMMAND_AT, COMMAND_COUNT), _span(STATUS_AT, STATUS_COUNT)
    return (
        f"the PLC's registers {_span(expected.at, expected.count)} cannot be {what} ({name}): it needs holding "
        f"registers {commands} for its commands and {status} for our status; {_span(TEXT_AT, TEXT_COUNT)} for texts "
        "are optional"
    )


def _span(at: int, count: int) -> str:
    return f"{40001 + at} to {40000 + at + count}"
