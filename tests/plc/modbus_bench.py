"""A Modbus link without its thread: a port that is fed by hand, a desk that notes what is asked of it."""

from __future__ import annotations

from edge.config import Plc
from edge.part import Answer, Say, Trigger
from edge.plc.desk import Desk, Refusal
from edge.plc.modbus_client import ModbusClientLink
from edge.plc.modbus_map import COMMAND_AT, Command, command_registers
from edge.plc.modbus_rtu import write_request
from edge.plc.modbus_server import ModbusServerLink
from tests.fakes import FakeClock

UNIT = 7


class HandPort:
    """Stands for `SerialPort`: `put` is what comes in, `take` what was written."""

    def __init__(self) -> None:
        self._coming = bytearray()
        self._written = bytearray()

    def put(self, data: bytes) -> None:
        self._coming += data

    def take(self) -> bytes:
        data = bytes(self._written)
        self._written.clear()
        return data

    def read(self, most: int = 4096, timeout_s: float = 0.0) -> bytes:
        data = bytes(self._coming[:most])
        del self._coming[:most]
        return data

    def write(self, data: bytes) -> None:
        self._written += data

    def wait(self, timeout_s: float, also: object = ()) -> None:
        raise AssertionError("nothing waits here")


class NotingDesk(Desk):
    """A desk that is always ready. Keeps what it was asked for, and answers each trigger when told."""

    def __init__(self) -> None:
        super().__init__(4, frozenset({1, 2}), 1)
        self.open()
        self.triggers: list[Trigger] = []
        self.recipes: list[int] = []
        self.refuse: Refusal | None = None

    def offer(self, trigger: Trigger) -> Refusal | None:
        self.triggers.append(trigger)
        return self.refuse

    def set_recipe(self, number: int) -> Refusal | None:
        self.recipes.append(number)
        return super().set_recipe(number)

    def say(self, result_id: int, say: Say = Say.OK, reason: str = "", until_mono_ns: int | None = None) -> None:
        """Answer the trigger that was asked last."""
        self._answers.append(Answer(self.triggers[-1], result_id, say, reason, until_mono_ns))


class Bench:
    """A link, its clock, desk and port; `answered` and `late` are what it reports."""

    def __init__(self, dialect: str = "modbus_server", **settings: object) -> None:
        self.clock, self.desk, self.port = FakeClock(), NotingDesk(), HandPort()
        self.answered: list[tuple[Answer, float, Say]] = []
        self.late: list[tuple[Answer, bool]] = []
        kind = ModbusServerLink if dialect == "modbus_server" else ModbusClientLink
        plc = Plc(port="none", dialect=dialect, unit=UNIT, **settings)
        self.link = kind(plc, self.desk, self.clock, lambda *a: self.answered.append(a), lambda *a: self.late.append(a))
        self.link.port = self.port
        self.link.handshake.connected(self.clock.mono_ns())
        self.link.opened()

    def hear(self, data: bytes, silence_s: float = 0.0) -> bytes:
        """Let the link hear this, and then nothing for so long; what it writes."""
        self.port.put(data)
        self.link.turn()
        if silence_s:
            self.clock.advance(silence_s)
            self.link.turn()
        return self.port.take()

    def ask(self, request: bytes) -> bytes:
        """As `hear`, with the pause that lies between a request and its answer."""
        return self.hear(request, 0.002)


def command_frame(command: Command, unit: int = UNIT) -> bytes:
    """A PLC writes its command block."""
    return write_request(unit, COMMAND_AT, command_registers(command))
