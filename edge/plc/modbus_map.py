"""The registers that a PLC and this station exchange over Modbus, as MODBUS.md draws them. No I/O.

The same three blocks lie at the same addresses whichever side is the master: the command block, which the PLC fills,
and the status and text blocks, which the station fills. Words of 32 bits have their high register first, texts two
ASCII characters a register, the first one in the high byte, filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from edge.part import Say
from edge.plc.desk import Refusal
from edge.records import Cause, Loss

PROTOCOL = 1  # of the map; another number stands for another map

COMMAND_AT, STATUS_AT, TEXT_AT = 0, 100, 120  # the blocks' first registers, counted from 0
COMMAND_SEED, STATUS_SEED, TEXT_SEED = 4321, 8765, 12345  # a block is no other's, and never valid when all zero
TEXT_REGISTERS = 16  # of each text: 32 characters

# The check is two polynomials over the registers, each modulo a prime. All of it fits 32 bits with sign, as PLCs have
# them. CRC-16 is linear over bits and this is not: what escapes the one is no likelier to escape the other.
CHECKS = ((251, 65521), (263, 65519))


class At(IntEnum):
    """Where each value of the command block lies, counted from the block's start."""

    HEARTBEAT = 0
    ACK = 1  # 2 registers
    POSITION = 3  # 2 registers
    SEQUENCE = 5
    CODE = 6
    TRIGGER = 7
    RECIPE = 8
    FLAGS = 9
    ENCODER = 10  # 2 registers
    SERIAL = 12  # 16 registers
    CHECK = 28  # 2 registers


class In(IntEnum):
    """Where each value of the status block lies, counted from the block's start."""

    PROTOCOL = 0
    HEARTBEAT = 1
    SIGNALS = 2
    RECIPE = 3
    DONE = 4
    OUTCOME = 5
    OUTPUTS = 6
    RESULT_TRIGGER = 7
    RESULT_ID = 8  # 2 registers
    RESULT_WORD = 10
    RESULT_REASON = 11
    CHECK = 12  # 2 registers


class Of(IntEnum):
    """Where each value of the text block lies, counted from the block's start."""

    RESULT_ID = 0  # 2 registers
    REASON = 2  # 16 registers
    ERROR = 18  # 16 registers
    CHECK = 34  # 2 registers


COMMAND_COUNT, STATUS_COUNT, TEXT_COUNT = At.CHECK + 2, In.CHECK + 2, Of.CHECK + 2


class Code(IntEnum):
    """What a command asks for."""

    NONE = 0
    TRIGGER = 1
    RECIPE = 2


class Outcome(IntEnum):
    """What became of the command with the sequence number DONE."""

    NONE = 0  # there was none
    TAKEN = 1
    OVERRUN = 2
    UNKNOWN_RECIPE = 3
    NOT_RUNNING = 4
    UNKNOWN_CODE = 5
    BAD_VALUE = 6  # a serial with characters that are not printable ASCII
    STALE = 7  # it stood in the block when the connection began, of unknown age: not done


class Signal(IntEnum):
    """Bits of SIGNALS."""

    READY = 1
    BUSY = 2
    ERROR = 4
    RESULT = 8  # a result stands in the block and has no Ack


class Flag(IntEnum):
    """Bits of FLAGS: which counts of the encoder are there."""

    ENCODER = 1
    POSITION = 2


WORDS = {Say.OK: 1, Say.NG: 2, Say.REVIEW: 3, Say.RETAKE: 4, Say.FAIL: 5, Say.LATE: 6}
SAYS = {number: say for say, number in WORDS.items()}

# By the reason's code, or by its family before the dot.
REASONS = {
    "defect": 1,
    "doubt": 2,
    "anomaly": 3,
    **{f"gate.{cause.value}": number for number, cause in enumerate(Cause, 10)},
    **{loss.value: number for number, loss in enumerate(Loss, 20)},
    "unknown_recipe": 25,
    "no_frame": 30,
    "challenge": 31,
}
OTHER_REASON = 99

