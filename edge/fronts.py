"""What brings parts to the station: cameras alone, each frame a part, or a PLC that triggers. One of the two."""

from __future__ import annotations

from typing import Protocol

from edge.admission import Admission
from edge.capture.base import FrameSink
from edge.capture.intake import Intake
from edge.capture.ring import FrameRing
from edge.config import Challenge
from edge.event import LineHealth
from edge.incumbent import Incumbent, check_masters, holds
from edge.line import Line
from edge.line_care import LineCare
from edge.records import Loss
from edge.station import Station


class Front(Protocol):
    """One way in which parts come. Used by the inspection thread."""

    @property
    def sink(self) -> FrameSink:
        """Where cameras leave their frames."""

    def turn(self, timeout_s: float) -> bool:
        """Settle what comes next; False when nothing came in that time."""

    def tick(self) -> None:
        """What goes on beside the parts; called a few times a second."""

    def idle(self) -> bool:
        """Whether nothing waits to be settled."""

    def check(self, incumbent: Incumbent) -> None:
        """Whether parts can be judged by another product, as far as that depends on how they come.

        Raises:
            ConfigError: they cannot.
        """

    def serve(self, incumbent: Incumbent) -> None:
        """Judge by another product from here on. Between two parts."""

    def held(self, began_ns: int, ended_ns: int, holds: bool) -> None:
        """An inference that was none of a part's took that time; `holds`: it held the interpreter."""

    def finish(self) -> None:
        """At the stop: what is left becomes a named loss."""

    def health(self) -> LineHealth | None:
        """Of the line; None without a PLC."""


class FreeRunning:
    """Every frame is a part."""

    def __init__(self, intake: Intake, station: Station) -> None:
        self.sink: FrameSink = intake
        self._intake = intake
        self._station = station

    def turn(self, timeout_s: float) -> bool:
        """See `Front`."""
        taken = self._intake.take(timeout_s)
        if taken is None:
            return False
        self._station.settle(taken)
        return True

    def tick(self) -> None:
        """See `Front`."""

    def idle(self) -> bool:
        """See `Front`."""
        return self._intake.idle()

    def check(self, incumbent: Incumbent) -> None:
        """See `Front`."""

    def serve(self, incumbent: Incumbent) -> None:
        """See `Front`: the station has all that it needs."""

    def held(self, began_ns: int, ended_ns: int, holds: bool) -> None:
        """See `Front`."""

    def finish(self) -> None:
        """See `Front`."""
        self._intake.close()
        self.turn(0)
        self._station.lose(Loss.SHUTDOWN, self._intake.remaining())

    def health(self) -> LineHealth | None:
        """See `Front`."""
        return None


class Triggered:
    """The PLC says when a part is there."""

    def __init__(
        self,
        line: Line,
        care: LineCare,
        ring: FrameRing,
        station: Station,
        admission: Admission,
        challenge: Challenge | None,
    ) -> None:
        self._challenge = challenge
        self.sink: FrameSink = ring
        self._line = line
        self._care = care
        self._ring = ring
        self._station = station
        self._admission = admission

    def turn(self, timeout_s: float) -> bool:
        """See `Front`."""
        return self._line.turn(timeout_s)

    def tick(self) -> None:
        """See `Front`."""
        for camera, faults in self._ring.take_faults().items():
            self._station.capture_failed(camera, faults.text)
        self._care.tick()

    def idle(self) -> bool:
        """See `Front`."""
        return self._line.idle()

    def check(self, incumbent: Incumbent) -> None:
        """See `Front`."""
        check_masters(self._challenge, incumbent.product.classes)
        self._care.check(incumbent.product.recipes)

    def serve(self, incumbent: Incumbent) -> None:
        """See `Front`."""
        self._line.serve(incumbent.books, holds(incumbent.product))
        self._care.serve(incumbent.product.recipes)

    def held(self, began_ns: int, ended_ns: int, holds: bool) -> None:
        """See `Front`."""
        self._line.held(began_ns, ended_ns, holds)

    def finish(self) -> None:
        """See `Front`."""
        self._line.finish()
        self._care.finish()

    def health(self) -> LineHealth | None:
        """See `Front`."""
        return self._care.health(self._line.no_frame, self._ring, self._admission)
