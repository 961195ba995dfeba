"""Why something of a bundle repository is not believed: from the TUF library's exception to words for a technician.

The library says that a check failed. What it means for the person at the machine (a stick that was copied in part, a
key that was taken back, a repository of somebody else) takes a look at what came and at what is trusted here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    SlowRetrievalError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, Targets
from tuf.api.serialization import DeserializationError

from edge.bundle.mirror import MirrorError
from edge.bundle.roles import PRODUCT_ROLE, REVOKED
from edge.errors import TrustError

COPY_AGAIN: Final = "copy the whole repository again from its publisher"
DO_NOT_USE: Final = "do not use it, and ask its publisher"
_FILE: Final = re.compile(r"metadata/(?:(\d+)\.)?(.+)\.json")


@dataclass(frozen=True)
class Case:
    """What is known when a check has failed.

    Attributes:
        asked, got: the metadata file that was asked for last, and what came.
        folder: the client's metadata, as trusted so far.
        reference: the time that was judged by, and in words where it comes from.
        fetch: another metadata file of the mirror, by its name; None when it has none.
    """

    address: str
    asked: str
    got: bytes
    folder: Path
    reference: datetime
    reference_from: str
    fetch: Callable[[str], bytes | None]

    @property
    def role(self) -> str:
        """The role that was asked for."""
        found = _FILE.fullmatch(self.asked)
        return unquote(found[2]) if found else "metadata"

    @property
    def version(self) -> int | None:
        """The version that was asked for, where the file's name tells."""
        found = _FILE.fullmatch(self.asked)
        return int(found[1]) if found and found[1] else None

    @property
    def what(self) -> str:
        """The file, for people."""
        return f"{self.asked} on {self.address}"


def explain(error: Exception, case: Case) -> TrustError:
    """The refusal that the library's exception stands for."""
    if isinstance(error, MirrorError):
        return TrustError(error.code, str(error))
    if isinstance(error, DownloadError):
        return _download(error, case)
    if isinstance(error, ExpiredMetadataError):
        return _expired(error, case)
    if isinstance(error, UnsignedMetadataError):
        return _signature(case)
    if isinstance(error, LengthOrHashMismatchError):
        return _other_file(case)
    if isinstance(error, BadVersionNumberError):
        return _version(error, case)
    if isinstance(error, DeserializationError):
        return _malformed(case, "is no TUF metadata")
    return _rule(error, case)


def _download(error: DownloadError, case: Case) -> TrustError:
    if isinstance(error, SlowRetrievalError):
        return TrustError("too_slow", f"{case.what} comes too slowly; check the line, or try another mirror")
    if isinstance(error, DownloadLengthMismatchError):
        data = case.fetch(case.asked)  # no longer than any such file may be? Then it is another one
        if data is not None:
            return _other_file(replace(case, got=data))
        text = f"{case.what} does not end where it has to ({error}): this is no repository as published; {COPY_AGAIN}"
        return TrustError("too_large", text)
    if isinstance(error, DownloadHTTPError) and error.status_code == 404:
        if case.role == "timestamp":
            text = f"there is no bundle repository at {case.address}: metadata/timestamp.json is missing"
            return TrustError("no_repository", f"{text}; check the address, or the folder on the stick")
        return TrustError("not_found", f"{case.what} is missing: the copy is not complete; {COPY_AGAIN}")
    return TrustError("unreachable", f"{case.what} cannot be read: {error}; check network and address")


def _expired(error: Exception, case: Case) -> TrustError:
    role = next((role for role in ("root", "timestamp", "snapshot", case.role) if role in str(error)), case.role)
    signed = _signed_of(role, case)
    when = f" on {signed.expires:%Y-%m-%d %H:%M} UTC" if signed else ""
    now = f"{case.reference:%Y-%m-%d %H:%M} UTC by {case.reference_from}"
    remedy = (
        "get a newer copy of the repository" if role in ("timestamp", "snapshot") else "its publisher must renew it"
    )
    text = f"the {role} of the repository {case.address} expired{when}, and it is {now}"
    return TrustError("expired", f"{text}: it may hide newer bundles; {remedy}, or set the clock if that date is wrong")


