"""What watches every camera's stream beside the verdicts: drift, its evidence, and where the lens is heading.

Runs in the inspection thread, after a part's verdict is durable: it changes none and delays none. It keeps its state
and the images that show a drift best in a folder of its own, so that a restart neither forgets nor begins anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from edge.clock import Clock
from edge.drift.monitor import DriftMonitor
from edge.drift.report import REMEDIES, Event, EventKind, evidence_name
from edge.drift_watch import DriftWatch
from edge.errors import ConfigError, PredictorError
from edge.event import Alarm, Drift
from edge.files import write_whole
from edge.judges import Judges
from edge.recipe import Recipe
from edge.records import Inspection
from edge.trend import Forecast, Limits, Trend, Update

log = logging.getLogger(__name__)

STATE = "state.json"
SAVE_EVERY_S = 60.0
FORECAST_EVERY_S = 60.0
JPEG_QUALITY = 90
# What happened once is shown for so many frames: long enough for a person to see it.
MOMENT_FRAMES = 200
# So many answers of an autoencoder after one that failed, and its alarm is over.
ANSWERS_TO_TRUST = 20
# These are told by the report (`no baseline`, `learning`), and are no alarm: a new line begins so.
QUIET = (EventKind.NO_BASELINE, EventKind.LEARNED)
MOMENTS = (EventKind.RESOLUTION, EventKind.CONSTANT, EventKind.CLOCK, EventKind.STATE)


@dataclass(frozen=True)
class Notice:
    """An alarm that begins, or the end of one.

    Attributes:
        code: of the alarm. alarm: what it says; None when it is over.
    """

    code: str
    alarm: Alarm | None


class CameraWatch:
    """One camera's drift and trend; `model` names the detector whose answers are watched."""

    def __init__(
        self, camera: str, judges: Judges, recipe: Recipe, classes: Sequence[str], folder: Path, model: str = ""
    ) -> None:
        self.camera = camera
        self._model = model
        bundle = judges.drift if recipe.drift.baseline == "bundle" else None
        spec = judges.drift.autoencoder if judges.drift is not None else None
        self.monitor = DriftMonitor(camera, bundle, classes, autoencoder=spec)
        self.trend = Trend()
        self.forecast: Forecast | None = None
        self._drift = DriftWatch(self.monitor, judges.autoencoder, recipe.drift.every)
        self._folder = folder
        self._limits = _limits(judges, recipe)
        self._moments: dict[str, int] = {}  # alarm -> frames until it is over
        self._blind: set[str] = set()
        self._forecast_due_ns = 0
        self._own = False  # the line's own baseline was asked for, also where the bundle has one
        self._answers_wanted = 0  # of an autoencoder that failed, until it is trusted again

    def restore(self, state: Any) -> list[Notice]:
        """Go on from what `state` gave; what cannot be used is told and begins anew."""
        notices: list[Notice] = []
        given = state if isinstance(state, dict) else {}
        if given.get("model", self._model) != self._model:  # what it finds and its features are other ones
            code = f"drift_{self.camera}_{EventKind.STATE.value}"
            self._moments[code] = MOMENT_FRAMES
            notices.append(_notice(code, f"{self.camera}: the model is a new one: drift is watched anew", ""))
        else:
            if given.get("own") is True:
                self._own = True
                self.monitor.relearn()
            for event in self.monitor.restore(given.get("drift")):
                notices += self._notices(event)
        try:
            trend = given.get("trend")
            self.trend.restore(trend if isinstance(trend, dict) else {})
        except ConfigError as error:
            log.warning("camera %s: %s", self.camera, " ".join(str(error).split()))
        return notices

    def state(self) -> dict[str, Any]:
        """All that the next frames depend on, as JSON has it."""
        kept = {"model": self._model, "own": self._own}
        return {**kept, "drift": self.monitor.state(), "trend": self.trend.state()}

    def relearn(self) -> list[Notice]:
        """What is now is to count as good from here on: learn the baseline anew; the alarms that end with that."""
        over = [Notice(f"drift_{self.camera}_{moved.signal}", None) for moved in self.monitor.report().moved]
        self.monitor.relearn()
        self._own = True
        return over

    def look(self, inspection: Inspection, now_ns: int) -> list[Notice]:
        """Take one frame; the alarms that begin or end."""
        notices = [*self._over(), *self._ask_drift(inspection)]
        self._keep_evidence(inspection)
        height, width = inspection.frame.image.shape[:2]
        outcome = self.trend.update(inspection.gate, inspection.frame.captured_ts, (height, width))
        if outcome is not Update.COUNTED:
            log.info("camera %s: trend: %s", self.camera, outcome.value)
        if now_ns >= self._forecast_due_ns:
            self._forecast_due_ns = now_ns + int(FORECAST_EVERY_S * 1e9)
            notices += self._ask_trend()
        return notices

    def _ask_drift(self, inspection: Inspection) -> Iterator[Notice]:
        code = f"drift_{self.camera}_autoencoder"
        try:
            events = self._drift.look(inspection)
        except PredictorError as error:
            failing, self._answers_wanted = self._answers_wanted > 0, ANSWERS_TO_TRUST
            if not failing:
                yield _notice(code, f"{self.camera}: {error}", "Restart the daemon; install the bundle again.")
            events = self.monitor.update(inspection, inspection.features)
        else:
            if self._answers_wanted and self._drift.answered:
                self._answers_wanted -= 1
                if not self._answers_wanted:
                    yield Notice(code, None)
        for event in events:
            log.info("drift: %s", event.text)
            yield from self._notices(event)
        blind = set(self.monitor.report().blind) if self._blind else set()
        for signal in sorted(self._blind - blind):
            self._blind.discard(signal)
            yield Notice(f"drift_{self.camera}_{signal}_unseen", None)

    def _notices(self, event: Event) -> Iterator[Notice]:
        if event.kind in QUIET:
            return
        code = f"drift_{self.camera}_{event.signal or event.kind.value}"
        if event.kind in (EventKind.INVALID, EventKind.UNMEASURED):
            self._blind.add(event.signal)
            code += "_unseen"
        if event.kind in MOMENTS:
            shown, self._moments[code] = code in self._moments, MOMENT_FRAMES
            if shown:  # frames of two sizes in turn are one alarm, not one a frame
                return
        yield Notice(code, None) if event.kind is EventKind.RECOVERED else _notice(code, event.text, event.advice)

    def _over(self) -> list[Notice]:
        """The alarms of moments that have been shown long enough; one that lasts is shown as long as it does."""
        constant = f"drift_{self.camera}_{EventKind.CONSTANT.value}"
        if self.monitor.constant and constant in self._moments:
            self._moments[constant] = MOMENT_FRAMES + 1
        self._moments = {code: left - 1 for code, left in self._moments.items()}
        gone = [code for code, left in self._moments.items() if left <= 0]
        for code in gone:
            del self._moments[code]
        return [Notice(code, None) for code in gone]

    def _ask_trend(self) -> list[Notice]:
        before, self.forecast = self.forecast, self.trend.forecast(self._limits)
        code = f"trend_{self.camera}"
        if self.forecast is None:
            return [Notice(code, None)] if before is not None else []
        advice = "Plan it for the next break; the report of drift has what has moved."
        return [_notice(code, f"{self.camera}: {self.forecast.text}", advice)]

    def _keep_evidence(self, inspection: Inspection) -> None:
        """Keep the image where it shows a drift better than those before, and drop those that it displaces."""
        if not self.monitor.kept:
            return
        kept = [(moved.signal, ref) for moved in self.monitor.report().moved for ref in moved.kept]
        wanted = {evidence_name(signal, ref) for signal, ref in kept}
        frame = inspection.frame
        this = (frame.number, frame.captured_ts)
        newest = {evidence_name(signal, ref) for signal, ref in kept if (ref.number, ref.captured_ts) == this}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            ok, jpeg = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            for name in newest if ok else ():
                (self._folder / name).write_bytes(jpeg.tobytes())
            for path in self._folder.glob("*.jpg"):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
        except OSError as error:  # evidence is worth having, and never worth a line that stands still
            log.warning("evidence of drift cannot be kept in %s: %s", self._folder, error.strerror or error)

    def message(self) -> Drift:
        """How the stream stands, as it is published."""
        report = self.monitor.report()
        return Drift(
            camera=self.camera,
            status=report.status,
            origin=report.origin,
            frames=report.frames,
            learned=report.learned,
            wanted=report.wanted,
            arl0=report.arl0,
            blind=report.blind,
            moved=report.moved,
            advice=report.advice,
            text=report.text,
            forecast=self.forecast.text if self.forecast else "",
            evidence=str(self._folder) if report.moved else "",
        )