OUTCOMES = {refusal: Outcome[refusal.value] for refusal in Refusal}


@dataclass(frozen=True)
class Command:
    """The command block, read.

    Attributes:
        ack: id of the result that the PLC has; 0: of none.
        position: of the encoder now; None: it is not told.
        sequence: another one for each command, 1 to 65535; 0: there is no command.
        code: as `Code`, or a number that it does not know.
        encoder: its position at the trigger; None: it is not told.
        serial: None when its registers hold no printable ASCII.
    """

    heartbeat: int = 0
    ack: int = 0
    position: int | None = None
    sequence: int = 0
    code: int = Code.NONE
    trigger: int = 0
    recipe: int = 0
    encoder: int | None = None
    serial: str | None = ""


@dataclass(frozen=True)
class Result:
    """What the station says of one trigger."""

    trigger: int
    result_id: int
    say: Say
    reason: str = ""


@dataclass(frozen=True)
class Status:
    """The status block and the text block in one.

    Attributes:
        done: sequence number of the command that was looked at last.
        outputs: bit n is on while output n of the config is.
        result: None while there is none to show. One that is read has the reason's number as its text.
        acknowledged: the PLC has that result already.
        error: what keeps the station from passing parts, "" for nothing.
    """

    heartbeat: int
    ready: bool
    busy: bool
    recipe: int
    done: int = 0
    outcome: int = Outcome.NONE
    outputs: int = 0
    result: Result | None = None
    error: str = ""


def check_of(registers: Sequence[int], seed: int) -> list[int]:
    """The check over a block's registers, those before its own: 2 registers.

    A change of one register always changes it; of all other changes one in 4 thousand million does not.

    >>> check_of([], COMMAND_SEED)
    [4321, 4321]
    >>> check_of([1, 2], COMMAND_SEED)[0] == ((4321 * 251 + 1) % 65521 * 251 + 2) % 65521
    True
    """
    totals = []
    for factor, prime in CHECKS:
        total = seed
        for register in registers:
            total = (total * factor + register) % prime
        totals.append(total)
    return totals


def checked(registers: Sequence[int], seed: int) -> bool:
    """Whether a block ends with its check."""
    return check_of(registers[:-2], seed) == list(registers[-2:])


def command_registers(command: Command) -> list[int]:
    """A command block with its check, as a PLC writes it.

    >>> block = command_registers(Command(sequence=7, code=Code.TRIGGER, trigger=3, serial="A1"))
    >>> len(block), block[At.SEQUENCE], hex(block[At.SERIAL])
    (30, 7, '0x4131')
    """
    flags = Flag.ENCODER * (command.encoder is not None) | Flag.POSITION * (command.position is not None)
    beside = [command.heartbeat, *split(command.ack), *split(command.position or 0)]
    asks = [command.sequence, command.code, command.trigger, command.recipe, flags]
    body = [*beside, *asks, *split(command.encoder or 0), *text_registers(command.serial or "")]
    return [*body, *check_of(body, COMMAND_SEED)]


def read_command(registers: Sequence[int]) -> Command:
    """What a command block says, whatever its check.

    >>> command = Command(1, 2, 3, 4, Code.TRIGGER, 5, 6, 7, "S-8")
    >>> read_command(command_registers(command)) == command
    True
    """
    flags = registers[At.FLAGS]
    return Command(
        heartbeat=registers[At.HEARTBEAT],
        ack=joined(registers, At.ACK),
        position=joined(registers, At.POSITION) if flags & Flag.POSITION else None,
        sequence=registers[At.SEQUENCE],
        code=registers[At.CODE],
        trigger=registers[At.TRIGGER],
        recipe=registers[At.RECIPE],
        encoder=joined(registers, At.ENCODER) if flags & Flag.ENCODER else None,
        serial=text_of(registers[At.SERIAL : At.CHECK]),
    )


