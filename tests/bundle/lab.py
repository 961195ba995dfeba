"""A publisher in memory: keys, and a bundle repository that is signed with them through TUF's metadata API.

Made without `tools.publish`, so that the device is not tested against the mistakes of our own publisher.
"""

from __future__ import annotations

import copy
import hashlib
import http.server
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
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

from edge.clock import not_before_ts

DAY_S = 86_400.0
NOW = not_before_ts() + 100 * DAY_S
THEN = NOW - 60 * DAY_S  # when the repository was begun


def moment(ts: float) -> datetime:
    return datetime.fromtimestamp(ts, timezone.utc).replace(microsecond=0)


class Lab:
    """One publisher; `folder` is what it gives to the world.

    Attributes:
        keys: by name: root1..., targets, online, and one for each product.
        signed: the newest of each role; `product-<p>` for products.
        signers: names of the keys that sign a role.
    """

    def __init__(
        self,
        folder: Path,
        products: tuple[str, ...] = ("pcb", "ballscrew"),
        development: bool = False,
        now: float = THEN,
    ) -> None:
        self.folder, self.now = folder, now
        self.keys = {
            name: CryptoSigner.generate_ed25519()
            for name in (
                "root1",
                "root2",
                "root3",
                "root4",
                "targets",
                "online",
                "online2",
                "online3",
                "pcb2",
                *products,
            )
        }
        self.signed: dict[str, Any] = {}
        self.data: dict[str, bytes] = {}
        self.lives = {"root": 700.0, "targets": 365.0, "snapshot": 30.0, "timestamp": 30.0}
        self.signers = {
            "root": ["root1", "root2"],
            "targets": ["targets"],
            "snapshot": ["online"],
            "timestamp": ["online"],
        }
        self._make_root(development)
        self._make_targets(products)
        self.signed["snapshot"], self.signed["timestamp"] = Snapshot(version=1), Timestamp(version=1)
        for signed in self.signed.values():
            signed.version = 0
        self.publish(*self.signed)

    def _make_root(self, development: bool) -> None:
        root = Root(version=1, consistent_snapshot=True)
        for name in ("root1", "root2", "root3"):
            root.add_key(self.keys[name].public_key, "root")
        root.roles["root"].threshold = 2
        for role, name in (("targets", "targets"), ("snapshot", "online"), ("timestamp", "online")):
            root.add_key(self.keys[name].public_key, role)
        if development:
            root.unrecognized_fields["x-edge-development"] = True
        self.signed["root"] = root

    def _make_targets(self, products: tuple[str, ...]) -> None:
        roles = {
            f"product-{p}": DelegatedRole(f"product-{p}", [], 1, terminating=True, paths=[f"{p}/*"]) for p in products
        }
        targets = Targets(version=1, delegations=Delegations({}, roles))
        for product in products:
            targets.add_key(self.keys[product].public_key, f"product-{product}")
            self.signed[f"product-{product}"] = Targets(version=1)
            self.signers[f"product-{product}"] = [product]
        self.signed["targets"] = targets

    @property
    def root_file(self) -> Path:
        """The first root: what a device is installed with."""
        return self.folder / "metadata" / "1.root.json"

    def moved(self, folder: Path) -> Lab:
        """This publisher with a copy of its repository; what either does from now on is its own."""
        shutil.copytree(self.folder, folder)
        other = copy.copy(self)
        other.folder, other.data = folder, dict(self.data)
        other.signed, other.signers = copy.deepcopy(self.signed), copy.deepcopy(self.signers)
        return other

    def publish(self, *roles: str, days: float | None = None) -> None:
        """Sign and write new versions of these roles, and of snapshot and timestamp."""
        order = [role for role in roles if role not in ("snapshot", "timestamp")]
        for role in (*order, "snapshot", "timestamp"):
            signed = self.signed[role]
            signed.version += 1
            life = days if days is not None and role in roles else self.lives.get(role, 365.0)
            signed.expires = moment(self.now + life * DAY_S)
            if role == "snapshot":
                signed.meta = self.meta()
            if role == "timestamp":
                signed.snapshot_meta = describe(self.signed["snapshot"].version, self.data["snapshot"])
                signed.unrecognized_fields["x-edge-signed"] = int(self.now)  # canonical JSON has no fractions
            self.data[role] = self.write(role, signed, *self.signers[role])

    def meta(self) -> dict[str, MetaFile]:
        """What a snapshot says of the other roles."""
        roles = [role for role in self.signed if role == "targets" or role.startswith("product-")]
        return {f"{role}.json": describe(self.signed[role].version, self.data[role]) for role in roles}

    def write(self, role: str, signed: Any, *signers: str, at: Path | None = None) -> bytes:
        """Sign with these keys, and put the file where a repository has it."""
        metadata: Metadata[Any] = Metadata(copy.deepcopy(signed))
        for name in signers:
            metadata.sign(self.keys[name], append=True)
        data = metadata.to_bytes()
        name = f"{role}.json" if role == "timestamp" else f"{signed.version}.{role}.json"
        path = (at or self.folder) / "metadata" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return data

    def list(self, product: str, version: int, content: bytes, path: str = "", says: str = "") -> Path:
        """Put a bundle into the product's role, not yet published; returns its file."""
        path = path or f"{product}/{product}-{version}.tar.gz"
        target = TargetFile.from_data(path, content, ["sha256"])
        digest = hashlib.sha256(b"manifest" + content).hexdigest()
        said = {"product": says or product, "version": version, "digest": digest, "min_edge": "0.1.0", "hardware": []}
        target.unrecognized_fields["custom"] = said
        self.signed[f"product-{product}"].targets[path] = target
        folder, _, name = path.rpartition("/")
        file = self.folder / "targets" / folder / f"{target.hashes['sha256']}.{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def add(self, product: str, version: int, content: bytes = b"") -> Path:
        """Publish a bundle; returns its file."""
        file = self.list(product, version, content or bytes([version]) * 3000)
        self.publish(f"product-{product}")
        return file

    def change_root_keys(self, old: str, new: str, role: str = "root", *also: str) -> None:
        """A new root in which one key has taken the place of another, for one role or more."""
        root = self.signed["root"]
        before = list(self.signers["root"])
        for each in (role, *also):
            root.revoke_key(self.keys[old].public_key.keyid, each)
            root.add_key(self.keys[new].public_key, each)
            self.signers[each] = [new if name == old else name for name in self.signers[each]]
        self.new_root(*before)

    def new_root(self, *before: str, days: float | None = None) -> None:
        """Publish the root once more, signed with those who sign it, and with those who did."""
        root = self.signed["root"]
        root.version += 1
        root.expires = moment(self.now + (days or self.lives["root"]) * DAY_S)
        self.data["root"] = self.write("root", root, *sorted({*before, *self.signers["root"]}))

    def change_product_key(self, product: str, new: str) -> None:
        """The product's key is taken back, and another one takes its place."""
        targets, old = self.signed["targets"], self.keys[self.signers[f"product-{product}"][0]].public_key
        targets.revoke_key(old.keyid, f"product-{product}")
        targets.add_key(self.keys[new].public_key, f"product-{product}")
        record = {"keyid": old.keyid, "role": f"product-{product}", "on": "2026-10-01", "reason": "lost"}
        targets.unrecognized_fields["x-edge-revoked"] = [{**record, "key": old.to_dict()}]
        self.signers[f"product-{product}"] = [new]
        self.publish("targets", f"product-{product}")


