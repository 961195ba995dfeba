"""The lines of the ASCII dialect: one spelling each, and a parser that no input can mislead."""

from __future__ import annotations

import random
import re
import time
import zlib
from pathlib import Path

import pytest

from edge.part import Say
from edge.plc.ascii_line import (
    MAX_LINE,
    MAX_SERIAL,
    AckLine,
    BeatLine,
    Command,
    ErrorLine,
    Fault,
    Garbage,
    OutputLine,
    QueryLine,
    RecipeLine,
    SignalsLine,
    TakenLine,
    TriggerLine,
    VerdictLine,
    command,
    commands,
    encode,
    message,
    messages,
)
from edge.plc.ascii_link import GARBAGE_BURST, GARBAGE_PER_S
from edge.plc.handshake import ACKS_AWAITED, REMEMBER_S, REMEMBERED, SILENT_BEATS
from edge.plc.outputs import PENDING

PROTOCOL = Path(__file__).parents[2] / "edge" / "plc" / "PROTOCOL.md"

COMMANDS = [
    ("T 17 SN0017 3", TriggerLine(17, "SN0017", 3)),
    ("T 0 - 0", TriggerLine(0, "", 0)),
    ("T 65535 a/b+c;~! 65535 4294967295", TriggerLine(65535, "a/b+c;~!", 65535, 4294967295)),
    ("T 1 -- 1 0", TriggerLine(1, "--", 1, 0)),
    (f"T 1 {'x' * MAX_SERIAL} 1", TriggerLine(1, "x" * MAX_SERIAL, 1)),
    ("A 1", AckLine(1)),
    ("A 999999999999999999", AckLine(10**18 - 1)),
    ("R 65535", RecipeLine(65535)),
    ("H 0", BeatLine(0)),
    ("H 65535 1", BeatLine(65535, 1)),
    ("?", QueryLine()),
]
MESSAGES = [
    ("K 17", TakenLine(17)),
    ("V 17 4711 OK -", VerdictLine(17, 4711, Say.OK)),
    ("V 0 1 LATE defect.short", VerdictLine(0, 1, Say.LATE, "defect.short")),
    ("E 17 OVERRUN", ErrorLine(17, "OVERRUN")),
    ("E - TOO_LONG", ErrorLine(None, "TOO_LONG")),
    ("S 1 0 3 65535 -", SignalsLine(True, False, 3, 65535)),
    ("S 0 1 0 0 camera", SignalsLine(False, True, 0, 0, "camera")),
    ("O ejector 1", OutputLine("ejector", True)),
]


@pytest.mark.parametrize(("body", "line"), COMMANDS)
def test_a_command_reads_as_it_is_written(body: str, line: Command) -> None:
    assert (command(body), line.body()) == (line, body)
    for check in (True, False):
        assert commands(check).feed(encode(line, check)) == [line]


@pytest.mark.parametrize(("body", "line"), MESSAGES)
def test_a_message_reads_as_it_is_written(body: str, line: VerdictLine) -> None:
    assert (message(body), line.body()) == (line, body)
    assert messages(True).feed(encode(line, True)) == [line]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "nothing"),
        ("t 17 A 3", "lower case"),
        ("T 17 A", "no recipe"),
        ("T 17  A 3", "two spaces"),
        (" T 17 A 3", "a space before"),
        ("T 17 A 3 ", "a space after"),
        ("T 17 A 3 5 6", "too many words"),
        ("T 017 A 3", "a leading zero"),
        ("T +17 A 3", "a sign"),
        ("T -1 A 3", "a negative number"),
        ("T 65536 A 3", "a number over 65535"),
        ("T 17 A 65536", "a recipe over 65535"),
        ("T 17 A 3 4294967296", "an encoder count over 32 bits"),
        ("T 17 A*B 3", "a star in the serial"),
        ("T 17 \xe4 3", "a letter that is not ASCII"),
        ("T 17 \u0663 3", "a digit of another script"),
        ("T 1\u0667 A 3", "the same in the number"),
        (f"T 1 {'x' * (MAX_SERIAL + 1)} 1", "a serial that is too long"),
        ("T\t17\tA\t3", "tabs"),
        ("T 17 A 3\r", "a CR"),
        ("A", "no id"),
        ("A 01", "a leading zero"),
        ("A 1000000000000000000", "an id of 19 digits"),
        ("R 65536", "over 65535"),
        ("R", "no number"),
        ("H", "no counter"),
        ("H 65536", "over 65535"),
        ("H 1 4294967296", "an encoder count over 32 bits"),
        ("??", "twice"),
        ("? ", "a space after"),
        ("V 17 4711 OK -", "what only the station says"),
        ("X", "no command"),
    ],
)
def test_what_is_spelled_otherwise_is_no_command(body: str, why: str) -> None:
    assert command(body) is None, why