def status_registers(status: Status) -> list[int]:
    """The status block with its check.

    >>> block = status_registers(Status(1, True, False, 5, result=Result(9, 70_000, Say.NG, "defect.short")))
    >>> block[In.SIGNALS], block[In.RESULT_ID :][:2], block[In.RESULT_WORD], block[In.RESULT_REASON]
    (9, [1, 4464], 2, 1)
    """
    signals = Signal.READY * status.ready | Signal.BUSY * status.busy | Signal.ERROR * bool(status.error)
    result = [0, 0, 0, 0, 0]
    if status.result is not None:
        signals |= Signal.RESULT
        shown = status.result
        result = [shown.trigger, *split(shown.result_id), WORDS[shown.say], reason_number(shown.reason)]
    head = [PROTOCOL, status.heartbeat, signals, status.recipe, status.done, status.outcome, status.outputs]
    body = [*head, *result]
    return [*body, *check_of(body, STATUS_SEED)]


def read_status(registers: Sequence[int]) -> Status:
    """What a status block says, as a PLC reads it: of reason and error it has no texts."""
    signals = registers[In.SIGNALS]
    result = None
    if signals & Signal.RESULT:
        say = SAYS.get(registers[In.RESULT_WORD], Say.FAIL)
        reason = str(registers[In.RESULT_REASON] or "")
        result = Result(registers[In.RESULT_TRIGGER], joined(registers, In.RESULT_ID), say, reason)
    return Status(
        heartbeat=registers[In.HEARTBEAT],
        ready=bool(signals & Signal.READY),
        busy=bool(signals & Signal.BUSY),
        recipe=registers[In.RECIPE],
        done=registers[In.DONE],
        outcome=registers[In.OUTCOME],
        outputs=registers[In.OUTPUTS],
        result=result,
        error="error" if signals & Signal.ERROR else "",
    )


def text_block(status: Status) -> list[int]:
    """The text block with its check: whose reason it is, the reason, the error."""
    result_id, reason = (status.result.result_id, status.result.reason) if status.result is not None else (0, "")
    body = [*split(result_id), *text_registers(reason), *text_registers(status.error)]
    return [*body, *check_of(body, TEXT_SEED)]


def reason_number(reason: str) -> int:
    """The number of a reason's code.

    >>> reason_number(""), reason_number("defect.short"), reason_number("gate.motion"), reason_number("deadline")
    (0, 1, 11, 22)
    """
    if not reason:
        return 0
    return REASONS.get(reason, REASONS.get(reason.partition(".")[0], OTHER_REASON))


def split(value: int) -> tuple[int, int]:
    """The high and the low register of a value; of a larger one than 32 bits the lower 32."""
    return value >> 16 & 0xFFFF, value & 0xFFFF


def joined(registers: Sequence[int], at: int) -> int:
    """The value of the two registers at a place."""
    return registers[at] << 16 | registers[at + 1]


def text_registers(text: str) -> list[int]:
    """A text as 16 registers: cut after 32 characters, what is not ASCII as `?`.

    >>> [hex(register) for register in text_registers("ABC")[:3]]
    ['0x4142', '0x4300', '0x0']
    """
    data = text.encode("ascii", "replace")[: 2 * TEXT_REGISTERS].ljust(2 * TEXT_REGISTERS, b"\0")
    return [data[i] << 8 | data[i + 1] for i in range(0, len(data), 2)]


def text_of(registers: Sequence[int]) -> str | None:
    """The text in registers up to its first zero, without blanks around it; None when it is not printable ASCII.

    >>> text_of([0x4142, 0x4320, 0]), text_of([0x0741])
    ('ABC', None)
    """
    data = b"".join(register.to_bytes(2, "big") for register in registers).partition(b"\0")[0]
    return data.decode("ascii").strip() if all(0x20 <= byte < 0x7F for byte in data) else None
