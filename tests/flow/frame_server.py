"""A camera of raw frames for the `pipe` source: on a schedule or by a trigger, with stalls if wanted.

    python -m tests.flow.frame_server --boards 12 --seed 1 --fps 30 [--stall-every 20 --stall-s 2]
    python -m tests.flow.frame_server --boards 12 --seed 1 --trigger /tmp/cam1.sock

Frame `n` shows board `n % boards` with a little fresh noise, so that no two are the same bytes. With `--trigger` a
frame is written for each datagram that comes in, as a camera with a trigger input does.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

import numpy as np

from edge.capture.simulated import SimulatedSource
from edge.config import SimulatedCamera

NOISES = 7  # prime, so that board and noise come together anew each time


def main() -> int:
    """Write frames until the reader goes away."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boards", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--defect-rate", type=float, default=0.5)
    parser.add_argument("--stall-every", type=float, default=0.0)
    parser.add_argument("--stall-s", type=float, default=2.0)
    parser.add_argument("--trigger", help="path of a datagram socket, instead of --fps")
    options = parser.parse_args()
    frames = drawn(options.boards, options.seed, options.size, options.defect_rate)
    noise = np.random.default_rng(options.seed).integers(0, 3, (NOISES, options.size, options.size), dtype=np.uint8)
    due = triggers(options.trigger) if options.trigger else schedule(options.fps, options.stall_every, options.stall_s)
    for n in due:
        if not written((frames[n % len(frames)] - noise[n % NOISES]).tobytes()):
            return 0
    return 0


def drawn(boards, seed, size, defect_rate):
    """Sharp boards; at least 3 grey levels, so that noise can be taken off."""
    settings = SimulatedCamera(id="s", seed=seed, width=size, height=size, defect_rate=defect_rate, fault_rate=0.0)
    source = SimulatedSource(settings)
    return [np.maximum(source.image(i), 3) for i in range(boards)]


def schedule(fps, stall_every_s, stall_s):
    """0, 1, 2, ... when each is due; silent for `stall_s` every `stall_every_s`."""
    began = due = time.monotonic()
    n, stalled_at = 0, began
    while True:
        now = time.monotonic()
        if stall_every_s and now - stalled_at >= stall_every_s:
            time.sleep(stall_s)
            stalled_at = due = time.monotonic()
        if due > now:
            time.sleep(due - now)
        yield n
        n += 1
        due = max(due + 1 / fps, time.monotonic() - 1 / fps)


def triggers(path):
    """0, 1, 2, ... as datagrams come in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if os.path.exists(path):
            os.unlink(path)
        sock.bind(path)
        n = 0
        while True:
            sock.recv(64)
            yield n
            n += 1


def written(data):
    """All of it to the standard output; False when nobody reads any more."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(1, view) :]
        except BrokenPipeError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
