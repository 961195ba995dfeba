"""Brings another bundle into charge while the line runs: opened, tried in shadow, swapped, kept or returned.

    news -> open -> shadow -> swap -> trial -> commit
                      └ refuse          └ return to the bundle before

`_story` is the whole of it, in this order. It is a generator that `turn` resumes in the inspection thread, between two
parts: what waits for the disk or a child process is an errand in a thread of its own, and what has to happen in the
inspection thread (models belong to it) happens in steps of some ten milliseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

import msgspec

from edge import serving
from edge.bundle import slots
from edge.bundle.slots import Start
from edge.clock import Clock
from edge.config import Config
from edge.errand import Errand
from edge.errors import BundleError, EdgeError
from edge.event import Disagreement, Topics, Why
from edge.files import write_whole
from edge.fronts import Front
from edge.incumbent import Incumbent, holds, make_incumbent
from edge.keeping import pictured
from edge.outbox import Draft, Kind
from edge.part import Part
from edge.probation import Probation, Return, Usual
from edge.records import Inspection, Loss
from edge.shadow import Agreement, Rhythm, Shadow, ShadowLimits, compare
from edge.station import Station

log = logging.getLogger(__name__)

Made = TypeVar("Made")
DISK_ADVICE = "Free space on the state disk or replace it: it is tried again."
RETRY_LOOKS = 25  # between two attempts to write what the disk did not take
LOOK_NS = 200_000_000  # how often it looks for news and for the end of an errand
PATIENCE_NS = 2_000_000_000  # a line that has always a part waiting is kept waiting for one step so often
USUAL = "usual.json"
# Losses that a bundle can be to blame for; a trigger that came too fast or a camera that failed is not among them.
BLAMED = (Loss.DEADLINE, Loss.PROCESSING_FAULT)


class Need(Enum):
    """What the next step wants."""

    LOOK = "look"  # a fifth of a second later, whatever goes on
    GAP = "gap"  # a moment in which no part waits; where there is none for long, any between two parts
    PART = "part"  # as soon as a part was settled and none waits; a fifth of a second later in any case


Steps = Generator[Need, None, Made]


@dataclass(frozen=True)
class Wanted:
    """A slot that is to be in charge. `shadow`: it is to be seen beside the other one first."""

    slot: Path
    shadow: bool


class _Before(msgspec.Struct, kw_only=True):
    """What was usual of the bundle before the one in `slot`, and which signals had drifted under it."""

    slot: str
    not_ok_share: float | None
    frame_ms: float | None
    moved: list[str]


class GivenUpError(EdgeError):
    """A bundle that does not come into charge; `code` says why in one word."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class Changeover:
    """Follows the slots of the state folder with what is in charge. Belongs to the inspection thread.

    Attributes:
        incumbent: what is in charge. slot: where it lies.
        shadow, probation: of the bundle that came last or is coming; None before.
        gap_ms: the longest time that one step kept the inspection thread from parts, since the last change began.
    """

    def __init__(
        self,
        config: Config,
        incumbent: Incumbent,
        start: Start,
        station: Station,
        front: Front,
        topics: Topics,
        clock: Clock,
        seat: Callable[[Incumbent], None],
    ) -> None:
        """`seat` puts an incumbent in charge of everything; called between two parts."""
        self.incumbent, self.slot = incumbent, start.slot
        self.gap_ms = 0.0
        self._config = config
        self._state = Path(config.paths.state)
        self._start = start
        self._station = station
        self._front = front
        self._topics = topics
        self._clock = clock
        self._seat = seat
        self._rhythm = Rhythm()
        self._usual = Usual()
        self._moved_before: set[str] = set()  # signals of drift that moved under the bundle before
        self._part: Part | None = None  # the latest one that nobody in shadow has seen
        self._failed: tuple[str, float | None] | None = None  # a slot that could not be opened, and by which mark
        self._need, self._due_ns, self._went_on_ns = Need.LOOK, 0, clock.mono_ns()
        self._looks = self._tries = False  # a bundle is in shadow, on trial
        self.shadow: Shadow | None = None
        self.probation: Probation | None = None
        self._steps = self._story()

    # What the station says of its parts.

    def settled(self, part: Part) -> None:
        """See `edge.ports.Beside`."""
        if part.trigger is not None:
            self._rhythm.note(part.trigger.at_mono_ns)
        for inspection in part.inspections if part.trigger is None else ():
            self._rhythm.note(inspection.frame.captured_mono_ns, inspection.frame.camera)
        if part.verdict is not None or part.loss in BLAMED:
            for follower in self._followers():
                follower.part(not part.passed)
        for inspection in part.inspections:
            ms = sum(inspection.stage_ms.values())
            for follower in self._followers():
                follower.frame(ms)
        if self._looks and self.shadow is not None and part.inspections:
            for _ in self._part.inspections if self._part is not None else ():
                self.shadow.no_time()
            self.shadow.came(self._clock.mono_ns())
            self._part = part

    def fault(self, text: str) -> None:
        """See `edge.ports.Beside`."""
        for follower in self._followers():
            follower.fault(text)

    def _followers(self) -> list[Usual | Probation]:
        return [self._usual, self.probation] if self._tries and self.probation is not None else [self._usual]

    # The inspection thread, between parts.

    def turn(self) -> None:
        """Go on with what is under way, if this moment is one for it. Never raises, never takes long."""
        began_ns = self._clock.mono_ns()
        if not self._may_go_on(began_ns):
            return
        try:
            self._need = next(self._steps)
        except Exception as error:  # a fault of the program must not stop the line
            log.exception("the changeover failed")
            text = f"bundles are not changed any more: {type(error).__name__}: {error}"
            self._station.alarm("changeover", "error", text, "Restart the service; report it.")
            self._steps = _idle()
        ended_ns = self._clock.mono_ns()
        self._due_ns, self._went_on_ns = ended_ns + LOOK_NS, ended_ns
        self.gap_ms = max(self.gap_ms, (ended_ns - began_ns) / 1e6)

    def _may_go_on(self, now_ns: int) -> bool:
        if self._need is Need.GAP:
            return self._front.idle() or now_ns - self._went_on_ns >= PATIENCE_NS
        if self._need is Need.PART and self._part is not None and self._front.idle():
            return True
        return now_ns >= self._due_ns

    def _story(self) -> Steps[None]:
        yield from self._after_start()
        while True:
            wanted = yield from self._news()
            self.gap_ms, self.shadow, self.probation = 0.0, None, None
            try:
                yield from self._bring(wanted)
            except Exception as error:  # whatever is wrong with a bundle must not keep the next one from coming
                yield from self._give_up(wanted, error)
            finally:
                self._looks = self._tries = False
                self._part = None

    def _after_start(self) -> Steps[None]:
        """A trial goes on over a restart; one that was given up at the start is told."""
        start = self._start
        if (start.returned or start.refused) and start.trial is not None:
            what = "returned" if start.returned else "refused"
            self._tell_given_up(f"{start.trial.slot} was {what}, {start.slot.name} goes on: {start.trial.text}")
        if start.problem:
            self._station.alarm("bundle", "warning", start.problem, "Free space on the state disk or replace it.")
        if start.trial is None or start.trial.stage != "trial":
            return
        self._remember(start.slot)
        try:
            yield from self._on_trial(None, start.trial.starts)
        except Exception as error:
            log.warning("the trial of %s ended: %s", start.slot.name, error)
            log.debug("a trial ended", exc_info=True)
        finally:
            self._tries = False

    def _news(self) -> Steps[Wanted]:
        """Wait until another slot is to be in charge."""
        seen: tuple[int, int] | None = None
        while True:
            yield Need.LOOK
            stamp = slots.trial_stamp(self._state)
            trial = slots.read_trial(self._state) if stamp != seen else None
            seen = stamp
            if trial is not None and trial.stage == "shadow" and self._failed != (trial.slot, trial.began):
                return Wanted(self._state / "bundles" / trial.slot, shadow=True)
            active = self._active()  # looked at each time: the mark is there before its link
            if active is not None and active != self.slot and self._failed != (active.name, self._began()):
                return Wanted(active, shadow=False)

    def _began(self) -> float | None:
        """When the stage of the mark began: a slot that is installed once more has another."""
        trial = slots.read_trial(self._state)
        return trial.began if trial is not None else None

    def _active(self) -> Path | None:
        try:
            return slots.active(self._state)
        except BundleError:
            return None

    def _bring(self, wanted: Wanted) -> Steps[None]:
        before = self.incumbent, self.slot
        self._station.over("bundle")  # what became of the one before it
        incumbent = yield from self._open(wanted.slot)
        if wanted.shadow:
            yield from self._in_shadow(incumbent, wanted.slot)
            yield from self._errand("activate", lambda: self._activate(wanted.slot.name))
        yield Need.GAP
        if self._active() != wanted.slot:
            raise slots.ReplacedError(f"{wanted.slot.name} is not active any more")
        self._swap(incumbent, wanted.slot)
        trial = slots.read_trial(self._state)
        if trial is not None and trial.stage == "trial" and trial.slot == wanted.slot.name:
            yield from self._on_trial(before, trial.starts)

    def _open(self, slot: Path) -> Steps[Incumbent]:
        """Load a bundle in this thread, a step at a time and none while a part waits."""
        config, marks = self._config, self._state / "trials"
        prepared = yield from self._errand("prepare", lambda: serving.prepare(slot, config, marks))
        steps = serving.opening(
            slot, config.runtime, trial_marks=marks, manifest=prepared.manifest, recipes=prepared.recipes
        )
        while True:
            yield Need.GAP
            began_ns = self._clock.mono_ns()
            try:
                next(steps)
            except StopIteration as done:
                product: serving.Product = done.value
                break
            finally:  # what loads a model may hold the interpreter, whatever runs it later
                self._front.held(began_ns, self._clock.mono_ns(), holds=True)
        yield Need.GAP
        incumbent = make_incumbent(config, product, self._clock)
        self._front.check(incumbent)
        return incumbent

    def _in_shadow(self, incumbent: Incumbent, slot: Path) -> Steps[None]:
        """Let it look at live parts in the time that they leave.

        Raises:
            GivenUpError: it judges too many of them differently, or fails.
        """
        asked = self._config.trial
        if not asked.shadow_parts:
            return
        cameras = len(self._config.camera) if self._config.plc is not None else 1
        limits = ShadowLimits(asked.shadow_parts * cameras, asked.disagree_max, int(asked.shadow_minutes * 60e9))
        self.shadow = shadow = Shadow(limits, self._clock.mono_ns())
        self._looks = True
        log.info("%s looks at parts beside %s", slot.name, self.slot.name)
        while not shadow.over():
            yield Need.PART
            self._still(slot, "shadow")
            part, self._part = self._part, None
            for inspection in part.inspections if part is not None else ():
                self._look(incumbent, part, inspection, shadow)
            if why := shadow.refused():
                raise GivenUpError("disagreement", why)
        self._looks, self._part = False, None
        if why := shadow.refused(at_end=True):
            raise GivenUpError("disagreement", why)
        log.info("%s saw %d frames beside %s, %d differently", slot.name, shadow.seen, self.slot.name, shadow.disagreed)

    def _look(self, incumbent: Incumbent, part: Part | None, seen: Inspection, shadow: Shadow) -> None:
        began_ns = self._clock.mono_ns()
        if part is None or not self._front.idle() or self._rhythm.spare_ns(began_ns) < shadow.need_ns:
            shadow.no_time()
            return
        try:
            other = incumbent.pipeline_of(part).inspect(seen.frame)
        except Exception as error:  # as for the bundle in charge, whatever a model or a library raises
            log.debug("a look in shadow failed", exc_info=True)
            raise GivenUpError("fault", f"frame {seen.frame.number} could not be judged: {error}") from error
        ended_ns = self._clock.mono_ns()
        self._front.held(began_ns, ended_ns, holds(incumbent.product))
        agreement = compare(seen.verdict.kind, other.verdict.kind)
        shadow.note(agreement, ended_ns - began_ns)
        if agreement is not Agreement.AGREED:
            self._tell_disagreement(part, seen, other, incumbent)

    def _tell_disagreement(self, part: Part, seen: Inspection, other: Inspection, incumbent: Incumbent) -> None:
        pictures = self._station.pictures
        served = pictured(self._config, incumbent.product)
        message = Disagreement(
            camera=seen.frame.camera,
            frame=seen.frame.number,
            part=part.number,
            active=seen.verdict.kind.value,
            candidate=other.verdict.kind.value,
            active_reasons=[Why(code=r.code, text=r.text) for r in seen.verdict.reasons],
            candidate_reasons=[Why(code=r.code, text=r.text) for r in other.verdict.reasons],
            active_digest=self.incumbent.product.digest,
            candidate_digest=incumbent.product.digest,
            evidence=pictures.keep_opinion(part, other, served) if pictures is not None else "",
        )
        self._station.tell(Draft(self._topics.disagreement, Kind.RESULT, False, message))

    def _still(self, slot: Path, stage: str) -> None:
        """Go on only while this is what is wanted: a person may have rolled back, or brought another bundle.

        Raises:
            ReplacedError: something else is wanted now.
        """
        trial = slots.read_trial(self._state)
        if trial is None or (trial.slot, trial.stage) != (slot.name, stage):
            raise slots.ReplacedError(f"{slot.name} is not wanted any more")

    def _activate(self, slot: str) -> Path:
        """The link first: whoever dies now starts with the new bundle on trial, and knows what was usual before it."""
        before = _Before(
            slot=slot,
            not_ok_share=self._usual.not_ok_share,
            frame_ms=self._usual.frame_ms,
            moved=sorted(self._station.drifted()),
        )
        try:
            path = self._state / "update" / USUAL
            path.parent.mkdir(exist_ok=True)
            write_whole(path, msgspec.json.encode(before))
        except OSError as error:
            log.warning("what is usual of the bundle before cannot be kept: %s", error)
        return slots.activate(self._state, slot)

    def _remember(self, slot: Path) -> None:
        """What was usual of the bundle before this one, as it was when this one took over in an earlier run."""
        try:
            before = msgspec.json.decode((self._state / "update" / USUAL).read_bytes(), type=_Before)
        except (OSError, msgspec.MsgspecError):
            return
        if before.slot == slot.name:
            self._usual = Usual(before.not_ok_share, before.frame_ms)
            self._moved_before = set(before.moved)

    def _swap(self, incumbent: Incumbent, slot: Path) -> None:
        """Put it in charge, between two parts: some references are exchanged."""
        before, self.incumbent, self.slot = self.incumbent, incumbent, slot
        self._moved_before = self._station.drifted()
        self._seat(incumbent)
        if before.watch is not None:
            before.watch.save()
        body = {"from": before.product.digest, "to": incumbent.product.digest, "slot": slot.name}
        self._station.row("bundle", body)
        log.info("%s is in charge; the longest step took %.1f ms", slot.name, self.gap_ms)

    def _on_trial(self, before: tuple[Incumbent, Path] | None, starts: int) -> Steps[None]:
        """See whether it stays; else return to the one before, which is still loaded unless this is a new start."""
        usual, self._usual = self._usual, Usual()
        self.probation = probation = Probation(self._config.trial, usual, self._clock.mono_ns(), starts)
        self._tries = True
        try:
            stayed = yield from self._judged(probation)
        except slots.ReplacedError:
            self._usual = usual  # its parts say nothing of the bundle that comes now
            raise
        finally:
            self._tries = False
            probation.end(self._clock.mono_ns())
        if isinstance(stayed, Return):
            self._usual = usual
            yield from self._return(before, stayed)

    def _judged(self, probation: Probation) -> Steps[Return | None]:
        """Wait until it stays, or has to return.

        Raises:
            ReplacedError: something else is wanted by now.
        """
        slot = self.slot
        while True:
            yield Need.LOOK
            self._still(slot, "trial")
            why = probation.wrong(self._station.drifted() - self._moved_before)
            if why is not None and self._has_before():
                return why
            if why is not None:
                self._tell_given_up(f"{slot.name} goes on, since there is no bundle before it: {why.text}")
            if probation.passed(self._clock.mono_ns()):
                yield from self._kept("commit", lambda: slots.commit(self._state, slot.name))
                self._station.over("bundle")
                log.info("%s stays", slot.name)
                return None

    def _has_before(self) -> bool:
        trial = slots.read_trial(self._state)
        return trial is not None and trial.before is not None

    def _return(self, before: tuple[Incumbent, Path] | None, why: Return) -> Steps[None]:
        """Back at once where the bundle before is still loaded; the disk is asked until it takes that."""
        left = self.slot
        if before is not None:
            yield Need.GAP
            self._swap(*before)
            self._tell_given_up(f"{left.name} was returned to {self.slot.name}: {why.text}")
        slot = yield from self._kept("return", lambda: slots.go_back(self._state, why.code, why.text, left.name))
        if before is None:
            incumbent = yield from self._open(slot)
            yield Need.GAP
            self._swap(incumbent, slot)
            self._tell_given_up(f"{left.name} was returned to {slot.name}: {why.text}")

    def _give_up(self, wanted: Wanted, error: Exception) -> Steps[None]:
        """What cannot come into charge is left where it is; the bundle in charge goes on."""
        if isinstance(error, slots.ReplacedError):  # nothing is wrong with it: it may be wanted again in another way
            log.info("%s", error)
            return
        if not isinstance(error, EdgeError):
            log.error("%s cannot come into charge", wanted.slot.name, exc_info=error)
        code = error.code if isinstance(error, GivenUpError) else "cannot_serve"
        text, name = str(error) or type(error).__name__, wanted.slot.name
        self._failed = name, self._began()
        try:
            yield from self._settle(wanted, code, text)
        except slots.ReplacedError as replaced:
            log.info("%s", replaced)
            return
        self._tell_given_up(f"{name} was given up, {self.slot.name} goes on: {text}")

    def _settle(self, wanted: Wanted, code: str, text: str) -> Steps[None]:
        """Have the marks say that a bundle was given up.

        Raises:
            ReplacedError: another one is wanted by now, and nothing is to be said of this one.
        """
        name, trial = wanted.slot.name, slots.read_trial(self._state)
        if wanted.shadow:
            yield from self._kept("refuse", lambda: slots.refuse(self._state, code, text, name))
        elif trial is not None and trial.stage == "trial":
            yield from self._kept("return", lambda: slots.go_back(self._state, code, text, name))
        elif self._active() == wanted.slot:  # a rollback to what cannot be served must not outlive a restart
            yield from self._kept("rollback", lambda: self._stay(text))

    def _stay(self, text: str) -> None:
        """Point the links at what is in charge again: by a rollback, or, if it never stayed, on trial once more."""
        if slots.previous(self._state) == self.slot:
            slots.rollback(self._state, text)
            return
        told = slots.told(self._state, self.slot)
        slots.stage(self._state, self.slot, signed=told.signed, origin=told.origin)
        slots.activate(self._state, self.slot.name)

    def _kept(self, name: str, call: Callable[[], Made]) -> Steps[Made]:
        """Have the disk know what was decided, however long that takes.

        Raises:
            ReplacedError: something else is wanted by now.
        """
        while True:
            try:
                made = yield from self._errand(name, call)
            except slots.ReplacedError:
                raise
            except EdgeError as error:
                self._station.alarm("bundle_disk", "error", f"{name} of a bundle cannot be kept: {error}", DISK_ADVICE)
                for _ in range(RETRY_LOOKS):
                    yield Need.LOOK
            else:
                self._station.over("bundle_disk")
                return made

    def _tell_given_up(self, text: str) -> None:
        advice = "Parts are judged as before. Look at the disagreements and the card of the new bundle."
        self._station.alarm("bundle", "warning", text, advice)

    def _errand(self, name: str, call: Callable[[], Made]) -> Steps[Made]:
        """Have something done beside the parts, and wait for it between them."""
        errand = Errand(f"bundle-{name}", call)
        while not errand.done():
            yield Need.LOOK
        return errand.result()


def _idle() -> Steps[None]:
    while True:
        yield Need.LOOK
