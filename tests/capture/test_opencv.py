"""Streams, devices and video files through cv2.VideoCapture, with its habit of hanging."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture import CameraState, make_source
from edge.capture.opencv import MOST_ABANDONED, OpenCvSource
from edge.config import OpenCvCamera
from edge.errors import CaptureError, SourceEndedError
from tests.capture.rtsp_server import RtspServer
from tests.capture.streams import HEIGHT, WIDTH, Line, mjpeg_server, need, wait_for, write_video

NOWHERE = "http://127.0.0.1:9/"  # the discard port: nobody listens


def read_all(source: OpenCvSource, count: int) -> list[float]:
    """The mean grey level of so many frames."""
    levels: list[float] = []
    while len(levels) < count:
        grab = source.read(0.5)
        if grab is not None:
            levels.append(float(grab.image.mean()))
    return levels


def test_a_video_file_is_read_whole_in_its_own_pace_and_ends(tmp_path: Path) -> None:
    source = OpenCvSource(OpenCvCamera(id="c", address=str(write_video(tmp_path / "v.avi", 12, 25))))
    source.open()
    start = time.monotonic()
    levels = read_all(source, 12)
    assert 0.4 < time.monotonic() - start < 3, "12 frames at 25 a second take 0.44 s"
    assert np.allclose(levels, 10 * np.arange(12), atol=3), "every frame, in order"
    with pytest.raises(SourceEndedError, match="all 12 frames were read"):
        read_all(source, 1)
    source.close()


def test_a_looped_video_file_starts_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi", 3)
    source = OpenCvSource(OpenCvCamera(id="c", address=str(path), fps=200, loop=True))
    source.open()
    assert np.allclose(read_all(source, 7), [0, 10, 20, 0, 10, 20, 0], atol=3)
    source.close()


REFUSED = [
    ("a camera that is not plugged in", "/dev/v4l/by-id/usb-none", "does not exist: is the camera plugged in"),
    ("a file that is not there", "gone.mp4", "gone.mp4 does not exist: give the path of a video file"),
    ("a folder", ".", 'is a folder: use source = "folder"'),
    ("a device that is no camera", "/dev/null", "/dev/null cannot be opened as a camera"),
    ("a server that does not run", NOWHERE, "cannot be opened: check that the server runs"),
    ("a password in the address", "http://me:secret@127.0.0.1:9/", r"http://me:\*\*\*@127"),
]


@pytest.mark.parametrize(("reason", "address", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_cannot_be_opened_is_named_with_a_remedy(reason: str, address: str, message: str) -> None:
    source = OpenCvSource(OpenCvCamera(id="c", address=address))
    start = time.monotonic()
    with pytest.raises(CaptureError, match=message) as caught:
        source.open()
    assert "secret" not in str(caught.value)
    assert time.monotonic() - start < 5
    source.close()


def test_a_damaged_video_file_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CaptureError, match=r"v\.avi is not a video file this program can read"):
        OpenCvSource(OpenCvCamera(id="c", address=str(path))).open()


def test_another_size_than_configured_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.avi")
    source = OpenCvSource(OpenCvCamera(id="c", address=str(path), width=640, height=480))
    source.open()
    with pytest.raises(CaptureError, match="sends 160x120, but 640x480 is configured"):
        read_all(source, 1)
    source.close()


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_costs_a_bounded_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        source = OpenCvSource(OpenCvCamera(id="c", address=address))
        start = time.monotonic()
        with pytest.raises(CaptureError, match=r"cannot be opened|did not open"):
            source.open()
        assert time.monotonic() - start < 7
        source.close()


class Hanging:
    """A capture like a driver's after an unplug: good for two frames, then it blocks until released."""

    unplugged = threading.Event()
    release_all = threading.Event()

    def __init__(self) -> None:
        self._count = 0

    def open(self, *_: object) -> bool:
        return True

    def get(self, _: int) -> float:
        return 0.0

    def read(self) -> tuple[bool, np.ndarray]:
        self._count += 1
        if self._count > 2 and self.unplugged.is_set():
            self.release_all.wait(20)
            return False, np.zeros(0)
        time.sleep(0.01)
        return True, np.random.default_rng(self._count).integers(0, 255, (6, 8, 3), np.uint8)

    def release(self) -> None:
        return None