@pytest.mark.parametrize(
    ("data", "check", "fault", "why"),
    [
        (b"T 17 SN0017 3\n", True, Fault.CHECK, "no check value"),
        (b"T 17 SN0017 3*166d23ec\n", True, Fault.CHECK, "lower case"),
        (b"T 17 SN0017 3*166D23ED\n", True, Fault.CHECK, "another value"),
        (b"T 18 SN0017 3*166D23EC\n", True, Fault.CHECK, "another line"),
        (b"T 17 SN0017 3*166D23EC\r\n", True, Fault.CHECK, "a CR"),
        (b"T 17 SN0017 3 *166D23EC\n", True, Fault.CHECK, "a space before the star"),
        (b"*00000000\n", True, Fault.SYNTAX, "the right check of nothing"),
        (b"X*%08X\n" % zlib.crc32(b"X"), True, Fault.SYNTAX, "a right check of no command"),
        (b"T 17 SN0017 3*166D23EC\n", False, Fault.SYNTAX, "a check value where none is agreed"),
        (b"\x00\xff\n", True, Fault.CHECK, "noise"),
        (b"\x00\xff\n", False, Fault.SYNTAX, "noise"),
        (b"x" * (MAX_LINE + 1), True, Fault.TOO_LONG, "told before its end"),
        (b"x" * MAX_LINE + b"\n", False, Fault.SYNTAX, "as long as a line may be"),
    ],
)
def test_garbage_is_named(data: bytes, check: bool, fault: Fault, why: str) -> None:
    assert commands(check).feed(data) == [Garbage(fault)], why


def test_lines_may_come_in_any_pieces() -> None:
    lines = [line for _, line in COMMANDS]
    stream = b"".join(encode(line, True) for line in lines)
    for size in (1, 2, 3, 7, 1000):
        reader = commands(True)
        assert [item for at in range(0, len(stream), size) for item in reader.feed(stream[at : at + size])] == lines


def test_a_bare_lf_ends_the_noise_before_a_line() -> None:
    line = encode(AckLine(1), True)
    assert commands(True).feed(b"noise" + line) == [Garbage(Fault.CHECK)]
    assert commands(True).feed(b"noise" + b"\n" + line) == [Garbage(Fault.CHECK), AckLine(1)]
    assert commands(True).feed(b"\n\n\n" + line) == [AckLine(1)], "empty lines are nothing"


def test_a_line_without_end_is_told_again_and_again_and_kept_nowhere() -> None:
    reader = commands(True)
    told = [item for _ in range(1000) for item in reader.feed(b"x" * 129)]
    assert told == [Garbage(Fault.TOO_LONG)] * 1000
    assert len(reader._held) <= MAX_LINE
    assert reader.feed(b"\n" + encode(AckLine(1), True)) == [AckLine(1)], "and the next line is read"


def test_a_reset_forgets_half_a_line() -> None:
    reader = commands(True)
    reader.feed(b"T 1 ")
    reader.reset()
    assert reader.feed(encode(AckLine(1), True)) == [AckLine(1)]


def test_codes_fit_into_a_line_whatever_the_classes_are_called() -> None:
    line = VerdictLine(65535, 10**18 - 1, Say.REVIEW, "defect.Riß * quer\n" + "x" * 200)
    data = encode(line, True)
    assert len(data) <= MAX_LINE + 1
    (read,) = messages(True).feed(data)
    assert isinstance(read, VerdictLine) and read.reason.startswith("defect.Ri__")


def test_the_longest_lines_are_within_the_limit() -> None:
    longest = TriggerLine(65535, "x" * MAX_SERIAL, 65535, 2**32 - 1)
    assert len(encode(longest, True)) <= MAX_LINE + 1
    assert len(encode(OutputLine("x" * 64, True), True)) <= MAX_LINE + 1


def test_every_line_printed_in_the_protocol_is_one() -> None:
    """Lines in code fences of PROTOCOL.md, with an arrow for their direction, have the check that is printed."""
    shown = re.findall(r"^\s*(-->|<--) (\S.*?)\s*(?:#.*)?$", PROTOCOL.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(shown) > 20
    for arrow, line in shown:
        read = (commands if arrow == "-->" else messages)(True).feed(line.encode() + b"\n")
        assert len(read) == 1 and not isinstance(read[0], Garbage), line


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (f"`123456789` it is `{zlib.crc32(b'123456789'):08X}`", "the check"),
        (f"at most {MAX_LINE} characters", "the length of a line"),
        (f"1 to {MAX_SERIAL} characters", "the length of a serial"),
        (f"when {REMEMBERED}\n  others came after it", "how many triggers are remembered"),
        (f"{REMEMBER_S:g} s after its answer was last said", "how long"),
        (f"at most {GARBAGE_BURST} times at once and {GARBAGE_PER_S} times a second", "how often garbage is told"),
        (f"{PENDING} for an output at most", "how many pulses wait"),
        (f"Heard nothing valid for {['', '', '', 'three'][SILENT_BEATS]} heartbeats", "when the other side is silent"),
        (f"every `ack_s`, {['', '', '', '', '', '', 'six'][ACKS_AWAITED + 1]} times in all", "repetitions"),
    ],
)
def test_the_protocol_says_what_the_code_does(said: str, why: str) -> None:
    assert said in PROTOCOL.read_text(encoding="utf-8"), why


