"""The map of registers: what is written is read back, what is damaged is found, and MODBUS.md says the same."""

from __future__ import annotations

import random
import re
from enum import IntEnum
from pathlib import Path

import pytest

from edge.part import Say
from edge.plc import modbus_map as m
from edge.plc.desk import Refusal
from edge.records import Cause, Loss

CHAPTER = (Path(m.__file__).parent / "MODBUS.md").read_text(encoding="utf-8")


def some_commands(count: int) -> list[m.Command]:
    chance = random.Random(3)
    word = lambda: chance.getrandbits(16)  # noqa: E731
    long = lambda: chance.getrandbits(32)  # noqa: E731
    texts = ("", "A", "PART-0001", "x" * 32, "with blank")
    return [
        m.Command(
            word(), long(), chance.choice((None, long())), word(), word(), word(), word(),
            chance.choice((None, long())), chance.choice(texts),
        )
        for _ in range(count)
    ]  # fmt: skip


def test_a_command_is_read_as_it_was_written() -> None:
    for command in some_commands(200):
        registers = m.command_registers(command)
        assert len(registers) == m.COMMAND_COUNT
        assert all(0 <= register <= 0xFFFF for register in registers)
        assert m.checked(registers, m.COMMAND_SEED)
        assert m.read_command(registers) == command


@pytest.mark.parametrize("say", list(Say))
def test_a_result_is_read_as_it_was_written(say: Say) -> None:
    result = m.Result(65535, 0xFFFF_FFFE, say, "")
    status = m.Status(65535, True, True, 65535, 65535, m.Outcome.OVERRUN, 0x8001, result, "error")
    registers = m.status_registers(status)
    assert len(registers) == m.STATUS_COUNT and m.checked(registers, m.STATUS_SEED)
    assert m.read_status(registers) == status


def test_a_word_that_nobody_knows_is_no_ok() -> None:
    registers = m.status_registers(m.Status(1, True, False, 1, result=m.Result(1, 1, Say.OK)))
    registers[m.In.RESULT_WORD] = 77
    result = m.read_status(registers).result
    assert result is not None and result.say is Say.FAIL


def test_no_result_no_word() -> None:
    registers = m.status_registers(m.Status(1, True, False, 1))
    assert registers[m.In.RESULT_TRIGGER : m.In.CHECK] == [0] * 5
    assert m.read_status(registers).result is None


def test_every_change_of_one_register_is_found() -> None:
    registers = m.command_registers(m.Command(1, 2, 3, 4, 1, 5, 6, 7, "S-8"))
    for at, value in enumerate(registers):
        for other in range(0, 0x10000, 5):
            if other != value and at in (m.At.TRIGGER, m.COMMAND_COUNT - 1):
                assert not m.checked([*registers[:at], other, *registers[at + 1 :]], m.COMMAND_SEED)
        for prime in (65521, 65519):  # what is the same modulo one of them is not modulo the other
            for other in (value + prime, value - prime):
                if 0 <= other <= 0xFFFF:
                    assert not m.checked([*registers[:at], other, *registers[at + 1 :]], m.COMMAND_SEED)


def test_changes_that_crc_16_does_not_find_are_found() -> None:
    """Multiples of CRC-16's polynomial, as noise may be: 0x18005 shifted, and sums of such."""
    chance = random.Random(5)
    block = m.command_registers(m.Command(1, 2, 3, 4, 1, 5, 6, 7, "S-8"))
    whole = int.from_bytes(b"".join(r.to_bytes(2, "big") for r in block), "big")
    missed = 0
    for _ in range(10_000):
        pattern = 0
        for _ in range(chance.randrange(1, 5)):
            pattern ^= 0x18005 << chance.randrange(16 * len(block) - 17)
        if pattern:
            data = (whole ^ pattern).to_bytes(2 * len(block), "big")
            registers = [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]
            missed += m.checked(registers, m.COMMAND_SEED)
    assert missed == 0


def test_a_block_is_no_other_block_and_never_all_zero() -> None:
    assert not m.checked([0] * m.COMMAND_COUNT, m.COMMAND_SEED)
    assert not m.checked([0] * m.STATUS_COUNT, m.STATUS_SEED)
    body = [1, 2, 3]
    checks = {tuple(m.check_of(body, seed)) for seed in (m.COMMAND_SEED, m.STATUS_SEED, m.TEXT_SEED)}
    assert len(checks) == 3


