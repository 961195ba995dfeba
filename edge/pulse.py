"""The pulse of the daemon: whether each of its threads moves, and in words which one does not.

A thread tells its `edge.clock.Beat` that it moves. The watchdog of the service manager is fed only while every vital
one does; a thread of its own looks at all of them and says at once which one hangs, for how long and where, so that
the log names the culprit before the process is killed for it.

One case is out of reach for any Python: an inference that hangs holds the interpreter (Paddle Lite's `run` never lets
go of it). For that, `faulthandler` has a clock in C that each turn of the inspection winds up again; when it runs
down, it writes the place of every thread to the log: "Timeout (0:00:15)!", and the inspection is the last one below.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from edge.clock import Beat

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5  # how often it looks
LATE_S: Final = 1.0  # it came so much too late itself: nobody could move, and nobody is to blame
STOOD_STILL_S: Final = 10.0  # that is worth a line in the log
TURN_S: Final = 10.0  # one turn of the inspection, at most; the service manager's own limit holds in any case
PLACE_LINES: Final = 3
PACKAGE: Final = Path(__file__).parent


class Pulse:
    """Watches beats. `watch` is for the start, before anything is asked; `turn` belongs to the inspection thread.

    Attributes:
        inspection: the beat of the inspection thread.
    """

    def __init__(self, tell: Callable[[str], object], watchdog_s: float = 0.0) -> None:
        """Prepare; see `start`.

        Args:
            tell: shows one line to whoever asks how the service is.
            watchdog_s: how long the service manager waits for a sign of life; 0: it does not wait for any.
        """
        self._tell = tell
        self._watchdog_s = watchdog_s
        # Named well before the service manager acts.
        self.inspection = Beat("inspection", min(TURN_S, watchdog_s / 3) if watchdog_s else TURN_S)
        self._vital: list[Beat] = []
        self._others: list[Beat] = []
        self._named: dict[str, str] = {}  # who hangs, and what was said of it
        self._since_s: dict[str, float] = {}
        self._wind_up_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def watch(self, beat: Beat, vital: bool = True) -> None:
        """Watch it. One that is not vital is told of, and nothing else: a new process would cost the line more."""
        (self._vital if vital else self._others).append(beat)

    def start(self) -> None:
        """Begin to watch. Under a service manager a crash of native code tells where it was, too."""
        if self._watchdog_s:
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # no real stderr: no harm
                faulthandler.enable(sys.stderr)
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer: what stops may well be silent."""
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        if self._thread.ident is not None:
            self._thread.join(2 * LOOK_S)

    def turn(self) -> None:
        """The inspection has made a turn."""
        self.inspection.now()
        now_s = time.monotonic()
        if self._watchdog_s and now_s >= self._wind_up_s and not self._stop.is_set():
            self._wind_up_s = now_s + self._watchdog_s / 6
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):
                faulthandler.dump_traceback_later(self._watchdog_s / 2, file=sys.stderr)

    def fit(self) -> bool:
        """Whether each vital thread has moved within its time, as of now."""
        return not any(beat.hangs() for beat in (*self._vital, self.inspection))

    def named(self) -> Mapping[str, str]:
        """Who hangs, as the log has been told: a code for it -> the sentence, which stays the same while it hangs."""
        return {f"hung_{re.sub(r'[^a-z0-9]+', '_', name.lower())}": text for name, text in self._named.copy().items()}

    # The thread.

    def _run(self) -> None:
        due_s = time.monotonic() + LOOK_S
        while not self._stop.wait(LOOK_S):
            late_s = time.monotonic() - due_s
            if late_s < LATE_S:
                self._look()
            elif late_s >= STOOD_STILL_S:
                log.warning("every thread stood still for %.0f s: one call held them all up, or the box did", late_s)
            due_s = time.monotonic() + LOOK_S

    def _look(self) -> None:
        # The inspection last: it often waits for another one that hangs.
        for beat in (*self._vital, *self._others, self.inspection):
            if beat.hangs():
                if beat.name not in self._named:
                    self._name(beat)
            elif beat.name in self._named:
                self._clear(beat)

    def _name(self, beat: Beat) -> None:
        silent_s = beat.silent_s()
        self._since_s[beat.name] = time.monotonic() - silent_s
        text = f"{beat.name} hangs: no progress for {silent_s:.1f} s (limit {beat.limit_s:g} s){_place(beat)}"
        if self._watchdog_s and beat not in self._others:
            text += "; until it moves the service manager gets no sign of life, and will restart the service"
        log.error("%s", text)
        self._tell(text)
        self._named = {**self._named, beat.name: text}

    def _clear(self, beat: Beat) -> None:
        lasted_s = time.monotonic() - self._since_s.pop(beat.name)
        text = f"{beat.name} moves again after {lasted_s:.1f} s"
        self._named = {name: said for name, said in self._named.items() if name != beat.name}
        log.warning("%s", text)
        self._tell(next(iter(self._named.values()), text))


def _place(beat: Beat) -> str:
    """Where its thread is: the innermost call, and the last lines of ours that led to it, one a file."""
    thread = beat.thread()
    if thread is None:  # it has just come to rest
        return ""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or not thread.is_alive():
        return f", its thread {thread.name} has ended"
    spots, outer = [_spot(frame)], frame.f_back
    seen = {frame.f_code.co_filename}
    while outer is not None and len(spots) < PLACE_LINES:
        file = outer.f_code.co_filename
        if PACKAGE in Path(file).parents and file not in seen:
            spots.append(_spot(outer))
            seen.add(file)
        outer = outer.f_back
    return ", in " + ", called by ".join(spots)


def _spot(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    shown = path.relative_to(PACKAGE.parent) if PACKAGE in path.parents else Path(path.name)
    return f"{frame.f_code.co_name} ({shown}:{frame.f_lineno})"
