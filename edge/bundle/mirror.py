"""Where bundles come from: a folder, such as a stick's, or an http(s) server. Nothing of it is believed here.

A mirror gives files by their names in the repository. It sees to it that none is waited for without end, that only
plain files are read, and that a download goes on where it was stopped, also after the process was killed. Whether a
file is the right one is for `edge.bundle.trust` to say.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edge.bundle.pace import Limits, Pace, TooSlow
from edge.errors import TrustError

Say = Callable[[str], None]
_SAY_EVERY_S: Final = 5.0
_KINDS: Final = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class MirrorError(DownloadError):
    """A mirror that cannot be read, or must not be. `code` as of `edge.errors.TrustError`."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True)
class Source:
    """One file of a mirror, opened.

    Attributes:
        start: the byte at which it begins; 0 where the mirror cannot begin in the middle.
        total: bytes of the whole file; None: the mirror does not say.
        read: gives at most so many bytes; none at the end.
    """

    start: int
    total: int | None
    read: Callable[[int], bytes]


def quiet(_: str) -> None:
    """Say nothing."""


class Mirror(FetcherInterface):
    """A copy of a repository. Names are relative to it, such as `metadata/timestamp.json`.

    Attributes:
        address: as people know it, without a password.
        asked, got: the metadata file that was asked for last, and what came; to explain a refusal.
    """

    metadata_url = "metadata/"
    targets_url = "targets/"
    tries_again = False  # what failed once may work the next moment

    def __init__(
        self,
        address: str,
        *,
        kb_s: float = 0.0,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.asked, self.got = "", b""
        self._limits = limits or Limits()
        self._kb_s, self._clock, self._sleep = kb_s, clock, sleep

    @abstractmethod
    def _open(self, name: str, start: int) -> AbstractContextManager[Source]:
        """Open a file, at `start` where the mirror can do that.

        Raises:
            DownloadHTTPError: 404: there is no such file.
            MirrorError: it cannot be read, or must not be.
        """

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """See `FetcherInterface`; remembers what came."""
        self.asked, self.got = url, b""
        self.got = super().download_bytes(url, max_length)
        return self.got

    def _fetch(self, url: str) -> Iterator[bytes]:
        pace = self._pace()
        pace.ask()
        with self._open(url, 0) as source:
            yield from self._paced(source, url, pace)

    def _pace(self) -> Pace:
        return Pace(self._limits, self._kb_s, self._clock, self._sleep)

    def download(self, name: str, part: Path, length: int, say: Say = quiet) -> None:
        """Bring a file into `part`, which may hold its beginning already. What it holds is not looked at.

        Raises:
            DownloadError: it is not there, not of this length, cannot be read, or comes too slowly. What has come
                stays in `part`, for the next time.
            OSError: `part` cannot be written.
        """
        idle, pace = 0, self._pace()  # one pace: who gives a byte a connection is slow, too
        while (held := _held(part, length)) < length:
            pace.ask()
            try:
                self._go_on(name, part, held, length, say, pace)
            except MirrorError as error:
                idle = 0 if _held(part, length) > held else idle + 1
                if error.code != "unreachable" or not self.tries_again or idle >= self._limits.idle_tries:
                    raise
                self._count(pace, 0, name)
                say(f"{error}; trying again")
                self._sleep(float(idle))

    def _go_on(self, name: str, part: Path, held: int, length: int, say: Say, pace: Pace) -> None:
        with self._open(name, held) as source:
            if source.total is not None and source.total != length:
                raise self._wrong_length(name, source.total, length)
            have, told = source.start, self._clock()
            with _part(part, have) as handle:
                for piece in self._paced(source, name, pace):
                    have += len(piece)
                    if have > length:
                        raise self._wrong_length(name, have, length)
                    _write(handle, piece)
                    if self._clock() - told >= _SAY_EVERY_S:
                        told = self._clock()
                        say(f"{name}: {have / 1e6:.1f} of {length / 1e6:.1f} MB")
        if have < length:
            raise MirrorError("unreachable", f"{self.address} stopped after {have} of the {length} bytes of {name}")

    def _paced(self, source: Source, name: str, pace: Pace) -> Iterator[bytes]:
        while piece := source.read(pace.piece_bytes):
            self._count(pace, len(piece), name)
            yield piece
            pace.ask()

    def _count(self, pace: Pace, count: int, name: str) -> None:
        try:
            pace.got(count)
        except TooSlow as error:
            raise self._too_slow(name, str(error)) from error

    def _too_slow(self, name: str, found: str) -> MirrorError:
        return MirrorError(
            "too_slow",
            f"{self.address} gives {name} too slowly: {found}; check the line or the stick, and try another mirror",
        )

    def _wrong_length(self, name: str, found: int, length: int) -> MirrorError:
        if found > length:
            text = f"{name} on {self.address} is longer than the {length} bytes that were signed"
            return MirrorError("too_large", f"{text}; it is not the file that was published: copy the repository again")
        text = f"{name} on {self.address} has {found} bytes, and {length} were signed"
        return MirrorError("tampered", f"{text}: it was cut short; copy the repository again")


class FolderMirror(Mirror):
    """A repository in a folder: a stick, or a share of the plant."""

    @contextmanager
    def _open(self, name: str, start: int) -> Iterator[Source]:
        handle = self._open_plain(name)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise self._not_plain(name, found.st_mode)
            os.lseek(handle, start, os.SEEK_SET)
            yield Source(start, found.st_size, lambda most: self._read(handle, name, most))
        finally:
            os.close(handle)

    def _open_plain(self, name: str) -> int:
        """A handle of the file; none of the steps below the mirror's folder may be a link."""
        *folders, last = name.split("/")
        folder = -1
        try:
            folder = os.open(self.address, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            for step in folders:
                _require_plain_name(step)
                inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
            _require_plain_name(last)
            # Not blocking: the open of a pipe without a writer would wait for one.
            return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            raise self._cannot_open(name, error) from error
        finally:
            if folder >= 0:
                os.close(folder)

    def _cannot_open(self, name: str, error: OSError) -> DownloadError:
        path = Path(self.address, name)
        if error.errno == errno.ENOENT:
            if not Path(self.address).is_dir():
                text = f"there is no folder {self.address}; is the stick in, and mounted?"
                return MirrorError("unreachable", text)
            return DownloadHTTPError(f"{path} is missing", 404)
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            if not Path(self.address).is_dir():
                return MirrorError("no_repository", f"{self.address} is not a folder, and so no bundle repository")
            return self._not_plain(name, stat.S_IFLNK)
        if error.errno == errno.ENXIO:
            return self._not_plain(name, stat.S_IFSOCK)
        return self._unreadable(path, error)

    def _not_plain(self, name: str, mode: int) -> MirrorError:
        kind = next((kind for test, kind in _KINDS if test(mode)), "something else")
        return MirrorError(
            "unreadable",
            f"{name} on {self.address} is {kind} or lies behind one, and a repository has plain files only; "
            "copy it again with its files themselves",
        )

    def _read(self, handle: int, name: str, most: int) -> bytes:
        try:
            return os.read(handle, most)
        except OSError as error:
            raise self._unreadable(Path(self.address, name), error) from error

    def _unreadable(self, path: Path, error: OSError) -> MirrorError:
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "give the daemon's user the right to read it"
        else:
            remedy = "copy the repository again, or take another stick"
        return MirrorError("unreadable", f"{path} cannot be read: {error.strerror or error}; {remedy}")


def mirror(address: str, *, kb_s: float = 0.0, ca_file: str | None = None, limits: Limits | None = None) -> Mirror:
    """The mirror at an address.

    Args:
        address: `https://...`, `http://...`, a folder, or `file:` and a folder.
        kb_s: kilobytes a second that a download may take of the network at most; 0: no limit. A folder is none.
        ca_file: certificate authorities in PEM that an https server must be vouched by; None: the system's.

    Raises:
        TrustError: the address is of another kind, or the file of authorities cannot be used.
    """
    scheme = address.partition(":")[0].lower() if "://" in address else ""
    if scheme in ("http", "https"):
        from edge.bundle.web_mirror import WebMirror

        return WebMirror(address, ca_file=ca_file, kb_s=kb_s, limits=limits)
    if scheme not in ("", "file"):
        raise TrustError("unreachable", f"{address}: a repository is a folder, or at an http:// or https:// address")
    folder = address.removeprefix("file://").removeprefix("file:")
    return FolderMirror(folder, limits=limits)


def _require_plain_name(step: str) -> None:
    if step in ("", ".", "..") or "\0" in step:
        raise OSError(errno.ELOOP, "not a plain name")


def _held(part: Path, length: int) -> int:
    """Bytes of `part` that can be gone on from; what cannot is removed."""
    try:
        found = part.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISREG(found.st_mode) and found.st_size <= length:
        return found.st_size
    part.unlink()
    return 0


@contextmanager
def _part(path: Path, start: int) -> Iterator[int]:
    """The unfinished file, open for writing at `start`; on the disk when the block ends well."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        os.ftruncate(handle, start)
        os.lseek(handle, start, os.SEEK_SET)
        yield handle
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
