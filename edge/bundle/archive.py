"""A bundle as one file: packed the same way every time, unpacked with nothing taken on trust.

The file is a gzip stream (RFC 1952) of one member with a ustar archive (POSIX.1-1988) of plain files in it. What else
tar can hold (links, devices, sparse files, pax and GNU extensions) is no part of a bundle, and an archive that has it
is refused, not repaired. The headers are read here, block by block: a library that follows extensions reads as much
memory as they ask for.

Everything is looked at once before anything is written, and checked again while it is.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, get_args

from edge.bundle import manifest as manifests
from edge.bundle.manifest import MANIFEST, FilePath
from edge.bundle.trial import adopt
from edge.errors import BundleError, TrustError

BLOCK: Final = tarfile.BLOCKSIZE
CHUNK: Final = 1 << 16
MOST_PADDING: Final = 1 << 16  # zeros after the last member; tar itself fills up to 10240 bytes
_FILE_PATH: Final = re.compile(get_args(FilePath)[1].pattern)
_KINDS: Final = {
    tarfile.SYMTYPE: ("link", "a symbolic link"),
    tarfile.LNKTYPE: ("link", "a hard link"),
    tarfile.CHRTYPE: ("special", "a character device"),
    tarfile.BLKTYPE: ("special", "a block device"),
    tarfile.FIFOTYPE: ("special", "a pipe"),
    tarfile.CONTTYPE: ("special", "a contiguous file"),
    tarfile.GNUTYPE_SPARSE: ("extension", "a sparse file"),
    tarfile.GNUTYPE_LONGNAME: ("extension", "a GNU long name"),
    tarfile.GNUTYPE_LONGLINK: ("extension", "a GNU long link"),
    tarfile.XHDTYPE: ("extension", "a pax header"),
    tarfile.XGLTYPE: ("extension", "a pax header for all members"),
    tarfile.SOLARIS_XHDTYPE: ("extension", "a Solaris pax header"),
}


@dataclass(frozen=True)
class Limits:
    """What no bundle exceeds. A shipped one has about 60 files and 13 MB."""

    archive_bytes: int = 1 << 30
    members: int = 2000
    file_bytes: int = 512 << 20
    all_bytes: int = 1 << 30
    ratio: int = 100  # bytes unpacked for each byte packed,
    ratio_from_bytes: int = 16 << 20  # once there are so many
    spare_bytes: int = 16 << 20  # that stay free on the disk


def pack(folder: Path, out: Path) -> Path:
    """Pack a bundle: its manifest and the files that it lists. The same bundle gives the same bytes.

    Raises:
        BundleError: the folder is no whole bundle, holds what no device would unpack, or cannot be read or written.
    """
    manifest = manifests.read(folder)
    partial = out.with_name(out.name + ".partial")
    try:
        with (
            partial.open("wb") as file,
            gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for name in (MANIFEST, *sorted(manifest.files)):
                _add(archive, folder / name, name)
        _walk(partial, Limits(), _drain)
        _sync(partial)
        partial.replace(out)
        _sync(out.parent)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise BundleError(f"the bundle {folder} cannot be packed to {out}: {error}") from error
    except TrustError:
        partial.unlink(missing_ok=True)
        raise
    return out


def unpack(archive: Path, into: Path, limits: Limits | None = None) -> Path:
    """Unpack a bundle into a folder that is made for it; returns the folder. Every file is on the disk then.

    Args:
        into: must not exist yet. Only its owner may enter it.

    Raises:
        TrustError: the archive is not as `pack` makes it; its code says why in one word. The folder is gone again.
        BundleError: the manifest in it is wrong, a file is not as the manifest says, or `into` cannot be made.
    """
    limits = limits or Limits()
    try:
        into.mkdir(mode=0o700)
    except OSError as error:
        raise BundleError(f"{archive} cannot be unpacked into {into}: {error.strerror}; name a new folder") from error
    try:
        found = _walk(archive, limits, _drain)
        _require_space(into, sum(found.values()), limits)
        if _walk(archive, limits, lambda name, body: _write(into / name, body)) != found:
            raise TrustError("changed", f"{archive} was changed while it was unpacked: fetch it again")
        _require_listed(archive, into, found)
        _sync_all(into)
    except OSError as error:
        shutil.rmtree(into, ignore_errors=True)
        code = "no_space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "unreadable"
        raise TrustError(code, f"{archive} cannot be unpacked into {into}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise
    return into


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    info = tarfile.TarInfo(name)  # no owner, no date, 0644: only what is in the file
    info.size = path.stat().st_size
    with path.open("rb") as file:
        archive.addfile(info, file)


# --- reading ---


class _Stream:
    """The unpacked bytes of a gzip file with one member, a piece at a time."""

    def __init__(self, archive: Path, file: BinaryIO, limits: Limits) -> None:
        self._archive, self._file, self._limits = archive, file, limits
        self._inflate = zlib.decompressobj(wbits=31)  # gzip only
        self._ahead = b""
        self._given = 0

    def read(self, most: int) -> bytes:
        """At most so many bytes; none at the end of the gzip stream, whose check sum was right then."""
        while not self._inflate.eof:
            data = self._ahead or self._file.read(CHUNK)
            try:
                out = self._inflate.decompress(data, most)
            except zlib.error as error:
                raise TrustError("damaged", f"{self._archive} is no gzip file or is damaged: {error}") from error
            self._ahead = self._inflate.unconsumed_tail
            if out:
                self._count(len(out))
                return out
            if not data:
                raise TrustError("damaged", f"{self._archive} ends in the middle: fetch it again")
        return b""

    def exactly(self, size: int) -> Iterator[bytes]:
        """So many bytes, in pieces."""
        while size > 0:
            piece = self.read(min(size, CHUNK))
            if not piece:
                raise TrustError("damaged", f"the archive in {self._archive} ends in the middle of a member")
            size -= len(piece)
            yield piece

    def finish(self) -> None:
        """Read to the end: nothing but zeros may come.

        Raises:
            TrustError: something else does, or too many of them.
        """
        zeros = 0
        while piece := self.read(CHUNK):
            zeros += len(piece)
            if any(piece) or zeros > MOST_PADDING:
                raise TrustError("trailing", f"{self._archive} goes on after the end of its archive")
        if self._inflate.unused_data or self._file.read(1):
            raise TrustError("trailing", f"{self._archive} goes on after the end of its gzip stream")

    def _count(self, size: int) -> None:
        self._given += size
        limits = self._limits
        if self._given > limits.all_bytes + BLOCK * 2 * limits.members + MOST_PADDING:
            raise TrustError("too_large", f"{self._archive} unpacks to more than {limits.all_bytes / 1e6:.0f} MB")
        if self._given > max(limits.ratio_from_bytes, limits.ratio * self._file.tell()):
            raise TrustError("bomb", f"{self._archive} unpacks to more than {limits.ratio} times its size")


@dataclass
class _Names:
    """The names so far, to find those that would meet on some file system."""

    archive: Path
    files: dict[str, int] = field(default_factory=dict)  # name -> bytes
    folders: set[str] = field(default_factory=set)  # listed as members
    _spelled: dict[str, str] = field(default_factory=dict)  # folded -> as it was written first
    _parents: set[str] = field(default_factory=set)

    def add(self, name: str, size: int | None) -> None:
        """Note a member; no size: a folder.

        Raises:
            TrustError: its name cannot be in a bundle, or not beside the ones before.
        """
        if problem := _name_problem(name):
            self._refuse(problem[0], name, problem[1])
        if name in self.files or name in self.folders:
            self._refuse("duplicate", name, "comes twice")
        levels = name.split("/")
        parents = ["/".join(levels[:depth]) for depth in range(1, len(levels))]
        for each in (*parents, name):
            first = self._spelled.setdefault(_folded(each), each)
            if first != each:
                self._refuse("collision", name, f"differs from {first} by its spelling only")
        if any(parent in self.files for parent in parents) or (size is not None and name in self._parents):
            self._refuse("conflict", name, "is a file and a folder at once")
        self._parents.update(parents)
        if size is None:
            self.folders.add(name)
            self._parents.add(name)
        else:
            self.files[name] = size

    def _refuse(self, code: str, name: str, why: str) -> None:
        raise TrustError(code, f"{self.archive} is no bundle: the member {_shown(name)} {why}")


def _walk(archive: Path, limits: Limits, take: Callable[[str, Iterator[bytes]], None]) -> dict[str, int]:
    """Look at every member in order; `take` gets the name and the content of each file. Returns sizes by name.

    Raises:
        TrustError: something is in the archive that is no part of a bundle. OSError: it cannot be read.
    """
    names = _Names(archive)
    with _open(archive, limits) as file:
        stream = _Stream(archive, file, limits)
        while (header := b"".join(stream.exactly(BLOCK))).strip(b"\0"):
            info = _parse(archive, header)
            names.add(info.name, None if info.isdir() else info.size)
            _check_sizes(archive, info, names, limits)
            if info.isdir():
                continue
            take(info.name, stream.exactly(info.size))
            _drain("", stream.exactly(-info.size % BLOCK))
        stream.finish()
    if MANIFEST not in names.files:
        raise TrustError("no_manifest", f"{archive} is no bundle: there is no {MANIFEST} in it")
    return names.files


def _open(archive: Path, limits: Limits) -> BinaryIO:
    handle = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise TrustError("unreadable", f"{archive} is no file")
        if found.st_size > limits.archive_bytes:
            raise TrustError("too_large", f"{archive} has more than {limits.archive_bytes / 1e6:.0f} MB")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _parse(archive: Path, header: bytes) -> tarfile.TarInfo:
    """One header block, of a plain file or a folder."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise TrustError("damaged", f"{archive} has a header that cannot be read: {error}") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        code, what = _KINDS.get(info.type, ("special", f"of an unknown kind, {info.type!r}"))
        raise TrustError(code, f"{archive} is no bundle: the member {_shown(info.name)} is {what}")
    return info


