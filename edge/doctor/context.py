"""What the checks are given: the box, its site config, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.config import Config, Paths
from edge.doctor.system import System

SERVICE_USER = "edge"  # as the unit and install.sh name it
UNIT = "edge.service"


@dataclass(frozen=True)
class Context:
    """What a check may look at.

    Attributes:
        config: None: there is none, or it cannot be used; what depends on it is left out.
        config_path: the file it came from, or should have.
        config_problem: why there is none although a file was named; None when all is well.
        config_readable: False when the file is there and this user may not read it.
        loopback: a serial port whose TX and RX are bridged, to be tested; None: nothing is sent.
    """

    system: System
    config: Config | None = None
    config_path: Path | None = None
    config_problem: str | None = None
    config_readable: bool = True
    loopback: str | None = None

    @property
    def state(self) -> Path:
        """The daemon's state folder."""
        return Path(self.config.paths.state if self.config is not None else Paths().state)
