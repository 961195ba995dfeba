"""What became of the last attempt to bring a bundle: one small file, from whoever tried to the daemon that tells it.

<state>/update/outcome.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edge.bundle import trial as trials
from edge.errors import BundleError
from edge.event import UpdateOutcome
from edge.files import write_whole

FOLDER: Final = "update"
OUTCOME: Final = "outcome.json"


def write(state: Path, outcome: UpdateOutcome) -> None:
    """Put it in the place of the last one, durably.

    Raises:
        BundleError: it cannot be written; the last one stands.
    """
    folder = state / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trials.adopt(folder, state)
        with trials.lock(folder):
            write_whole(folder / OUTCOME, msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
            trials.adopt(folder / OUTCOME, state)
    except OSError as error:
        raise BundleError(f"the outcome cannot be kept in {folder}: {error.strerror or error}") from error


def read(state: Path) -> UpdateOutcome | None:
    """The last one; None where there is none, or none that can be understood."""
    try:
        with (state / FOLDER / OUTCOME).open("rb") as file:
            return msgspec.json.decode(file.read(trials.LARGEST_BYTES), type=UpdateOutcome)
    except (OSError, msgspec.DecodeError, ValueError):
        return None


def stamp(state: Path) -> tuple[int, int] | None:
    """Changes with every new outcome: for whoever looks again and again."""
    try:
        found = (state / FOLDER / OUTCOME).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
