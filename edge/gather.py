"""Finds the frame of every camera for one trigger, in bounded time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from edge.admission import Admission
from edge.capture.ring import FrameRing
from edge.clock import Clock
from edge.pairing import Chosen, Pairer, Wait
from edge.part import Trigger
from edge.records import Frame

SLICE_S = 0.1  # no wait is longer than this without a look at the stop flag and the rest of the house
SLACK_NS = 5_000_000  # a thread that stood still has caught up so soon after an inference
HOLDS = 128  # inferences remembered


@dataclass(frozen=True)
class Aim:
    """What is wanted for one trigger.

    Attributes:
        cameras: those whose frames are wanted, in the order of the config.
        takt_ms: of the recipe. deadline_ns: monotonic; None: there is none.
    """

    trigger: Trigger
    cameras: tuple[str, ...]
    takt_ms: float | None
    deadline_ns: int | None


@dataclass
class Gathered:
    """What was found.

    Attributes:
        missing: camera -> why it has no frame.
        late: of these, those that were given up because time was up.
        stopped: the service is to stop.
        crossed: what is wrong with the part before, as this trigger shows; see `Pairer.begin`.
    """

    found: dict[str, Chosen] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    stopped: bool = False
    crossed: list[str] = field(default_factory=list)


class Gatherer:
    """Waits for frames for the inspection thread, and knows when that thread kept the others from their clocks.

    A frame and a trigger are stamped by Python threads, and those stand still while a model runs. So all frames of a
    part are found before the first is judged, and a stamp that fell into an inference may be late by as long as that
    had run: the pairers are told, and let a frame go that could be its neighbour.

    Attributes:
        is_held: inferences hold the interpreter; see `holds` below.
    """

    def __init__(
        self,
        ring: FrameRing,
        pairers: Mapping[str, Pairer],
        admission: Admission,
        clock: Clock,
        meanwhile: Callable[[], bool],
        holds: bool = True,
    ) -> None:
        """Nothing is waited for yet.

        Args:
            meanwhile: called while it waits; True: the service is to stop.
            holds: inferences hold the interpreter (those of Paddle Lite do, those of ONNX Runtime do not).
        """
        self.is_held = holds
        self._ring = ring
        self._pairers = pairers
        self._admission = admission
        self._clock = clock
        self._meanwhile = meanwhile
        self._holds: deque[tuple[int, int]] = deque(maxlen=HOLDS)

    def held(self, began_ns: int, ended_ns: int, holds: bool | None = None) -> None:
        """An inference took that time; `holds`: whether it held the interpreter, None: as those of the parts do.

        Those that follow each other at once are one: between them there is no time for a thread that reads a frame in
        several pieces.
        """
        if not (self.is_held if holds is None else holds):
            return
        if self._holds and began_ns - self._holds[-1][1] <= SLACK_NS:
            began_ns = self._holds.pop()[0]
        self._holds.append((began_ns, ended_ns))

    def pass_by(self, trigger: Trigger) -> None:
        """Count a trigger that is settled without a look: its frames are nobody else's."""
        for pairer in self._pairers.values():
            pairer.begin(trigger, wanted=False)

    def gather(self, aim: Aim) -> Gathered:
        """Find the frames; returns at the deadline at the latest, less what judging them takes."""
        result = Gathered(crossed=self._begin(aim))
        pending = list(aim.cameras)
        until_ns, seen = self._clock.mono_ns(), 0
        limit_ns = self._limit_ns(aim, until_ns)
        while pending:
            now_ns = self._clock.mono_ns()  # before the look: a frame that comes between the two is not missed
            final = limit_ns is not None and now_ns >= limit_ns
            snapshot = self._ring.wait(until_ns if not final else now_ns, seen)
            seen = snapshot.version
            waits = self._look(pending, snapshot.frames, now_ns, result, final)
            if not pending:
                break
            if self._meanwhile():
                result.stopped = True
                result.missing.update(dict.fromkeys(pending, "the service stops"))
                break
            slice_ns = self._clock.mono_ns() + int(SLICE_S * 1e9)
            until_ns = min([*waits, slice_ns, *([limit_ns] if limit_ns is not None else [])])
        return result

    def _limit_ns(self, aim: Aim, now_ns: int) -> int | None:
        """Until when it may wait, so that the frames can still be judged in time.

        Where even that is past it waits for them all the same: whether they are judged is for admission to say, and an
        estimate that has become too long can only be corrected by frames.
        """
        if aim.deadline_ns is None:
            return None
        limit_ns = self._admission.latest_start_ns(aim.deadline_ns, len(aim.cameras))
        return limit_ns if limit_ns > now_ns else aim.deadline_ns

    def _begin(self, aim: Aim) -> list[str]:
        crossed = []
        for camera, pairer in self._pairers.items():
            wanted = camera in aim.cameras
            told = pairer.begin(aim.trigger, aim.takt_ms, wanted, self._lateness_ns(aim.trigger.at_mono_ns) / 1e6)
            if told:
                crossed.append(f"camera {camera}: {told}")
        return crossed

    def _look(
        self, pending: list[str], frames: Mapping[str, Sequence[Frame]], now_ns: int, result: Gathered, final: bool
    ) -> list[int]:
        """Settle what can be settled of the cameras pending; until when the others may be waited for."""
        waits = []
        for camera in tuple(pending):
            choice = self._pairers[camera].look(frames[camera], now_ns, final, self._frame_lateness_ns)
            if isinstance(choice, Wait):
                waits.append(choice.until_ns)
                continue
            pending.remove(camera)
            if isinstance(choice, Chosen):
                result.found[camera] = choice
                self._ring.use(choice.frame)
            else:
                result.missing[camera] = choice.why
                if final:
                    result.late.add(camera)
        return waits

    def _frame_lateness_ns(self, frame: Frame) -> int:
        return self._lateness_ns(frame.captured_mono_ns)

    def _lateness_ns(self, stamp_ns: int) -> int:
        """By how much a stamp may be too late: as long as an inference had run by then."""
        for began_ns, ended_ns in reversed(self._holds):
            if began_ns <= stamp_ns <= ended_ns + SLACK_NS:
                return min(stamp_ns, ended_ns) - began_ns
        return 0
