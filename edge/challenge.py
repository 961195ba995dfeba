"""Challenge parts: known-bad masters that the station has to find again each shift, or it says so.

How long ago a master was found is counted on the monotonic clock, which no one can set: a wall clock that jumps, either
way and by however much, changes nothing for what was found in this run. Over a restart the wall clock fills the gap,
and two things check it. Since the state was saved at least as much time has gone by as the two monotonic readings
differ, or, when the later one is smaller and the box was thus started anew, as the later one shows: a wall clock that
claims less was set back, nobody knows how long the station was off, and every master is due. And when it is set ahead
later in the run, as it is on a box without a battery once it hears the network's time, then the gap was longer
by as much: that is added. One that was set ahead wrongly makes masters due too early, never too late. What is not known
is due: a master without a record, or whose entry in the config was changed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edge.config import Challenge, Master
from edge.event import MasterState

HOUR_S = 3600.0
TOLERANCE_S = 60.0  # a wall clock is put right by so much without anything being wrong

MISSED = "challenge.missed"  # reasons of a part that is held back
OVERDUE = "challenge.overdue"


@dataclass(frozen=True)
class ChallengeEvent:
    """What happened to the challenge.

    Attributes:
        kind: found, missed, again (the master was not judged: show it again) or overdue.
        serial: of the master, "" for overdue.
        text: what happened. advice: what to do, "" for nothing.
    """

    kind: str
    serial: str
    text: str
    advice: str = ""

    @property
    def body(self) -> dict[str, str]:
        """What the genealogy's row of it says."""
        return {"serial": self.serial, "outcome": self.kind, "text": self.text}


class _Record(msgspec.Struct, kw_only=True, frozen=True):
    """When a master was last found, and what it was asked to be then."""

    verdict: str
    defect: str | None
    age_s: Annotated[float, Meta(ge=0)]
    found_ts: float


class _State(msgspec.Struct, kw_only=True, frozen=True):
    """What outlives a restart."""

    version: int
    ts: float
    mono_ns: int
    found: dict[str, _Record]
    owed: list[str]
    missed: list[str]


@dataclass(frozen=True)
class _Standing:
    found: bool  # ever, as it is asked for now
    age_s: float  # since then; where it was never found, since it is known to be due, and the period
    found_ts: float = 0.0
    in_this_run: bool = False


