"""What both roles do with commands and results, on links whose port is fed by hand."""

from __future__ import annotations

import pytest
from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerRTU
from pymodbus.pdu import DecodePDU
from pymodbus.pdu.register_message import ReadWriteMultipleRegistersRequest

from edge.part import Say
from edge.plc.desk import Refusal
from edge.plc.modbus_map import (
    COMMAND_AT,
    COMMAND_COUNT,
    COMMAND_SEED,
    STATUS_AT,
    STATUS_COUNT,
    TEXT_AT,
    TEXT_COUNT,
    At,
    Code,
    Command,
    In,
    Outcome,
    Result,
    Status,
    check_of,
    command_registers,
    read_status,
    text_of,
)
from edge.plc.modbus_rtu import READ, WRITE, Access, answer_frame, exception_frame, read_request, write_request
from tests.plc.modbus_bench import UNIT, Bench, command_frame

TRIGGER = Command(heartbeat=1, sequence=1, code=Code.TRIGGER, trigger=5, recipe=2, serial="S-1")


def registers_of(answer: bytes) -> list[int]:
    return [int.from_bytes(answer[i : i + 2], "big") for i in range(3, len(answer) - 2, 2)]


def status_of(bench: Bench) -> Status:
    return read_status(registers_of(bench.ask(read_request(UNIT, STATUS_AT, STATUS_COUNT))))


def server(**settings: object) -> Bench:
    """A server that is in touch: it has seen a block without a command."""
    bench = Bench("modbus_server", **settings)
    assert bench.ask(command_frame(Command()))[1] == WRITE
    return bench


# --- commands ---


def test_a_trigger_is_taken_once() -> None:
    bench = server()
    heard_ns, heard_ts = bench.clock.mono_ns(), bench.clock.ts()
    for _ in range(3):
        bench.ask(command_frame(TRIGGER))
    (trigger,) = bench.desk.triggers
    assert (trigger.number, trigger.serial, trigger.recipe, trigger.encoder) == (5, "S-1", 2, None)
    assert trigger.at_mono_ns == heard_ns and trigger.at_ts == pytest.approx(heard_ts)
    status = status_of(bench)
    assert (status.done, status.outcome) == (1, Outcome.TAKEN)


def test_what_changes_beside_the_sequence_number_is_no_new_command() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.ask(command_frame(Command(2, 0, None, 1, Code.TRIGGER, 6, 1, None, "S-2")))
    assert len(bench.desk.triggers) == 1


@pytest.mark.parametrize(
    ("command", "refuse", "outcome", "why"),
    [
        (TRIGGER, Refusal.OVERRUN, Outcome.OVERRUN, "not ready"),
        (TRIGGER, Refusal.NOT_RUNNING, Outcome.NOT_RUNNING, "the service stops"),
        (Command(sequence=1, code=Code.RECIPE, recipe=2), None, Outcome.TAKEN, "a recipe"),
        (Command(sequence=1, code=Code.RECIPE, recipe=77), None, Outcome.UNKNOWN_RECIPE, "a recipe that is not there"),
        (Command(sequence=1, code=9), None, Outcome.UNKNOWN_CODE, "a code that means nothing"),
        (Command(sequence=1), None, Outcome.UNKNOWN_CODE, "no code"),
    ],
)
def test_every_command_has_an_outcome(command: Command, refuse: Refusal | None, outcome: Outcome, why: str) -> None:
    bench = server()
    bench.desk.refuse = refuse
    bench.ask(command_frame(command))
    status = status_of(bench)
    assert (status.done, status.outcome) == (1, outcome), why


def test_a_serial_that_is_no_text_is_refused() -> None:
    bench = server()
    block = command_registers(TRIGGER)
    block[At.SERIAL] = 0x0741
    block[At.CHECK :] = check_of(block[: At.CHECK], COMMAND_SEED)
    bench.ask(write_request(UNIT, COMMAND_AT, block))
    assert status_of(bench).outcome == Outcome.BAD_VALUE and bench.desk.triggers == []


