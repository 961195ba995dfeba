"""Which processes run, and which of them hold a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from edge.doctor.system import System


@dataclass(frozen=True)
class Process:
    """A running program. `command` is its whole command line."""

    pid: int
    name: str
    command: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"

    @property
    def is_daemon(self) -> bool:
        """Whether it is our own service."""
        words = self.command.split()
        return "run" in words and any(word.rpartition("/")[2] == "edge" or word == "edge" for word in words)


def processes(system: System) -> Iterator[Process]:
    """All that run."""
    for pid in system.names("/proc"):
        if pid.isdecimal():
            name = system.text(f"/proc/{pid}/comm")
            if name is not None:
                command = (system.text(f"/proc/{pid}/cmdline") or "").replace("\0", " ").strip()
                yield Process(int(pid), name, command)


def holders(system: System, device: str) -> tuple[list[Process], bool]:
    """Who has a device open, and whether every process could be looked into: another user's only root may."""
    wanted, found, all_seen = system.real(device), [], True
    for process in processes(system):
        folder = f"/proc/{process.pid}/fd"
        if not system.may(folder, os.R_OK):
            all_seen = all_seen and not system.exists(folder)  # it may have ended meanwhile
            continue
        links = (system.link(f"{folder}/{handle}") for handle in system.names(folder))
        if process.pid != os.getpid() and any(link == wanted for link in links):
            found.append(process)
    return found, all_seen
