"""What a triggered station does beside its parts: challenge, recipe requests, alarms, what it tells; and overrides.

`tick` belongs to the inspection thread and is called a few times a second. The link's thread and the request thread
leave here what they have to say, and it is told at the next tick.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge import event
from edge.admission import Admission
from edge.answer_times import AnswerTimes, Percentiles
from edge.capture.ring import FrameRing
from edge.challenge import MISSED, ChallengeEvent, ChallengeWatch
from edge.clock import Clock
from edge.config import Challenge
from edge.errors import ConfigError, EdgeError
from edge.event import LineHealth, LineState, LinkCounts, OverrideRequest, RecipeRequest, Response, Topics
from edge.files import write_whole
from edge.part import Answer, Say
from edge.plc.desk import Desk
from edge.plc.handshake import LinkState, LinkStatus
from edge.ports import Rows, Wire
from edge.recipe import Recipe
from edge.recipes import RecipeSet
from edge.settings import did_you_mean
from edge.station import Station

log = logging.getLogger(__name__)

MEMORY = "line.json"
TICK_NS = 500_000_000
SAVE_NS = 60_000_000_000
OVERRIDE_VERDICTS = ("OK", "NG")


class Memory:
    """What the station goes on with after a restart: its recipe and how its challenge stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = False

    def read(self) -> dict[str, Any]:
        """What was saved last; {} when that cannot be had."""
        try:
            found = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s): recipe and challenge begin anew", self._path, error)
            return {}
        return found if isinstance(found, dict) else {}

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep it; a disk that does not take it is told once."""
        try:
            write_whole(self._path, json.dumps(state).encode())
            self._told = False
        except OSError as error:
            if not self._told:
                log.warning("%s cannot be written: %s", self._path, error.strerror or error)
            self._told = True


def recipe_at_start(recipes: RecipeSet, memory: Memory) -> Recipe:
    """The one that was set when the last run ended, where there still is one of that number."""
    number = memory.read().get("recipe")
    found = recipes.find(number) if isinstance(number, int) else None
    return found or recipes.recipes[0]


class LineCare:
    """See the module. `link` is set before the first tick.

    Attributes:
        link: tells how the serial link is.
    """

    def __init__(
        self,
        desk: Desk,
        station: Station,
        recipes: RecipeSet,
        wire: Wire,
        topics: Topics,
        clock: Clock,
        memory: Memory,
        challenge: Challenge | None,
    ) -> None:
        self._desk = desk
        self._station = station
        self._recipes = recipes
        self._wire = wire
        self._topics = topics
        self._clock = clock
        self._memory = memory
        remembered = memory.read()
        saved = remembered.get("challenge")
        state = saved if isinstance(saved, dict) else None
        now = clock.ts(), clock.mono_ns()
        self._challenge = ChallengeWatch(challenge, *now, state) if challenge is not None else None
        self._todo: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._recipe = desk.signals().recipe  # as it is told
        if remembered.get("recipe", self._recipe) != self._recipe:
            text = f"recipe {remembered['recipe']}, which was set before, is gone: {self._name()} is set"
            advice = "Set the recipe of the part that the line makes, or name one in each trigger."
            station.alarm("recipe_gone", "warning", text, advice)
        self._tick_due_ns = self._save_due_ns = 0
        self._told: LineState | None = None
        self.link: Callable[[], LinkStatus] = lambda: LinkStatus(LinkState.RECONNECTING)
        self.times = AnswerTimes()
        self._times_lock = threading.Lock()

    def check(self, recipes: RecipeSet) -> None:
        """Whether another set of recipes can take the place of this one.

        Raises:
            ConfigError: its numbers are others, by which the PLC asks.
        """
        if recipes.numbers != self._recipes.numbers:
            ours, theirs = (", ".join(map(str, sorted(x.numbers))) for x in (self._recipes, recipes))
            problem = f"its recipes have the numbers {theirs}, and the PLC knows {ours}: give the recipes these numbers"
            raise ConfigError("the bundle", [problem])

    def serve(self, recipes: RecipeSet) -> None:
        """The recipes of another product, which `check` has found to fit."""
        self._recipes = recipes
        self._tick_due_ns = 0

    # The inspection thread, for each part.

    def weigh(self, serial: str, outcome: str, codes: Collection[str]) -> tuple[str, str]:
        """See a part as it was judged: why it may not pass (code and sentence), or two empty words.

        A master that was judged OK is never said to be OK.
        """
        watch = self._challenge
        if watch is None:
            return "", ""
        seen = watch.look(serial, outcome, codes, self._clock.ts(), self._clock.mono_ns())
        if seen is not None:
            self._tell_challenge(seen)
        code = MISSED if seen is not None and seen.kind == "missed" else watch.blocked
        return code, watch.standing.get(code, "")

    def _tell_challenge(self, news: ChallengeEvent) -> None:
        log.info("challenge: %s", news.text)
        self._station.row("challenge", news.body)
        self._tick_due_ns = self._save_due_ns = 0

    # The link's thread.

    def answered(self, _answer: Answer, ms: float, _said: Say) -> None:
        """An answer was said."""
        with self._times_lock:
            self.times.add(max(0.0, ms))

    def late(self, answer: Answer, said_before: bool) -> None:
        """An OK had to be said as LATE: its part did not pass."""
        if answer.result_id:
            self._todo.put(("late", {"part": answer.result_id, "said_ok_before": said_before}))

    # The request thread.

    def set_recipe(self, payload: bytes) -> Response:
        """Judge by another recipe from the next trigger on.

        Raises:
            EdgeError: it is not understood, or there is no such recipe.
        """
        wanted = _decoded(payload, RecipeRequest).recipe
        found = self._recipes.find(wanted)
        if found is None:
            names = [recipe.name for recipe in self._recipes.recipes]
            raise ConfigError("request/recipe", [f"there is no recipe {wanted!r}, {did_you_mean(str(wanted), names)}"])
        self._desk.set_recipe(found.number)
        return Response(transaction="", ok=True, text=f"from the next trigger on: {found.name}, number {found.number}")

    # The inspection thread, a few times a second.

    def tick(self) -> None:
        """Tell what others left here, and what stands."""
        while not self._todo.empty():
            kind, body = self._todo.get_nowait()
            self._station.row(kind, body)
        self._note_recipe()
        now_ns = self._clock.mono_ns()
        if now_ns < self._tick_due_ns:
            return
        self._tick_due_ns = now_ns + TICK_NS
        self._tick_challenge()
        self._watch_link()
        self._desk.show_error(self._error())
        self._tell_line()
        if now_ns >= self._save_due_ns:
            self.save()

    def finish(self) -> None:
        """At the stop: tell and keep what stands, whenever that was done last."""
        self._tick_due_ns = self._save_due_ns = 0
        self.tick()

    def save(self) -> None:
        """Keep what the next run goes on with."""
        self._save_due_ns = self._clock.mono_ns() + SAVE_NS
        state: dict[str, Any] = {"recipe": self._recipe}
        if self._challenge is not None:
            state["challenge"] = self._challenge.state()
        self._memory.save(state)

    def _note_recipe(self) -> None:
        """The PLC changes it in the link's thread, a person in the request thread; here it gets its row."""
        number = self._desk.signals().recipe
        if number == self._recipe:
            return
        self._recipe = number
        self._station.over("recipe_gone")
        name = self._name()
        log.info("recipe %s (%d) from here on", name, number)
        self._station.row("recipe", {"recipe": name, "number": number})
        self._tick_due_ns = self._save_due_ns = 0

    def _name(self) -> str:
        found = self._recipes.find(self._recipe)
        return found.name if found is not None else str(self._recipe)

    def _tick_challenge(self) -> None:
        watch = self._challenge
        if watch is None:
            return
        for news in watch.tick(self._clock.ts(), self._clock.mono_ns()):
            self._tell_challenge(news)
        standing = watch.standing
        for code in (MISSED, "challenge.overdue"):
            if code in standing:
                severity = "error" if watch.blocked else "warning"
                self._station.alarm(code, severity, standing[code], "Show the masters to the station.")
            else:
                self._station.over(code)

    def _error(self) -> str:
        """The code of what keeps parts from passing, as the PLC is shown it; "" for nothing."""
        blocked = self._challenge.blocked if self._challenge is not None else ""
        standing = self._station.standing()
        disk = "disk" if standing & {"outbox", "genealogy"} else ""
        return blocked or disk or ("camera" if any(code.startswith("camera_") for code in standing) else "")

    def _watch_link(self) -> None:
        status = self.link()
        if status.state is LinkState.CONNECTED:
            self._station.over("plc")
        else:
            advice = "Check the serial cable, the adapter and the PLC."
            self._station.alarm("plc", "error", f"the PLC link is {status.state.value}: {status.detail}", advice)

    def _tell_line(self) -> None:
        status, signals, watch = self.link(), self._desk.signals(), self._challenge
        state = LineState(
            ready=signals.ready,
            error=signals.error,
            recipe=self._name(),
            recipe_number=self._recipe,
            link=status.state.value,
            detail=status.detail,
            masters=watch.masters() if watch is not None else [],
            challenge_due_s=round(watch.due_in_s / 60) * 60.0 if watch is not None else None,
        )
        if state != self._told:
            self._told = state
            self._wire.live(self._topics.line_state, state, retain=True)

    def health(self, no_frame: Counter[str], ring: FrameRing, measured: Admission) -> LineHealth:
        """How the line was since the last call."""
        status = self.link()
        with self._times_lock:
            whole, recent = self.times.whole.percentiles(), self.times.reset_window()
        link = LinkCounts(
            state=status.state.value,
            detail=status.detail,
            reopened=status.reopened,
            answered=status.answered,
            overruns=status.overruns,
            late=status.late,
            unacknowledged=status.unacknowledged + self._desk.forgotten,
            garbage=status.garbage,
            outputs_dropped=status.outputs_dropped,
        )
        return LineHealth(
            recipe=self._name(),
            answers=_told(whole),
            recent=_told(recent),
            link=link,
            no_frame=dict(no_frame),
            unused={camera: counts.unused for camera, counts in ring.counts().items()},
            frame_p999_ms=round(measured.p999_ns("frame") / 1e6, 3),
            settle_p999_ms=round(measured.p999_ns("settle") / 1e6, 3),
        )


