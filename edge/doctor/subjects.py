"""Which checks there are, in the order of the report."""

from __future__ import annotations

from typing import Final

from edge.doctor import (
    broker,
    bundle,
    cameras,
    clock,
    disk,
    memory,
    network,
    permissions,
    runtime,
    serial_ports,
    service,
    site,
    thermals,
    update,
)
from edge.doctor.examine import Check

_MODULES = (
    site, clock, disk, memory, thermals, cameras, serial_ports, broker, update, network, runtime, bundle, permissions,
    service,
)  # fmt: skip
CHECKS: Final[dict[str, Check]] = {module.SUBJECT: module.check for module in _MODULES}

# Without a config these have nothing to look at.
WANT_CONFIG: Final = ("broker", "network")
