"""The form of an incident file: a plain zip that people can open too, its members checked before they are believed.

    manifest.json               format, time span, counts, and the SHA-256 of every other member
    sessions/1.json             what a run of the daemon judged by: bundle, model, runtime, machine
    sessions/1.toml             its config, secrets masked
    recipes/<SHA-256>.toml      recipes, by the hash that parts name
    timeline.jsonl              parts with all that was found on them, and events, in the order of the recording
    frames/000001-cam1.z        frames as `edge.recording.pack` packs them

Members are stored, not compressed: the frames are packed already, and nothing in the file can grow when it is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from edge.errors import IncidentError
from edge.part_record import PartRecord
from edge.recording import EventEntry, FrameEntry, Session

FORMAT: Final = 1
KIND: Final = "edge.incident"
MANIFEST: Final = "manifest.json"
TIMELINE: Final = "timeline.jsonl"
LARGEST_MANIFEST: Final = 256 << 20
LARGEST_LINE: Final = 16 << 20
_MEMBER: Final = re.compile(
    r"sessions/\d{1,6}\.(json|toml)|recipes/[0-9a-f]{64}\.toml|timeline\.jsonl|frames/\d{6,}-[A-Za-z0-9._~-]{1,64}\.z"
)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the same content gives the same file


class Manifest(msgspec.Struct, kw_only=True, frozen=True):
    """What the file says of itself.

    Attributes:
        skipped_bytes: of the recording, that were no whole record. unreadable: segments that could not be read.
        members: name -> SHA-256.
    """

    kind: str
    format: int
    edge: str  # version that wrote it
    created_ts: float
    from_ts: float
    to_ts: float
    parts: int
    frames: int
    events: int
    sessions: int
    skipped_bytes: int
    unreadable: list[str]
    members: dict[str, str]


class Packed(msgspec.Struct, kw_only=True, frozen=True):
    """Where the frame of a look is."""

    member: str
    camera: str
    shape: list[int]


class Entry(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One line of the timeline: a part with its frames, or an event."""

    session: int
    at_ts: float
    at_mono_ns: int
    part: PartRecord | None = None
    frames: list[Packed] = []
    event: EventEntry | None = None


