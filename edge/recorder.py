"""The black box: every frame that was judged in the last minutes, what came of it, and what else happened.

`note_part` and `note_event` hand over and return; packing and writing happen in a thread of their own. Written one
after the other into segment files that are never changed and never synced: gentle to flash memory, and a `kill -9`
costs at most what was waiting. The oldest segments go when the minutes or the quota are over.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from edge.clock import Beat, Clock
from edge.config import RecorderSettings
from edge.event import RecorderCounts, encode
from edge.part import Part
from edge.part_record import record_of
from edge.recording import (
    MAGIC,
    SUFFIX,
    EventEntry,
    FrameEntry,
    Kind,
    PartEntry,
    Session,
    encode_record,
    pack,
    read_outline,
    segments_in,
    this_machine,
)
from edge.spool import MOST_BYTES, RETRY_S, DiskState, Spool

SEGMENT_BYTES: Final = 16_000_000
SEGMENT_S: Final = 10.0
SEGMENTS_IN_QUOTA: Final = 8  # at least so many segments share a small quota, so that not all goes at once
MOST_AGE_S: Final = 1e7  # older is all the same
EVENT_BYTES: Final = 4096  # what an event keeps in memory, about
GAP: Final = "gap"  # the kind of event that says what is missing here


@dataclass(frozen=True)
class _Served:
    """What parts are judged by, and the class names by class id."""

    session: Session
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Item:
    """A part, or an event, with when it was noted and what parts were judged by then."""

    what: Part | EventEntry
    at_ts: float
    at_mono_ns: int
    served: _Served

    @property
    def frames(self) -> int:
        return len(self.what.inspections) if isinstance(self.what, Part) else 0


class Recorder:
    """Records a station. `note_part` belongs to the inspection thread, the rest to any.

    Args:
        folder: of the segments; nobody else writes there.
        session: what the parts are judged by: the fields of `edge.recording.Session`; see `serve`.
        classes: class names by class id.
        most_bytes: of frames that may wait to be written. retry_s: pause before a disk in trouble is tried again.
    """

    def __init__(
        self,
        folder: Path,
        settings: RecorderSettings,
        clock: Clock,
        session: Mapping[str, Any],
        *,
        classes: Sequence[str] = (),
        most_bytes: int = MOST_BYTES,
        retry_s: float = RETRY_S,
    ) -> None:
        self._use = settings.use
        self._clock = clock
        self._gaps = _Gaps()
        self.serve(session, classes)
        self._sink = _Writer(folder, settings, clock, self._served, self._gaps)
        self._spool: Spool[_Item] = Spool("the recording", folder, self._sink, most_bytes, retry_s)

    def serve(self, session: Mapping[str, Any], classes: Sequence[str]) -> None:
        """Parts are judged by this from here on; a segment of the recording holds those of one bundle."""
        self._served = _Served(msgspec.convert({**this_machine(), **session}, Session), tuple(classes))

    def start(self) -> None:
        """Look at what is there, and write from then on."""
        self._spool.start()

    def stop(self, timeout_s: float) -> bool:
        """Write what waits; False when that took longer, and what was left is lost."""
        return self._spool.stop(timeout_s)

    def settled(self, timeout_s: float) -> bool:
        """Wait until all that was noted so far is written; False when it is not."""
        return self._spool.settled(timeout_s)

    def note_part(self, part: Part) -> None:
        """Record a part with its frames. Costs microseconds."""
        if not self._use:
            return
        light = replace(part, inspections=tuple(replace(x, features=None) for x in part.inspections))
        maps = sum(x.scores.anomaly_map.nbytes for x in part.inspections if x.scores.anomaly_map is not None)
        self._offer(light, sum(x.frame.image.nbytes for x in part.inspections) + maps + EVENT_BYTES)

    def note_event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Record what happened beside the parts; `data` is what JSON can hold."""
        if self._use:
            at_ts, at_mono_ns = self._clock.ts(), self._clock.mono_ns()
            event = EventEntry(kind=kind, data=dict(data), at_ts=at_ts, at_mono_ns=at_mono_ns)
            self._offer(event, EVENT_BYTES)

    def _offer(self, what: Part | EventEntry, size: int) -> None:
        item = _Item(what, self._clock.ts(), self._clock.mono_ns(), self._served)
        if not self._spool.offer(item, size):
            in_trouble = self.state not in (DiskState.OK, DiskState.SLOW)
            self._gaps.add(item, self.problem() if in_trouble else "the writer could not keep up", in_trouble)

    def counts(self) -> RecorderCounts:
        """What is held now; what was lost since the start, in frames (a part or an event without frames is one)."""
        segments, gaps = self._sink.segments(), self._gaps
        reach_ns = self._clock.mono_ns() - segments[0].began_ns if segments else 0
        return RecorderCounts(
            frames=sum(segment.frames for segment in segments),
            bytes=sum(segment.size for segment in segments),
            reaches_s=round(max(0, reach_ns) / 1e9, 1),
            dropped=gaps.dropped,
            failed=gaps.failed,
        )

    @property
    def written_bytes(self) -> int:
        """Written to the disk since the start."""
        return self._sink.written_bytes

    @property
    def beat(self) -> Beat:
        """Moves while the thread that writes does."""
        return self._spool.beat

    @property
    def state(self) -> DiskState:
        """How the disk takes it."""
        return self._spool.trouble.state

    def problem(self) -> str:
        """What keeps the recording from being written, for a person; "" when nothing does."""
        return self._spool.trouble.text


