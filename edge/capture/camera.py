"""The thread of one camera: opens its source, watches over it, and opens it again whenever it fails."""

from __future__ import annotations

import logging
import math
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from edge.capture.base import FrameSink, Grab, Source
from edge.clock import Beat
from edge.config import Camera
from edge.errors import CaptureError, FrameUnreadableError, SourceEndedError
from edge.preprocess import Image
from edge.records import Frame

log = logging.getLogger(__name__)

POLL_S = 0.2  # how often a waiting camera looks whether it should stop
HUNG_S = 30.0  # a source that does not come back from a call for so long has broken its promise
LONGEST_RETRY = 4  # the pause before reopening doubles up to so many times `retry_s`


class CameraState(str, Enum):
    """What a camera is doing, in the words the technician sees."""

    OPENING = "opening"
    STREAMING = "streaming"
    STALLED = "stalled"  # it is open, but gave no new frame, or the same one over and over
    RECONNECTING = "reconnecting"  # it failed and is opened again
    ENDED = "ended"  # it has no more frames and is not meant to


@dataclass(frozen=True)
class CameraStatus:
    """A camera's state with its counters.

    Attributes:
        detail: why it is in this state, "" when there is nothing to explain.
        frames: frames delivered since the daemon started.
        reopened: how often it was opened again after a fault.
        unreadable: frames that were due and could not be read.
    """

    camera: str
    state: CameraState
    detail: str = ""
    frames: int = 0
    reopened: int = 0
    unreadable: int = 0


class Clock(Protocol):
    """The two clocks a frame is stamped with."""

    def mono_ns(self) -> int:
        """Monotonic, nanoseconds."""

    def ts(self) -> float:
        """Wall clock, seconds since 1970, UTC."""


