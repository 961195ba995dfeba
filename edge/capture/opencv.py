"""Frames from what cv2.VideoCapture opens: V4L2 devices, RTSP and HTTP streams, video files."""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from pathlib import Path
from typing import cast

import cv2

from edge.capture.base import Grab
from edge.capture.pacing import Pacer
from edge.config import OpenCvCamera
from edge.errors import CaptureError, SourceEndedError
from edge.preprocess import Image

OPEN_TIMEOUT_S = 4.0  # a stream's server may take so long to answer
READ_TIMEOUT_S = 3.0  # and so long for a frame, before FFmpeg gives up by itself
CLOSE_S = 0.5  # a reader that does not stop within this hangs in its driver and is abandoned
MOST_ABANDONED = 4
LOG_ERRORS = 2  # of OpenCV's levels
DEFAULT_FPS = 25.0  # of a video file that does not tell


class OpenCvSource:
    """A cv2.VideoCapture that cannot hang the camera; implements `Source`.

    `cv2.VideoCapture` blocks in drivers and sockets without a usable time limit, so it lives in a reader
    thread that can be left behind when it hangs. A reader left behind releases the device if it ever returns.
    """

    def __init__(self, settings: OpenCvCamera, capture: type[cv2.VideoCapture] = cv2.VideoCapture) -> None:
        # Over UDP a lost packet is a smeared image that looks like a frame; over TCP it is a late frame.
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
        # OpenCV warns on each try that it cannot open, and never why; FFmpeg's own lines, which do, stay.
        cv2.setLogLevel(LOG_ERRORS)
        self._settings = settings
        self._capture = capture
        self._reader: _Reader | None = None
        self._abandoned: list[_Reader] = []
        self._pacer: Pacer | None = None  # of a video file
        self._waiting: Grab | None = None  # read, but not due yet

    @property
    def abandoned(self) -> int:
        """How many readers hang in a driver now."""
        self._abandoned = [reader for reader in self._abandoned if reader.is_alive()]
        return len(self._abandoned)

    def open(self) -> None:
        """Open the address in a new reader.

        Raises:
            CaptureError: nothing there, it refuses, it does not answer, or too many readers hang already.
        """
        self.close()
        address = self._settings.address
        check_address(address)
        if self.abandoned >= MOST_ABANDONED:
            raise CaptureError(
                f"{mask(address)}: {self.abandoned} readers hang in its driver and no more are started: "
                "unplug the camera and plug it in again, or restart the service"
            )
        self._reader = _Reader(self._settings, self._capture)
        fps = self._reader.wait_open(OPEN_TIMEOUT_S + 0.5)
        if is_file(address):
            self._pacer = self._pacer or Pacer(self._settings.fps or (fps if 0 < fps <= 1000 else DEFAULT_FPS))

    def read(self, timeout_s: float) -> Grab | None:
        """The next frame; see `Source.read`."""
        if self._reader is None:
            raise CaptureError(f"{mask(self._settings.address)} is not open")
        deadline = time.monotonic() + timeout_s
        # An unplugged camera's driver may go on repeating its last image, but its device file is gone.
        if self._settings.address.startswith("/dev/"):
            check_address(self._settings.address)
        if self._waiting is None:
            self._waiting = self._reader.take(timeout_s)
        if self._waiting is None:
            return None
        if self._pacer is not None and not self._pacer.wait(max(0.0, deadline - time.monotonic())):
            return None
        grab, self._waiting = self._waiting, None
        return grab

    def close(self) -> None:
        """Stop the reader; one that hangs is left behind and counted."""
        reader, self._reader, self._waiting = self._reader, None, None
        if reader is not None and not reader.stop(CLOSE_S):
            self._abandoned.append(reader)