def describe(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


Behaviour = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Static files with byte ranges, and whatever an attacker or a bad line does in their place."""

    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        behaviour = next((b for end, b in self.server.behaviours.items() if self.path.endswith(end)), None)
        try:
            (behaviour or Handler.serve)(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def serve(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        start = self.begin(len(data))
        self.wfile.write(data[start:])
        return None

    def begin(self, total: int) -> int:
        """Send the header; returns the byte that the client wants first."""
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= total and start:
            self.send_error(416)
            return total
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        return start

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""


class Web(http.server.ThreadingHTTPServer):
    """A real server on this machine."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.behaviours: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, str]] = []
        self.ranges = True
        self.over = threading.Event()  # set when the client has given up: nobody trickles on

    def show(self, folder: Path, behaviours: dict[str, Behaviour] | None = None) -> None:
        """Serve another folder from now on."""
        self.over.set()
        self.over = threading.Event()
        self.folder, self.behaviours = folder, behaviours or {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what many of these tests are about."""


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    before = os.environ.get("no_proxy")
    os.environ["no_proxy"] = "*"  # a proxy of the machine that runs the tests does not lead to its own port
    web = Web(folder)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.over.set()
        web.shutdown()
        web.server_close()
        thread.join()
        os.environ.pop("no_proxy")
        os.environ.update({"no_proxy": before} if before is not None else {})


def endless(handler: Handler) -> None:
    """Something that looks like JSON and never ends."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    over = handler.server.over
    while not over.is_set():
        handler.wfile.write(b"{" * (1 << 16))


def trickle(handler: Handler) -> None:
    """A byte now and then: no timeout of a socket ever strikes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "3000")
    handler.end_headers()
    _drip(handler)


def trickle_header(handler: Handler) -> None:
    """The same before the body has begun."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    _drip(handler)


def silent(handler: Handler) -> None:
    """No answer at all."""
    handler.close_connection = True
    handler.server.over.wait(30)


def _drip(handler: Handler) -> None:
    end, over = time.monotonic() + 30, handler.server.over
    handler.close_connection = True
    while time.monotonic() < end and not over.wait(0.02):
        handler.wfile.write(b"x")
        handler.wfile.flush()
