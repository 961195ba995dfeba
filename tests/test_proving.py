"""What runs on a device is what was proved on it: by golden samples, in a process that may die, timed in turns."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge import loading, proving
from edge.bundle import manifest as manifests
from edge.bundle import passport as passports
from edge.bundle.passport import DevicePassport, Proof
from edge.config import Runtime
from edge.errors import BundleError
from edge.event import StageTimes
from edge.predictor import installed_runtimes
from edge.proving import Child, Job
from edge.serving import open_product
from tests.flow.rig import PCB
from tests.small_bundles import FP32, INT8, ONNX, edit_golden, rebuild, small_bundle

pytestmark = pytest.mark.timeout(300)
needs_paddlelite = pytest.mark.skipif("paddlelite" not in installed_runtimes(), reason="Paddle Lite is not installed")


MARKS = Path(tempfile.mkdtemp(prefix="edge-marks-"))  # a model that passed its trial once is not tried for each test
atexit.register(shutil.rmtree, MARKS, ignore_errors=True)


def prove(folder: Path, runtime: Runtime | None = None, marks: Path | None = MARKS, **more: Any) -> DevicePassport:
    return proving.prove(folder, runtime or Runtime(), marks=marks, frames=3, timed_s=60.0, **more)


def quick_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what comes after a proof: a real one, but one frame is timed, and no model is tried twice."""
    whole = proving.prove
    monkeypatch.setattr(proving, "prove", lambda folder, runtime, **more: whole(
        folder, runtime, **(more | {"marks": MARKS, "frames": 1})))  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "small")


@needs_paddlelite
def test_the_shipped_bundle_is_proved_in_every_form(tmp_path: Path) -> None:
    said: list[str] = []
    passport = prove(PCB, marks=tmp_path / "trials", say=said.append)
    assert [proof.file for proof in passport.proofs] == [INT8, FP32, ONNX]
    assert passport.samples == 8 and passport.digest == manifests.digest(manifests.read(PCB))
    for proof, precision in zip(passport.proofs, ("int8", "fp32", "fp32"), strict=True):
        assert proof.passed and proof.precision == precision and proof.frames == 3
        assert proof.agreement is not None and (proof.agreement.lost, proof.agreement.changed) == (0, 0)
        assert proof.agreement.boxes == 15 and proof.frame_ms is not None and proof.predict_ms is not None
        assert 0 < proof.predict_ms.p50 <= proof.frame_ms.p50 <= proof.frame_ms.p99
        assert proof.cpu_ms is not None and proof.cpu_ms > 0
    int8, fp32 = (proof.agreement for proof in passport.proofs[:2])
    assert int8 is not None and fp32 is not None and (int8.score_p95 or 0) > (fp32.score_p95 or 0), "eight bits show"
    assert len(said) == 3 and len(list((tmp_path / "trials").iterdir())) == 6, "a mark for each model that was tried"