def test_a_command_that_stood_there_at_the_beginning_is_stale() -> None:
    bench = Bench("modbus_server")
    bench.ask(command_frame(TRIGGER))
    status = status_of(bench)
    assert (status.done, status.outcome, bench.desk.triggers) == (1, Outcome.STALE, [])
    bench.ask(command_frame(Command(1, sequence=2, code=Code.TRIGGER, trigger=5, recipe=2, serial="S-1")))
    assert status_of(bench).outcome == Outcome.TAKEN and len(bench.desk.triggers) == 1


def test_after_the_cable_was_out_a_command_that_was_done_is_not_done_again() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.link.opened()
    bench.ask(command_frame(TRIGGER))
    status = status_of(bench)
    assert (status.done, status.outcome, len(bench.desk.triggers)) == (1, Outcome.TAKEN, 1)


def test_a_command_that_was_given_while_the_cable_was_out_is_stale() -> None:
    bench = server()
    bench.link.opened()
    bench.ask(command_frame(TRIGGER))
    assert (status_of(bench).outcome, bench.desk.triggers) == (Outcome.STALE, [])


def test_sequence_zero_is_a_new_beginning() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.ask(command_frame(Command()))
    assert status_of(bench).done == 0
    bench.ask(command_frame(Command(sequence=1, code=Code.TRIGGER, trigger=6)))
    assert [t.number for t in bench.desk.triggers] == [5, 6]


def test_only_a_heartbeat_that_moves_is_a_sign_of_life() -> None:
    bench = server(heartbeat_s=1.0)
    for _ in range(5):
        bench.clock.advance(1)
        bench.ask(command_frame(Command(heartbeat=3)))
    assert bench.link.handshake.silent(bench.clock.mono_ns())
    bench.ask(command_frame(Command(heartbeat=4)))
    assert not bench.link.handshake.silent(bench.clock.mono_ns())


# --- results ---


def test_a_result_stands_until_its_ack_then_the_next() -> None:
    bench = server()
    for number in (1, 2):
        bench.ask(command_frame(Command(sequence=number, code=Code.TRIGGER, trigger=number)))
        bench.desk.say(70_000 + number, Say.OK if number == 1 else Say.NG, "" if number == 1 else "defect.short")
    first = Result(1, 70_001, Say.OK)
    assert status_of(bench).result == first == status_of(bench).result
    done = Command(sequence=2, code=Code.TRIGGER, trigger=2, ack=70_001)
    bench.ask(command_frame(done))
    assert status_of(bench).result == Result(2, 70_002, Say.NG, "1")
    text = registers_of(bench.ask(read_request(UNIT, TEXT_AT, TEXT_COUNT)))
    assert (text[:2], text_of(text[2:18])) == ([1, 70_002 - 65_536], "defect.short")
    bench.ask(command_frame(Command(sequence=2, code=Code.TRIGGER, trigger=2, ack=70_002)))
    status = status_of(bench)
    assert status.result is None
    assert [(a.result_id, say) for a, _, say in bench.answered] == [(70_001, Say.OK), (70_002, Say.NG)]


def test_a_result_is_said_when_it_is_read_and_not_before() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.desk.say(9)
    bench.ask(read_request(UNIT, STATUS_AT, In.RESULT_TRIGGER))  # signals alone
    assert bench.answered == []
    bench.clock.advance(0.05)
    bench.ask(read_request(UNIT, STATUS_AT, STATUS_COUNT))
    assert [ms for _, ms, _ in bench.answered] == [pytest.approx(56)], "with the pauses before three answers"


def test_an_ok_that_is_read_too_late_is_late() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.desk.say(9, until_mono_ns=bench.clock.mono_ns() + 100_000_000)
    bench.clock.advance(0.2)
    result = status_of(bench).result
    assert result is not None and result.say is Say.LATE
    assert [(a.result_id, again) for a, again in bench.late] == [(9, False)]


def test_a_trigger_repeated_with_the_ack_of_its_answer_is_no_second_part() -> None:
    bench = server()
    bench.ask(command_frame(TRIGGER))
    bench.desk.say(9)
    assert status_of(bench).result == Result(5, 9, Say.OK)
    bench.ask(command_frame(Command(1, 9, None, 2, Code.TRIGGER, 5, 2, None, "S-1")))
    assert len(bench.desk.triggers) == 1 and status_of(bench).result is None


