"""Pictures of the parts that are worth a look: NG, REVIEW, RETAKE, losses that have frames, and a sample of OK.

Each part is a folder with the picture as people see it (boxes, anomaly map), the raw image without loss, and a JSON
file with all that is known of it; see `edge.evidence_folder`. The inspection thread only decides and hands over:
drawing, encoding and writing happen in a thread of their own. Nothing is synced to the disk: a power cut may take the
pictures of the last half minute with it, never the verdict, which is in the outbox.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.annotate import to_jpeg
from edge.clock import Beat, Clock
from edge.config import EvidenceSettings
from edge.event import EvidenceCounts, encode
from edge.evidence_folder import RECORD, EvidenceFolder, path_of, safe_name
from edge.part import Part
from edge.part_record import record_of
from edge.records import Inspection, VerdictKind
from edge.spool import MOST_BYTES, RETRY_S, DiskState, Spool

FORMAT: Final = 1
JPEG_QUALITY: Final = 90
SHADOW: Final = "-shadow"  # in the name of a folder that shows another bundle's opinion
# Level 1 with run lengths is the smallest and quickest of OpenCV's PNG settings on grey parts (3.5 ms a 640x640).
PNG: Final = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)

Draw = Callable[[Inspection], NDArray[np.uint8]]


@dataclass(frozen=True)
class Served:
    """What parts are judged by, as far as their pictures show it.

    Attributes:
        about: goes into each part's file beside the part: the bundle's digest, the config's hash.
        draw: an inspection as a picture; called in the writer's thread.
        classes: class names by class id.
    """

    about: Mapping[str, str]
    draw: Draw
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class _Item:
    """A part with what it was judged by: when it is written, another bundle may be in charge."""

    part: Part
    path: str
    served: Served
    worth: str  # the outcome by which it is kept


class Evidence:
    """Keeps the pictures of a station's parts. `keep` belongs to the inspection thread, the rest to any.

    Args:
        folder: where they are kept; nobody else writes there.
        served: what the parts are judged by; see `serve`.
        most_bytes: of pictures that may wait to be written. retry_s: pause before a disk in trouble is tried again.
    """

    def __init__(
        self,
        folder: Path,
        settings: EvidenceSettings,
        clock: Clock,
        served: Served,
        *,
        most_bytes: int = MOST_BYTES,
        retry_s: float = RETRY_S,
    ) -> None:
        self._settings = settings
        self._passed = 0
        self._served = served
        self._sink = _Writer(EvidenceFolder(folder, int(settings.quota_mb * 1e6)), clock)
        self._spool: Spool[_Item] = Spool("evidence", folder, self._sink, most_bytes, retry_s)

    def start(self) -> None:
        """Look at what is there, and write from then on."""
        self._spool.start()

    def stop(self, timeout_s: float) -> bool:
        """Write what waits; False when that took longer, and what was left is lost."""
        return self._spool.stop(timeout_s)

    def settled(self, timeout_s: float) -> bool:
        """Wait until all that was taken so far is written; False when it is not."""
        return self._spool.settled(timeout_s)

    def serve(self, served: Served) -> None:
        """Parts are judged by another bundle from here on."""
        self._served = served

    def keep(self, part: Part) -> str:
        """Take a part when it is worth keeping; the path that it will have below the folder, "" when it is not taken.

        Costs microseconds. The path is a promise that the disk may break: see `counts`.
        """
        if not self._wanted(part):
            return ""
        path = path_of(part.outcome, part.number, part.serial, part.settled_ts)
        return self._take(part, path, self._served, part.outcome)

    def keep_opinion(self, part: Part, other: Inspection, opinion: Served) -> str:
        """Take a frame of a part as a bundle in shadow judges it; the path that it will have, as of `keep`.

        It lies beside the part's own evidence, under the worse of the two outcomes: what should not have passed, or
        would have, is not the first to go.
        """
        if not self._settings.use:
            return ""
        seen = replace(part, inspections=(other,), verdict=other.verdict, loss=None)
        worth = max(part.outcome, seen.outcome, key=_worth)
        path = path_of(worth, part.number, part.serial, part.settled_ts)
        return self._take(seen, f"{path}{SHADOW}-{safe_name(other.frame.camera)}", opinion, worth)

    def _take(self, part: Part, path: str, served: Served, worth: str) -> str:
        # Features are large and are no evidence.
        light = replace(part, inspections=tuple(replace(x, features=None) for x in part.inspections))
        return path if self._spool.offer(_Item(light, path, served, worth), _bytes_of(part)) else ""

    def _wanted(self, part: Part) -> bool:
        if not (self._settings.use and part.inspections):
            return False
        if not part.passed:
            return True
        self._passed += 1
        return self._settings.ok_every > 0 and self._passed % self._settings.ok_every == 0

    def counts(self) -> EvidenceCounts:
        """What is held now, and what was done since the start."""
        held, spool = self._sink.folder, self._spool
        return EvidenceCounts(
            files=held.parts,
            bytes=held.used,
            written=self._sink.written,
            evicted=dict(held.evicted),
            dropped=spool.dropped,
            failed=spool.failed,
        )

    @property
    def beat(self) -> Beat:
        """Moves while the thread that writes does."""
        return self._spool.beat

    @property
    def state(self) -> DiskState:
        """How the disk takes it."""
        return self._spool.trouble.state

    def problem(self) -> str:
        """What keeps pictures from being written, for a person; "" when nothing does."""
        return self._spool.trouble.text


class _Writer:
    """Draws, encodes and writes parts; a sink of the spool."""

    def __init__(self, folder: EvidenceFolder, clock: Clock) -> None:
        self.folder = folder
        self.written = 0
        self._clock = clock
        self._encoded: tuple[_Item, dict[str, bytes]] | None = None  # of the last part: a second try costs no drawing

    def begin(self) -> None:
        self.folder.open()

    def write(self, item: _Item) -> None:
        encoded = self._encoded
        if encoded is None or encoded[0] is not item:
            self._encoded = encoded = (item, self._files_of(item.part, item.served))
        if self.folder.add(item.path, item.worth, encoded[1]):
            self.written += 1
        self._encoded = None

    def _files_of(self, part: Part, served: Served) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for inspection in part.inspections:
            name = safe_name(inspection.frame.camera)
            files[f"{name}.jpg"] = to_jpeg(served.draw(inspection), JPEG_QUALITY)
            files[f"{name}.png"] = _png(inspection.frame.image)
        written_ts = self._clock.ts()
        record = record_of(part, served.classes)
        files[RECORD] = encode(_Sidecar(about=dict(served.about), written_ts=written_ts, part=record))
        return files

    def make_room(self, item: _Item) -> bool:
        return self.folder.make_room(item.worth)

    def lost(self, item: _Item) -> None:
        self._encoded = None

    def idle(self, in_trouble: bool) -> None:
        if in_trouble:
            self.folder.probe()

    def end(self) -> None:
        """Nothing is held open."""


class _Sidecar(msgspec.Struct, kw_only=True, frozen=True):
    """The JSON file beside a part's pictures."""

    format: int = FORMAT
    about: dict[str, str]
    written_ts: float
    part: Any


def _worth(outcome: str) -> int:
    order = (VerdictKind.OK.value, VerdictKind.RETAKE.value, VerdictKind.REVIEW.value, VerdictKind.NG.value)
    return order.index(outcome) if outcome in order else 0


def _png(image: NDArray[np.uint8]) -> bytes:
    ok, encoded = cv2.imencode(".png", image, PNG)
    if not ok:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded as PNG")
    return bytes(encoded)


def _bytes_of(part: Part) -> int:
    """What a part keeps in memory while it waits, about."""
    maps = (x.scores.anomaly_map for x in part.inspections)
    return sum(x.frame.image.nbytes for x in part.inspections) + sum(m.nbytes for m in maps if m is not None) + 4096
