"""Whom a device believes: the client of a bundle repository, which is a TUF repository (theupdateframework.io).

    <state>/trust/metadata/    what the TUF client accepted last; one for all mirrors, so that a stick which is older
                               than what the network gave is seen
    <state>/trust/floor.json   the record that nothing goes back behind (see `edge.bundle.trust_floor`)

The first root of trust comes from the device's own installation, never from a mirror. Each product has a role and a key
of its own, which may sign `<product>/*` and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta
from tuf.api.exceptions import DownloadError, LengthOrHashMismatchError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from edge.bundle import trust_floor
from edge.bundle.manifest import EdgeVersion, ProductName, Sha256
from edge.bundle.mirror import Mirror, Say, quiet
from edge.bundle.refusal import COPY_AGAIN, Case, explain, parse, rolled_back
from edge.bundle.roles import DEVELOPMENT, PRODUCT_ROLE, SIGNED_AT
from edge.bundle.trust_floor import FOLDER, Floor, Mark
from edge.clock import not_before_ts
from edge.errors import TrustError

LARGEST_ARCHIVE_BYTES: Final = 4 << 30
_CONFIG: Final = UpdaterConfig(
    max_root_rotations=1024,  # counted from the device's own root, also those that are known already
    max_delegations=64,
    root_max_length=1 << 17,
    timestamp_max_length=1 << 14,
    snapshot_max_length=1 << 18,
    targets_max_length=1 << 21,
)
_LOCK_WAIT_S: Final = 20.0
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class _Custom(msgspec.Struct, frozen=True, kw_only=True):
    """What a publisher says of a bundle beside its hash; fields of later releases are passed over."""

    product: ProductName
    version: Annotated[int, Meta(ge=1, le=10**9)]
    digest: Sha256
    min_edge: EdgeVersion = "0.0.0"
    hardware: tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...] = ()


@dataclass(frozen=True)
class Offer:
    """One bundle that a repository has.

    Attributes:
        digest: of its manifest, as `edge.bundle.manifest.digest` has it.
        hardware: what it is for; empty: anything.
        path, length: of its archive in the repository.
    """

    product: str
    version: int
    digest: str
    min_edge: str
    hardware: tuple[str, ...]
    path: str
    length: int


class _Client(Updater):
    """The library's client, which has no place for a clock that is not trusted blindly."""

    def judge_root_by(self, judge: Callable[[Root], datetime]) -> None:
        """Ask this of the final root, before anything that it vouches for; it gives the time to judge by."""
        self._judge = judge

    def _load_timestamp(self) -> None:
        self._trusted_set.reference_time = self._judge(self._trusted_set.root)
        super()._load_timestamp()  # type: ignore[no-untyped-call,unused-ignore]


