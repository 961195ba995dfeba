"""The PLC's side of the Modbus dialects, for the simulator: a program of a PLC behind pymodbus's own framer.

It shares the map of registers with the station and nothing else of its Modbus, so that not both make one mistake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pymodbus.constants import ExcCodes
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU, ExceptionResponse, ModbusPDU
from pymodbus.pdu import register_message as messages

from edge.config import Plc
from edge.plc.modbus_map import (
    COMMAND_AT,
    COMMAND_COUNT,
    OTHER_REASON,
    REASONS,
    STATUS_AT,
    STATUS_COUNT,
    STATUS_SEED,
    TEXT_AT,
    TEXT_COUNT,
    Code,
    Command,
    Outcome,
    Status,
    checked,
    command_registers,
    read_status,
)
from edge.plc.players import Answered, Ask, Event, Heard, Noise, Player, Refused, Seen, Switched, Turn

ANSWER_NS = 200_000_000  # the master asks again after so long without an answer
PAUSE_NS = 2_000_000  # between an answer and the next request
SILENCE_NS = 50_000_000  # what is half read by then is no frame
OUTPUTS = 16

_REASON_NAMES = {str(number): name for name, number in REASONS.items()} | {str(OTHER_REASON): "other", "": ""}


def make_modbus_player(settings: Plc) -> Player:
    """The PLC whose station is configured by `settings`: a master for a server, a slave for a client."""
    return MasterPlayer(settings) if settings.dialect == "modbus_server" else SlavePlayer(settings)


class Program:
    """What a PLC does with the two blocks: one command after the other, each with a sequence number of its own."""

    def __init__(self) -> None:
        self._block = Command()
        self._wanted: deque[Command] = deque()
        self._status: Status | None = None
        self._result_id = 0
        self._waiting = False  # for the outcome of the command in the block
        self._known = False  # the station showed a status since the cable is in

    def opened(self) -> None:
        """The cable is in. What stood in the block before stays; whether it was read is not known."""
        self._known = False

    def want(self, code: Code, ask: Ask) -> None:
        """A command, after those wanted before; one that is wanted already is not wanted twice."""
        command = Command(code=code, trigger=ask.number, recipe=ask.recipe, encoder=ask.encoder, serial=ask.serial)
        open_ones = [*self._wanted, *([self._block] if self._waiting else [])]
        if not any(_asks(command) == _asks(other) for other in open_ones):
            self._wanted.append(command)
        self._next()

    def beside(self, heartbeat: int, position: int | None) -> None:
        """What stands beside the command."""
        self._block = replace(self._block, heartbeat=heartbeat, position=position)

    def acknowledge(self, result_id: int) -> None:
        """The result is taken."""
        self._block = replace(self._block, ack=result_id)

    def block(self) -> list[int]:
        """The command block, as the station is to find it."""
        return command_registers(self._block)

    def seen(self, registers: Sequence[int]) -> list[Event]:
        """A status block came."""
        if not checked(registers, STATUS_SEED):
            return [Noise()]
        status, before = read_status(registers), self._status
        self._status, self._known = status, True
        # What is settled first: who sees Ready asks anew for all that is open.
        events = [*self._outcome(status), *self._result(status)]
        events += [*self._outputs(status, before), *self._signals(status, before)]
        self._next()
        return events

    def _next(self) -> None:
        """Put the next command into the block, once the station is in touch and has done the one before."""
        if self._waiting or not self._wanted or not self._known:
            return
        command = self._wanted.popleft()
        beside = self._block
        sequence = beside.sequence % 0xFFFF + 1
        self._block = replace(
            command, heartbeat=beside.heartbeat, ack=beside.ack, position=beside.position, sequence=sequence
        )
        self._waiting = True

    def _outcome(self, status: Status) -> list[Event]:
        if not self._waiting or status.done != self._block.sequence:
            return []
        self._waiting = False
        if status.outcome == Outcome.STALE:  # the simulated part is still there
            self._wanted.appendleft(self._block)
            return []
        number = self._block.trigger if self._block.code == Code.TRIGGER else None
        if status.outcome != Outcome.TAKEN:
            return [Refused(number, Outcome(status.outcome).name)]
        return [Heard(number)] if number is not None else []

    def _result(self, status: Status) -> list[Event]:
        result = status.result
        last, self._result_id = self._result_id, 0 if result is None else result.result_id
        if result is None or result.result_id == last:
            return []
        wanted = [c for c in self._wanted if c.code != Code.TRIGGER or c.trigger != result.trigger]
        self._wanted = deque(wanted)  # a repetition of what is answered would be another part
        reason = _REASON_NAMES.get(result.reason, result.reason)
        return [Answered(result.trigger, result.result_id, result.say.value, reason)]

    @staticmethod
    def _signals(status: Status, before: Status | None) -> list[Event]:
        seen = _signals(status)
        return [] if before is not None and seen == _signals(before) else [seen]

    @staticmethod
    def _outputs(status: Status, before: Status | None) -> list[Event]:
        changed = status.outputs ^ (before.outputs if before is not None else 0)
        return [Switched(str(n), bool(status.outputs >> n & 1)) for n in range(OUTPUTS) if changed >> n & 1]


class _Side:
    """What both sides have: the program, and what is wanted of it."""

    def __init__(self, settings: Plc) -> None:
        self._unit = settings.unit
        self._program = Program()
        self._buffer = b""
        self._urgent = False

    def trigger(self, ask: Ask) -> None:
        """See `Player`."""
        self._program.want(Code.TRIGGER, ask)
        self._urgent = True

    def acknowledge(self, result_id: int) -> None:
        """See `Player`."""
        self._program.acknowledge(result_id)
        self._urgent = True

    def recipe(self, number: int) -> None:
        """See `Player`."""
        self._program.want(Code.RECIPE, Ask(0, "", number))
        self._urgent = True

    def beat(self, counter: int, encoder: int | None) -> None:
        """See `Player`."""
        self._program.beside(counter, encoder)

    def _frame(self, message: ModbusPDU) -> bytes:
        message.dev_id = self._unit
        return FramerRTU(DecodePDU(True)).buildFrame(message)

    def _message(self, framer: FramerRTU) -> tuple[ModbusPDU | None, list[Event]]:
        """The message that the buffer holds, if it is whole."""
        had = len(self._buffer)
        try:
            used, message = framer.handleFrame(self._buffer, self._unit, 0)
        except ModbusException:
            self._buffer = b""
            return None, [Noise()]
        self._buffer = self._buffer[used:]
        return message, [Noise()] if message is None and len(self._buffer) < had else []


class MasterPlayer(_Side):
    """A PLC that is the master: one exchange (function 23) after the other, each writes its block and reads ours."""

    def __init__(self, settings: Plc) -> None:
        """Nothing is said yet."""
        super().__init__(settings)
        self._framer = FramerRTU(DecodePDU(False))
        self._cycle_ns = round(settings.poll_ms * 1e6)
        self._asked_ns: int | None = None  # when the request left that has no answer
        self._free_ns = self._next_ns = 0

    def opened(self) -> None:
        """See `Player`."""
        self._program.opened()
        self._buffer = b""
        self._asked_ns = None

    def turn(self, data: bytes, now_ns: int) -> Turn:
        """See `Player`."""
        self._buffer += data
        turn = Turn()
        if self._asked_ns is not None:
            turn.events = self._hear(now_ns)
        if self._asked_ns is None and now_ns >= (self._free_ns if self._urgent else self._next_ns):
            turn.out = self._exchange()
            self._asked_ns, self._next_ns, self._urgent = now_ns, now_ns + self._cycle_ns, False
        if self._asked_ns is not None:
            turn.next_ns = self._asked_ns + ANSWER_NS
        else:
            turn.next_ns = self._free_ns if self._urgent else max(self._next_ns, self._free_ns)
        return turn

    def _exchange(self) -> bytes:
        self._buffer = b""
        request = messages.ReadWriteMultipleRegistersRequest(
            read_address=STATUS_AT,
            read_count=STATUS_COUNT,
            write_address=COMMAND_AT,
            write_registers=self._program.block(),
        )
        return self._frame(request)

    def _hear(self, now_ns: int) -> list[Event]:
        message, events = self._message(self._framer)
        if message is not None:
            self._asked_ns = None
            self._free_ns = now_ns + PAUSE_NS
            whole = isinstance(message, messages.ReadWriteMultipleRegistersResponse)
            whole = whole and len(message.registers) == STATUS_COUNT
            return [*events, *(self._program.seen(message.registers) if whole else [Noise()])]
        if self._asked_ns is not None and now_ns - self._asked_ns >= ANSWER_NS:
            self._asked_ns = None
            self._buffer = b""
        return events


class SlavePlayer(_Side):
    """A PLC that is a slave: it holds the blocks in its holding registers, and answers who reads and writes them."""

    def __init__(self, settings: Plc) -> None:
        """Nothing is said yet."""
        super().__init__(settings)
        self._framer = FramerRTU(DecodePDU(True))
        self._text = [0] * TEXT_COUNT
        self._heard_ns = 0

    def opened(self) -> None:
        """See `Player`."""
        self._program.opened()
        self._buffer = b""

    def turn(self, data: bytes, now_ns: int) -> Turn:
        """See `Player`."""
        if data:
            self._buffer += data
            self._heard_ns = now_ns
        elif now_ns - self._heard_ns >= SILENCE_NS:
            self._buffer = b""
        turn = Turn(next_ns=self._heard_ns + SILENCE_NS if self._buffer else None)
        if not self._buffer:
            return turn
        message, turn.events = self._message(self._framer)
        if message is not None:
            answer, events = self._answer(message)
            turn.events += events
            turn.out = self._frame(answer)
        return turn

    def _answer(self, message: ModbusPDU) -> tuple[ModbusPDU, list[Event]]:
        function, at, count = message.function_code, message.address, message.count
        if isinstance(message, messages.ReadHoldingRegistersRequest) and function == 3:
            if at < COMMAND_AT or at + count > COMMAND_AT + COMMAND_COUNT:
                return ExceptionResponse(function, ExcCodes.ILLEGAL_ADDRESS), []
            block = self._program.block()[at - COMMAND_AT :][:count]
            return messages.ReadHoldingRegistersResponse(registers=block), []
        if isinstance(message, messages.WriteMultipleRegistersRequest):
            done = messages.WriteMultipleRegistersResponse(address=at, count=count)
            if (at, count) == (STATUS_AT, STATUS_COUNT) and len(message.registers) == count:
                return done, self._program.seen(message.registers)
            if (at, count) == (TEXT_AT, TEXT_COUNT):
                self._text = list(message.registers)
                return done, []
            return ExceptionResponse(function, ExcCodes.ILLEGAL_ADDRESS), []
        return ExceptionResponse(function, ExcCodes.ILLEGAL_FUNCTION), []


def _asks(command: Command) -> Command:
    """The command alone, without what stands beside it."""
    return replace(command, heartbeat=0, ack=0, position=None, sequence=0)


def _signals(status: Status) -> Seen:
    return Seen(status.ready, status.busy, status.recipe, status.heartbeat, status.error)
