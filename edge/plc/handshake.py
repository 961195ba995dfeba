"""The rules of the handshake between line and station, the same in every dialect. No I/O: time is told.

One `Handshake` belongs to one link and is used by its thread alone. The link tells it what the PLC said (`heard`,
`beat`, `trigger`, `acknowledge`, `set_recipe`) and asks it what to say (`next_due` or `head`, `shown`); whatever was
said whole is reported with `sent`. All times are monotonic nanoseconds.

A trigger is remembered until its answer is acknowledged. While it is, the same trigger again (number, serial and
recipe) is a PLC that heard nothing: it gets what there is for it and no second part is judged. A trigger is forgotten
`REMEMBER_S` (two `ack_s`, if that is longer) after its answer was last said, or when `REMEMBERED` others came after
it; from then on, and after its acknowledgement, its number is free for a new part. The same number with another serial
or recipe is a new part at once, and the answer of the old one is never said, since the PLC could take it for the new
one's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from edge.part import Answer, Say, Trigger
from edge.plc.desk import Desk, Refusal

REMEMBERED = 64  # triggers, and so also answers that wait to be said or for their Ack
REMEMBER_S = 10.0  # longer than any recovery from an unplug
ACKS_AWAITED = 5  # an answer without Ack is given up so many `ack_s` after it was first said
SILENT_BEATS = 3  # a PLC that said nothing for so many heartbeats is silent
COUNTER = 0x10000  # heartbeat counters go from 0 to 65535 and over

OnAnswered = Callable[[Answer, float, Say], None]
OnLate = Callable[[Answer, bool], None]


class LinkState(str, Enum):
    """How the line is connected, in the words the technician sees."""

    CONNECTED = "connected"
    RECONNECTING = "reconnecting"  # the port cannot be opened or failed, and is tried again and again
    SILENT = "silent"  # the port is open, and the PLC says nothing


@dataclass(frozen=True)
class LinkStatus:
    """A link's state with its counters since the start.

    Attributes:
        detail: why it is in this state, "" when there is nothing to explain.
        reopened: how often the port was opened again after a fault.
        garbage: pieces of input that were no valid command and were thrown away.
        late: OK answers that had to be said as LATE.
        unacknowledged: answers that were given up, since no Ack came or they could not be said at all.
        answered: answers said, repetitions not counted.
        overruns: triggers refused since the station was not Ready.
        outputs_dropped: pulses of outputs that were not given; see `edge.plc.outputs`.
    """

    state: LinkState
    detail: str = ""
    reopened: int = 0
    garbage: int = 0
    late: int = 0
    unacknowledged: int = 0
    answered: int = 0
    overruns: int = 0
    outputs_dropped: int = 0


@dataclass(frozen=True)
class Counts:
    """The part of `LinkStatus` that the handshake counts."""

    late: int = 0
    unacknowledged: int = 0
    answered: int = 0
    overruns: int = 0
    repeated: int = 0  # triggers that the PLC sent again


@dataclass(frozen=True)
class Receipt:
    """What becomes of a trigger that was heard.

    Attributes:
        refusal: why it is not taken; None: it is.
        new: False: it had been heard before.
        answered: its answer is there and `next_due` gives it at once.
    """

    refusal: Refusal | None
    new: bool
    answered: bool


@dataclass(frozen=True)
class Saying:
    """An answer with the word to say now.

    Attributes:
        say: the answer's own word, or LATE for an OK whose time is over.
        first: it was not said before.
    """

    answer: Answer
    say: Say
    first: bool


@dataclass(frozen=True)
class Shown:
    """The signals as the line sees them; `heartbeat` counts up once a heartbeat, 0 to 65535 and over."""

    ready: bool
    busy: bool
    recipe: int
    heartbeat: int
    error: str  # a code, "" for none


class _Known:
    """A trigger that is remembered, with what is known of it."""

    def __init__(self, trigger: Trigger, refusal: Refusal | None, now_ns: int) -> None:
        self.trigger = trigger
        self.refusal = refusal
        self.answer: Answer | None = None
        self.touched_ns = now_ns  # refused, answered or last said
        self.first_said_ns: int | None = None  # of this connection
        self.again = False  # say it at the next turn, whatever the time
        self.late = False
        self.said = False

    def same(self, trigger: Trigger) -> bool:
        """Whether the PLC means this one."""
        mine = (self.trigger.serial, self.trigger.recipe)
        return mine == (trigger.serial, trigger.recipe)

    def asked_for(self, trigger: Trigger) -> bool:
        """Whether the desk's trigger is this one; the desk filled in the recipe where none was named."""
        recipe = self.trigger.recipe or trigger.recipe
        return replace(self.trigger, recipe=recipe) == trigger

    def settled(self) -> bool:
        """Whether nothing more will become of it."""
        return self.answer is not None or self.refusal is not None