@pytest.mark.parametrize(
    ("text", "expected", "why"),
    [
        ("", "", "no serial"),
        ("A" * 40, "A" * 32, "cut where the registers end"),
        (" A1 ", "A1", "PLCs fill up with blanks"),
        ("Ä", "?", "not ASCII"),
    ],
)
def test_texts(text: str, expected: str, why: str) -> None:
    assert m.text_of(m.text_registers(text)) == expected, why


def test_a_serial_that_is_not_printable_is_none() -> None:
    assert m.text_of([0x41FF]) is None
    assert m.text_of([0x4100, 0x0707]) == "A", "what stands behind the end is not looked at"


def test_every_reason_of_the_station_has_a_number_of_its_own() -> None:
    reasons = ["defect.short", "doubt.short", "anomaly", *(f"gate.{c.value}" for c in Cause), *(x.value for x in Loss)]
    numbers = [m.reason_number(reason) for reason in reasons]
    assert len(set(numbers)) == len(numbers) and m.OTHER_REASON not in numbers and 0 not in numbers
    assert m.reason_number("something new") == m.OTHER_REASON


def test_every_refusal_of_the_desk_has_an_outcome() -> None:
    assert set(m.OUTCOMES) == set(Refusal)


# --- what the chapter says ---


def rows(heading: str) -> dict[str, list[str]]:
    """Cells of the first table below a heading, by the name in back quotes."""
    section = CHAPTER.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {found[1]: row for row in cells for found in [re.match(r".*?`(\w+)`", " ".join(row))] if found}


@pytest.mark.parametrize(
    ("heading", "names", "at"),
    [
        ("Command block", m.At, m.COMMAND_AT),
        ("Status block", m.In, m.STATUS_AT),
        ("Text block", m.Of, m.TEXT_AT),
    ],
)
def test_the_chapter_has_every_register(heading: str, names: type[IntEnum], at: int) -> None:
    table = rows(heading)
    assert set(table) == {name.name for name in names}
    for name in names:
        address, reference = table[name.name][:2]
        assert address.split("-")[0] == str(at + name), f"{heading}, {name.name}: address"
        assert reference.split("-")[0] == str(40001 + at + name), f"{heading}, {name.name}: reference"


@pytest.mark.parametrize(
    ("heading", "numbers"),
    [
        ("Commands", {c.name: int(c) for c in m.Code if c is not m.Code.NONE}),
        ("Outcomes", {o.name: int(o) for o in m.Outcome}),
        ("Signals", {s.name: int(s) for s in m.Signal}),
        ("Words", {say.name: number for say, number in m.WORDS.items()}),
    ],
)
def test_the_chapter_has_every_number(heading: str, numbers: dict[str, int]) -> None:
    assert {name: int(row[0]) for name, row in rows(heading).items()} == numbers


def test_the_chapter_has_every_reason() -> None:
    section = CHAPTER.split("\n## Reasons\n")[1].split("\n## ")[0]
    told = {int(n): name for n, name in re.findall(r"^\| (\d+) \| `([\w.*]+)`", section, re.MULTILINE)}
    assert {name.removesuffix(".*"): n for n, name in told.items()} == {**m.REASONS, "other": m.OTHER_REASON}


def test_the_chapter_has_the_constants_of_the_check() -> None:
    for seed in (m.COMMAND_SEED, m.STATUS_SEED, m.TEXT_SEED):
        assert str(seed) in CHAPTER
    for factor, prime in m.CHECKS:
        assert f"* {factor}" in CHAPTER and f"MOD {prime}" in CHAPTER


def test_the_example_of_the_chapter_is_right() -> None:
    command = m.Command(heartbeat=1, sequence=1, code=m.Code.TRIGGER, trigger=1, serial="PART-0001")
    example = re.search(r"trigger 1 of part PART-0001.*?```\n(.*?)```", CHAPTER, re.DOTALL)
    assert example is not None
    assert [int(word) for word in example[1].split()] == m.command_registers(command)