@needs_paddlelite
def test_a_model_that_kills_its_process_is_left_out(tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small", models=[INT8, ONNX])
    whole = (folder / INT8).read_bytes()
    (folder / INT8).write_bytes(whole[: len(whole) // 2])
    rebuild(folder)
    passport = prove(folder)
    broken, sound = passport.proofs
    assert not broken.passed and "cannot be run by paddlelite here" in broken.problems[0]
    assert sound.passed and passports.pick(passport.proofs) == sound
    why = proving._why_none(manifests.read(folder), passport.proofs, Runtime(precision="int8"))
    assert "no int8 model of the bundle small 1 may run on this device" in why
    assert "set it to auto" in why and INT8 in why


def test_another_way_to_decode_or_scale_is_named(small: Path) -> None:
    edit_golden(small, 1, tensor_sha256="0" * 64)
    with pytest.raises(BundleError, match=r"golden/4\.png becomes another input here .* decoded or scaled in another"):
        prove(small)


def test_another_verdict_is_named(small: Path) -> None:
    edit_golden(small, 0, verdict="NG")
    with pytest.raises(BundleError) as caught:
        prove(small)
    assert "detector.onnx: judges golden/0.png OK, the reference NG" in str(caught.value)
    assert "does not do on this device what it did where it was made; keep the one you have" in str(caught.value)


def moved(folder: Path, pixels: float) -> list[dict[str, object]]:
    sample = json.loads((folder / "golden/expected.json").read_text())["samples"][1]
    return [box | {"xyxy": [v + pixels for v in box["xyxy"]]} for box in sample["detections"]]


def test_boxes_may_be_off_by_what_the_bundle_allows(small: Path) -> None:
    edit_golden(small, 1, detections=moved(small, 2.0))
    with pytest.raises(BundleError, match=r"shift_median_px is 2\.8.*, the limit is 0\.05"):
        prove(small)
    passport = json.loads((small / "passport.json").read_text())
    passport["limits"]["fp32"].update(shift_median_px=3.0, shift_p95_px=3.0, iou=0.5)
    (small / "passport.json").write_text(json.dumps(passport))
    rebuild(small)
    proof = prove(small).proofs[0]
    assert proof.passed and proof.agreement is not None and 2.7 < (proof.agreement.shift_p95_px or 0) < 2.9


def test_a_box_that_is_not_found_is_named(small: Path) -> None:
    edit_golden(small, 0, detections=[{"xyxy": [100, 100, 140, 140], "class_name": "open", "confidence": 0.9}])
    with pytest.raises(BundleError, match=r"1 of \d boxes of the reference are not found, and 0 others are"):
        prove(small)


def test_a_bundle_without_golden_samples_is_only_run_and_timed(tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small", golden=None, passport=None)
    passport = prove(folder)
    assert passport.samples == 0 and passport.proofs[0].agreement is None and passport.proofs[0].passed
    assert passports.table(passport, ONNX)[1].startswith("* detector.onnx") and "not compared" in str(
        passports.table(passport)
    )


def test_limits_that_cannot_be_read_are_the_usual_ones(tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "small")
    for text in ("{", "[]", '{"limits": {"fp32": {"iou": "x"}}}', '{"limits": {"fp32": {"colour": 1}}}'):
        (folder / "passport.json").write_text(text)
        assert proving.limits_of(folder, rebuild(folder), "fp32") == proving.measures.FP32


def child_of(folder: Path, tmp_path: Path) -> Child:
    manifest = manifests.read(folder)
    job = Job(folder=str(folder), file=ONNX, runtime=Runtime(), marks=str(MARKS))
    return Child(manifest.artifacts[0], job, tmp_path / "log")


def test_a_child_that_dies_while_it_is_timed_has_not_passed(small: Path, tmp_path: Path) -> None:
    with child_of(small, tmp_path) as child:
        child.take_turn()
        assert child.proof.passed
        os.kill(child._process.pid, signal.SIGKILL)
        child._process.wait(10)
        child.take_turn()
        assert not child.proof.passed and child.proof.problems == ["was killed by signal 9: it said nothing"]


def test_a_child_that_hangs_is_ended(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "FRAME_LIMIT_S", 0.2)
    monkeypatch.setattr(proving, "END_S", 0.2)
    with child_of(small, tmp_path) as child:
        process = child._process
        process.send_signal(signal.SIGSTOP)
        child.take_turn()
        assert child.proof.problems == ["took over 0 s"]
    assert process.returncode == -signal.SIGKILL


def ms(value: float) -> StageTimes:
    return StageTimes(p50=value, p99=value, max=value)


def proofs(**times: float) -> list[Proof]:
    kinds = {"lite8": ("paddlelite", "int8"), "lite32": ("paddlelite", "fp32"), "ort32": ("onnxruntime", "fp32")}
    return [
        Proof(file=name, runtime=kinds[name][0], precision=kinds[name][1], frame_ms=ms(abs(t)),  # type: ignore[arg-type]
              problems=["wrong"] if t < 0 else [])
        for name, t in times.items()
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("times", "wanted", "expected", "why"),
    [
        ({"lite8": 20, "lite32": 80, "ort32": 30}, {}, "lite8", "the fastest"),
        ({"lite8": 40, "lite32": 80, "ort32": 30}, {}, "ort32", "INT8 is not always the faster one"),
        ({"lite8": 32, "lite32": 80, "ort32": 30}, {}, "lite8", "nearly as fast: the usual order"),
        ({"lite8": -10, "lite32": 80, "ort32": 30}, {}, "ort32", "fast and wrong"),
        ({"lite8": 40, "lite32": 80, "ort32": 30}, {"precision": "int8"}, "lite8", "precision is an order"),
        ({"lite8": -40, "lite32": 80, "ort32": 30}, {"precision": "int8"}, None, "and stays one"),
        ({"lite8": 40, "lite32": 80, "ort32": 30}, {"prefer": "paddlelite"}, "lite8", "the runtime that comes first"),
        ({"lite8": -40, "ort32": 30}, {"prefer": "paddlelite"}, "ort32", "a preference gives way"),
        ({"lite8": -1}, {}, None, "nothing passed"),
    ],
)
def test_pick(times: dict[str, float], wanted: dict[str, str], expected: str | None, why: str) -> None:
    picked = passports.pick(proofs(**times), **wanted)
    assert (picked.file if picked else None) == expected, why


def test_processor_time_decides_where_it_is_known_of_all() -> None:
    lite, ort = proofs(lite8=150, ort32=90)  # on a busy box
    lite, ort = msgspec.structs.replace(lite, cpu_ms=28.0), msgspec.structs.replace(ort, cpu_ms=36.0)
    assert passports.pick([lite, ort]) == lite
    assert passports.pick([lite, msgspec.structs.replace(ort, cpu_ms=None)]) != lite, "a GPU is timed by the clock"


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    """An installed bundle with two models, as far as a passport is concerned."""
    return small_bundle(tmp_path / "bundles/small-1-00000000", models=[FP32, ONNX])


def give_passport(slot: Path, **times: float) -> DevicePassport:
    names = {"lite32": FP32, "ort32": ONNX}
    made = [msgspec.structs.replace(proof, file=names[proof.file]) for proof in proofs(**times)]
    passport = DevicePassport(
        bundle="small 1", digest=manifests.digest(manifests.read(slot)), here=loading.here(Runtime()), ts=0.0,
        samples=2, proofs=made,
    )  # fmt: skip
    passports.write(slot, passport)
    return passport


@needs_paddlelite
@pytest.mark.parametrize(
    ("times", "expected"), [({"lite32": 80, "ort32": 30}, ONNX), ({"lite32": 20, "ort32": 30}, FP32)]
)
def test_the_daemon_loads_what_the_passport_picked(slot: Path, times: dict[str, float], expected: str) -> None:
    passport = give_passport(slot, **times)
    assert open_product(slot, Runtime()).artifact.file == expected
    (slot.parent / "active").symlink_to(slot.name)
    assert open_product(slot.parent / "active", Runtime()).artifact.file == expected, "by a link too"
    assert open_product(slot, Runtime(prefer="onnxruntime")).artifact.file == ONNX, "the site's word goes first"
    assert passports.read(slot) == passport and passports.read(slot.with_name("other")) is None


@needs_paddlelite
@pytest.mark.parametrize("what", ["digest", "version", "threads", "damaged", "format"])
def test_a_passport_of_something_else_is_not_heeded(slot: Path, what: str) -> None:
    passport = give_passport(slot, lite32=80, ort32=30)
    here = passport.here
    if what == "digest":
        passport = msgspec.structs.replace(passport, digest="0" * 64)
    if what == "version":
        here = msgspec.structs.replace(here, versions=here.versions | {"onnxruntime": "0.0.1"})
    if what == "threads":
        here = msgspec.structs.replace(here, threads=2)
    if what == "format":
        passport = msgspec.structs.replace(passport, format=2)
    passports.write(slot, msgspec.structs.replace(passport, here=here))
    if what == "damaged":
        passports.path_of(slot).write_text("{")
    assert loading.chosen(manifests.read(slot), Runtime(), folder=slot).file == FP32, "as without a passport"


def test_passports_of_slots_that_are_gone_go_too(slot: Path) -> None:
    give_passport(slot, lite32=80)
    gone = passports.path_of(slot.with_name("small-0-11111111"))
    gone.write_text("{}")
    give_passport(slot, lite32=80)
    assert not gone.exists() and passports.read(slot) is not None


def test_the_board_is_read_from_the_device_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BOARD", tmp_path / "model")
    assert loading.board() == ""
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert loading.board() == "Raspberry Pi 5 Model B Rev 1.0"
