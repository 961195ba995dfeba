"""One inspection station: settles each trigger exactly once, in durable steps, and says how it is.

Runs in the inspection thread. What it is connected to comes in through protocols.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge import event, ledger
from edge.alarms import AlarmBoard, Streaks
from edge.annotate import annotate, to_jpeg
from edge.capture.intake import Taken
from edge.clock import Clock
from edge.config import Publishing
from edge.errors import EdgeError, GenealogyError, ImageError, OutboxError
from edge.event import Alarm, Health, LedgerCounts, LineHealth, Topics
from edge.health import StageWindow, rss_bytes
from edge.outbox import Draft, Kind
from edge.part import Part
from edge.pipeline import Pipeline
from edge.ports import Beside, Kept, Pictures, Store, Watch, Wire
from edge.records import Frame, Inspection, Loss, VerdictKind

log = logging.getLogger(__name__)

# So many frames in a row that the model could not be run on: the process starts over rather than limp on.
FAULTS_BEFORE_RESTART = 10

WATCHED = ("drift_", "trend_")  # begin the codes of what the watch of a product alarms of

# So many readable frames of a camera after an unreadable one, and its alarm is over.
FRAMES_TO_TRUST = 20


@dataclass(frozen=True)
class Serving:
    """What the station says of the product it serves."""

    classes: tuple[str, ...]
    shown_from: float
    bundle_digest: str
    foreign_from: float | None = None  # cells of the anomaly map are drawn from here on
    recipe: str = "default"
    recipe_hash: str = ""


@dataclass(frozen=True)
class Fault:
    """Why a frame has no inspection: the loss that its trigger ends as, and what happened."""

    loss: Loss
    text: str


NOTHING_KEPT = Kept()


class Station:
    """Settles triggers: every frame taken becomes one verdict or one named loss, in one durable step.

    Attributes:
        beside: follows the parts, to judge by them the bundle in charge or one to come.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        serving: Serving,
        store: Store,
        wire: Wire,
        topics: Topics,
        clock: Clock,
        publishing: Publishing,
        counts: LedgerCounts,
        parts: int,
        captured: Callable[[], int],
        watch: Watch | None = None,
        kept: Kept = NOTHING_KEPT,
    ) -> None:
        """`counts` and `parts` go on from the last run; `captured` counts triggers independently of the ledger."""
        self._watch = watch
        self._kept = kept
        self._told_drift: dict[str, object] = {}
        self._pipeline = pipeline
        self._serving = serving
        self._store = store
        self._wire = wire
        self._topics = topics
        self._clock = clock
        self._publishing = publishing
        self._alarms = AlarmBoard()
        self._streaks = Streaks()
        self._window = StageWindow()
        self._window_began_ns = self._started_ns = clock.mono_ns()
        self._image_due_ns: dict[str, int] = {}
        self._faults_in_a_row, self._last_fault = 0, ""
        self._frames_since_fault: dict[str, int] = {}
        self._captured = captured
        self.beside: Beside | None = None
        self._void: int | None = None  # a part whose row has no ledger: to be marked before any other is stored
        self.counts = counts
        self.parts = parts

    def serve(self, pipeline: Pipeline, serving: Serving, watch: Watch | None) -> None:
        """Put another product in charge. Between two parts; what the old one's watch alarms of is over with it."""
        if self._watch is not None and watch is not self._watch:
            for code in self.standing():
                if code.startswith(WATCHED):
                    self.over(code)
        self._pipeline, self._serving, self._watch = pipeline, serving, watch
        self._told_drift.clear()
        for notice in watch.standing() if watch is not None else ():
            if notice.alarm is not None:
                self.alarm(notice.code, notice.alarm.severity, notice.alarm.text, notice.alarm.advice)

    def settle(self, taken: Taken) -> Inspection | None:
        """Settle one frame and the drops before it; the inspection, or None when there was no verdict.

        Raises:
            EdgeError: the model failed so often in a row that only a new process can help.
        """
        self.lose(Loss.OVERRUN, taken.overruns)
        self.lose(Loss.CAPTURE_FAULT, taken.faults)
        if taken.faults:
            self.capture_failed(taken.fault_camera, taken.fault_text)
        if taken.frame is None:
            return None
        inspection = self.judge(taken.frame, self._pipeline)
        if isinstance(inspection, Fault):
            self.lose(inspection.loss, 1)
            self.give_up_if_hopeless()
            return None
        if not self._settle_frame(inspection):
            return None
        self.afterwards(inspection)
        return inspection

    def _settle_frame(self, inspection: Inspection) -> bool:
        """On a line without triggers each frame is a part."""
        serving, frame = self._serving, inspection.frame
        latency_ms = (self._clock.mono_ns() - frame.captured_mono_ns) / 1e6
        part = Part(
            self.parts + 1, serving.recipe, serving.recipe_hash, None, (inspection,), inspection.verdict, None,
            self._clock.ts(),
        )  # fmt: skip

        def drafts(evidence: str) -> list[Draft]:
            shown, digest = serving.shown_from, serving.bundle_digest
            result = event.result_of(inspection, part.number, serving.classes, shown, digest, latency_ms, evidence)
            topic = self._topics.camera(frame.camera, "result")
            return [Draft(topic, Kind.RESULT, False, result), *self._rejects(part)]

        return self._commit(part, drafts, latency_ms)

    def settle_part(self, part: Part, shown_from: float) -> bool:
        """Settle a part that a trigger asked for, verdict or loss: row, message and ledger, all on the disk.

        Args:
            part: its number is one above `parts`.
            shown_from: the least confidence of a box that its recipe shows.

        Returns:
            False when that could not be done: the trigger is then a `processing_fault`.
        """
        serving, trigger = self._serving, part.trigger
        if trigger is None:
            raise ValueError(f"part {part.number} has no trigger")
        latency_ms = (self._clock.mono_ns() - trigger.at_mono_ns) / 1e6

        def drafts(evidence: str) -> list[Draft]:
            message = event.part_result_of(
                part, evidence, serving.classes, shown_from, serving.bundle_digest, latency_ms
            )
            return [Draft(self._topics.part, Kind.RESULT, False, message), *self._rejects(part)]

        return self._commit(part, drafts, latency_ms)

    def _rejects(self, part: Part) -> list[Draft]:
        refused = [x for x in part.inspections if x.verdict.kind is VerdictKind.RETAKE]
        return [
            Draft(self._topics.camera(x.frame.camera, "reject"), Kind.ALARM, False, event.reject_of(x, part.number))
            for x in refused
        ]

    def capture_failed(self, camera: str, text: str) -> None:
        """Tell that a frame was due and could not be read."""
        self._frames_since_fault[camera] = 0
        self.alarm(f"capture_{camera}", "warning", f"camera {camera}: {text}", "Look at the file or the camera.")

    def afterwards(self, inspection: Inspection) -> None:
        """What a frame is good for once its part is settled and answered."""
        self._watch_refusals(inspection)
        self._show(inspection)
        self._watch_stream(inspection)

    def _note_readable(self, camera: str) -> None:
        """End a camera's capture alarm after a row of frames: one bad file in a loop is one alarm, not many."""
        since = self._frames_since_fault.get(camera)
        if since is None:
            return
        self._frames_since_fault[camera] = since + 1
        if since + 1 >= FRAMES_TO_TRUST:
            del self._frames_since_fault[camera]
            self.over(f"capture_{camera}")

    def lose(self, loss: Loss, n: int) -> None:
        """Count triggers that ended without a verdict; durable with the next verdict or health."""
        if n:
            self.counts = ledger.lost(self.counts, loss, n)

    def judge(self, frame: Frame, pipeline: Pipeline) -> Inspection | Fault:
        """Judge one frame; a fault is told, and is not in the ledger yet."""
        self._note_readable(frame.camera)
        try:
            inspection = pipeline.inspect(frame)
        except ImageError as error:
            self.alarm(f"format_{frame.camera}", "error", f"camera {frame.camera}: {error}", "Set its pixel format.")
            return Fault(Loss.CAPTURE_FAULT, str(error))
        except Exception as error:
            self._faults_in_a_row += 1
            text = str(error) if isinstance(error, EdgeError) else f"{type(error).__name__}: {error}"
            log.debug("inspection failed", exc_info=True)
            where = f"frame {frame.number} of {frame.camera}"
            self.alarm("inference", "error", f"{where}: {text}", "Restart the daemon; install the bundle again.")
            self._last_fault = text
            if self.beside is not None:
                self.beside.fault(text)
            return Fault(Loss.PROCESSING_FAULT, text)
        self._faults_in_a_row = 0
        self.over("inference")
        self.over(f"format_{frame.camera}")
        return inspection

    def give_up_if_hopeless(self) -> None:
        """To be called when the trigger of a fault is settled.

        Raises:
            EdgeError: the model failed so often in a row that only a new process can help.
        """
        if (n := self._faults_in_a_row) >= FAULTS_BEFORE_RESTART:
            raise EdgeError(f"{n} frames in a row could not be judged, last: {self._last_fault}")

    def _commit(self, part: Part, drafts: Callable[[str], list[Draft]], latency_ms: float) -> bool:
        """Make row, messages and ledger durable, in this order; without that there is no verdict.

        The row is first: an OK on the wire has its row on the disk. A row whose ledger was not stored is void, and
        nothing else is stored before that is said.
        """
        if not self._mark_void():
            return self._fail(part)
        began_ns, kept = self._clock.mono_ns(), self._kept
        kind = part.verdict.kind if part.verdict is not None else None
        after = ledger.judged(self.counts, kind) if kind else ledger.lost(self.counts, _loss_of(part))
        evidence = kept.pictures.keep(part) if kept.pictures is not None else ""
        try:
            if kept.rows is not None:
                kept.rows.append_part(part, evidence)
                self._void = part.number  # until its ledger is stored, too
            self._store.add(drafts(evidence), after, part.number)
            self._void = None
        except (OutboxError, GenealogyError) as error:
            self._fail(part)
            code = "outbox" if isinstance(error, OutboxError) else "genealogy"
            self.alarm(code, "error", str(error), "Free space on the state disk or replace it.")
            self._mark_void()
            return False
        self.counts, self.parts = after, part.number
        self.over("outbox")
        self.over("genealogy")
        if kept.recorder is not None:
            kept.recorder.note_part(part)
        commit_ms = (self._clock.mono_ns() - began_ns) / 1e6
        if self.beside is not None:
            self.beside.settled(part)
        for inspection in part.inspections:
            self._window.add(inspection.stage_ms)
        self._window.note("commit", commit_ms)
        self._window.note("latency", latency_ms)
        return True

    def _fail(self, part: Part) -> bool:
        """Lose a part that could not be stored; False, as `_commit` says it."""
        if part.trigger is not None:
            self.fail_trigger()
        else:
            self.lose(Loss.PROCESSING_FAULT, 1)
        return False

    def fail_trigger(self) -> int:
        """A trigger ends as a processing fault without a row; the number that its answer goes by.

        The number is used up all the same: the line knows answers by it, and no two by the same.
        """
        self.lose(Loss.PROCESSING_FAULT, 1)
        self.parts += 1
        return self.parts

    def _mark_void(self) -> bool:
        """Say of a row whose ledger could not be stored that it is void; False while that is still to be done."""
        if self._void is not None:
            done = self.row("void", {"part": self._void, "why": "its message and ledger could not be stored"})
            self._void = None if done else self._void
        return self._void is None

    @property
    def _durable_parts(self) -> int:
        """The count of parts to be stored: a row beyond it is void at the next start."""
        return self.parts if self._void is None else self._void - 1

    def tell(self, draft: Draft) -> None:
        """Send a message that is no part's, durably; one that cannot be stored is logged and gone."""
        try:
            self._store.add([draft], self.counts, self._durable_parts)
        except OutboxError as error:
            log.warning("a message on %s could not be stored: %s", draft.topic, error)

    def drifted(self) -> set[str]:
        """Signals that have moved, as people read them."""
        messages = self._watch.messages() if self._watch is not None else ()
        return {f"{moved.signal} {moved.direction} on {m.camera}" for m in messages for moved in m.moved}

    @property
    def pictures(self) -> Pictures | None:
        """Where evidence goes; None where the config wants none."""
        return self._kept.pictures

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """Something that an incident is to show; not durable."""
        if self._kept.recorder is not None:
            self._kept.recorder.note_event(kind, data)

    def row(self, kind: str, body: Mapping[str, Any]) -> bool:
        """A row of the genealogy that is no part; False when it could not be stored, which is told."""
        self.note(kind, body)
        if self._kept.rows is None:
            return False
        try:
            self._kept.rows.append(kind, body)
        except GenealogyError as error:
            self.alarm("genealogy", "error", str(error), "Free space on the state disk or replace it.")
            return False
        self.over("genealogy")
        return True

    def _watch_refusals(self, inspection: Inspection) -> None:
        camera, cause = inspection.frame.camera, inspection.gate.cause
        code = f"refusing_{camera}"
        if cause is None:
            if self._streaks.passed(camera):
                self.over(code)
        elif self._streaks.refused(camera):
            text = f"camera {camera} has its frames refused in a row: {cause.value}"
            self.alarm(code, "warning", text, inspection.gate.advice)

    def _watch_stream(self, inspection: Inspection) -> None:
        """Let drift and trends see the frame, now that its part is settled."""
        if self._watch is None:
            return
        began_ns = self._clock.mono_ns()
        try:
            notices = self._watch.look(inspection)
        except Exception as error:  # what watches the line must not stop it
            log.debug("the stream could not be watched", exc_info=True)
            text = f"frames are not watched for drift: {type(error).__name__}: {error}"
            self.alarm("drift_watch", "warning", text, "Restart the daemon; report it.")
            return
        self.over("drift_watch")
        self._window.note("watch", (self._clock.mono_ns() - began_ns) / 1e6)
        for notice in notices:
            if notice.alarm is None:
                self.over(notice.code)
            else:
                self.alarm(notice.code, notice.alarm.severity, notice.alarm.text, notice.alarm.advice)
        if notices:
            self.tell_drift()

    def tell_drift(self) -> None:
        """Publish how each camera's stream stands where that is news; retained, so that who comes later knows it."""
        for message in self._watch.messages() if self._watch is not None else ():
            moved = tuple((m.signal, m.direction) for m in message.moved)
            tenths = 10 * message.learned // max(1, message.wanted)
            news = (message.status, moved, tuple(message.blind), message.forecast, tenths)
            if self._told_drift.get(message.camera) != news:
                self._told_drift[message.camera] = news
                self._wire.live(self._topics.camera(message.camera, "drift"), message, retain=True)

    def _show(self, inspection: Inspection) -> None:
        """Publish the annotated image, at the agreed rate and only when somebody can hear it."""
        every_s, camera, now = self._publishing.image_every_s, inspection.frame.camera, self._clock.mono_ns()
        if every_s == 0 or now < self._image_due_ns.get(camera, 0) or not self._wire.connected():
            return
        self._image_due_ns[camera] = now + int(every_s * 1e9)
        try:
            jpeg = self._draw(inspection)
        except Exception as error:  # a picture is never worth a line that stands still
            log.warning("the image of %s cannot be shown: %s: %s", camera, type(error).__name__, error)
            return
        self._wire.live_bytes(self._topics.camera(camera, "image"), jpeg)

    def _draw(self, inspection: Inspection) -> bytes:
        serving, publishing = self._serving, self._publishing
        picture = annotate(
            inspection, serving.classes, serving.shown_from, publishing.image_width, serving.foreign_from
        )
        return to_jpeg(picture, publishing.image_quality)

    def alarm(self, code: str, severity: str, text: str, advice: str) -> None:
        """Raise an alarm: durable where the outbox takes it, and live in any case."""
        alarm = Alarm(code=code, severity=severity, text=text, advice=advice)
        if not self._alarms.begins(alarm):
            return
        log.warning("alarm %s: %s", code, text)
        topic = self._topics.alarm(code)
        try:
            self._store.add([Draft(topic, Kind.ALARM, True, alarm)], self.counts, self._durable_parts)
        except OutboxError:
            self._wire.live(topic, alarm, retain=True)

    def standing(self) -> set[str]:
        """Codes of the alarms that stand."""
        return set(self._alarms.standing)

    def over(self, code: str) -> None:
        """Take an alarm down."""
        if self._alarms.ends(code):
            log.info("alarm %s is over", code)
            self._wire.clear(self._topics.alarm(code))

    def check_kept(self) -> None:
        """Alarms of what is written beside the path, for as long as it stands."""
        pictures, recorder = self._kept.pictures, self._kept.recorder
        for code, problem in (
            ("evidence", pictures.problem() if pictures is not None else ""),
            ("recorder", recorder.problem() if recorder is not None else ""),
        ):
            if problem:
                self.alarm(code, "warning", problem, "Parts are judged and answered all the same. Look at the disk.")
            else:
                self.over(code)

    def health(self, line: LineHealth | None = None) -> Health:
        """How the station is, over the time since the last call."""
        kept = self._kept
        now = self._clock.mono_ns()
        period_s = max((now - self._window_began_ns) / 1e9, 1e-9)
        in_flight = self._captured() - self.counts.triggers
        message = Health(
            uptime_s=round((now - self._started_ns) / 1e9, 1),
            rss_bytes=rss_bytes(),
            fps=round(self._window.inspections / period_s, 2),
            ledger=self.counts,
            in_flight=in_flight,
            balanced=self.counts.balanced and in_flight >= 0,
            outbox=self._store.counts(),
            stages=self._window.summary(),
            live_dropped=self._wire.live_dropped(),
            line=line,
            evidence=kept.pictures.counts() if kept.pictures is not None else None,
            genealogy=kept.rows.counts() if kept.rows is not None else None,
            recorder=kept.recorder.counts() if kept.recorder is not None else None,
        )
        self._window.reset()
        self._window_began_ns = now
        return message

    def save(self) -> None:
        """Make the ledger durable, also when the last triggers were losses."""
        try:
            self._store.save_ledger(self.counts, self._durable_parts)
        except OutboxError as error:
            self.alarm("outbox", "error", str(error), "Free space on the state disk or replace it.")
        else:  # also without a part: a line may wait for the alarm to end before it triggers again
            self.over("outbox")


def _loss_of(part: Part) -> Loss:
    if part.loss is None:
        raise ValueError(f"part {part.number} has a verdict")
    return part.loss
