"""The simulated PLC: triggers, repeats, acknowledges, and has its cable pulled, as its plan says.

It does what PROTOCOL.md asks of a PLC: it triggers only while the station shows that it lives, repeats a trigger of
which it heard nothing, acknowledges each answer, and repeats all that is open when the cable is in again.
"""

from __future__ import annotations

import json
import random
import select
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from edge.errors import PlcError
from edge.plc.book import Book, Entry, percentiles
from edge.plc.cable import Cable
from edge.plc.handshake import SILENT_BEATS
from edge.plc.players import Answered, Ask, Event, Heard, Noise, Player, Refused, Seen, Switched

NS = 1_000_000_000
OUT_S = (0.1, 1.0)  # a pulled cable is in again after so long
TURN_S = 0.1  # longest wait
SHOW_S = 1.0  # how often the live line is told


@dataclass(frozen=True)
class Plan:
    """What the simulated line does.

    Attributes:
        rate: triggers a second.
        triggers, seconds: whichever is reached first ends the run; None: no limit by it.
        recipes: numbers to go through, the next one after each `recipe_every` parts; empty: recipe 0, the one set.
        recipe_by: the trigger names its recipe, or a request sets it beforehand.
        encoder_per_s: counts a second of an encoder; None: the line has none.
        pulls: how often the cable is pulled, at random times while the station is there.
        garbage_per_s: pieces of garbage sent a second, at random times.
        repeat_s: a trigger of which nothing was heard is said again after so long.
        settle_s: how long the end waits for open triggers.
        wait_ready: hold each part back until the station is Ready; else it comes when it comes.
    """

    rate: float = 5.0
    triggers: int | None = None
    seconds: float | None = None
    recipes: tuple[int, ...] = ()
    recipe_every: int = 10
    recipe_by: str = "trigger"
    serial_prefix: str = "P"
    encoder_per_s: float | None = None
    pulls: int = 0
    garbage_per_s: float = 0.0
    repeat_s: float = 0.3
    settle_s: float = 10.0
    heartbeat_s: float = 1.0
    wait_ready: bool = False
    first_number: int = 1
    seed: int = 1

    @property
    def length_s(self) -> float:
        """How long triggers come, as far as the plan says."""
        by_triggers = self.triggers / self.rate if self.triggers is not None else float("inf")
        return min(by_triggers, self.seconds if self.seconds is not None else float("inf"))


@dataclass
class Line:
    """What the simulated PLC knows of the station now, and counts."""

    seen: Seen | None = None
    heard_ns: int = 0
    up: bool = False  # the station showed Ready since the connection began
    errors: Counter[str] = field(default_factory=Counter)
    switches: Counter[str] = field(default_factory=Counter)
    noise: int = 0
    garbage: int = 0
    pulls: int = 0
    plugged_ns: int | None = None  # until the station is heard again
    recovery_s: list[float] = field(default_factory=list)


