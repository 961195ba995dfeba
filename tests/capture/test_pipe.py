"""Raw frames of a child process, and everything a child can do wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from edge.capture import CameraState, make_source
from edge.capture.pipe import PipeSource
from edge.config import PipeCamera
from edge.errors import CaptureError
from tests.capture.streams import Line, need, wait_for

SIZE = 8 * 4


def python(code: str, **changes: object) -> PipeCamera:
    """A camera that is a Python child; its frames are 8x4 grey."""
    program = f"import os, sys, time, signal, subprocess\nout = sys.stdout.buffer\n{code}"
    values = {"id": "c", "width": 8, "height": 4, "format": "gray", "retry_s": 0.1, **changes}
    return PipeCamera(command=[sys.executable, "-c", program], **values)  # type: ignore[arg-type]


FOREVER = "n = 0\nwhile True:\n    out.write(bytes([n % 256]) * 32); out.flush(); n += 1; time.sleep(0.01)"


def read_until_error(source: PipeSource, limit_s: float = 5.0) -> tuple[int, str]:
    """How many frames came before which error."""
    source.open()
    frames, deadline = 0, time.monotonic() + limit_s
    try:
        while time.monotonic() < deadline:
            frames += source.read(0.2) is not None
    except CaptureError as error:
        return frames, str(error)
    finally:
        source.close()
    raise AssertionError(f"{frames} frames and no error within {limit_s} s")


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


def test_frames_arrive_whole_however_the_child_cuts_its_writes() -> None:
    pieces = "import random\nrandom.seed(1)\ndata = b''.join(bytes([k]) * 32 for k in range(50))\n" + (
        "while data:\n    n = random.randint(1, 90); out.write(data[:n]); out.flush(); data = data[n:]\n"
    )
    source = PipeSource(python(pieces + "time.sleep(5)"))
    source.open()
    seen: list[int] = []
    while len(seen) < 50:
        grab = source.read(1.0)
        assert grab is not None and grab.image.min() == grab.image.max(), "no frame holds parts of two"
        seen.append(int(grab.image[0, 0]))
    source.close()
    assert seen == list(range(50))


ENDS = [
    ("it says why it fails", "print('no such sensor', file=sys.stderr); sys.exit(3)", 0, "code 3 .*no such sensor"),
    ("it ends in the middle of a frame", "out.write(bytes(80))", 2, "16 of the 32 bytes.*check that it sends 8x4 gray"),
    ("it ends after whole frames", "out.write(bytes(96))", 3, r"ended with code 0 after 3 frames$"),
    ("it is killed", "out.write(bytes(32)); out.flush(); os.kill(os.getpid(), 9)", 1, "was ended by SIGKILL"),
    ("it closes its output and lives on", "os.close(1); time.sleep(9)", 0, "closed its output"),
    ("it floods its error output", "sys.stderr.write('x\\n' * 500000 + 'last\\n'); sys.exit(1)", 0, r"x \| last$"),
]


@pytest.mark.parametrize(("reason", "code", "frames", "message"), ENDS, ids=[row[0] for row in ENDS])
def test_the_end_of_a_child_is_explained_in_its_own_words(reason: str, code: str, frames: int, message: str) -> None:
    count, text = read_until_error(PipeSource(python(code)))
    assert count == frames
    assert re.search(message, text), text


CANNOT_START = [
    ("it is not installed", ["no-such-grabber", "-q"], "no-such-grabber is not there: install it"),
    ("it is a folder", ["/tmp"], "/tmp cannot be run .*name an executable file"),
]


@pytest.mark.parametrize(("reason", "command", "message"), CANNOT_START, ids=[row[0] for row in CANNOT_START])
def test_a_command_that_cannot_start_is_named(reason: str, command: list[str], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        PipeSource(PipeCamera(id="c", command=command, width=8, height=4)).open()


def test_gstreamer_says_which_element_is_missing() -> None:
    command = [need("gst-launch-1.0"), "-q", "nosuchsrc", "!", "fdsink", "fd=1"]
    _, text = read_until_error(PipeSource(PipeCamera(id="c", command=command, width=8, height=4)))
    assert "nosuchsrc" in text


def test_close_ends_a_child_that_ignores_the_request_and_its_own_children(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    stubborn = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', "
        "'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}} ')\n{FOREVER}"
    )
    source = PipeSource(python(stubborn))
    source.open()
    wait_for(lambda: note.exists() and note.read_text().endswith(" "))
    pids = [int(pid) for pid in note.read_text().split()]
    assert len(pids) == 2 and all(running(pid) for pid in pids)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 3
    wait_for(lambda: not any(running(pid) for pid in pids))


def test_a_silent_child_costs_no_more_than_the_time_limit() -> None:
    source = PipeSource(python("time.sleep(60)"))
    source.open()
    start = time.monotonic()
    assert source.read(0.2) is None
    assert 0.15 < time.monotonic() - start < 2
    source.close()


def test_a_killed_child_is_started_again_and_frames_go_on(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    camera = python(f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} ')\n{FOREVER}")
    with Line(camera, make_source(camera)) as line:
        for _ in range(2):
            line.wait_frames(5)
            os.kill(int(note.read_text()), signal.SIGKILL)
            wait_for(lambda: line.camera.status().state is CameraState.RECONNECTING)
            assert line.wait_frames(5) < 5
    assert "was ended by SIGKILL after" in line.said()
    assert line.camera.status().reopened == 2
    assert all(frame.image.min() == frame.image.max() for frame in line.frames), "in step after each start"


def test_a_child_that_stops_in_the_middle_of_a_frame_is_started_again() -> None:
    half = "out.write(bytes(48)); out.flush(); time.sleep(60)"
    camera = python(half, stall_s=0.3)
    with Line(camera, make_source(camera)) as line:
        wait_for(lambda: line.camera.status().reopened >= 2)
    assert "stalled: no frame for 0.3 s" in line.said()
    assert line.camera.status().frames >= 2