class ChallengeWatch:
    """Which masters were found, which were missed, and whether parts may pass. One thread.

    Attributes:
        origin: why masters are due from the start, "" when the record goes on.

    Example:
        >>> settings = Challenge(master=[Master(serial="M1", defect="short")], every_h=8, overdue="block")
        >>> watch = ChallengeWatch(settings, 1.8e9, 0)
        >>> [event.kind for event in watch.tick(1.8e9, 0)], watch.blocked  # nobody knows when it was last found
        (['overdue'], 'challenge.overdue')
        >>> watch.look("M1", "NG", ["defect.short"], 1.8e9 + 60, 60_000_000_000).kind, watch.blocked
        ('found', '')
        >>> watch.look("M1", "NG", ["defect.open"], 1.8e9 + 90, 90_000_000_000).text
        'master M1 is NG, but not for short'
        >>> watch.blocked
        'challenge.missed'
    """

    def __init__(
        self, settings: Challenge, now_ts: float, now_mono_ns: int, state: Mapping[str, Any] | None = None
    ) -> None:
        """Begin, or go on with what `state` gave in the last run; a state that makes no sense is as none.

        Args:
            settings: the masters and how often they are asked for.
            now_ts: wall clock, seconds since 1970, UTC.
            now_mono_ns: monotonic clock of this boot of the box, nanoseconds.
            state: of the last run, None at the first.
        """
        self._settings = settings
        self._every_s = settings.every_h * HOUR_S
        self._masters = {master.serial: master for master in settings.master}
        self._now_ts, self._now_ns = now_ts, now_mono_ns
        self._standing = {serial: _Standing(False, self._every_s) for serial in self._masters}
        self._owed: set[str] = set()  # not found since the last miss: parts are held back, or an alarm stands
        self._missed: set[str] = set()
        self._told_overdue = False
        self.origin = self._restore(state)

    def look(
        self, serial: str, outcome: str, reason_codes: Collection[str], now_ts: float, now_mono_ns: int
    ) -> ChallengeEvent | None:
        """See a settled part; None when it is no master.

        Args:
            serial: of the part.
            outcome: its verdict, or the name of its loss, as judged: before a block turned an OK into a RETAKE.
            reason_codes: of the verdict.
            now_ts: as for the beginning. now_mono_ns: as there.
        """
        self._advance(now_ts, now_mono_ns)
        master = self._masters.get(serial)
        if master is None:
            return None
        held_back = outcome == "RETAKE" and any(code.partition(".")[0] == "challenge" for code in reason_codes)
        if outcome not in ("OK", "NG", "REVIEW") and not held_back:
            text = f"master {serial} was not judged: {outcome}"
            return ChallengeEvent("again", serial, text, f"Show master {serial} again.")
        wrong = _missed_by(master, "OK" if held_back else outcome, reason_codes)
        return self._note_missed(serial, wrong) if wrong else self._note_found(serial)

    def tick(self, now_ts: float, now_mono_ns: int) -> list[ChallengeEvent]:
        """Let time go by: the event when masters become overdue. Call it about once a second."""
        self._advance(now_ts, now_mono_ns)
        due = self._due()
        begins, self._told_overdue = bool(due) and not self._told_overdue, bool(due)
        if not begins:
            return []
        return [ChallengeEvent("overdue", "", self._overdue_text(due), f"Show the masters {', '.join(due)}.")]

    @property
    def blocked(self) -> str:
        """The code of why no part may pass, "" when parts may."""
        if self._owed and self._settings.missed == "block":
            return MISSED
        return OVERDUE if self._due() and self._settings.overdue == "block" else ""

    @property
    def standing(self) -> dict[str, str]:
        """What is wrong now, code -> sentence, whether it blocks or not: for alarms that stand until it is over."""
        wrong = {}
        if self._owed:
            missed = ", ".join(s for s in self._masters if s in self._missed)
            what = f"master {missed} was missed" if missed else "a master was missed"
            owed = ", ".join(s for s in self._masters if s in self._owed)
            wrong[MISSED] = f"{what}; to be found since: {owed}"
        if due := self._due():
            wrong[OVERDUE] = self._overdue_text(due)
        return wrong

    @property
    def due_in_s(self) -> float:
        """Time until the first master has to be found again; negative: overdue for so long."""
        return self._every_s - max(standing.age_s for standing in self._standing.values())

    def masters(self) -> list[MasterState]:
        """How each master stands: found, due or missed."""
        due = self._due()
        return [
            MasterState(
                serial=serial,
                standing="missed" if serial in self._missed else "due" if serial in due else "found",
                found_ts=round(self._standing[serial].found_ts, 3),
            )
            for serial in self._masters
        ]

    def state(self) -> dict[str, Any]:
        """What the next run goes on with, for JSON. Save it after each event and every few minutes."""
        found = {
            serial: _Record(
                verdict=self._masters[serial].verdict,
                defect=self._masters[serial].defect,
                age_s=standing.age_s,
                found_ts=standing.found_ts,
            )
            for serial, standing in self._standing.items()
            if standing.found
        }
        state = _State(
            version=1,
            ts=self._now_ts,
            mono_ns=self._now_ns,
            found=found,
            owed=sorted(self._owed),
            missed=sorted(self._missed),
        )
        built: dict[str, Any] = msgspec.to_builtins(state)
        return built

    def _note_found(self, serial: str) -> ChallengeEvent:
        self._standing[serial] = _Standing(True, 0.0, self._now_ts, in_this_run=True)
        self._owed.discard(serial)
        self._missed.discard(serial)
        self._told_overdue = self._told_overdue and bool(self._due())
        left = [s for s in self._masters if s in self._owed or s in self._due()]
        advice = f"Show the masters {', '.join(left)} too." if left else ""
        return ChallengeEvent("found", serial, f"master {serial} was found", advice)

    def _note_missed(self, serial: str, text: str) -> ChallengeEvent:
        self._owed = set(self._masters)
        self._missed.add(serial)
        advice = "Look at lens, light and recipe; then show every master again."
        return ChallengeEvent("missed", serial, text, advice)

    def _due(self) -> list[str]:
        return [s for s, standing in self._standing.items() if not standing.found or standing.age_s >= self._every_s]

    def _overdue_text(self, due: Collection[str]) -> str:
        text = f"masters to be found every {self._settings.every_h:g} h are overdue: {', '.join(due)}"
        return f"{text} ({self.origin})" if self.origin and not all(self._standing[s].found for s in due) else text

    def _advance(self, now_ts: float, now_mono_ns: int) -> None:
        gone_s = max(0, now_mono_ns - self._now_ns) / 1e9
        set_ahead_s = now_ts - self._now_ts - gone_s
        gap_s = set_ahead_s if set_ahead_s > TOLERANCE_S else 0.0
        self._now_ts, self._now_ns = now_ts, max(now_mono_ns, self._now_ns)
        for serial, standing in self._standing.items():
            age_s = standing.age_s + gone_s + (0.0 if standing.in_this_run else gap_s)
            self._standing[serial] = replace(standing, age_s=age_s)

    def _restore(self, state: Mapping[str, Any] | None) -> str:
        """Take over the last run's record; why not all of it, "" when all."""
        if state is None:
            return "there is no record of them"
        try:
            old = msgspec.convert(state, _State)
        except msgspec.ValidationError:
            return "their record is unreadable"
        # A miss stands whatever the clocks say; a master that is new since has to be found before parts pass again.
        if old.owed:
            self._owed = {s for s in self._masters if s in old.owed or s not in old.found}
        self._missed = set(self._masters) & set(old.missed)
        off_s = self._off_s(old)
        if off_s is None:
            return "the clock was set back while the station was off"
        for serial, master in self._masters.items():
            record = old.found.get(serial)
            if record is not None and (record.verdict, record.defect) == (master.verdict, master.defect):
                self._standing[serial] = _Standing(True, record.age_s + off_s, record.found_ts)
        return "" if all(s.found for s in self._standing.values()) else "there is no record of some of them"

    def _off_s(self, old: _State) -> float | None:
        """For how long the station was off; None when the wall clock cannot be right."""
        since_ns = self._now_ns - old.mono_ns
        at_least_s = (since_ns if since_ns >= 0 else self._now_ns) / 1e9
        by_wall_s = self._now_ts - old.ts
        return max(by_wall_s, at_least_s) if by_wall_s >= at_least_s - TOLERANCE_S else None


def _missed_by(master: Master, outcome: str, codes: Collection[str]) -> str:
    """Why that verdict misses the master, in words; "" when it finds it."""
    enough = ("NG",) if master.verdict == "NG" else ("NG", "REVIEW")
    if outcome not in enough:
        return f"master {master.serial} was judged {outcome}, it has to be {' or '.join(enough)}"
    if master.defect is not None and not {f"defect.{master.defect}", f"doubt.{master.defect}"}.intersection(codes):
        return f"master {master.serial} is {outcome}, but not for {master.defect}"
    return ""
