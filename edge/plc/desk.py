"""Where a link leaves triggers and the station takes them, and where answers wait for the link. All threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from edge.part import Answer, Trigger

# Answers that no link fetches (its cable is out for long): beyond so many the oldest are forgotten, and counted.
ANSWERS_KEPT = 256
SAID_S = 0.02  # how long `answer` waits at most until the link has said it
REFUSED_KEPT = 256


class Refusal(str, Enum):
    """Why a request of the line is not done. The names are said on the wire."""

    OVERRUN = "OVERRUN"  # a trigger while not Ready
    UNKNOWN_RECIPE = "UNKNOWN_RECIPE"
    NOT_RUNNING = "NOT_RUNNING"  # the service is starting or stopping


@dataclass(frozen=True)
class Signals:
    """What the station shows to the line at a moment.

    Attributes:
        ready: a trigger would be taken now.
        busy: at least one part is between its trigger and its answer.
        error: the code of what keeps the station from passing parts, "" for nothing.
        recipe: number of the recipe that is set.
    """

    ready: bool
    busy: bool
    error: str
    recipe: int


@dataclass(frozen=True)
class Taken:
    """What one `take` gave.

    Attributes:
        trigger: the one that has waited longest; None when there was only refusal to tell of.
        overruns: how many were refused before it, since the take before.
        refused: these themselves, in their order; at most the last `REFUSED_KEPT`.
    """

    trigger: Trigger | None
    overruns: int
    refused: tuple[Trigger, ...] = ()


@dataclass
class _Waiting:
    """A trigger that was taken, and the refusals before it since the one before."""

    trigger: Trigger | None = None
    overruns: int = 0
    refused: deque[Trigger] = field(default_factory=lambda: deque(maxlen=REFUSED_KEPT))

    def taken(self) -> Taken:
        return Taken(self.trigger, self.overruns, tuple(self.refused))


class Desk:
    """Triggers one way, answers the other.

    Every trigger offered before `close` comes out exactly once: taken by the station, among the refusals of a `take`,
    or in `remaining`. What comes after is none: the station has stopped. A trigger is counted (`on_trigger`) when it
    is offered, whatever becomes of it.
    """

    def __init__(
        self, depth: int, recipes: frozenset[int], recipe: int, on_trigger: Callable[[], None] = lambda: None
    ) -> None:
        """Begin not running: see `open`.

        Args:
            depth: how many parts may be between their trigger and their answer.
            recipes: numbers that a request may name.
            recipe: the one that is set.
            on_trigger: called once for each trigger, one call at a time.
        """
        self._depth = depth
        self._recipes = recipes
        self._recipe = recipe
        self._on_trigger = on_trigger
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._next = _Waiting()  # its trigger is still to come
        self._in_hand = 0  # taken by the station and not answered
        self._answers: deque[Answer] = deque()
        self._unsaid = False
        self._error = ""
        self._running = False
        self._closed = False
        self._wake_link: Callable[[], None] = lambda: None
        self.forgotten = 0  # answers that no link fetched

    # The link's side.

    def attach(self, wake: Callable[[], None]) -> None:
        """`wake` is called, in any thread, when there is an answer to fetch or the signals changed."""
        self._wake_link = wake

    def offer(self, trigger: Trigger) -> Refusal | None:
        """Ask for a part to be judged; None when it was taken, and its answer will come.

        A trigger without a recipe number gets the one that is set now: a later change does not touch it.
        """
        with self._changed:
            if self._closed:
                return Refusal.NOT_RUNNING
            self._on_trigger()
            self._changed.notify_all()
            if not self._running or len(self._waiting) + self._in_hand >= self._depth:
                self._next.overruns += 1
                self._next.refused.append(trigger)
                return Refusal.OVERRUN if self._running else Refusal.NOT_RUNNING
            self._next.trigger = trigger if trigger.recipe else replace(trigger, recipe=self._recipe)
            self._waiting.append(self._next)
            self._next = _Waiting()
        return None

    def answers(self) -> list[Answer]:
        """The answers given since the last call, oldest first."""
        with self._changed:
            given = list(self._answers)
            self._answers.clear()
        return given

    def said(self) -> None:
        """The link has nothing more to say: of what it fetched all is written, or kept for later."""
        with self._changed:
            if self._unsaid and not self._answers:
                self._unsaid = False
                self._changed.notify_all()

    def signals(self) -> Signals:
        """What the station shows now."""
        with self._changed:
            pending = len(self._waiting) + self._in_hand
            ready = self._running and not self._closed and pending < self._depth
            return Signals(ready, pending > 0, self._error, self._recipe)

    # Any side.

    def set_recipe(self, number: int) -> Refusal | None:
        """Judge by another recipe from the next trigger on; those taken before keep theirs."""
        with self._changed:
            if number not in self._recipes:
                return Refusal.UNKNOWN_RECIPE
            self._recipe = number
        self._wake_link()
        return None

    # The station's side.

    def open(self) -> None:
        """From here on triggers are taken."""
        with self._changed:
            self._running = True
        self._wake_link()

    def take(self, timeout_s: float) -> Taken | None:
        """The trigger that has waited longest, with the refusals before it; None: nothing happened."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._next.overruns, timeout_s)
            if self._waiting and not self._closed:
                self._in_hand += 1
                return self._waiting.popleft().taken()
            if not self._next.overruns or self._waiting:
                return None
            taken, self._next = self._next.taken(), _Waiting()
            return taken

    def idle(self) -> bool:
        """Whether no trigger waits."""
        with self._changed:
            return not self._waiting

    def answer(self, answer: Answer) -> None:
        """Hand an answer to the link; every trigger taken gets exactly one. What it says must be on the disk.

        Waits a moment until the link has said it: the next inference holds the interpreter for tens of milliseconds,
        and an answer that is ready must not wait for that.
        """
        with self._changed:
            self._in_hand -= 1
            self._answers.append(answer)
            self._unsaid = True
            if len(self._answers) > ANSWERS_KEPT:
                self._answers.popleft()
                self.forgotten += 1
        self._wake_link()
        with self._changed:
            self._changed.wait_for(lambda: not self._unsaid, SAID_S)

    def show_error(self, code: str) -> None:
        """Tell the line what keeps the station from passing parts; "" takes it down."""
        with self._changed:
            if code == self._error:
                return
            self._error = code
        self._wake_link()

    def close(self) -> None:
        """Take no more triggers and hand out none; what is left is in `remaining`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wake_link()

    def remaining(self) -> list[Taken]:
        """After `close`: what was not taken, in its order; the last may be refusals alone."""
        with self._changed:
            left = [*self._waiting, self._next] if self._next.overruns else list(self._waiting)
            return [waiting.taken() for waiting in left] if self._closed else []