class _Reader:
    """The thread that owns one VideoCapture; it hands over one frame at a time and drops none.

    What it hands over: first the source's frame rate (0: it tells none), then frames; an exception ends it.
    """

    def __init__(self, settings: OpenCvCamera, capture: type[cv2.VideoCapture]) -> None:
        self._settings = settings
        self._new = capture
        self._stop = threading.Event()
        self._out: queue.Queue[float | Grab | Exception] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name=f"reader-{settings.id}", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wait_open(self, timeout_s: float) -> float:
        """Wait until it is open; the frame rate the source tells, 0 when it tells none."""
        result = self._get(timeout_s)
        if isinstance(result, float):
            return result
        raise CaptureError(
            f"{mask(self._settings.address)} did not open within {timeout_s:g} s: check cable, power and network"
        )

    def take(self, timeout_s: float) -> Grab | None:
        """The next frame; raises what the thread met instead of one."""
        result = self._get(timeout_s)
        return result if isinstance(result, Grab) else None

    def stop(self, timeout_s: float) -> bool:
        """Ask it to end and release the device; False when it does not, because it hangs."""
        self._stop.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _get(self, timeout_s: float) -> float | Grab | None:
        try:
            result = self._out.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self) -> None:
        capture: cv2.VideoCapture | None = None
        try:
            capture = self._new()
            self._start(capture)
            self._offer(float(capture.get(cv2.CAP_PROP_FPS)))
            self._pass_on(capture)
        except CaptureError as error:
            self._offer(error)
        except Exception as error:  # cv2.error, or anything a driver's binding throws
            self._offer(CaptureError(f"{mask(self._settings.address)}: {type(error).__name__}: {error}"))
        finally:
            if capture is not None:
                capture.release()

    def _pass_on(self, capture: cv2.VideoCapture) -> None:
        count = 0
        while not self._stop.is_set():
            good, image = capture.read()
            if good and image is not None and image.size:
                count += 1
                # Owned bytes: some backends hand out a view of the buffer the next frame goes to.
                owned = cast(Image, image if image.flags.owndata else image.copy())
                self._check_size(owned)
                self._offer(Grab(owned))
            elif count and is_file(self._settings.address):
                if not self._settings.loop:
                    raise SourceEndedError(f"{self._settings.address}: all {count} frames were read")
                capture.release()
                self._start(capture)
                count = 0
            else:
                raise CaptureError(_no_frame(self._settings.address, count))

    def _offer(self, what: float | Grab | Exception) -> None:
        """Wait for the camera thread to take it, but not once told to stop."""
        while not self._stop.is_set():
            try:
                self._out.put(what, timeout=0.1)
                return
            except queue.Full:
                continue

    def _start(self, capture: cv2.VideoCapture) -> None:
        settings = self._settings
        if settings.address.startswith("/dev/"):
            opened = capture.open(settings.address, cv2.CAP_V4L2)
            _ask(capture, settings)
        else:
            limits = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                round(OPEN_TIMEOUT_S * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                round(READ_TIMEOUT_S * 1000),
            ]
            opened = capture.open(settings.address, cv2.CAP_FFMPEG, limits)
        if not opened:
            raise CaptureError(_not_opened(settings.address))

    def _check_size(self, image: Image) -> None:
        """A camera that ignores the size asked for would be inspected at another scale than the recipe's."""
        height, width = image.shape[:2]
        wanted = (self._settings.width or width, self._settings.height or height)
        if (width, height) != wanted:
            raise CaptureError(
                f"{mask(self._settings.address)} sends {width}x{height}, but {wanted[0]}x{wanted[1]} is configured: "
                "correct width and height, or the camera's mode (v4l2-ctl --list-formats-ext shows them)"
            )


def _ask(capture: cv2.VideoCapture, settings: OpenCvCamera) -> None:
    """Ask a V4L2 camera for its mode; the format first, since the sizes depend on it."""
    if settings.fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*settings.fourcc))
    wishes = {
        cv2.CAP_PROP_FRAME_WIDTH: settings.width,
        cv2.CAP_PROP_FRAME_HEIGHT: settings.height,
        cv2.CAP_PROP_FPS: settings.fps,
    }
    for key, value in wishes.items():
        if value is not None:
            capture.set(key, value)


def is_file(address: str) -> bool:
    """Whether an address names a video file, not a device or a stream."""
    return "://" not in address and not address.startswith("/dev/")


def check_address(address: str) -> None:
    """Refuse what cannot open, with the reason that cv2 does not give.

    Raises:
        CaptureError: no such device or file, or no permission to read it.
    """
    if "://" in address:
        return
    path = Path(address)
    if not path.exists():
        remedy = (
            "is the camera plugged in and powered? `ls /dev/v4l/by-id` lists those that are"
            if address.startswith("/dev/")
            else "give the path of a video file, /dev/v4l/by-id/... or an address like rtsp://..."
        )
        raise CaptureError(f"{address} does not exist: {remedy}")
    if path.is_dir():
        raise CaptureError(f'{address} is a folder: use source = "folder" for images, or name a video file in it')
    if not os.access(path, os.R_OK):
        group = (
            "add the service's user to the group video" if address.startswith("/dev/") else "check its owner and mode"
        )
        raise CaptureError(f"{address} may not be read by this user: {group}")


def mask(address: str) -> str:
    """The address without the password in it, for messages.

    >>> mask("rtsp://admin:secret@10.0.0.9/live")
    'rtsp://admin:***@10.0.0.9/live'
    """
    return re.sub(r"(://[^/@:]*):[^@/]*@", r"\1:***@", address)


def _not_opened(address: str) -> str:
    if is_file(address):
        return f"{address} is not a video file this program can read: it may be cut short; copy or record it again"
    if address.startswith("/dev/"):
        return f"{address} cannot be opened as a camera: another program may hold it (`fuser -v {address}` tells)"
    return (
        f"{mask(address)} cannot be opened: check that the server runs, the address and the password "
        "(`ffprobe` with the same address shows its answer)"
    )


def _no_frame(address: str, count: int) -> str:
    if is_file(address):
        return f"{address} holds no frame that can be decoded"
    what = "stopped sending frames" if count else "opened but sent no frame"
    return f"{mask(address)} {what}: check cable, power and network"
