"""Both Modbus roles on real pseudo-terminals: against pymodbus's own master and slave, and against the simulator."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymodbus.client import ModbusSerialClient
from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.clock import SystemClock
from edge.config import Output, Plc
from edge.part import Answer, Say
from edge.plc.cable import PtyCable
from edge.plc.desk import Desk
from edge.plc.handshake import LinkState
from edge.plc.link import Link, make_link
from edge.plc.modbus_map import (
    COMMAND_AT,
    COMMAND_COUNT,
    STATUS_AT,
    STATUS_COUNT,
    STATUS_SEED,
    TEXT_AT,
    TEXT_COUNT,
    Code,
    Command,
    Outcome,
    Result,
    Status,
    checked,
    command_registers,
    read_status,
    text_of,
)
from edge.plc.players import make_player
from edge.plc.simulate import Plan, Simulator, is_good
from tests.plc.stations import EchoStation

UNIT = 3
DIALECTS = ("modbus_server", "modbus_client")


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    until = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)
    return result


class Line:
    """A link and its desk, on a cable of two pseudo-terminals with a thread that carries bytes between them."""

    def __init__(self, folder: Path, dialect: str, outputs: tuple[Output, ...] = (), **settings: Any) -> None:
        self.station_end, self.plc_end = PtyCable(folder / "station"), PtyCable(folder / "plc")
        self.station_end.plug()
        self.plc_end.plug()
        self.desk = Desk(2, frozenset({1, 2}), 1)
        self.answered: list[tuple[Answer, float, Say]] = []
        self.settings = Plc(port=str(folder / "station"), dialect=dialect, unit=UNIT, **settings)
        clock = SystemClock()
        self.link: Link = make_link(
            self.settings, self.desk, clock, lambda *a: self.answered.append(a), lambda *a: None, outputs
        )
        self.port = str(folder / "plc")
        self._stop = threading.Event()
        self._carrier = threading.Thread(target=self._carry, name="carrier")

    def __enter__(self) -> Line:
        self.link.start()
        self._carrier.start()
        wait_for(lambda: self.link.status().state is LinkState.CONNECTED)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.link.stop(5), "the link ends"
        self._stop.set()
        self._carrier.join(5)
        self.station_end.pull()
        self.plc_end.pull()

    def _carry(self) -> None:
        ends = {self.station_end.fileno(): self.plc_end, self.plc_end.fileno(): self.station_end}
        while not self._stop.is_set():
            for fd in select.select(list(ends), [], [], 0.05)[0]:
                os.write(ends[fd].fileno(), os.read(fd, 4096))


# --- the PLC is the master, and pymodbus's own ---


@pytest.fixture
def master(tmp_path: Path) -> Iterator[tuple[Line, ModbusSerialClient]]:
    with Line(tmp_path, "modbus_server") as line:
        client = ModbusSerialClient(line.port, baudrate=115_200, timeout=1, retries=0)
        assert client.connect()
        try:
            yield line, client
        finally:
            client.close()


def read(client: ModbusSerialClient) -> Status:
    answer = client.read_holding_registers(STATUS_AT, count=STATUS_COUNT, device_id=UNIT)
    assert checked(answer.registers, STATUS_SEED)
    return read_status(answer.registers)


def write(client: ModbusSerialClient, command: Command) -> None:
    assert not client.write_registers(COMMAND_AT, command_registers(command), device_id=UNIT).isError()


def test_a_stock_master_triggers_and_hears_the_verdict(master: tuple[Line, ModbusSerialClient]) -> None:
    line, client = master
    write(client, Command())
    assert not read(client).ready, "the station is not open yet"
    with EchoStation(line.desk, lambda trigger: Say.NG if trigger.serial == "BAD" else Say.OK) as station:
        assert read(client).ready
        for number, serial in enumerate(("GOOD", "BAD"), 1):
            command = Command(number, 0, 1000, number, Code.TRIGGER, number, 2, 900, serial)
            write(client, command)
            result = wait_for(lambda: read(client).result)
            assert (result.trigger, result.result_id) == (number, number)
            assert result.say is (Say.OK if serial == "GOOD" else Say.NG)
            text = client.read_holding_registers(TEXT_AT, count=TEXT_COUNT, device_id=UNIT).registers
            assert text_of(text[2:18]) == ("" if serial == "GOOD" else "defect.short")
            done = client.readwrite_registers(
                read_address=STATUS_AT,
                read_count=STATUS_COUNT,
                write_address=COMMAND_AT,
                values=command_registers(Command(number, number, 1000, number, Code.TRIGGER, number, 2, 900, serial)),
                device_id=UNIT,
            )
            status = read_status(done.registers)
            assert (status.result, status.done, status.outcome) == (None, number, Outcome.TAKEN)
    assert [(t.number, t.serial, t.recipe, t.encoder) for t in station.taken] == [
        (1, "GOOD", 2, 900),
        (2, "BAD", 2, 900),
    ]
    assert [(answer.result_id, say) for answer, _, say in line.answered] == [(1, Say.OK), (2, Say.NG)]
    assert line.link.status().state is LinkState.CONNECTED and line.link.status().garbage == 0


def test_a_stock_master_gets_exceptions(master: tuple[Line, ModbusSerialClient]) -> None:
    _, client = master
    codes = [
        client.read_coils(0, count=8, device_id=UNIT).exception_code,
        client.mask_write_register(address=0, device_id=UNIT).exception_code,
        client.read_holding_registers(90, count=1, device_id=UNIT).exception_code,
        client.write_register(STATUS_AT, 1, device_id=UNIT).exception_code,
        client.write_registers(COMMAND_AT, [1] * COMMAND_COUNT, device_id=UNIT).exception_code,
    ]
    illegal = ExcCodes.ILLEGAL_FUNCTION, ExcCodes.ILLEGAL_ADDRESS, ExcCodes.ILLEGAL_VALUE
    assert codes == [illegal[0], illegal[0], illegal[1], illegal[1], illegal[2]]
    assert not client.write_register(COMMAND_AT, 5, device_id=UNIT).isError()
    assert client.read_input_registers(STATUS_AT, count=1, device_id=UNIT).registers == [1]


def test_a_trigger_while_not_ready_is_an_overrun(master: tuple[Line, ModbusSerialClient]) -> None:
    line, client = master
    write(client, Command())
    line.desk.open()
    outcomes = []
    for number in (1, 2, 3):
        write(client, Command(number, sequence=number, code=Code.TRIGGER, trigger=number))
        outcomes.append(read(client).outcome)
    assert outcomes == [Outcome.TAKEN, Outcome.TAKEN, Outcome.OVERRUN]
    assert not read(client).ready and read(client).busy
    assert line.link.status().overruns == 1


def test_a_master_that_writes_nothing_is_silent(tmp_path: Path) -> None:
    with Line(tmp_path, "modbus_server", heartbeat_s=0.1) as line:
        client = ModbusSerialClient(line.port, baudrate=115_200, timeout=1, retries=0)
        assert client.connect()
        write(client, Command(1))
        wait_for(lambda: read(client) and line.link.status().state is LinkState.SILENT)
        write(client, Command(2))
        wait_for(lambda: line.link.status().state is LinkState.CONNECTED)
        client.close()


def test_the_last_result_is_read_before_the_link_ends(master: tuple[Line, ModbusSerialClient]) -> None:
    line, client = master
    write(client, Command())
    line.desk.open()
    write(client, Command(sequence=1, code=Code.TRIGGER, trigger=1))
    taken = line.desk.take(1)
    assert taken is not None and taken.trigger is not None
    line.desk.answer(Answer(taken.trigger, 1, Say.OK))
    ended: list[bool] = []
    stopper = threading.Thread(target=lambda: ended.append(line.link.stop(5)))
    stopper.start()
    assert read(client).result == Result(1, 1, Say.OK)
    stopper.join(5)
    assert ended == [True] and len(line.answered) == 1


# --- the PLC is a slave, and pymodbus's own ---


class StockSlave:
    """pymodbus's own serial server in a thread, with the registers of a PLC."""

    def __init__(self, port: str, with_text: bool = True) -> None:
        self.command = command_registers(Command())
        self.status: Status | None = None
        self.looks = 0  # at the command block
        self.text: list[int] = []
        self._port, self._with_text = port, with_text
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="slave")
        self._up = threading.Event()

    def __enter__(self) -> StockSlave:
        self._thread.start()
        assert self._up.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(5)

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        blocks = [(COMMAND_AT, COMMAND_COUNT), (STATUS_AT, STATUS_COUNT)]
        blocks += [(TEXT_AT, TEXT_COUNT)] if self._with_text else []
        data = [SimData(at, values=[0] * count, datatype=DataType.REGISTERS) for at, count in blocks]
        device = SimDevice(UNIT, simdata=data, action=self._act)
        server = ModbusSerialServer(device, port=self._port, baudrate=115_200)
        await server.serve_forever(background=True)
        self._up.set()
        await self._ending.wait()
        await server.shutdown()

    async def _act(self, function: int, start: int, at: int, count: int, registers: list[int], values: Any) -> None:
        if values is None:
            self.looks += 1
            registers[COMMAND_AT - start : COMMAND_AT - start + COMMAND_COUNT] = self.command
        elif at == STATUS_AT:
            assert checked(values, STATUS_SEED)
            self.status = read_status(values)
        elif at == TEXT_AT:
            self.text = list(values)

    def outcome_of(self, sequence: int) -> int:
        status = wait_for(lambda: self.status if self.status and self.status.done == sequence else None)
        return int(status.outcome)


