"""One signal under watch: score, batch, detector, and the drift that stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from edge.drift import settings
from edge.drift.adwin import Adwin
from edge.drift.baseline import score
from edge.drift.detectors import Change, Cusum, Ewma, Outcome, PageHinkley, Sequential
from edge.drift.history import History, change_point, clearest
from edge.drift.psi import Psi
from edge.drift.report import Direction, FrameRef, Moved, describe
from edge.drift.settings import Kinds, Signal

# A signal has recovered when the mean score of so many points is less than half of what it was, and under this.
RECOVERY_POINTS = 64
RECOVERED_SIGMAS = 0.5
# Frames that show a drift best, whose images are worth keeping.
KEPT = 3


def make_detector(how: Signal) -> Sequential[Any]:
    """The detector of a signal."""
    chart, baseline = how.chart, how.baseline
    if isinstance(chart, settings.Psi):
        assert isinstance(baseline, Kinds), "checked when the settings were read"
        return Psi(chart, baseline)
    if isinstance(chart, settings.Adwin):
        return Adwin(chart)
    if isinstance(chart, settings.Ewma):
        return Ewma(chart)
    return PageHinkley(chart) if isinstance(chart, settings.PageHinkley) else Cusum(chart)


def score_of(value: float, how: Signal) -> float:
    """A value's score in sigmas; of a kind how rare it was, in powers of ten, 0 to 4. NaN for what is none."""
    if not isinstance(how.baseline, Kinds):
        return score(value, how.baseline)
    kind = int(value) if math.isfinite(value) else -1
    if not 0 <= kind < len(how.baseline.shares):
        return math.nan
    return -math.log10(max(1e-4, how.baseline.shares[kind]))


