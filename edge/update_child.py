"""Has a newer bundle looked for when somebody asks: by `edge bundle update`, a process of its own at low priority."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.errors import BundleError, EdgeError, UsageError
from edge.event import Request, Response, RollbackRequest, UpdateOutcome

log = logging.getLogger(__name__)

NICE = 15
LIMIT_S = 4 * 3600.0  # a large bundle over a slow line with a bandwidth cap
STOP_S = 3.0
SAID_BYTES = 4096  # of the end of what the child said
BUSY = ".busy"  # held by whoever updates, see `edge.updating`; not imported, as it brings the whole update client


class Updates:
    """Answers `request/update` and `request/rollback`, in the request thread. A child has a thread that waits for it.

    Args:
        config_file: of the daemon, for the child; None: it was not started from one, and nothing can be asked for.
        command: that looks for a newer bundle; the config file and the transaction are added.
    """

    def __init__(
        self,
        config_file: Path | None,
        state: Path,
        command: Sequence[str] = (sys.executable, "-m", "edge", "bundle", "update"),
    ) -> None:
        self._config_file = config_file
        self._state = state
        self._command = tuple(command)
        self._lock = threading.Lock()  # held for moments only
        self._waiter: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._transaction = ""

    def update(self, payload: bytes) -> Response:
        """Begin to look for a newer bundle; what becomes of it is told on `bundle`.

        Raises:
            UsageError: this daemon has no config file.
        """
        transaction = msgspec.json.decode(payload, type=Request).transaction
        if self._config_file is None:
            raise UsageError("request/update wants a daemon that was started with --config FILE")
        with self._lock:
            if self._waiter is not None and self._waiter.is_alive():
                text = f"an update is under way already (transaction {self._transaction}): its outcome is on `bundle`"
                return Response(transaction="", ok=False, text=text)
            self._transaction = transaction
            arguments = ["--config", str(self._config_file.resolve()), f"--transaction={transaction}"]
            self._waiter = threading.Thread(target=self._run, args=(arguments, transaction), name="update", daemon=True)
            self._waiter.start()
        return Response(transaction="", ok=True, text="looking for a newer bundle; its outcome is told on `bundle`")

    def _run(self, arguments: list[str], transaction: str) -> None:
        """The whole life of one child. Every attempt has an outcome, also when the child could not leave one."""
        text = ""
        try:
            self._tell("running", "", "looking for a newer bundle", transaction)
            with tempfile.TemporaryFile() as said:
                code = self._wait([*self._command, *arguments], said)
                text = _end_of(said) or f"edge bundle update ended with {code} and said nothing"
            log.info("edge bundle update ended with %s: %s", code, text)
        except (EdgeError, OSError, ValueError) as error:
            text = f"the look for a newer bundle cannot be made: {error}"
            log.warning("%s", text)
        last = outcomes.read(self._state)
        if last is None or last.outcome == "running":
            self._tell("failed", "died", text, transaction)

    def _wait(self, command: list[str], said: IO[bytes]) -> int | None:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,  # a file: nobody has to read it while it is written
            start_new_session=True,
        )  # in the folder of the daemon, by which relative paths of the config go
        with self._lock:
            self._child = child
            stopped = self._stopped
        with contextlib.suppress(OSError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
        if stopped:
            child.terminate()
        try:
            return child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait(STOP_S)

    def _tell(self, outcome: str, code: str, text: str, transaction: str) -> None:
        advice = "Look at the log of the service." if outcome == "failed" else ""
        told = UpdateOutcome(
            outcome=outcome, code=code, text=text, advice=advice, transaction=transaction, ts=time.time()
        )
        try:
            outcomes.write(self._state, told)
        except BundleError as error:
            log.warning("%s", error)

    def note_interrupted(self) -> None:
        """At the start: an update that a power cut ended is told as that."""
        last = outcomes.read(self._state)
        if last is not None and last.outcome == "running" and not self._is_busy():
            self._tell("failed", "interrupted", f"the update was interrupted: {last.text}", last.transaction)

    def _is_busy(self) -> bool:
        try:
            handle = os.open(self._state / outcomes.FOLDER / BUSY, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def rollback(self, payload: bytes) -> Response:
        """Go back to the bundle before this one; the station takes it between two parts.

        Raises:
            EdgeError: it is not understood, or there is none to go back to.
        """
        try:
            asked = msgspec.json.decode(payload, type=RollbackRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"the request is not understood: {error}") from error
        if not asked.reason.strip():
            raise UsageError("reason must say something: it is told with the bundle that was left")
        slot = slots.rollback(self._state, asked.reason, asked.transaction)
        return Response(transaction="", ok=True, text=f"{slot.name} takes over between two parts")

    def stop(self) -> None:
        """End a child that is at work: a download goes on where it was at the next attempt."""
        with self._lock:
            self._stopped, child, waiter = True, self._child, self._waiter
        if child is not None and child.poll() is None:
            child.terminate()
        if waiter is not None:
            waiter.join(STOP_S)


def _end_of(said: IO[bytes]) -> str:
    """The last line that was said, "" for none."""
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - SAID_BYTES))
    lines = said.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