class Simulator:
    """One run of the simulated PLC. `run` may be called in a thread of its own; `stop` ends it from any thread."""

    def __init__(
        self,
        plan: Plan,
        cable: Cable,
        player: Player,
        log: TextIO | None = None,
        fire: Callable[[], None] = lambda: None,
    ) -> None:
        """A run that has not begun.

        Args:
            log: gets a JSON line for each settled trigger.
            fire: called with each trigger, as the output of a PLC that fires the cameras.
        """
        self._fire = fire
        self.book = Book()
        self.line = Line()
        self._plan, self._cable, self._player, self._log = plan, cable, player, log
        self._chance = random.Random(plan.seed)
        self._stopped = False
        self._made = 0
        self._beats = 0
        self._requested: int | None = None  # a recipe that was asked for and is not shown yet
        self._requested_ns = self._start_ns = self._show_ns = self._beat_ns = self._plug_ns = 0
        self._next_trigger_ns = self._garbage_ns = 0
        self._pull_ns: list[int] = []
        self._player_ns: int | None = None  # when the player wants its next turn

    def stop(self) -> None:
        """End the run: no more triggers, and `run` comes back when the open ones are settled."""
        self._stopped = True

    def run(self, show: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
        """Play until the plan ends, then wait for open triggers; the report."""
        self._begin()
        ended_ns: int | None = None
        while True:
            now_ns = time.monotonic_ns()
            if ended_ns is None and self._is_over(now_ns):
                ended_ns = now_ns
                self._pull_ns.clear()
            if ended_ns is not None and (not self.book.open() or now_ns - ended_ns > self._plan.settle_s * NS):
                break
            self._step(now_ns, ended_ns is None)
            if now_ns >= self._show_ns:
                self._show_ns = now_ns + round(SHOW_S * NS)
                show(self.summary_line((now_ns - self._start_ns) / 1e9))
        self._cable.pull()
        return self.report()

    def report(self) -> dict[str, Any]:
        """The sums so far."""
        line = self.line
        return {
            **self.book.report(),
            "errors": dict(sorted(line.errors.items())),
            "outputs": dict(sorted(line.switches.items())),
            "noise": line.noise,
            "garbage_sent": line.garbage,
            "pulls": line.pulls,
            "recovery_s": percentiles(line.recovery_s),
        }

    def summary_line(self, seconds: float) -> str:
        """How it stands, in one line."""
        book, seen = self.book, self.line.seen
        words = ", ".join(f"{word} {count}" for word, count in sorted((book.words + book.refusals).items()))
        state = "the station says nothing"
        if not self._cable.is_in:
            state = "the cable is out"
        elif seen is not None:
            state = f"{'ready' if seen.ready else 'not ready'}, recipe {seen.recipe}"
            state += f", error {seen.error}" if seen.error else ""
        return f"{seconds:6.1f} s: {book.sent} sent, {words or 'no answers'}, {len(book.open())} open; {state}"

    def _begin(self) -> None:
        plan, now_ns = self._plan, time.monotonic_ns()
        length_s = plan.length_s
        if plan.pulls and length_s == float("inf"):
            raise PlcError("cable pulls need an end of the run: give --seconds or --triggers")
        self._start_ns = self._show_ns = self._beat_ns = now_ns
        self._next_trigger_ns = now_ns
        self._garbage_ns = self._next_garbage(now_ns)
        at = sorted(self._chance.uniform(0.05, 0.95) * length_s for _ in range(plan.pulls))
        self._pull_ns = [now_ns + round(s * NS) for s in at]
        self._plug_ns = now_ns + NS
        self._cable.plug()
        self._player.opened()

    def _is_over(self, now_ns: int) -> bool:
        plan = self._plan
        by_count = plan.triggers is not None and self._made >= plan.triggers
        return self._stopped or by_count or (now_ns - self._start_ns) / 1e9 >= (plan.seconds or float("inf"))

    def _step(self, now_ns: int, more: bool) -> None:
        self._move_cable(now_ns)
        if not self._cable.is_in:
            time.sleep(0.02)
            return
        self._want(now_ns, more)
        self._turn(now_ns)
        self._wait()

    # The cable.

    def _move_cable(self, now_ns: int) -> None:
        if self.line.up and self._pull_ns and now_ns >= self._pull_ns[0]:
            self._pull_ns.pop(0)
            self._cable.pull()
            self._lose()
            self.line.pulls += 1
            self._plug_ns = now_ns + round(self._chance.uniform(*OUT_S) * NS)
        elif not self._cable.is_in:
            self._lose()
            if now_ns >= self._plug_ns:
                self._cable.plug()
                self._plug_ns = now_ns + NS  # the next attempt, where it cannot be plugged in
            if self._cable.is_in:
                self.line.plugged_ns = now_ns if self.line.pulls else None
                self._player.opened()

    def _lose(self) -> None:
        if self.line.up:
            self.book.disturb()
        self.line.up = False
        self.line.seen = None

    # What the PLC wants.

    def _want(self, now_ns: int, more: bool) -> None:
        if self.line.up and now_ns - self.line.heard_ns > SILENT_BEATS * self._plan.heartbeat_s * NS:
            self._lose()
        if now_ns >= self._beat_ns:
            self._beat_ns += round(self._plan.heartbeat_s * NS)
            self._beats += 1
            self._player.beat(self._beats % 65536, self._encoder(now_ns))
        if self.line.up:
            self._repeat(now_ns)
            if more and now_ns >= self._next_trigger_ns:
                self._trigger(now_ns)
        if now_ns >= self._garbage_ns:
            self._garbage_ns = self._next_garbage(now_ns)
            self._cable.write(self._garbage())
            self.line.garbage += 1

    def _trigger(self, now_ns: int) -> None:
        plan, seen = self._plan, self.line.seen
        if plan.wait_ready and not (seen is not None and seen.ready and self.book.all_taken()):
            return
        recipe = plan.recipes[self._made // plan.recipe_every % len(plan.recipes)] if plan.recipes else 0
        if plan.recipe_by == "request" and recipe and not self._is_set(recipe, now_ns):
            return
        number = (plan.first_number + self._made) % 65536
        self._made += 1
        named = recipe if plan.recipe_by == "trigger" else 0
        ask = Ask(number, f"{plan.serial_prefix}{self._made:06d}", named, self._encoder(now_ns))
        # A line that was held up goes on at its rate; it does not make up for what it missed.
        period_ns = round(NS / plan.rate)
        held_up = now_ns - self._next_trigger_ns >= period_ns
        self._next_trigger_ns = (now_ns if held_up else self._next_trigger_ns) + period_ns
        self._fire()
        self.book.ask(ask, time.monotonic_ns())
        self._player.trigger(ask)

    def _is_set(self, recipe: int, now_ns: int) -> bool:
        """Whether the station shows the recipe; if not it is asked for, again and again.

        Not before all that is open is settled: a trigger that has to be repeated would be judged by the new one.
        """
        if self.line.seen is not None and self.line.seen.recipe == recipe:
            self._requested = None
            return True
        if self.book.open():
            return False
        if self._requested != recipe or now_ns - self._requested_ns > self._plan.repeat_s * NS:
            self._requested, self._requested_ns = recipe, now_ns
            self._player.recipe(recipe)
        return False

    def _repeat(self, now_ns: int) -> None:
        for entry in self.book.open():
            patience_s = self._plan.repeat_s * (10 if entry.taken else 1)
            if now_ns - entry.said_ns >= patience_s * NS:
                self.book.ask_again(entry, now_ns)
                self._player.trigger(entry.ask)

    def _come_up(self, now_ns: int) -> None:
        """The station is there: all that is open is said again."""
        self.line.up = True
        for entry in self.book.open():
            self.book.ask_again(entry, now_ns)
            self._player.trigger(entry.ask)

    def _encoder(self, now_ns: int) -> int | None:
        per_s = self._plan.encoder_per_s
        return None if per_s is None else int((now_ns - self._start_ns) / 1e9 * per_s) % (1 << 32)

    def _next_garbage(self, now_ns: int) -> int:
        per_s = self._plan.garbage_per_s
        return now_ns + round(self._chance.expovariate(per_s) * NS) if per_s else 1 << 62

    def _garbage(self) -> bytes:
        noise = self._chance.randbytes(self._chance.randint(1, 200))
        kinds = (
            noise,
            noise + b"\n",
            b"T 1 X 0*00000000\n",
            b"V 1 2 OK -\n",
            b"T 12 ",
            b"x" * 300 + b"\n",
            b"\xff" * 5,
        )
        return self._chance.choice(kinds)

    # What the PLC hears.

    def _turn(self, now_ns: int) -> None:
        data = self._cable.read()
        at_ns = time.monotonic_ns()
        turn = self._player.turn(data, at_ns)
        self._cable.write(turn.out)
        for event in turn.events:
            self._hear(event, at_ns)
        if turn.events:  # what they made the PLC want, such as an Ack
            turn = self._player.turn(b"", time.monotonic_ns())
            self._cable.write(turn.out)
            for event in turn.events:
                self._hear(event, at_ns)
        self._player_ns = turn.next_ns

    def _hear(self, event: Event, now_ns: int) -> None:
        line = self.line
        if isinstance(event, Noise):
            line.noise += 1
            return
        line.heard_ns = now_ns
        if line.plugged_ns is not None:
            line.recovery_s.append((now_ns - line.plugged_ns) / 1e9)
            line.plugged_ns = None
        if isinstance(event, Seen):
            line.seen = event
            if event.ready and not line.up:
                self._come_up(now_ns)
        elif isinstance(event, Heard):
            self.book.taken(event.number)
        elif isinstance(event, Answered):
            self._write(self.book.answered(event, now_ns))
            self._player.acknowledge(event.result_id)
        elif isinstance(event, Refused):
            line.errors[event.name] += 1
            if event.number is not None:
                self._write(self.book.refused(event.number, event.name))
        elif isinstance(event, Switched):
            line.switches[event.output] += event.on

    def _write(self, entry: Entry | None) -> None:
        if self._log is not None and entry is not None:
            self._log.write(json.dumps(entry.row()) + "\n")

    def _wait(self) -> None:
        now_ns = time.monotonic_ns()
        times = [self._beat_ns, self._garbage_ns, now_ns + round(TURN_S * NS)]
        # What is overdue waits for the station, and it is heard of by the cable.
        times += [ns for ns in (self._next_trigger_ns, *self._pull_ns[:1]) if ns > now_ns]
        times += [self._player_ns] if self._player_ns is not None else []
        if self._cable.is_in:
            poll = select.poll()
            poll.register(self._cable, select.POLLIN)
            poll.poll(max((min(times) - now_ns) / 1e6, 0.0))
