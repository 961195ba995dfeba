"""The bundle repository on a stick, copied to a private place before anything looks into it.

Only plain files below plain folders are copied, a handle at a time: a link on the stick could lead anywhere on this
box. How much and how long is limited. Whether what came is to be believed is for `edge.bundle.trust` to say.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge.errors import TrustError

PLACES: Final = ("", "edge-bundles")  # where on a stick a repository may be
METADATA: Final = "metadata"
TARGETS: Final = "targets"
CHUNK: Final = 1 << 20
COPY_AGAIN: Final = "copy the repository to it again, or take another stick"


@dataclass(frozen=True)
class Limits:
    """What no repository exceeds that fits a device."""

    files: int = 4000
    metadata_bytes: int = 64 << 20
    bundle_bytes: int = 4 << 30
    seconds: float = 900.0
    spare_bytes: int = 64 << 20  # that stay free on the disk


def find(mount: Path) -> Path:
    """The folder of the repository on a stick.

    Raises:
        TrustError: there is none.
    """
    for place in PLACES:
        folder = mount / place if place else mount
        if (folder / METADATA).is_dir() and not folder.is_symlink():
            return folder
    text = f"there is no bundle repository on {mount}: neither {METADATA}/ nor edge-bundles/{METADATA}/"
    raise TrustError("no_repository", f"{text}; copy what `tools publish` made to it")


class Spool:
    """A private folder that takes a copy of a repository.

    Args:
        repository: the folder on the stick. into: the private folder; what was in it goes.
    """

    def __init__(
        self,
        repository: Path,
        into: Path,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository, self._into = repository, into
        self._limits, self._clock = limits or Limits(), clock
        self._until = clock() + self._limits.seconds
        self._files = 0

    def copy_metadata(self) -> None:
        """Copy what says which bundles there are; the rest can then be asked for by name.

        Raises:
            TrustError: the stick cannot be read, or holds more than a repository has.
        """
        with self._told():
            shutil.rmtree(self._into, ignore_errors=True)
            (self._into / METADATA).mkdir(parents=True, mode=0o700)
            (self._into / TARGETS).mkdir(mode=0o700)
            self._copy_folder((METADATA,), self._limits.metadata_bytes)

    def copy_bundles(self, product: str) -> None:
        """Copy the archives of one product.

        Raises:
            TrustError: as `copy_metadata`.
        """
        with self._told():
            (self._into / TARGETS / product).mkdir(mode=0o700, exist_ok=True)
            self._copy_folder((TARGETS, product), self._limits.bundle_bytes)

    def _copy_folder(self, steps: tuple[str, ...], most_bytes: int) -> None:
        folder = self._open(steps)
        if folder is None:
            return
        try:
            for name in sorted(os.listdir(folder)):
                most_bytes -= self._copy_file(folder, name, self._into.joinpath(*steps, name), most_bytes)
        finally:
            os.close(folder)

    def _open(self, steps: tuple[str, ...]) -> int | None:
        """A handle of a folder below the repository, without following a link; None: it is not there."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self._repository, flags)
        for step in steps:
            try:
                inner = os.open(step, flags, dir_fd=folder)
            except FileNotFoundError:
                return None
            finally:
                os.close(folder)
            folder = inner
        return folder

    def _copy_file(self, folder: int, name: str, target: Path, most_bytes: int) -> int:
        """Copy one plain file; what is none is passed over: the client will miss it, if it is wanted. Its bytes."""
        self._files += 1
        if self._files > self._limits.files:
            raise self._too_large(f"more than {self._limits.files} files")
        try:
            # Not blocking: the open of a pipe without a writer would wait for one.
            source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO):  # a link, a socket
                return 0
            raise
        try:
            if not stat.S_ISREG(os.fstat(source).st_mode):
                return 0
            return self._pour(source, target, most_bytes)
        finally:
            os.close(source)

    def _pour(self, source: int, target: Path, most_bytes: int) -> int:
        copied = 0
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            while piece := os.read(source, CHUNK):
                copied += len(piece)
                if copied > most_bytes:
                    raise self._too_large(f"more than a repository needs, at {target.name}")
                if self._clock() > self._until:
                    text = f"{self._repository} could not be copied within {self._limits.seconds:.0f} s"
                    raise TrustError("too_slow", f"{text}; the stick is slow or worn: take another one")
                if shutil.disk_usage(self._into).free < self._limits.spare_bytes + len(piece):
                    text = f"there is no room in {self._into} for what is on {self._repository}"
                    raise TrustError("storage", f"{text}; free some space and try again")
                file.write(piece)
        return copied

    def _too_large(self, what: str) -> TrustError:
        return TrustError("too_large", f"{self._repository} holds {what}; {COPY_AGAIN}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            text = f"{self._repository} cannot be copied: {error.strerror or error}{where}"
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                text = f"{self._repository} has a link or a file where a folder of a repository should be{where}"
            raise TrustError("unreadable", f"{text}; {COPY_AGAIN}") from error
