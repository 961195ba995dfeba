"""Bundles come and go while a real daemon judges: shadow, swap, commit, return, rollback; nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edge.bundle import manifest as manifests
from edge.bundle import slots
from edge.genealogy import GenealogyReader
from tests.brokers import Broker, needs_mosquitto, wait_until
from tests.bundle.tiny_bundle import install
from tests.flow.rig import PCB, Client, Daemon
from tests.successors import successor

pytestmark = needs_mosquitto

FIRST = manifests.read_unverified(PCB).version
TRIAL = "[trial]\nshadow_parts = 20\nshadow_minutes = 0.5\nparts = 6\nminutes = 0.0\n"
CAMERA = '[[camera]]\nid = "cam1"\nsource = "simulated"\nfps = 5.0\nfault_rate = 0.0\n'
# No frame is bright enough for its gate: every part is a RETAKE.
HARSH = {"brightness_min = 32.0": "brightness_min = 254.0"}
# The simulated line is not the one of the bundle's baseline.
CALM = "\n[drift]\nuse = false\n"


class Box:
    """A daemon that serves the slots of its state folder, with its broker and a client."""

    def __init__(self, folder: Path, more: str = TRIAL) -> None:
        self.folder = folder
        self.broker = Broker(folder / "broker")
        self.broker.start()
        self.client = Client(self.broker.port)
        self.daemon = Daemon(folder, self.broker.port, CAMERA, more=more)
        self.state = self.daemon.state
        text = self.daemon.config.read_text().replace(f'bundle = "{PCB}"\n', "")
        self.daemon.config.write_text(text)
        install(successor(PCB, folder / "first", FIRST, more=CALM), self.state)

    def newer(self, version: int, recipe: Mapping[str, str] | None = None) -> Path:
        """Stage a successor, as an installer does; its slot."""
        slot = slots.put(successor(PCB, self.folder / f"v{version}", version, recipe, CALM), self.state)
        slots.stage(self.state, slot, signed=False, origin="local")
        return slot

    def told(self) -> list[dict[str, Any]]:
        return self.client.json("/edge/bundle")

    def wait_told(self, check: Callable[[dict[str, Any]], object], what: str, limit_s: float = 60) -> dict[str, Any]:
        try:
            wait_until(lambda: any(check(told) for told in self.told()), limit_s, f"{what} on `bundle`")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.told()[-1:]}; {self.daemon.log()}") from None
        return next(told for told in self.told() if check(told))

    def wait_results(self, more: int) -> None:
        have = len(self.client.json("/result"))
        wait_until(lambda: len(self.client.json("/result")) >= have + more, 60, f"{more} results more")

    def ask(self, verb: str, **fields: str) -> dict[str, Any]:
        have = len(self.client.json(f"/response/{verb}"))
        topic = f"edge/v1/site/line/edge/request/{verb}"
        self.client.publish(topic, json.dumps({"transaction": f"t-{verb}-{have}", **fields}).encode())
        wait_until(lambda: len(self.client.json(f"/response/{verb}")) > have, 20, f"an answer to {verb}")
        return self.client.json(f"/response/{verb}")[-1]

    def end(self) -> None:
        self.daemon.end()
        self.client.close()
        self.broker.stop()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.end()


def test_a_newer_bundle_is_seen_in_shadow_swapped_and_kept_and_no_part_is_lost(box: Box) -> None:
    box.daemon.start()
    box.wait_told(lambda told: told["active"]["version"] == FIRST, "the first bundle")
    slot = box.newer(FIRST + 1)
    shadow = box.wait_told(lambda told: told["stage"] == "shadow" and told["shadow"], "the shadow")
    assert (shadow["candidate"]["version"], shadow["active"]["version"]) == (FIRST + 1, FIRST)
    box.wait_told(lambda told: told["stage"] == "trial" and told["active"]["version"] == FIRST + 1, "the trial")
    done = box.wait_told(lambda told: told["last"] and told["last"]["outcome"] == "committed", "the commit")
    assert (done["stage"], done["previous"]["version"], done["candidate"]) == ("committed", FIRST, None)
    box.wait_results(2)
    assert box.daemon.stop() == 0, box.daemon.log()
    assert slots.active(box.state) == slot
    assert done["shadow"]["agreed"] == done["shadow"]["seen"] >= 1, "the same models agree"
    assert done["trial"]["parts"] >= done["trial"]["wanted"] == 6
    digests = [result["bundle_digest"] for result in box.client.json("/result")]
    swap = digests.index(manifests.digest(manifests.read(slot)))
    assert len(set(digests)) == 2 and len(set(digests[swap:])) == 1, "the results say which bundle judged"
    assert box.client.json("/edge/info")[-1]["bundle"] == f"pcb {FIRST + 1}"
    ledger = box.client.json("/edge/ledger")[-1]
    assert ledger["balanced"] and ledger["ledger"]["losses"].get("processing_fault", 0) == 0
    with GenealogyReader(box.state / "genealogy.db") as rows:
        assert [row.content["slot"] for row in rows.rows() if row.kind == "bundle"] == [slot.name]


def test_a_bundle_that_judges_otherwise_never_comes_into_charge(box: Box) -> None:
    box.daemon.start()
    box.wait_results(1)
    box.newer(FIRST + 1, HARSH)
    told = box.wait_told(lambda told: told["last"] and told["last"]["outcome"] == "refused", "the refusal")
    assert told["last"]["code"] == "disagreement" and "trial.disagree_max" in told["last"]["text"]
    assert (told["stage"], told["active"]["version"], told["candidate"]) == ("committed", FIRST, None)
    seen = box.client.json("/bundle/disagreement")
    assert {one["candidate"] for one in seen} == {"RETAKE"} and seen[0]["candidate_reasons"]
    wait_until(lambda: box.client.json("/alarm/bundle"), 10, "the alarm")
    assert "goes on" in box.client.json("/alarm/bundle")[-1]["text"]
    folder = box.state / "evidence" / seen[0]["evidence"]
    wait_until(lambda: (folder / "part.json").exists() or list(folder.glob("*.json")), 10, "the evidence")
    assert folder.name.endswith("-shadow-cam1") and list(folder.glob("*.jpg"))
    assert box.daemon.stop() == 0, box.daemon.log()
    assert slots.active(box.state).name.startswith(f"pcb-{FIRST}-")


def test_a_bundle_that_rejects_far_more_is_returned_by_itself(tmp_path: Path) -> None:
    more = "[trial]\nshadow_parts = 0\nparts = 60\nminutes = 0.0\nreject_rise = 0.05\n"
    box = Box(tmp_path, more)
    try:
        box.daemon.config.write_text(box.daemon.config.read_text().replace("fps = 5.0", "fps = 8.0"))
        box.daemon.start()
        box.wait_results(55)  # until it is known what is usual
        box.newer(FIRST + 1, HARSH)
        told = box.wait_told(
            lambda told: told["last"] and told["last"]["outcome"] == "returned" and told["active"]["version"] == FIRST,
            "the return",
        )
        assert told["last"]["code"] == "rejects" and "trial.reject_rise" in told["last"]["text"]
        wait_until(lambda: box.client.json("/edge/info")[-1]["bundle"] == f"pcb {FIRST}", 10, "the old one again")
        box.wait_results(2)
        assert box.daemon.stop() == 0, box.daemon.log()
        assert box.client.json("/edge/ledger")[-1]["balanced"]
    finally:
        box.end()


def test_a_person_rolls_back_and_the_line_goes_on(box: Box) -> None:
    box.newer(FIRST + 1)
    slots.activate(box.state)
    slots.commit(box.state)
    box.daemon.start()
    box.wait_told(lambda told: told["active"]["version"] == FIRST + 1, "the newer bundle")
    assert not box.ask("rollback", reason=" ")["ok"], "a reason is asked for"
    answer = box.ask("rollback", reason="too many rejects at night")
    assert answer["ok"], answer
    told = box.wait_told(lambda told: told["active"]["version"] == FIRST, "the older bundle")
    assert told["last"]["text"] == "too many rejects at night"
    box.wait_results(2)
    assert box.daemon.stop() == 0, box.daemon.log()


def test_a_bundle_that_kills_the_daemon_goes_back_after_three_starts(box: Box) -> None:
    slot = box.newer(FIRST + 1)
    slots.activate(box.state)
    (box.state / "trials").mkdir(exist_ok=True)
    for start in range(3):
        box.daemon.start()
        box.daemon.wait_log("first verdict", times=start + 1)
        box.daemon.kill()
    box.daemon.start()
    told = box.wait_told(lambda told: told["last"] and told["last"]["outcome"] == "returned", "the return")
    assert told["active"]["version"] == FIRST and "start" in told["last"]["text"]
    wait_until(lambda: box.client.json("/alarm/bundle"), 10, "the alarm")
    assert slot.name in box.client.json("/alarm/bundle")[-1]["text"]
    assert box.daemon.stop() == 0
