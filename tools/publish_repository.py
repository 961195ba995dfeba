"""A bundle repository on the publisher's side: static files that any web server or stick can carry.

    metadata/N.root.json ...        TUF metadata, consistent snapshots: no file is ever changed but timestamp.json
    targets/pcb/<sha256>.pcb-4.tar.gz

Everything new is on the disk before `timestamp.json` names it, so whoever reads meanwhile, or a command that is killed,
finds the repository before or after.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from edge.bundle import archive
from edge.bundle import manifest as manifests
from edge.bundle.roles import DEVELOPMENT, PRODUCT_ROLE, REVOKED, SIGNED_AT
from tools.errors import ToolError

TOP = ("root", "targets", "snapshot", "timestamp")
# Days that a signature is good for. The online ones are what a stick in a drawer lives on.
DAYS = {"root": 730, "targets": 365, "product": 365, "snapshot": 90, "timestamp": 90}
CLOCK_TOLERANCE_S = 300.0
Signers = Mapping[str, Sequence[CryptoSigner]]
_VERSIONED = re.compile(r"(\d+)\.(.+)\.json")


@dataclass
class Repository:
    """What a repository says now. Change `signed`, then `publish` the roles that were changed.

    Attributes:
        signed: the newest of each role.
        now: the time that new signatures bear, seconds since 1970.
    """

    folder: Path
    signed: dict[str, Any] = field(default_factory=dict)
    now: float = field(default_factory=time.time)

    @property
    def root(self) -> Root:
        found = self.signed["root"]
        assert isinstance(found, Root)
        return found

    @property
    def targets(self) -> Targets:
        found = self.signed["targets"]
        assert isinstance(found, Targets)
        return found

    @property
    def products(self) -> list[str]:
        """Products that have a role."""
        roles = self.targets.delegations.roles if self.targets.delegations else None
        return sorted(name.removeprefix(PRODUCT_ROLE) for name in roles or ())

    def role(self, name: str) -> Any:
        """Who may sign a role, and how many are needed.

        Raises:
            ToolError: there is no such role.
        """
        if name in TOP:
            return self.root.roles[name]
        try:
            return self.targets.get_delegated_role(name)
        except ValueError as error:
            known = ", ".join(self.products) or "none"
            product = name.removeprefix(PRODUCT_ROLE)
            text = f"{self.folder}: has no product {product}; it has {known}: add it with `publish product`"
            raise ToolError(text) from error

    def path(self, role: str, version: int) -> Path:
        name = "timestamp.json" if role == "timestamp" else f"{version}.{role}.json"
        return self.folder / "metadata" / name

    def publish(
        self, roles: Sequence[str], signers: Signers, days: Mapping[str, int] | None = None, root: bytes | None = None
    ) -> None:
        """Sign new versions of these roles, and of snapshot and timestamp, and put them in place.

        Args:
            signers: keys by role; `online` for snapshot and timestamp.
            days: for how long they are good, by role; as in `DAYS` where nothing is said.
            root: a new root, signed, that comes with them.

        Raises:
            ToolError: a key is not one of its role's, there are too few, or the disk cannot be written.
        """
        ready: list[tuple[Path, bytes]] = []
        for role in (*roles, "snapshot", "timestamp"):
            signed = self.signed[role]
            signed.version = self._next_version(role, signed.version)
            signed.expires = self._expiry(role, days or {})
            if role == "snapshot":
                signed.meta = self._meta(ready)
            if role == "timestamp":
                data = ready[-1][1]
                signed.snapshot_meta = MetaFile.from_data(self.signed["snapshot"].version, data, ["sha256"])
                signed.unrecognized_fields[SIGNED_AT] = int(self.now)
            keys = signers["online" if role in ("snapshot", "timestamp") else role]
            ready.append((self.path(role, signed.version), self.sign(role, signed, keys)))
        if root is not None:
            ready.insert(len(ready) - 1, (self.path("root", self.root.version), root))
        for path, data in ready:
            write_whole(path, data)

    def _next_version(self, role: str, version: int) -> int:
        """One that no file has: what a killed command left is not referred to, and never written over."""
        files = [int(found[1]) for found in self._versioned() if found[2] == role]
        return max([version, *files]) + 1

    def _versioned(self) -> Iterator[re.Match[str]]:
        folder = self.folder / "metadata"
        for path in folder.iterdir() if folder.is_dir() else ():
            if found := _VERSIONED.fullmatch(path.name):
                yield found

    def _expiry(self, role: str, days: Mapping[str, int]) -> datetime:
        kind = "product" if role.startswith(PRODUCT_ROLE) else role
        when = datetime.fromtimestamp(self.now, timezone.utc).replace(microsecond=0)
        return when + timedelta(days=days.get(kind, DAYS[kind]))

    def _meta(self, ready: Sequence[tuple[Path, bytes]]) -> dict[str, MetaFile]:
        fresh = {path: data for path, data in ready}
        found = {}
        for role in ("targets", *(f"{PRODUCT_ROLE}{product}" for product in self.products)):
            version = self.signed[role].version
            path = self.path(role, version)
            data = fresh[path] if path in fresh else path.read_bytes()
            found[f"{role}.json"] = MetaFile.from_data(version, data, ["sha256"])
        return found

    def sign(self, role: str, signed: Any, keys: Sequence[CryptoSigner]) -> bytes:
        """Signed metadata, checked as a device does.

        Raises:
            ToolError: a key is not one of the role's, or there are too few.
        """
        may = self.role(role)
        metadata: Metadata[Any] = Metadata(copy.deepcopy(signed))
        for key in keys:
            if key.public_key.keyid not in may.keyids:
                has = ", ".join(short(keyid) for keyid in may.keyids)
                raise ToolError(f"the key {short(key.public_key.keyid)} may not sign {role}; that may {has}")
            metadata.sign(key, append=True)
        if len(metadata.signatures) < may.threshold:
            raise ToolError(f"{role} needs {may.threshold} keys to sign it, and {len(metadata.signatures)} were given")
        return metadata.to_bytes()

    def add(self, bundle: Path, keep: int = 0) -> TargetFile:
        """Pack a bundle and list it in its product's role, not published yet.

        Args:
            keep: leave only so many versions in the role; 0: all.

        Raises:
            ToolError: its version is not above all others of its product.
            BundleError: it is no whole bundle.
        """
        manifest = manifests.read(bundle)
        product = manifest.product
        self.role(f"{PRODUCT_ROLE}{product}")
        listed = self.signed[f"{PRODUCT_ROLE}{product}"].targets
        highest = max((int(t.custom["version"]) for t in listed.values()), default=0)
        if manifest.version <= highest:
            text = f"{bundle}: is {product} {manifest.version}, and {product} {highest} is published already"
            raise ToolError(f"{text}; build it with a version above that, devices never go back")
        path = f"{product}/{product}-{manifest.version}.tar.gz"
        target = self._pack(bundle, path)
        target.unrecognized_fields["custom"] = {
            "product": product,
            "version": manifest.version,
            "digest": manifests.digest(manifest),
            "min_edge": manifest.min_edge,
            "hardware": list(manifest.hardware),
        }
        listed[path] = target
        for old in sorted(listed, key=lambda path: -int(listed[path].custom["version"]))[keep or len(listed) :]:
            del listed[old]
        return target

    def _pack(self, bundle: Path, path: str) -> TargetFile:
        folder, _, name = path.rpartition("/")
        place = self.folder / "targets" / folder
        place.mkdir(parents=True, exist_ok=True)
        packed = archive.pack(bundle, place / f"{name}.packed")
        target = TargetFile.from_file(path, str(packed), ["sha256"])
        final = place / f"{target.hashes['sha256']}.{name}"
        packed.replace(final)
        sync(final)
        sync(place)
        return target

    def unused(self) -> list[Path]:
        """Files that nobody needs who reads the repository from now on; roots stay, devices walk along them."""
        named = {self.path(role, self.signed[role].version) for role in self.signed}
        for role in (f"{PRODUCT_ROLE}{product}" for product in self.products):
            for path, target in self.signed[role].targets.items():
                folder, _, name = path.rpartition("/")
                named.add(self.folder / "targets" / folder / f"{target.hashes['sha256']}.{name}")
        files = [path for part in ("metadata", "targets") for path in (self.folder / part).rglob("*") if path.is_file()]
        return sorted(path for path in files if path not in named and not path.name.endswith(".root.json"))


def open_repository(folder: Path, now: float | None = None) -> Repository:
    """Read a repository and check its signatures, so that nothing is built on what was altered.

    Raises:
        ToolError: there is none, a file is missing, or was altered.
    """
    repository = Repository(folder, now=time.time() if now is None else now)
    if not (folder / "metadata" / "1.root.json").is_file():
        raise ToolError(
            f"{folder}: is no bundle repository (metadata/1.root.json is missing): make one, `publish init`"
        )
    roots = _roots(repository)
    repository.signed["root"] = roots[0]
    timestamp = _load(repository, "timestamp", 0, Timestamp, roots)
    _check_clock(repository, timestamp)
    snapshot = _load(repository, "snapshot", timestamp.snapshot_meta.version, Snapshot, roots)
    _load(repository, "targets", snapshot.meta["targets.json"].version, Targets, roots)
    for product in repository.products:
        role = f"{PRODUCT_ROLE}{product}"
        _load(repository, role, snapshot.meta[f"{role}.json"].version, Targets, [repository.targets])
    return repository


def _check_clock(repository: Repository, timestamp: Timestamp) -> None:
    """What is signed by a clock that is behind would have expired before its time."""
    last = float(timestamp.unrecognized_fields.get(SIGNED_AT, 0))
    if repository.now < last - CLOCK_TOLERANCE_S:
        here, there = (
            datetime.fromtimestamp(t, timezone.utc).strftime("%Y-%m-%d %H:%M") for t in (repository.now, last)
        )
        text = f"this machine's clock says {here} UTC, and the last signature in {repository.folder} is of {there} UTC"
        raise ToolError(
            f"{text}: set the clock; if that signature was made by a clock that was ahead, exchange the online "
            "key with `publish root --new-online`, which makes devices forget its date"
        )


def _roots(repository: Repository) -> list[Root]:
    """All roots, newest first."""
    roots: list[Root] = []
    while (path := repository.path("root", len(roots) + 1)).is_file():
        found = read_metadata(path, Root)
        for delegator in (found.signed, *roots[:1]):
            _verify(path, [delegator], "root", found)
        roots.insert(0, found.signed)
    return roots


def _load(repository: Repository, role: str, version: int, kind: type[Any], delegators: Sequence[Any]) -> Any:
    path = repository.path(role, version)
    metadata = read_metadata(path, kind)
    _verify(path, delegators, role, metadata)
    repository.signed[role] = metadata.signed
    return metadata.signed


def _verify(path: Path, delegators: Sequence[Any], role: str, metadata: Metadata[Any]) -> None:
    """By the newest delegator, or by one before it: a command that was killed may have put only the new root there."""
    for delegator in delegators:
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
            return
        except RepositoryError:
            continue
    raise ToolError(f"{path}: its signatures do not fit: it was altered; restore the repository")


def read_metadata(path: Path, kind: type[Any]) -> Metadata[Any]:
    """Metadata of one role, its signatures not looked at.

    Raises:
        ToolError: it cannot be read or is none.
    """
    try:
        metadata = Metadata[Any].from_bytes(path.read_bytes())
    except OSError as error:
        raise ToolError(f"{path}: cannot be read: {error.strerror}; restore the repository") from error
    except (RepositoryError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path}: is no TUF metadata: {error}; restore the repository") from error
    if not isinstance(metadata.signed, kind):
        raise ToolError(f"{path}: holds a {metadata.signed.type}, expected {kind.__name__.lower()}; restore it")
    return metadata


def new_repository(folder: Path, root: Root, products: Mapping[str, Key], now: float | None = None) -> Repository:
    """A repository that has nothing yet, not published.

    Args:
        products: the key of each product.

    Raises:
        ToolError: there is something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ToolError(f"{folder}: is not empty; a repository is begun in a folder of its own")
    repository = Repository(folder, now=time.time() if now is None else now)
    repository.signed["root"] = root
    repository.signed["targets"] = Targets(version=1, delegations=Delegations({}, {}))
    for product, key in products.items():
        add_product(repository, product, key)
    repository.signed["snapshot"], repository.signed["timestamp"] = Snapshot(version=1), Timestamp(version=1)
    for signed in repository.signed.values():
        signed.version = 0
    return repository