def _check_sizes(archive: Path, info: tarfile.TarInfo, names: _Names, limits: Limits) -> None:
    if not 0 <= info.size <= limits.file_bytes or (info.isdir() and info.size):
        what = f"says that it has {info.size} bytes; at most {limits.file_bytes / 1e6:.0f} MB are taken"
        raise TrustError("too_large", f"{archive} is no bundle: the member {_shown(info.name)} {what}")
    if sum(names.files.values()) > limits.all_bytes:
        raise TrustError("too_large", f"{archive} unpacks to more than {limits.all_bytes / 1e6:.0f} MB")
    if len(names.files) + len(names.folders) > limits.members:
        raise TrustError("too_many", f"{archive} has more than {limits.members} members")


def _name_problem(name: str) -> tuple[str, str] | None:
    """Code and text of what is wrong with a member's name."""
    if any(unicodedata.category(letter).startswith("C") for letter in name):
        return "control", "has a control character in its name"
    if "\\" in name:
        return "backslash", "has a backslash in its name"
    if name.startswith("/"):
        return "absolute", "has an absolute path"
    if ".." in name.split("/"):
        return "parent", "leads out of its folder"
    if _FILE_PATH.match(name) is None:
        return "name", "has a name that no file of a bundle may have"
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")


# --- writing ---


def _drain(_name: str, body: Iterator[bytes]) -> None:
    for _ in body:
        pass


def _write(path: Path, body: Iterator[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(handle, "wb") as file:
        for piece in body:
            file.write(piece)


def _require_space(into: Path, needed_bytes: int, limits: Limits) -> None:
    free_bytes = shutil.disk_usage(into).free
    if free_bytes < needed_bytes + limits.spare_bytes:
        raise TrustError(
            "no_space",
            f"the bundle needs {needed_bytes / 1e6:.1f} MB and {into.parent} has {free_bytes / 1e6:.1f} MB free: "
            "free some space and try again, the active bundle is unchanged",
        )


def _require_listed(archive: Path, into: Path, found: dict[str, int]) -> None:
    """Every file is one that the manifest vouches for."""
    manifest = manifests.read(into)
    if more := sorted(set(found) - {MANIFEST, *manifest.files}):
        raise TrustError("not_listed", f"{archive} is no bundle: its manifest says nothing of {_shown(more[0])}")


def _sync_all(into: Path) -> None:
    for path in (into, *into.rglob("*")):
        if path != into:
            path.chmod(0o755 if path.is_dir() else 0o644)
        adopt(path, into.parent)
        _sync(path)
    _sync(into.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
