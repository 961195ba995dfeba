"""The protocols around a camera thread. Sources are dumb: the camera thread makes them recover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge.preprocess import Image
from edge.records import Frame


@dataclass(frozen=True)
class Grab:
    """What one read of a source gave: an image nobody else writes to, and its name ("" for a live camera)."""

    image: Image
    name: str = ""


class FrameSink(Protocol):
    """Where the camera threads leave what they captured; safe to use from all of them, and never in their way."""

    def put(self, frame: Frame) -> None:
        """Leave a frame."""

    def fault(self, camera: str, text: str) -> None:
        """Tell that a frame of this camera was due and is lost."""


class Source(Protocol):
    """A source of frames. Used by one thread at a time; every call returns within its time limit."""

    def open(self) -> None:
        """Make the source ready.

        Raises:
            CaptureError: it cannot be opened now; the message says why and what to do.
        """

    def read(self, timeout_s: float) -> Grab | None:
        """The next frame, or None when none came within `timeout_s`.

        Raises:
            FrameUnreadableError: one frame was due and is lost; the next read goes on with the one after it.
            SourceEndedError: there are no more frames.
            CaptureError: the source is broken; close it and open it again.
        """

    def close(self) -> None:
        """Release everything; never raises, also when not open."""