class Handshake:
    """Triggers, answers, signals and heartbeats of one link."""

    def __init__(
        self,
        desk: Desk,
        heartbeat_s: float,
        ack_s: float,
        on_answered: OnAnswered = lambda answer, ms, said: None,
        on_late: OnLate = lambda answer, again: None,
        wire_ns: int = 0,
    ) -> None:
        """Begin without a connection: see `connected`.

        Args:
            heartbeat_s: ours, and the PLC's.
            ack_s: an answer without Ack is said again after so long.
            on_answered: called in the link's thread when an answer was said for the first time: the answer, the
                milliseconds from its trigger to the end of the write, the word said.
            on_late: called in the link's thread, once for an answer, when its OK becomes LATE. The flag is True when
                the OK had been said in time before, so that the PLC may or may not have heard it.
            wire_ns: how long an answer takes on the wire; an OK that would end after its time is LATE.
        """
        self._desk = desk
        self._beat_ns = int(heartbeat_s * 1e9)
        self._ack_ns = int(ack_s * 1e9)
        self._on_answered = on_answered
        self._on_late = on_late
        self._wire_ns = wire_ns
        self._remember_ns = int(max(REMEMBER_S, 2 * ack_s) * 1e9)
        self._known: dict[int, _Known] = {}  # by trigger number, oldest first
        self._fresh: deque[_Known] = deque()  # answered, not said yet
        self._unacked: dict[int, _Known] = {}  # by result id, said, oldest first
        self._heard_ns = self._connected_ns = 0
        self._plc_beat: int | None = None
        self._late = self._unacknowledged = self._answered = self._overruns = self._repeated = 0

    # What happens to the link.

    def connected(self, now_ns: int) -> None:
        """The port is open, for the first time or again: what has no Ack is said anew, the PLC gets time to speak."""
        self._heard_ns = self._connected_ns = now_ns
        self._plc_beat = None
        for known in self._unacked.values():
            known.again = True
            known.first_said_ns = None

    # What the PLC says.

    def heard(self, now_ns: int) -> None:
        """Something valid came: the PLC lives."""
        self._heard_ns = now_ns

    def beat(self, counter: int, now_ns: int) -> None:
        """The PLC's heartbeat counter; only one that moves is a sign of life."""
        if counter != self._plc_beat:
            self._plc_beat = counter
            self._heard_ns = now_ns

    def trigger(self, trigger: Trigger) -> Receipt:
        """Take a trigger to the desk, unless it is one that is remembered."""
        now_ns = trigger.at_mono_ns
        known = self._known.get(trigger.number)
        if known is not None and known.same(trigger) and not self._over(known, now_ns):
            return self._repeat(known)
        if known is not None:
            self._supersede(known)
        refusal = self._desk.offer(trigger)
        if refusal is None or refusal is Refusal.OVERRUN:
            self._remember(_Known(trigger, refusal, now_ns))
        if refusal is Refusal.OVERRUN:
            self._overruns += 1
        return Receipt(refusal, True, False)

    def acknowledge(self, result_id: int) -> bool:
        """The PLC has the answer; False when none with this id waits for it (an Ack said twice, an old one)."""
        known = self._unacked.pop(result_id, None)
        if known is None:
            return False
        self._forget(known)
        return True

    def set_recipe(self, number: int) -> Refusal | None:
        """Judge by another recipe from the next trigger on."""
        return self._desk.set_recipe(number)

    # What the PLC is told.

    def collect(self, now_ns: int) -> None:
        """Fetch the answers given at the desk. A link without a connection calls this too, so that none gets lost."""
        self._fetch(now_ns)
        self._desk.said()

    def _fetch(self, now_ns: int) -> None:
        for answer in self._desk.answers():
            known = self._known.get(answer.trigger.number)
            if known is None or not known.asked_for(answer.trigger):
                self._unacknowledged += 1  # its number stands for another part by now
                continue
            known.answer = answer
            known.touched_ns = now_ns
            self._fresh.append(known)

    def next_due(self, now_ns: int) -> Saying | None:
        """The answer to say now; None: there is none.

        First those that the PLC waits for again (the port was opened anew, or it repeated its trigger), then new ones,
        then those whose Ack is due.

        Say it whole and call `sent`, then ask again until there is none: only then the desk goes on. One that is not
        reported as sent stays due.
        """
        self._fetch(now_ns)
        self._give_up(now_ns)
        unacked = self._unacked.values()
        due = next((known for known in unacked if known.again), None)
        if due is None and self._fresh:
            due = self._fresh[0]
        if due is None:
            due = next((known for known in unacked if now_ns - known.touched_ns >= self._ack_ns), None)
        if due is None:
            self._desk.said()
        return self._saying(due, now_ns) if due is not None else None

    def head(self, now_ns: int) -> Saying | None:
        """The answer that stands until its Ack: for a link whose PLC reads when it likes, one answer at a time.

        The desk goes on with the next `collect`, when it was said or cannot be just now.
        """
        self._fetch(now_ns)
        self._give_up(now_ns)
        if self._unacked:
            return self._saying(next(iter(self._unacked.values())), now_ns)
        return self._saying(self._fresh[0], now_ns) if self._fresh else None

    def sent(self, saying: Saying, at_ns: int) -> None:
        """An answer was said; the write ended at `at_ns`."""
        known = self._known.get(saying.answer.trigger.number)
        if known is None or known.answer is not saying.answer:
            return  # acknowledged or superseded meanwhile
        known.again = False
        known.touched_ns = at_ns
        if known.first_said_ns is None:
            known.first_said_ns = at_ns
        if known in self._fresh:
            self._fresh.remove(known)
        self._unacked[saying.answer.result_id] = known
        if not known.said:
            known.said = True
            self._answered += 1
            self._on_answered(saying.answer, (at_ns - saying.answer.trigger.at_mono_ns) / 1e6, saying.say)

    def shown(self, now_ns: int) -> Shown:
        """The signals now."""
        signals = self._desk.signals()
        heartbeat = now_ns // self._beat_ns % COUNTER
        return Shown(signals.ready, signals.busy, signals.recipe, heartbeat, signals.error)

    # What the link wants to know.

    def alive(self) -> bool:
        """Whether the PLC gave a sign of life since the port was opened."""
        return self._heard_ns > self._connected_ns

    def silent(self, now_ns: int) -> bool:
        """Whether the PLC said nothing for `SILENT_BEATS` heartbeats."""
        return now_ns - self._heard_ns > SILENT_BEATS * self._beat_ns

    def next_ns(self, now_ns: int) -> int:
        """Until when there is nothing to say, unless something comes in."""
        due = [(now_ns // self._beat_ns + 1) * self._beat_ns]
        due += [now_ns if known.again else known.touched_ns + self._ack_ns for known in self._unacked.values()]
        return now_ns if self._fresh else max(min(due), now_ns)

    def counts(self) -> Counts:
        """So far."""
        return Counts(self._late, self._unacknowledged, self._answered, self._overruns, self._repeated)

    def _repeat(self, known: _Known) -> Receipt:
        self._repeated += 1
        if known.answer is not None and known not in self._fresh:
            known.again = True
            known.first_said_ns = None
            self._unacked[known.answer.result_id] = known
        return Receipt(known.refusal, False, known.answer is not None)

    def _supersede(self, known: _Known) -> None:
        """The PLC uses the number for another part: what is known of the old one is not said any more."""
        waiting = known in self._fresh or (known.answer is not None and known.answer.result_id in self._unacked)
        if waiting:
            self._unacknowledged += 1
        self._drop(known)
        self._forget(known)

    def _remember(self, known: _Known) -> None:
        self._known[known.trigger.number] = known
        if len(self._known) <= REMEMBERED:
            return
        # One that waits for its answer stays; there are never more of them than the desk takes.
        for oldest in [k for k in self._known.values() if k.settled()][:1]:
            self._supersede(oldest)

    def _forget(self, known: _Known) -> None:
        if self._known.get(known.trigger.number) is known:
            del self._known[known.trigger.number]

    def _drop(self, known: _Known) -> None:
        if known in self._fresh:
            self._fresh.remove(known)
        if known.answer is not None:
            self._unacked.pop(known.answer.result_id, None)

    def _give_up(self, now_ns: int) -> None:
        """Say no more what was said often enough, and what nobody waits for any more."""
        limit_ns = round((ACKS_AWAITED + 0.5) * self._ack_ns)  # so that the last repetition is not missed by a hair
        old = [k for k in self._unacked.values() if _older(k.first_said_ns, now_ns, limit_ns) or self._over(k, now_ns)]
        old += [k for k in self._fresh if self._over(k, now_ns)]
        for known in old:
            self._drop(known)
        self._unacknowledged += len(old)

    def _over(self, known: _Known, now_ns: int) -> bool:
        """Whether it is too old for a repetition; one that waits for its answer never is."""
        return known.settled() and now_ns - known.touched_ns > self._remember_ns

    def _saying(self, known: _Known, now_ns: int) -> Saying:
        answer = known.answer
        assert answer is not None, "only answered triggers are said"
        over = answer.until_mono_ns is not None and now_ns + self._wire_ns > answer.until_mono_ns
        if answer.say is not Say.OK or not over:
            return Saying(answer, answer.say, not known.said)
        if not known.late:
            known.late = True
            self._late += 1
            self._on_late(answer, known.said)
        return Saying(answer, Say.LATE, not known.said)


def _older(then_ns: int | None, now_ns: int, limit_ns: int) -> bool:
    return then_ns is not None and now_ns - then_ns > limit_ns
