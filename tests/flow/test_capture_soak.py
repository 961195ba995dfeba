"""Streams cut off and children killed, 20 times each: how fast frames come back, and what that costs in memory.

Prints its figures: `python -m pytest -s -m slow tests/flow/test_capture_soak.py`.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge.capture import CameraState, make_source
from edge.config import Camera, OpenCvCamera, PipeCamera
from tests.capture.rtsp_server import RtspServer
from tests.capture.streams import HEIGHT, WIDTH, Line, mjpeg_server, need, wait_for

CUTS = 20
WARM_UP = 4  # cuts before memory is first looked at: libraries and arenas settle in these
RECOVERY_S = 5.0
GROWTH_BYTES = 8_000_000


@contextmanager
def mjpeg(_: Path) -> Iterator[tuple[Camera, Callable[[Line], None], Callable[[], None]]]:
    with mjpeg_server() as server:
        yield OpenCvCamera(id="c", address=server.address), lambda line: server.cut(), server.start


@contextmanager
def rtsp(_: Path) -> Iterator[tuple[Camera, Callable[[Line], None], Callable[[], None]]]:
    need("ffmpeg")
    server = RtspServer()
    server.start()
    try:
        yield OpenCvCamera(id="c", address=server.address), lambda line: server.cut(), server.start
    finally:
        server.cut()


@contextmanager
def gstreamer(_: Path) -> Iterator[tuple[Camera, Callable[[Line], None], None]]:
    caps = f"video/x-raw,format=BGR,width={WIDTH},height={HEIGHT},framerate=25/1"
    command = [need("gst-launch-1.0"), "-q", "videotestsrc", "is-live=true", "!", caps, "!", "fdsink", "fd=1"]
    camera = PipeCamera(id="c", command=command, width=WIDTH, height=HEIGHT)

    def kill(line: Line) -> None:
        os.kill(line.camera._source._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]

    yield camera, kill, None  # the camera starts it again


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [mjpeg, rtsp, gstreamer], ids=lambda kind: kind.__name__)
def test_a_source_cut_off_twenty_times_comes_back_each_time(kind: Callable[..., object], tmp_path: Path) -> None:
    took: list[float] = []
    memory: list[int] = []
    chance = random.Random(1)
    with kind(tmp_path) as (camera, cut, start), Line(camera, make_source(camera)) as line:  # type: ignore[attr-defined]
        line.wait_frames(10, 10)
        for _ in range(WARM_UP + CUTS):
            reopened = line.camera.status().reopened
            cut(line)
            back = time.monotonic()
            if start is not None:
                wait_for(lambda: line.camera.status().state is not CameraState.STREAMING)
                time.sleep(chance.random() * 2)  # the outage: the camera is anywhere in its pauses when it ends
                start()
                back = time.monotonic()
            wait_for(lambda before=reopened: line.camera.status().reopened > before, 15)  # type: ignore[misc]
            line.wait_frames(3, 15)
            took.append(time.monotonic() - back)
            line.frames.clear()
            memory.append(rss_bytes())
        threads, files = threading.active_count(), open_files()
    took, memory = took[WARM_UP:], memory[WARM_UP:]
    print(
        f"\n{kind.__name__}: {len(took)} cuts, back in p50 {sorted(took)[len(took) // 2]:.2f} s, "
        f"worst {max(took):.2f} s; RSS {memory[0] / 1e6:.1f} -> {memory[-1] / 1e6:.1f} MB, "
        f"{threads} threads, {files} open files"
    )
    assert max(took) <= RECOVERY_S
    assert memory[-1] - memory[0] < GROWTH_BYTES
    assert threads < 12 and files < 60
