"""The ring between cameras and a triggered station: bounded, nothing copied, nothing uncounted."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest

from edge.capture import CameraThread, FrameCounts, FrameRing, Intake
from edge.capture.base import FrameSink, Grab
from edge.clock import SystemClock
from edge.config import SimulatedCamera
from edge.records import Frame

IMAGE = np.zeros((2, 2), np.uint8)
NOW = 0  # a moment long past


def frame(camera: str = "a", number: int = 1) -> Frame:
    return Frame(IMAGE, camera, number, number * 1_000_000, 0.0)


def soon(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)


def test_it_keeps_the_last_frames_of_each_camera_as_they_are() -> None:
    ring = FrameRing(["a", "b"], per_camera=3)
    for number in range(1, 6):
        ring.put(frame("a", number))
    ring.put(frame("b", 1))
    look = ring.wait(NOW)
    assert [f.number for f in look.frames["a"]] == [3, 4, 5]
    assert [f.number for f in look.frames["b"]] == [1], "a fast camera does not push out a slow one"
    assert look.frames["a"][0].image is IMAGE, "no copy"


def test_a_snapshot_stays_as_it_was() -> None:
    ring = FrameRing(["a"])
    ring.put(frame(number=1))
    look = ring.wait(NOW)
    ring.put(frame(number=2))
    assert [f.number for f in look.frames["a"]] == [1]


def test_a_wait_ends_with_news_with_the_moment_or_with_the_close() -> None:
    ring = FrameRing(["a"])
    for event in (lambda: ring.put(frame()), lambda: ring.fault("a", "cut short"), ring.close):
        seen = ring.wait(NOW).version
        threading.Timer(0.05, event).start()
        began = time.monotonic()
        look = ring.wait(soon(5), seen)
        assert time.monotonic() - began < 2
        assert look.closed or look.version == seen + 1
    assert ring.wait(soon(5), look.version).closed, "no wait after the close"

    quiet = FrameRing(["a"])
    began = time.monotonic()
    assert quiet.wait(soon(0.05)).version == 0
    assert 0.04 < time.monotonic() - began < 1


def test_what_came_before_the_wait_is_news_too() -> None:
    ring = FrameRing(["a"])
    seen = ring.wait(NOW).version
    ring.put(frame())
    began = time.monotonic()
    assert ring.wait(soon(5), seen).version == 1
    assert time.monotonic() - began < 1


def test_frames_that_nobody_wanted_are_counted() -> None:
    ring = FrameRing(["a"], per_camera=2)
    frames = [frame(number=n) for n in range(1, 6)]
    ring.put(frames[0])
    ring.use(frames[0])
    ring.use(frames[0])  # told twice
    for each in frames[1:]:
        ring.put(each)
    assert ring.counts()["a"] == FrameCounts(put=5, used=1, unused=2, waiting=2, faults=0)
    ring.use(frames[2])  # it fell out between the look and the choice
    ring.use(frames[4])
    assert ring.counts()["a"] == FrameCounts(put=5, used=3, unused=1, waiting=1, faults=0)


def test_faults_are_news_once_and_counted_for_good() -> None:
    ring = FrameRing(["a", "b"])
    ring.fault("a", "cut short")
    ring.fault("a", "no JPEG")
    taken = ring.take_faults()
    assert list(taken) == ["a"] and (taken["a"].count, taken["a"].text) == (2, "no JPEG")
    assert ring.take_faults() == {}
    assert ring.counts()["a"].faults == 2


def test_after_the_close_nothing_is_taken_and_what_is_there_can_be_seen() -> None:
    ring = FrameRing(["a"])
    ring.put(frame(number=1))
    ring.close()
    ring.put(frame(number=2))
    ring.fault("a", "late")
    assert [f.number for f in ring.wait(NOW).frames["a"]] == [1]
    assert ring.counts()["a"] == FrameCounts(put=1, used=0, unused=0, waiting=1, faults=0)


def test_what_it_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="at least 2 frames"):
        FrameRing(["a"], per_camera=1)
    with pytest.raises(ValueError, match="no camera c, only a, b"):
        FrameRing(["a", "b"]).put(frame("c"))


def test_every_frame_of_three_threads_is_seen_in_order_and_accounted_for() -> None:
    ring = FrameRing("abc", per_camera=4)

    def camera(name: str) -> None:
        chance = random.Random(name)
        for number in range(1, 301):
            ring.put(frame(name, number))
            if chance.random() < 0.1:
                ring.fault(name, "bad")
            time.sleep(chance.random() * 0.0004)

    threads = [threading.Thread(target=camera, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    used, seen, last = 0, 0, dict.fromkeys("abc", 0)
    while any(thread.is_alive() for thread in threads):
        look = ring.wait(soon(0.05), seen)
        seen = look.version
        for name, frames in look.frames.items():
            numbers = [f.number for f in frames]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            if frames and frames[-1].number > last[name]:
                last[name] = frames[-1].number
                ring.use(frames[-1])
                used += 1
    counts = ring.counts()
    assert sum(c.used for c in counts.values()) == used > 100
    assert all(c.put == 300 == c.used + c.unused + c.waiting for c in counts.values())


class ThreeFrames:
    """A source that gives three frames, then is silent."""

    def open(self) -> None:
        self.left = 3

    def read(self, timeout_s: float) -> Grab | None:
        if self.left:
            self.left -= 1
            return Grab(np.full((4, 4), self.left, np.uint8))
        time.sleep(timeout_s)
        return None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("make", [Intake, lambda: FrameRing(["c"])], ids=["intake", "ring"])
def test_a_camera_thread_delivers_to_either_sink(make: type[FrameSink]) -> None:
    sink = make()
    camera = CameraThread(SimulatedCamera(id="c"), ThreeFrames(), sink, SystemClock(), lambda status: None)
    camera.start()
    limit = time.monotonic() + 5
    while camera.status().frames < 3 and time.monotonic() < limit:
        time.sleep(0.005)
    assert camera.stop(5)
    if isinstance(sink, FrameRing):
        assert [f.number for f in sink.wait(NOW).frames["c"]] == [1, 2, 3]
    else:
        assert sink.take(0).frame.number == 3