def test_a_hanging_driver_is_left_behind_and_a_new_reader_started() -> None:
    Hanging.unplugged.set()
    Hanging.release_all.clear()
    camera = OpenCvCamera(id="c", address="rtsp://nobody/", stall_s=0.2, retry_s=0.05)
    source = OpenCvSource(camera, Hanging)  # type: ignore[arg-type]
    with Line(camera, source) as line:
        wait_for(lambda: source.abandoned == 2)
        Hanging.unplugged.clear()  # plugged in again: new readers work, the old two still hang
        line.wait_frames(10)
        assert line.camera.status().state is CameraState.STREAMING
        Hanging.release_all.set()
        wait_for(lambda: source.abandoned == 0)
    assert "stalled: no frame for 0.2 s" in line.said()


def test_no_more_than_a_few_readers_are_ever_left_behind() -> None:
    Hanging.unplugged.set()
    Hanging.release_all.clear()
    camera = OpenCvCamera(id="c", address="rtsp://nobody/", stall_s=0.2, retry_s=0.02)
    source = OpenCvSource(camera, Hanging)  # type: ignore[arg-type]
    threads = threading.active_count()
    with Line(camera, source) as line:
        wait_for(lambda: "4 readers hang" in line.said(), 12)
        time.sleep(0.3)
        assert source.abandoned == MOST_ABANDONED
        assert threading.active_count() <= threads + 2 + MOST_ABANDONED
        Hanging.unplugged.clear()
        Hanging.release_all.set()
        line.wait_frames(3)


def test_an_unplugged_device_is_noticed_though_its_driver_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hanging.unplugged.clear()
    plugged = True
    monkeypatch.setattr(Path, "exists", lambda path: plugged)
    monkeypatch.setattr("edge.capture.opencv.os.access", lambda path, mode: True)
    source = OpenCvSource(OpenCvCamera(id="c", address="/dev/v4l/by-id/usb-camera"), Hanging)  # type: ignore[arg-type]
    source.open()
    assert len(read_all(source, 3)) == 3
    plugged = False
    with pytest.raises(CaptureError, match="is the camera plugged in"):
        source.read(0.2)
    source.close()


def test_a_stream_cut_off_twice_comes_back() -> None:
    with mjpeg_server() as server:
        camera = OpenCvCamera(id="c", address=server.address)
        with Line(camera, make_source(camera)) as line:
            line.wait_frames(5)
            for _ in range(2):
                server.cut()
                wait_for(lambda: line.camera.status().state is CameraState.RECONNECTING)
                server.start()
                assert line.wait_frames(3) <= 5
        assert line.camera.status().reopened >= 2
        assert "stopped sending frames: check cable, power and network" in line.said()


def test_an_rtsp_stream_is_read_over_tcp_and_comes_back_after_a_cut() -> None:
    need("ffmpeg")
    server = RtspServer()
    server.start()
    camera = OpenCvCamera(id="c", address=server.address)
    try:
        with Line(camera, make_source(camera)) as line:
            line.wait_frames(5)
            assert line.frames[-1].image.shape == (HEIGHT, WIDTH, 3)
            server.cut()
            wait_for(lambda: line.camera.status().state is CameraState.RECONNECTING)
            server.start()
            assert line.wait_frames(3) <= 5
    finally:
        server.cut()


def test_a_stream_that_freezes_is_noticed_and_comes_back() -> None:
    with mjpeg_server() as server:
        camera = OpenCvCamera(id="c", address=server.address, stall_s=0.5, retry_s=0.1)
        with Line(camera, make_source(camera)) as line:
            line.wait_frames(5)
            server.freeze(True)
            wait_for(lambda: line.camera.status().state is not CameraState.STREAMING)
            server.freeze(False)
            assert line.wait_frames(3) <= 5
        assert "stalled: no frame for 0.5 s" in line.said()


def test_the_log_level_of_opencv_keeps_errors() -> None:
    make_source(OpenCvCamera(id="c", address=NOWHERE))
    assert cv2.getLogLevel() == 2