# --- the server's registers ---


@pytest.mark.parametrize(
    ("request_frame", "code", "why"),
    [
        (read_request(UNIT, COMMAND_COUNT, 1), ExcCodes.ILLEGAL_ADDRESS, "between the blocks"),
        (read_request(UNIT, STATUS_AT, STATUS_COUNT + 1), ExcCodes.ILLEGAL_ADDRESS, "over the end of a block"),
        (read_request(UNIT, 65535, 1), ExcCodes.ILLEGAL_ADDRESS, "the last address of all"),
        (write_request(UNIT, STATUS_AT, [1]), ExcCodes.ILLEGAL_ADDRESS, "a block of the station"),
        (write_request(UNIT, COMMAND_COUNT - 1, [1, 2]), ExcCodes.ILLEGAL_ADDRESS, "over the end of the command block"),
        (write_request(UNIT, COMMAND_AT, [1] * COMMAND_COUNT), ExcCodes.ILLEGAL_VALUE, "a wrong check"),
    ],
)
def test_what_is_refused(request_frame: bytes, code: ExcCodes, why: str) -> None:
    bench = server()
    before = bench.ask(read_request(UNIT, COMMAND_AT, COMMAND_COUNT))
    assert bench.ask(request_frame) == exception_frame(UNIT, request_frame[1], code), why
    assert bench.ask(read_request(UNIT, COMMAND_AT, COMMAND_COUNT)) == before, "nothing of it is kept"


def test_an_exchange_whose_reading_is_refused_writes_nothing() -> None:
    bench = server()
    request = exchange(TRIGGER, STATUS_AT, STATUS_COUNT + 1)
    assert bench.ask(request) == exception_frame(UNIT, 23, ExcCodes.ILLEGAL_ADDRESS)
    assert bench.desk.triggers == []
    answer = bench.ask(exchange(TRIGGER, STATUS_AT, STATUS_COUNT))
    assert read_status(registers_of(answer)).done == 1, "it writes first, then reads"


def exchange(command: Command, read_at: int, read_count: int) -> bytes:
    message = ReadWriteMultipleRegistersRequest(read_at, read_count, COMMAND_AT, command_registers(command), UNIT)
    return FramerRTU(DecodePDU(False)).buildFrame(message)


def test_a_block_in_pieces_is_looked_at_with_its_last_register() -> None:
    bench = server()
    block = command_registers(TRIGGER)
    for at, value in enumerate(block):
        assert bench.desk.triggers == []
        bench.ask(write_request(UNIT, COMMAND_AT + at, [value]))
    assert [t.number for t in bench.desk.triggers] == [5]


def test_without_the_check_the_sequence_number_is_the_last_word() -> None:
    bench = Bench("modbus_server", check=False)
    bench.ask(write_request(UNIT, COMMAND_AT, [0] * COMMAND_COUNT))
    bench.ask(write_request(UNIT, COMMAND_AT + At.CODE, [1, 5]))
    assert bench.desk.triggers == []
    bench.ask(write_request(UNIT, COMMAND_AT + At.SEQUENCE, [1]))
    assert [t.number for t in bench.desk.triggers] == [5]


@pytest.mark.parametrize("unit", [0, UNIT + 1])
def test_what_goes_to_others_and_to_all_is_left_alone(unit: int) -> None:
    bench = server()
    assert bench.hear(command_frame(TRIGGER, unit), 0.05) == b""
    assert bench.desk.triggers == [] and bench.link.garbage == 0


def test_a_request_to_us_before_one_to_another_is_done_and_not_answered() -> None:
    bench = server()
    to_another = read_request(UNIT + 1, 0, 2)
    assert bench.hear(command_frame(TRIGGER) + to_another, 0.05) == b"", "the line is the other's now"
    assert len(bench.desk.triggers) == 1


def test_the_answer_waits_while_something_follows_the_request() -> None:
    bench = server()
    request = read_request(UNIT, STATUS_AT, STATUS_COUNT)
    assert bench.ask(request + b"\x55\x66") == b"", "the master may be speaking again"
    assert len(bench.hear(b"", 0.05)) == 5 + 2 * STATUS_COUNT, "it was noise"
    assert bench.link.garbage == 1
    assert len(bench.ask(request + request)) == 5 + 2 * STATUS_COUNT, "a request and its repetition get one answer"


