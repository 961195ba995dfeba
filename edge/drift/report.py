"""What is told of drift: events as they happen, and one report: what moved, since when, by how much, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Final, Literal

import msgspec

from edge.drift.settings import Advice, Kinds, Signal

Status = Literal["no_baseline", "learning", "watching", "drifted", "blind"]
Direction = Literal["up", "down", "other"]  # other: a mix of kinds has changed


class EventKind(str, Enum):
    """What has happened to a camera's monitor. Each is told when it begins, not again in between."""

    MOVED = "moved"  # a signal is not what it was on good frames
    RECOVERED = "recovered"  # it is again, or is watched anew: what was told of it stands no more
    NO_BASELINE = "no_baseline"  # nothing to compare with: learning begins
    LEARNED = "learned"
    RESOLUTION = "resolution"  # frames of another size: all begins anew
    CONSTANT = "constant"  # frames of one grey
    CLOCK = "clock"  # the wall clock jumped: times before it are doubtful
    INVALID = "invalid"  # a signal is no number for many frames in a row
    UNMEASURED = "unmeasured"  # a signal was not measured for many frames
    STATE = "state"  # the kept state cannot be used: all begins anew


class FrameRef(msgspec.Struct, kw_only=True, frozen=True):
    """A frame by what finds it again.

    Attributes:
        number, name: as the camera gave them; see `edge.records.Frame`.
        captured_ts: wall clock, seconds since 1970.
        value, score: of the signal on it: in its unit, and in sigmas from the baseline.
    """

    number: int
    name: str
    captured_ts: float
    value: float
    score: float


def evidence_name(signal: str, frame: FrameRef) -> str:
    """What the image of a frame that shows a drift is called; a camera's numbers begin anew with each start.

    >>> evidence_name("noise", FrameRef(number=7, name="", captured_ts=1790000000.5, value=3.0, score=2.0))
    'noise-1790000000-7.jpg'
    """
    second = int(frame.captured_ts) if math.isfinite(frame.captured_ts) else 0
    return f"{signal}-{second}-{frame.number}.jpg"


class Moved(msgspec.Struct, kw_only=True, frozen=True):
    """One signal that is not what it was.

    Attributes:
        since: the frame at which the change most likely began; None: before the oldest frame that is remembered.
        frames_ago: frames from then on, that one included, until the change was found.
        found: the frame at which it was certain.
        baseline, now: median on good frames, and mean since the change, in the unit; of a mix of kinds 0 and the PSI.
        sigmas: mean score since the change, in the baseline's sigmas; scores end at 4. Of a mix of kinds the PSI.
        detector: what found it.
        advice: what to do; `text` has it in words.
        best: of the frames remembered, those that show it best, the clearest first.
        kept: frames since it was found that show it best; their images were worth keeping.
    """

    signal: str
    unit: str
    direction: Direction
    since: FrameRef | None
    frames_ago: int
    found: FrameRef
    baseline: float
    now: float
    sigmas: float
    detector: str
    advice: Advice
    text: str
    best: list[FrameRef] = []
    kept: list[FrameRef] = []


class Event(msgspec.Struct, kw_only=True, frozen=True):
    """Something to tell about a camera's monitor.

    Attributes:
        number, captured_ts: of the frame it was found on; 0 before the first.
        signal: which one, "" when it is about all.
        text, advice: for people.
        moved: for `moved` and `recovered`.
    """

    kind: EventKind
    camera: str
    number: int
    captured_ts: float
    text: str
    advice: str = ""
    signal: str = ""
    moved: Moved | None = None

    @property
    def code(self) -> str:
        """What the alarm is called: `drift.brightness`, `drift.resolution`."""
        return f"drift.{self.signal or self.kind.value}"


class DriftReport(msgspec.Struct, kw_only=True, frozen=True):
    """How a camera's stream stands to the baseline now.

    Attributes:
        status: no_baseline: nothing measured yet to learn from; learning; watching; drifted; blind: a signal is not
            measured or no number, so calm cannot be claimed.
        origin: of the baseline, "" without one.
        frames: watched against this baseline. learned, wanted: frames learned from, of how many, while learning.
        arl0: frames between false alarms on average that the limits were chosen for.
        blind: signals that are not measured, or no numbers, at present.
        moved: what has moved; causes before effects.
        advice: the step to take first, "" when there is none.
        text: all of it in sentences.
    """

    schema: str = "edge.drift.v1"
    camera: str
    status: Status
    origin: str
    frames: int
    learned: int
    wanted: int
    arl0: float
    blind: list[str]
    moved: list[Moved]
    advice: str
    text: str