def _signed_of(role: str, case: Case) -> Any:
    data = case.got if role == case.role else _read(case.folder / f"{role}.json")
    metadata = parse(data)
    return metadata.signed if metadata else None


def _version(error: Exception, case: Case) -> TrustError:
    got = parse(case.got)
    found = got.signed.version if got else 0
    if case.version is not None and found != case.version and case.role != "root":
        return _mixed(case, f"version {case.version} was asked for, and it holds version {found}")
    before = parse(_read(case.folder / f"{case.role}.json"))
    known = before.signed.version if before else 0
    if case.role == "root":
        detail = f"in the place of version {case.version} it holds version {found}"
    elif found < known:
        detail = f"its version is {found}, and {known} was accepted before"
    else:
        detail = f"it names older files than were accepted before ({error})"
    return rolled_back(case.what, detail)


def rolled_back(what: str, detail: str) -> TrustError:
    """Something older than what this device knows already."""
    remedy = "get a newer copy; if this is the newest, its publisher must publish once more"
    return TrustError("rolled_back", f"{what} is older than what this device has accepted: {detail}; {remedy}")


def _mixed(case: Case, detail: str) -> TrustError:
    text = f"{case.what} does not belong to the other files there: {detail}; {COPY_AGAIN}"
    return TrustError("mixed", text)


def _malformed(case: Case, detail: str) -> TrustError:
    begins = case.got[:40].decode("ascii", "replace").strip()
    page = "; the network shows a page of its own, log in there or ask its administrator" if "<" in begins else ""
    return TrustError("malformed", f"{case.what} {detail}, it begins with {begins!r}{page or '; ' + COPY_AGAIN}")


def _rule(error: Exception, case: Case) -> TrustError:
    got = parse(case.got)
    if got is None:
        return _malformed(case, "cannot be used")
    kind = "targets" if case.role.startswith(PRODUCT_ROLE) else case.role
    if got.signed.type != kind:
        return _mixed(case, f"{case.role} was asked for, and it holds a {got.signed.type}")
    if isinstance(got.signed, Snapshot):
        return rolled_back(case.what, f"it leaves out what was accepted before ({error})")
    return _mixed(case, str(error))


def _other_file(case: Case) -> TrustError:
    """Not the file whose hash was signed elsewhere: altered, or one of another time."""
    got, result = parse(case.got), _verification(case)
    if got is not None and result is not None and result.verified:
        asked = f"version {case.version}" if case.version is not None else "another version"
        return _mixed(case, f"{asked} was signed for with another hash, and it holds version {got.signed.version}")
    return _signature(case) if got is not None else _tampered(case)


def _tampered(case: Case) -> TrustError:
    text = f"{case.what} was altered after it was signed: the signature does not fit its content"
    return TrustError("tampered", f"{text}; {COPY_AGAIN}, and if it comes altered again, tell its publisher")


def _verification(case: Case) -> Any:
    """Who of those that may sign the file has; None when it cannot be told."""
    got, delegator = parse(case.got), _delegator(case)
    if got is None or delegator is None:
        return None
    try:
        return delegator.get_verification_result(case.role, got.signed_bytes, got.signatures)
    except ValueError:
        return None


def _delegator(case: Case) -> Root | Targets | None:
    name = "targets" if case.role.startswith(PRODUCT_ROLE) else "root"
    metadata = parse(_read(case.folder / f"{name}.json"))
    signed = metadata.signed if metadata else None
    return signed if isinstance(signed, Root | Targets) else None