class Trust:
    """One device's view of a bundle repository.

    Args:
        root: the first root of trust, from the device's own installation.
        state: the daemon's state folder.
        now: the system's clock, seconds since 1970.
        development: a root that was made for development is believed, too.

    Attributes:
        clock_behind_s: how far `now` was before what is past for certain, at the last refresh; 0.0: it may be right.
    """

    def __init__(
        self,
        root: Path,
        state: Path,
        mirror: Mirror,
        *,
        now: Callable[[], float] = time.time,
        development: bool = False,
    ) -> None:
        self._root, self._state, self._mirror = root, state, mirror
        self._now, self._development = now, development
        self._folder = state / FOLDER
        self._metadata = self._folder / "metadata"
        self._floor = Floor()
        self._reference = datetime.fromtimestamp(not_before_ts(), timezone.utc)
        self._reference_from = ""
        self.clock_behind_s = 0.0
        self._client: _Client | None = None
        self._durable: dict[Path, tuple[int, ...]] = {}  # what of the client's folder the disk holds

    def refresh(self) -> None:
        """See what the repository has now, by the whole workflow of a TUF client.

        Raises:
            TrustError: it is not believed, cannot be read, or the state folder cannot be written. What was accepted
                before stands.
        """
        self._client = None
        bootstrap = self._bootstrap()
        with self._told(), self._locked():
            self._mend(bootstrap)
            self._durable = {path: _stamp(path) for path in self._metadata.rglob("*") if not path.is_symlink()}
            try:
                client = self._walk(bootstrap)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    raise
                shutil.rmtree(self._metadata, ignore_errors=True)  # the floor keeps what must not be forgotten
                client = self._walk(bootstrap)
            finally:
                self._make_durable()
            self._accept()
            self._client = client

    def products(self) -> list[str]:
        """Products that the repository has a role for, by name.

        Raises:
            TrustError: there was no refresh that succeeded.
        """
        self._refreshed()
        delegations = self._trusted(Targets, "targets").signed.delegations
        names = list(delegations.roles or ()) if delegations else []
        return sorted(name.removeprefix(PRODUCT_ROLE) for name in names if name.startswith(PRODUCT_ROLE))

    def offers(self, product: str) -> list[Offer]:
        """The bundles of a product, newest first, as its own role signed them.

        Raises:
            TrustError: the repository has nothing for this product, or its role is not believed.
        """
        client, known = self._refreshed(), self.products()
        if product not in known:
            has = f"has bundles for {', '.join(known)}" if known else "has no product at all"
            remedy = "take the repository of this line's product, or set update.product"
            text = f"the repository {self._mirror.address} {has}, and this device inspects {product}; {remedy}"
            raise TrustError("wrong_product", text)
        role = f"{PRODUCT_ROLE}{product}"
        self._require_own_path(role, product)
        with self._told(), self._locked():
            client.get_targetinfo(f"{product}/-")  # loads and verifies the product's role; there is no such file
            self._make_durable()
            listed = self._trusted(Targets, role).signed.targets
            found = [self._offer(product, client.get_targetinfo(path), target) for path, target in listed.items()]
        return sorted(found, key=lambda offer: offer.version, reverse=True)

    def _require_own_path(self, role: str, product: str) -> None:
        delegated = self._trusted(Targets, "targets").signed.get_delegated_role(role)
        if not delegated.is_delegated_path(f"{product}/-"):
            text = f"the repository {self._mirror.address} does not give the product {product} the path {product}/*"
            raise TrustError("malformed", f"{text}; its publisher must make it with `tools publish`")

    def fetch(self, offer: Offer, into: Path, say: Say = quiet) -> Path:
        """Bring a bundle's archive, or go on bringing it; returns the file, whose length and hash are as signed.

        Args:
            into: a private folder. An unfinished download stays there, for the next time and for any mirror.
            say: told how far it is, every few seconds.

        Raises:
            TrustError: the repository does not list it, has something else in its place, or cannot be read.
        """
        client = self._refreshed()
        with self._told():
            target = client.get_targetinfo(offer.path)
            if target is None or self._offer(offer.product, target, target) != offer:
                text = f"{offer.path} is not among the bundles that {self._mirror.address} has signatures for"
                raise TrustError("not_found", f"{text}; look again, it may have been replaced")
            return self._fetch(target, into, say)

    def _fetch(self, target: TargetFile, into: Path, say: Say) -> Path:
        folder, _, name = target.path.rpartition("/")
        sha256 = target.hashes["sha256"]
        whole, part = into / name, into / f"{sha256[:16]}.part"
        into.mkdir(parents=True, exist_ok=True)
        for old in into.glob("*.part"):  # one download at a time; another one's beginning is of no use now
            if old != part:
                old.unlink()
        if _fits(whole, target):
            return whole
        self._require_space(into, target.length - (part.stat().st_size if part.is_file() else 0))
        resumed = part.exists()
        self._download(f"targets/{folder}/{sha256}.{name}", part, target, say)
        if resumed and not _fits(part, target):
            say("what an earlier download had left does not fit; beginning anew")
            part.unlink()
            self._download(f"targets/{folder}/{sha256}.{name}", part, target, say)
        if not _fits(part, target):
            part.unlink()
            text = f"{target.path} on {self._mirror.address} is not the archive that was published: its SHA-256 differs"
            raise TrustError("tampered", f"{text}; {COPY_AGAIN}, and if it comes altered again, tell its publisher")
        os.replace(part, whole)
        _sync(into)
        return whole

    def _download(self, name: str, part: Path, target: TargetFile, say: Say) -> None:
        self._mirror.asked = name
        try:
            self._mirror.download(name, part, target.length, say)
        except DownloadError as error:
            refusal = self._explained(error)
            if refusal.code in ("too_large", "tampered"):
                part.unlink(missing_ok=True)  # a beginning of something else is no beginning
            raise refusal from error

    def _require_space(self, into: Path, needed: int) -> None:
        free = shutil.disk_usage(into).free
        if free < needed:
            text = f"the download needs {needed / 1e6:.1f} MB and {into} has {free / 1e6:.1f} MB free"
            raise TrustError("storage", f"{text}; free some space and try again")

    def _refreshed(self) -> _Client:
        if self._client is None:
            text = f"the repository {self._mirror.address} was not looked at"
            raise TrustError("no_repository", f"{text}, or is not believed; refresh first")
        return self._client

    def _bootstrap(self) -> bytes:
        """The device's own root of trust."""
        try:
            data = self._root.read_bytes()
        except OSError as error:
            text = f"this device has no root of trust: {self._root} cannot be read: {error.strerror or error}"
            raise TrustError(
                "no_root", f"{text}; give it your publisher's with `edge bundle trust ROOT.json`"
            ) from error
        metadata = parse(data)
        if metadata is None or not isinstance(metadata.signed, Root):
            text = f"{self._root} is no root of trust: it is not the root metadata of a bundle repository"
            raise TrustError(
                "malformed", f"{text}; give the device your publisher's with `edge bundle trust ROOT.json`"
            )
        if not metadata.signed.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures):
            text = f"{self._root}, this device's root of trust, was altered: its own keys have not signed it so"
            raise TrustError("tampered", f"{text}; give it your publisher's again with `edge bundle trust ROOT.json`")
        self._judge_development(metadata.signed, str(self._root))
        return data

    def _judge_development(self, root: Root, where: str) -> None:
        if root.unrecognized_fields.get(DEVELOPMENT) and not self._development:
            text = f"the root of trust {where} was made for development: its one key lies on somebody's desk"
            remedy = "give the device the root of production, or, on a bench, set update.development = true"
            raise TrustError("development_root", f"{text}; {remedy}")

    def _walk(self, bootstrap: bytes) -> _Client:
        """The client's workflow; what it accepts is in its folder, but not yet on the disk."""
        self._metadata.mkdir(parents=True, exist_ok=True)
        client = _Client(
            str(self._metadata),
            self._mirror.metadata_url,
            target_base_url=self._mirror.targets_url,
            fetcher=self._mirror,
            config=_CONFIG,
            bootstrap=bootstrap,
        )
        client.judge_root_by(self._judge_root)
        client.refresh()
        return client

    def _judge_root(self, root: Root) -> datetime:
        """Refuse a root that is not to be used; the time by which what it vouches for is judged."""
        self._judge_development(root, f"version {root.version} on {self._mirror.address}")
        if root.version < self._floor.root:
            detail = f"its version is {root.version}, and {self._floor.root} was accepted before"
            raise rolled_back(f"the root of the repository {self._mirror.address}", detail)
        mark = self._floor.timestamp
        known = self._floor.time if mark and mark.counts(root.roles[Timestamp.type]) else 0.0
        now = self._now()
        sources = [
            (now, "this box's clock"),
            (not_before_ts(), "the build of this release, which the box's clock is before"),
            (known, "what was accepted last, which the box's clock is before"),
        ]
        reference, self._reference_from = max(sources, key=lambda source: source[0])
        self._reference = datetime.fromtimestamp(reference, timezone.utc)
        self.clock_behind_s = reference - now
        return self._reference

    def _accept(self) -> None:
        """Check what the client accepted against the floor, and raise the floor to it."""
        floor, root = self._floor, self._trusted(Root, "root").signed
        timestamp, snapshot = self._trusted(Timestamp, "timestamp"), self._trusted(Snapshot, "snapshot")
        roles = {name: meta.version for name, meta in snapshot.signed.meta.items()}
        marks = [(Timestamp.type, floor.timestamp, timestamp), (Snapshot.type, floor.snapshot, snapshot)]
        for name, mark, found in marks:
            if mark and mark.counts(root.roles[name]) and found.signed.version < mark.version:
                self._behind(name, found.signed.version, mark.version)
        stands = floor.snapshot is not None and floor.snapshot.counts(root.roles[Snapshot.type])
        for name, version in floor.roles.items() if stands else ():
            if roles.get(name, 0) < version:
                self._behind(name, roles.get(name, 0), version)
        same = floor.timestamp is not None and floor.timestamp.counts(root.roles[Timestamp.type])
        fresh = Floor(
            serial=floor.serial,
            roots=self._roots(root),
            timestamp=_mark(root, timestamp),
            snapshot=_mark(root, snapshot),
            roles=roles,
            time=max(floor.time if same else 0.0, _signed_at(timestamp.signed)),
        )
        if fresh != floor:
            trust_floor.write(self._folder, msgspec.structs.replace(fresh, serial=floor.serial + 1))
            self._adopt()

    def _behind(self, name: str, found: int, known: int) -> None:
        what = f"the {name.removesuffix('.json')} of the repository {self._mirror.address}"
        raise rolled_back(what, f"its version is {found}, and {known} was accepted before")

    def _roots(self, root: Root) -> dict[int, str]:
        """The roots that led here, and those known before."""
        found = dict(self._floor.roots)
        for path in (self._metadata / "root_history").glob("*.root.json"):
            version = int(path.name.partition(".")[0])
            if version <= root.version:
                found[version] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def _trusted(self, kind: type[Any], role: str) -> Metadata[Any]:
        """Metadata that the client has just verified and put into its folder."""
        metadata = parse((self._metadata / f"{role}.json").read_bytes())
        if metadata is None or not isinstance(metadata.signed, kind):
            raise TrustError("storage", f"{self._metadata / role}.json was changed by somebody; refresh again")
        return metadata

    def _offer(self, product: str, verified: TargetFile | None, listed: TargetFile) -> Offer:
        where = f"{listed.path} of the product {product} on {self._mirror.address}"
        if verified != listed or not listed.path.startswith(f"{product}/"):
            text = f"the key of the product {product} has signed {listed.path}, which is not its to sign"
            raise TrustError("wrong_product", f"{text}; tell the publisher of {self._mirror.address}")
        try:
            said = msgspec.convert(listed.custom, _Custom)
        except msgspec.ValidationError as error:
            text = f"{where} is described in a way that cannot be used: {error}"
            raise TrustError("malformed", f"{text}; its publisher must add it again") from error
        if said.product != product:
            text = f"{where} is a bundle for {said.product}, signed with the key of {product}"
            raise TrustError("wrong_product", f"{text}; its publisher must take it out")
        if "sha256" not in listed.hashes or not _FILE_NAME.fullmatch(listed.path.removeprefix(f"{product}/")):
            raise TrustError("malformed", f"{where} has no SHA-256 or no usable name; its publisher must add it again")
        if listed.length > LARGEST_ARCHIVE_BYTES:
            text = f"{where} has {listed.length / 1e9:.1f} GB, the most is {LARGEST_ARCHIVE_BYTES / 1e9:.1f} GB"
            raise TrustError("too_large", f"{text}; its publisher must make it smaller")
        return Offer(product, said.version, said.digest, said.min_edge, said.hardware, listed.path, listed.length)

    def _explained(self, error: Exception) -> TrustError:
        mirror = self._mirror
        return explain(
            error,
            Case(
                address=mirror.address,
                asked=mirror.asked,
                got=mirror.got,
                folder=self._metadata,
                reference=self._reference,
                reference_from=self._reference_from,
                fetch=self._fetch_again,
            ),
        )

    def _fetch_again(self, name: str) -> bytes | None:
        """A metadata file of the mirror, to explain a refusal by it."""
        try:
            return self._mirror.download_bytes(name, _CONFIG.targets_max_length)
        except DownloadError:
            return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the library and the file system say into a refusal with its cause and remedy."""
        try:
            yield
        except (DownloadError, RepositoryError, ValueError, KeyError, TypeError) as error:
            raise self._explained(error) from error
        except OSError as error:
            where = error.filename or self._folder
            text = f"what was accepted cannot be kept in {where}: {error.strerror or error}"
            remedy = "free some space, or run it as root or as the daemon's user on a disk that can be written"
            raise TrustError("storage", f"{text}; {remedy}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the right to change the client's state; a process that dies gives it up."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            end = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        text = f"another update is at work in {self._folder}; wait until it is done"
                        raise TrustError("storage", text) from error
                    time.sleep(0.05)
            yield
        finally:
            os.close(handle)

    def _mend(self, bootstrap: bytes) -> None:
        """Make the client's folder one that it can work in, whatever a power cut or another root of trust has left."""
        self._floor = trust_floor.read(self._folder)
        if self._floor.roots and not self._same_lineage(bootstrap):
            shutil.rmtree(self._metadata, ignore_errors=True)
            self._floor = Floor(serial=self._floor.serial)
            trust_floor.write(self._folder, msgspec.structs.replace(self._floor, serial=self._floor.serial + 1))
            self._floor = trust_floor.read(self._folder)
        if self._metadata.is_symlink() or (self._metadata.exists() and not self._metadata.is_dir()):
            self._metadata.unlink()
        for path in self._metadata.iterdir() if self._metadata.is_dir() else ():
            folder = path.is_dir() and not path.is_symlink()
            if path.name == "root_history" and folder:
                continue
            if folder:
                shutil.rmtree(path)
            elif path.name != "root.json" and (not path.name.endswith(".json") or path.is_symlink()):
                path.unlink()  # what was being written when the power went

    def _same_lineage(self, bootstrap: bytes) -> bool:
        """Whether the device's root belongs to what was accepted before. A person may have given it another one."""
        metadata = parse(bootstrap)
        if metadata is None:
            return False
        known = self._floor.roots.get(metadata.signed.version)
        if known is not None:
            return known == hashlib.sha256(bootstrap).hexdigest()
        newest = parse(_read(self._metadata / "root_history" / f"{self._floor.root}.root.json"))
        if newest is None or not isinstance(newest.signed, Root):
            return False
        return bool(newest.signed.get_verification_result(Root.type, metadata.signed_bytes, metadata.signatures))

    def _make_durable(self) -> None:
        """Have the disk hold the client's folder; also what a refused repository has taught, such as a newer root."""
        paths = [path for path in (self._folder, self._metadata, *self._metadata.rglob("*")) if not path.is_symlink()]
        fresh = {path: _stamp(path) for path in paths if path.exists()}
        changed = [path for path, stamp in fresh.items() if self._durable.get(path) != stamp]
        for path in changed:
            _sync(path)
        self._durable = fresh
        if changed:
            self._adopt()

    def _adopt(self) -> None:
        """Give what root has made to whom the state folder belongs, so that the daemon can manage it."""
        if os.geteuid() == 0:
            owner = self._state.stat()
            for path in (self._folder, *self._folder.rglob("*")):
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def time_floor(state: Path) -> float:
    """When the newest timestamp that this device accepted was signed: no clock that is before it is right.

    Returns:
        Seconds since 1970; 0.0 when nothing was accepted yet.
    """
    return trust_floor.read(state / FOLDER).time


def _mark(root: Root, metadata: Metadata[Any]) -> Mark:
    result = root.get_verification_result(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    return Mark(metadata.signed.version, sorted(result.signed))


def _signed_at(timestamp: Timestamp) -> float:
    """When it says that it was signed; nothing is signed after it has expired."""
    found = timestamp.unrecognized_fields.get(SIGNED_AT)
    return float(min(found, timestamp.expires.timestamp())) if isinstance(found, int) else 0.0


def _fits(path: Path, target: TargetFile) -> bool:
    try:
        with open(path, "rb") as file:
            target.verify_length_and_hashes(file)
    except (OSError, LengthOrHashMismatchError):
        return False
    return True


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
