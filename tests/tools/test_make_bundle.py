"""A bundle is whole, opened by the device's own program and judged by its golden samples, or the old one stays."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge.bundle import manifest
from edge.config import Runtime
from edge.errors import ConfigError
from edge.serving import open_product
from tests.tools.tiny_models import tiny_models, tiny_passport
from tools import make_bundle, restate, statement
from tools.card import MARK
from tools.errors import ToolError
from tools.make_bundle import MODELS, main
from tools.records import read_record

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy


FIGURES = {
    "images": 8, "truths": 9, "ap33_pooled": 0.98765, "ap33_class_mean": 0.97, "ap33": {"hole": 0.99, "bar": 0.951},
    "map50": 0.96, "map50_95": 0.75, "f33_best": 0.95, "rules": {"max_detections": 100, "min_confidence": 0.01},
    "at_thresholds": {"f33": 0.94},
    "parts": {"escape": {"share": 0.0, "count": 0, "of": 6}, "overkill": {"share": 0.5, "count": 1, "of": 2}},
}  # fmt: skip


def rate(share: float) -> dict[str, Any]:
    return {"share": share, "count": int(100 * share), "of": 100, "wilson95": [0, 1]}


def robustness() -> dict[str, Any]:
    from tools.robustness import CONDITIONS

    roles = {"before": {"ap33": 0.70123, "refused": rate(0.1)}, "after": {"ap33": 0.85456, "refused": rate(0.1)}}
    attack = {
        "attack": {"epsilon": 0.03, "step": 0.01, "steps": 10},
        "loss": {
            "device": {"ap33": 0.5, "success": rate(0.68), "escape": rate(0.2)},
            "white_box": {"ap33": 0.4, "success": rate(0.7), "escape": rate(0.2)},
        },
        "false alarm": {"device": rate(0.05), "white_box": rate(0.06)},
    }
    after = attack | {"loss": {**attack["loss"], "device": {"ap33": 0.9, "success": rate(0.11), "escape": rate(0.0)}}}
    return {
        "images": 8,
        "conditions": {str(condition): roles for condition in CONDITIONS},
        "mean": {"before": 0.7, "after": 0.85},
        "attacks": {"before": attack, "after": after},
    }


RESULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "search": ({}, {"rows": [1, 2, 3], "best": "a"}),
    "train": ({"epochs": 70, "crop": 320, "processes": 2}, {"validation": FIGURES, "elapsed_s": 5400.0}),
    "distill": ({"epochs": 30}, {"student": {"parameters": 5, "validation": FIGURES | {"ap33_pooled": 0.991}}}),
    "prune": ({"epochs": 9}, {"tuned": {"validation": FIGURES | {"ap33_pooled": 0.984}}}),
    "confidence": (
        {"model": "/home/u/runs/x/last.pdckpt"},
        {
            "calibration_error": {"before": 0.0812, "unseen": 0.0123},
            "said": ["/home/u/runs/x/recipe.toml keeps escape under 1 %"],
            "classes": {"hole": {"threshold": 0.41, "review": 0.3, "precision": rate(0.98), "recall": rate(0.97)}},
        },
    ),
    "quantize": (
        {"target": "x86"},
        {"kept": "hist", "int8_layers": ["a", "b"], "fp32_layers": ["c"], "weights": "reduced",
         "lost_points": {"hist": 0.12}},
    ),
    "latency": (
        {"cpu": "Some CPU at 2 GHz"},
        {
            "/home/u/runs/x/detector.x86_64.int8.nb": {"p50": 10.0, "min": 9.0, "p99": 12.0},
            "/home/u/runs/x/detector.x86_64.fp32.nb": {"p50": 20.0, "min": 19.0, "p99": 22.0},
        },
    ),
}  # fmt: skip


def write(
    path: Path, step: str, settings: dict[str, Any], results: dict[str, Any], finished: str = "2026-01-01"
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["__main__.py", step, "--data", str(tiny_models()[0]), "--out", "/home/u/runs/x/out"]
    data = {"step": step, "finished": finished, "command": command, "settings": settings, "results": results}
    path.write_text(json.dumps({**data, "versions": {"python": "3.10.1"}}))
    return path


def all_records(folder: Path) -> list[str]:
    paths = []
    for number, (step, (settings, results)) in enumerate({**RESULTS, "robustness": ({}, robustness())}.items()):
        paths.append(write(folder / step / f"{step}.json", step, settings, results, f"2026-01-{number + 1:02}"))
        cv2.imwrite(str(folder / step / f"{step}.png"), np.full((300, 400, 3), 255, np.uint8))
    return [str(path) for path in paths]


def arguments(out: Path, *more: str) -> list[str]:
    data, models = tiny_models()
    recipe = str(tiny_passport() / "recipe.toml")
    return ["--data", str(data), "--models", str(models), "--recipe", recipe, "--out", str(out), *more]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    evaluation = write(folder / "e" / "evaluate.json", "evaluate", {"model": "x"}, FIGURES)
    cv2.imwrite(str(folder / "e/confusion.png"), np.full((300, 400, 3), 255, np.uint8))
    cv2.imwrite(str(folder / "robustness" / "corruptions.png"), np.zeros((9, 9, 3), np.uint8))
    (folder / "notes.md").write_text("- Only tested on drawings.\n")
    listed = folder / "images.json"
    listed.write_text(json.dumps({"images": [{"file": "a.png"}, {"file": "b.png"}]}))
    more = ["--calibration", str(listed), "--hardware", "x86_64", "Raspberry Pi 5"]
    more += [
        "--passport",
        str(tiny_passport()),
        "--evaluation",
        f"int8={evaluation}",
        "--records",
        *all_records(folder),
    ]
    main(arguments(folder / "bundle", *more, "--notes", str(folder / "notes.md"), "--created", "2026-01-31T12:00:00Z"))
    return folder / "bundle"


def test_the_device_opens_it_and_every_part_is_hashed(full: Path) -> None:
    read = manifest.read(full)
    assert (read.product, read.version, read.created) == ("tiny", 1, "2026-01-31T12:00:00Z")
    assert (read.input.width, read.input.height, read.input.channels) == (128, 64, 3)
    assert read.classes == ["hole", "bar"] and read.strides == [8]
    assert {a.file for a in read.artifacts} == {name for name, model in MODELS.items() if model.needed}
    assert {"CARD.md", "recipe.toml", "passport.json", "PASSPORT.md", "golden/expected.json"} <= set(read.files)
    assert read.passport == "passport.json"
    for runtime in ("paddlelite", "onnxruntime"):
        assert open_product(full, Runtime(prefer=runtime)).artifact.runtime == runtime  # type: ignore[arg-type]
    assert len(manifest.read_golden(full, read).samples) >= 2
    assert read.figures["int8_ap33_pooled"] == 0.98765
    assert read.figures["detector.x86_64.int8.nb_p50_ms"] == 10.0
    assert read.format == manifest.FORMAT and read.hardware == ["x86_64", "Raspberry Pi 5"]
    assert read.calibration is not None and read.calibration.images == 2
    assert read.licences is not None and (read.licences.data, read.licences.weights[:10]) == ("CC0-1.0", "Apache-2.0")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("# Model card: `tiny` 1", "what it is"),
        ("**Made for** x86_64, Raspberry Pi 5. INT8 was calibrated from a list of 2 images, `", "what it is for"),
        ("Terms: weights Apache-2.0, as far as the terms of the data allow; data CC0-1.0.", "on which terms"),
        ("**CC0-1.0.**", "whose data, on which terms"),
        ("| train | 1 | 8 | 2 | 6 | 3 |", "the split in numbers"),
        ("chosen by `search` among 3 candidates", "where the network comes from"),
        ("| `train` | 70 | 320 | 90 | 2 | 98.77 | 75.00 |", "how it was trained"),
        ("| `distill` | 30 | - | - | - | 99.10 | 75.00 |", "the student's figures"),
        ("| `prune` | 9 | - | - | - | 98.40 | 75.00 |", "those after pruning"),
        ("| int8 | 98.77 | 97.00 | 96.00 | 75.00 | 94.00 | 0.0 (0 of 6) | 50.0 (1 of 2) |", "figures"),
        ("| int8 | 99.00 | 95.10 |", "by class"),
        ("| AP33, field stress, % | 70.12 | 85.46 | +15.33 points |", "before and after"),
        ("| success of the attack, % | 68.00 | 11.00 | -57.00 points |", "of attacks too"),
        ("| time of one inference, p50, ms | 20 | 10 | -50 % |", "and of time"),
        ("before 0.0812, unseen 0.0123", "how honest confidences are"),
        ("| hole | 0.41 | 0.3 | 98.0 (98 of 100) | 97.0 (97 of 100) | - |", "and thresholds by class"),
        ("epsilon 0.03 of white, step 0.01, 10 steps", "which attack"),
        ("- x86: 2 convolutions in INT8, 1 in FP32, weights in reduced range, made by `hist`; +0.12 points", "INT8"),
        ("| INT8 armv8, simulated | +0.00 |", "parity"),
        ("Some CPU at 2 GHz", "where the time was measured"),
        ("- Only tested on drawings.", "notes by hand"),
        ("px (root of the area in source pixels, 5 to 95 %)", "how large defects were"),
        ("![train train](plots/train-train.png)", "plots"),
        ("python -m tools train --data DATA --out runs/x/out", "how to repeat it"),
    ],
)
def test_the_card_says(full: Path, words: str, why: str) -> None:
    card = (full / "CARD.md").read_text()
    assert words in card or words in " ".join(card.split()), why


def test_the_bundle_tells_nothing_of_the_machine_that_made_it(full: Path) -> None:
    for path in full.rglob("*"):
        if path.suffix in (".md", ".json", ".toml"):
            found = re.findall(r"(?<![\w.])/(?:home|root|tmp|work)/\S*", path.read_text())
            assert not found, f"{path.name}: {found}"


def test_plots_are_small_and_pictures_of_the_data_stay_outside(full: Path) -> None:
    plots = sorted(path.name for path in (full / "plots").iterdir())
    assert "evaluate-int8-confusion.png" in plots and "passport-layers.png" in plots
    assert not any("corruptions" in name for name in plots)
    assert sum((full / "plots" / name).stat().st_size for name in plots) < 100_000
    assert cv2.imread(str(full / "plots/train-train.png")).shape == (300, 400, 3)


SECTIONS = ("Training", "Figures", "Confidence and thresholds", "Robustness", "INT8", "Parity", "Time")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bare") / "bundle"
    main(arguments(out))
    return out


def test_what_was_not_measured_is_said_so(bare: Path) -> None:
    card = (bare / "CARD.md").read_text()
    for title in SECTIONS:
        section = card.split(f"## {title}\n")[1].split("\n## ")[0]
        assert re.search("Not (measured|recorded): no record", section), title
    assert "size of the model, bytes" in card, "which is known without a record"
    read = manifest.read(bare)
    assert read.passport is None and read.figures == {} and read.calibration is None
    assert read.hardware == ["aarch64", "x86_64"], "the architectures of its models"
    golden = manifest.read_golden(bare, read)
    assert golden.reference == "detector.onnx" and len(golden.samples) >= 2


def test_the_next_bundle_counts_on_and_leaves_nothing_of_the_last(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(bare, tmp_path / "bundle")
    (out / "CARD.md").write_text("# By hand\n")
    monkeypatch.chdir(tmp_path)  # a relative path is one from here, for the device's program too
    main(arguments(Path("bundle")))
    assert manifest.read(out).version == 2
    assert (out / "CARD.md").read_text() == "# By hand\n", "a card by hand is kept"
    main(arguments(out, "--version", "9", "--product", "other", "--new-card"))
    read = manifest.read(out)
    assert (read.version, read.product) == (9, "other")
    assert (out / "CARD.md").read_text().startswith(MARK)
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {*read.files, "manifest.json"}


def test_a_bundle_that_does_not_open_leaves_the_old_one_alone(bare: Path, tmp_path: Path) -> None:
    out = shutil.copytree(bare, tmp_path / "bundle")
    models = shutil.copytree(tiny_models()[1], tmp_path / "models")
    content = (models / "detector.x86_64.int8.nb").read_bytes()
    (models / "detector.x86_64.int8.nb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ToolError, match=r"edge with paddlelite refuses it: .*cannot be run by paddlelite"):
        main([*arguments(out), "--models", str(models)])
    assert manifest.read(out) == manifest.read(bare)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_verdict_that_is_not_the_expected_one_refuses_the_bundle(tmp_path: Path) -> None:
    other = shutil.copytree(tiny_passport(), tmp_path / "passport")
    expected = json.loads((other / "golden/expected.json").read_text())
    expected["samples"][0]["verdict"] = "RETAKE"
    (other / "golden/expected.json").write_text(json.dumps(expected))
    with pytest.raises(ToolError, match=r"0\.png: \w+ judges it \w+, the reference RETAKE"):
        main(arguments(tmp_path / "out", "--passport", str(other)))
    assert not (tmp_path / "out").exists()


def spoiled(tmp_path: Path, **changes: Any) -> Path:
    other = shutil.copytree(tiny_passport(), tmp_path / "passport")
    content = json.loads((other / "passport.json").read_text())
    content.update(changes)
    (other / "passport.json").write_text(json.dumps(content))
    return other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problems": ["INT8: iou is 0.5"], "passed": False}, r"was not passed: INT8: iou is 0\.5"),
        ({"classes": ["pit"]}, "is of the classes pit, the dataset has hole, bar"),
        ({"recipe": "name = 3"}, "with another recipe than the bundle's"),
        ({"forms": {"x": {"file": "detector.onnx", "sha256": "0" * 64, "stands_for": ""}}}, "of another detector.onnx"),
        ({"forms": 3}, "cannot be read as a passport"),
    ],
)
def test_a_passport_of_something_else_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=words):
        main(arguments(tmp_path / "out", "--passport", str(spoiled(tmp_path, **changes))))


def test_the_arm_model_must_be_the_one_that_was_simulated(tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models()[1], tmp_path / "models")
    with (models / "detector.armv8.int8.nb").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ToolError, match=r"of another detector\.armv8\.int8\.nb"):
        main([*arguments(tmp_path / "out", "--passport", str(tiny_passport())), "--models", str(models)])


def test_missing_parts_are_all_named(tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models()[1], tmp_path / "models")
    (models / "detector.onnx").unlink()
    with pytest.raises(ToolError, match=r"detector\.onnx, .*no\.toml.*; `export`"):
        main([*arguments(tmp_path / "out"), "--models", str(models), "--recipe", str(tmp_path / "no.toml")])


def test_a_recipe_with_an_unknown_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[detect.class_threshold]\nhoel = 0.4\n")
    with pytest.raises(ConfigError, match="did you mean `hole`"):
        main([*arguments(tmp_path / "out"), "--recipe", str(tmp_path / "r.toml")])


@pytest.mark.parametrize("item", ["fp32", "=x.json", "fp32=nowhere.json", "fp32={train}", "fp32={short}"])
def test_a_bad_evaluation_is_refused(item: str, tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", "train", {}, {})
    short = write(tmp_path / "short.json", "evaluate", {}, {"ap33_pooled": 1, "ap33": {"hole": 1, "bar": 1}})
    with pytest.raises(ToolError, match=r"expected|run record|lacks ap33_class_mean"):
        main(arguments(tmp_path / "out", "--evaluation", item.format(train=train, short=short)))


def test_a_folder_with_other_things_in_it_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(ToolError, match=r"holds thesis\.tex, which is no part of a bundle"):
        main(arguments(tmp_path / "out"))
    assert (tmp_path / "out/thesis.tex").is_file()


def test_more_is_stated_of_a_bundle_that_stands(bare: Path, tmp_path: Path) -> None:
    out = shutil.copytree(bare, tmp_path / "bundle")
    old = manifest.read(out)
    (tmp_path / "images.json").write_text('{"images": [1, 2, 3]}')
    more = ["--hardware", "aarch64", "Jetson Orin Nano", "--calibration", str(tmp_path / "images.json")]
    restate.main(["--bundle", str(out), *more])
    read = manifest.read(out)
    assert (read.version, read.hardware) == (old.version + 1, ["aarch64", "Jetson Orin Nano"])
    assert read.calibration is not None and read.calibration.images == 3 and read.licences == old.licences
    assert {name for name in read.files if read.files[name] != old.files[name]} == {"CARD.md"}
    card = (out / "CARD.md").read_text()
    assert f"# Model card: `tiny` {read.version}" in card and card.count("**Made for**") == 1
    assert "python -m tools restate --bundle" in card and f"the models of version {old.version}, to the byte" in card
    with pytest.raises(ToolError, match="states all of that already"):
        restate.main(["--bundle", str(out), *more])
    restate.main(["--bundle", str(out), "--licence-data", "CC BY 4.0"])
    again = (out / "CARD.md").read_text()
    assert again.count("## Restated") == 1 and again.count("**Made for**") == 1 and "data CC BY 4.0." in again
    assert manifest.read(out).calibration == read.calibration, "what is not said anew stays"


def test_a_bundle_of_an_older_form_gets_the_newest(bare: Path, tmp_path: Path) -> None:
    out = shutil.copytree(bare, tmp_path / "bundle")
    said = json.loads((out / "manifest.json").read_text())
    old = {key: value for key, value in said.items() if key not in ("hardware", "licences")} | {"format": 2}
    (out / "manifest.json").write_text(json.dumps(old))
    restate.main(["--bundle", str(out)])
    read = manifest.read(out)
    assert (read.format, read.hardware) == (manifest.FORMAT, ["aarch64", "x86_64"])


def test_a_calibration_list_that_was_not_used_is_refused(tmp_path: Path) -> None:
    used = {"target": "x86", "depends": {"calibration": "0" * 64}}
    record = write(tmp_path / "quantize.json", "quantize", used, RESULTS["quantize"][1])
    (tmp_path / "images.json").write_text('{"images": [1]}')
    with pytest.raises(ToolError, match="INT8 was calibrated with another list"):
        statement.calibration_of(tmp_path / "images.json", [read_record(record)])
    for text in ("{", "[]", '{"images": 3}'):
        (tmp_path / "images.json").write_text(text)
        with pytest.raises(ToolError, match="cannot be read as a list of calibration images"):
            statement.calibration_of(tmp_path / "images.json")


def test_a_plot_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.png").write_bytes(b"no picture")
    with pytest.raises(ToolError, match=r"train\.png: cannot be read as an image"):
        make_bundle.shrink(tmp_path / "train.png", tmp_path / "x.png")
