"""Real servers and files that the capture tests read from."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture import CameraStatus, CameraThread, Intake, Source
from edge.config import Camera
from edge.records import Frame

WIDTH, HEIGHT = 160, 120


def need(program: str) -> str:
    """The program's path; without it the test is skipped, saying so."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], limit_s: float = 8.0) -> float:
    """Seconds until the condition held; fails when it does not within the limit."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < limit_s, f"not true within {limit_s} s"
        time.sleep(0.01)
    return time.monotonic() - start


class MjpegServer:
    """ffmpeg serving MJPEG over HTTP on loopback; `cut` kills it, `start` brings it back on the same port."""

    def __init__(self) -> None:
        self._port = free_port()
        self.address = f"http://127.0.0.1:{self._port}/"
        self._child: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None

    def start(self) -> None:
        """Serve until cut; ffmpeg serves one client and ends with it, so it is started over each time."""
        self._stop.clear()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def cut(self) -> None:
        """Kill it as a power cut does."""
        self._stop.set()
        with contextlib.suppress(OSError):
            if self._child is not None:
                self._child.kill()
        if self._keeper is not None:
            self._keeper.join(5)

    def freeze(self, frozen: bool) -> None:
        """Keep the connection, send nothing."""
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def _keep(self) -> None:
        source = f"testsrc=size={WIDTH}x{HEIGHT}:rate=25"
        kind = ["-f", "mpjpeg", "-content_type", "multipart/x-mixed-replace;boundary=ffmpeg", "-listen", "1"]
        command = ["ffmpeg", "-v", "quiet", "-re", "-f", "lavfi", "-i", source, "-c:v", "mjpeg", *kind, self.address]
        while not self._stop.is_set():
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            if self._stop.is_set():
                self._child.kill()
            self._child.wait()


@contextlib.contextmanager
def mjpeg_server() -> Iterator[MjpegServer]:
    need("ffmpeg")
    server = MjpegServer()
    server.start()
    try:
        yield server
    finally:
        server.cut()


def write_images(folder: Path, count: int = 5, suffix: str = ".png") -> list[Path]:
    """Images 1 to `count`, each of its own grey level, named so that plain sorting would mix them up."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k in range(1, count + 1):
        paths.append(folder / f"part{k}{suffix}")
        cv2.imwrite(str(paths[-1]), np.full((HEIGHT, WIDTH, 3), 10 * k, np.uint8))
    return paths


def write_video(path: Path, frames: int = 12, fps: float = 25.0) -> Path:
    """A Motion JPEG video; frame k is of grey level 10 * k."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.full((HEIGHT, WIDTH, 3), 10 * k, np.uint8))
    writer.release()
    return path


class TestClock:
    """The real clocks, as the camera thread wants them."""

    __test__ = False

    def mono_ns(self) -> int:
        return time.monotonic_ns()

    def ts(self) -> float:
        return time.time()


class Line:
    """A camera thread on a real intake, with a thread that takes all frames, and what became of both."""

    def __init__(self, settings: Camera, source: Source) -> None:
        self.intake = Intake()
        self.states: list[CameraStatus] = []
        self.frames: list[Frame] = []
        self.overruns = self.faults = 0
        self.camera = CameraThread(settings, source, self.intake, TestClock(), self.states.append)
        self._taker = threading.Thread(target=self._take, daemon=True)
        self._done = threading.Event()

    def __enter__(self) -> Line:
        self.camera.start()
        self._taker.start()
        return self

    def __exit__(self, *_: object) -> None:
        stopped = self.camera.stop(8)
        self.intake.close()
        self._done.set()
        self._taker.join(5)
        assert stopped, "the camera thread did not stop"

    def _take(self) -> None:
        while not self._done.is_set():
            taken = self.intake.take(0.1)
            if taken is None:
                continue
            self.overruns += taken.overruns
            self.faults += taken.faults
            if taken.frame is not None:
                self.frames.append(taken.frame)

    def wait_frames(self, more: int, limit_s: float = 8.0) -> float:
        """Seconds until so many more frames came."""
        goal = self.camera.status().frames + more
        return wait_for(lambda: self.camera.status().frames >= goal, limit_s)

    def said(self) -> str:
        return "\n".join(f"{status.state.value}: {status.detail}" for status in self.states)