class _Gaps:
    """What is missing from the recording and not yet told in it. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: EventEntry | None = None
        self.dropped = 0
        self.failed = 0

    def add(self, item: _Item, why: str, failed: bool = False) -> None:
        """An item is not recorded."""
        with self._lock:
            lost = max(1, item.frames)
            if failed:
                self.failed += lost
            else:
                self.dropped += lost
            told = dict(self._since.data) if self._since else {"parts": 0, "frames": 0, "events": 0}
            told["parts" if isinstance(item.what, Part) else "events"] += 1
            told["frames"] += item.frames
            told |= {"from_ts": told.get("from_ts", item.at_ts), "to_ts": item.at_ts, "why": why}
            self._since = EventEntry(kind=GAP, data=told, at_ts=item.at_ts, at_mono_ns=item.at_mono_ns)

    def take(self) -> EventEntry | None:
        """The gap since the last call, None: there is none."""
        with self._lock:
            gap, self._since = self._since, None
        return gap

    def put_back(self, gap: EventEntry) -> None:
        """It could not be written: keep it for the next time, with what has come to it since."""
        with self._lock:
            if self._since is not None:
                sums = {key: gap.data[key] + self._since.data[key] for key in ("parts", "frames", "events")}
                data = {**self._since.data, **sums, "from_ts": gap.data["from_ts"]}
                gap = msgspec.structs.replace(self._since, data=data)
            self._since = gap


@dataclass
class _Segment:
    """A segment file; times on the monotonic clock of this boot, where older ones were by the wall clock's word."""

    path: Path
    began_ns: int
    ended_ns: int
    size: int
    frames: int


