"""The processes of a training run on this machine, one a core; together they end, or fail, as one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from edge.errors import EdgeError
from tools.errors import ToolError

PR_SET_PDEATHSIG = 1  # of prctl(2)
LOOK_S = 0.5  # how often the processes are looked at


def launched() -> bool:
    """Whether `paddle.distributed.launch` started this process, as one of several."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1


def together(work: Callable[..., None], arguments: Sequence[Any], count: int) -> None:
    """Run `work(*arguments)` in `count` processes that find each other over gloo, and wait for all.

    Not `paddle.distributed.spawn`: its children import Paddle before anything else, and OpenCV, loaded after Paddle,
    cannot read PNG files (both bring a zlib).

    Raises:
        ToolError: one of them failed; the others are ended.
    """
    addresses = ",".join(f"127.0.0.1:{port}" for port in _free_ports(count))
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(target=_one, args=(work, tuple(arguments), rank, addresses), daemon=True)
        for rank in range(count)
    ]
    for child in children:
        child.start()
    failed = False
    while not failed and any(child.is_alive() for child in children):
        for child in children:
            child.join(LOOK_S / count)
        failed = any(child.exitcode for child in children)
    for child in children:
        if child.is_alive():
            child.terminate()
        child.join()
    if any(child.exitcode for child in children):
        codes = ", ".join(str(child.exitcode) for child in children)
        raise ToolError(f"a process of the run failed (exit codes {codes}); what it said stands above")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _one(work: Callable[..., None], arguments: tuple[Any, ...], rank: int, addresses: str) -> None:
    # Have the kernel end this process when the one that started it ends: a killed run leaves nobody training.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    ends = addresses.split(",")
    os.environ.update(
        PADDLE_TRAINER_ID=str(rank),
        PADDLE_TRAINERS_NUM=str(len(ends)),
        PADDLE_TRAINER_ENDPOINTS=addresses,
        PADDLE_CURRENT_ENDPOINT=ends[rank],
        PADDLE_MASTER=ends[0],
        PADDLE_DISTRI_BACKEND="gloo",
    )
    try:
        work(*arguments)
    except EdgeError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
