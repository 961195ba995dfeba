"""Has a newer bundle looked for when somebody asks: by `edge bundle update`, a process of its own at low priority."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec

from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.errors import BundleError, EdgeError, UsageError
from edge.event import Request, Response, RollbackRequest, UpdateOutcome

log = logging.getLogger(__name__)

NICE = 15
LIMIT_S = 4 * 3600.0  # a large bundle over a slow line with a bandwidth cap
STOP_S = 3.0


class Updates:
    """Answers `request/update` and `request/rollback`, in the request thread; `tick` is the inspection thread's.

    Args:
        config_file: of the daemon, for the child; None: it was not started from one, and nothing can be asked for.
    """

    def __init__(self, config_file: Path | None, state: Path) -> None:
        self._config_file = config_file
        self._state = state
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._transaction = ""

    def update(self, payload: bytes) -> Response:
        """Begin to look for a newer bundle; what becomes of it is told on `bundle`.

        Raises:
            UsageError: this daemon has no config file. BundleError: the look-up cannot be started.
        """
        transaction = msgspec.json.decode(payload, type=Request).transaction
        if self._config_file is None:
            raise UsageError("request/update wants a daemon that was started with --config FILE")
        with self._lock:
            if self._child is not None:
                text = f"an update is under way already (transaction {self._transaction}): its outcome is on `bundle`"
                return Response(transaction="", ok=False, text=text)
            self._start(self._config_file, transaction)
        return Response(transaction="", ok=True, text="looking for a newer bundle; its outcome is told on `bundle`")

    def _start(self, config_file: Path, transaction: str) -> None:
        command = [sys.executable, "-m", "edge", "bundle", "update", "--config", str(config_file.resolve())]
        running = UpdateOutcome(
            outcome="running", code="", text="looking for a newer bundle", transaction=transaction, ts=time.time()
        )
        outcomes.write(self._state, running)
        try:
            self._child = subprocess.Popen(
                [*command, "--transaction", transaction],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=Path(__file__).resolve().parents[1],
            )
        except OSError as error:
            raise BundleError(f"the look for a newer bundle cannot be started: {error.strerror or error}") from error
        with contextlib.suppress(OSError):  # it may have ended already
            os.setpriority(os.PRIO_PROCESS, self._child.pid, NICE)
        self._began_s, self._transaction = time.monotonic(), transaction

    def tick(self) -> None:
        """Note the end of a child; one that takes too long is ended."""
        with self._lock:
            child = self._child
            if child is None:
                return
            code = child.poll()
            if code is None and time.monotonic() - self._began_s > LIMIT_S:
                child.kill()
            if code is None:
                return
            self._child = None
        self._note_end(child, code)

    def _note_end(self, child: subprocess.Popen[bytes], code: int) -> None:
        """Every attempt has an outcome, also when the child died before it could leave one."""
        said = child.stderr.read(1 << 16).decode("utf-8", "replace").strip() if child.stderr is not None else ""
        log.info("edge bundle update ended with %d: %s", code, said or "no complaint")
        last = outcomes.read(self._state)
        if last is not None and last.outcome != "running":
            return
        text = said.splitlines()[-1] if said else f"edge bundle update ended with {code} and said nothing"
        failed = UpdateOutcome(
            outcome="failed", code="died", text=text, advice="Look at the log of the service.",
            transaction=self._transaction, ts=time.time(),
        )  # fmt: skip
        try:
            outcomes.write(self._state, failed)
        except EdgeError as error:
            log.warning("%s", error)

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
        slot = slots.rollback(self._state, asked.reason)
        return Response(transaction="", ok=True, text=f"{slot.name} takes over between two parts")

    def stop(self) -> None:
        """End a child that is at work: a download goes on where it was at the next attempt."""
        with self._lock:
            child = self._child
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(STOP_S)
        self._note_end(child, child.returncode)
