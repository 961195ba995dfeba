"""The attacker: each known attack on a TUF repository, made with real files, against a stick and against a server.

`python -m tests.bundle.attacks` runs them all and prints what the device said.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge.bundle.mirror import FolderMirror, Mirror, mirror
from edge.bundle.pace import Limits
from edge.bundle.trust import Offer, Trust
from edge.errors import TrustError
from tests.bundle.lab import (
    DAY_S,
    NOW,
    THEN,
    Behaviour,
    Lab,
    Web,
    describe,
    endless,
    serving,
    silent,
    trickle,
    trickle_header,
)

IMPATIENT = Limits(connect_s=0.3, silence_s=0.6, least_kb_s=1.0, window_s=0.3, idle_tries=2)
PRODUCT = "pcb"
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # what is proved here does not hang on the disk
ROLES = ("root", "timestamp", "snapshot", "targets", "product-pcb")
COLUMNS = [(kind, client) for kind in ("usb", "network") for client in ("fresh", "updated")]


class SlowStick(FolderMirror):
    """A stick that is dying: every read takes its time and gives a byte."""

    slow = ""

    def _read(self, handle: int, name: str, most: int) -> bytes:
        if self.slow and name.endswith(self.slow):
            time.sleep(0.01)
            return super()._read(handle, name, 1)
        return super()._read(handle, name, most)


@dataclass
class Scene:
    """What an attack works on.

    Attributes:
        lab: the honest publisher; `old` is a copy of its repository from 60 days ago.
        at: the attacker's copy of today's repository, which the device is shown.
        ask: an offer that the device asks for, in place of the newest.
        root: the device's own root of trust.
        clock: the device's clock.
    """

    lab: Lab
    work: Path
    usb: bool
    updated: bool
    at: Path
    old: Path
    state: Path
    root: Path
    clock: float = NOW
    ask: Offer | None = None
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    slow: str = ""
    renew: tuple[str, ...] = ()
    stolen: bool = False

    def copy(self) -> None:
        """Show the device what the publisher has now."""
        shutil.rmtree(self.at)
        shutil.copytree(self.lab.folder, self.at)

    def file(self, role: str) -> Path:
        """The newest of a role; for the root, the one that the device asks for next."""
        if role == "timestamp":
            return self.at / "metadata" / "timestamp.json"
        version = self.lab.signed[role].version
        if role == "root":
            version = version + 1 if self.updated else 2
        return self.at / "metadata" / f"{version}.{role}.json"

    @property
    def target(self) -> Path:
        """The archive of the newest bundle."""
        return next((self.at / "targets" / PRODUCT).glob("*.pcb-3.tar.gz"))

    def forge_online(self, **changed: bytes) -> None:
        """With the stolen online key: a snapshot with other files in it, and a timestamp for it."""
        self.stolen = True
        snapshot, timestamp = copy.deepcopy(self.lab.signed["snapshot"]), copy.deepcopy(self.lab.signed["timestamp"])
        snapshot.version += 1
        for name, data in changed.items():
            role = name.replace("_", "-")
            version = _version(data)
            snapshot.meta[f"{role}.json"] = describe(version, data)
            (self.at / "metadata" / f"{version}.{role}.json").write_bytes(data)
        signers = self.lab.signers
        data = self.lab.write("snapshot", snapshot, *signers["snapshot"], at=self.at)
        timestamp.version += 1
        timestamp.snapshot_meta = describe(snapshot.version, data)
        self.lab.write("timestamp", timestamp, *signers["timestamp"], at=self.at)

    def forge(self, role: str, *signers: str, change: Callable[[Any], None] | None = None) -> bytes:
        """The next version of a role, changed, signed with these keys."""
        signed = copy.deepcopy(self.lab.signed[role])
        signed.version += 1
        if change:
            change(signed)
        return self.lab.write(role, signed, *signers, at=self.at)


def _version(data: bytes) -> int:
    from edge.bundle.refusal import parse

    found = parse(data)
    assert found is not None
    return int(found.signed.version)


@dataclass(frozen=True)
class Attack:
    """One attack and the code that the device has to answer with, by column where it differs; None: not applicable."""

    name: str
    do: Callable[[Scene], None]
    code: str
    other: dict[str, str | None] = field(default_factory=dict)  # by `usb`, `network`, `fresh` or `updated`

    def expected(self, kind: str, client: str) -> str | None:
        for column in (kind, client):
            if column in self.other:
                return self.other[column]
        return self.code


def _arbitrary(scene: Scene) -> None:
    thief = Lab(scene.work / "thief", now=NOW)
    thief.signed["timestamp"].version = 50
    thief.write("timestamp", thief.signed["timestamp"], "online", at=scene.at)


def _arbitrary_bundle(scene: Scene) -> None:
    thief = Lab(scene.work / "thief", now=NOW)
    thief.list(PRODUCT, 9, b"evil" * 500)
    role = thief.signed["product-pcb"]
    role.version = scene.lab.signed["product-pcb"].version + 1
    scene.forge_online(product_pcb=thief.write("product-pcb", role, PRODUCT, at=scene.at))


def _old_root(scene: Scene) -> None:
    scene.file("root").write_bytes((scene.old / "metadata/1.root.json").read_bytes())


def _old_state(scene: Scene) -> None:
    shutil.rmtree(scene.at)
    shutil.copytree(scene.old, scene.at)


def _replay(role: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        scene.file(role).write_bytes((scene.old / "metadata" / f"1.{role}.json").read_bytes())

    return do


def _old_by_online_key(role: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        data = (scene.old / "metadata" / f"1.{role}.json").read_bytes()
        if role != "snapshot":
            return scene.forge_online(**{role.replace("-", "_"): data})
        scene.stolen = True
        timestamp = copy.deepcopy(scene.lab.signed["timestamp"])
        timestamp.version += 1
        timestamp.snapshot_meta = describe(1, data)
        scene.lab.write("timestamp", timestamp, "online", at=scene.at)
        return None

    return do


def _left_out_by_online_key(scene: Scene) -> None:
    scene.stolen = True
    snapshot, timestamp = copy.deepcopy(scene.lab.signed["snapshot"]), copy.deepcopy(scene.lab.signed["timestamp"])
    snapshot.version += 1
    del snapshot.meta["product-pcb.json"]
    data = scene.lab.write("snapshot", snapshot, "online", at=scene.at)
    timestamp.version += 1
    timestamp.snapshot_meta = describe(snapshot.version, data)
    scene.lab.write("timestamp", timestamp, "online", at=scene.at)


def _frozen(role: str) -> Callable[[Scene], None]:
    """The role was published with a short life, and that is over."""

    def do(scene: Scene) -> None:
        if role == "root":
            scene.lab.new_root(days=10)
        else:
            scene.lab.publish(role, days=10)
        scene.copy()
        scene.clock = NOW + 20 * DAY_S
        scene.renew = (role,)

    return do


def _frozen_for_a_dead_clock(scene: Scene) -> None:
    now, scene.lab.now = scene.lab.now, THEN - 200 * DAY_S
    scene.lab.publish("timestamp", days=30)
    scene.lab.now = now
    scene.copy()
    scene.clock, scene.renew = 0.0, ("timestamp",)


def _mixed(role: str) -> Callable[[Scene], None]:
    """A file of tomorrow's repository in the place of today's."""

    def do(scene: Scene) -> None:
        scene.copy()
        place = scene.file(role)
        scene.lab.list(PRODUCT, 4, b"tomorrow" * 100)
        scene.lab.publish("targets", "product-pcb")
        place.write_bytes(scene.lab.data[role])

    return do


def _endless(role: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        path = scene.target if role == "target" else scene.file(role)
        if scene.usb:
            with open(path, "r+b" if path.exists() else "wb") as file:
                file.truncate(1 << 40)
        else:
            scene.behaviours[path.name] = endless

    return do


def _slow(role: str, behaviour: Behaviour = trickle) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        path = scene.target if role == "target" else scene.file(role)
        scene.behaviours[path.name], scene.slow = behaviour, path.name

    return do


def _in_its_place(role: str, make: Callable[[Path], None]) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        path = scene.target if role == "target" else scene.file(role)
        path.unlink(missing_ok=True)
        make(path)

    return do


def _linked_folder(scene: Scene) -> None:
    (scene.at / "metadata").rename(scene.work / "elsewhere")
    (scene.at / "metadata").symlink_to(scene.work / "elsewhere")


def _unlisted(scene: Scene) -> None:
    evil = scene.at / "targets/pcb/pcb-9.tar.gz"
    evil.write_bytes(b"evil" * 100)
    scene.ask = Offer(PRODUCT, 9, "0" * 64, "0.1.0", (), "pcb/pcb-9.tar.gz", 400)


def _altered_offer(scene: Scene) -> None:
    target = scene.target
    scene.ask = Offer(PRODUCT, 9, "0" * 64, "0.1.0", (), "pcb/pcb-3.tar.gz", target.stat().st_size)


def _foreign_path(scene: Scene) -> None:
    scene.lab.list(PRODUCT, 7, b"evil" * 100, path="ballscrew/ballscrew-7.tar.gz")
    scene.lab.publish("product-pcb")
    scene.copy()
    del scene.lab.signed["product-pcb"].targets["ballscrew/ballscrew-7.tar.gz"]


def _other_products_bundle(scene: Scene) -> None:
    scene.lab.list(PRODUCT, 7, b"evil" * 100, says="ballscrew")
    scene.lab.publish("product-pcb")
    scene.copy()
    del scene.lab.signed["product-pcb"].targets["pcb/pcb-7.tar.gz"]


def _one_root_key(scene: Scene) -> None:
    def own(root: Any) -> None:
        root.roles["root"].threshold = 1
        root.version = int(scene.file("root").name.partition(".")[0])

    scene.forge("root", "root1", change=own)


def _online_key_signs_targets(scene: Scene) -> None:
    scene.forge_online(targets=scene.forge("targets", "online"))


def _other_products_key(scene: Scene) -> None:
    scene.forge_online(product_pcb=scene.forge("product-pcb", "ballscrew"))


def _revoked_root_key(scene: Scene) -> None:
    # root3 was taken back in root 2. Together with one stolen key it would have been enough before.
    scene.forge("root", "root1", "root3")


def _revoked_online_key(scene: Scene) -> None:
    scene.lab.change_root_keys("online", "online2", "snapshot", "timestamp")
    scene.lab.publish()
    see(scene, scene.lab.folder)
    scene.copy()
    scene.forge("timestamp", "online")


def _revoked_product_key(scene: Scene) -> None:
    scene.lab.change_product_key(PRODUCT, "pcb2")
    see(scene, scene.lab.folder)
    scene.copy()
    scene.forge_online(product_pcb=scene.forge("product-pcb", PRODUCT))


def _only_another_product(scene: Scene) -> None:
    targets = scene.lab.signed["targets"]
    before = copy.deepcopy(targets.delegations)
    del targets.delegations.roles["product-pcb"]
    scene.lab.publish("targets")
    scene.copy()
    targets.delegations = before


def _flipped(role: str) -> Callable[[Scene], None]:
    def do(scene: Scene) -> None:
        path = scene.target if role == "target" else scene.file(role)
        data = path.read_bytes()
        fresh = data.replace(b'"expires":"202', b'"expires":"209') if role != "target" else b"\xff" + data[1:]
        assert fresh != data and len(fresh) == len(data)
        path.write_bytes(fresh)

    return do


def _cut_short(scene: Scene) -> None:
    os.truncate(scene.target, 1000)


def _other_root(scene: Scene) -> None:
    shutil.rmtree(scene.at)
    other = Lab(scene.at, now=NOW)
    other.add(PRODUCT, 20, b"evil" * 100)


def _other_root_chain(scene: Scene) -> None:
    _other_root(scene)
    other = Lab(scene.work / "other", now=NOW)
    for version in (2, 3, 4):
        other.signed["root"].version = version
        data = other.write("root", other.signed["root"], "root1", "root2", at=scene.at)
        assert data


def _development_root(scene: Scene) -> None:
    shutil.rmtree(scene.at)
    bench = Lab(scene.at, development=True, now=NOW)
    bench.add(PRODUCT, 20, b"bench" * 100)
    scene.root = bench.root_file


def _turns_to_development(scene: Scene) -> None:
    scene.lab.signed["root"].unrecognized_fields["x-edge-development"] = True
    scene.lab.new_root()
    scene.copy()
    scene.renew = ("root",)
    del scene.lab.signed["root"].unrecognized_fields["x-edge-development"]


def _login_page(scene: Scene) -> None:
    for path in (scene.at / "metadata").iterdir():
        path.write_bytes(b"<html><body>Welcome to the guest network</body></html>")
    scene.file("root").write_bytes(b"<html><body>Welcome to the guest network</body></html>")


def _no_json(scene: Scene) -> None:
    scene.file("timestamp").write_bytes(b'{"signed": {"_type": "timestamp"')


def _deep_json(scene: Scene) -> None:
    scene.file("timestamp").write_bytes(b"[" * 15_000)


def _other_role(scene: Scene) -> None:
    scene.file("timestamp").write_bytes(scene.lab.data["snapshot"])


ATTACKS: tuple[Attack, ...] = (
    Attack("arbitrary software: own timestamp", _arbitrary, "signature"),
    Attack("arbitrary software: own bundle, stolen online key", _arbitrary_bundle, "signature"),
    Attack("rollback: root", _old_root, "rolled_back"),
    Attack("rollback: timestamp and all (an old copy)", _old_state, "rolled_back", {"fresh": "expired"}),
    *(Attack(f"rollback: old {role}", _replay(role), "mixed") for role in ("snapshot", "targets", "product-pcb")),
    Attack(
        "rollback: snapshot, stolen online key", _old_by_online_key("snapshot"), "rolled_back", {"fresh": "expired"}
    ),
    *(
        Attack(f"rollback: {role}, stolen online key", _old_by_online_key(role), "rolled_back", {"fresh": None})
        for role in ("targets", "product-pcb")
    ),
    Attack("rollback: role left out, stolen online key", _left_out_by_online_key, "rolled_back", {"fresh": "mixed"}),
    *(Attack(f"freeze: {role} expired", _frozen(role), "expired") for role in ROLES),
    Attack("freeze: of long ago, for a clock in 1970", _frozen_for_a_dead_clock, "expired"),
    *(Attack(f"mix and match: {role}", _mixed(role), "mixed") for role in ("snapshot", "targets", "product-pcb")),
    *(Attack(f"endless data: {role}", _endless(role), "too_large") for role in (*ROLES, "target")),
    Attack("slow retrieval: timestamp", _slow("timestamp"), "too_slow"),
    Attack("slow retrieval: product-pcb", _slow("product-pcb"), "too_slow"),
    Attack("slow retrieval: target", _slow("target"), "too_slow"),
    Attack("slow retrieval: header", _slow("snapshot", trickle_header), "too_slow"),
    Attack("slow retrieval: no answer", _slow("targets", silent), "too_slow"),
    Attack(
        "slow retrieval: pipe for timestamp", _in_its_place("timestamp", os.mkfifo), "unreadable", {"network": None}
    ),
    Attack("slow retrieval: pipe for target", _in_its_place("target", os.mkfifo), "unreadable", {"network": None}),
    Attack(
        "endless data: link to /dev/zero",
        _in_its_place("snapshot", lambda path: path.symlink_to("/dev/zero")),
        "unreadable",
        {"network": None},
    ),
    Attack("out of the folder: link for metadata", _linked_folder, "unreadable", {"network": None}),
    Attack("extraneous: a file that is not listed", _unlisted, "not_found"),
    Attack("extraneous: a listed file under another description", _altered_offer, "not_found"),
    Attack("extraneous: a path of another product", _foreign_path, "wrong_product"),
    Attack("key compromise: one of three root keys", _one_root_key, "signature"),
    Attack("key compromise: online key signs targets", _online_key_signs_targets, "signature"),
    Attack("key compromise: another product's key", _other_products_key, "wrong_product"),
    Attack("revoked key: root", _revoked_root_key, "revoked_key"),
    Attack("revoked key: timestamp", _revoked_online_key, "revoked_key"),
    Attack("revoked key: product", _revoked_product_key, "revoked_key"),
    Attack("wrong product: none for this device", _only_another_product, "wrong_product"),
    Attack("wrong product: another one's bundle", _other_products_bundle, "wrong_product"),
    *(
        Attack(f"tampered: {role}", _flipped(role), "tampered")
        for role in ("timestamp", "snapshot", "targets", "product-pcb", "target")
    ),
    Attack("tampered: target cut short", _cut_short, "tampered"),
    Attack("wrong root: somebody else's repository", _other_root, "wrong_root"),
    Attack("wrong root: with newer roots of its own", _other_root_chain, "wrong_root"),
    Attack("wrong root: the device's is for development", _development_root, "development_root"),
    Attack("wrong root: becomes one for development", _turns_to_development, "development_root"),
    Attack("malformed: a login page for every file", _login_page, "malformed"),
    Attack("malformed: half a file", _no_json, "malformed"),
    Attack("malformed: nested without end", _deep_json, "malformed"),
    Attack("mixed: another role's file", _other_role, "mixed", {}),
)


def stage(work: Path, kind: str, client: str) -> Scene:
    """The same story for every attack: a repository of 60 days ago and of today, and a device that knows it or not."""
    lab = Lab(work / "honest")
    lab.add(PRODUCT, 1)
    lab.add("ballscrew", 1)
    old = work / "old"
    shutil.copytree(lab.folder, old)
    scene = Scene(
        lab=lab,
        work=work,
        usb=kind == "usb",
        updated=client == "updated",
        at=work / "mirror",
        old=old,
        state=work / "state",
        root=lab.root_file,
        clock=THEN,
    )
    scene.state.mkdir()
    see(scene, lab.folder)
    scene.clock = lab.now = NOW
    lab.change_root_keys("root3", "root4")
    lab.publish("targets")
    lab.add(PRODUCT, 2)
    see(scene, lab.folder)
    lab.list(PRODUCT, 3, bytes([3]) * 3000)
    lab.publish("targets", "product-pcb")
    shutil.copytree(lab.folder, scene.at)
    return scene


def see(scene: Scene, folder: Path) -> None:
    """An updated client has seen what lies there; a fresh one sees nothing."""
    if scene.updated:
        take(scene, FolderMirror(str(folder)), scene.work / "seen")


def take(scene: Scene, source: Mirror, into: Path, root: Path | None = None) -> Path:
    """All that a device does to get the newest bundle of its product."""
    trust = Trust(root or scene.root, scene.state, source, now=lambda: scene.clock)
    trust.refresh()
    return trust.fetch(scene.ask or trust.offers(PRODUCT)[0], into)


def staged(before: Scene, work: Path) -> Scene:
    """The same scene in another folder: it is staged once, and played many times."""
    lab = before.lab.moved(work / "honest")
    for folder in (before.at, before.old, before.state):
        shutil.copytree(folder, work / folder.name, symlinks=True)
    at, old, state = (work / folder.name for folder in (before.at, before.old, before.state))
    return replace(before, lab=lab, work=work, at=at, old=old, state=state, root=lab.root_file, behaviours={})


def attempt(attack: Attack, scene: Scene, web: Web | None) -> tuple[str, str, str]:
    """Attack, then offer the honest repository to the same device.

    Returns:
        The code and the sentence of the refusal, `accepted` for a device that fell for it; and what became of the
        honest repository: `accepted`, or why not.
    """
    attack.do(scene)
    code, text = _try(scene, web)
    return code, text.replace(str(scene.work), ""), _honest(scene, web)


def _try(scene: Scene, web: Web | None) -> tuple[str, str]:
    source: Mirror
    limits = IMPATIENT if scene.slow else None
    if web is None:
        stick = SlowStick(str(scene.at), limits=limits)
        stick.slow = scene.slow
        source = stick
    else:
        web.show(scene.at, scene.behaviours)
        source = mirror(web.address, limits=limits)
    try:
        return "accepted", str(take(scene, source, scene.work / "downloads"))
    except TrustError as error:
        return error.code, str(error).replace(source.address, "ADDRESS")


def _honest(scene: Scene, web: Web | None) -> str:
    """The publisher goes on: renews what expired, publishes the next version."""
    lab = scene.lab
    lab.now = scene.clock = max(scene.clock, NOW)
    scene.ask, scene.root = None, lab.root_file
    if "root" in scene.renew:
        lab.new_root()
    if scene.stolen:
        lab.change_root_keys(lab.signers["timestamp"][0], "online3", "snapshot", "timestamp")
    roles = [role for role in scene.renew if role not in ("root", "product-pcb")]
    content = bytes([5]) * 4000
    lab.list(PRODUCT, 5, content)
    lab.publish(*roles, "product-pcb", *(["targets"] if "targets" not in roles else []))
    if web:
        web.show(lab.folder)
    try:
        got = take(scene, mirror(web.address if web else str(lab.folder)), scene.work / "downloads")
    except TrustError as error:
        return f"{error.code}: {error}"
    return "accepted" if got.read_bytes() == content else "something else"


@dataclass(frozen=True)
class Outcome:
    """What one cell of the matrix came to."""

    attack: Attack
    code: str
    text: str
    honest: str


def run(kind: str, client: str, work: Path) -> list[Outcome]:
    """All attacks of one column."""
    done = []
    (work / "stage").mkdir()
    before = stage(work / "stage", kind, client)
    with serving(before.at) if kind == "network" else nullcontext() as web:
        for number, attack in enumerate(ATTACKS):
            if attack.expected(kind, client) is not None:
                (work / str(number)).mkdir()
                done.append(Outcome(attack, *attempt(attack, staged(before, work / str(number)), web)))
                shutil.rmtree(work / str(number))
    return done


def main() -> int:
    counts: Counter[str] = Counter()
    began = time.monotonic()
    for kind, client in COLUMNS:
        with tempfile.TemporaryDirectory(dir=FAST) as work:
            for done in run(kind, client, Path(work)):
                right = done.code == done.attack.expected(kind, client) and done.honest == "accepted"
                counts["accepted" if done.code == "accepted" else "refused"] += 1
                counts["as expected" if right else "OTHERWISE"] += 1
                print(f"{kind:<8}{client:<8}{done.attack.name:<52}{done.code:<17}{done.text}")
                if not right:
                    print(f"    expected {done.attack.expected(kind, client)}; honest: {done.honest}")
    print(f"{len(ATTACKS)} attacks, {dict(counts)} in {time.monotonic() - began:.1f} s")
    return 1 if counts["accepted"] or counts["OTHERWISE"] else 0


if __name__ == "__main__":
    sys.exit(main())