# What a person can do, and in which order: what the light and the lens do to the image explains the rest.
REMEDIES: Final[dict[Advice, str]] = {
    "clean": "Clean the lens and its window, then check the focus.",
    "relight": "Check lamps, exposure, gain and daylight on the part; bring them back to what they were.",
    "recalibrate": "Check that the product is the one of the recipe; fit the thresholds again on new good frames.",
    "retrain": "Look at the kept frames: a new part, tool or wear? If that is to stay, pick frames with `tools mine`, "
    "label them and train again.",
}
ORDER: Final[tuple[Advice, ...]] = ("clean", "relight", "recalibrate", "retrain")

_WORDS: Final = {
    "brightness": ("the image is darker", "the image is brighter"),
    "contrast": ("the image has less contrast", "the image has more contrast"),
    "sharpness": ("the image is less sharp", "the image is sharper"),
    "noise": ("the image is smoother", "the image is noisier"),
    "red": ("the image is less red", "the image is redder"),
    "blue": ("the image is less blue", "the image is bluer"),
    "confidence": ("the detector is less sure", "the detector is surer of defects"),
    "feature_mean": ("the features are weaker", "the features are stronger"),
    "feature_spread": ("the features vary less", "the features vary more"),
    "feature_distance": ("the features are nearer to the baseline", "the features are other than on the baseline"),
    "ae_error": (
        "frames are simpler than good ones of this product",
        "frames look less like good ones of this product",
    ),
}


def describe(signal: str, how: Signal, direction: Direction, baseline: float, now: float, sigmas: float) -> str:
    """What has moved and by how much, as a clause.

    >>> from edge.drift.plan import Measured, settings_for
    >>> good = Measured(values={"brightness": list(range(100, 200))}, classes=(), width=64, height=48)
    >>> how = settings_for(good, "test").signals["brightness"]
    >>> describe("brightness", how, "down", 149.5, 102.0, -1.9)
    'the image is darker: 149.5 -> 102.0 grey levels (-1.9 sigmas)'
    """
    if isinstance(how.baseline, Kinds):
        return f"the mix of what is found has changed (PSI {now:.2f}, limit {getattr(how.chart, 'limit', 0):.2f})"
    words = _WORDS.get(signal, (f"{signal} has fallen", f"{signal} has risen"))[direction == "up"]
    digits = 1 if abs(baseline) >= 10 else 2 if abs(baseline) >= 1 else 4
    unit = f" {how.unit}" if how.unit else ""
    return f"{words}: {baseline:.{digits}f} -> {now:.{digits}f}{unit} ({sigmas:+.1f} sigmas)"


def since_words(since: FrameRef | None, frames_ago: int) -> str:
    """Since when, as a clause."""
    if since is None:
        return f"for {frames_ago} frames or more"
    return f"since {since.name or f'frame {since.number}'}, found after {frames_ago} frames"


def ordered(moved: Sequence[Moved]) -> list[Moved]:
    """Causes before effects, then the largest shift first."""
    return sorted(moved, key=lambda m: (ORDER.index(m.advice), -abs(m.sigmas)))


def first_advice(moved: Sequence[Moved]) -> str:
    """The step to take first: light and lens before the model, since they move all that comes after them."""
    return REMEDIES[ordered(moved)[0].advice] if moved else ""


def summarise(
    *,
    camera: str,
    origin: str,
    frames: int,
    learned: int,
    wanted: int,
    learning: Sequence[str],
    arl0: float,
    blind: list[str],
    moved: list[Moved],
) -> DriftReport:
    """The report of a camera, with its status and its sentences; see `DriftReport`.

    Args:
        learning: signals that are learned while others are watched; empty with `wanted` above 0: all are.
    """
    moved = ordered(moved)
    if wanted and not learning:
        status: Status = "learning" if learned else "no_baseline"
        text = f"no baseline; learning one, {learned} of {wanted} good frames seen. Nothing is known of drift."
    elif moved:
        status = "drifted"
        whole = "; ".join(f"{m.text}, {since_words(m.since, m.frames_ago)}" for m in moved)
        text = f"{whole}. {first_advice(moved)}"
    elif blind:
        status, text = "blind", f"the rest is as on good frames, for {frames} frames."
    else:
        status, text = "watching", f"as on good frames, for {frames} frames."
    if blind:
        text = f"{', '.join(blind)} cannot be watched at present; {text}"
    if learning:
        text += f" {' and '.join(learning)} not yet: learned from {learned} of {wanted} good frames."
    return DriftReport(
        camera=camera,
        status=status,
        origin=origin,
        frames=frames,
        learned=learned,
        wanted=wanted,
        arl0=arl0,
        blind=blind,
        moved=moved,
        advice=first_advice(moved),
        text=f"{camera}: {text}",
    )
