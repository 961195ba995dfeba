"""Raw frames from the standard output of a child process: gst-launch-1.0, ffmpeg, a vendor's grabber."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import time

import numpy as np

from edge.capture.base import Grab
from edge.config import PipeCamera
from edge.errors import CaptureError
from edge.preprocess import Image

PIPE_BYTES = 1 << 20  # the largest an unprivileged process may ask for: fewer switches between child and us
TAIL_BYTES = 4096  # of what the child said last
TAIL_LINES = 4
TERMINATE_S = 1.0  # how long the child may take to end by itself
_CHANNELS = {"gray": 1, "bgr": 3}


class PipeSource:
    """Frames of width * height * (1 or 3) bytes, one after the other; implements `Source`.

    The stream has no marks between frames. So any end or short frame closes it, and opening it again, which
    starts the child anew, is what brings it back into step.
    """

    def __init__(self, settings: PipeCamera) -> None:
        self._settings = settings
        channels = _CHANNELS[settings.format]
        size = (settings.height, settings.width)
        self._shape: tuple[int, ...] = size if channels == 1 else (*size, channels)
        self._child: subprocess.Popen[bytes] | None = None
        self._image: Image = np.empty(self._shape, np.uint8)  # being filled; handed over when full
        self._filled = 0
        self._frames = 0
        self._said = b""

    def open(self) -> None:
        """Start the child.

        Raises:
            CaptureError: its command is missing or cannot be started.
        """
        self.close()
        command = self._settings.command
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise CaptureError(_cannot_start(command[0], error)) from error
        for stream in (self._child.stdout, self._child.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        with contextlib.suppress(OSError):  # over the user's limit of pipe memory: the usual size does, too
            fcntl.fcntl(self._child.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[arg-type]
        self._filled = self._frames = 0
        self._said = b""

    def read(self, timeout_s: float) -> Grab | None:
        """The next whole frame; a part of one is kept for the next call. See `Source.read`."""
        child = self._child
        if child is None or child.stdout is None or child.stderr is None:
            raise CaptureError(f"the command {self._settings.command[0]} is not running")
        deadline = time.monotonic() + timeout_s
        streams = [child.stdout.fileno(), child.stderr.fileno()]
        while True:
            wait_s = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select(streams, [], [], wait_s)
            if streams[-1] in ready and len(streams) == 2 and not self._listen(streams[1]):
                streams.pop()  # closed: it would be ready for ever
            if streams[0] in ready and self._fill(streams[0]):
                return self._hand_over()
            if not ready or time.monotonic() >= deadline:
                return None

    def close(self) -> None:
        """End the child with everything it started: asked first, then killed."""
        child, self._child = self._child, None
        if child is None:
            return
        # The group is signalled while its leader is not reaped yet, so its number cannot belong to another.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_S
        while not _has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: nothing can end it now
            child.wait(TERMINATE_S)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()

    def _fill(self, stream: int) -> bool:
        """Take what is there into the image; True when that completes it."""
        rest = self._image.data.cast("B")[self._filled :]
        try:
            count = os.readv(stream, [rest])
        except BlockingIOError:
            return False
        if count == 0:
            raise CaptureError(self._ended())
        self._filled += count
        return self._filled == self._image.nbytes

    def _hand_over(self) -> Grab:
        image = self._image
        self._image = np.empty(self._shape, np.uint8)
        self._filled = 0
        self._frames += 1
        return Grab(image)

    def _listen(self, stream: int) -> bool:
        """Keep the last of what the child says, so that it never waits for a reader; False at its end."""
        try:
            said = os.read(stream, 1 << 16)
        except BlockingIOError:
            return True
        self._said = (self._said + said)[-TAIL_BYTES:]
        return bool(said)

    def _ended(self) -> str:
        """Why the stream ended, in the child's own last words."""
        child = self._child
        assert child is not None and child.stderr is not None
        deadline = time.monotonic() + 0.2  # its last words may come after its last byte
        while not _has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        for _ in range(16):
            if not select.select([child.stderr], [], [], 0)[0] or not self._listen(child.stderr.fileno()):
                break
        parts = [f"{self._settings.command[0]} {_exit_text(child)} after {self._frames} frames"]
        if self._filled:
            parts.append(
                f"and {self._filled} of the {self._image.nbytes} bytes of the next: check that it sends "
                f"{self._settings.width}x{self._settings.height} {self._settings.format}"
            )
        words = last_words(self._said)
        return " ".join(parts) + (f"; it said: {words}" if words else "")


def _cannot_start(command: str, error: OSError) -> str:
    if os.path.exists(command):
        return f"the command {command} cannot be run ({error.strerror}): name an executable file this user may run"
    if shutil.which(command) is None:
        return f"the command {command} is not there: install it, or give its full path in the camera's command"
    return f"the command {command} cannot be started: {error.strerror}"


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether it has ended, without reaping it: that would free its number for another process."""
    if child.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def _exit_text(child: subprocess.Popen[bytes]) -> str:
    try:
        info = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except ChildProcessError:
        info = None
    if info is None:
        return "closed its output"
    if info.si_code == os.CLD_EXITED:
        return f"ended with code {info.si_status}"
    return f"was ended by {signal.Signals(info.si_status).name}"


def last_words(said: bytes) -> str:
    """The last lines of what a child printed, on one line, without colours.

    >>> last_words(b"\\x1b[31mfirst\\x1b[0m\\n\\nno such device\\n")
    'first | no such device'
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", said.decode("utf-8", "replace"))
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return " | ".join("".join(c if c.isprintable() else " " for c in line) for line in lines[-TAIL_LINES:])
