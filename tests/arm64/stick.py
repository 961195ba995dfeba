"""A publisher on the host, and the folder that plays the stick which carries its bundles to the emulated box."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from tests.arm64 import line
from tests.arm64.guest import Done, Guest
from tests.arm64.report import Report, expect
from tools.publish import main as publish

PLACE = "/run/edge-usb/sda1"  # where the importer's script mounts a stick
TRUST = "/mnt/trust"
IMPORT_S = 3600.0
TRIED_S = 1800.0
PART_S = 60.0  # between parts: a new bundle is looked at in the time that they leave
# As systemd/edge-import calls it: as the user edge, with nothing of root's left.
AS_EDGE = (
    "/usr/bin/setpriv", "--reuid=edge", "--regid=edge", "--init-groups", "--inh-caps=-all", "--bounding-set=-all",
    "--no-new-privs", "--reset-env", "/usr/bin/env", "PYTHONUNBUFFERED=1", "OPENCV_LOG_LEVEL=ERROR",
)  # fmt: skip
# The emulated box takes ten seconds and more for a part, and its times mean nothing: one part in shadow, one in charge.
TRIAL = (
    "[trial]\nshadow_parts = 1\nshadow_minutes = 5.0\nparts = 1\nminutes = 0.0\nreject_rise = 1.0\n"
    "latency_factor = 100.0\n"
)


class Publisher:
    """Keys and a repository of one product on the host.

    Args:
        folder: for all of it; what was there goes.
        bundle: what is published, in ever newer versions.
    """

    def __init__(self, folder: Path, bundle: Path) -> None:
        self._folder, self._bundle = folder, bundle
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.product, self.version = manifest["product"], int(manifest["version"])
        self.repository = folder / "repository"
        publish(["keys", str(folder / "keys"), "--products", self.product, "--plain"])
        roots = [self._key(f"root-{k}") for k in (1, 2, 3)]
        named = f"{self.product}={self._key(f'product-{self.product}')}"
        others = ["--targets", self._key("targets"), "--online", self._key("online"), "--products", named]
        publish(["init", str(self.repository), "--roots", *roots, *others])

    @property
    def root(self) -> Path:
        """What a device is to trust."""
        return self.repository / "metadata/1.root.json"

    def add(self) -> int:
        """Publish the bundle under the next version; which that is."""
        self.version += 1
        copy = self._folder / f"{self.product}-{self.version}"
        shutil.copytree(self._bundle, copy)
        path = copy / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": self.version}))
        keys = [self._key(f"product-{self.product}"), self._key("online")]
        publish(["add", str(self.repository), str(copy), "--keys", *keys])
        return self.version

    def stick(self, name: str) -> Path:
        """A folder that holds a copy of the repository."""
        stick = self._folder / name
        shutil.copytree(self.repository, stick / "edge-bundles")
        return stick

    def _key(self, name: str) -> str:
        return str(self._folder / "keys" / name / f"{name}.key")


def bring(guest: Guest, stick: Path, log: Path) -> Done:
    """Mount the stick as the importer does, and import from it as the importer does; no network."""
    mounts = ["stick:", str(stick.resolve()), PLACE, "noexec:", str(guest.path(line.STATE).resolve()), line.STATE]
    command = (*AS_EDGE, "/opt/edge/current/bin/edge", "bundle", "import", PLACE, "--config", line.CONFIG)
    return guest.run(*command, mounts=mounts, timeout_s=IMPORT_S, log=log)


def status(guest: Guest) -> Any:
    """What `edge bundle status --json` says."""
    return json.loads(guest.must("/usr/local/bin/edge", "bundle", "status", "--json").out)


def check(guest: Guest, bundle: Path, work: Path, report: Report) -> None:
    """A bundle from a stick: refused, trusted, proved, tried beside the one in charge, kept, rolled back."""
    publisher = Publisher(work / "publisher", bundle)
    before, newer = publisher.version, publisher.add()
    stick = publisher.stick("stick")
    truth = line.place_images(guest, bundle)
    line.write_config(guest, 1883, TRIAL)
    _refused(guest, stick, work, "no_root", "before anybody is trusted", before, report)
    _trust(guest, publisher.root, report)
    with line.running(guest, work, "changeover", TRIAL, PART_S) as watched:
        _wait_stage(watched, "committed", before)
        _install(guest, stick, work, publisher.product, newer, report)
        _check_kept(watched, newer, report)
        _check_status(guest, newer, before, report)
        publisher.add()
        _refused(guest, _spoiled(publisher), work, "tampered", "with one byte changed in a bundle", newer, report)
        _roll_back(guest, watched, before, truth, report)
        line.check_stop(watched, report)


def _trust(guest: Guest, root: Path, report: Report) -> None:
    mounts = ["stick:", str(root.parent.resolve()), TRUST]
    done = guest.run("/usr/local/bin/edge", "bundle", "trust", f"{TRUST}/{root.name}", mounts=mounts)
    expect(done.code == 0, f"edge bundle trust: {done.said}")
    report.show(f"edge bundle trust: {done.out.strip()}")


def _refused(
    guest: Guest, stick: Path, work: Path, code: str, when: str, active: int, report: Report
) -> None:  # fmt: skip
    done = bring(guest, stick, work / f"import-{code}.log")
    expect(done.code == 2 and f"code: {code}\n" in done.out, f"{when} the stick gave {done.code}: {done.said}")
    held = status(guest)["active"]
    expect(held["version"] == active, f"{when} the stick changed what is active: {held['version']}")
    reason = next(text for text in done.out.splitlines() if text.startswith(("REFUSED", "FAILED")))
    report.show(f"a stick {when}: {reason} (code {code}); {active} stays")


def _spoiled(publisher: Publisher) -> Path:
    stick = publisher.stick("spoiled")
    newest = max((stick / "edge-bundles/targets").rglob("*.tar.gz"), key=lambda path: path.name.split("-")[-1])
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    return stick


def _install(guest: Guest, stick: Path, work: Path, product: str, version: int, report: Report) -> None:
    began_s = time.monotonic()
    done = bring(guest, stick, work / "import.log")
    seconds = time.monotonic() - began_s
    expect(done.code == 0 and "INSTALLED" in done.out, f"the import ended with {done.code}: {done.said}")
    report.show(f"{done.out.splitlines()[2]} (in {seconds:.0f} s)", import_s=round(seconds))
    found = status(guest)
    held = found["candidate"] or found["active"]
    expect((held["product"], held["version"]) == (product, version), f"brought was {held}")
    for proof in held["passport"]["proofs"]:
        expect(not proof.get("problems"), f"{proof['file']} was not proved: {proof}")
        ms = proof["frame_ms"]["p50"] if proof.get("frame_ms") else float("nan")
        agreement = {key: proof["agreement"][key] for key in ("boxes", "lost", "extra", "changed")}
        report.show(f"proved: {proof['file']} on {proof['runtime']}, {agreement}, {ms / 1e3:.1f} s a frame here")
    expect(held["picked"].endswith(".onnx"), f"picked was {held['picked']!r}")


def _wait_stage(watched: line.Watched, stage: str, version: int) -> None:
    """Until `bundle` says that this one is in charge, at that stage."""

    def told() -> bool:
        last = watched.messages("/bundle")[-1:]
        return bool(last and (last[0]["stage"], last[0]["active"]["version"]) == (stage, version))

    watched.supervisor.wait(told, TRIED_S, f"{version} {stage} on `bundle`")


def _check_kept(watched: line.Watched, version: int, report: Report) -> None:
    """The daemon has it run in shadow, takes it over, and keeps it."""
    _wait_stage(watched, "committed", version)
    stages = [(told["stage"], told["active"]["version"]) for told in watched.messages("/bundle")]
    order = [stage for n, stage in enumerate(stages) if n == 0 or stage != stages[n - 1]]
    told = watched.messages("/bundle")[-1]
    expect(told["active"]["signed"] and told["active"]["origin"] == "usb", f"it came from {told['active']}")
    expect(("shadow", version - 1) in order and ("trial", version) in order, f"it came by {order}")
    report.show(f"on `bundle`: {', '.join(f'{stage} {number}' for stage, number in order)}; signed, from usb")


def _check_status(guest: Guest, active: int, previous: int, report: Report) -> None:
    found = status(guest)
    held = found["active"]
    said = (held["version"], held["signed"], held["origin"], found["previous"]["version"], found["candidate"])
    expect(said == (active, True, "usb", previous, None), f"edge bundle status --json says {said}")
    report.show(f"edge bundle status --json: active {active}, signed, from usb, {held['picked']}; previous {previous}")


def _roll_back(
    guest: Guest, watched: line.Watched, version: int, truth: dict[str, str], report: Report
) -> None:  # fmt: skip
    done = guest.must("/usr/local/bin/edge", "bundle", "rollback", "--reason", "to show that it can be done")
    report.show(f"edge bundle rollback: {done.out.strip()}")
    _wait_stage(watched, "committed", version)
    digest = watched.messages("/bundle")[-1]["active"]["digest"]
    seen = len(watched.messages("/result"))
    watched.supervisor.wait(
        lambda: any(r["bundle_digest"] == digest for r in watched.messages("/result")[seen:]), TRIED_S, "a result by it"
    )
    results = watched.messages("/result")
    wrong = [r["name"] for r in results if truth[r["name"]] != r["verdict"]]
    expect(not wrong, f"wrong verdicts on {', '.join(wrong)}")
    report.show(f"{version} is in charge again and judges; all {len(results)} results of this run are right")