class Fuzz:
    """Frames of all kinds in one stream, with all whole lines that could be meant."""

    def __init__(self, seed: int, check: bool) -> None:
        self.chance = random.Random(seed)
        self.check = check
        self.known: dict[bytes, Command] = {}

    def line(self) -> bytes:
        """A valid line."""
        chance = self.chance
        kind = chance.randrange(5)
        made: Command = QueryLine()
        if kind == 0:
            serial = chance.choice(["", f"SN{chance.randrange(10**6):06d}", "x" * chance.randint(1, MAX_SERIAL)])
            encoder = chance.choice([None, chance.randrange(2**32)])
            made = TriggerLine(chance.randrange(65536), serial, chance.randrange(65536), encoder)
        elif kind == 1:
            made = AckLine(chance.randrange(10 ** chance.randint(1, 18)))
        elif kind == 2:
            made = RecipeLine(chance.randrange(65536))
        elif kind == 3:
            made = BeatLine(chance.randrange(65536), chance.choice([None, chance.randrange(2**32)]))
        data = encode(made, self.check)
        self.known[data[:-1]] = made
        return data

    def frame(self) -> bytes:
        """Something that may be a line, or was one."""
        chance = self.chance
        line = self.line()
        kind = chance.randrange(10)
        if kind == 0:
            return line
        if kind == 1:
            return chance.randbytes(chance.randint(1, 300))
        if kind == 2:
            return chance.randbytes(chance.randint(0, 40)) + b"\n"
        if kind == 3:  # cut off
            return line[: chance.randrange(len(line))]
        if kind == 4:  # its beginning lost
            return line[chance.randrange(len(line)) :]
        if kind == 5:
            return line + line
        if kind == 6:  # two lines in one
            other = self.line()
            return line[: chance.randrange(len(line))] + other[chance.randrange(len(other)) :]
        mutated = bytearray(line)
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            at = chance.randrange(len(mutated))
            if kind == 7:
                mutated[at] ^= 1 << chance.randrange(8)
            elif kind == 8:
                mutated[at] = chance.randrange(256)
            else:
                mutated[at:at] = chance.choice([b"\n", b"*", b" ", b"0", b"T", b"\r", b"\x00"])
        return bytes(mutated)


def fuzz(frames: int, seed: int, check: bool) -> tuple[int, int]:
    """Accepted and refused; every command accepted stands whole in the input, and with a check none else."""
    source = Fuzz(seed, check)
    reader = commands(check)
    accepted = refused = 0
    left = b""
    for _ in range(frames // 100):
        source.known.clear() if len(source.known) > 100_000 else None
        stream = b"".join(source.frame() for _ in range(100))
        *lines, left = (left + stream).split(b"\n")
        found: list[Command] = []
        at = 0
        while at < len(stream):
            size = source.chance.choice([1, 5, 64, 4096])
            items = reader.feed(stream[at : at + size])
            refused += sum(isinstance(item, Garbage) for item in items)
            found += [item for item in items if not isinstance(item, Garbage)]
            assert len(reader._held) <= MAX_LINE
            at += size
        if check:
            assert found == [source.known[line] for line in lines if line in source.known]
        else:  # a flipped digit is another valid line: it is read as what it says, and as nothing else
            assert {encode(item, False)[:-1] for item in found} <= set(lines)
        accepted += len(found)
    return accepted, refused


@pytest.mark.parametrize("check", [True, False])
def test_no_command_is_accepted_that_was_not_sent(check: bool) -> None:
    accepted, refused = fuzz(20_000, seed=5, check=check)
    assert accepted > 2000 and refused > 5000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_command_is_accepted_that_was_not_sent_in_a_million_frames() -> None:
    began = time.monotonic()
    accepted, refused = fuzz(1_000_000, seed=11, check=True)
    print(f"\n1,000,000 frames: {accepted} accepted, {refused} refused, {time.monotonic() - began:.0f} s")
    assert accepted > 100_000 and refused > 250_000