class _Writer:
    """Packs parts into segment files; a sink of the spool."""

    def __init__(
        self,
        folder: Path,
        settings: RecorderSettings,
        clock: Clock,
        served: _Served,
        gaps: _Gaps,
    ) -> None:
        self._folder = folder
        self._quota = int(settings.quota_mb * 1e6)
        self._keep_ns = int(settings.minutes * 60e9)
        self._clock = clock
        self._served = served
        self._gaps = gaps
        self._closed: deque[_Segment] = deque()
        self._open: _Segment | None = None
        self._file = -1
        self._number = 0
        self._packed: tuple[_Item, bytes] | None = None  # a second try costs no packing
        self.written_bytes = 0

    def segments(self) -> list[_Segment]:
        """Oldest first; for any thread."""
        newest = self._open
        closed = self._closed.copy()
        return [*closed, *([newest] if newest is not None else [])]

    def begin(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        found = deque(self._found(path) for path in segments_in(self._folder))
        self._number = int(found[-1].path.stem) if found else 0
        self._closed = found

    def _found(self, path: Path) -> _Segment:
        """A segment of an earlier run. Its age is what the wall clock says now; one that jumps later is not asked."""
        outline, now_ns, now_ts = read_outline(path), self._clock.mono_ns(), self._clock.ts()

        def then_ns(ts: float | None) -> int:
            age_s = now_ts - ts if ts is not None else 0.0
            return now_ns - int(min(max(0.0, age_s), MOST_AGE_S) * 1e9)

        ended_ns = then_ns(outline.ended_ts)
        began_ns = min(then_ns(outline.began_ts), ended_ns)
        return _Segment(path, began_ns, ended_ns, path.stat().st_size, outline.frames)

    def write(self, item: _Item) -> None:
        if self._packed is None or self._packed[0] is not item:
            self._packed = (item, self._record_of(item))
        record = self._packed[1]
        if item.served is not self._served:
            self._close()  # the next segment begins with what its parts are judged by
            self._served = item.served
        self._forget_old(len(record))
        self._tell_gap()
        self._append(record, item.frames)
        self._packed = None

    def _record_of(self, item: _Item) -> bytes:
        if isinstance(item.what, EventEntry):
            return encode_record(Kind.EVENT, item.at_ts, encode(item.what))
        looks = item.what.inspections
        packed = tuple(pack(look.frame.image) for look in looks)
        frames = [
            FrameEntry(camera=look.frame.camera, shape=list(look.frame.image.shape), length=len(data))
            for look, data in zip(looks, packed, strict=True)
        ]
        entry = PartEntry(part=record_of(item.what, item.served.classes), frames=frames, at_mono_ns=item.at_mono_ns)
        return encode_record(Kind.PART, item.at_ts, encode(entry), packed)

    def _tell_gap(self) -> None:
        gap = self._gaps.take()
        if gap is None:
            return
        try:
            self._append(encode_record(Kind.EVENT, gap.at_ts, encode(gap)), 0)
        except OSError:
            self._gaps.put_back(gap)
            raise

    def _append(self, record: bytes, frames: int) -> None:
        now_ns, most = self._clock.mono_ns(), min(SEGMENT_BYTES, self._quota // SEGMENTS_IN_QUOTA)
        segment = self._open
        if segment is not None and (segment.size >= most or now_ns - segment.began_ns >= SEGMENT_S * 1e9):
            self._close()
        self._begin_segment()
        segment = self._open
        assert segment is not None
        self._write_whole(segment, record)
        segment.frames += frames
        segment.ended_ns = now_ns

    def _begin_segment(self) -> None:
        if self._open is not None:
            return
        self._number += 1
        path = self._folder / f"{self._number:010d}{SUFFIX}"
        now_ns = self._clock.mono_ns()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._open = _Segment(path, now_ns, now_ns, 0, 0)
        session = msgspec.structs.replace(self._served.session, at_ts=self._clock.ts(), at_mono_ns=now_ns)
        self._write_whole(self._open, MAGIC + encode_record(Kind.SESSION, session.at_ts, encode(session)))

    def _write_whole(self, segment: _Segment, data: bytes) -> None:
        """All of it; where the disk does not take that, the segment ends with the record before."""
        view = memoryview(data)
        try:
            while view:
                done = os.write(self._file, view)
                view = view[done:]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, segment.size)
            self._close()
            raise
        segment.size += len(data)
        self.written_bytes += len(data)

    def _close(self) -> None:
        segment, self._open = self._open, None
        if segment is None:
            return
        os.close(self._file)
        if segment.size:
            self._closed.append(segment)
        else:
            with contextlib.suppress(OSError):
                segment.path.unlink()

    def _forget_old(self, more: int = 0) -> None:
        """Remove segments beyond the minutes, and beyond the quota with so many bytes more."""
        total = more + sum(segment.size for segment in self.segments())
        oldest_ns = self._clock.mono_ns() - self._keep_ns
        while self._closed and (total > self._quota or self._closed[0].ended_ns < oldest_ns):
            total -= self._remove_oldest()

    def _remove_oldest(self) -> int:
        oldest = self._closed[0]
        oldest.path.unlink(missing_ok=True)
        self._closed.popleft()
        return oldest.size

    def make_room(self, item: _Item) -> bool:
        if not self._closed:
            return False
        self._remove_oldest()
        return True

    def lost(self, item: _Item) -> None:
        self._packed = None
        self._gaps.add(item, "it could not be written", failed=True)

    def idle(self, in_trouble: bool) -> None:
        self._forget_old()
        self._tell_gap()
        if in_trouble:
            self._begin_segment()

    def end(self) -> None:
        self._tell_gap()
        self._close()
