"""The simulated PLC of the demo, and its own account of what it asked and what it was told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge.view.child import ChildProcess

PROGRAM = (sys.executable, "-m", "edge.plc.simulate")
RATE = 2.0  # triggers a second: a person can follow it, and two busy cores can


class Times(msgspec.Struct, kw_only=True, frozen=True):
    """Trigger to answer as the PLC sees it, milliseconds; of triggers that were not repeated."""

    count: int
    p50: float = 0.0
    p99: float = 0.0
    max: float = 0.0


class Account(msgspec.Struct, kw_only=True, frozen=True):
    """What the PLC tells at its end.

    Attributes:
        sent: triggers. answered: word of the answer -> how many. refused: name of the refusal -> how many.
        contradictions: answers that do not fit what was said before.
    """

    sent: int
    answered: dict[str, int]
    refused: dict[str, int]
    unanswered: int
    contradictions: list[str]
    answer_ms: Times

    @property
    def is_good(self) -> bool:
        """Whether every trigger came to one end."""
        return not self.unanswered and not self.contradictions


class SimulatedPlc:
    """Triggers a station on a pty. The station finds it at `port`, as it would find an adapter.

    Args:
        folder: gets the port, the log and the report.
        command: the program; its options are added.
    """

    def __init__(self, folder: Path, command: Sequence[str] = PROGRAM) -> None:
        self.port = port_of(folder)
        self._report = folder / "plc.json"
        self._report.unlink(missing_ok=True)  # of a run before
        options = ["--link", str(self.port), "--rate", f"{RATE:g}", "--wait-ready", "--report", str(self._report)]
        self.child = ChildProcess([*command, *options], folder / "plc.log")

    def account(self) -> Account | None:
        """What it told when it ended; None: nothing that can be read."""
        try:
            return msgspec.json.decode(self._report.read_bytes(), type=Account)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None


def port_of(folder: Path) -> Path:
    """Where the station of a demo finds its PLC."""
    return folder / "plc"


def account_sentence(account: Account) -> str:
    """The whole account in one line.

    >>> account_sentence(Account(sent=3, answered={"NG": 1, "OK": 1}, refused={"OVERRUN": 1}, unanswered=0,
    ...     contradictions=[], answer_ms=Times(count=2, p50=41.26, p99=60.0, max=60.0)))
    'the PLC: 3 triggers, 2 answered (NG 1, OK 1), 1 refused (OVERRUN 1), 0 unanswered; p50 41.3 ms, p99 60.0, max 60.0'
    """
    text = f"the PLC: {account.sent} triggers, {_sum(account.answered, 'answered')}"
    text += f", {_sum(account.refused, 'refused')}" if account.refused else ""
    text += f", {account.unanswered} unanswered"
    if account.contradictions:
        text += f", {len(account.contradictions)} CONTRADICTIONS: {account.contradictions[0]}"
    times = account.answer_ms
    return text + (f"; p50 {times.p50:.1f} ms, p99 {times.p99:.1f}, max {times.max:.1f}" if times.count else "")


def _sum(counts: dict[str, int], name: str) -> str:
    terms = ", ".join(f"{word} {n}" for word, n in counts.items())
    return f"{sum(counts.values())} {name}" + (f" ({terms})" if terms else "")
