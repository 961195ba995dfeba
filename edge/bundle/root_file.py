"""The root of trust that a device is given: looked at before it is believed, and put where the config says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import Metadata, Root

from edge.bundle.refusal import parse
from edge.bundle.roles import DEVELOPMENT
from edge.errors import TrustError
from edge.files import write_whole

LARGEST_BYTES: Final = 1 << 17
MODE: Final = 0o644  # anybody may know whom this device believes


@dataclass(frozen=True)
class RootFile:
    """A root of trust, as it says of itself.

    Attributes:
        keys, threshold: how many keys it has for itself, and how many of them must sign the next one.
        expires: day until which it may be used, as text.
        development: it was made to try things, and is believed only where the config says so.
    """

    data: bytes
    version: int
    keys: int
    threshold: int
    expires: str
    development: bool

    def __str__(self) -> str:
        kind = ", made for development" if self.development else ""
        return f"root {self.version}, {self.threshold} of {self.keys} keys, until {self.expires}{kind}"


def read(path: Path) -> RootFile:
    """Read a root and check that it is signed by enough of its own keys.

    Raises:
        TrustError: it is no root of a bundle repository, or not signed as it says itself.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES)
    except OSError as error:
        raise TrustError("unreadable", f"{path} cannot be read: {error.strerror or error}") from error
    metadata = parse(data)
    if metadata is None or not isinstance(metadata.signed, Root):
        text = f"{path} is no root of trust: it is not the root metadata of a bundle repository"
        raise TrustError("malformed", f"{text}; take the root.json that the publisher keeps for devices")
    _require_own_signatures(path, metadata)
    root = metadata.signed
    own = root.roles[Root.type]
    return RootFile(
        data, root.version, len(own.keyids), own.threshold, f"{root.expires:%Y-%m-%d}",
        bool(root.unrecognized_fields.get(DEVELOPMENT)),
    )  # fmt: skip


def _require_own_signatures(path: Path, metadata: Metadata[Root]) -> None:
    result = metadata.signed.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures)
    if not result:
        text = f"{path} is signed by {len(result.signed)} of its own keys, and says that it wants {result.threshold}"
        raise TrustError("signature", f"{text}; it is not finished or was changed: get it from the publisher again")


def put(root: RootFile, at: Path, replace: bool) -> bool:
    """Put a root where the device looks for it; False: this very one is there already.

    Raises:
        TrustError: another one is there and `replace` is not set, or it cannot be written.
    """
    try:
        old = at.read_bytes() if at.exists() else None
        if old == root.data:
            return False
        if old is not None and not replace:
            text = f"this device believes another root already, {at}; whoever holds that one signs its bundles"
            raise TrustError("other_root", f"{text}: to change the publisher, give --replace")
        if not at.parent.is_dir():
            at.parent.mkdir(parents=True)
            at.parent.chmod(0o755)  # whatever the umask: the daemon reads it too
        write_whole(at, root.data)
        os.chmod(at, MODE)
    except OSError as error:
        text = f"the root of trust cannot be put at {at}: {error.strerror or error}"
        raise TrustError("storage", f"{text}; run it as root") from error
    return True