@pytest.mark.parametrize("with_text", [True, False])
def test_a_stock_slave_triggers_and_hears_the_verdict(tmp_path: Path, with_text: bool) -> None:
    with (
        Line(tmp_path, "modbus_client") as line,
        StockSlave(line.port, with_text) as slave,
        EchoStation(line.desk, lambda trigger: Say.NG if trigger.serial == "BAD" else Say.OK) as station,
    ):
        wait_for(lambda: slave.status and slave.status.ready and slave.looks > 1)
        for number, serial in enumerate(("GOOD", "BAD"), 1):
            asked = Command(number, 0, None, number, Code.TRIGGER, number, 2, 900, serial)
            slave.command = command_registers(asked)
            result = wait_for(lambda: slave.status.result)
            assert (result.trigger, result.result_id) == (number, number)
            assert result.say is (Say.OK if serial == "GOOD" else Say.NG)
            assert slave.outcome_of(number) == Outcome.TAKEN
            reason = "" if serial == "GOOD" else "defect.short"
            wait_for(lambda reason=reason: not with_text or (slave.text and text_of(slave.text[2:18]) == reason))
            slave.command = command_registers(
                Command(number, number, None, number, Code.TRIGGER, number, 2, 900, serial)
            )
            wait_for(lambda: slave.status.result is None)
        slave.command = command_registers(Command(9, sequence=3, code=Code.RECIPE, recipe=2))
        assert slave.outcome_of(3) == Outcome.TAKEN
        wait_for(lambda: slave.status.recipe == 2)
    assert [(t.number, t.serial, t.recipe, t.encoder) for t in station.taken] == [
        (1, "GOOD", 2, 900),
        (2, "BAD", 2, 900),
    ]
    assert [(answer.result_id, say) for answer, _, say in line.answered] == [(1, Say.OK), (2, Say.NG)]