class CameraThread:
    """Runs one source until told to stop; no fault of the source ends the thread.

    `on_state` is called from this thread on every change of the state or its reason, not on every frame.

    Attributes:
        beat: moves with each call of the source, also while the camera is away and asked for again and again.
    """

    def __init__(
        self,
        settings: Camera,
        source: Source,
        sink: FrameSink,
        clock: Clock,
        on_state: Callable[[CameraStatus], None],
    ) -> None:
        self._settings = settings
        self._source = source
        self._sink = sink
        self._clock = clock
        self._on_state = on_state
        self._status = CameraStatus(settings.id, CameraState.OPENING)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera-{settings.id}", daemon=True)
        self._failures = 0  # in a row, without a frame between
        self._content = _Content(settings.frozen_frames)
        self._logged: set[str] = set()
        self.beat = Beat(f"capture {settings.id}", HUNG_S, clock.mono_ns)

    def start(self) -> None:
        """Begin to open the source; returns at once."""
        self._thread.start()

    def ask_stop(self) -> None:
        """Tell the thread to end and return at once: it delivers no more frames."""
        self._stop.set()

    def stop(self, timeout_s: float) -> bool:
        """Close the source and end the thread; False when it did not end in time (it then dies with the process)."""
        self.ask_stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def status(self) -> CameraStatus:
        """The state now, for any thread."""
        return self._status

    def _run(self) -> None:
        self._tell(CameraState.OPENING, "")
        while not self._stop.is_set():
            try:
                self._stream()
            except SourceEndedError as ended:
                self._tell(CameraState.ENDED, str(ended))
                break
            except _StalledError as stall:
                self._tell(CameraState.STALLED, str(stall))
            except CaptureError as fault:
                self._tell(CameraState.RECONNECTING, str(fault))
            except Exception as error:  # a camera must come back whatever its driver threw
                self._tell(CameraState.RECONNECTING, self._unexpected(error))
            finally:
                self._close()
            self._pause()
        self._close()
        self.beat.rest()

    def _stream(self) -> None:
        """Open the source and pass on its frames until it fails or the camera is stopped."""
        self.beat.now()
        self._source.open()
        if self._failures:
            self._status = replace(self._status, reopened=self._status.reopened + 1)
        self._content.reset()
        limit_s = stall_limit_s(self._settings)
        fresh_ns = self._clock.mono_ns()
        while not self._stop.is_set():
            if self._read(min(POLL_S, limit_s)):
                fresh_ns = self._clock.mono_ns()
            elif (self._clock.mono_ns() - fresh_ns) / 1e9 > limit_s:
                raise _StalledError(f"no frame for {limit_s:g} s; the source is opened again: check cable and power")

    def _read(self, timeout_s: float) -> bool:
        """Pass on one frame; False when none came in time."""
        self.beat.now(timeout_s)
        try:
            grab = self._source.read(timeout_s)
        except FrameUnreadableError as fault:
            self._status = replace(self._status, unreadable=self._status.unreadable + 1)
            self._sink.fault(self._settings.id, str(fault))
            return True
        if grab is None:
            return False
        self._deliver(grab)
        if self._content.frozen(grab.image):
            raise _StalledError(
                f"{self._settings.frozen_frames} frames in a row are identical: the camera or its driver repeats an "
                "old image; the source is opened again"
            )
        return True

    def _deliver(self, grab: Grab) -> None:
        self._failures = 0
        grab.image.setflags(write=False)
        number = self._status.frames + 1
        self._status = replace(self._status, frames=number)
        if self._status.state is not CameraState.STREAMING:
            self._tell(CameraState.STREAMING, "")
        self._sink.put(Frame(grab.image, self._settings.id, number, self._clock.mono_ns(), self._clock.ts(), grab.name))

    def _tell(self, state: CameraState, detail: str) -> None:
        """Change the state; a listener that fails must not take the camera down with it."""
        self._status = replace(self._status, state=state, detail=detail)
        try:
            self._on_state(self._status)
        except Exception as error:
            self._unexpected(error)

    def _unexpected(self, error: Exception) -> str:
        """Describe an error nobody expected; its trace goes to the log, once."""
        text = f"{type(error).__name__}: {error}"
        if text not in self._logged and len(self._logged) < 100:
            self._logged.add(text)
            log.error("camera %s: unexpected %s", self._settings.id, text)
            log.debug("camera %s: where it came from", self._settings.id, exc_info=error)
        return f"unexpected {text}"

    def _close(self) -> None:
        try:
            self._source.close()
        except Exception as error:
            self._unexpected(error)

    def _pause(self) -> None:
        """Wait before the next try, longer after each failure in a row, but not when told to stop."""
        pause_s = retry_pause_s(self._settings.retry_s, self._failures)
        self.beat.now(pause_s)
        self._stop.wait(pause_s)
        self._failures += 1


class _StalledError(CaptureError):
    """The source is open and gives nothing new."""


class _Content:
    """Notices that a source repeats one image; a live image never repeats, its noise changes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.reset()

    def reset(self) -> None:
        self._hash = 0
        self._same = 0

    def frozen(self, image: Image) -> bool:
        """Whether this frame is the last of so many identical ones in a row."""
        if self._limit == 0:
            return False
        digest = zlib.crc32(np.ascontiguousarray(image[::4]).data, image.size)
        self._same = self._same + 1 if digest == self._hash else 1
        self._hash = digest
        return self._same >= self._limit and self._limit > 1


def retry_pause_s(retry_s: float, failures: int) -> float:
    """How long to wait after so many failures in a row before the one that just happened.

    >>> [retry_pause_s(0.5, failures) for failures in range(5)]
    [0.5, 1.0, 2.0, 2.0, 2.0]
    """
    return retry_s * min(2.0 ** min(failures, 10), LONGEST_RETRY)


def stall_limit_s(settings: Camera) -> float:
    """How long a camera may be silent: never less than three frames of one that is set to a slower pace.

    One that is fired by the line's trigger is silent for as long as no part comes: what it misses shows there.
    """
    if settings.pairing == "counter":
        return math.inf
    fps = getattr(settings, "fps", None)
    return max(settings.stall_s, 3 / fps) if fps else settings.stall_s