def _told(times: Percentiles) -> event.AnswerTimes | None:
    if not times.count:
        return None
    p50, p99, p999 = (round(ms, 3) for ms in (times.p50, times.p99, times.p999))
    return event.AnswerTimes(n=times.count, p50=p50, p99=p99, p999=p999, max=times.max)


def override(rows: Rows | None, payload: bytes) -> Response:
    """Add a person's verdict on a part to its genealogy.

    Raises:
        EdgeError: it is not understood, there is no such part, or the row could not be stored.
    """
    asked = _decoded(payload, OverrideRequest)
    if rows is None:
        raise ConfigError("request/override", ["there is no genealogy: the config says genealogy.use = false"])
    if asked.verdict not in OVERRIDE_VERDICTS:
        raise ConfigError("request/override", [f'verdict = "{asked.verdict}": must be one of "OK", "NG"'])
    if not asked.operator.strip() or not asked.reason.strip():
        raise ConfigError("request/override", ["operator and reason must say something: the row is kept for years"])
    body = {"part": asked.part, "verdict": asked.verdict, "operator": asked.operator, "reason": asked.reason}
    head = rows.append("override", body)
    return Response(transaction="", ok=True, text=f"part {asked.part}: {asked.verdict} by {asked.operator}, row {head}")


def _decoded(payload: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EdgeError(f"the request is not understood: {error}") from error