class Watch:
    """Watches one signal of one camera.

    Attributes:
        moved: the drift that stands, as it was when it was found; None while the signal is calm.
        invalid: the last values were no numbers, too many in a row.
        unmeasured: frames since the signal was last measured.
    """

    def __init__(self, name: str, how: Signal) -> None:
        self.name = name
        self.how = how
        self._reset()

    def _reset(self) -> None:
        self._detector = make_detector(self.how)
        self._sum, self._count = 0.0, 0  # of the batch
        self._quiet = 0  # frames measured since the detector last spoke
        self.moved: Moved | None = None
        self.invalid = False
        self.unmeasured = 0

    def update(self, value: float) -> tuple[Outcome, float]:
        """Take a frame's value; the outcome and the value's score."""
        self.unmeasured = 0
        scored = score_of(value, self.how)
        if not math.isfinite(scored):
            outcome = self._detector.update(math.nan)
            self.invalid = outcome is Outcome.INVALID
            return outcome, scored
        self.invalid = False
        self._quiet += 1
        outcome = self._batch(value, scored)
        if outcome is Outcome.DRIFT:
            self._quiet = 0
        return outcome, scored

    def _batch(self, value: float, scored: float) -> Outcome:
        """Points of the detector are means of batches, scaled so that their long-run deviation is 1."""
        baseline = self.how.baseline
        if isinstance(baseline, Kinds):
            return self._detector.update(value)
        self._sum, self._count = self._sum + scored, self._count + 1
        if self._count < self.how.batch:
            return Outcome.CALM
        point = self._sum / math.sqrt(self._count * baseline.correlation)
        self._sum, self._count = 0.0, 0
        # ADWIN wants shares in [0, 1]; so again a normal score's rank.
        is_adwin = isinstance(self.how.chart, settings.Adwin)
        return self._detector.update(0.5 + 0.5 * math.erf(point / math.sqrt(2)) if is_adwin else point)

    def found(self, history: History) -> bool:
        """Note what has moved, now that the detector has found a change; True when that is news.

        Args:
            history: with the newest frame in it.
        """
        change = self._detector.change
        assert change is not None, "a drift was found"
        before, now = self.moved, _located(self.name, self.how, change, history)
        if before is None or before.direction != now.direction:
            self.moved = now
            return True
        again = {"since": before.since, "frames_ago": before.frames_ago, "found": before.found, "kept": before.kept}
        self.moved = msgspec.structs.replace(now, **again)
        return False

    def recovered(self, history: History) -> bool:
        """Whether a drift that stood is over; asked after each frame that is calm."""
        if self.moved is None or self._quiet < RECOVERY_POINTS * self.how.batch:
            return False
        if isinstance(self.how.chart, settings.Psi):
            return self._quiet >= 2 * self.how.chart.window
        scores = history.columns(self.name)[1]
        latest = scores[np.isfinite(scores)][-RECOVERY_POINTS * self.how.batch :]
        return len(latest) > 0 and abs(float(latest.mean())) < min(RECOVERED_SIGMAS, abs(self.moved.sigmas) / 2)

    def keep(self, shown: FrameRef) -> bool:
        """Whether this frame is among those since the drift was found that show it best: its image is worth keeping."""
        if self.moved is None or not math.isfinite(shown.score):
            return False
        sign = -1.0 if self.moved.direction == "down" else 1.0
        kept = self.moved.kept
        if len(kept) >= KEPT and sign * shown.score <= min(sign * ref.score for ref in kept):
            return False
        best = sorted([*kept, shown], key=lambda ref: -sign * ref.score)[:KEPT]
        self.moved = msgspec.structs.replace(self.moved, kept=best)
        return True

    def state(self) -> dict[str, Any]:
        """All that the next frames depend on, as JSON has it."""
        moved = msgspec.to_builtins(self.moved) if self.moved is not None else None
        own = {"sum": self._sum, "count": self._count, "quiet": self._quiet, "moved": moved}
        return own | {"unmeasured": self.unmeasured, "detector": self._detector.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is not a state of this signal.
        """
        try:
            kept = msgspec.convert(state, _Kept)
        except msgspec.ValidationError as error:
            raise ValueError(f"not a state of {self.name}: {error}") from error
        if not math.isfinite(kept.sum) or not 0 <= kept.count < self.how.batch:
            raise ValueError(f"not a state of {self.name}: sum {kept.sum} of {kept.count}")
        self._detector.restore(kept.detector)
        self._sum, self._count, self._quiet, self.moved = kept.sum, kept.count, kept.quiet, kept.moved
        self.unmeasured = kept.unmeasured


class _Kept(msgspec.Struct):
    sum: float
    count: int
    quiet: int
    moved: Moved | None
    detector: dict[str, Any]
    unmeasured: int = 0


def _located(name: str, how: Signal, change: Change, history: History) -> Moved:
    """The change as the last frames show it: since when, by how much, on which frames most."""
    values, scores = history.columns(name)
    mix = isinstance(how.baseline, Kinds)
    sign = 1.0 if mix or change.shift >= 0 else -1.0
    measured = np.flatnonzero(np.isfinite(scores))
    first = max(0, len(measured) - change.points * how.batch)  # by the detector
    begun = int(measured[first]) if mix else change_point(sign * scores)
    begun = int(measured[first]) if begun is None else begun
    # The oldest frame that is remembered says nothing of the frames before it.
    beyond = begun == measured[0] and change.points * how.batch > len(measured)
    # Where the score is a number the value is finite: one infinite value would make the mean what JSON cannot say.
    now = change.shift if mix else float(values[measured[measured >= begun]].mean())
    sigmas = change.shift if mix else float(np.nanmean(scores[begun:]))
    baseline = 0.0 if isinstance(how.baseline, Kinds) else how.baseline.centre
    direction: Direction = "other" if mix else "up" if sign > 0 else "down"
    return Moved(
        signal=name,
        unit=how.unit,
        direction=direction,
        since=None if beyond else history.ref(begun, name),
        frames_ago=len(history) - begun,
        found=history.ref(len(history) - 1, name),
        baseline=baseline,
        now=now,
        sigmas=sigmas,
        detector=type(how.chart).__name__,
        advice=how.rises if direction == "up" and how.rises else how.advice,
        text=describe(name, how, direction, baseline, now, sigmas),
        best=[history.ref(k, name) for k in clearest(sign * scores, begun)],
    )
