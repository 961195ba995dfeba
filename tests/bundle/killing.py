"""Kill -9 before and after every call that changes files, one after the other."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

# Where the functions live that touch files: os.*, open() and what it returns, flock. And those that change something:
# between two that only read, a kill is the same kill.
_MODULES: Final = ("posix", "_io", "io", "fcntl")
NAMING: Final = ("rename", "replace", "symlink")  # what makes a change to be seen
CHANGING: Final = (
    *("open", "write", "flush", "close", "fsync", "sendfile", "copy_file_range", "ftruncate", "truncate"),
    *NAMING,
    *("unlink", "remove", "rmdir", "mkdir", "link", "flock"),
    *("chmod", "fchmod", "chown", "lchown", "fchown", "utime"),
)


Actions = Sequence[Callable[[], object]]


def killed_at(step: int, actions: Actions, calls: Sequence[str] = CHANGING) -> tuple[bool, int]:
    """Run actions in a child that kills itself at its step-th event: the begin or the end of one of these calls.

    Returns:
        Whether it came to that, and how many of the actions were told to be done before.
    """
    status, told = _child(step, actions, calls)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"the child failed by itself: {status}"
    return status != 0, told.count(b".")


def places(actions: Actions, calls: Sequence[str] = CHANGING) -> int:
    """Run actions in a child that is not killed; returns at how many steps it could have been."""
    status, told = _child(-1, actions, calls)
    assert status == 0, f"the child failed by itself: {status}"
    return int(told.rpartition(b".")[2])


def _child(step: int, actions: Actions, calls: Sequence[str]) -> tuple[int, bytes]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(step, actions, calls, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    return os.waitpid(child, 0)[1], told


def _run(step: int, actions: Actions, calls: Sequence[str], writer: int) -> None:
    count = 0

    def hook(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal count
        if event in ("c_call", "c_return", "c_exception") and function.__name__ in calls and _is_of_files(function):
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    try:
        for action in actions:
            sys.setprofile(hook)
            action()
            sys.setprofile(None)
            os.write(writer, b".")
        os.write(writer, b"%d" % count)
        os._exit(0)
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
        os._exit(1)


def _is_of_files(function: Any) -> bool:
    owner = getattr(function, "__self__", None)
    module = type(owner).__module__ if owner is not None else None
    return function.__module__ in _MODULES or module in _MODULES