def test_a_slave_that_does_not_answer_is_silent_until_it_does(tmp_path: Path) -> None:
    with Line(tmp_path, "modbus_client", heartbeat_s=0.1) as line:
        wait_for(lambda: line.link.status().state is LinkState.SILENT)
        with StockSlave(line.port) as slave:
            for beat in range(1, 100):
                slave.command = command_registers(Command(beat))
                time.sleep(0.02)
                if line.link.status().state is LinkState.CONNECTED:
                    break
            assert line.link.status().state is LinkState.CONNECTED


# --- the simulator ---


def run_simulator(folder: Path, dialect: str, plan: Plan, outputs: tuple[Output, ...] = ()) -> dict[str, Any]:
    cable = PtyCable(folder / "plc")
    settings = Plc(port=str(folder / "plc"), dialect=dialect, unit=UNIT)
    desk = Desk(4, frozenset({1, 2}), 1)
    link = make_link(settings, desk, SystemClock(), lambda *a: None, lambda *a: None, outputs)
    cable.plug()
    link.start()
    try:
        with EchoStation(desk, lambda trigger: Say.OK if trigger.number % 2 else Say.NG) as station:
            report = Simulator(plan, cable, make_player(settings)).run()
    finally:
        ended = link.stop(5)
        cable.pull()
    assert ended and link.beat.thread() is None, "it rests, it has not died"
    report["taken"] = len(station.taken)
    report["wrong_recipe"] = [t for t in station.taken if t.recipe != (t.number - 1) // 10 % 2 + 1]
    return report


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_line_of_twenty_parts_a_second(tmp_path: Path, dialect: str) -> None:
    ejector = Output(id="ejector", on=["NG"], delay_ms=0, pulse_ms=40)
    report = run_simulator(tmp_path, dialect, Plan(rate=20, triggers=21, recipes=(1, 2)), (ejector,))
    assert is_good(report), report
    assert report["answered"] == {"OK": 11, "NG": 10}
    assert report["taken"] == 21 and report["wrong_recipe"] == []
    assert report["outputs"] == {"0": 10}, "each NG fires the ejector"
    assert report["answer_ms"]["max"] < 500


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_pulled_cable_and_garbage_lose_nothing(tmp_path: Path, dialect: str) -> None:
    plan = Plan(20, seconds=3, pulls=1, garbage_per_s=5, recipes=(1, 2), recipe_by="request", encoder_per_s=9, seed=32)
    report = run_simulator(tmp_path, dialect, plan)
    assert is_good(report), report
    assert report["pulls"] == 1 and report["recovery_s"]["max"] < 5
    assert sum(report["answered"].values()) + sum(report["refused"].values()) == report["sent"] > 10
