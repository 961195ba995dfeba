"""The thread of a link: opens the port, lets the dialect speak, and opens the port again whenever it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from typing import Protocol

from edge.clock import Beat, Clock
from edge.config import Plc
from edge.errors import PlcError
from edge.plc.desk import Desk
from edge.plc.handshake import SILENT_BEATS, Handshake, LinkState, LinkStatus, OnAnswered, OnLate
from edge.plc.outputs import Outputs
from edge.plc.port import Retry, SerialPort

log = logging.getLogger(__name__)

LOOK_S = 0.25  # how long the thread waits at most before it looks whether it should stop
CHECK_S = 0.5  # how often it looks whether the path still leads to the device that is open
HUNG_S = 10.0  # a thread without progress for so long hangs; every call in it has a shorter limit
STEADY_S = 2.0  # a port that worked for so long, or over which the PLC was heard, is opened again soon
SAME_NEWS_S, NEWS_KEPT = 60.0, 20
MARGIN_BYTES = 48  # an answer on the wire, for the time that it takes


class Link(Protocol):
    """The line, as the daemon holds it."""

    def start(self) -> None:
        """Begin; a port that is not there is no error, it is waited for."""

    def stop(self, timeout_s: float) -> bool:
        """Say what is still to be said, let go of the port; False when that did not end in time."""

    def status(self) -> LinkStatus:
        """The state now, for any thread."""

    @property
    def beat(self) -> Beat:
        """Moves with each turn of its thread, also while there is no port to be had."""


class Wake:
    """Ends the wait of a thread from any other thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read, self._write = os.pipe()
        self._closed = False
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        """Readable after `set`."""
        return self._read

    def set(self) -> None:
        """End the wait."""
        with self._lock, contextlib.suppress(BlockingIOError):  # full: it is awake anyway
            if not self._closed:
                os.write(self._write, b"!")

    def clear(self) -> None:
        """Before looking for what there is to do."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)

    def close(self) -> None:
        """`set` does nothing from here on."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._read)
                os.close(self._write)


