"""Which frames a drift report points at, so that `mine` can pick them for labelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edge.drift.baseline import MOST_SIGMAS
from edge.drift.report import Moved, evidence_name
from tools.errors import DataError
from tools.mining import Finding


class _Report(msgspec.Struct):
    """What counts here of a report from `edge replay --drift --report`, or of a camera's published one."""

    moved: list[Moved]


def read_moved(path: Path) -> list[Moved]:
    """The signals that a drift report says have moved.

    Raises:
        DataError: it cannot be read, is no such report, or nothing has moved.
    """
    try:
        moved = msgspec.json.decode(path.read_bytes(), type=_Report).moved
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path}: not a drift report (`edge replay --drift --report` writes one): {error}") from error
    if not moved:
        raise DataError(f"{path}: says that nothing has moved: leave --drift out")
    return moved


def findings(moved: Sequence[Moved], files: Mapping[str, Path]) -> dict[Path, Finding]:
    """How clearly each image shows a drift, from 0 to 1, and in which signal; images that show none are left out.

    Args:
        files: by their names below the folder. A frame's image has the frame's name there, as in a replayed folder, or
            is called as the device calls its evidence (`edge.drift.report.evidence_name`).
    """
    found: dict[Path, Finding] = {}
    for signal in moved:
        for frame in (*signal.best, *signal.kept):
            file = files.get(frame.name) or files.get(evidence_name(signal.signal, frame))
            score = min(1.0, abs(frame.score) / MOST_SIGMAS)
            if file is not None and score > found.get(file, Finding(0.0)).score:
                found[file] = Finding(score, f"{signal.signal} {frame.score:+.1f} sigmas")
    return found
