"""The PLC's side of a dialect, as the simulator plays it: what it wants goes in, bytes and what it learned come out.

No I/O and no clock. The simulator decides what the PLC does, a player only knows how that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from edge.config import Plc
from edge.plc.ascii_line import (
    AckLine,
    BeatLine,
    Command,
    ErrorLine,
    Garbage,
    OutputLine,
    QueryLine,
    RecipeLine,
    SignalsLine,
    TakenLine,
    TriggerLine,
    VerdictLine,
    encode,
    messages,
)


@dataclass(frozen=True)
class Ask:
    """A part that the PLC wants judged."""

    number: int
    serial: str  # "" for none
    recipe: int  # 0: the one that is set
    encoder: int | None = None


@dataclass(frozen=True)
class Heard:
    """The station took a trigger."""

    number: int


@dataclass(frozen=True)
class Answered:
    """The station answered a trigger; `word` is OK, NG, REVIEW, RETAKE, FAIL or LATE."""

    number: int
    result_id: int
    word: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """The station did not do something; `number` is of the trigger, None: of none."""

    number: int | None
    name: str


@dataclass(frozen=True)
class Seen:
    """The station's signals."""

    ready: bool
    busy: bool
    recipe: int
    heartbeat: int
    error: str


@dataclass(frozen=True)
class Switched:
    """The station wants an output on or off."""

    output: str
    on: bool


@dataclass(frozen=True)
class Noise:
    """Something came that is no message of the dialect."""


Event = Heard | Answered | Refused | Seen | Switched | Noise


@dataclass
class Turn:
    """What one turn gave.

    Attributes:
        out: bytes to write now.
        events: what the PLC learned, in order.
        next_ns: call again by then, even if nothing comes in; None: only when something does.
    """

    out: bytes = b""
    events: list[Event] = field(default_factory=list)
    next_ns: int | None = None


class Player(Protocol):
    """A PLC's end of a dialect. What is wanted is said in the next turns, in this order."""

    def opened(self) -> None:
        """The cable is in, for the first time or again: what was half said or half read is void."""

    def trigger(self, ask: Ask) -> None:
        """Ask for a part to be judged; the same ask again is a repetition."""

    def acknowledge(self, result_id: int) -> None:
        """Say that an answer is here."""

    def recipe(self, number: int) -> None:
        """Ask for another recipe."""

    def beat(self, counter: int, encoder: int | None) -> None:
        """Say that the PLC lives."""

    def turn(self, data: bytes, now_ns: int) -> Turn:
        """Take what came in; say what is wanted, or the next piece of it."""


def make_player(settings: Plc) -> Player:
    """The player whose station is configured by `settings`: its dialect, unit, check, baud."""
    if settings.dialect == "ascii":
        return AsciiPlayer(settings.check)
    from edge.plc.modbus_player import make_modbus_player  # its library is loaded only where it is used

    player: Player = make_modbus_player(settings)
    return player


class AsciiPlayer:
    """The PLC's end of the ASCII dialect."""

    def __init__(self, check: bool) -> None:
        self._check = check
        self._reader = messages(check)
        self._out: list[Command] = []
        self._asks: dict[int, Ask] = {}  # the newest of each number
        self._unheard: set[int] = set()  # a verdict before the K may be of an older part with this number

    def opened(self) -> None:
        """See `Player`. Asks for the signals: the PLC knows nothing of the station yet."""
        self._reader.reset()
        self._out = [QueryLine()]

    def trigger(self, ask: Ask) -> None:
        """See `Player`."""
        if self._asks.get(ask.number) != ask:
            self._asks[ask.number] = ask
            self._unheard.add(ask.number)
        self._out.append(TriggerLine(ask.number, ask.serial, ask.recipe, ask.encoder))

    def acknowledge(self, result_id: int) -> None:
        """See `Player`."""
        self._out.append(AckLine(result_id))

    def recipe(self, number: int) -> None:
        """See `Player`."""
        self._out.append(RecipeLine(number))

    def beat(self, counter: int, encoder: int | None) -> None:
        """See `Player`."""
        self._out.append(BeatLine(counter, encoder))

    def turn(self, data: bytes, now_ns: int) -> Turn:
        """See `Player`."""
        events = [event for event in map(_event, self._reader.feed(data)) if self._counts(event)]
        out = b"".join(encode(line, self._check) for line in self._out)
        self._out.clear()
        return Turn(out, events)

    def _counts(self, event: Event) -> bool:
        if isinstance(event, Heard):
            self._unheard.discard(event.number)
        return not (isinstance(event, Answered) and event.number in self._unheard)


def _event(
    item: TakenLine | VerdictLine | ErrorLine | SignalsLine | OutputLine | Garbage,
) -> Event:
    if isinstance(item, TakenLine):
        return Heard(item.number)
    if isinstance(item, VerdictLine):
        return Answered(item.number, item.result_id, item.say.value, item.reason)
    if isinstance(item, ErrorLine):
        return Refused(item.number, item.name)
    if isinstance(item, SignalsLine):
        return Seen(item.ready, item.busy, item.recipe, item.heartbeat, item.error)
    if isinstance(item, OutputLine):
        return Switched(item.output, item.on)
    return Noise()
