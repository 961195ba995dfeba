"""A thread that writes to the disk what others hand it, so that none of them ever waits for a disk.

What waits is bounded in bytes. What does not fit is refused and counted; what the disk does not take is tried again
at a slow pace, so that a disk that was full or read-only needs nobody to tell us that it is not any more.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from edge.clock import Beat

log = logging.getLogger(__name__)

MOST_BYTES = 64_000_000  # of what waits: ten frames of 6 MB, or 20 parts a second of three 640x640 for 2.6 seconds
MOST_ITEMS = 20_000
RETRY_S = 5.0  # pause before the disk is tried again
ATTEMPTS = 5  # then one item is given up: it must not stand in the way for ever
IDLE_S = 10.0  # a sink that has nothing to write is called so often
HUNG_S = 120.0  # one step; the longest looks through a whole folder at the start

T = TypeVar("T")
Item = TypeVar("Item", contravariant=True)


class DiskState(str, Enum):
    """How the disk takes what it is given."""

    OK = "ok"
    SLOW = "slow"  # more comes than it takes: what does not fit is dropped
    FULL = "full"
    READ_ONLY = "read_only"
    FAILING = "failing"


_STATES = {
    errno.ENOSPC: DiskState.FULL,
    errno.EDQUOT: DiskState.FULL,
    errno.EROFS: DiskState.READ_ONLY,
    errno.EACCES: DiskState.READ_ONLY,
    errno.EPERM: DiskState.READ_ONLY,
}
_REMEDIES = {
    DiskState.FULL: "free some space on it",
    DiskState.READ_ONLY: "mount it writable, and let this user write there",
    DiskState.FAILING: "check the disk",
}


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the disk, for a person; `text` is "" when nothing is."""

    state: DiskState = DiskState.OK
    text: str = ""


def trouble_of(what: str, folder: Path, error: OSError) -> Trouble:
    """What an error of the disk means.

    >>> trouble_of("evidence", Path("/data"), OSError(errno.EROFS, "Read-only file system")).state.value
    'read_only'
    """
    state = _STATES.get(error.errno or 0, DiskState.FAILING)
    why = error.strerror or type(error).__name__
    return Trouble(state, f"{what} cannot be written to {folder}: {why}; {_REMEDIES[state]}")


class Sink(Protocol[Item]):
    """What is done with the items. Called in the spool's thread; all but `lost` may raise OSError."""

    def begin(self) -> None:
        """Look at what is there already; called again until it succeeds."""

    def write(self, item: Item) -> None:
        """Write one item, whole or not at all."""

    def make_room(self, item: Item) -> bool:
        """The disk was full: free something that is worth less; False when there is nothing."""

    def lost(self, item: Item) -> None:
        """The item is given up. Also called in the thread that calls `Spool.stop`."""

    def idle(self, in_trouble: bool) -> None:
        """Nothing to write: do what time brings; with `in_trouble`, find out whether the disk still is."""

    def end(self) -> None:
        """Nothing more will come."""


