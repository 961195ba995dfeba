"""The lines of the ASCII dialect, both ways: see PROTOCOL.md. No I/O.

One spelling a line and no leniency: what is not exactly a line of this dialect is garbage, and garbage is told.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from edge.part import Say

MAX_LINE = 128  # bytes, without the LF
MAX_SERIAL = 64
MAX_CODE = 48  # of a reason or an error
NONE = "-"

_NUMBER = r"(0|[1-9][0-9]{0,4})"  # up to 65535
_LONG = r"(0|[1-9][0-9]{0,9})"  # up to 2^32 - 1
_ID = r"(0|[1-9][0-9]{0,17})"
_WORD = r"([!-)+-~]+)"  # printable, without space and *
_BIT = r"([01])"

_CHECKED = re.compile(rb"[ -~]*\*[0-9A-F]{8}")
_TRIGGER = re.compile(rf"T {_NUMBER} {_WORD} {_NUMBER}(?: {_LONG})?")
_ACK = re.compile(rf"A {_ID}")
_RECIPE = re.compile(rf"R {_NUMBER}")
_BEAT = re.compile(rf"H {_NUMBER}(?: {_LONG})?")
_TAKEN = re.compile(rf"K {_NUMBER}")
_VERDICT = re.compile(rf"V {_NUMBER} {_ID} (OK|NG|REVIEW|RETAKE|FAIL|LATE) {_WORD}")
_ERROR = re.compile(rf"E (?:{_NUMBER}|-) (OVERRUN|UNKNOWN_RECIPE|NOT_RUNNING|SYNTAX|CHECK|TOO_LONG)")
_SIGNALS = re.compile(rf"S {_BIT} {_BIT} {_NUMBER} {_NUMBER} {_WORD}")
_OUTPUT = re.compile(rf"O {_WORD} {_BIT}")


class Fault(str, Enum):
    """Why a piece of input is no line. The names are said on the wire."""

    SYNTAX = "SYNTAX"
    CHECK = "CHECK"  # no check value where one is due, or the wrong one
    TOO_LONG = "TOO_LONG"


@dataclass(frozen=True)
class Garbage:
    """A piece of input that was thrown away."""

    fault: Fault


@dataclass(frozen=True)
class TriggerLine:
    """`T`: judge the part that stands before the cameras."""

    number: int
    serial: str  # "" for none
    recipe: int  # 0: the one that is set
    encoder: int | None = None

    def body(self) -> str:
        """The line without check and LF."""
        head = f"T {self.number} {self.serial or NONE} {self.recipe}"
        return head if self.encoder is None else f"{head} {self.encoder}"


@dataclass(frozen=True)
class AckLine:
    """`A`: the answer with this result id is here."""

    result_id: int

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"A {self.result_id}"


@dataclass(frozen=True)
class RecipeLine:
    """`R`: judge by another recipe from the next trigger on."""

    number: int

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"R {self.number}"


@dataclass(frozen=True)
class BeatLine:
    """`H`: the PLC lives; with the encoder count of now."""

    counter: int
    encoder: int | None = None

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"H {self.counter}" if self.encoder is None else f"H {self.counter} {self.encoder}"


@dataclass(frozen=True)
class QueryLine:
    """`?`: say the signals now."""

    def body(self) -> str:
        """See `TriggerLine`."""
        return "?"


@dataclass(frozen=True)
class TakenLine:
    """`K`: the trigger is taken, its answer will come."""

    number: int

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"K {self.number}"


@dataclass(frozen=True)
class VerdictLine:
    """`V`: the answer."""

    number: int
    result_id: int
    say: Say
    reason: str = ""

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"V {self.number} {self.result_id} {self.say.value} {code(self.reason)}"


@dataclass(frozen=True)
class ErrorLine:
    """`E`: something was not done, and why."""

    number: int | None  # of the trigger; None: of no trigger
    name: str

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"E {NONE if self.number is None else self.number} {self.name}"


@dataclass(frozen=True)
class SignalsLine:
    """`S`: the signals and the station's heartbeat."""

    ready: bool
    busy: bool
    recipe: int
    heartbeat: int
    error: str = ""

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"S {self.ready:d} {self.busy:d} {self.recipe} {self.heartbeat} {code(self.error)}"


@dataclass(frozen=True)
class OutputLine:
    """`O`: an output goes on or off."""

    output: str
    on: bool

    def body(self) -> str:
        """See `TriggerLine`."""
        return f"O {self.output} {self.on:d}"


Command = TriggerLine | AckLine | RecipeLine | BeatLine | QueryLine
Message = TakenLine | VerdictLine | ErrorLine | SignalsLine | OutputLine
Line = TypeVar("Line")