def new_root(roots: Sequence[Key], threshold: int, targets: Key, online: Key, development: bool) -> Root:
    """The first root of trust."""
    root = Root(version=1, consistent_snapshot=True)
    for role, keys in (("root", roots), ("targets", [targets]), ("snapshot", [online]), ("timestamp", [online])):
        for key in keys:
            root.add_key(key, role)
    root.roles["root"].threshold = threshold
    if development:
        root.unrecognized_fields[DEVELOPMENT] = True
    return root


def add_product(repository: Repository, product: str, key: Key) -> None:
    """Delegate `<product>/*` to a key, and nothing else."""
    name, targets = f"{PRODUCT_ROLE}{product}", repository.targets
    assert targets.delegations is not None and targets.delegations.roles is not None
    targets.delegations.roles[name] = DelegatedRole(name, [], 1, terminating=True, paths=[f"{product}/*"])
    targets.add_key(key, name)
    role = Targets(version=1)
    role.version = 0
    repository.signed[name] = role


def exchange(
    signed: Root | Targets, role: str, remove: Sequence[str], add: Sequence[Key], why: str, now: float
) -> None:
    """Take keys back from a role and give it others; devices are told which were taken back, and why.

    Raises:
        ToolError: a key that is to go is not one of the role's.
    """
    records = list(signed.unrecognized_fields.get(REVOKED, []))
    for keyid in remove:
        try:
            key = signed.get_key(keyid)
            signed.revoke_key(keyid, role)
        except ValueError as error:
            raise ToolError(f"{role}: {short(keyid)} is none of its keys") from error
        on = datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%d")
        records.append({"keyid": keyid, "role": role, "on": on, "reason": why, "key": key.to_dict()})
    for key in add:
        signed.add_key(key, role)
    if records:
        signed.unrecognized_fields[REVOKED] = records


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one command changes a repository at a time.

    Raises:
        ToolError: another one does.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ToolError(f"{folder}: another `publish` is at work there; wait until it is done") from error
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place, durably, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's names."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def short(keyid: str) -> str:
    """A key as people compare it."""
    return keyid[:8]
