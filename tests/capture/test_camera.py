"""The supervising thread: every fault of a source ends in frames again, and is told in words."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.capture import CameraState, Grab, make_source
from edge.capture.camera import stall_limit_s
from edge.config import FolderCamera, SimulatedCamera
from edge.errors import CaptureError, FrameUnreadableError, SourceEndedError
from tests.capture.streams import Line, wait_for, write_images

OPENING, STREAMING, STALLED, RECONNECTING, ENDED = CameraState


def settings(**changes: object) -> SimulatedCamera:
    values = {"id": "c", "stall_s": 0.3, "retry_s": 0.05, "fps": 1000.0, **changes}
    return SimulatedCamera(**values)  # type: ignore[arg-type]


def fresh() -> Iterator[Grab]:
    """Endless frames, each different."""
    number = 0
    while True:
        number += 1
        time.sleep(0.005)
        yield Grab(np.full((8, 8), number % 256, np.uint8))


class Scripted:
    """A source whose every opening follows the next script; the last one goes on for ever.

    A script's step is a frame to give, None for silence, or an exception to raise.
    """

    def __init__(self, *scripts: Callable[[], Iterator[Grab | Exception | None]]) -> None:
        self.scripts = list(scripts)
        self.opened: list[float] = []
        self.closed = 0
        self._steps: Iterator[Grab | Exception | None] = iter(())

    def open(self) -> None:
        self.opened.append(time.monotonic())
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self._steps = script()
        if script is refuses:
            raise CaptureError("nobody answers")

    def read(self, timeout_s: float) -> Grab | None:
        step = next(self._steps, None)
        if isinstance(step, Exception):
            raise step
        if step is None:
            time.sleep(timeout_s)
        return step

    def close(self) -> None:
        self.closed += 1


def refuses() -> Iterator[Grab | Exception | None]:
    return iter(())


def three_then(*steps: Grab | Exception | None) -> Callable[[], Iterator[Grab | Exception | None]]:
    def script() -> Iterator[Grab | Exception | None]:
        good = fresh()
        yield from (next(good) for _ in range(3))
        yield from steps

    return script


SAME = Grab(np.zeros((8, 8), np.uint8))

FAULTS = [
    ("it goes silent", [], {}, STALLED, "no frame for 0.3 s"),
    ("it breaks", [CaptureError("cable pulled")], {}, RECONNECTING, "cable pulled"),
    ("its driver throws", [ZeroDivisionError("odd")], {}, RECONNECTING, "unexpected ZeroDivisionError: odd"),
    ("it repeats an image", [SAME] * 50, {"frozen_frames": 5}, STALLED, "5 frames in a row are identical"),
]


@pytest.mark.parametrize(("reason", "steps", "changes", "state", "detail"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_fault_is_told_and_the_source_opened_again(
    reason: str, steps: list[Grab | Exception], changes: dict[str, object], state: CameraState, detail: str
) -> None:
    source = Scripted(three_then(*steps), fresh)
    with Line(settings(**changes), source) as line:
        wait_for(lambda: line.camera.status().reopened == 1 and line.camera.status().state is STREAMING)
        line.wait_frames(5)
    states = [status.state for status in line.states]
    assert states == [OPENING, STREAMING, state, STREAMING], line.said()
    assert detail in line.states[2].detail
    assert source.closed >= 1


def test_without_frozen_frames_a_still_picture_is_no_fault() -> None:
    with Line(settings(), Scripted(lambda: iter([SAME] * 100))) as line:
        wait_for(lambda: line.camera.status().frames == 100)
    assert [status.state for status in line.states][:2] == [OPENING, STREAMING]


def test_a_source_that_refuses_is_tried_again_ever_more_slowly() -> None:
    source = Scripted(refuses, refuses, refuses, refuses, refuses, fresh)
    with Line(settings(), source) as line:
        line.wait_frames(1)
    pauses = np.diff(source.opened)
    assert np.all(pauses > np.array([0.05, 0.1, 0.2, 0.2, 0.2]) - 0.01), pauses
    assert "reconnecting: nobody answers" in line.said()


def test_a_pause_is_short_again_after_frames_came() -> None:
    source = Scripted(refuses, refuses, refuses, three_then(CaptureError("gone")), fresh)
    with Line(settings(retry_s=0.4), source) as line:
        wait_for(lambda: len(source.opened) == 5)
        line.wait_frames(1)
    assert source.opened[4] - source.opened[3] < 1.4, "0.4 s, where the fourth failure in a row would wait 1.6 s"


def test_an_unreadable_frame_is_a_named_loss_and_no_reason_to_reopen() -> None:
    source = Scripted(three_then(FrameUnreadableError("a.jpg is cut short"), SAME, SourceEndedError("all read")))
    with Line(settings(), source) as line:
        wait_for(lambda: line.camera.status().state is ENDED)
    status = line.camera.status()
    assert (status.frames, status.unreadable, status.reopened) == (4, 1, 0)
    assert line.faults == 1
    assert len(line.frames) + line.overruns + line.intake.remaining() == 4


def test_an_ended_source_is_closed_and_said_to_have_ended() -> None:
    source = Scripted(three_then(SourceEndedError("all 3 images were read")))
    with Line(settings(), source) as line:
        wait_for(lambda: line.camera.status().state is ENDED)
        wait_for(lambda: source.closed > 0)
        wait_for(lambda: line.camera.beat.thread() is None)
        assert not line.camera.beat.hangs(), "to have ended is not to have died"
    assert line.said().endswith("ended: all 3 images were read")


def test_frames_are_numbered_stamped_and_cannot_be_written_to() -> None:
    before = time.monotonic_ns()
    with Line(settings(), Scripted(fresh)) as line:
        wait_for(lambda: len(line.frames) >= 3)
    numbers = [frame.number for frame in line.frames]
    stamps = [frame.captured_mono_ns for frame in line.frames]
    assert numbers == sorted(set(numbers)) and stamps == sorted(set(stamps)) and stamps[0] > before
    assert line.frames[0].camera == "c"
    with pytest.raises(ValueError, match="read-only"):
        line.frames[0].image[0, 0] = 1


def test_a_listener_that_fails_does_not_stop_the_camera(caplog: pytest.LogCaptureFixture) -> None:
    line = Line(settings(), Scripted(three_then(CaptureError("gone")), fresh))
    line.camera._on_state = lambda status: 1 / 0  # type: ignore[assignment,return-value]
    with line:
        wait_for(lambda: line.camera.status().reopened == 1)
        line.wait_frames(3)
    assert caplog.text.count("unexpected ZeroDivisionError") == 1, "told once, not at every change"
    assert "Traceback" not in caplog.text


def test_stopping_does_not_wait_for_a_pause_to_end() -> None:
    line = Line(settings(retry_s=60), Scripted(refuses))
    with line:
        wait_for(lambda: line.camera.status().state is RECONNECTING)
        start = time.monotonic()
        assert not line.camera.beat.hangs()
    assert time.monotonic() - start < 1


def test_a_source_that_hangs_against_its_promise_does_not_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.capture.camera.HUNG_S", 0.2)
    release = threading.Event()

    class Hangs(Scripted):
        def read(self, timeout_s: float) -> Grab | None:
            release.wait(5)
            return None

    with Line(settings(), Hangs(refuses, fresh)) as line:
        wait_for(line.camera.beat.hangs)
        assert not line.camera.stop(0.05)
        release.set()


@pytest.mark.parametrize(
    ("reason", "camera", "limit_s"),
    [
        ("a fast source", FolderCamera(id="c", path=".", fps=10, stall_s=3), 3.0),
        ("a part every 10 s is no stall", FolderCamera(id="c", path=".", fps=0.1, stall_s=3), 30.0),
    ],
)
def test_a_slow_pace_is_not_taken_for_a_stall(reason: str, camera: FolderCamera, limit_s: float) -> None:
    assert stall_limit_s(camera) == pytest.approx(limit_s)


def test_a_folder_with_a_truncated_jpeg_goes_on_and_ends(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 4, ".jpg")
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    camera = FolderCamera(id="c", path=str(tmp_path), fps=100)
    with Line(camera, make_source(camera)) as line:
        wait_for(lambda: line.camera.status().state is ENDED)
    assert (line.camera.status().frames, line.faults) == (3, 1)


def test_an_empty_folder_is_told_and_read_once_it_fills(tmp_path: Path) -> None:
    camera = FolderCamera(id="c", path=str(tmp_path), fps=100, loop=True, retry_s=0.05)
    with Line(camera, make_source(camera)) as line:
        wait_for(lambda: line.camera.status().state is RECONNECTING)
        assert "holds no image" in line.camera.status().detail
        write_images(tmp_path, 2)
        line.wait_frames(4)


def test_a_camera_that_is_fired_is_not_stalled_while_no_part_comes() -> None:
    assert stall_limit_s(SimulatedCamera(id="c", stall_s=0.1, pairing="counter")) == math.inf
