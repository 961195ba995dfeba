"""The whole daemon under a simulated PLC on a pty: wire, broker and disk say the same, whatever the cable does."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.genealogy import GenealogyReader
from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.flow.plc_rig import Plc, Station, disagreements, make_daemon, outcomes, words
from tests.flow.rig import PCB, REPOSITORY, Client, Daemon

pytestmark = [needs_mosquitto, pytest.mark.timeout(240)]

TRIES_S = 60.0  # for what takes a second on a quiet machine


class Rig:
    """Broker, daemon, PLC and a client that hears all; ends what it began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = Broker(folder / "broker")
        self.broker.__enter__()
        self.client = Client(self.broker.port)
        self._ended: list[Callable[[], None]] = []

    def start(self, station: Station, *arguments: str, **options: object) -> tuple[Daemon, Plc]:
        """The daemon first, then the PLC as soon as cameras deliver."""
        daemon = make_daemon(self.folder, self.broker.port, station)
        plc = Plc(self.folder, station, list(arguments))
        self._ended += [daemon.end, plc.end]
        plc.start(**options)
        daemon.start()
        return daemon, plc

    def last_word(self) -> None:
        wait_until(lambda: self.client.json("/edge/state")[-1]["state"] == "offline", 20, "the last word")

    def end(self) -> None:
        for each in self._ended:
            each()
        self.client.close()
        self.broker.__exit__(None, None, None)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.end()


def edge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False)


def test_every_trigger_is_answered_and_wire_broker_and_disk_agree(rig: Rig, tmp_path: Path) -> None:
    """Two cameras, three recipes that change at every fifth part, and the copies that people take away."""
    station = Station(cameras=2, recipes=3, queue=1)  # one part at a time: all stamps are exact, also on a busy machine
    daemon, plc = rig.start(station, "--wait-ready", rate=4, triggers=25, recipes="1,2,3", recipe_every=5)
    assert plc.wait(TRIES_S + 30) == 0
    ask(rig, "recipe", {"recipe": "r3"}, "number 3")
    ask(rig, "override", {"part": 1, "verdict": "NG", "operator": "mk", "reason": "scratch"}, "part 1: NG by mk")
    assert edge("audit", "verify", "--state", daemon.state).returncode == 0, "while the daemon runs"
    packed = edge("incident", "export", "--last", "10m", "--state", daemon.state, "--out", tmp_path / "incident.zip")
    assert packed.returncode == 0, packed.stderr
    assert daemon.stop() == 0, daemon.log()
    rig.last_word()
    answers = plc.answers()
    assert disagreements(answers, rig.client, daemon.state) == []
    assert len(answers) == 25 and words(answers)["OK"] + words(answers)["NG"] + words(answers)["REVIEW"] >= 20, answers
    assert {p["recipe"] for p in rig.client.json("/edge/part")} == {"r1", "r2", "r3"}
    assert "Traceback" not in daemon.log()
    check_copies(daemon, tmp_path)
    check_evidence(rig, daemon)


def ask(rig: Rig, verb: str, what: dict[str, object], expected: str) -> None:
    before = len(rig.client.json(f"/response/{verb}"))
    rig.client.publish(f"edge/v1/site/line/edge/request/{verb}", json.dumps({"transaction": verb, **what}).encode())
    wait_until(lambda: len(rig.client.json(f"/response/{verb}")) > before, 20, f"an answer to {verb}")
    answer = rig.client.json(f"/response/{verb}")[-1]
    assert answer["ok"] and expected in answer["text"], answer


