"""The slot between cameras and inspection: nothing disappears uncounted."""

from __future__ import annotations

import random
import threading
import time

import numpy as np

from edge.capture import Intake
from edge.records import Frame

IMAGE = np.zeros((2, 2), np.uint8)


def frame(camera: str = "a", number: int = 1) -> Frame:
    return Frame(IMAGE, camera, number, 0, 0.0)


def test_a_newer_frame_replaces_an_untaken_one_which_is_counted() -> None:
    intake = Intake()
    for number in (1, 2, 3):
        intake.put(frame("a", number))
    taken = intake.take(0)
    assert taken is not None and taken.frame is not None
    assert (taken.frame.number, taken.overruns, taken.faults) == (3, 2, 0)
    assert intake.take(0) is None


def test_a_fast_camera_does_not_push_out_a_slow_one() -> None:
    intake = Intake()
    intake.put(frame("fast"))
    intake.put(frame("slow"))
    served = []
    for _ in range(4):
        intake.put(frame("fast"))
        taken = intake.take(0)
        assert taken is not None and taken.frame is not None
        served.append(taken.frame.camera)
    assert served == ["fast", "slow", "fast", "fast"]


def test_a_fault_alone_wakes_the_taker_without_a_frame() -> None:
    intake = Intake()
    threading.Timer(0.05, intake.fault, ("a", "cut short")).start()
    taken = intake.take(5)
    assert taken is not None
    assert (taken.frame, taken.faults, taken.fault_camera, taken.fault_text) == (None, 1, "a", "cut short")


def test_close_wakes_the_taker_and_what_is_left_is_counted() -> None:
    intake = Intake()
    threading.Timer(0.05, intake.close).start()
    start = time.monotonic()
    assert intake.take(5) is None
    assert time.monotonic() - start < 2

    triggers = []
    intake = Intake(on_trigger=lambda: triggers.append(1))
    intake.put(frame("a", 1))
    intake.put(frame("a", 2))
    intake.put(frame("b", 1))
    intake.fault("b", "cut short")
    assert intake.remaining() == 0, "nothing is given up before the close"
    intake.close()
    intake.put(frame("c", 1))  # a camera that had not heard yet
    taken = intake.take(0)
    assert taken is not None
    assert (taken.frame, taken.overruns, taken.faults) == (None, 1, 1)
    assert (intake.remaining(), intake.take(0)) == (2, None)
    assert len(triggers) == 4, "what comes after the close is no trigger"


def test_every_trigger_comes_out_once_with_four_cameras_and_a_taker_at_random_speeds() -> None:
    triggers = []  # appended to under the intake's lock
    intake = Intake(on_trigger=lambda: triggers.append(1))
    frames = overruns = faults = 0

    def camera(name: str) -> None:
        chance = random.Random(name)
        for number in range(300):
            if chance.random() < 0.1:
                intake.fault(name, "bad")
            else:
                intake.put(frame(name, number))
            time.sleep(chance.random() * 0.0005)

    threads = [threading.Thread(target=camera, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    chance = random.Random(7)
    while any(thread.is_alive() for thread in threads):
        taken = intake.take(0.01)
        if taken is not None:
            frames += taken.frame is not None
            overruns += taken.overruns
            faults += taken.faults
            time.sleep(chance.random() * 0.001)
    intake.close()
    last = intake.take(0)
    if last is not None:
        overruns, faults = overruns + last.overruns, faults + last.faults
    assert frames + overruns + faults + intake.remaining() == len(triggers) == 1200
    assert frames > 100 and overruns > 0 and faults > 50