class IncidentWriter:
    """Writes the members of an incident file, noting their hashes. To be closed by the caller."""

    def __init__(self, file: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self.members: dict[str, str] = {}
        self.frames = 0

    def add(self, name: str, data: bytes) -> None:
        """Write a member."""
        self._zip.writestr(zipfile.ZipInfo(name, _EPOCH), data)
        self.members[name] = hashlib.sha256(data).hexdigest()

    def add_frame(self, frame: FrameEntry, packed: bytes, camera_name: str) -> Packed:
        """Write a packed frame; `camera_name` is its camera as a part of a name."""
        self.frames += 1
        member = f"frames/{self.frames:06d}-{camera_name}.z"
        self.add(member, packed)
        return Packed(member=member, camera=frame.camera, shape=frame.shape)

    def add_file(self, name: str, file: IO[bytes]) -> None:
        """Write a member from a file, without holding it in memory."""
        digest = hashlib.sha256()
        info = zipfile.ZipInfo(name, _EPOCH)
        file.seek(0)
        with self._zip.open(info, "w", force_zip64=True) as member:
            while block := file.read(1 << 20):
                digest.update(block)
                member.write(block)
        self.members[name] = digest.hexdigest()

    def close(self) -> None:
        """Let go of the file, also of one that is not finished."""
        with contextlib.suppress(OSError):
            self._zip.close()

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest and the end of the file."""
        self._zip.writestr(zipfile.ZipInfo(MANIFEST, _EPOCH), msgspec.json.encode(manifest, order="sorted"))
        self._zip.close()


class IncidentReader:
    """An incident file that is what it says it is, as far as hashes can tell. To be closed by the caller.

    Raises:
        IncidentError: not an incident file, of a newer edge, cut short, or altered; says which member.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise IncidentError(
                f"{path} is not an incident file, or it is cut short ({error}): copy it again"
            ) from error
        except OSError as error:
            raise IncidentError(f"{path} cannot be read: {error.strerror or error}") from error
        try:
            self._check_names()
            self.manifest = self._read_manifest()
            self._check_members()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        self._zip.close()

    def _check_names(self) -> None:
        """Nothing in it may be large when it is read, lie elsewhere, or be there twice."""
        infos = self._zip.infolist()
        size = self._path.stat().st_size
        if sum(info.file_size for info in infos) > size:
            raise self._bad("its members say that they are larger than the file")
        names: set[str] = set()
        for info in infos:
            if info.filename != MANIFEST and not _MEMBER.fullmatch(info.filename):
                raise self._bad(f"{info.filename!r} is no member of such a file")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise self._bad(f"{info.filename} is compressed or encrypted, and nothing in such a file is")
            if info.filename in names:
                raise self._bad(f"{info.filename} is in it twice")
            names.add(info.filename)

    def _read_manifest(self) -> Manifest:
        if MANIFEST not in self._zip.namelist():
            raise self._bad(f"it has no {MANIFEST}")
        data = self._read(MANIFEST, LARGEST_MANIFEST)
        try:
            plain = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self._bad(f"its {MANIFEST} is not JSON: {error}") from error
        if not isinstance(plain, dict) or plain.get("kind") != KIND:
            raise self._bad(f"its {MANIFEST} does not say that it is one")
        if plain.get("format") != FORMAT:
            known = f"it has format {plain.get('format')}, this edge reads format {FORMAT}"
            raise IncidentError(f"the incident {self._path} cannot be used: {known}: use the edge that wrote it")
        try:
            return msgspec.convert(plain, Manifest)
        except msgspec.ValidationError as error:
            raise self._bad(f"its {MANIFEST}: {error}") from error

    def _check_members(self) -> None:
        there, listed = set(self._zip.namelist()) - {MANIFEST}, set(self.manifest.members)
        for name in sorted(listed - there)[:1]:
            raise self._bad(f"{name} is missing")
        for name in sorted(there - listed)[:1]:
            raise self._bad(f"{name} is not in its {MANIFEST}")
        if TIMELINE not in there:
            raise self._bad(f"it has no {TIMELINE}")

    def read(self, name: str) -> bytes:
        """A member, as it was written.

        Raises:
            IncidentError: it is missing or altered.
        """
        if name not in self.manifest.members:
            raise self._bad(f"{name} is missing")
        data = self._read(name)
        if hashlib.sha256(data).hexdigest() != self.manifest.members[name]:
            raise self._altered(name)
        return data

    def _read(self, name: str, most: int | None = None) -> bytes:
        info = self._zip.getinfo(name)
        if most is not None and info.file_size > most:
            raise self._bad(f"{name} is larger than {most} bytes")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            raise self._altered(name) from error
        except OSError as error:
            raise IncidentError(f"{self._path} cannot be read: {error.strerror or error}") from error

    def session(self, number: int) -> Session:
        """What a run of the daemon judged by, with its config; its recipes are read by `recipe`."""
        name = f"sessions/{number}.json"
        plain = self._decoded(name, self.read(name), dict[str, Any])
        config = self.read(f"sessions/{number}.toml").decode("utf-8", "replace")
        recipes = {str(sha): self.recipe(str(sha)) for sha in plain.get("recipes", ())}
        try:
            return msgspec.convert({**plain, "config": config, "recipes": recipes}, Session)
        except msgspec.ValidationError as error:
            raise self._bad(f"{name}: {error}") from error

    def recipe(self, sha256: str) -> str:
        """The text of a recipe.

        Raises:
            IncidentError: it is missing, or not the one of that hash.
        """
        name = f"recipes/{sha256}.toml"
        data = self.read(name)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._altered(name)
        return data.decode("utf-8", "replace")

    def entries(self) -> Iterator[Entry]:
        """The timeline, line by line."""
        self._check_timeline()
        with self._zip.open(TIMELINE) as lines:
            for number, line in enumerate(iter(lambda: lines.readline(LARGEST_LINE), b""), 1):
                yield self._decoded(f"{TIMELINE}, line {number}", line, Entry)

    def _check_timeline(self) -> None:
        digest = hashlib.sha256()
        try:
            with self._zip.open(TIMELINE) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (zipfile.BadZipFile, EOFError) as error:
            raise self._altered(TIMELINE) from error
        if digest.hexdigest() != self.manifest.members[TIMELINE]:
            raise self._altered(TIMELINE)

    def _decoded(self, where: str, data: bytes, type_: Any) -> Any:
        try:
            return msgspec.json.decode(data, type=type_)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self._bad(f"{where}: {error}") from error

    def _altered(self, name: str) -> IncidentError:
        return self._bad(f"{name} is not as it was written")

    def _bad(self, why: str) -> IncidentError:
        return IncidentError(f"the incident {self._path} cannot be used: {why}: copy or export it again")
