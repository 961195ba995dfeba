"""The composition root: builds the parts, starts them in order, runs the inspection loop, stops in reverse."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from edge import __version__, ledger, notify
from edge.bundle import slots
from edge.capture import make_source
from edge.capture.camera import CameraStatus, CameraThread
from edge.capture.intake import Intake
from edge.clock import Clock, SystemClock
from edge.config import Camera, Config, config_hash
from edge.errors import ConfigError, EdgeError, OutboxError
from edge.event import CameraState, Info, LedgerCounts, Response, State, Topics
from edge.outbox import Outbox
from edge.pipeline import Pipeline
from edge.publish import Publisher
from edge.records import Loss
from edge.serving import open_product
from edge.station import Serving, Station
from edge.tally import Tally

log = logging.getLogger(__name__)

# How long the loop waits for a frame before it looks at the stop flag, the cameras and the clock again.
TICK_S = 0.2
CAMERA_STOP_S = 3.0
PUBLISHER_STOP_S = 5.0


class StopFlag:
    """Set by SIGTERM and SIGINT, read by the loop: a signal handler does nothing else."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Take over the two signals of this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True


def run(config: Config, stop: StopFlag, clock: Clock | None = None) -> int:
    """Inspect until told to stop or until every camera has ended; 0 when it ended as it should.

    Raises:
        EdgeError: it cannot start, or cannot go on; the message is for the operator.
    """
    clock = clock or SystemClock()
    with ExitStack() as down:
        daemon = Daemon(config, clock, down)
        daemon.start()
        notify.ready(f"{daemon.product.manifest.product} on {daemon.product.runtime}")
        daemon.loop(stop)
    if not daemon.station.counts.balanced:
        raise EdgeError(f"the ledger does not balance: {daemon.station.counts}")
    return 0


class Daemon:
    """Everything one process runs. What is started is pushed on `down`, which stops it in reverse order."""

    def __init__(self, config: Config, clock: Clock, down: ExitStack) -> None:
        self._config = config
        self._clock = clock
        self._down = down
        self._boot = secrets.token_hex(4)
        self._health_due_ns = 0
        self._watchdog_due_ns = 0
        self._watchdog_s = notify.watchdog_interval_s()
        station = config.station
        self._topics = Topics(config.mqtt.prefix, station.site, station.line, station.node)
        self._cameras: list[CameraThread] = []

    def start(self) -> None:
        """Build and start, from what everything stands on to what brings the first frame."""
        config, state = self._config, Path(self._config.paths.state)
        _claim(state, self._down)
        self.product = open_product(
            _bundle_folder(config),
            config.runtime,
            recipe_file=Path(config.paths.recipe) if config.paths.recipe else None,
            trial_marks=state / "trials",
        )
        self._tally = Tally(state / "triggers")
        self._down.callback(self._tally.close)
        self._outbox = Outbox(state / "outbox.db", int(config.outbox.quota_mb * 1e6), self._boot, self._clock)
        self._down.callback(self._outbox.close)
        self._intake = Intake(on_trigger=self._tally.add)
        counts, parts = self._restore()
        self._publisher = Publisher(
            config.mqtt, self._topics, self._outbox, self._boot, self._clock, self._answer, ("status",)
        )
        self.station = self._make_station(counts, parts)
        self._publisher.start()
        self._down.callback(self._publisher.stop, PUBLISHER_STOP_S)
        self._tell_who_we_are()
        self._down.callback(self._settle_rest)
        for settings in config.camera:
            self._start_camera(settings)

    def _restore(self) -> tuple[LedgerCounts, int]:
        """The ledger as the last run left it; what it captured and never settled is lost by name."""
        counts, parts = self._outbox.ledger()
        counts = counts or ledger.empty()
        unsettled = self._tally.count - counts.triggers
        if unsettled > 0:
            log.warning("the last run ended with %d triggers unsettled: counted as lost (shutdown)", unsettled)
            counts = ledger.lost(counts, Loss.SHUTDOWN, unsettled)
            self._outbox.save_ledger(counts, parts)
        self._tally.set(counts.triggers)
        return counts, parts

    def _make_station(self, counts: LedgerCounts, parts: int) -> Station:
        product = self.product
        pipeline = Pipeline(product.detector, product.recipe, product.classes, self._clock.mono_ns)
        serving = Serving(product.classes, product.shown_from, product.digest)
        station = Station(
            pipeline,
            serving,
            self._outbox,
            self._publisher,
            self._topics,
            self._clock,
            self._config.publish,
            counts,
            parts,
        )
        if self._outbox.set_aside:
            station.alarm(
                "outbox_set_aside",
                "error",
                f"the outbox was damaged and has been set aside as {self._outbox.set_aside}",
                "Keep the file for recovery; check the disk.",
            )
        return station

    def _tell_who_we_are(self) -> None:
        config, product = self._config, self.product
        self._publisher.live(self._topics.state, State(state="running"), retain=True)
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
        log.info("serving %s on %s", info.bundle, info.runtime)

    def _start_camera(self, settings: Camera) -> None:
        camera = CameraThread(settings, make_source(settings), self._intake, self._clock, self._tell_camera)
        self._cameras.append(camera)
        camera.start()
        self._down.callback(camera.stop, CAMERA_STOP_S)

    def _tell_camera(self, status: CameraStatus) -> None:
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
        first = True
        while not stop.requested:
            taken = self._intake.take(TICK_S)
            if taken is not None and self.station.settle(taken) is not None and first:
                first = False
                log.info("first verdict")
            self._housekeeping()
            if taken is None and all(camera.status().state == "ended" for camera in self._cameras):
                log.info("every camera has ended")
                break
        notify.stopping()

    def _housekeeping(self) -> None:
        now = self._clock.mono_ns()
        if now >= self._health_due_ns:
            self._health_due_ns = now + int(self._config.publish.health_s * 1e9)
            self.station.save()
            self._publisher.live(self._topics.health, self.station.health())
        if self._watchdog_s and now >= self._watchdog_due_ns and self._all_alive():
            self._watchdog_due_ns = now + int(self._watchdog_s / 3 * 1e9)
            notify.watchdog()

    def _all_alive(self) -> bool:
        return self._publisher.alive() and all(camera.alive() for camera in self._cameras)

    def _settle_rest(self) -> None:
        """After the cameras have stopped: what is left becomes a named loss, and the last word is said."""
        self._intake.close()
        if (taken := self._intake.take(0)) is not None:
            self.station.settle(taken)
        self.station.lose(Loss.SHUTDOWN, self._intake.remaining())
        self.station.save()
        self._publisher.live(self._topics.health, self.station.health())
        counts = self.station.counts
        log.info("ledger: %d triggers, verdicts %s, losses %s", counts.triggers, counts.verdicts, counts.losses)

    def _answer(self, _verb: str, _payload: bytes) -> Response:
        counts, stored = self.station.counts, self._outbox.counts()
        data = {"triggers": str(counts.triggers), "balanced": str(counts.balanced).lower(), "depth": str(stored.depth)}
        return Response(transaction="", ok=True, text=f"running {self.product.runtime}", data=data)


def _bundle_folder(config: Config) -> Path:
    if config.paths.bundle:
        return Path(config.paths.bundle)
    return slots.active(Path(config.paths.state))


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


def main(load: Callable[[], Config]) -> int:
    """What `edge run` does: signals first, so that a stop during the start is not lost."""
    stop = StopFlag()
    stop.install()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return run(load(), stop)