class StreamWatch:
    """All cameras of the station.

    Args:
        judges, recipe, classes: of the product.
        folder: of its state and evidence; another process must not use it.
        before: a folder below which earlier detectors have theirs: one without a state goes on with the latest of them,
            as far as that does not depend on the detector (the lens and the light do not).
        model: names the detector; what was learned of another one's answers is not taken for a baseline.
    """

    def __init__(
        self,
        judges: Judges,
        recipe: Recipe,
        classes: Sequence[str],
        folder: Path,
        clock: Clock,
        model: str = "",
        before: Path | None = None,
    ) -> None:
        self._model = model
        self._before = before
        self._judges = judges
        self._recipe = recipe
        self._classes = tuple(classes)
        self._folder = folder
        self._clock = clock
        self._cameras: dict[str, CameraWatch] = {}
        self._relearn = False
        self._kept = self._read()
        self._save_due_ns = clock.mono_ns() + int(SAVE_EVERY_S * 1e9)

    def ask_relearn(self) -> None:
        """Have every camera learn its baseline anew, from its next frame on; may be asked in any thread."""
        self._relearn = True

    def look(self, inspection: Inspection) -> list[Notice]:
        """Take one judged frame; the alarms that begin or end."""
        camera, notices = inspection.frame.camera, list[Notice]()
        watch = self._cameras.get(camera)
        if watch is None:
            folder = self._folder / camera
            watch = CameraWatch(camera, self._judges, self._recipe, self._classes, folder, self._model)
            self._cameras[camera] = watch
            if camera in self._kept:
                notices += watch.restore(self._kept[camera])
        if self._relearn:
            self._relearn = False
            notices += [notice for each in self._cameras.values() for notice in each.relearn()]
            self.save()
        notices += watch.look(inspection, self._clock.mono_ns())
        if self._clock.mono_ns() >= self._save_due_ns:
            self.save()
        return notices

    def messages(self) -> list[Drift]:
        """How each camera's stream stands."""
        return [watch.message() for watch in self._cameras.values()]

    def standing(self) -> list[Notice]:
        """The alarms of what has moved, to be said once more where they were taken down meanwhile."""
        return [
            _notice(f"drift_{watch.camera}_{moved.signal}", f"{watch.camera}: {moved.text}", REMEDIES[moved.advice])
            for watch in self._cameras.values()
            for moved in watch.monitor.report().moved
        ]

    def save(self) -> None:
        """Make the state durable, whole or not at all; what fails is tried again in a minute."""
        self._save_due_ns = self._clock.mono_ns() + int(SAVE_EVERY_S * 1e9)
        kept = {**self._kept, **{camera: watch.state() for camera, watch in self._cameras.items()}}
        path = self._folder / STATE
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(kept).encode())
        except OSError as error:
            log.warning("the state of drift cannot be written to %s: %s", path, error.strerror or error)

    def _read(self) -> dict[str, Any]:
        path = self._folder / STATE
        if self._before is not None and not path.exists():
            path = max(self._before.glob(f"*/{STATE}"), key=_changed_ns, default=path)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("the state of drift in %s cannot be read, watching begins anew: %s", path, error)
            return {}
        return kept if isinstance(kept, dict) else {}


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _notice(code: str, text: str, advice: str) -> Notice:
    return Notice(code, Alarm(code=code, severity="warning", text=text, advice=advice))


def _limits(judges: Judges, recipe: Recipe) -> Limits:
    """What the gate would refuse is what the trend must not reach."""
    dirt = judges.gate.limit("dirty_lens") if judges.gate is not None else None
    gate = recipe.gate
    return Limits(gate.sharpness_min, gate.brightness_min, gate.brightness_max, dirt)