class LinkThread(ABC):
    """A link whose dialect says what is done in a turn. No fault of the port or of the input ends the thread."""

    def __init__(
        self,
        settings: Plc,
        desk: Desk,
        clock: Clock,
        on_answered: OnAnswered,
        on_late: OnLate,
        outputs: Outputs | None = None,
    ) -> None:
        """See `edge.plc.link.make_link`."""
        self.settings = settings
        self.clock = clock
        self.outputs = outputs if outputs is not None else Outputs(())
        self.port = SerialPort(settings, self.outputs.own_lines)
        self.outputs.use_port(self.port)
        self.handshake = Handshake(
            desk,
            settings.heartbeat_s,
            settings.ack_s,
            self.outputs.listening(on_answered, clock.mono_ns),
            on_late,
            wire_ns=round(MARGIN_BYTES * byte_ns(settings)),
        )
        self.garbage = 0
        self._state = (LinkState.RECONNECTING, f"{settings.port} is not open yet")
        self._opened = 0  # times
        self._desk = desk
        self._wake = Wake()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plc", daemon=True)
        self.beat = Beat("PLC link", HUNG_S, clock.mono_ns)
        self._checked_ns = 0
        self._opened_ns = clock.mono_ns()
        self._told = _Told(clock)

    # What a dialect does.

    @abstractmethod
    def opened(self) -> None:
        """The port was opened, for the first time or anew: what was half read is gone."""

    @abstractmethod
    def turn(self) -> int:
        """Read what there is, say what is due; until which monotonic ns there is nothing more to do by itself.

        Called again at once when something comes in or the desk has news. May raise `PlcError`.
        """

    # What the daemon does.

    def start(self) -> None:
        """See `Link`."""
        self._desk.attach(self._wake.set)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """See `Link`."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if ended:
            self._wake.close()
        return ended

    def status(self) -> LinkStatus:
        """See `Link`."""
        state, detail = self._state
        counts = self.handshake.counts()
        return LinkStatus(
            state,
            detail,
            max(self._opened - 1, 0),
            self.garbage,
            counts.late,
            counts.unacknowledged,
            counts.answered,
            counts.overruns,
            sum(self.outputs.dropped().values()),
        )

    # The thread.

    def _run(self) -> None:
        retry = Retry()
        while not self._stop.is_set():
            self.beat.now()
            began_ns = self.clock.mono_ns()
            try:
                self._open()
                self._serve()
            except PlcError as fault:
                self._tell(LinkState.RECONNECTING, str(fault))
            except Exception as error:  # the line must come back whatever the driver threw
                log.debug("the link to the PLC failed", exc_info=True)
                self._tell(LinkState.RECONNECTING, f"unexpected fault of the link: {type(error).__name__}: {error}")
            finally:
                self.outputs.link_lost()
                self.port.close()
            if self._opened_ns >= began_ns and self._worked():
                retry.reset()
            self.handshake.collect(self.clock.mono_ns())
            pause_s = retry.pause_s()
            self.beat.now(pause_s)
            self._stop.wait(pause_s)
        self.outputs.close()
        self.beat.rest()

    def _worked(self) -> bool:
        """Whether the connection that just ended was a real one, so that the port may well be there again at once."""
        return self.handshake.alive() or self.clock.mono_ns() - self._opened_ns > STEADY_S * 1e9

    def _open(self) -> None:
        self.port.open()
        self.outputs.rest()
        self._opened += 1
        now_ns = self.clock.mono_ns()
        self._checked_ns = self._opened_ns = now_ns
        self.handshake.connected(now_ns)
        self.opened()
        self._tell(LinkState.CONNECTED, "")

    def _serve(self) -> None:
        """Turn after turn until the link is stopped, and once more then: the last answers are said."""
        last = False
        while not last:
            last = self._stop.is_set()
            self.beat.now()
            now_ns = self.clock.mono_ns()
            self._wake.clear()
            until_ns = self.turn()
            self._look(now_ns)
            wait_s = min((until_ns - self.clock.mono_ns()) / 1e9, LOOK_S)
            if not last and wait_s > 0:
                self.port.wait(wait_s, (self._wake.fileno(),))

    def _look(self, now_ns: int) -> None:
        """Whether the device is still the one of the path, and the PLC still speaks."""
        if now_ns - self._checked_ns >= CHECK_S * 1e9:
            self._checked_ns = now_ns
            self.port.check()
        if not self.handshake.silent(now_ns):
            self._tell(LinkState.CONNECTED, "")
        elif self._state[0] is not LinkState.SILENT:
            self._tell(LinkState.SILENT, self._silence())

    def _silence(self) -> str:
        seconds = SILENT_BEATS * self.settings.heartbeat_s
        if self.garbage:
            return (
                f"nothing valid came from the PLC for {seconds:g} s, and {self.garbage} pieces of garbage since the "
                "start: compare baud, parity, stop bits, dialect and check on both sides"
            )
        return f"nothing came from the PLC for {seconds:g} s: does it run, and is its cable in, TX to RX?"

    def _tell(self, state: LinkState, detail: str) -> None:
        if (state, detail) == self._state:
            return
        self._state = (state, detail)
        if self._told.is_news(state.value + detail):
            log.log(logging.INFO if state is LinkState.CONNECTED else logging.WARNING, "PLC %s %s", state.value, detail)


class _Told:
    """Keeps a cable that goes in and out from filling the log: the same sentence once in `SAME_NEWS_S`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._at_ns: dict[str, int] = {}

    def is_news(self, text: str) -> bool:
        now_ns = self._clock.mono_ns()
        self._at_ns = {t: ns for t, ns in self._at_ns.items() if now_ns - ns < SAME_NEWS_S * 1e9}
        if text in self._at_ns or len(self._at_ns) >= NEWS_KEPT:
            return False
        self._at_ns[text] = now_ns
        return True


def byte_ns(settings: Plc) -> float:
    """How long a byte takes on the wire: start bit, 8 data bits, parity, stop bits.

    >>> byte_ns(Plc(port="/dev/ttyS0", baud=10_000))
    1000000.0
    """
    bits = 9 + (settings.parity != "none") + settings.stop_bits
    return bits / settings.baud * 1e9
