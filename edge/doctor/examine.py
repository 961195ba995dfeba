"""Runs the checks side by side, within a time limit: one that hangs or fails does not keep the others from telling."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.errors import DEBUG_VARIABLE

Check = Callable[[Context], Iterator[Finding]]

LIMIT_S: Final = 40.0  # for all of them, as they run side by side


class _Running:
    """One check in a thread of its own. A thread that hangs in the kernel is left behind: it is a daemon."""

    def __init__(self, subject: str, check: Check, context: Context, done: queue.SimpleQueue[str]) -> None:
        self.subject = subject
        self._findings: list[Finding] = []
        self._lock = threading.Lock()
        self._over = False
        self._check, self._context, self._done = check, context, done
        threading.Thread(target=self._work, name=f"check-{subject}", daemon=True).start()

    def _work(self) -> None:
        try:
            for finding in self._check(self._context):
                with self._lock:
                    self._findings.append(finding)
        except Exception as error:
            if os.environ.get(DEBUG_VARIABLE):
                traceback.print_exc()
            with self._lock:
                self._findings.append(failed(self.subject, error))
        finally:
            self._over = True
            self._done.put(self.subject)

    def result(self, waited_s: float) -> list[Finding]:
        """What it has found so far, and that there may be more if it is not done."""
        with self._lock:
            found = list(self._findings)
        return found if self._over else [*found, timed_out(self.subject, waited_s)]


def examine(context: Context, checks: Mapping[str, Check], limit_s: float = LIMIT_S) -> list[Finding]:
    """Run the checks and gather what they find, in the order of the subjects.

    Args:
        limit_s: what a check has not found by then is not waited for.
    """
    return side_by_side(context, list(checks.items()), limit_s)


def side_by_side(context: Context, checks: Sequence[tuple[str, Check]], limit_s: float) -> list[Finding]:
    """As `examine`, where several checks may be of one subject."""
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    began = time.monotonic()
    running = [_Running(subject, check, context, done) for subject, check in checks]
    _wait(done, len(running), began + limit_s)
    waited_s = time.monotonic() - began
    return [finding for each in running for finding in each.result(waited_s)]


def _wait(done: queue.SimpleQueue[str], count: int, until: float) -> None:
    for _ in range(count):
        try:
            done.get(timeout=max(until - time.monotonic(), 0.0))
        except queue.Empty:
            return


def failed(subject: str, error: Exception) -> Finding:
    """A check that failed inside: a fault of ours, which says nothing about the box."""
    return Reporter(subject).warning(
        "check_failed",
        f"this check failed inside ({type(error).__name__}: {error}); what it would have told is not known",
        f"this is a fault of the program: please report it with what {DEBUG_VARIABLE}=1 edge doctor --only {subject} "
        "prints",
    )


def timed_out(subject: str, waited_s: float) -> Finding:
    """A check that is still waiting for something."""
    return Reporter(subject).warning(
        "check_timed_out",
        f"this check was not done after {waited_s:.0f} s: something of it does not answer",
        f"run `edge doctor --only {subject}` again; if it hangs again a device or a network share hangs, "
        "which `dmesg | tail` may name",
    )


def chosen(checks: Mapping[str, Check], only: Sequence[str] | None) -> dict[str, Check]:
    """The checks that were asked for."""
    return {subject: check for subject, check in checks.items() if not only or subject in only}
