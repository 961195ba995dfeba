"""Which frame of a camera shows the part of a trigger. A wrong one would pass a bad part, so doubt means: none.

A frame is wanted at the trigger's time plus the camera's `offset_ms`; it was exposed `latency_ms` before it was in
memory. It belongs to the trigger when it lies within the *reach* of that moment. The reach is `window_ms`, but never
more than half the way to the next part, as the recipe's takt time says it, nor half the way from the trigger before:
beyond that a frame shows the neighbour rather than this part.

By time (a camera that runs free) the nearest frame within reach is the one. By counter (the trigger fires the camera
too) there are two independent proofs, the frame's place in the count and its time, and only a frame on which both
agree is taken. Where they differ the count has slipped (a frame was lost, or a trigger that was refused fired the
camera) or a clock reading came late, and from one part alone nobody can tell which: this part has no frame, and the
count follows the time only when the next part says the same.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from statistics import median

from edge.config import CameraBase
from edge.part import Pairing, Trigger
from edge.records import Frame

OFFSETS_KEPT = 32  # pairs of a fired camera from which the spread of its offsets is told


class Lack(str, Enum):
    """Why a camera has no frame for a trigger."""

    NONE_NEAR = "none_near"  # no frame within reach of the moment
    ALREADY_SHOWN = "already_shown"  # the nearest frame has shown another part
    OUT_OF_STEP = "out_of_step"  # count and time name different frames
    TOO_CLOSE = "too_close"  # triggers follow each other faster than their times are known
    GIVEN_UP = "given_up"  # the next trigger began before this one was settled


@dataclass(frozen=True)
class Chosen:
    """This frame shows the part."""

    frame: Frame
    pairing: Pairing


@dataclass(frozen=True)
class Wait:
    """A frame to come may be the one: look again with each new frame, and at the latest at `until_ns` (monotonic)."""

    until_ns: int


@dataclass(frozen=True)
class NoFrame:
    """No frame of this camera shows the part: a name to count, a sentence for people."""

    lack: Lack
    why: str


Choice = Chosen | Wait | NoFrame


@dataclass(frozen=True)
class Aim:
    """What one trigger wants of one camera.

    Attributes:
        trigger: its number. wanted_ns: monotonic, when the part is in view. reach_ns: how far off a frame may be.
        half_ns: half the way to the neighbours, less what the trigger may be late; None: nobody knows of one.
    """

    trigger: int
    wanted_ns: int
    reach_ns: int
    half_ns: int | None


@dataclass(frozen=True)
class _Shown:
    """The frame that was given to an earlier trigger."""

    number: int
    exposed_ns: int
    aim: Aim


def _never_late(_frame: Frame) -> int:
    return 0


class Pairer:
    """Pairs the frames of one camera with triggers, one trigger after the other.

    >>> import numpy as np
    >>> from edge.config import SimulatedCamera
    >>> image = np.zeros((2, 2), np.uint8)
    >>> frames = [Frame(image, "a", n, n * 33_000_000, 0.0) for n in (1, 2, 3)]
    >>> pairer = Pairer(SimulatedCamera(id="a"))
    >>> pairer.begin(Trigger(7, "", 1, at_mono_ns=70_000_000, at_ts=0.0))
    ''
    >>> pairer.look(frames[:2], now_ns=70_500_000)  # 4 ms early; one to come may be nearer, but not after that
    Wait(until_ns=74000000)
    >>> choice = pairer.look(frames[:2], now_ns=74_000_000)
    >>> choice.frame.number, choice.pairing
    (2, Pairing(offset_ms=-4.0, uncertainty_ms=16.5))
    """

    def __init__(self, camera: CameraBase) -> None:
        """A pairer that has seen no trigger; uses the camera's `pairing`, `offset_ms`, `latency_ms`, `window_ms`."""
        self._by_counter = camera.pairing == "counter"
        self._offset_ns, self._latency_ns = _ns(camera.offset_ms), _ns(camera.latency_ms)
        self._window_ns, self._late_ns = _ns(camera.window_ms), 0
        self._frame_late_ns: Callable[[Frame], int] = _never_late
        self._aim: Aim | None = None
        self._open = False  # the aim has neither a frame nor a lack yet
        self._shown: _Shown | None = None
        self._due: int | None = None  # by counter: the number of the frame that the count gives to the aim
        self._slip: int | None = None  # by counter: so far off the count was, at the last part where it was off
        self._offsets: deque[int] = deque(maxlen=OFFSETS_KEPT)
        self.paired = 0
        self.lacks: Counter[Lack] = Counter()
        self.resynced = 0  # by counter: the count was set anew
        self.crossed = 0  # frames that turned out nearer to the trigger after the one they were given to

    def begin(
        self, trigger: Trigger, takt_ms: float | None = None, wanted: bool = True, late_ms: float = 0.0
    ) -> str:
        """Aim at the part of this trigger. Every trigger in its order, each once, also those settled without a look.

        Args:
            takt_ms: the recipe's takt time, for the reach; None: only the trigger before tells how close parts are.
            wanted: False: no frame of this camera is asked for, as its recipe says; the trigger is only counted.
            late_ms: by how much the time of this trigger may have been read late: as long as this process kept its
                other threads waiting then. It adds to the uncertainty, and where only time tells the frames apart it
                takes from the reach.

        Returns:
            What is wrong with the pair before, as this trigger shows: its frame is nearer to this part. Its answer
            may be about the wrong part, so tell it loudly. "": nothing.
        """
        if self._open:
            self.lacks[Lack.GIVEN_UP] += 1
        wanted_ns = trigger.at_mono_ns + self._offset_ns
        self._late_ns = _ns(late_ms)
        half_ns = self._half_way_ns(wanted_ns, takt_ms)
        reach_ns = self._window_ns if half_ns is None else min(self._window_ns, half_ns)
        aim = Aim(trigger.number, wanted_ns, reach_ns, half_ns)
        self._aim, self._open = aim, wanted
        if self._due is not None:
            self._due += 1
        return self._crossing(aim)

    def look(
        self, frames: Sequence[Frame], now_ns: int, final: bool = False, late_ns: Callable[[Frame], int] = _never_late
    ) -> Choice:
        """The frame for the trigger that was begun, as far as can be said now.

        Args:
            frames: of this camera, oldest first.
            now_ns: monotonic, read before `frames` were looked at: all that was in memory by then is among them.
            final: there is no more time to wait: decide by what is there.
            late_ns: by how much the time of a frame may have been read late; as `late_ms` of `begin`.
        """
        self._frame_late_ns = late_ns
        if self._aim is None or not self._open:
            raise ValueError("a look wants a trigger that was begun and has no choice yet")
        choice = self._choose(self._aim, frames, now_ns, final)
        if isinstance(choice, Wait):
            return choice
        self._open = False
        if isinstance(choice, NoFrame):
            self.lacks[choice.lack] += 1
            return choice
        self.paired += 1
        self._shown = _Shown(choice.frame.number, self._exposed_ns(choice.frame), self._aim)
        return choice

    def _choose(self, aim: Aim, frames: Sequence[Frame], now_ns: int, final: bool) -> Choice:
        if aim.reach_ns <= 0:
            return NoFrame(Lack.TOO_CLOSE, "it follows the trigger before so closely that no frame can be told apart")
        fresh = [f for f in frames if self._shown is None or f.number > self._shown.number]
        near = [f for f in fresh if abs(self._off_ns(aim, f)) <= self._reach_of_ns(aim, f)]
        best = min(near, key=lambda f: abs(self._off_ns(aim, f)), default=None)
        agreed = self._by_counter and best is not None and best.number == self._due
        until_ns = self._until_ns(aim, fresh, best)
        if not agreed and not final and now_ns < until_ns:
            return Wait(until_ns)
        if best is None:
            return self._lack(aim, fresh)
        if self._by_counter and not agreed:
            slipped = self._out_of_step(best)
            if slipped is not None:
                return slipped
        self._slip = None
        return Chosen(best, self._pairing(aim, best, frames))

    def _until_ns(self, aim: Aim, fresh: Sequence[Frame], best: Frame | None) -> int:
        """Until when a frame may come that is nearer than the best so far: none is, once one is past the moment."""
        if fresh and self._off_ns(aim, fresh[-1]) >= 0:
            return 0
        nearer_ns = aim.reach_ns if best is None else abs(self._off_ns(aim, best))
        return aim.wanted_ns + nearer_ns + self._latency_ns

    def _out_of_step(self, best: Frame) -> NoFrame | None:
        """None when the count may follow the time: at the first part, and when two parts show the same slip."""
        if self._due is None:
            self._due = best.number
            return None
        due, slip = self._due, best.number - self._due
        if slip == self._slip:
            self._due = best.number
            self.resynced += 1
            return None
        self._slip = slip
        return NoFrame(
            Lack.OUT_OF_STEP,
            f"by the count it is frame {due}, by the time frame {best.number}: a frame or a trigger was lost",
        )

    def _lack(self, aim: Aim, fresh: Sequence[Frame]) -> NoFrame:
        shown = self._shown
        reach = f"within {aim.reach_ns / 1e6:.1f} ms"
        off_ns = min((self._off_ns(aim, f) for f in fresh), key=abs, default=None)
        nearest_ns = self._window_ns if off_ns is None else min(self._window_ns, abs(off_ns))
        if shown is not None and not self._by_counter and abs(shown.exposed_ns - aim.wanted_ns) <= nearest_ns:
            return NoFrame(Lack.ALREADY_SHOWN, f"its nearest frame was already shown for trigger {shown.aim.trigger}")
        if off_ns is None:
            return NoFrame(Lack.NONE_NEAR, f"no new frame came {reach}")
        side = "too late" if off_ns > 0 else "too early"
        return NoFrame(Lack.NONE_NEAR, f"no frame {reach}: the nearest is {abs(off_ns) / 1e6:.1f} ms {side}")

    def _half_way_ns(self, wanted_ns: int, takt_ms: float | None) -> int | None:
        """Half the way to the nearer neighbour, less the lateness of the trigger; None: there is none."""
        between = [_ns(takt_ms)] if takt_ms is not None else []
        if self._aim is not None:
            between.append(wanted_ns - self._aim.wanted_ns)
        if not between:
            return None
        return (min(between) - 1) // 2 - (0 if self._counted() else self._late_ns)

    def _reach_of_ns(self, aim: Aim, frame: Frame) -> int:
        """How far off this frame may be: less where its own time may be late."""
        if aim.half_ns is None or self._counted():
            return aim.reach_ns
        return min(self._window_ns, aim.half_ns - self._frame_late_ns(frame))

    def _counted(self) -> bool:
        """Whether the count is a second proof beside the time."""
        return self._due is not None

    def _crossing(self, aim: Aim) -> str:
        shown = self._shown
        if shown is None:
            return ""
        before_ns, now_ns = shown.exposed_ns - shown.aim.wanted_ns, aim.wanted_ns - shown.exposed_ns
        if before_ns < now_ns:
            return ""
        self.crossed += 1
        return (
            f"the frame given to trigger {shown.aim.trigger} ({before_ns / 1e6:.1f} ms off) is nearer to trigger "
            f"{aim.trigger} ({abs(now_ns) / 1e6:.1f} ms off): parts come closer than takt_time_ms and window_ms allow"
        )

    def _pairing(self, aim: Aim, frame: Frame, frames: Sequence[Frame]) -> Pairing:
        off_ns = self._off_ns(aim, frame)
        self._offsets.append(off_ns)
        if not self._by_counter:
            half_ns = self._half_interval_ns(aim, frames)
        elif len(self._offsets) < 2:
            half_ns = aim.reach_ns
        else:
            half_ns = (max(self._offsets) - min(self._offsets)) / 2
        late_ns = self._late_ns + self._frame_late_ns(frame)
        return Pairing(round(off_ns / 1e6, 3), round((half_ns + late_ns) / 1e6, 3))

    def _half_interval_ns(self, aim: Aim, frames: Sequence[Frame]) -> float:
        """Half the interval between the frames around the moment; one that is not known is the camera's usual one.

        The moment falls anywhere between two frames of a camera that runs free, so the nearer of them is off by up
        to that; a dropped frame makes the interval longer, which shows here. Where only the frame before is known,
        the wait for a nearer one has shown that the interval is at least twice as long as the frame is off.
        """
        exposed = [self._exposed_ns(f) for f in frames]
        around = [b - a for a, b in pairwise(exposed) if a <= aim.wanted_ns <= b]
        if around:
            return max(around) / 2
        intervals = [b - a for a, b in pairwise(exposed)]
        nearest_ns = min(abs(e - aim.wanted_ns) for e in exposed)
        return max(median(intervals) / 2, nearest_ns) if intervals else aim.reach_ns

    def _exposed_ns(self, frame: Frame) -> int:
        return frame.captured_mono_ns - self._latency_ns

    def _off_ns(self, aim: Aim, frame: Frame) -> int:
        """When the frame was exposed against when it was wanted; negative: before."""
        return self._exposed_ns(frame) - aim.wanted_ns


def _ns(ms: float) -> int:
    return round(ms * 1e6)
