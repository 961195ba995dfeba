"""What is being tried: one small file says which bundle is coming or on trial, and what became of the last one.

    <state>/bundles/trial.json      the mark: the one durable word on what is meant to be active; links follow it
    <state>/bundles/origins.json    who brought each slot
    <state>/bundles/floor.json      the highest version that was ever trusted to stay, by product

`edge.bundle.slots` is the only writer. Each file is replaced as a whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edge.errors import BundleError
from edge.files import write_whole

TRIAL: Final = "trial.json"
ORIGINS: Final = "origins.json"
FLOOR: Final = "floor.json"
LARGEST_BYTES: Final = 1 << 20
WAIT_S: Final = 10.0  # what another process does under the lock takes milliseconds

_SLOT: Final = r"[A-Za-z0-9_-]+-\d{1,10}-[0-9a-f]{8}(\.\d+)?"
SlotName = Annotated[str, Meta(pattern=rf"^{_SLOT}\Z")]
Stage = Literal["shadow", "trial", "committed", "returned", "refused", "rolled_back"]
UNDER_WAY: Final = ("shadow", "trial")
GIVEN_UP: Final = ("returned", "refused", "rolled_back")


class Trial(msgspec.Struct, kw_only=True, frozen=True):
    """The mark.

    Attributes:
        slot: name of the slot that is tried; of the one that was left when it was returned, refused or rolled back.
        before: name of the slot that was active before it, and is again when it does not stay; None: there was none.
        held: what `previous` pointed at before; what it points at again after a return.
        stage: shadow: beside the active one. trial: in charge, and may be returned. committed: it stays. returned: by
            itself, after a trial. refused: it never was in charge. rolled_back: by a person.
        signed: a repository that this device trusts vouches for it. origin: usb, network or local.
        transaction: of the request that brought it, "" without.
        began: when this stage began, seconds since 1970 UTC.
        starts: of the daemon while the slot was on trial.
        code, text: why it was given up, in one word for machines and in a sentence for people.
    """

    slot: SlotName
    before: SlotName | None = None
    held: SlotName | None = None
    stage: Stage
    signed: bool = False
    origin: str = "local"
    transaction: str = ""
    began: float = 0.0
    starts: int = 0
    code: str = ""
    text: str = ""


class Told(msgspec.Struct, kw_only=True, frozen=True):
    """Who brought a slot; what is not known is not vouched for."""

    signed: bool = False
    origin: str = "local"
    at: float = 0.0  # seconds since 1970 UTC


def is_slot(name: str) -> bool:
    """Whether a file of this name is a slot."""
    return re.fullmatch(_SLOT, name) is not None


def version_of(slot: str) -> tuple[str, int]:
    """Product and version of a slot, by its name."""
    product, version, _ = slot.rsplit("-", 2)
    return product, int(version)


def read(bundles: Path) -> Trial | None:
    """The mark; None where there is none, or none that can be understood."""
    try:
        return msgspec.json.decode(_read(bundles / TRIAL), type=Trial)
    except (OSError, msgspec.DecodeError, ValueError):
        return None


def stamp(bundles: Path) -> tuple[int, int] | None:
    """Changes with every new mark: for whoever looks again and again."""
    try:
        found = (bundles / TRIAL).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def origins(bundles: Path) -> dict[str, Told]:
    """Who brought each slot, by its name."""
    try:
        return msgspec.json.decode(_read(bundles / ORIGINS), type=dict[str, Told])
    except (OSError, msgspec.DecodeError, ValueError):
        return {}


def floors(bundles: Path) -> dict[str, int]:
    """The highest version that was committed, by product.

    Raises:
        BundleError: the file is damaged; nothing can be said of what is too old.
    """
    path = bundles / FLOOR
    try:
        return msgspec.json.decode(_read(path), type=dict[str, int])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise BundleError(
            f"{path} cannot be read, so no bundle can be told from one that is too old: remove it to accept any version"
        ) from error


def write(bundles: Path, name: str, value: Trial | Mapping[str, Any]) -> None:
    """Replace one of the files, durably. Under the lock only.

    Raises:
        OSError: the old content stands.
    """
    path = bundles / name
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    adopt(path, bundles.parent)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST_BYTES)


@contextmanager
def lock(folder: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Hold the right to change what lies in the folder; a process that dies gives it up.

    The folder itself is locked: a lock file that root has made could be closed to the daemon's user.

    Raises:
        BundleError: another process held it all the time.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        take(handle, wait_s, f"another process is changing {folder}: wait until it is done")
        yield
    finally:
        os.close(handle)


def take(handle: int, wait_s: float, otherwise: str) -> None:
    """Lock an open file or folder.

    Raises:
        BundleError: with that text, when somebody else has it for longer than `wait_s` seconds.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise BundleError(otherwise) from error
            time.sleep(0.02)
        else:
            return


def adopt(path: Path, like: Path) -> None:
    """Give what root has made to the owner of `like`, so that the daemon can manage it."""
    if os.geteuid() == 0:
        owner = like.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
