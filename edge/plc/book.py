"""What the simulated PLC asked and what it was told: every trigger ends as one answer, one named refusal, or open."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edge.plc.players import Answered, Ask

TIMES_KEPT = 1_000_000
IDS_KEPT = 65_536


@dataclass
class Entry:
    """One trigger of the PLC.

    Attributes:
        asked_ns: when it was said first. said_ns: when last. times: how often.
        taken: the station said that it has it.
        refusal: the name of the refusal that settled it.
        above: the highest result id that had been heard when it was said first.
        disturbed: it was repeated, or the connection was lost while it was open.
    """

    ask: Ask
    asked_ns: int
    said_ns: int
    times: int = 1
    taken: bool = False
    answer: Answered | None = None
    refusal: str | None = None
    ms: float = 0.0
    disturbed: bool = False
    above: int = 0

    @property
    def settled(self) -> bool:
        """Whether the PLC knows what became of the part."""
        return self.answer is not None or self.refusal is not None

    def row(self) -> dict[str, Any]:
        """As a line of the log."""
        answer = self.answer
        return {
            "no": self.ask.number,
            "serial": self.ask.serial,
            "recipe": self.ask.recipe,
            "result_id": answer.result_id if answer else None,
            "word": answer.word if answer else self.refusal,
            "reason": answer.reason if answer else "",
            "ms": round(self.ms, 3),
            "said": self.times,
        }


@dataclass
class Book:
    """All triggers of a run.

    Attributes:
        contradictions: answers that do not fit one before: another result id for the same trigger, another word that
            is not the LATE of an OK, an answer to a trigger that nobody gave.
        out_of_order: result ids that are not above all that were heard before their trigger was first said, or that
            came before. (Of triggers that were open at once a station that began anew may judge the later one first.)
    """

    sent: int = 0
    words: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    recipes: Counter[int] = field(default_factory=Counter)
    duplicates: int = 0
    contradictions: list[str] = field(default_factory=list)
    repeated_triggers: int = 0
    _entries: dict[int, Entry] = field(default_factory=dict)  # the newest of each number
    _open: dict[int, Entry] = field(default_factory=dict)
    _ids: dict[int, None] = field(default_factory=dict)  # the last ones heard
    _highest_id: int = 0
    out_of_order: int = 0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES_KEPT))
    _disturbed_times: deque[float] = field(default_factory=lambda: deque(maxlen=TIMES_KEPT))

    def ask(self, ask: Ask, now_ns: int) -> None:
        """A trigger is said for the first time."""
        entry = Entry(ask, now_ns, now_ns, above=self._highest_id)
        self._entries[ask.number] = entry
        self._open[ask.number] = entry
        self.sent += 1
        self.recipes[ask.recipe] += 1

    def ask_again(self, entry: Entry, now_ns: int) -> None:
        """A trigger is repeated."""
        entry.said_ns = now_ns
        entry.times += 1
        entry.disturbed = True
        self.repeated_triggers += 1

    def taken(self, number: int) -> None:
        """The station has a trigger."""
        entry = self._open.get(number)
        if entry is not None:
            entry.taken = True

    def answered(self, told: Answered, now_ns: int) -> Entry | None:
        """The station answered; the entry when it is news."""
        entry = self._entries.get(told.number)
        if entry is None:
            self._contradict(f"an answer to trigger {told.number}, which was never given: {told.word}")
            return None
        if entry.answer is not None:
            self._compare(entry, entry.answer, told)
            return None
        entry.taken = True
        entry.answer = told
        self._open.pop(told.number, None)
        self.words[told.word] += 1
        entry.ms = (now_ns - entry.asked_ns) / 1e6
        (self._disturbed_times if entry.disturbed else self._times).append(entry.ms)
        self._check_order(told.result_id, entry)
        return entry

    def refused(self, number: int, name: str) -> Entry | None:
        """The station refused a trigger; the entry when it is news."""
        entry = self._open.pop(number, None)
        if entry is not None:
            entry.refusal = name
            self.refusals[name] += 1
        return entry

    def disturb(self) -> None:
        """The connection was lost: what was taken may be forgotten over there."""
        for entry in self._open.values():
            entry.taken = False
            entry.disturbed = True

    def open(self) -> list[Entry]:
        """Triggers without an answer, oldest first."""
        return list(self._open.values())

    def all_taken(self) -> bool:
        """Whether the station told of every open trigger that it has it."""
        return all(entry.taken for entry in self._open.values())

    def report(self) -> dict[str, Any]:
        """The sums."""
        return {
            "sent": self.sent,
            "answered": dict(sorted(self.words.items())),
            "refused": dict(sorted(self.refusals.items())),
            "unanswered": len(self._open),
            "repeated_triggers": self.repeated_triggers,
            "duplicates": self.duplicates,
            "contradictions": self.contradictions[:20],
            "result_ids_increasing": self.out_of_order == 0,
            "recipes": {str(number): count for number, count in sorted(self.recipes.items())},
            "answer_ms": percentiles(self._times),
            "disturbed_answer_ms": percentiles(self._disturbed_times),
        }

    def _compare(self, entry: Entry, before: Answered, told: Answered) -> None:
        self.duplicates += 1
        same_word = told.word == before.word or (before.word, told.word) == ("OK", "LATE")
        if told.result_id != before.result_id or not same_word:
            self._contradict(
                f"trigger {told.number}: {before.word} with result {before.result_id}, "
                f"then {told.word} with result {told.result_id}"
            )

    def _contradict(self, text: str) -> None:
        self.contradictions.append(text)
        del self.contradictions[1000:]

    def _check_order(self, result_id: int, entry: Entry) -> None:
        if not result_id:  # nothing of it is on the station's disk
            return
        self.out_of_order += result_id <= entry.above or result_id in self._ids
        self._ids[result_id] = None
        if len(self._ids) > IDS_KEPT:
            del self._ids[next(iter(self._ids))]
        self._highest_id = max(self._highest_id, result_id)


def percentiles(values: Sequence[float]) -> dict[str, float | int]:
    """Of answer times, by nearest rank.

    >>> percentiles([3.0, 1.0, 2.0])
    {'count': 3, 'p50': 2.0, 'p99': 3.0, 'p99.9': 3.0, 'max': 3.0}
    """
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    named = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    ranks = {name: min(int(share * len(ordered)), len(ordered) - 1) for name, share in named.items()}
    return {"count": len(ordered), **{name: round(ordered[rank], 3) for name, rank in ranks.items()}}
