"""The station under its PLC: takes triggers one after another, finds their frames, and answers each exactly once.

Runs in the inspection thread. `Line.turn` is the whole of it: trigger, frames, judgement, fusion, disk, answer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edge.admission import Admission
from edge.clock import Clock
from edge.fuse import fuse
from edge.gather import Aim, Gatherer
from edge.pairing import Chosen
from edge.part import Answer, Pairing, Part, Say, Trigger
from edge.pipeline import Pipeline
from edge.plc.desk import Desk, Taken
from edge.recipe import Recipe
from edge.records import Frame, Inspection, Loss, Reason, Verdict, VerdictKind
from edge.station import Fault, Station

log = logging.getLogger(__name__)

CAMERAS_TOLD = 3  # of those without a frame, in the sentence of a loss
PAIRS_TO_TRUST = 20  # so many triggers in a row without a doubt about the part before, and the alarm is over
STOPS = "the service stops"


class Challenged(Protocol):
    """The known-bad parts that are owed."""

    def weigh(self, serial: str, outcome: str, codes: Collection[str]) -> tuple[str, str]:
        """See a part as it was judged: why it may not pass (code and sentence), or two empty words."""


@dataclass(frozen=True)
class Book:
    """How the parts of one recipe are judged.

    Attributes:
        hash: SHA-256 of the recipe's text.
        shown_from: the least confidence of a box that is told.
        cameras: ids of those that look at the part, in the order of the config.
        budget_ns: trigger to answer at most; None: there is no deadline.
    """

    recipe: Recipe
    hash: str
    pipeline: Pipeline
    shown_from: float
    cameras: tuple[str, ...]
    budget_ns: int | None


@dataclass
class _Looks:
    """What the cameras showed of one part."""

    missing: dict[str, str]
    inspections: dict[str, Inspection] = field(default_factory=dict)
    pairings: dict[str, Pairing] = field(default_factory=dict)
    faults: list[Loss] = field(default_factory=list)
    not_judged: list[Frame] = field(default_factory=list)
    late: bool = False
    stopped: bool = False


class Line:
    """Settles and answers what its desk takes in.

    Attributes:
        no_frame: camera -> triggers that had no frame of it.
    """

    def __init__(
        self,
        desk: Desk,
        gatherer: Gatherer,
        books: Mapping[int, Book],
        station: Station,
        admission: Admission,
        clock: Clock,
        challenge: Challenged,
    ) -> None:
        """Nothing is taken before `turn`. `books`: recipe number -> how its parts are judged."""
        self._desk = desk
        self._gatherer = gatherer
        self._books = books
        self._station = station
        self._admission = admission
        self._clock = clock
        self._challenge = challenge
        self._owed: Trigger | None = None  # the trigger in hand, until its answer is given
        self._pairs_since_doubt = 0
        self.no_frame: Counter[str] = Counter()

    def serve(self, books: Mapping[int, Book], holds: bool) -> None:
        """Judge by the books of another product from here on; `holds`: as `Gatherer` takes it."""
        self._books = books
        self._gatherer.is_held = holds

    def idle(self) -> bool:
        """Whether no trigger waits."""
        return self._desk.idle()

    def held(self, began_ns: int, ended_ns: int, holds: bool) -> None:
        """An inference that was none of a part's took that time; `holds`: it held the interpreter."""
        self._gatherer.held(began_ns, ended_ns, holds)

    def turn(self, timeout_s: float) -> bool:
        """Settle and answer the next trigger; False when there was none.

        Raises:
            EdgeError: the model failed so often in a row that only a new process can help.
            Exception: a fault of the program. In either case the trigger has been counted and answered.
        """
        taken = self._desk.take(timeout_s)
        if taken is None:
            return False
        self._lose_refused(taken)
        if taken.trigger is not None:
            failure = self._surely(self._settle, taken.trigger)
            if failure is not None:
                raise failure
            self._station.give_up_if_hopeless()
        return True

    def finish(self) -> None:
        """At the stop: what was accepted and not judged is lost by name, and told."""
        self._desk.close()
        for left in self._desk.remaining():
            self._lose_refused(left)
            failure = self._surely(self._lose_at_stop, left.trigger) if left.trigger is not None else None
            if failure is not None:
                log.error("a trigger could not be stored at the stop: %s: %s", type(failure).__name__, failure)

    def _surely(self, settle: Callable[[Trigger], None], trigger: Trigger) -> Exception | None:
        """Settle a trigger; whatever fails on the way, it is counted once and answered once, and not as OK."""
        self._owed, before = trigger, self._station.counts.triggers
        try:
            settle(trigger)
        except Exception as error:
            log.debug("trigger %d could not be settled", trigger.number, exc_info=True)
            counted = self._station.counts.triggers > before
            number = self._station.parts if counted else self._station.fail_trigger()
            if self._owed is not None:
                self._say(Answer(trigger, number, Say.FAIL, Loss.PROCESSING_FAULT.value))
            return error
        return None

    def _lose_at_stop(self, trigger: Trigger) -> None:
        self._answer_loss(trigger, Loss.SHUTDOWN, STOPS)

    def _lose_refused(self, taken: Taken) -> None:
        if not taken.overruns:
            return
        self._station.lose(Loss.OVERRUN, taken.overruns)
        for trigger in taken.refused:  # it may have fired the cameras all the same
            self._gatherer.pass_by(trigger)
            self._station.note("overrun", {"trigger": trigger.number, "serial": trigger.serial, "ts": trigger.at_ts})

    def _settle(self, trigger: Trigger) -> None:
        book = self._books.get(trigger.recipe)
        if book is None:
            text = f"the PLC asked for recipe {trigger.recipe}, which this station does not have"
            self._station.alarm("recipe", "error", text, "Add it to the folder of recipes, or correct the PLC.")
            self._gatherer.pass_by(trigger)
            self._answer_loss(trigger, Loss.PROCESSING_FAULT, text, "unknown_recipe")
            return
        self._station.over("recipe")
        deadline_ns = trigger.at_mono_ns + book.budget_ns if book.budget_ns is not None else None
        looks = self._look(Aim(trigger, book.cameras, book.recipe.takt_time_ms, deadline_ns), book)
        began_ns = self._clock.mono_ns()
        part = self._judged(trigger, book, looks, deadline_ns)
        stored = self._station.settle_part(part, book.shown_from)
        self._answer(part, stored, deadline_ns)
        now_ns = self._clock.mono_ns()
        self._admission.add_settle(now_ns, now_ns - began_ns)
        for inspection in part.inspections:
            began_ns = self._clock.mono_ns()
            self._station.afterwards(inspection)
            self._gatherer.held(began_ns, self._clock.mono_ns())  # the drift watch has a model, too
        if looks.not_judged and self._desk.idle() and self._admission.wants_probe(now_ns):
            self._timed(looks.not_judged[0], book)  # only to measure: while parts are refused nothing else does

    # Frames.

    def _look(self, aim: Aim, book: Book) -> _Looks:
        """Find the frame of every camera, then judge them one after another while there is time."""
        gathered = self._gatherer.gather(aim)
        self._tell_crossed(gathered.crossed)
        if not gathered.stopped:
            self.no_frame.update(gathered.missing.keys())
        looks = _Looks(gathered.missing, stopped=gathered.stopped)
        needed = set(aim.cameras).difference(book.recipe.fusion.optional)
        wanted = [gathered.found[camera] for camera in aim.cameras if camera in gathered.found]
        began_ns = self._clock.mono_ns()
        refused = bool(wanted) and not self._admission.admits(began_ns, aim.deadline_ns, len(wanted))
        looks.late = refused or not needed.isdisjoint(gathered.late)
        for left, found in zip(range(len(wanted), 0, -1), wanted, strict=True):
            over = aim.deadline_ns is not None and self._clock.mono_ns() >= aim.deadline_ns
            if not (looks.stopped or refused or over):
                self._judge(found, book, looks)
                continue
            camera = found.frame.camera
            looks.missing[camera] = STOPS if looks.stopped else f"no time was left for {left} of {len(wanted)} frames"
            looks.not_judged.append(found.frame)
            looks.late |= camera in needed
        if len(looks.inspections) == len(wanted):
            now_ns = self._clock.mono_ns()
            self._admission.add_frames(now_ns, len(wanted), now_ns - began_ns)
        return looks

    def _tell_crossed(self, sentences: list[str]) -> None:
        """Parts that come too close to tell whose frame is whose: one alarm for as long as that goes on."""
        for sentence in sentences:
            self._station.note("pairing", {"text": sentence})
        if not sentences:
            self._pairs_since_doubt += 1
            if self._pairs_since_doubt == PAIRS_TO_TRUST:
                self._station.over("pairing")
            return
        self._pairs_since_doubt = 0
        if "pairing" not in self._station.standing():
            advice = "Check takt_time_ms, offset_ms and window_ms."
            self._station.alarm("pairing", "error", sentences[0], advice)

    def _judge(self, found: Chosen, book: Book, looks: _Looks) -> None:
        camera = found.frame.camera
        looks.pairings[camera] = found.pairing
        judged = self._timed(found.frame, book)
        if isinstance(judged, Fault):
            looks.faults.append(judged.loss)
            looks.missing[camera] = judged.text
        else:
            looks.inspections[camera] = judged

    def _timed(self, frame: Frame, book: Book) -> Inspection | Fault:
        began_ns = self._clock.mono_ns()
        judged = self._station.judge(frame, book.pipeline)
        ended_ns = self._clock.mono_ns()
        self._gatherer.held(began_ns, ended_ns)
        self._admission.add_frame(ended_ns, ended_ns - began_ns)
        return judged

    # Verdict and answer.

    def _judged(self, trigger: Trigger, book: Book, looks: _Looks, deadline_ns: int | None) -> Part:
        """The part with its verdict, or the loss that it ends as."""
        cameras = book.cameras
        inspections = {camera: looks.inspections[camera] for camera in cameras if camera in looks.inspections}
        verdict = fuse(inspections, looks.missing, book.recipe.fusion, cameras)
        loss, detail = self._loss(verdict, looks, deadline_ns)
        verdict = self._challenged(trigger, verdict if loss is None else None, loss)
        return Part(
            self._station.parts + 1, book.recipe.name, book.hash, trigger, tuple(inspections.values()),
            verdict, loss, self._clock.ts(), looks.missing, looks.pairings, detail,
        )  # fmt: skip

    def _loss(self, verdict: Verdict | None, looks: _Looks, deadline_ns: int | None) -> tuple[Loss | None, str]:
        bad = verdict is not None and verdict.kind is VerdictKind.NG
        told = "; ".join(f"{camera}: {why}" for camera, why in list(looks.missing.items())[:CAMERAS_TOLD])
        if looks.stopped:
            return Loss.SHUTDOWN, STOPS
        if looks.late and not bad:  # a bad part is bad whatever the frames not judged would show
            return Loss.DEADLINE, told
        if verdict is None:
            fault = Loss.PROCESSING_FAULT if Loss.PROCESSING_FAULT in looks.faults else Loss.CAPTURE_FAULT
            return fault, told
        if not self._admission.fits(self._clock.mono_ns(), deadline_ns, 0):
            return Loss.DEADLINE, f"the verdict {verdict.kind.value} came too late to be stored and said in time"
        return None, ""

    def _challenged(self, trigger: Trigger, verdict: Verdict | None, loss: Loss | None) -> Verdict | None:
        """While challenge parts are owed nothing passes; nor does one of them ever."""
        outcome = verdict.kind.value if verdict is not None else loss.value if loss is not None else ""
        reasons = verdict.reasons if verdict is not None else ()
        code, why = self._challenge.weigh(trigger.serial, outcome, [reason.code for reason in reasons])
        if code and verdict is not None and verdict.kind is VerdictKind.OK:
            return Verdict(VerdictKind.RETAKE, (Reason(code, why),))
        return verdict

    def _answer(self, part: Part, stored: bool, deadline_ns: int | None, reason: str = "") -> None:
        trigger = part.trigger
        if trigger is None:
            raise ValueError(f"part {part.number} has no trigger")
        if stored:
            answer = Answer(trigger, part.number, part.say, reason or part.reason, deadline_ns)
        else:  # without its row on the disk it is not OK
            answer = Answer(trigger, part.number, Say.FAIL, Loss.PROCESSING_FAULT.value, deadline_ns)
        self._say(answer)

    def _say(self, answer: Answer) -> None:
        self._owed = None
        self._desk.answer(answer)

    def _answer_loss(self, trigger: Trigger, loss: Loss, detail: str, reason: str = "") -> None:
        number = self._station.parts + 1
        part = Part(number, "", "", trigger, (), None, loss, self._clock.ts(), detail=detail)
        self._answer(part, self._station.settle_part(part, 1.0), None, reason)
