"""The last few frames of every camera, for a triggered station: it looks back, and waits for what is to come."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge.records import Frame

LONGEST_WAIT_S = 60.0  # a wait for a moment further off ends here all the same


@dataclass(frozen=True)
class Snapshot:
    """What the ring held at one moment.

    Attributes:
        frames: camera -> its last frames, oldest first; every camera is there.
        version: goes up with each frame and each fault; the next `wait` is told it to sleep until there is news.
        closed: nothing will come any more.
    """

    frames: Mapping[str, tuple[Frame, ...]]
    version: int
    closed: bool


@dataclass(frozen=True)
class CameraFaults:
    """Frames of a camera that were due and could not be captured: how many, and what the last one was."""

    count: int
    text: str


@dataclass(frozen=True)
class FrameCounts:
    """What became of a camera's frames: put == used + unused + waiting.

    Attributes:
        put: frames that came. used: of these, chosen for a part.
        unused: fell out of the ring, and no part wanted them; usual for a camera that runs free.
        waiting: in the ring, and not chosen so far.
        faults: due and not captured, since the start.
    """

    put: int
    used: int
    unused: int
    waiting: int
    faults: int


class FrameRing:
    """Keeps the last frames of each camera; safe to use from all threads. Implements `edge.capture.base.FrameSink`.

    Frames are handed on as they are: no image is copied.
    """

    def __init__(
        self, cameras: Sequence[str], per_camera: int = 8, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """An empty ring.

        Args:
            cameras: ids of all cameras that will put frames here.
            per_camera: frames kept of each. They must reach back over the longest time from a trigger until it is
                looked at: 8 frames of a camera at 30 a second are a quarter of a second.
            clock_ns: the monotonic clock that `wait` is told a moment of.
        """
        if per_camera < 2:
            raise ValueError(f"a ring keeps at least 2 frames a camera, got {per_camera}")
        self._clock_ns = clock_ns
        self._changed = threading.Condition()
        self._lanes = {camera: _Lane(per_camera) for camera in cameras}
        self._version = 0
        self._closed = False

    # The cameras' side.

    def put(self, frame: Frame) -> None:
        """Leave a frame; the oldest of its camera falls out when there is no room. After `close` it is ignored."""
        with self._changed:
            lane = self._lane(frame.camera)
            if self._closed:
                return
            lane.put(frame)
            self._tell()

    def fault(self, camera: str, text: str) -> None:
        """Tell that a frame of this camera was due and is lost."""
        with self._changed:
            lane = self._lane(camera)
            if self._closed:
                return
            lane.fault(text)
            self._tell()

    # The station's side.

    def wait(self, until_ns: int, seen: int = 0) -> Snapshot:
        """Sleep until there is news since the snapshot of version `seen`, or a moment has come; then look.

        Args:
            until_ns: monotonic nanoseconds; a moment that is past means: look, and do not wait.
            seen: `Snapshot.version` of the last look; 0: none, so that anything that ever came is news.
        """
        with self._changed:
            timeout_s = min((until_ns - self._clock_ns()) / 1e9, LONGEST_WAIT_S)
            if timeout_s > 0:
                self._changed.wait_for(lambda: self._closed or self._version > seen, timeout_s)
            frames = {camera: tuple(lane.held) for camera, lane in self._lanes.items()}
            return Snapshot(frames, self._version, self._closed)

    def use(self, frame: Frame) -> None:
        """Note that a part took this frame, whether the ring still has it or not. Once for each frame."""
        with self._changed:
            self._lane(frame.camera).use(frame.number)

    def take_faults(self) -> dict[str, CameraFaults]:
        """The faults since the last call, of the cameras that had any."""
        with self._changed:
            return {camera: lane.take_faults() for camera, lane in self._lanes.items() if lane.new_faults}

    def counts(self) -> dict[str, FrameCounts]:
        """What became of each camera's frames so far."""
        with self._changed:
            return {camera: lane.counts() for camera, lane in self._lanes.items()}

    def close(self) -> None:
        """Take nothing more and wake who waits; what is held can still be looked at."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _lane(self, camera: str) -> _Lane:
        lane = self._lanes.get(camera)
        if lane is None:
            raise ValueError(f"the ring has no camera {camera}, only {', '.join(self._lanes) or 'none'}")
        return lane


class _Lane:
    """One camera's part of the ring; the ring's lock guards it."""

    def __init__(self, size: int) -> None:
        self.held: deque[Frame] = deque(maxlen=size)
        self._used_held: set[int] = set()  # numbers of frames held that were chosen
        self._put = self._used = self._faults = 0
        self.new_faults = 0
        self._fault_text = ""

    def put(self, frame: Frame) -> None:
        if len(self.held) == self.held.maxlen:
            self._used_held.discard(self.held[0].number)
        self.held.append(frame)
        self._put += 1

    def fault(self, text: str) -> None:
        self._faults += 1
        self.new_faults += 1
        self._fault_text = text

    def use(self, number: int) -> None:
        if number in self._used_held:
            return
        self._used += 1
        if any(frame.number == number for frame in self.held):
            self._used_held.add(number)

    def take_faults(self) -> CameraFaults:
        taken = CameraFaults(self.new_faults, self._fault_text)
        self.new_faults = 0
        return taken

    def counts(self) -> FrameCounts:
        waiting = len(self.held) - len(self._used_held)
        return FrameCounts(self._put, self._used, self._put - self._used - waiting, waiting, self._faults)
