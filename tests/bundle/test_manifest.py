"""The manifest: a bundle that is incomplete, altered, too new or for another device is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge import __version__
from edge.bundle import choice
from edge.bundle import manifest as manifests
from edge.bundle.manifest import MANIFEST, Artifact, Fields
from edge.errors import BundleError

LITE = "paddlelite 2.13rc0"
ARTIFACTS: list[dict[str, Any]] = [
    {"file": "x86/int8.nb", "runtime": "paddlelite", "arch": "x86_64", "precision": "int8", "made_with": LITE},
    {"file": "x86/fp32.nb", "runtime": "paddlelite", "arch": "x86_64", "precision": "fp32", "made_with": LITE},
    {"file": "fp32.onnx", "runtime": "onnxruntime", "arch": "any", "precision": "fp32", "made_with": "paddle2onnx 1"},
]


def fields() -> Fields:
    return Fields(
        product="pcb",
        version=3,
        classes=["open", "short"],
        input={"width": 64, "height": 32, "channels": 1},
        strides=[8, 16],
        artifacts=ARTIFACTS,
        figures={"ap": 0.98},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pcb"
    for artifact in ARTIFACTS:
        path = folder / artifact["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artifact["file"].encode() * 1000)
    (folder / "recipe.toml").write_text('name = "pcb"\n')
    (folder / "CARD.md").write_text("# pcb\n")
    return folder


@pytest.fixture
def bundle(folder: Path) -> Path:
    manifests.build(folder, fields())
    return folder


def edit(bundle: Path, **changes: Any) -> None:
    data = json.loads((bundle / MANIFEST).read_text())
    data.update(changes)
    (bundle / MANIFEST).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def test_what_is_built_reads_back(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"x")
    built = manifests.build(folder, fields())
    assert manifests.read(folder) == built
    assert (built.product, built.version, built.format, built.min_edge) == ("pcb", 3, 3, __version__)
    assert sorted(built.files) == ["CARD.md", "fp32.onnx", "recipe.toml", "x86/fp32.nb", "x86/int8.nb"]


def test_the_digest_names_the_content(bundle: Path) -> None:
    before = manifests.digest(manifests.read(bundle))
    data = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(dict(reversed(data.items())), indent=7))
    assert manifests.digest(manifests.read(bundle)) == before, "the order and the spaces of the JSON do not matter"
    (bundle / "CARD.md").write_text("# other\n")
    changed = manifests.build(bundle, fields() | {"created": data["created"]})  # type: ignore[operator]
    assert manifests.digest(changed) != before, "one file changed"


def replace_by_link(path: Path, target: Path) -> None:
    path.rename(target)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("damage", "expected", "why"),
    [
        (lambda b: b.rename(b.with_name("gone")), "there is no bundle at", "no folder"),
        (lambda b: (b / MANIFEST).unlink(), "it has no file manifest.json", "some other folder"),
        (lambda b: (b / MANIFEST).write_text("{"), "is not valid JSON", "cut short"),
        (lambda b: (b / MANIFEST).write_bytes(b"\xff\xfe"), "is not valid JSON", "not even text"),
        (lambda b: (b / MANIFEST).write_text("[" * 5000), "is not valid JSON", "deep nesting"),
        (lambda b: (b / MANIFEST).write_text("[]"), "is not a JSON object", "JSON, but no manifest"),
        (lambda b: (b / MANIFEST).write_text("{}"), "product: missing", "an empty one"),
        (lambda b: edit(b, format=4, new=1), "has format 4, this edge knows up to 3: update edge", "from the future"),
        (lambda b: edit(b, hardware=["\n"]), "must be a list, each an architecture", "a name that is none"),
        (lambda b: edit(b, hardware="x86_64"), "hardware", "one name in place of a list"),
        (lambda b: edit(b, licences={"weights": "MIT"}), "licences.data: missing", "half of the terms"),
        (lambda b: edit(b, licences={"weights": "", "data": "MIT"}), "licences.weights", "no terms at all"),
        (lambda b: edit(b, calibration={"sha256": "12", "images": 3}), "calibration.sha256", "half a hash"),
        (lambda b: edit(b, min_edge="99.0.0"), "needs edge 99.0.0 or newer", "a newer daemon's"),
        (lambda b: edit(b, prodct="x"), "prodct: unknown key; did you mean `product`?", "a misspelt key"),
        (lambda b: edit(b, product="../x"), 'product = "../x": must be', "a product name becomes a folder name"),
        (lambda b: edit(b, version=0), "version = 0: must be a whole number from 1", "versions begin at 1"),
        (lambda b: edit(b, classes=["a", "a"]), "classes: a is listed more than once", "thresholds go by name"),
        (lambda b: edit(b, strides=[24]), "24 does not divide the input 64x32", "cells would not line up"),
        (lambda b: edit(b, artifacts=[ARTIFACTS[0] | {"runtime": "trt"}]), "artifacts[1].runtime", "by its place"),
        (lambda b: edit(b, card="NONE.md"), "NONE.md is part of the bundle but has no SHA-256", "unlisted"),
        (lambda b: edit(b, files={"../../etc/passwd": "0" * 64}), "../../etc/passwd", "outside the folder"),
        (lambda b: edit(b, files={"/etc/passwd": "0" * 64}), "/etc/passwd", "an absolute path"),
        (lambda b: edit(b, files={"a": "12"}), 'files.a = "12": must be a SHA-256', "half a hash"),
        (lambda b: (b / "x86/int8.nb").unlink(), "x86/int8.nb: missing", "a file forgotten"),
        (lambda b: (b / "CARD.md").write_text("x"), "CARD.md: altered: its SHA-256 is", "one byte is enough"),
        (lambda b: replace_by_link(b / "CARD.md", b.with_name("c")), "CARD.md: CARD.md is a link", "a link to a file"),
        (lambda b: replace_by_link(b / "x86", b.with_name("d")), "x86/int8.nb: x86 is a link", "a link to a folder"),
        (lambda b: replace_by_link(b / MANIFEST, b.with_name("m")), "it has no file manifest", "a linked manifest"),
        (lambda b: ((b / "CARD.md").unlink(), os.mkfifo(b / "CARD.md")), "CARD.md: not a file", "a pipe would hang"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Path], Any], expected: str, why: str, bundle: Path) -> None:
    damage(bundle)
    with pytest.raises(BundleError) as caught:
        manifests.read(bundle)
    assert expected in str(caught.value), f"{why}: {caught.value}"


MORE: dict[str, Any] = {
    "hardware": ["x86_64", "Raspberry Pi 5"],
    "calibration": {"sha256": "ab" * 32, "images": 48},
    "licences": {"weights": "Apache-2.0", "data": "CC BY-SA 4.0"},
}


def test_hardware_calibration_and_licences_read_back(folder: Path) -> None:
    built = manifests.build(folder, fields() | MORE)  # type: ignore[operator]
    assert manifests.read(folder) == built
    said = json.loads((folder / MANIFEST).read_text())
    assert {key: said[key] for key in MORE} == MORE


@pytest.mark.parametrize("format", [1, 2])
def test_an_older_bundle_is_read_and_keeps_its_name(format: int, bundle: Path) -> None:
    edit(bundle, format=format)
    said = json.loads((bundle / MANIFEST).read_text())
    assert not MORE.keys() & said.keys(), "an older edge knows no such keys"
    read = manifests.read(bundle)
    assert (read.format, read.hardware, read.calibration, read.licences) == (format, [], None, None)
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert manifests.digest(read) == hashlib.sha256(canonical.encode()).hexdigest(), "what is new says nothing in it"


@pytest.mark.parametrize(
    ("hardware", "machine", "board", "fits", "why"),
    [
        ([], "riscv64", "", True, "made for nothing in particular"),
        (["x86_64"], "AMD64", "", True, "another name of the same architecture"),
        (["aarch64"], "arm64", "", True, "and of this one"),
        (["x86_64"], "aarch64", "", False, "another architecture"),
        (["Raspberry Pi 4"], "aarch64", "Raspberry Pi 4 Model B Rev 1.5", True, "words of the model"),
        (["raspberry pi 4"], "aarch64", "Raspberry Pi 4 Model B Rev 1.5", True, "in any case of letters"),
        (["Raspberry Pi 4"], "aarch64", "Raspberry Pi 400 Rev 1.0", False, "part of a word is no word"),
        (["Jetson Orin"], "aarch64", "NVIDIA Jetson Orin Nano", True, "in the middle"),
        (["AM62x SK"], "aarch64", "Texas Instruments AM62x, SK", True, "whatever stands between the words"),
        (["Jetson Nano"], "aarch64", "NVIDIA Jetson Orin Nano", False, "not one after the other"),
        (["Jetson Orin"], "aarch64", "", False, "a board of which nothing is known"),
        (["Jetson Orin", "x86_64"], "x86_64", "", True, "one of them will do"),
    ],
)
def test_hardware(hardware: list[str], machine: str, board: str, fits: bool, why: str) -> None:
    assert (choice.hardware_problem(hardware, machine, board) is None) == fits, why


def test_what_could_run_comes_in_the_order_of_the_choice(bundle: Path) -> None:
    read = manifests.read(bundle)
    assert [a.file for a in choice.fitting(read, "x86_64", BOTH)] == ["x86/int8.nb", "x86/fp32.nb", "fp32.onnx"]
    assert [a.file for a in choice.fitting(read, "x86_64", BOTH, precision="fp32")] == ["x86/fp32.nb", "fp32.onnx"]
    assert [a.file for a in choice.fitting(read, "aarch64", BOTH)] == ["fp32.onnx"]


def test_every_problem_is_reported_at_once(bundle: Path) -> None:
    (bundle / "CARD.md").write_text("x")
    (bundle / "fp32.onnx").unlink()
    with pytest.raises(BundleError) as caught:
        manifests.read(bundle)
    assert "CARD.md: altered" in str(caught.value) and "fp32.onnx: missing" in str(caught.value)
    edit(bundle, version="x", created="today", strides=[])
    with pytest.raises(BundleError) as caught:
        manifests.read(bundle)
    assert all(key in str(caught.value) for key in ("version", "created", "strides"))


def test_a_wrong_bundle_is_not_built(folder: Path) -> None:
    (folder / "fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp32\.onnx is part of the bundle but has no SHA-256"):
        manifests.build(folder, fields())
    assert not (folder / MANIFEST).exists()


LITE_HERE = {"paddlelite": "2.13rc0"}
BOTH = {"paddlelite": "2.13rc0", "onnxruntime": "1.23.2"}
ORT = {"onnxruntime": "1.23.2"}


@pytest.mark.parametrize(
    ("machine", "runtimes", "prefer", "precision", "expected", "why"),
    [
        ("x86_64", BOTH, "auto", "auto", "x86/int8.nb", "Paddle Lite and INT8 come first"),
        ("AMD64", BOTH, "auto", "auto", "x86/int8.nb", "another name of the same architecture"),
        ("x86_64", BOTH, "auto", "fp32", "x86/fp32.nb", "precision is an order"),
        ("x86_64", BOTH, "onnxruntime", "auto", "fp32.onnx", "the runtime preferred comes first"),
        ("x86_64", LITE_HERE, "onnxruntime", "auto", "x86/int8.nb", "a preference gives way to what is there"),
        ("x86_64", ORT, "auto", "auto", "fp32.onnx", "no Paddle Lite here"),
        ("aarch64", BOTH, "auto", "auto", "fp32.onnx", "no .nb for this architecture"),
        ("x86_64", {"paddlelite": "2.12", **ORT}, "auto", "auto", "fp32.onnx", "another version's .nb is left alone"),
    ],
)
def test_choice(
    machine: str, runtimes: dict[str, str], prefer: str, precision: str, expected: str, why: str, bundle: Path
) -> None:
    chosen = choice.choose(manifests.read(bundle), machine, runtimes, prefer=prefer, precision=precision)
    assert chosen.file == expected, why


def test_a_model_for_this_very_architecture_comes_before_one_for_any(bundle: Path) -> None:
    base = ARTIFACTS[2] | {"file": "x86/fp32.nb", "arch": "aarch64"}
    edit(bundle, artifacts=[ARTIFACTS[2], base])
    assert choice.choose(manifests.read(bundle), "arm64", ORT).arch == "aarch64"


@pytest.mark.parametrize(
    ("machine", "runtimes", "precision", "expected", "why"),
    [
        ("x86_64", {}, "auto", ["no inference runtime", "install onnxruntime or paddlelite"], "a bare device"),
        (
            "x86_64",
            {"paddlelite": "2.12"},
            "auto",
            ["was made with paddlelite 2.13rc0, and paddlelite 2.12 is installed", "install onnxruntime"],
            "another version's .nb can abort the process",
        ),
        ("aarch64", LITE_HERE, "auto", ["x86/int8.nb is for x86_64", "needs onnxruntime, which is not"], "an ARM box"),
        ("aarch64", ORT, "int8", ["is fp32, and runtime.precision wants int8", "precision to auto"], "too strict"),
    ],
)
def test_nothing_fits(
    machine: str, runtimes: dict[str, str], precision: str, expected: list[str], why: str, bundle: Path
) -> None:
    with pytest.raises(BundleError) as caught:
        choice.choose(manifests.read(bundle), machine, runtimes, precision=precision)
    assert all(text in str(caught.value) for text in expected), f"{why}: {caught.value}"


def test_a_bundle_for_other_architectures_says_so(bundle: Path) -> None:
    manifest = manifests.read(bundle)
    only_x86 = msgspec.structs.replace(manifest, artifacts=[Artifact(**ARTIFACTS[0])])
    with pytest.raises(BundleError, match="get a bundle that was built for riscv64"):
        choice.choose(only_x86, "riscv64", BOTH)


GOLDEN: dict[str, Any] = {
    "reference": "fp32.onnx",
    "least_confidence": 0.3,
    "samples": [
        {
            "file": "golden/0.png",
            "tensor_sha256": "0" * 64,
            "verdict": "NG",
            "detections": [{"xyxy": [1, 2, 3, 4], "class_name": "open", "confidence": 0.9}],
            "truths": [{"xyxy": [1, 2, 3, 4], "class_name": "open"}],
        }
    ],
}


def build_with_golden(folder: Path, golden: Any = GOLDEN) -> Path:
    (folder / "golden").mkdir(exist_ok=True)
    (folder / "golden/0.png").write_bytes(b"png")
    (folder / "golden/expected.json").write_text(json.dumps(golden))
    (folder / "passport.json").write_text("{}")
    more = {"golden": "golden/expected.json", "passport": "passport.json"}
    manifests.build(folder, fields() | more)  # type: ignore[operator]
    return folder


def test_the_golden_set_reads_back_and_is_hashed(folder: Path) -> None:
    bundle = build_with_golden(folder)
    read = manifests.read(bundle)
    assert {"golden/0.png", "golden/expected.json", "passport.json"} <= set(read.files)
    golden = manifests.read_golden(bundle, read)
    assert (golden.samples[0].verdict, golden.samples[0].truths[0].confidence) == ("NG", 1.0)
    (bundle / "golden/0.png").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"golden/0\.png: altered"):
        manifests.read(bundle)


def test_a_bundle_without_golden_samples_says_nothing_of_them(bundle: Path) -> None:
    assert "golden" not in json.loads((bundle / MANIFEST).read_text()), "an older edge knows no such key"
    with pytest.raises(BundleError, match="has no golden samples"):
        manifests.read_golden(bundle, manifests.read(bundle))


def changed(**changes: Any) -> dict[str, Any]:
    return GOLDEN | {"samples": [GOLDEN["samples"][0] | changes]}


@pytest.mark.parametrize(
    ("golden", "expected", "why"),
    [
        ("", "cannot be used", "no record"),
        (GOLDEN | {"samples": []}, "cannot be used", "nothing to compare"),
        (GOLDEN | {"format": 2}, "cannot be used", "from the future"),
        (changed(verdict="GOOD"), "cannot be used", "an unknown verdict"),
        (changed(file="../../etc/passwd"), "cannot be used", "outside the folder"),
        (changed(file="golden/9.png"), "name golden/9.png, which is no file of the bundle", "an image forgotten"),
        (changed(truths=[{"xyxy": [1, 2, 3, 4], "class_name": "hole"}]), "hole is no class", "another product's"),
    ],
)
def test_a_wrong_golden_set_is_refused(golden: Any, expected: str, why: str, folder: Path) -> None:
    bundle = build_with_golden(folder, golden)
    with pytest.raises(BundleError, match=expected):
        manifests.read_golden(bundle, manifests.read(bundle))


@pytest.mark.parametrize("key", ["golden", "passport"])
def test_a_part_that_is_not_in_the_bundle_is_named(key: str, folder: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.json is part of the bundle but has no SHA-256"):
        manifests.build(folder, fields() | {key: "gone.json"})  # type: ignore[operator]


def with_judge(folder: Path, **changes: Any) -> Fields:
    for name in ("anomaly.onnx", "anomaly.json"):
        (folder / name).write_bytes(name.encode())
    base = {"file": "anomaly.onnx", "runtime": "onnxruntime", "arch": "any", "precision": "fp32", "made_with": "x 1"}
    judge = {"artifacts": [base], "shape": [64, 4, 8], "settings": "anomaly.json"}
    return Fields(**{**fields(), "judges": {"anomaly": judge}, "features": {"channels": 64, "stride": 8}, **changes})


def test_a_judge_is_chosen_like_a_detector(folder: Path) -> None:
    built = manifests.build(folder, with_judge(folder))
    assert choice.choose(built, "aarch64", BOTH, judge="anomaly").file == "anomaly.onnx"
    with pytest.raises(BundleError, match="has no anomaly model for this device"):
        choice.choose(built, "aarch64", {}, judge="anomaly")


def test_a_product_of_good_parts_only_has_no_classes_but_an_anomaly_judge(folder: Path) -> None:
    assert manifests.build(folder, with_judge(folder, classes=[], strides=[])).classes == []


@pytest.mark.parametrize(
    ("changes", "expected", "why"),
    [
        ({"features": None}, "does not say that there are any", "the judge would have nothing to read"),
        ({"strides": []}, "classes and strides belong together", "boxes without classes"),
        ({"classes": [], "strides": [], "judges": {}}, "nothing would ever be found", "every part would pass"),
        ({"judges": {"smell": {}}}, "smell", "a judge that nobody knows"),
        (
            {"features": {"channels": 32, "stride": 8}},
            "takes [64, 4, 8], and the detector's",
            "another detector's judge",
        ),
        ({"artifacts": ["x"]}, "artifacts", "a name in place of a table"),
        ({"judges": {"anomaly": {"artifacts": ["x"]}}}, "judges.anomaly", "a name in place of a table"),
        ({"judges": {"anomaly": {"artifacts": 5}}}, "judges.anomaly", "a number in place of a list"),
    ],
)
def test_a_bundle_that_could_not_judge_is_not_built(
    folder: Path, changes: dict[str, Any], expected: str, why: str
) -> None:
    given = {key: value for key, value in with_judge(folder, **changes).items() if value is not None}
    with pytest.raises(BundleError) as caught:
        manifests.build(folder, Fields(**given))
    assert expected in str(caught.value), f"{why}: {caught.value}"


def test_every_file_of_a_judge_is_listed(folder: Path) -> None:
    given = with_judge(folder)
    (folder / "anomaly.json").unlink()
    with pytest.raises(BundleError, match=r"anomaly\.json is part of the bundle but has no SHA-256"):
        manifests.build(folder, given)
