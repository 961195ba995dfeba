"""Where frames come from: sources behind one protocol, a thread a camera, one bounded intake."""

from __future__ import annotations

from edge.capture.base import FrameSink, Grab, Source
from edge.capture.camera import CameraState, CameraStatus, CameraThread, Clock
from edge.capture.folder import FolderSource
from edge.capture.intake import Intake, Taken
from edge.capture.opencv import OpenCvSource
from edge.capture.pipe import PipeSource
from edge.capture.ring import CameraFaults, FrameCounts, FrameRing, Snapshot
from edge.capture.simulated import SimulatedSource
from edge.config import Camera, FolderCamera, OpenCvCamera, PipeCamera

__all__ = [
    "CameraFaults",
    "CameraState",
    "CameraStatus",
    "CameraThread",
    "Clock",
    "FrameCounts",
    "FrameRing",
    "FrameSink",
    "Grab",
    "Intake",
    "Snapshot",
    "Source",
    "Taken",
    "make_source",
]


def make_source(settings: Camera) -> Source:
    """The source a camera's settings describe; nothing is opened yet."""
    if isinstance(settings, FolderCamera):
        return FolderSource(settings)
    if isinstance(settings, OpenCvCamera):
        return OpenCvSource(settings)
    if isinstance(settings, PipeCamera):
        return PipeSource(settings)
    return SimulatedSource(settings)
