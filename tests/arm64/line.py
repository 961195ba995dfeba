"""A line that the emulated box inspects: golden images from a folder, a broker on the host, the service by its unit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.arm64.guest import Guest
from tests.arm64.report import Report, expect
from tests.arm64.supervisor import Supervisor
from tests.arm64.unit import Service, read
from tests.brokers import Broker, Reader

UNIT = "/etc/systemd/system/edge.service"
# An inference takes some ten seconds here, twice that on a busy host. That is a box which a site would give more time,
# by a drop-in as below; what is measured is told against the unit's own limit, too.
DROP_IN = f"{UNIT}.d/emulated.conf"
SLOW_BOX = "[Service]\nWatchdogSec=90\nTimeoutStartSec=300\nTimeoutStopSec=60\n"
CONFIG = "/etc/edge/edge.toml"
STATE = "/var/lib/edge"
IMAGES = "/srv/line"
RESULTS = 3
TRIES = 3
TOO_BUSY = "in a trial process"  # a limit of time that no real device comes near
PART_S = 120.0  # within which a part is judged, at the worst


def service_of(guest: Guest) -> Service:
    """The installed unit, with the drop-in of a slow box."""
    drop_in = guest.path(DROP_IN)
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(SLOW_BOX)
    return read(guest.path(UNIT), drop_in)


def write_config(guest: Guest, port: int, more: str = "", part_s: float = 25.0) -> None:
    """The site config: the golden images of `pcb` come by, over and over, at a pace that the emulation can keep."""
    config = guest.path(CONFIG)
    config.write_text(
        f'[[camera]]\nid = "cam1"\nsource = "folder"\npath = "{IMAGES}"\nfps = {1 / part_s:.4f}\nloop = true\n'
        f'[station]\nnode = "arm64"\n[mqtt]\nport = {port}\n[publish]\nhealth_s = 5.0\n{more}'
    )
    guest.must("/usr/bin/chown", "root:edge", CONFIG)
    config.chmod(0o640)
    guest.must("/usr/local/bin/edge", "check-config", "--config", CONFIG)


def place_images(guest: Guest, bundle: Path) -> dict[str, str]:
    """Put the golden images where the camera looks; the verdict that each has to get."""
    golden = json.loads((bundle / "golden/expected.json").read_text())
    folder = guest.path(IMAGES)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for sample in golden["samples"]:
        shutil.copy(bundle / sample["file"], folder)
    return {Path(sample["file"]).name: sample["verdict"] for sample in golden["samples"]}


class Watched:
    """A service that runs, and what its broker hears of it."""

    def __init__(self, supervisor: Supervisor, reader: Reader) -> None:
        self.supervisor = supervisor
        self._reader = reader

    def messages(self, ending: str) -> list[dict[str, Any]]:
        """Payloads on topics that end so; cleared ones are left out."""
        heard = list(self._reader.heard)
        return [json.loads(payload) for topic, payload, _ in heard if payload and topic.endswith(ending)]

    def wait_for(self, ending: str, n: int, timeout_s: float) -> list[dict[str, Any]]:
        """Wait until so many came."""
        self.supervisor.wait(lambda: len(self.messages(ending)) >= n, timeout_s, f"{n} messages on .../{ending}")
        return self.messages(ending)

    def ask(self, verb: str, request: dict[str, object]) -> None:
        """Send a request, as a person's client would."""
        topic = next(topic for topic, _, _ in list(self._reader.heard) if topic.endswith("/info"))
        self._reader.publish(f"{topic.removesuffix('info')}request/{verb}", json.dumps(request).encode())


@contextmanager
def running(guest: Guest, work: Path, name: str, more: str = "", part_s: float = 25.0) -> Iterator[Watched]:
    """The service by its unit, ready, on a broker of its own; a part comes every `part_s` seconds."""
    service = service_of(guest)
    with Broker(work / f"broker-{name}") as broker, Reader(broker.port) as reader:
        write_config(guest, broker.port, more, part_s)
        with Supervisor(guest, service, work / f"{name}.log") as supervisor:
            supervisor.wait(lambda: supervisor.said("READY=1"), service.start_s, "READY=1")
            yield Watched(supervisor, reader)


def check_service(guest: Guest, work: Path, truth: dict[str, str], report: Report) -> None:
    """One run of the service from start to stop."""
    with running(guest, work, "service") as watched:
        supervisor, service = watched.supervisor, watched.supervisor.service
        ready_s = supervisor.said("READY=1")[0].mono_s - supervisor.started_s
        report.show(f"ExecStart: {' '.join(service.command)}")
        report.show(f"READY=1 after {ready_s:.1f} s: {_status(supervisor)}", ready_s=round(ready_s, 1))
        _check_identity(supervisor, service, report)
        _check_info(watched, report)
        _check_results(watched, truth, report)
        _check_watchdog(supervisor, report)
        check_stop(watched, report)


