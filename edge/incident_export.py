"""Packs the last minutes of a recording into an incident file, whether the daemon runs or not."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from edge import __version__
from edge.errors import IncidentError
from edge.evidence_folder import safe_name
from edge.incident_file import FORMAT, KIND, TIMELINE, Entry, IncidentWriter, Manifest, Packed
from edge.recording import EventEntry, PartEntry, Record, Session, read_outline, read_segment, segments_in

RECORDER = "recorder"  # below the state folder


@dataclass
class Summary:
    """What an export has packed.

    Attributes:
        gaps: sentences on what is missing.
    """

    out: Path
    size: int = 0
    parts: int = 0
    frames: int = 0
    events: int = 0
    from_ts: float = 0.0
    to_ts: float = 0.0
    gaps: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """For a person."""
        span = f"{(self.to_ts - self.from_ts) / 60:.1f} minutes"
        what = f"{self.parts} parts, {self.frames} frames, {self.events} events"
        return [f"{self.out}: {self.size / 1e6:.1f} MB, {span}: {what}", *(f"missing: {gap}" for gap in self.gaps)]


def export(state: Path, last_s: float, out: Path, now_ts: float) -> Summary:
    """Pack what was recorded since `last_s` before `now_ts`.

    Args:
        state: the daemon's state folder. now_ts: seconds since 1970, UTC.

    Raises:
        IncidentError: there is no recording, nothing in it is that young, or the file cannot be written.
    """
    folder = state / RECORDER
    try:
        segments = list(segments_in(folder))
    except OSError as error:
        hint = "give the state folder with --state, and run this as a user who may read it"
        raise IncidentError(f"there is no recording in {folder}: {error.strerror or error}; {hint}") from error
    partial = out.with_name(f"{out.name}.partial")
    summary = Summary(out)
    try:
        with (
            partial.open("wb") as file,
            tempfile.TemporaryFile(dir=out.parent) as timeline,
            closing(IncidentWriter(file)) as writer,
        ):
            packer = _Packer(writer, timeline, summary)
            packer.pack(segments, now_ts - last_s)
            _require_something(summary, segments, now_ts)
            packer.finish(now_ts)
        summary.size = partial.stat().st_size
        partial.replace(out)
    except OSError as error:
        raise IncidentError(f"the incident cannot be written to {out}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return summary


def _require_something(summary: Summary, segments: list[Path], now_ts: float) -> None:
    if summary.parts or summary.events:
        return
    newest_ts = None
    for path in reversed(segments):
        with contextlib.suppress(OSError):
            newest_ts = read_outline(path).ended_ts
        if newest_ts is not None:
            break
    if newest_ts is None:
        raise IncidentError("the recording is empty: is the daemon running, and is recorder.use true in its config?")
    minutes = max(1, int((now_ts - newest_ts) / 60) + 1)
    raise IncidentError(
        f"nothing was recorded in that time, the last was {minutes} minutes ago: use --last {minutes + 10}m"
    )


class _Packer:
    """Goes through the segments and writes what is young enough."""

    def __init__(self, writer: IncidentWriter, timeline: IO[bytes], summary: Summary) -> None:
        self._writer = writer
        self._timeline = timeline
        self._summary = summary
        self._sessions: dict[str, int] = {}  # its content -> its number
        self._session: Session | None = None  # of the segment that is read
        self._skipped = 0
        self._unreadable: list[str] = []
        self._homeless = 0

    def pack(self, segments: list[Path], from_ts: float) -> None:
        for path in segments:
            try:
                if max(read_outline(path).ended_ts or 0.0, path.stat().st_mtime) < from_ts:
                    continue
                segment = read_segment(path)
            except FileNotFoundError:  # too old, and removed by the daemon meanwhile
                continue
            except OSError as error:
                self._unreadable.append(path.name)
                self._summary.gaps.append(f"{path.name} cannot be read: {error.strerror or error}")
                continue
            self._skipped += segment.skipped
            self._session = None
            for record in segment.records:
                if isinstance(record.entry, Session):
                    self._session = record.entry
                elif record.at_ts >= from_ts:
                    self._note(record)

    def _number_of(self, session: Session) -> int:
        """Its number; a session that is new is written."""
        plain = msgspec.to_builtins(session)
        for key in ("config", "at_ts", "at_mono_ns"):
            del plain[key]
        plain["recipes"] = sorted(session.recipes)
        text = msgspec.json.encode(plain, order="sorted")
        key = hashlib.sha256(text + session.config.encode()).hexdigest()
        if key not in self._sessions:
            number = self._sessions[key] = len(self._sessions) + 1
            self._writer.add(f"sessions/{number}.json", text)
            self._writer.add(f"sessions/{number}.toml", session.config.encode())
            for sha, recipe in sorted(session.recipes.items()):
                if f"recipes/{sha}.toml" not in self._writer.members:
                    self._writer.add(f"recipes/{sha}.toml", recipe.encode())
        return self._sessions[key]

    def _note(self, record: Record) -> None:
        summary, item = self._summary, record.entry
        if self._session is None:
            self._homeless += 1
            return
        summary.from_ts = summary.from_ts or record.at_ts
        summary.to_ts = max(summary.to_ts, record.at_ts)
        number = self._number_of(self._session)
        if isinstance(item, PartEntry):
            summary.parts += 1
            packed = self._write_frames(item, record.frames)
            entry = Entry(session=number, at_ts=record.at_ts, at_mono_ns=item.at_mono_ns, part=item.part, frames=packed)
        elif isinstance(item, EventEntry):
            summary.events += 1
            summary.gaps += _gap(item)
            entry = Entry(session=number, at_ts=record.at_ts, at_mono_ns=item.at_mono_ns, event=item)
        self._timeline.write(msgspec.json.encode(entry) + b"\n")

    def _write_frames(self, part: PartEntry, frames: tuple[bytes, ...]) -> list[Packed]:
        pairs = zip(part.frames, frames, strict=True)
        return [self._writer.add_frame(frame, packed, safe_name(frame.camera)) for frame, packed in pairs]

    def finish(self, now_ts: float) -> None:
        summary = self._summary
        summary.frames = self._writer.frames
        summary.gaps += list(self._damage())
        self._writer.add_file(TIMELINE, self._timeline)
        self._writer.finish(
            Manifest(
                kind=KIND,
                format=FORMAT,
                edge=__version__,
                created_ts=now_ts,
                from_ts=summary.from_ts,
                to_ts=summary.to_ts,
                parts=summary.parts,
                frames=summary.frames,
                events=summary.events,
                sessions=len(self._sessions),
                skipped_bytes=self._skipped,
                unreadable=self._unreadable,
                members=self._writer.members,
            )
        )

    def _damage(self) -> Iterator[str]:
        if self._skipped:
            yield f"{self._skipped} bytes of the recording are damaged or were cut off by a crash"
        if self._homeless:
            yield f"{self._homeless} records, since what they were judged by is damaged"


def _gap(event: EventEntry) -> list[str]:
    if event.kind != "gap":
        return []
    data = event.data
    return [f"{data.get('frames', '?')} frames of {data.get('parts', '?')} parts: {data.get('why', '')}"]