class Spool(Generic[T]):
    """A bounded queue and the thread that empties it into a sink.

    Attributes:
        dropped: items refused since the start because too much was waiting.
        failed: items lost since the start because the disk did not take them.
        trouble: how the disk is.
        beat: moves with each step of the sink, done or refused by the disk, and while there is nothing to do.
    """

    def __init__(
        self, what: str, folder: Path, sink: Sink[T], most_bytes: int = MOST_BYTES, retry_s: float = RETRY_S
    ) -> None:
        """`what` names it in sentences and as a thread."""
        self._what = what
        self._folder = folder
        self._sink = sink
        self._most_bytes = most_bytes
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._stopping = False
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self.dropped = 0
        self.failed = 0
        self.trouble = Trouble()
        self.beat = Beat(what, HUNG_S)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Write what waits, and end; False when that took too long: what is left is lost, and counted as failed."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._changed:
            self._abandoned = True
            left = [item for item, _ in self._waiting]
            self.failed += len(left)
            self._waiting.clear()
        for item in left:
            self._sink.lost(item)
        return not self._thread.is_alive()

    def offer(self, item: T, size: int) -> bool:
        """Hand over an item that keeps `size` bytes in memory; False when there is no room. Never waits."""
        with self._changed:
            full = self._waiting and self._bytes + size > self._most_bytes
            if self._stopping or full or len(self._waiting) >= MOST_ITEMS:
                self._refuse()
                return False
            self._waiting.append((item, size))
            self._bytes += size
            self._changed.notify_all()
        return True

    def _refuse(self) -> None:
        """Count an item that is not taken; the lock is held."""
        if self._in_trouble():
            self.failed += 1
            return
        self.dropped += 1
        if not self._stopping:
            text = f"{self._what} cannot keep up: {self._folder} is on a disk that is too slow for what comes, or stuck"
            self._tell(Trouble(DiskState.SLOW, text))

    def settled(self, timeout_s: float) -> bool:
        """Wait until nothing waits to be written; False when it still does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    # In the thread.

    def _run(self) -> None:
        while not self._try_alone(self._sink.begin):
            if self._pause():
                break
        while (item := self._next()) is not None:
            self._put(item[0])
            with self._changed:
                if self._waiting:  # given up by `stop` otherwise
                    self._waiting.popleft()
                    self._bytes -= item[1]
                self._changed.notify_all()
        self._try_alone(self._sink.end)
        self.beat.rest()

    def _next(self) -> tuple[T, int] | None:
        """The item that has waited longest, left in the queue while it is written; None: the end."""
        while True:
            with self._changed:
                wait_s = self._retry_s if self._in_trouble() else IDLE_S
                self.beat.now(wait_s)
                self._changed.wait_for(lambda: self._waiting or self._stopping, wait_s)
                if self._waiting:
                    return self._waiting[0]
                if self._stopping:
                    return None
            self._try_alone(partial(self._sink.idle, self._in_trouble()))

    def _in_trouble(self) -> bool:
        return self.trouble.state not in (DiskState.OK, DiskState.SLOW)

    def _put(self, item: T) -> None:
        for _ in range(ATTEMPTS):
            try:
                written = self._try(partial(self._sink.write, item), partial(self._sink.make_room, item))
            except _Unwritable:
                break
            if written:
                return
            if self._pause():
                break
        with self._changed:
            if self._abandoned:  # `stop` has counted it already
                return
            self.failed += 1
        self._sink.lost(item)

    def _try_alone(self, step: Callable[[], None]) -> bool:
        """Do what belongs to no item; whether it was done."""
        try:
            return self._try(step)
        except _Unwritable as fault:
            why = fault.__cause__
            self._tell(Trouble(DiskState.FAILING, f"{self._what}: {type(why).__name__}: {why}; report it"))
            return False

    def _try(self, step: Callable[[], None], make_room: Callable[[], bool] = lambda: False) -> bool:
        """Do it, making room as often as that helps; whether it was done.

        Raises:
            _Unwritable: it failed, and not for the disk's sake: trying again is of no use.
        """
        while True:
            self.beat.now()
            try:
                step()
            except OSError as error:
                trouble = trouble_of(self._what, self._folder, error)
                if trouble.state is DiskState.FULL and self._makes_room(make_room):
                    continue
                self._tell(trouble)
                return False
            except Exception as error:
                log.warning("%s: %s: %s", self._what, type(error).__name__, error)
                log.debug("what failed", exc_info=True)
                raise _Unwritable from error
            if self.trouble.state is not DiskState.SLOW or len(self._waiting) <= 1:  # slow until it has caught up
                self._tell(Trouble())
            return True

    def _makes_room(self, make_room: Callable[[], bool]) -> bool:
        try:
            return make_room()
        except Exception as error:
            log.debug("no room can be made: %s", error)
            return False

    def _tell(self, trouble: Trouble) -> None:
        if trouble != self.trouble:
            log.log(logging.WARNING if trouble.text else logging.INFO, trouble.text or f"{self._what}: written again")
            self.trouble = trouble

    def _pause(self) -> bool:
        """Wait before the disk is tried again; True: the time is over."""
        self.beat.now(self._retry_s)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, self._retry_s)
            return self._stopping


class _Unwritable(Exception):
    """An item that no disk would take: a fault of ours."""
