"""What every source promises, tried on each of them with real files, servers and child processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edge.capture import Grab, Source, make_source
from edge.config import Camera, FolderCamera, OpenCvCamera, PipeCamera, SimulatedCamera
from tests.capture.streams import HEIGHT, WIDTH, mjpeg_server, need, write_images, write_video

Maker = Callable[[Path, ExitStack], Camera]


def folder(tmp: Path, _: ExitStack) -> Camera:
    write_images(tmp / "in")
    return FolderCamera(id="c", path=str(tmp / "in"), fps=50, loop=True)


def video(tmp: Path, _: ExitStack) -> Camera:
    return OpenCvCamera(id="c", address=str(write_video(tmp / "v.avi")), fps=50, loop=True)


def http(_: Path, stack: ExitStack) -> Camera:
    return OpenCvCamera(id="c", address=stack.enter_context(mjpeg_server()).address)


def gstreamer(_: Path, __: ExitStack) -> Camera:
    caps = f"video/x-raw,format=BGR,width={WIDTH},height={HEIGHT},framerate=25/1"
    command = [need("gst-launch-1.0"), "-q", "videotestsrc", "is-live=true", "!", caps, "!", "fdsink", "fd=1"]
    return PipeCamera(id="c", command=command, width=WIDTH, height=HEIGHT)


def ffmpeg(_: Path, __: ExitStack) -> Camera:
    source = ["-re", "-f", "lavfi", "-i", f"testsrc=size={WIDTH}x{HEIGHT}:rate=25"]
    command = [need("ffmpeg"), "-v", "error", *source, "-f", "rawvideo", "-pix_fmt", "gray", "-"]
    return PipeCamera(id="c", command=command, width=WIDTH, height=HEIGHT, format="gray")


def simulated(_: Path, __: ExitStack) -> Camera:
    return SimulatedCamera(id="c", fps=50, width=WIDTH, height=HEIGHT)


SHAPES: dict[Maker, tuple[int, ...]] = {
    folder: (HEIGHT, WIDTH, 3),
    video: (HEIGHT, WIDTH, 3),
    http: (HEIGHT, WIDTH, 3),
    gstreamer: (HEIGHT, WIDTH, 3),
    ffmpeg: (HEIGHT, WIDTH),
    simulated: (HEIGHT, WIDTH),
}


@pytest.fixture(params=list(SHAPES), ids=lambda maker: maker.__name__)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Source, tuple[int, ...]]]:
    with ExitStack() as stack:
        source = make_source(request.param(tmp_path, stack))
        stack.callback(source.close)
        yield source, SHAPES[request.param]


def open_within(source: Source, limit_s: float = 8.0) -> None:
    """Open it, again if need be: a server of these tests may take a moment to listen."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            return source.open()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def read(source: Source, count: int, limit_s: float = 8.0) -> list[Grab]:
    """So many frames, by short reads as the camera thread makes them."""
    grabs: list[Grab] = []
    deadline = time.monotonic() + limit_s
    while len(grabs) < count:
        assert time.monotonic() < deadline, f"{len(grabs)} of {count} frames within {limit_s} s"
        grab = source.read(0.2)
        if grab is not None:
            grabs.append(grab)
    return grabs


def test_frames_have_the_right_shape_and_are_ours_to_keep(made: tuple[Source, tuple[int, ...]]) -> None:
    source, shape = made
    open_within(source)
    grabs = read(source, 4)
    assert [grab.image.shape for grab in grabs] == [shape] * 4
    assert all(grab.image.dtype == np.uint8 and grab.image.flags.c_contiguous for grab in grabs)
    kept = [grab.image.copy() for grab in grabs]
    read(source, 3)
    assert all(np.array_equal(copy, grab.image) for copy, grab in zip(kept, grabs, strict=True))


def test_a_read_returns_within_its_time_limit(made: tuple[Source, tuple[int, ...]]) -> None:
    source, _ = made
    open_within(source)
    read(source, 2)
    waits = []
    for _ in range(20):
        start = time.monotonic()
        source.read(0.02)
        waits.append(time.monotonic() - start)
    assert sorted(waits)[10] < 0.1, waits


def test_close_may_come_at_any_time_and_open_again_after_it(made: tuple[Source, tuple[int, ...]]) -> None:
    source, shape = made
    source.close()
    for _ in range(2):
        open_within(source)
        assert read(source, 1)[0].image.shape == shape
        source.close()
        source.close()


def test_reading_what_is_not_open_never_hangs(made: tuple[Source, tuple[int, ...]]) -> None:
    source, _ = made
    start = time.monotonic()
    try:
        source.read(0.1)
    except Exception as error:
        assert "open" in str(error) or "running" in str(error)
    assert time.monotonic() - start < 1