def _status(supervisor: Supervisor) -> str:
    lines = [line for note in supervisor.notes for line in note.text.split("\n") if line.startswith("STATUS=")]
    return lines[-1].removeprefix("STATUS=") if lines else "no status"


def _check_identity(supervisor: Supervisor, service: Service, report: Report) -> None:
    """It is who the unit says, without a privilege."""
    assert supervisor.process is not None
    text = Path(f"/proc/{supervisor.process.pid}/status").read_text()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}
    uid = int(status["Uid"][1])
    expect(uid != 0 and len(set(status["Uid"])) == 1, f"it runs as user {status['Uid']}")
    if service.no_new_privileges:
        expect(status["NoNewPrivs"] == ["1"], "it could gain privileges")
    names = ("CapEff", "CapPrm", *(["CapBnd"] if service.no_capabilities else []))
    capabilities = {name: status[name][0] for name in names}
    expect(set(capabilities.values()) == {"0" * 16}, f"it has capabilities: {capabilities}")
    report.show(
        f"runs as {service.user} ({uid}), groups {' '.join(status['Groups'])}, no capability, no new privileges"
    )


def _check_info(watched: Watched, report: Report) -> None:
    info = watched.wait_for("/info", 1, 60)[-1]
    expect(info["machine"] == "aarch64" and "onnxruntime" in info["runtime"], f"info says {info}")
    report.show(f"info: {info['machine']}, Python {info['python']}, {info['bundle']} on {info['runtime']}")


def _check_results(watched: Watched, truth: dict[str, str], report: Report) -> None:
    results = watched.wait_for("/camera/cam1/result", RESULTS, RESULTS * PART_S)
    wrong = [f"{r['name']}: {r['verdict']}" for r in results if truth[r["name"]] != r["verdict"]]
    expect(not wrong, f"over MQTT came {', '.join(wrong)}, and not {truth}")
    said = ", ".join(f"{r['name']} {r['verdict']} in {r['latency_ms'] / 1e3:.1f} s" for r in results)
    report.show(f"over MQTT: {said}", results=len(results))


def _check_watchdog(supervisor: Supervisor, report: Report) -> None:
    supervisor.wait(lambda: len(supervisor.said("WATCHDOG=1")) >= 2, 3 * supervisor.service.watchdog_s, "WATCHDOG=1")
    silent_s = supervisor.longest_silence_s()
    expect(silent_s < supervisor.service.watchdog_s, f"no sign of life for {silent_s:.1f} s")
    report.show(
        f"{len(supervisor.said('WATCHDOG=1'))} signs of life, at most {silent_s:.1f} s apart",
        silent_s=round(silent_s, 1),
    )


def check_stop(watched: Watched, report: Report) -> None:
    """SIGTERM: it says that it stops, ends well in time, and has accounted for each trigger."""
    code, seconds = watched.supervisor.stop()
    expect(code == 0, f"exit code {code} after SIGTERM: {watched.supervisor.tail()}")
    expect(watched.supervisor.said("STOPPING=1"), "no STOPPING=1 was notified")
    books = watched.messages("/ledger")[-1]
    state = watched.messages("/state")[-1]["state"]
    counts = books["ledger"]
    total = sum(counts["verdicts"].values()) + sum(counts["losses"].values())
    expect(books["balanced"] and books["in_flight"] == 0 and counts["triggers"] == total, f"the ledger says {books}")
    expect(state == "offline", f"the last state is {state}")
    expect("Traceback" not in watched.supervisor.log(), f"a traceback in {watched.supervisor.tail()}")
    report.show(
        f"SIGTERM: STOPPING=1, exit code 0 after {seconds:.1f} s; triggers {counts['triggers']} = "
        f"{counts['verdicts']} + {counts['losses']}, nothing in flight: balanced", stop_s=round(seconds, 1),
    )  # fmt: skip


def install_first_bundle(guest: Guest, place: str, report: Report) -> None:
    """By hand, from a folder: what a box has before it knows whom to trust."""
    command = ("/usr/local/bin/edge", "bundle", "install", place, "--unsigned")
    done = guest.run(*command, timeout_s=3600)
    for _ in range(TRIES - 1):
        if TOO_BUSY not in done.said:
            break
        report.show(f"the host is too busy, so it is tried again: {done.said.splitlines()[-1].strip()}")
        done = guest.run(*command, timeout_s=3600)
    expect(done.code == 0, f"edge bundle install ended with {done.code}: {done.said}")
    expect(guest.path(f"{STATE}/bundles/active").is_symlink(), f"no bundle is active: {done.said}")
    report.show(done.out.strip().splitlines()[-1])
