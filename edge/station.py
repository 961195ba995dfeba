"""One inspection station: takes what the cameras delivered, and settles each trigger exactly once.

Runs in the inspection thread. The outbox and the MQTT session come in through protocols.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge import event, ledger
from edge.alarms import AlarmBoard, Streaks
from edge.annotate import annotate, to_jpeg
from edge.capture.intake import Taken
from edge.clock import Clock
from edge.config import Publishing
from edge.errors import EdgeError, ImageError, OutboxError
from edge.event import Alarm, Drift, Envelope, Health, LedgerCounts, OutboxCounts, Topics
from edge.health import StageWindow, rss_bytes
from edge.outbox import Draft, Kind
from edge.pipeline import Pipeline
from edge.records import Frame, Inspection, Loss, VerdictKind
from edge.stream_watch import Notice

log = logging.getLogger(__name__)

# So many frames in a row that the model could not be run on: the process starts over rather than limp on.
FAULTS_BEFORE_RESTART = 10

# So many readable frames of a camera after an unreadable one, and its alarm is over.
FRAMES_TO_TRUST = 20


class Store(Protocol):
    """The durable side: what `Outbox` gives the station."""

    def add(self, drafts: Sequence[Draft], ledger: LedgerCounts, parts: int) -> list[int]:
        """Make messages and ledger durable together; their seq numbers."""

    def save_ledger(self, counts: LedgerCounts, parts: int) -> None:
        """Make the ledger durable on its own."""

    def counts(self) -> OutboxCounts:
        """What the outbox holds and has done."""


class Wire(Protocol):
    """The live side: what `Publisher` gives the station. Never blocks, never raises."""

    def live(self, topic: str, message: Envelope, retain: bool = False) -> None:
        """Tell what is only about now."""

    def live_bytes(self, topic: str, payload: bytes) -> bool:
        """Send an image; False when there is no connection."""

    def clear(self, topic: str) -> None:
        """Take a retained message down."""

    def connected(self) -> bool:
        """Whether somebody would hear it."""

    def live_dropped(self) -> int:
        """Live messages that nobody heard."""


class Watch(Protocol):
    """What looks at the stream of frames after their verdicts: what `StreamWatch` gives the station."""

    def look(self, inspection: Inspection) -> Sequence[Notice]:
        """Take one judged frame; the alarms that begin or end."""

    def messages(self) -> Sequence[Drift]:
        """How each camera's stream stands."""

    def save(self) -> None:
        """Make the state durable."""


@dataclass(frozen=True)
class Serving:
    """What the station says of the product it serves."""

    classes: tuple[str, ...]
    shown_from: float
    bundle_digest: str
    foreign_from: float | None = None  # cells of the anomaly map are drawn from here on


class Station:
    """Settles triggers: every frame taken becomes one verdict or one named loss, in one durable step."""

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
    ) -> None:
        """`counts` and `parts` go on from the last run; `captured` counts triggers independently of the ledger."""
        self._watch = watch
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
        self._faults_in_a_row = 0
        self._frames_since_fault: dict[str, int] = {}
        self._captured = captured
        self.counts = counts
        self.parts = parts

    def settle(self, taken: Taken) -> Inspection | None:
        """Settle one frame and the drops before it; the inspection, or None when there was no verdict.

        Raises:
            EdgeError: the model failed so often in a row that only a new process can help.
        """
        self.lose(Loss.OVERRUN, taken.overruns)
        self.lose(Loss.CAPTURE_FAULT, taken.faults)
        if taken.faults:
            self._frames_since_fault[taken.fault_camera] = 0
            text = f"camera {taken.fault_camera}: {taken.fault_text}"
            self.alarm(f"capture_{taken.fault_camera}", "warning", text, "Look at the file or the camera.")
        if taken.frame is None:
            return None
        self._note_readable(taken.frame.camera)
        inspection = self._inspect(taken.frame)
        if inspection is None or not self._commit(inspection):
            return None
        self._watch_refusals(inspection)
        self._show(inspection)
        self._watch_stream(inspection)
        return inspection

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

    def _inspect(self, frame: Frame) -> Inspection | None:
        try:
            inspection = self._pipeline.inspect(frame)
        except ImageError as error:
            self.lose(Loss.CAPTURE_FAULT, 1)
            self.alarm(f"format_{frame.camera}", "error", f"camera {frame.camera}: {error}", "Set its pixel format.")
            return None
        except Exception as error:
            self.lose(Loss.PROCESSING_FAULT, 1)
            self._faults_in_a_row += 1
            text = str(error) if isinstance(error, EdgeError) else f"{type(error).__name__}: {error}"
            log.debug("inspection failed", exc_info=True)
            where = f"frame {frame.number} of {frame.camera}"
            self.alarm("inference", "error", f"{where}: {text}", "Restart the daemon; install the bundle again.")
            if self._faults_in_a_row >= FAULTS_BEFORE_RESTART:
                raise EdgeError(f"{self._faults_in_a_row} frames in a row could not be judged, last: {text}") from error
            return None
        self._faults_in_a_row = 0
        self.over("inference")
        self.over(f"format_{frame.camera}")
        return inspection

    def _commit(self, inspection: Inspection) -> bool:
        """Make verdict and ledger durable in one transaction; without that there is no verdict."""
        frame = inspection.frame
        decided_ns = self._clock.mono_ns()
        latency_ms = (decided_ns - frame.captured_mono_ns) / 1e6
        part = self.parts + 1
        serving = self._serving
        result = event.result_of(
            inspection, part, serving.classes, serving.shown_from, serving.bundle_digest, latency_ms
        )
        drafts = [Draft(self._topics.camera(frame.camera, "result"), Kind.RESULT, False, result)]
        if inspection.verdict.kind is VerdictKind.RETAKE:
            reject = event.reject_of(inspection, part)
            drafts.append(Draft(self._topics.camera(frame.camera, "reject"), Kind.ALARM, False, reject))
        after = ledger.judged(self.counts, inspection.verdict.kind)
        try:
            self._store.add(drafts, after, part)
        except OutboxError as error:
            self.lose(Loss.PROCESSING_FAULT, 1)
            self.alarm("outbox", "error", str(error), "Free space on the state disk or replace it.")
            return False
        self.counts, self.parts = after, part
        self.over("outbox")
        commit_ms = (self._clock.mono_ns() - decided_ns) / 1e6
        self._window.add({**inspection.stage_ms, "commit": commit_ms, "latency": latency_ms})
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
            self._store.add([Draft(topic, Kind.ALARM, True, alarm)], self.counts, self.parts)
        except OutboxError:
            self._wire.live(topic, alarm, retain=True)

    def over(self, code: str) -> None:
        """Take an alarm down."""
        if self._alarms.ends(code):
            log.info("alarm %s is over", code)
            self._wire.clear(self._topics.alarm(code))

    def health(self) -> Health:
        """How the station is, over the time since the last call."""
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
        )
        self._window.reset()
        self._window_began_ns = now
        return message

    def save(self) -> None:
        """Make the ledger durable, also when the last triggers were losses."""
        try:
            self._store.save_ledger(self.counts, self.parts)
        except OutboxError as error:
            self.alarm("outbox", "error", str(error), "Free space on the state disk or replace it.")
