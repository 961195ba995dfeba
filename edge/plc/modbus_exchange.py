"""What both Modbus roles do with the blocks: the command block goes in, the status block comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.clock import Clock
from edge.part import Trigger
from edge.plc.desk import Refusal
from edge.plc.handshake import Handshake, Saying
from edge.plc.modbus_map import (
    COMMAND_SEED,
    OUTCOMES,
    Code,
    Command,
    Outcome,
    Result,
    Status,
    checked,
    read_command,
    status_registers,
    text_block,
)
from edge.plc.outputs import Outputs

LAST_S = 0.25  # at the end the PLC has so long to get the last results and to acknowledge them


@dataclass(frozen=True)
class Blocks:
    """What the station shows at a moment.

    Attributes:
        saying: the answer that stands in them; None: there is none.
    """

    status: list[int]
    text: list[int]
    saying: Saying | None


class Exchange:
    """Commands by their sequence number, results by their Ack. For the link's thread."""

    def __init__(self, handshake: Handshake, outputs: Outputs, clock: Clock, check: bool) -> None:
        """`check`: a command block without the right check is no command block."""
        self._handshake = handshake
        self._outputs = outputs
        self._clock = clock
        self._check = check
        self._in_touch = False
        self._done = 0
        self._outcome = Outcome.NONE

    def out_of_touch(self) -> None:
        """How old a command is that is read next is not known: it is not done, and the PLC is told.

        By now another part may stand before the cameras.
        """
        self._in_touch = False

    def valid(self, registers: Sequence[int]) -> bool:
        """Whether a command block may be read."""
        return not self._check or checked(registers, COMMAND_SEED)

    def take(self, registers: Sequence[int], at_mono_ns: int) -> None:
        """Read a valid command block that came at `at_mono_ns`."""
        command = read_command(registers)
        self._handshake.beat(command.heartbeat, at_mono_ns)
        self._outputs.counted(command.position)
        if command.sequence != self._done:
            self._handshake.heard(at_mono_ns)
            self._outcome = self._outcome_of(command, at_mono_ns)
            self._done = command.sequence
        self._in_touch = True
        # After the command: a trigger that is repeated together with the Ack of its answer is no new part.
        if command.ack:
            self._handshake.acknowledge(command.ack)

    def blocks(self, now_ns: int) -> Blocks:
        """What the station shows now."""
        shown = self._handshake.shown(now_ns)
        saying = self._handshake.head(now_ns)
        status = Status(
            heartbeat=shown.heartbeat,
            ready=shown.ready,
            busy=shown.busy,
            recipe=shown.recipe,
            done=self._done,
            outcome=self._outcome,
            outputs=self._outputs.bits(),
            result=_result(saying),
            error=shown.error,
        )
        return Blocks(status_registers(status), text_block(status), saying)

    def _outcome_of(self, command: Command, at_mono_ns: int) -> Outcome:
        if command.sequence == 0:
            return Outcome.NONE
        if not self._in_touch:
            return Outcome.STALE
        if command.code == Code.TRIGGER:
            return self._trigger(command, at_mono_ns)
        if command.code == Code.RECIPE:
            return _outcome(self._handshake.set_recipe(command.recipe))
        return Outcome.UNKNOWN_CODE

    def _trigger(self, command: Command, at_mono_ns: int) -> Outcome:
        if command.serial is None:
            return Outcome.BAD_VALUE
        at_ts = self._clock.ts() - (self._clock.mono_ns() - at_mono_ns) / 1e9
        trigger = Trigger(command.trigger, command.serial, command.recipe, at_mono_ns, at_ts, command.encoder)
        if command.position is None:
            self._outputs.counted(command.encoder)
        return _outcome(self._handshake.trigger(trigger).refusal)


def _outcome(refusal: Refusal | None) -> Outcome:
    return Outcome.TAKEN if refusal is None else OUTCOMES[refusal]


def _result(saying: Saying | None) -> Result | None:
    if saying is None:
        return None
    answer = saying.answer
    return Result(answer.trigger.number, answer.result_id, saying.say, answer.reason)