def test_a_request_under_a_flood_of_noise_is_not_answered_when_it_ends() -> None:
    bench = server()
    bench.hear(read_request(UNIT, STATUS_AT, STATUS_COUNT))
    for _ in range(20):
        assert bench.hear(b"\x55" * 20, 0.01) == b""
    assert bench.hear(b"", 0.05) == b"", "the master has long given up"


def test_half_a_request_before_a_long_pause_of_ours_is_completed() -> None:
    """While a model computes no byte is read: a pause between two reads is none on the line."""
    bench = server()
    request = read_request(UNIT, STATUS_AT, STATUS_COUNT)
    bench.hear(request[:4])
    bench.clock.advance(0.3)
    assert bench.ask(request[4:]) != b""


def test_an_answer_leaves_after_the_pause_between_two_frames() -> None:
    bench = Bench("modbus_server", baud=9600)
    request = read_request(UNIT, STATUS_AT, STATUS_COUNT)
    assert bench.hear(request, 0.0039) == b"", "3.5 characters take 4 ms"
    assert bench.hear(b"", 0.0002) != b""


def test_a_block_with_a_wrong_check_counts_as_garbage() -> None:
    bench = server()
    bench.ask(write_request(UNIT, COMMAND_AT, [1] * COMMAND_COUNT))
    assert bench.link.garbage == 1


# --- the client's requests ---


