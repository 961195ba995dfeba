"""One camera's stream against its baseline: what has moved, what is wrong with the stream, what cannot be said.

Pure: time comes with the frames, whoever calls keeps the state and writes what is to be kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from edge.boxes import Float
from edge.drift import settings, signals
from edge.drift.detectors import Outcome
from edge.drift.history import History
from edge.drift.learn import Learner, Learning
from edge.drift.plan import OF_THE_LINE
from edge.drift.report import REMEDIES, DriftReport, Event, EventKind, Moved, since_words, summarise
from edge.drift.settings import Autoencoder, DriftSettings
from edge.drift.watch import Watch
from edge.errors import EdgeError
from edge.records import Frame, Inspection

STATE_FORMAT: Final = 1
# The wall clock may differ by so much from what the monotonic clock says has passed.
CLOCK_TOLERANCE_S: Final = 60.0
# A signal that was not measured for so many frames is not watched, whatever the last outcome was.
MOST_UNMEASURED: Final = 500
# One frame of one grey is a bad picture, which the gate refuses; so many in a row are a fault of the stream.
CONSTANT_ROW: Final = 3
# Baselines of other resolutions that are remembered, for a camera that is switched to and fro.
MOST_SIZES: Final = 4

Size = tuple[int, int]


class DriftMonitor:
    """Watches one camera.

    A frame goes through `update`, which tells what is new. Without a baseline for the frames' resolution the monitor
    says so, learns one from the first frames that the gate passes, and watches from then on. What the detector finds
    depends on the line's own share of bad parts, so that is learned there in any case.

    Args:
        camera: its id.
        bundle: the product's settings; None for a product that was never calibrated.
        classes: the detector's class names.
        learning: how a baseline is learned where there is none.
        autoencoder: input of the product's, whose error is then learned as well; the bundle's own where that is None.

    Attributes:
        kept: signals whose drift the last frame shows better than those before: its image is worth keeping.
        scores: of the last frame, by signal, in sigmas.

    >>> import numpy as np
    >>> from edge.records import Detections, GateResult, Scores, Verdict, VerdictKind
    >>> monitor, rng = DriftMonitor("cam1", None, ("open",), Learning(frames=100)), np.random.default_rng(1)
    >>> for k in range(400):
    ...     grey = np.clip(rng.normal(128 - 8 * (k >= 300), 20, (64, 64)), 0, 255).astype(np.uint8)
    ...     frame = Frame(grey, "cam1", k, k * 10**9, 1e9 + k)
    ...     gate = GateResult(True, None, 100.0, float(grey.mean()), 0.0)
    ...     judged = Inspection(frame, gate, Detections.none(), Scores(), Verdict(VerdictKind.OK))
    ...     for event in monitor.update(judged):
    ...         print(event.number, event.code, event.moved.text if event.moved else "-")
    0 drift.no_baseline -
    99 drift.learned -
    303 drift.brightness the image is darker: 127.5 -> 119.4 grey levels (-4.0 sigmas)
    """

    def __init__(
        self,
        camera: str,
        bundle: DriftSettings | None,
        classes: Sequence[str],
        learning: Learning = Learning(),  # noqa: B008 frozen
        autoencoder: Autoencoder | None = None,
    ) -> None:
        self._camera = camera
        self._bundle = bundle
        self._classes = tuple(classes)
        self._learning = learning
        self._autoencoder = autoencoder or (bundle.autoencoder if bundle else None)
        self._known: dict[Size, DriftSettings] = {(bundle.width, bundle.height): bundle} if bundle else {}
        self._previous: Frame | None = None
        self._last_ts = 0.0  # of the newest frame, over restarts
        self._ae_every = 1
        self._constant = 0  # frames of one grey in a row
        self.kept: tuple[str, ...] = ()
        self._reset(None)

    def _reset(self, size: Size | None) -> None:
        """Begin anew, for frames of this size."""
        self._size = size
        self._settings = self._known.get(size) if size else self._bundle
        self._frames = 0
        watched = self._settings.signals if self._settings else {}
        self._watches = {name: Watch(name, how) for name, how in watched.items()}
        self._learner = self._new_learner()
        self._history = History((*watched, *(self._learner.only if self._learner else ())))
        self._blind: set[str] = set()
        self.scores: Mapping[str, float] = {}

    def _new_learner(self) -> Learner | None:
        """Learns everything without a baseline, and with one what depends on the line's own bad parts."""
        if self._settings is None:
            return Learner(self._learning, self._classes, self._least_confidence())
        of_the_line = OF_THE_LINE if self._classes else ()  # without classes nothing is ever found
        lacking = [name for name in of_the_line if name not in self._settings.signals]
        how = replace(self._learning, arl0=self._settings.arl0)
        return Learner(how, self._classes, self._least_confidence(), lacking) if lacking else None

    def _least_confidence(self) -> float:
        return self._bundle.least_confidence if self._bundle else 0.3

    @property
    def constant(self) -> bool:
        """Whether the last frames were of one grey."""
        return self._constant >= CONSTANT_ROW

    @property
    def settings(self) -> DriftSettings | None:
        """What the stream is watched by now; None while learning."""
        return self._settings

    def wants_ae(self, every: int) -> bool:
        """Whether the next frame is one for the autoencoder, which looks at each `every`-th."""
        self._ae_every = every
        return self.autoencoder is not None and self._frames % every == 0

    @property
    def autoencoder(self) -> Autoencoder | None:
        """What the autoencoder is shown of a frame; None where its error is neither watched nor learned."""
        return self._settings.autoencoder if self._settings else self._autoencoder

    def update(
        self, inspection: Inspection, features: Float | None = None, ae_error: float | None = None
    ) -> list[Event]:
        """Take one frame; what is new.

        Args:
            inspection: the frame as it was judged.
            features: the detector's on it, (1, C, h, w), where its model gives them.
            ae_error: of the autoencoder, if it looked at the frame.
        """
        frame = inspection.frame
        events = [*self._check_clock(frame), *self._check_size(frame)]
        expected = self._settings.features if self._settings else None
        values = signals.measure(inspection, features, ae_error, expected, self._least_confidence())
        constant = signals.is_constant(values)
        self._constant = self._constant + 1 if constant else 0
        if self._constant == CONSTANT_ROW:
            text = f"frames are of one grey ({values['brightness']:.0f}), {CONSTANT_ROW} in a row"
            events.append(self._event(EventKind.CONSTANT, frame, text, "Check the camera, its cable and the lens cap."))
        self._frames += 1
        self.kept = ()
        if self._settings is not None:
            # The baseline knows frames that the gate passed; what it refused it has told, and that is no drift.
            events += self._watch(frame, values if inspection.gate.passed else {})
        if self._learner is not None and inspection.gate.passed and not constant:
            self._learner.add(values, features)
            events += self._learned(frame)
        return events

    def _check_clock(self, frame: Frame) -> list[Event]:
        before, self._previous = self._previous, frame
        last_ts, self._last_ts = self._last_ts, frame.captured_ts
        if before is None:  # after a restart only a step back can be told from a pause
            jump = min(0.0, frame.captured_ts - last_ts)
        else:
            passed_s = (frame.captured_mono_ns - before.captured_mono_ns) / 1e9
            jump = frame.captured_ts - before.captured_ts - passed_s
        if abs(jump) <= CLOCK_TOLERANCE_S:
            return []
        words = f"the clock went {'back' if jump < 0 else 'ahead'} by {abs(jump):.0f} s"
        if not math.isfinite(jump):
            words, self._last_ts = "the time of a frame is no number", 0.0
        advice = "Check the time server of this box."
        return [self._event(EventKind.CLOCK, frame, f"{words}: times told before are doubtful", advice)]

    def _check_size(self, frame: Frame) -> list[Event]:
        height, width = frame.image.shape[:2]
        size, before = (width, height), self._size
        if size == before:
            return []
        events = []
        expected = before or ((self._bundle.width, self._bundle.height) if self._bundle else None)
        if expected and expected != size:
            text = f"frames are {width}x{height}, and were {expected[0]}x{expected[1]}: drift is watched anew"
            events.append(self._event(EventKind.RESOLUTION, frame, text, "Check the camera's settings."))
        standing = [watch.moved for watch in self._watches.values() if watch.moved is not None]
        events += [self._moved(EventKind.RECOVERED, moved, frame, "is watched anew") for moved in standing]
        self._reset(size)
        if self._settings is None:
            text = (
                f"there is no baseline for frames of {width}x{height}: learning one from the first "
                f"{self._learning.frames} good frames; until then nothing is known of drift"
            )
            events.append(self._event(EventKind.NO_BASELINE, frame, text, "Make sure that the frames are good now."))
        return events

    def _learned(self, frame: Frame) -> list[Event]:
        assert self._learner is not None and self._size is not None
        if not self._learner.done:
            return []
        learned = self._learner.settings(*self._size, f"learned from {self._camera}", self._autoencoder, self._ae_every)
        names = ", ".join(learned.signals)
        if len(self._known) >= MOST_SIZES:
            self._known = {(self._bundle.width, self._bundle.height): self._bundle} if self._bundle else {}
        if self._settings is None:
            self._known[self._size] = learned
            self._reset(self._size)
        else:
            signals = {**self._settings.signals, **learned.signals}
            self._settings = self._known[self._size] = msgspec.structs.replace(self._settings, signals=signals)
            self._watches |= {name: Watch(name, how) for name, how in learned.signals.items()}
            self._learner = None
        return [self._event(EventKind.LEARNED, frame, f"a baseline was learned from {learned.frames} frames: {names}")]

    def _watch(self, frame: Frame, values: Mapping[str, float]) -> list[Event]:
        """Each signal's step; the history has the frame before a change is looked for in it."""
        outcomes, scores = {}, {}
        for name, watch in self._watches.items():
            if name in values:
                outcomes[name], scores[name] = watch.update(values[name])
            else:
                watch.unmeasured += 1
        self._history.add(frame, values, scores)
        self.scores = scores
        events = self._check_sight(frame)
        for name, outcome in outcomes.items():
            events += self._judge(self._watches[name], outcome, frame)
        newest = len(self._history) - 1
        standing = [name for name in scores if self._watches[name].moved is not None]
        self.kept = tuple(name for name in standing if self._watches[name].keep(self._history.ref(newest, name)))
        return events

    def _judge(self, watch: Watch, outcome: Outcome, frame: Frame) -> list[Event]:
        if outcome is Outcome.DRIFT:
            news = watch.found(self._history)
            return [self._moved(EventKind.MOVED, watch.moved, frame)] if news and watch.moved else []
        if watch.recovered(self._history):
            before, watch.moved = watch.moved, None
            return [self._moved(EventKind.RECOVERED, before, frame)] if before else []
        return []

    def _check_sight(self, frame: Frame) -> list[Event]:
        """Signals of which calm cannot be claimed: told when they become so."""
        events, blind = [], set()
        for name, watch in self._watches.items():
            most = max(MOST_UNMEASURED, 3 * self._ae_every) if name == "ae_error" else MOST_UNMEASURED
            if not watch.invalid and watch.unmeasured < most:
                continue
            blind.add(name)
            if name in self._blind:
                continue
            kind = EventKind.INVALID if watch.invalid else EventKind.UNMEASURED
            what = "is no number" if watch.invalid else "was not measured"
            text = f"{name} {what} for many frames in a row: its drift would not be seen"
            events.append(self._event(kind, frame, text, _SIGHT_ADVICE, signal=name))
        self._blind = blind
        return events

    def _moved(
        self, kind: EventKind, moved: Moved, frame: Frame | None, words: str = "is as on good frames again"
    ) -> Event:
        text, advice = f"{moved.signal} {words}", ""
        if kind is EventKind.MOVED:
            text, advice = f"{moved.text}, {since_words(moved.since, moved.frames_ago)}", REMEDIES[moved.advice]
        event = self._event(kind, frame, text, advice, moved.signal)
        return msgspec.structs.replace(event, moved=moved)

    def _event(self, kind: EventKind, frame: Frame | None, text: str, advice: str = "", signal: str = "") -> Event:
        number, captured_ts = (frame.number, frame.captured_ts) if frame else (0, 0.0)
        return Event(
            kind=kind,
            camera=self._camera,
            number=number,
            captured_ts=captured_ts if math.isfinite(captured_ts) else 0.0,
            text=f"{self._camera}: {text}",
            advice=advice,
            signal=signal,
        )

    def report(self) -> DriftReport:
        """How the stream stands to the baseline now."""
        learner = self._learner
        return summarise(
            camera=self._camera,
            origin=self._settings.origin if self._settings else "",
            frames=self._frames,
            learned=len(learner.rows) if learner else 0,
            wanted=learner.how.frames if learner else 0,
            learning=learner.only if learner else (),
            arl0=self._settings.arl0 if self._settings else self._learning.arl0,
            blind=sorted(self._blind),
            moved=[watch.moved for watch in self._watches.values() if watch.moved is not None],
        )

    def relearn(self) -> None:
        """Learn the baseline anew from the next good frames: what is now is to count as good from here on."""
        self._bundle = None
        self._known.clear()
        self._reset(self._size)

    def state(self) -> dict[str, Any]:
        """All that the next frames depend on, as JSON has it; but what was being learned is learned again."""
        learned = self._settings if self._settings is not self._bundle else None
        return {
            "format": STATE_FORMAT,
            "bundle": _digest(self._bundle),
            "size": list(self._size) if self._size else None,
            "frames": self._frames,
            "last_ts": self._last_ts,
            "learned": msgspec.to_builtins(learned) if learned else None,
            "signals": {name: watch.state() for name, watch in self._watches.items()},
        }

    def restore(self, state: Any) -> list[Event]:
        """Go on from a state; a drift that stands in it is told again, as is that it cannot be used.

        Args:
            state: as `state` gave it, or whatever is left of that.
        """
        try:
            self._restore(msgspec.convert(state, _State))
        except (msgspec.ValidationError, ValueError, EdgeError) as error:
            self._known = {(self._bundle.width, self._bundle.height): self._bundle} if self._bundle else {}
            self._last_ts = 0.0
            self._reset(None)
            text = f"the kept state of drift cannot be used, watching begins anew: {' '.join(str(error).split())}"
            return [self._event(EventKind.STATE, None, text)]
        standing = [watch.moved for watch in self._watches.values() if watch.moved is not None]
        return [self._moved(EventKind.MOVED, moved, None) for moved in standing]

    def _restore(self, state: _State) -> None:
        if state.format != STATE_FORMAT:
            raise ValueError(f"it has format {state.format}, this release keeps format {STATE_FORMAT}")
        if state.bundle != _digest(self._bundle):
            raise ValueError("it belongs to another bundle's settings")
        if not math.isfinite(state.last_ts):
            raise ValueError(f"its time is {state.last_ts}")
        if state.learned is not None and state.size is not None:
            learned = settings.decode(msgspec.json.encode(state.learned), "its learned baseline")
            self._known[(learned.width, learned.height)] = learned
        self._reset(state.size)
        if set(state.signals) != set(self._watches):
            raise ValueError(f"it has the signals {', '.join(sorted(state.signals))}")
        for name, watch in self._watches.items():
            watch.restore(state.signals[name])
        self._frames, self._last_ts = state.frames, state.last_ts


class _State(msgspec.Struct):
    format: int
    bundle: str
    size: Size | None
    frames: int
    last_ts: float
    learned: dict[str, Any] | None
    signals: dict[str, dict[str, Any]]


_SIGHT_ADVICE: Final = (
    "Look at the other alarms: frames that the gate refuses, or a model that answers with no numbers."
)


def _digest(bundle: DriftSettings | None) -> str:
    return hashlib.sha256(settings.encode(bundle)).hexdigest()[:16] if bundle else ""
