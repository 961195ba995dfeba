"""Key files of a publisher: one Ed25519 key a file, its public half beside it.

root-1/root-1.key    the secret half, PEM (PKCS#8), encrypted unless told otherwise, readable by its owner only
root-1/root-1.pub    the public half, JSON as TUF has it; this one may go anywhere
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from tools.errors import ToolError

SECRET, PUBLIC = ".key", ".pub"
VARIABLE = "EDGE_PUBLISH_PASSPHRASE"
LARGEST_BYTES = 1 << 16

Ask = Callable[[str], bytes]


def asker(file: Path | None) -> Ask:
    """Where passphrases come from: a file, else the environment, else whoever sits at the terminal.

    Raises:
        ToolError: the file cannot be read or holds nothing.
    """
    if file is not None:
        try:
            text = file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ToolError(f"--passphrase-file {file}: cannot be read: {error.strerror}") from error
        if not text:
            raise ToolError(f"--passphrase-file {file}: is empty")
        return lambda _: text
    if VARIABLE in os.environ:
        return lambda _: os.environ[VARIABLE].encode()
    return _prompt


def _prompt(what: str) -> bytes:
    if not sys.stdin.isatty():
        raise ToolError(f"{what} needs a passphrase: give --passphrase-file, or set {VARIABLE}")
    return getpass.getpass(f"passphrase of {what}: ").encode()


def make_key(path: Path, passphrase: bytes | None) -> SSlibKey:
    """Make a key: `path` with `.key` and `.pub`; returns the public half.

    Args:
        passphrase: encrypts the secret half; None: it is not encrypted.

    Raises:
        ToolError: there is such a key already, the place is in a repository, or it cannot be written.
    """
    secret, public = path.with_name(path.name + SECRET), path.with_name(path.name + PUBLIC)
    outside_repositories(secret)
    if secret.exists() or public.exists():
        raise ToolError(f"{secret}: there is a key already; move it away, a key is never written over")
    private = Ed25519PrivateKey.generate()
    guard: KeySerializationEncryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, guard)
    key = SSlibKey.from_crypto(private.public_key())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(secret, data, 0o600)
        _write_new(public, json.dumps({"keyid": key.keyid, **key.to_dict()}, indent=1).encode() + b"\n", 0o644)
    except OSError as error:
        raise ToolError(f"{error.filename}: the key cannot be written: {error.strerror}") from error
    return key


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that was not there, and have the disk hold it before it is relied on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_public(path: Path) -> Key:
    """The public half of a key, by its `.pub` file, or by its `.key` file with the other one beside it.

    Raises:
        ToolError: it cannot be read or is no key.
    """
    path = path.with_suffix(PUBLIC) if path.suffix == SECRET else path
    data = _read(path)
    try:
        found: Mapping[str, Any] = json.loads(data)
        fields = {name: value for name, value in found.items() if name != "keyid"}
        key = Key.from_dict(str(found["keyid"]), fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToolError(f"{path}: is no public key as `publish keys` writes it: {error}") from error
    if not isinstance(key, SSlibKey) or key.keytype != "ed25519":
        raise ToolError(f"{path}: is a key of kind {key.keytype}, expected ed25519")
    return key


def read_signer(path: Path, ask: Ask) -> CryptoSigner:
    """A key that can sign.

    Raises:
        ToolError: it cannot be read, is no key, lies in a repository, or the passphrase is wrong.
    """
    if path.suffix == PUBLIC:
        raise ToolError(f"{path}: is the public half of a key; to sign, its {SECRET} file is needed")
    outside_repositories(path)
    data = _read(path)
    _close_to_others(path)
    passphrase = ask(path.name) if b"ENCRYPTED" in data else None
    try:
        private = load_pem_private_key(data, passphrase)
    except (ValueError, TypeError) as error:
        wrong = "its passphrase is another one, or it is damaged" if passphrase else "it is no key in PEM"
        raise ToolError(f"{path}: the key cannot be opened: {wrong}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ToolError(f"{path}: is another kind of key, expected Ed25519 as `publish keys` makes it")
    return CryptoSigner(private)


def _close_to_others(path: Path) -> None:
    """Take from others the right to read a secret key; a FAT stick has no rights to take."""
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    if path.stat().st_mode & 0o077:
        print(f"{path}: whoever has this medium can read the key; is it encrypted, and locked away?", file=sys.stderr)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_BYTES)
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}") from error


def outside_repositories(path: Path) -> None:
    """A secret key in a folder that is given to the world would be given away.

    Raises:
        ToolError: it lies, or would lie, in a repository.
    """
    for folder in path.resolve().parents:
        if (folder / "metadata" / "timestamp.json").exists() or (folder / "metadata" / "1.root.json").exists():
            raise ToolError(
                f"{path}: lies in the repository {folder}, which is for everybody to read: put it elsewhere"
            )
