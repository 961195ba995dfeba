"""Makes the link that the config asks for."""

from __future__ import annotations

from collections.abc import Sequence

from edge.clock import Clock
from edge.config import Output, Plc
from edge.plc.ascii_link import AsciiLink
from edge.plc.desk import Desk
from edge.plc.handshake import LinkState, LinkStatus, OnAnswered, OnLate
from edge.plc.outputs import Outputs
from edge.plc.thread import Link, LinkThread

__all__ = ["Link", "LinkState", "LinkStatus", "make_link"]


def make_link(
    settings: Plc,
    desk: Desk,
    clock: Clock,
    on_answered: OnAnswered,
    on_late: OnLate,
    outputs: Sequence[Output] = (),
) -> Link:
    """The link to the line's controller, not started.

    Args:
        on_answered: called in the link's thread when an answer was said for the first time: the answer, the
            milliseconds from its trigger to the end of the write, the word said.
        on_late: called in the link's thread, once for an answer, when its OK became LATE. The flag is True when the OK
            had been said in time before, without an Ack.
    """
    return _dialect(settings)(settings, desk, clock, on_answered, on_late, Outputs(outputs, settings))


def _dialect(settings: Plc) -> type[LinkThread]:
    # Each loads its library only where it is used.
    if settings.dialect == "modbus_server":
        from edge.plc.modbus_server import ModbusServerLink

        return ModbusServerLink
    if settings.dialect == "modbus_client":
        from edge.plc.modbus_client import ModbusClientLink

        return ModbusClientLink
    return AsciiLink