def _signature(case: Case) -> TrustError:
    """Too few of those who may sign have signed; who has?"""
    got, result = parse(case.got), _verification(case)
    if got is None or result is None:
        return _malformed(case, "cannot be used")
    for key, note in _former_keys(case):
        if _signed_by(key, got):
            text = f"{case.what} is signed with the key {key.keyid[:8]}, which was taken back{note}"
            return TrustError("revoked_key", f"{text}: whoever holds it is not believed any more; {DO_NOT_USE}")
    for product, key in _other_products(case):
        if _signed_by(key, got):
            text = f"{case.what} is signed with the key of the product {product}"
            return TrustError("wrong_product", f"{text}, which may not speak for this one; {DO_NOT_USE}")
    if result.signed:
        return _too_few(case, len(result.signed), result.threshold)
    if any(keyid in got.signatures for keyid in result.unsigned):
        return _tampered(case)
    foreign = _foreign_root(case)
    if foreign is not None:
        return TrustError("wrong_root", foreign)
    if isinstance(got.signed, Root) and result.verified:
        return TrustError("signature", f"{case.what} is not signed by enough of its own new keys; {DO_NOT_USE}")
    who = ", ".join(keyid[:8] for keyid in got.signatures) or "nobody"
    text = f"{case.what} is signed by nobody that this device believes (but by {who})"
    return TrustError("signature", f"{text}; {DO_NOT_USE}")


def _too_few(case: Case, count: int, threshold: int) -> TrustError:
    if count >= threshold:
        return TrustError("signature", f"{case.what} is not signed by enough of its own new keys; {DO_NOT_USE}")
    text = f"{case.what} is signed by {count} of the {threshold} keys that are needed"
    return TrustError("signature", f"{text}: one alone is not believed; {DO_NOT_USE}")


def _foreign_root(case: Case) -> str | None:
    """Whether the repository comes from another root of trust."""
    for path in sorted((case.folder / "root_history").glob("*.root.json")):
        ours, theirs = parse(_read(path)), parse(case.fetch(f"metadata/{path.name}"))
        if ours is None or theirs is None or not isinstance(theirs.signed, Root):
            continue
        if theirs.signed_bytes != ours.signed_bytes:
            made, trusted = _keys(theirs.signed), _keys(ours.signed)
            return (
                f"the repository {case.address} was made with other root keys ({made}) than this device trusts "
                f"({trusted}) as its root {ours.signed.version}; take a repository of your publisher, or, if you do "
                "trust this one, give the device its root with `edge bundle trust ROOT.json`"
            )
    return None


def _keys(root: Root) -> str:
    return ", ".join(sorted(keyid[:8] for keyid in root.roles[Root.type].keyids))


def _former_keys(case: Case) -> Iterator[tuple[Key, str]]:
    """Keys that once might sign for the role and may not any more, with what is told of it."""
    delegator = _delegator(case)
    if delegator is None:
        return
    now = set(delegator.get_delegated_role(case.role).keyids)
    for record in revoked(delegator):
        if record.get("role") == case.role and record.get("keyid") not in now:
            try:
                key = Key.from_dict(str(record["keyid"]), dict(record["key"]))
            except (KeyError, TypeError, ValueError):
                continue
            yield key, f" on {record.get('on', '?')} ({record.get('reason') or 'no reason given'})"
    for path in sorted((case.folder / "root_history").glob("*.root.json")):
        metadata = parse(_read(path))
        if metadata and isinstance(metadata.signed, Root) and case.role in metadata.signed.roles:
            root = metadata.signed
            yield from ((root.keys[k], "") for k in root.roles[case.role].keyids if k not in now and k in root.keys)


def revoked(signed: Root | Targets) -> list[Mapping[str, Any]]:
    """What a root or targets role tells of the keys that it has taken back."""
    found = signed.unrecognized_fields.get(REVOKED)
    return [record for record in found if isinstance(record, Mapping)] if isinstance(found, list) else []


def _other_products(case: Case) -> Iterator[tuple[str, Key]]:
    delegator = _delegator(case)
    if not isinstance(delegator, Targets) or delegator.delegations is None or not delegator.delegations.roles:
        return
    own = set(delegator.get_delegated_role(case.role).keyids)
    for name, role in delegator.delegations.roles.items():
        for keyid in role.keyids:
            if keyid not in own and keyid in delegator.delegations.keys:
                yield name.removeprefix(PRODUCT_ROLE), delegator.delegations.keys[keyid]


def _signed_by(key: Key, metadata: Metadata[Any]) -> bool:
    signature = metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def parse(data: bytes | None) -> Metadata[Any] | None:
    """Metadata of whatever role; None where it is none. Its signatures are not looked at."""
    if not data:
        return None
    try:
        return Metadata[Any].from_bytes(data)
    except (RepositoryError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