class Slave:
    """A PLC's registers: answers what the link asks."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.command = command_registers(Command())
        self.status: list[int] = []
        self.text: list[int] = []
        self.refuse: dict[tuple[int, int], ExcCodes] = {}  # (function, address) -> exception
        self.mute: tuple[int, int] | None = None  # it does not answer this
        self.asked: list[tuple[int, int]] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.002)):
            self.bench.clock.advance(0.002)
            request = self.bench.hear(b"")
            if request:
                self.bench.hear(self.answer(request))

    def answer(self, request: bytes) -> bytes:
        function, at, count = request[1], int.from_bytes(request[2:4], "big"), int.from_bytes(request[4:6], "big")
        self.asked.append((function, at))
        if (function, at) == self.mute:
            return b""
        if (function, at) in self.refuse:
            return exception_frame(UNIT, function, self.refuse[function, at])
        if function == READ:
            return answer_frame(UNIT, Access(READ, at, count), self.command[at : at + count])
        values = [int.from_bytes(request[i : i + 2], "big") for i in range(7, len(request) - 2, 2)]
        setattr(self, "status" if at == STATUS_AT else "text", values)
        return answer_frame(UNIT, Access(WRITE, write_at=at, values=values), [])


def client() -> tuple[Bench, Slave]:
    bench = Bench("modbus_client")
    slave = Slave(bench)
    slave.run(0.1)
    return bench, slave


def test_a_client_reads_the_command_and_writes_the_result() -> None:
    bench, slave = client()
    slave.command = command_registers(TRIGGER)
    slave.run(0.03)
    assert [t.number for t in bench.desk.triggers] == [5]
    assert (read_status(slave.status).done, read_status(slave.status).outcome) == (1, Outcome.TAKEN)
    bench.desk.say(9, Say.NG, "defect.short")
    slave.run(0.01)
    assert read_status(slave.status).result == Result(5, 9, Say.NG, "1")
    assert [a.result_id for a, _, _ in bench.answered] == [9]
    slave.run(0.05)
    assert text_of(slave.text[2:18]) == "defect.short"


def test_an_answer_is_written_before_the_next_look() -> None:
    bench, slave = client()
    slave.command = command_registers(TRIGGER)
    slave.run(0.03)
    slave.asked.clear()
    bench.desk.say(9)
    slave.run(0.004)
    assert slave.asked[0] == (WRITE, STATUS_AT)


def test_a_client_looks_at_its_pace() -> None:
    _, slave = client()
    slave.asked.clear()
    slave.run(1.0)
    assert slave.asked.count((READ, COMMAND_AT)) == pytest.approx(100, abs=25)


def test_a_plc_without_registers_for_the_status_gives_no_triggers() -> None:
    bench = Bench("modbus_client")
    slave = Slave(bench)
    slave.refuse = {(WRITE, STATUS_AT): ExcCodes.ILLEGAL_ADDRESS}
    slave.run(0.5)
    slave.command = command_registers(TRIGGER)
    slave.run(4)
    assert bench.desk.triggers == []
    assert "40101 to 40114 cannot be written (ILLEGAL_ADDRESS)" in bench.link._silence()
    assert len(slave.asked) < 30, "it is not bothered all the time"
    slave.refuse.clear()
    slave.run(0.5)
    assert read_status(slave.status).outcome == Outcome.STALE


def test_a_plc_without_registers_for_texts_is_asked_once() -> None:
    _, slave = client()
    slave.refuse = {(WRITE, TEXT_AT): ExcCodes.ILLEGAL_ADDRESS}
    slave.bench.link.opened()
    slave.asked.clear()
    slave.run(0.5)
    assert slave.asked.count((WRITE, TEXT_AT)) == 1


def test_a_plc_that_leaves_texts_unanswered_is_seldom_told_them() -> None:
    bench, slave = client()
    bench.link.opened()
    slave.asked.clear()
    slave.mute = (WRITE, TEXT_AT)
    slave.run(4)
    assert slave.asked.count((WRITE, TEXT_AT)) == 1
    assert slave.asked.count((READ, COMMAND_AT)) > 200


def test_on_a_slow_line_texts_have_their_turn() -> None:
    bench = Bench("modbus_client", poll_ms=2)  # a look takes longer
    slave = Slave(bench)
    slave.run(3)
    assert slave.asked.count((WRITE, TEXT_AT)) == 1
    assert slave.asked.count((READ, COMMAND_AT)) > 500


def test_a_plc_that_is_busy_is_asked_again() -> None:
    bench, slave = client()
    slave.refuse = {(READ, COMMAND_AT): ExcCodes.DEVICE_BUSY}
    slave.run(0.1)
    slave.refuse.clear()
    slave.command = command_registers(TRIGGER)
    slave.run(0.05)
    assert len(bench.desk.triggers) == 1


def test_a_command_after_half_a_second_without_a_look_is_stale() -> None:
    bench, slave = client()
    bench.clock.advance(0.7)
    slave.command = command_registers(TRIGGER)
    slave.run(0.5)
    assert (read_status(slave.status).outcome, bench.desk.triggers) == (Outcome.STALE, [])


def test_a_block_that_was_read_while_it_was_written_is_read_again() -> None:
    bench, slave = client()
    slave.command = [*command_registers(TRIGGER)[:10], *command_registers(Command())[10:]]
    slave.run(0.03)
    assert bench.desk.triggers == [] and bench.link.garbage > 0
    slave.command = command_registers(TRIGGER)
    slave.run(0.03)
    assert len(bench.desk.triggers) == 1


def test_a_lost_answer_is_asked_for_again_and_the_result_written_again() -> None:
    bench, slave = client()
    slave.command = command_registers(TRIGGER)
    slave.run(0.03)
    bench.desk.say(9)
    for _ in range(10):
        bench.clock.advance(0.002)
        request = bench.hear(b"")
        if request[1:4] == bytes([WRITE, 0, STATUS_AT]):
            break
    assert bench.answered == [], "nobody said that it arrived"
    bench.clock.advance(0.5)
    bench.hear(b"")
    slave.run(0.1)
    assert read_status(slave.status).result == Result(5, 9, Say.OK)
    assert [a.result_id for a, _, _ in bench.answered] == [9]


def test_a_block_whose_writing_was_not_confirmed_is_written_again() -> None:
    """The PLC may have what was written: it is told again, even when all is as it was before."""
    bench, slave = client()
    before = slave.status
    bench.desk.show_error("camera")
    bench.clock.advance(0.002)
    slave.answer(bench.hear(b""))
    assert read_status(slave.status).error
    bench.desk.show_error("")
    bench.clock.advance(0.3)
    bench.hear(b"")
    slave.run(0.1)
    assert slave.status == before