def encode(line: Command | Message, check: bool) -> bytes:
    """The bytes of a line, ready for the wire.

    >>> encode(TriggerLine(17, "SN0017", 3), check=True)
    b'T 17 SN0017 3*166D23EC\\n'
    >>> encode(AckLine(4711), check=False)
    b'A 4711\\n'
    """
    body = line.body().encode("ascii")
    return b"%s*%08X\n" % (body, zlib.crc32(body)) if check else body + b"\n"


def code(text: str) -> str:
    """A code as one word of a line: what cannot stand there becomes `_`.

    >>> code("defect.hair crack"), code("")
    ('defect.hair_crack', '-')
    """
    return re.sub(r"[^!-)+-~]", "_", text[:MAX_CODE]) or NONE


def command(body: str) -> Command | None:
    """The command of a line without check and LF; None: it is none.

    >>> command("T 65535 - 0 4294967295")
    TriggerLine(number=65535, serial='', recipe=0, encoder=4294967295)
    >>> command("T 007 - 0") is None
    True
    """
    if match := _TRIGGER.fullmatch(body):
        number, serial, recipe, encoder = match.groups()
        if int(number) > 0xFFFF or int(recipe) > 0xFFFF or len(serial) > MAX_SERIAL or _too_large(encoder):
            return None
        return TriggerLine(int(number), "" if serial == NONE else serial, int(recipe), _int(encoder))
    if match := _ACK.fullmatch(body):
        return AckLine(int(match[1]))
    if match := _RECIPE.fullmatch(body):
        return RecipeLine(int(match[1])) if int(match[1]) <= 0xFFFF else None
    if match := _BEAT.fullmatch(body):
        small = int(match[1]) <= 0xFFFF and not _too_large(match[2])
        return BeatLine(int(match[1]), _int(match[2])) if small else None
    return QueryLine() if body == "?" else None


def message(body: str) -> Message | None:
    """What the station says, as a PLC reads it; None: it is no message."""
    if match := _VERDICT.fullmatch(body):
        return VerdictLine(int(match[1]), int(match[2]), Say(match[3]), _text(match[4]))
    if match := _TAKEN.fullmatch(body):
        return TakenLine(int(match[1]))
    if match := _SIGNALS.fullmatch(body):
        ready, busy, recipe, heartbeat, error = match.groups()
        return SignalsLine(ready == "1", busy == "1", int(recipe), int(heartbeat), _text(error))
    if match := _ERROR.fullmatch(body):
        return ErrorLine(_int(match[1]), match[2])
    if match := _OUTPUT.fullmatch(body):
        return OutputLine(match[1], match[2] == "1")
    return None


class Reader(Generic[Line]):
    """Cuts input into lines and reads them; holds at most `MAX_LINE` bytes, whatever comes."""

    def __init__(self, parse: Callable[[str], Line | None], check: bool) -> None:
        """`parse` is `command` or `message`."""
        self._parse = parse
        self._check = check
        self._held = bytearray()
        self._skipping = False  # the rest of a line that was too long

    def feed(self, data: bytes) -> list[Line | Garbage]:
        """Everything that ended with these bytes, in order.

        An empty line is nothing: with a bare LF a sender ends whatever noise came before its line. A line that is too
        long is told at once, and again for each further `MAX_LINE` bytes of it.
        """
        found: list[Line | Garbage] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._hold(piece, found)
            if self._held and not self._skipping:
                found.append(self._read(bytes(self._held)))
            self._held.clear()
            self._skipping = False
        self._hold(rest, found)
        return found

    def reset(self) -> None:
        """Forget what was half read: the connection is a new one."""
        self._held.clear()
        self._skipping = False

    def _hold(self, piece: bytes, found: list[Line | Garbage]) -> None:
        size = len(self._held) + len(piece)
        if size <= MAX_LINE:
            self._held += piece
            return
        found += [Garbage(Fault.TOO_LONG)] * (size // (MAX_LINE + 1))
        self._held[:] = b"x" * (size % (MAX_LINE + 1))  # only how many there are still matters
        self._skipping = True

    def _read(self, line: bytes) -> Line | Garbage:
        if self._check:
            if _CHECKED.fullmatch(line) is None or int(line[-8:], 16) != zlib.crc32(line[:-9]):
                return Garbage(Fault.CHECK)
            line = line[:-9]
        parsed = self._parse(line.decode("latin-1"))
        return Garbage(Fault.SYNTAX) if parsed is None else parsed


def commands(check: bool) -> Reader[Command]:
    """What reads a PLC's lines."""
    return Reader(command, check)


def messages(check: bool) -> Reader[Message]:
    """What reads the station's lines."""
    return Reader(message, check)


def _int(digits: str | None) -> int | None:
    return None if digits is None else int(digits)


def _too_large(digits: str | None) -> bool:
    return digits is not None and int(digits) >= 1 << 32


def _text(word: str) -> str:
    return "" if word == NONE else word
