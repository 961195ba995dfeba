"""Where all cameras leave their frames and the inspection takes them: one slot a camera, everything dropped counted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edge.records import Frame


@dataclass(frozen=True)
class Taken:
    """What one `take` gave: a frame, and what was lost on all cameras since the take before.

    Attributes:
        frame: the frame to inspect; None when there was only loss to tell of.
        overruns: frames that a newer one of their camera replaced before they were taken.
        faults: frames that were due and could not be captured.
        fault_camera: the camera of the last of these faults, "" without any.
        fault_text: what it was.
    """

    frame: Frame | None
    overruns: int
    faults: int
    fault_camera: str = ""
    fault_text: str = ""


class Intake:
    """The latest frame of each camera, waiting for the one inspection thread; safe to use from all threads.

    Every frame put and every fault told before `close` is a trigger and comes out exactly once: as a frame taken,
    in the counts of a `take`, or in `remaining`. What comes after the close is none: the station has stopped.
    """

    def __init__(self, on_trigger: Callable[[], None] = lambda: None) -> None:
        """`on_trigger` is called once for each frame and each fault, one call at a time."""
        self._on_trigger = on_trigger
        self._changed = threading.Condition()
        self._slots: OrderedDict[str, Frame] = OrderedDict()  # in the order cameras are served
        self._overruns = 0
        self._faults = 0
        self._fault_camera = self._fault_text = ""
        self._closed = False
        self._left = 0

    def put(self, frame: Frame) -> None:
        """Leave a frame; one of the same camera that nobody took is dropped and counted as an overrun."""
        with self._changed:
            if self._closed:
                return
            self._on_trigger()
            if frame.camera in self._slots:
                self._overruns += 1
            self._slots[frame.camera] = frame  # keeps the camera's place in the queue
            self._changed.notify()

    def fault(self, camera: str, text: str) -> None:
        """Tell that a frame of this camera was due and is lost."""
        with self._changed:
            if self._closed:
                return
            self._on_trigger()
            self._faults += 1
            self._fault_camera, self._fault_text = camera, text
            self._changed.notify()

    def take(self, timeout_s: float) -> Taken | None:
        """The next frame, cameras in turn, with what was lost since the last take.

        Returns:
            None when nothing happened within `timeout_s`, or the intake is closed and has no loss left to tell.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._slots or self._faults or self._overruns, timeout_s)
            frame = None if self._closed else self._next()
            if frame is None and not self._faults and not self._overruns:
                return None
            taken = Taken(frame, self._overruns, self._faults, self._fault_camera, self._fault_text)
            self._overruns = self._faults = 0
            self._fault_camera = self._fault_text = ""
            return taken

    def idle(self) -> bool:
        """Whether no frame waits."""
        with self._changed:
            return not self._slots

    def _next(self) -> Frame | None:
        """The frame that has waited longest for its turn: a fast camera cannot push out a slow one."""
        return self._slots.popitem(last=False)[1] if self._slots else None

    def close(self) -> None:
        """Hand out no more frames and wake the taker; the losses not told yet can still be taken."""
        with self._changed:
            self._closed = True
            self._left += len(self._slots)
            self._slots.clear()
            self._changed.notify_all()

    def remaining(self) -> int:
        """How many frames were never taken: those waiting at `close`. 0 before."""
        with self._changed:
            return self._left
