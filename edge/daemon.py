"""The composition root: builds the parts, starts them in order, runs the inspection loop, stops in reverse."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import secrets
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edge import __version__, notify
from edge.bundle import slots, trust_floor
from edge.bundle_state import BundleTeller, unmanaged
from edge.capture import make_source
from edge.capture.camera import CameraState as CaptureState
from edge.capture.camera import CameraStatus, CameraThread
from edge.capture.intake import Intake
from edge.changeover import Changeover
from edge.clock import Clock, SystemClock
from edge.config import Camera, Config, config_hash
from edge.errors import DEBUG_VARIABLE, ConfigError, EdgeError, GenealogyError, OutboxError, UsageError
from edge.event import Books, CameraState, Info, LedgerCounts, Response, State, Topics
from edge.fronts import FreeRunning, Front
from edge.incumbent import Incumbent, make_incumbent
from edge.keeping import open_kept, restore
from edge.keeping import serve as serve_kept
from edge.line_care import LineCare, override
from edge.outbox import Outbox
from edge.plc.desk import Desk
from edge.predictor import trial_limit_s
from edge.publish import Publisher
from edge.pulse import Pulse
from edge.serving import Product, opening
from edge.station import Station
from edge.stop import StopFlag
from edge.tally import Tally
from edge.update_child import Updates

if TYPE_CHECKING:
    from edge.plc.link import Link

log = logging.getLogger(__name__)

# How long the loop waits for a frame before it looks at the stop flag, the cameras and the clock again.
TICK_S = 0.2
CAMERA_STOP_S = 3.0
PUBLISHER_STOP_S = 5.0
LINK_STOP_S = 3.0
CAMERAS_START_S = 10.0  # a station with a PLC is Ready then at the latest
LOOK_S = 0.2  # how often the loop looks at what goes on beside the parts
STEP_S = 60.0  # of opening a bundle, beside the trial of its model
QUIET_S = 1.0  # how long what takes a while waits at most for a moment without a part in hand
VERBS = ("status", "relearn", "recipe", "override", "update", "rollback")


def run(config: Config, stop: StopFlag, clock: Clock | None = None, config_file: Path | None = None) -> int:
    """Inspect until told to stop or until every camera has ended; 0 when it ended as it should.

    Args:
        config_file: where the config was read from; None: it was made by the program.

    Raises:
        EdgeError: it cannot start, or cannot go on; the message is for the operator.
    """
    clock = clock or SystemClock(_accepted_ts(Path(config.paths.state)))
    with ExitStack() as down:
        daemon = Daemon(config, clock, down, config_file)
        daemon.start()
        notify.ready(f"{daemon.product.manifest.product} on {daemon.product.runtime}")
        daemon.loop(stop)
    daemon.check_books()
    daemon.note_stop()
    return 0


class Daemon:
    """Everything one process runs. What is started is pushed on `down`, which stops it in reverse order."""

    def __init__(self, config: Config, clock: Clock, down: ExitStack, config_file: Path | None = None) -> None:
        self._config_file = config_file
        self._config = config
        self._clock = clock
        self._down = down
        self._boot = secrets.token_hex(4)
        self._health_due_ns = self._look_due_ns = 0
        self._desk_open = self._old_rows = False
        self._told_books: tuple[LedgerCounts, int] | None = None
        self._watchdog_due_ns = 0
        self._watchdog_s = notify.watchdog_interval_s()
        self._pulse = Pulse(notify.status, self._watchdog_s)
        self._told_hung: frozenset[str] = frozenset()
        station = config.station
        self._topics = Topics(config.mqtt.prefix, station.site, station.line, station.node)
        self._cameras: list[CameraThread] = []

    def start(self) -> None:
        """Build and start, from what everything stands on to what brings the first frame."""
        config, state = self._config, Path(self._config.paths.state)
        _claim(state, self._down)
        # Counted before anything of the bundle is loaded: one that kills the process goes back after three starts.
        self._began = slots.note_start(state) if not config.paths.bundle else None
        product = self._open(self._began.slot if self._began is not None else Path(str(config.paths.bundle)))
        self._tally = Tally(state / "triggers")
        self._down.callback(self._tally.close)
        self._outbox = Outbox(state / "outbox.db", int(config.outbox.quota_mb * 1e6), self._boot, self._clock)
        self._down.callback(self._outbox.close)
        self.incumbent = make_incumbent(config, product, self._clock)
        self._kept, self._genealogy = open_kept(config, product, self._clock, self._boot, self._down)
        self._down.callback(self._save_watch)
        self._updates = Updates(self._config_file, state)
        self._updates.note_interrupted()
        counts, parts = restore(self._outbox, self._tally, self._genealogy)
        self._publisher = Publisher(
            config.mqtt, self._topics, self._outbox, self._boot, self._clock, self._answer, VERBS
        )
        self.station = self._make_station(counts, parts)
        self._make_front()
        self._make_changeover(state)
        self._publisher.start()
        self._down.callback(self._publisher.stop, PUBLISHER_STOP_S)
        self._tell_who_we_are()
        self._down.callback(self._last_words)
        self._down.callback(self._updates.stop)
        if self._link is not None:
            self._link.start()
            self._down.callback(self._link.stop, LINK_STOP_S)
        self._down.callback(self._front.finish)
        self._down.callback(self._stop_cameras)
        for settings in config.camera:
            self._start_camera(settings)
        self._start_pulse()

    def _open(self, folder: Path) -> Product:
        """Open the bundle; systemd is asked for as much time as a step may take, since a model may have to be built."""
        config = self._config
        steps = opening(
            folder,
            config.runtime,
            recipe_file=Path(config.paths.recipe) if config.paths.recipe else None,
            recipe_folder=Path(config.paths.recipes) if config.paths.recipes else None,
            cameras=[camera.id for camera in config.camera],
            trial_marks=Path(config.paths.state) / "trials",
        )
        while True:
            notify.extend_timeout(trial_limit_s(config.runtime.providers) + STEP_S, "opening the bundle")
            try:
                next(steps)
            except StopIteration as done:
                product: Product = done.value
                return product

    def _make_station(self, counts: LedgerCounts, parts: int) -> Station:
        station = Station(
            self.incumbent.pipeline,
            self.incumbent.serving,
            self._outbox,
            self._publisher,
            self._topics,
            self._clock,
            self._config.publish,
            counts,
            parts,
            lambda: self._tally.count,
            self.incumbent.watch,
            self._kept,
        )
        if self._genealogy is not None and self._genealogy.set_aside:
            aside = self._genealogy.set_aside
            text = f"the genealogy was damaged and has been set aside as {aside}; a new chain begins"
            station.alarm("genealogy_set_aside", "error", text, "Keep the file; check the disk.")
        if self._outbox.set_aside:
            station.alarm(
                "outbox_set_aside",
                "error",
                f"the outbox was damaged and has been set aside as {self._outbox.set_aside}; counts begin anew",
                "Keep the file for recovery; check the disk.",
            )
        return station

    def _make_front(self) -> None:
        """How parts come: from the cameras alone, or as the PLC says."""
        self._link: Link | None = None
        self._care: LineCare | None = None
        self._desk: Desk | None = None
        if self._config.plc is None:
            self._front: Front = FreeRunning(Intake(on_trigger=self._tally.add), self.station)
            return
        from edge.line_assembly import make_line  # only a line with a PLC needs what it imports

        made = make_line(
            self._config, self.incumbent, self.station, self._publisher, self._topics, self._clock, self._tally.add,
            self._meanwhile,
        )  # fmt: skip
        self._front, self._care, self._desk, self._link = made.front, made.care, made.desk, made.link

    @property
    def product(self) -> Product:
        """What is in charge."""
        return self.incumbent.product

    def _save_watch(self) -> None:
        if self.incumbent.watch is not None:
            self.incumbent.watch.save()

    def _make_changeover(self, state: Path) -> None:
        """Bundles of the state folder come and go; one that the config names stays."""
        self._changeover: Changeover | None = None
        self._teller: BundleTeller | None = None
        if self._began is None:
            return
        self._changeover = Changeover(
            self._config, self.incumbent, self._began, self.station, self._front, self._topics, self._clock, self._seat
        )
        self.station.beside = self._changeover
        self._teller = BundleTeller(state, self._changeover, self._publisher, self._topics, self._clock)

    def _seat(self, incumbent: Incumbent) -> None:
        """Put another product in charge, between two parts."""
        self.incumbent = incumbent
        serve_kept(self._kept, self._config, incumbent.product, self._boot)
        self.station.serve(incumbent.pipeline, incumbent.serving, incumbent.watch)
        self._front.serve(incumbent)
        self._tell_info()

    def _tell_who_we_are(self) -> None:
        self._publisher.live(self._topics.state, State(state="running"), retain=True)
        info, manifest = self._tell_info(), self.product.manifest
        if self._teller is None:
            alone = unmanaged(manifest.product, manifest.version, self.product.digest)
            self._publisher.live(self._topics.bundle, alone, retain=True)
        body = {"version": __version__, "bundle": self.product.digest, "config_hash": info.config_hash}
        self.station.row("start", body)
        log.info("serving %s on %s", info.bundle, info.runtime)

    def _tell_info(self) -> Info:
        config, product = self._config, self.product
        info = Info(
            version=__version__,
            python=platform.python_version(),
            machine=platform.machine(),
            runtime=product.runtime,
            bundle=f"{product.manifest.product} {product.manifest.version}",
            bundle_digest=product.digest,
            config_hash=config_hash(config),
            classes=list(product.classes),
            cameras=[camera.id for camera in config.camera],
        )
        self._publisher.live(self._topics.info, info, retain=True)
        return info

    def _start_camera(self, settings: Camera) -> None:
        camera = CameraThread(settings, make_source(settings), self._front.sink, self._clock, self._tell_camera)
        self._cameras.append(camera)
        camera.start()

    def _stop_cameras(self) -> None:
        """All at once: a driver that hangs costs its time limit once, and no camera captures for nobody meanwhile."""
        for camera in self._cameras:
            camera.ask_stop()
        limit_ns = self._clock.mono_ns() + int(CAMERA_STOP_S * 1e9)
        for camera in self._cameras:
            if not camera.stop(max(0.0, (limit_ns - self._clock.mono_ns()) / 1e9)):
                log.warning("camera %s hangs in its driver and is left behind", camera.status().camera)

    def _tell_camera(self, status: CameraStatus) -> None:
        """Called in the camera's thread on each change."""
        log.info("camera %s: %s %s", status.camera, status.state.value, status.detail)
        message = CameraState(
            camera=status.camera,
            state=status.state,
            detail=status.detail,
            frames=status.frames,
            reopened=status.reopened,
        )
        self._publisher.live(self._topics.camera(status.camera, "state"), message, retain=True)

    def loop(self, stop: StopFlag) -> None:
        """The inspection loop: this thread made the predictor and is the only one to run it."""
        self._stop = stop
        self._open_by_ns = self._clock.mono_ns() + int(CAMERAS_START_S * 1e9)
        parts: int | None = self.station.parts
        while not stop.requested:
            # Looked at before the wait: what an ending camera delivers last is still taken.
            ended = all(camera.status().state is CaptureState.ENDED for camera in self._cameras)
            came = self._front.turn(TICK_S)
            self._pulse.turn()
            if parts is not None and self.station.parts > parts:
                parts = None
                log.info("first verdict")
            if self._changeover is not None:
                self._changeover.turn()
            self._housekeeping()
            if not came and ended and self._care is None:  # a PLC goes on to be answered
                log.info("every camera has ended")
                break
        notify.stopping()

    def _meanwhile(self) -> bool:
        """Called by the front while it waits for a frame; True: stop."""
        self._housekeeping()
        return self._stop.requested

    def _open_desk(self, now_ns: int) -> None:
        """Ready for the PLC as soon as every camera delivers; a dead one does not keep the others from working."""
        if self._desk is None or self._desk_open:
            return
        fired = {camera.id for camera in self._config.camera if camera.pairing == "counter"}  # silent before the first
        states = {camera.status().camera: camera.status().state for camera in self._cameras}
        deliver = all(state is CaptureState.STREAMING for camera, state in states.items() if camera not in fired)
        if deliver or now_ns >= self._open_by_ns:
            self._desk_open = True
            self._desk.open()

    def _watch_cameras(self) -> None:
        """A camera that gives no frames is an alarm for as long as it does not."""
        for camera in self._cameras:
            status = camera.status()
            code = f"camera_{status.camera}"
            if status.state in (CaptureState.STALLED, CaptureState.RECONNECTING):
                text = f"camera {status.camera} is {status.state.value}: {status.detail}"
                self.station.alarm(code, "error", text, "Check its cable, power and address.")
            elif status.state is CaptureState.ENDED and self._desk is not None:
                advice = "No part has a frame of it any more: put its source right and start the service again."
                self.station.alarm(code, "error", f"camera {status.camera} has ended: {status.detail}", advice)
            elif status.state in (CaptureState.STREAMING, CaptureState.ENDED):
                self.station.over(code)

    def _housekeeping(self) -> None:
        now = self._clock.mono_ns()
        if now >= self._look_due_ns:
            self._look_due_ns = now + int(LOOK_S * 1e9)
            self._watch_cameras()
            self._open_desk(now)
            self._front.tick()
            self._prune()
            self.station.check_kept()
            self._tell_books()
            if self._teller is not None:
                self._teller.tick()
        waited_s = (now - self._health_due_ns) / 1e9
        if waited_s >= QUIET_S or (waited_s >= 0 and not self._is_busy()):
            self._health_due_ns = now + int(self._config.publish.health_s * 1e9)
            self.station.save()
            self._raise_floor()
            self._publisher.live(self._topics.health, self.station.health(self._front.health()))
            self.station.tell_drift()
            self._old_rows = self._genealogy is not None
        self._feed_watchdog(now)

    def _raise_floor(self) -> None:
        """A process of its own may have accepted newer metadata meanwhile: no clock behind it is right."""
        if isinstance(self._clock, SystemClock):
            self._clock.raise_floor(_accepted_ts(Path(self._config.paths.state)))

    def _is_busy(self) -> bool:
        """Whether a part waits for its answer: this also runs while one waits for its frames."""
        return self._desk is not None and self._desk.signals().busy

    def _prune(self) -> None:
        """Let old rows go, some at a time and while no part waits: it takes tens of milliseconds."""
        if self._genealogy is None or not self._old_rows or self._is_busy():
            return
        try:
            self._old_rows = self._genealogy.prune(self._clock.ts()) > 0
        except GenealogyError as error:
            self._old_rows = False
            log.warning("old rows of the genealogy stay: %s", error)

    def _tell_books(self) -> None:
        """The ledger, whenever it has changed."""
        counts, in_flight = self.station.counts, self._tally.count - self.station.counts.triggers
        if (counts, in_flight) != self._told_books:
            self._told_books = counts, in_flight
            books = Books(ledger=counts, in_flight=in_flight, balanced=counts.balanced and in_flight >= 0)
            self._publisher.live(self._topics.ledger, books, retain=True)

    def _start_pulse(self) -> None:
        """What the watchdog stands for: frames come in, are judged, stored, answered and sent.

        Requests, evidence and recorder are beside that: one that hangs is an alarm, but parts are judged and answered
        all the same, and a restart would stop the line for them.
        """
        pulse, kept = self._pulse, self._kept
        for beat in (*(camera.beat for camera in self._cameras), self._outbox.beat, self._publisher.beat):
            pulse.watch(beat)
        if self._link is not None:
            pulse.watch(self._link.beat)
        pulse.watch(self._publisher.beat_of_requests, vital=False)
        for writer in (kept.pictures, kept.recorder):
            if writer is not None:
                pulse.watch(writer.beat, vital=False)
        pulse.start()
        self._down.callback(pulse.stop)

    def _feed_watchdog(self, now_ns: int) -> None:
        """A sign of life for the service manager, from this thread and only while every other one moves."""
        self._outbox.check()
        hung = self._pulse.named()
        if "hung_outbox" not in hung:  # an alarm is stored there
            for code, text in hung.items():
                self.station.alarm(code, "error", text, "Look into the log of the service; report it.")
            for code in self._told_hung.difference(hung):
                self.station.over(code)
            self._told_hung = frozenset(hung)
        if self._watchdog_s and now_ns >= self._watchdog_due_ns and self._pulse.fit():
            self._watchdog_due_ns = now_ns + int(self._watchdog_s / 3 * 1e9)
            notify.watchdog()

    def _last_words(self) -> None:
        """After everything that brings or answers parts has stopped."""
        self._front.tick()  # the link may have said its last answers too late
        self.station.save()
        self._tell_books()
        self._publisher.live(self._topics.health, self.station.health(self._front.health()))
        counts = self.station.counts
        self.station.row("stop", {"triggers": counts.triggers, "balanced": counts.balanced})
        log.info("ledger: %d triggers, verdicts %s, losses %s", counts.triggers, counts.verdicts, counts.losses)

    def check_books(self) -> None:
        """After the stop: two independent counts of the triggers must agree.

        Raises:
            EdgeError: they do not; something was counted twice or never.
        """
        counts, captured = self.station.counts, self._tally.count
        if not counts.balanced or counts.triggers != captured:
            raise EdgeError(f"the ledger does not balance: {captured} triggers captured, settled are {counts}")

    def note_stop(self) -> None:
        """An ordered stop says nothing against a bundle on trial."""
        if self._began is not None:
            try:
                slots.note_stop(Path(self._config.paths.state))
            except EdgeError as error:
                log.warning("%s", error)

    def _answer(self, verb: str, payload: bytes) -> Response:
        if verb == "relearn":
            return self._relearn()
        if verb in ("update", "rollback"):
            if self._began is None:
                raise UsageError("the config names the bundle (paths.bundle): take that out, and bundles are installed")
            return self._updates.update(payload) if verb == "update" else self._updates.rollback(payload)
        if verb == "override":
            return override(self._genealogy, payload)
        if verb == "recipe":
            if self._care is None:
                raise UsageError("recipes are chosen by a PLC's triggers, and the config has no [plc]")
            return self._care.set_recipe(payload)
        counts, stored = self.station.counts, self._outbox.counts()
        data = {"triggers": str(counts.triggers), "balanced": str(counts.balanced).lower(), "depth": str(stored.depth)}
        return Response(transaction="", ok=True, text=f"running {self.product.runtime}", data=data)

    def _relearn(self) -> Response:
        """What the frames are like now is to count as good: for after new lamps, a new lens, a new material."""
        watch = self.incumbent.watch
        if watch is None:
            return Response(transaction="", ok=False, text="drift is not watched: the recipe says drift.use = false")
        watch.ask_relearn()
        text = "each camera learns its drift baseline anew from its next good frames: make sure that they are good"
        return Response(transaction="", ok=True, text=text)


def _accepted_ts(state: Path) -> float:
    """When the newest metadata was signed that this box has accepted; 0.0: none yet."""
    return trust_floor.read(state / trust_floor.FOLDER).time


def _claim(state: Path, down: ExitStack) -> None:
    """Make the state folder and hold its lock: two daemons on one outbox would lose messages."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    except OSError as error:
        raise OutboxError(
            f"the state folder {state} cannot be used: {error.strerror}; "
            "set paths.state to a folder this user can write"
        ) from error
    down.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(str(state), ["another edge daemon uses this state folder; stop it first"]) from error


def main(load: Callable[[], Config], stop: StopFlag, config_file: Path | None = None) -> int:
    """What `edge run` does."""
    level = logging.DEBUG if os.environ.get(DEBUG_VARIABLE) else logging.INFO
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return run(load(), stop, config_file=config_file)
