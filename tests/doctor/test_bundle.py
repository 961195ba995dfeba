"""The bundle in charge, on real slots: whole or damaged, proved here or elsewhere, on trial or returned."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from edge import loading
from edge.bundle import manifest as manifests
from edge.bundle import passport, slots
from edge.bundle.passport import DevicePassport, Proof
from edge.config import Config, Paths, Runtime, SimulatedCamera
from edge.doctor import bundle
from edge.doctor.context import Context
from edge.doctor.system import System
from edge.event import StageTimes
from tests.bundle.tiny_bundle import install, make_bundle
from tests.doctor.boxes import codes, raspberry, wrong
from tests.flow.rig import PCB


def look(state: Path, **paths: str):
    config = Config(camera=[SimulatedCamera(id="a")], paths=Paths(state=str(state), **paths))
    found = list(bundle.check(Context(System(), config)))
    assert all(f.fix for f in found if f.severity in ("error", "warning", "unknown"))
    return found


def prove(slot: Path, **changes) -> None:
    manifest = manifests.read(slot)
    ms = StageTimes(p50=28.0, p99=31.0, max=40.0)
    artifact = manifest.artifacts[0]
    proof = Proof(
        file=artifact.file, runtime=artifact.runtime, precision=artifact.precision, frame_ms=ms, predict_ms=ms
    )
    made = DevicePassport(
        bundle="pcb 1", digest=manifests.digest(manifest), here=loading.here(Runtime()), ts=time.time(), samples=8,
        proofs=[proof],
    )  # fmt: skip
    passport.write(slot, msgspec.structs.replace(made, **changes))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The bundle as shipped, installed and proved."""
    install(PCB, tmp_path)
    prove(slots.active(tmp_path))
    return tmp_path


def test_a_bundle_that_is_whole_and_proved(state: Path) -> None:
    found = look(state)
    assert wrong(found) == []
    assert codes(found)["proved"].data["p50_ms"] == 28.0
    assert "no_previous" in codes(found)


def test_a_damaged_file(state: Path) -> None:
    file = slots.active(state) / "recipe.toml"
    file.write_bytes(file.read_bytes() + b"#")
    found = look(state)
    assert wrong(found) == ["error:damaged"]
    assert "recipe.toml: altered" in codes(found)["damaged"].text and "--only disk" in codes(found)["damaged"].fix


def test_no_bundle_and_none_of_a_box_without_a_config(tmp_path: Path) -> None:
    assert wrong(look(tmp_path)) == ["error:none"]
    assert codes(bundle.check(Context(raspberry(tmp_path / "box"))))["none"].severity == "info"


def test_a_user_who_may_not_look(tmp_path: Path) -> None:
    box = raspberry(tmp_path, uid=1000, denied=("/var/lib/edge",))
    box.put("/var/lib/edge/x")
    assert wrong(bundle.check(Context(box))) == ["unknown:unseen"]


def test_a_bundle_for_another_device(tmp_path: Path) -> None:
    install(make_bundle(tmp_path / "source", 3), tmp_path / "state")
    found = codes(look(tmp_path / "state"))
    assert found["does_not_fit"].severity == "error"
    assert found["no_passport"].severity == "warning"


def test_a_passport_of_another_bundle_or_of_the_box_as_it_was(state: Path) -> None:
    slot = slots.active(state)
    prove(slot, digest="0" * 64)
    assert wrong(look(state)) == ["warning:passport_of_another"]
    then = loading.here(Runtime(threads=3))
    prove(slot, here=msgspec.structs.replace(then, versions={**then.versions, "paddlelite": "2.12"}))
    found = codes(look(state))["passport_stale"]
    assert "threads was 3, is 1" in found.text and "paddlelite was 2.12" in found.text


def test_no_model_that_agrees(state: Path) -> None:
    slot = slots.active(state)
    bad = Proof(file="a.nb", runtime="paddlelite", precision="int8", problems=["3 of 40 boxes lost"])
    prove(slot, proofs=[bad])
    assert wrong(look(state)) == ["error:none_passed"]


def test_a_bundle_on_trial_and_one_that_was_returned(state: Path, tmp_path: Path) -> None:
    new = slots.put(make_bundle(tmp_path / "new", 900), state)
    slots.stage(state, new, signed=True, origin="usb")
    assert "beside the active one" in codes(look(state))["trial"].text
    slots.activate(state)
    found = look(state)
    assert "in charge, on trial" in codes(found)["trial"].text
    assert any("the previous bundle is pcb" in f.text for f in found)
    slots.go_back(state, "latency", "a frame took 3.1 times as long")
    found = look(state)
    assert wrong(found) == ["warning:trial_returned"]
    assert "3.1 times" in codes(found)["trial_returned"].text


def test_a_trial_that_lasts_too_long(state: Path, tmp_path: Path) -> None:
    slots.stage(state, slots.put(make_bundle(tmp_path / "new", 900), state), signed=True, origin="usb")
    mark = slots.read_trial(state)
    assert mark is not None
    assert [f.code for f in bundle._trial(mark, mark.began + 3 * 86_400)] == ["trial_long"]


def test_a_damaged_previous_bundle_is_a_warning(state: Path, tmp_path: Path) -> None:
    install(PCB, tmp_path / "other")
    second = make_bundle(tmp_path / "second", 2)
    install(second, state)
    (slots.active(state).parent / slots.previous(state).name / "CARD.md").write_text("x")
    assert "warning:previous_damaged" in wrong(look(state))


def test_a_bundle_by_hand(state: Path) -> None:
    found = look(state, bundle=str(PCB))
    assert wrong(found) == [] and "by_hand" in codes(found)