def check_copies(daemon: Daemon, folder: Path) -> None:
    written = edge("audit", "export", "--state", daemon.state, "--out", folder / "parts.csv")
    assert written.returncode == 0, written.stderr
    with (folder / "parts.csv").open(encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 25 and lines[0]["final_outcome"] == "NG" and lines[0]["overridden_by"] == "mk"
    again = edge("incident", "replay", folder / "incident.zip", "--bundle", PCB)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "identical" in again.stdout


def check_evidence(rig: Rig, daemon: Daemon) -> None:
    kept = [part for part in rig.client.json("/edge/part") if part["evidence"]]
    worth = [part for part in rig.client.json("/edge/part") if part["looks"] and part["outcome"] != "OK"]
    assert worth and {part["part"] for part in kept} >= {part["part"] for part in worth}
    print([part["missing"] for part in rig.client.json("/edge/part") if part["missing"]])
    for part in kept:
        folder = daemon.state / "evidence" / part["evidence"]
        assert {path.suffix for path in folder.iterdir()} >= {".json", ".png", ".jpg"}, folder


@pytest.mark.parametrize("dialect", ["ascii", "modbus_server", "modbus_client"])
def test_a_cable_that_is_pulled_and_garbage_cost_no_answer(rig: Rig, dialect: str) -> None:
    daemon, plc = rig.start(Station(dialect=dialect), rate=5, triggers=25, pull=2, garbage=5)
    assert plc.wait(TRIES_S + 30) == 0, plc.report()
    assert daemon.stop() == 0, daemon.log()
    rig.last_word()
    report = plc.report()
    assert report["pulls"] == 2 and report["unanswered"] == 0 and not report["contradictions"]
    assert disagreements(plc.answers(), rig.client, daemon.state) == []
    assert report["recovery_s"]["max"] < 5.0
    assert "Traceback" not in daemon.log()


def test_fired_cameras_are_paired_by_count_also_when_triggers_overlap(rig: Rig) -> None:
    """Twice as fast as two frames are judged: what is not refused by name has the frames of its own trigger."""
    daemon, plc = rig.start(Station(cameras=2, fired=True, queue=2), rate=12, triggers=40)
    assert plc.wait(TRIES_S + 30) == 0, plc.report()
    assert daemon.stop() == 0, daemon.log()
    rig.last_word()
    assert disagreements(plc.answers(), rig.client, daemon.state) == []
    judged = [part for part in rig.client.json("/edge/part") if len(part["looks"]) == 2]
    assert len(judged) >= 5, plc.report()
    frames = [tuple(look["frame"] for look in part["looks"]) for part in judged]
    told = [(part["trigger"], [(look["frame"], look["offset_ms"]) for look in part["looks"]]) for part in judged]
    # Each trigger fires both cameras once, refused ones too; one that was up later has counted fewer from the start.
    assert len({first - second for first, second in frames}) == 1, told


def test_no_ok_without_its_row_whenever_the_daemon_is_killed(rig: Rig) -> None:
    kill_at_random(rig, times=3, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_ok_without_its_row_at_a_hundred_kills(rig: Rig) -> None:
    kill_at_random(rig, times=100, seed=6)


def kill_at_random(rig: Rig, times: int, seed: int) -> None:
    """What the PLC heard is compared with the disk after each kill, before anything could be mended."""
    station, chance = Station(budget_ms=3000.0), random.Random(seed)
    daemon, plc = rig.start(station, rate=8, seconds=24 * 3600)
    for i in range(times):
        daemon.wait_log("first verdict", TRIES_S, times=i + 1)
        time.sleep(chance.uniform(0.0, 1.5))
        daemon.kill()
        rows = outcomes(daemon.state)
        time.sleep(0.3)  # what was on the wire has arrived
        said = [a["result_id"] for a in plc.answers() if a["word"] == "OK"]
        assert [part for part in said if rows.get(part) != "OK"] == [], f"kill {i + 1}"
        assert edge("audit", "verify", "--state", daemon.state).returncode == 0
        daemon.start()
    daemon.wait_log("first verdict", TRIES_S, times=times + 1)
    plc.process.send_signal(2)
    plc.wait(TRIES_S)
    assert daemon.stop() == 0, daemon.log()
    rig.last_word()
    report = plc.report()
    assert report["answered"]["OK"] > times, "there was something to lose"
    assert report["result_ids_increasing"] and not report["contradictions"], report
    health = rig.client.json("/health")[-1]
    assert health["balanced"] and health["in_flight"] == 0
    with GenealogyReader(daemon.state / "genealogy.db") as reader:
        kinds = [row.kind for row in reader.rows()]
    print(json.dumps({"kills": times, "rows": len(kinds), "void": kinds.count("void"), "ledger": health["ledger"],
                      "words": report["answered"]}))  # fmt: skip


def test_a_station_without_its_plc_or_with_a_camera_that_has_ended_says_so_and_goes_on(rig: Rig) -> None:
    ends = '[[camera]]\nid = "short"\nsource = "simulated"\nboards = 2\n'
    daemon = make_daemon(rig.folder, rig.broker.port, Station(more=ends))
    daemon.start()
    try:
        wait_until(lambda: rig.client.json("/alarm/plc"), TRIES_S, "the alarm")
        alarm = rig.client.json("/alarm/plc")[-1]
        assert str(rig.folder / "plc") in alarm["text"] and "Check the serial cable" in alarm["advice"]
        wait_until(lambda: rig.client.json("/edge/line"), TRIES_S, "what the PLC is shown at all")
        assert rig.client.json("/edge/line")[-1]["link"] == "reconnecting"
        wait_until(lambda: rig.client.json("/alarm/camera_short"), TRIES_S, "the camera's alarm")
        assert "has ended" in rig.client.json("/alarm/camera_short")[-1]["text"]
        wait_until(lambda: rig.client.json("/edge/line")[-1]["error"] == "camera", TRIES_S, "what the PLC is shown")
        assert daemon.stop() == 0, daemon.log()
    finally:
        daemon.end()


@pytest.mark.parametrize(
    ("more", "expected", "why"),
    [
        ('[[output]]\nid = "x"\non = ["NG"]\n', "give delay_ms or delay_counts", "an output without a delay"),
        ("baudrate = 9600\n", "plc.baudrate: unknown key; did you mean `baud`?", "a slip"),
    ],
)
def test_a_config_that_cannot_be_is_one_message(rig: Rig, more: str, expected: str, why: str) -> None:
    daemon = make_daemon(rig.folder, rig.broker.port, Station(more=more))
    assert daemon.start().wait(30) == 2, why
    assert expected in daemon.log() and "Traceback" not in daemon.log()
