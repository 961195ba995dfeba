"""The passport on a tiny detector in all its forms: what agrees passes, what differs fails by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge.bundle.manifest import Golden
from tests.tools.tiny_models import BEARABLE, tiny_models, tiny_passport
from tools import passport
from tools.errors import ToolError
from tools.layer_errors import layer_errors, output_names
from tools.paddle_model import StaticModel
from tools.parity import INT8, Agreement
from tools.passport import Subject, Witness, find_forms, without_nan, wrong_kernels

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy


def run(out: Path, models: Path | None = None, limits: list[str] = BEARABLE, more: list[str] | None = None) -> None:
    data, made = tiny_models()
    arguments = ["--data", str(data), "--models", str(models or made), "--out", str(out)]
    arguments += ["--reference", str(made / "last.pdckpt"), "--recipe", str(tiny_passport() / "recipe.toml")]
    passport.main([*arguments, "--limit", *limits, *(more or [])])


def read(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "passport.json").read_text(), parse_constant=pytest.fail))


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("passport")
    shutil.copytree(tiny_passport(), out, dirs_exist_ok=True)
    return out


def test_every_form_is_given_the_same_input(passed: Path) -> None:
    result = read(passed)
    assert set(result["forms"]) == {form.name for form in passport.FORMS}
    digests = {form["input_sha256"] for form in result["forms"].values()}
    assert digests == {result["reference"]["input_sha256"]}


def test_forms_in_fp32_find_the_same_and_int8_is_near(passed: Path) -> None:
    result = read(passed)
    assert result["passed"] and result["problems"] == []
    assert result["reference"]["figures"]["ap33_pooled"] > 0.8, "it has learned what it is tested on"
    for name, form in result["forms"].items():
        assert form["validation"]["boxes"] > 5
        if form["precision"] == "fp32":
            assert form["output_difference"] < 1e-4 and form["drops"]["ap33_drop"] == 0, name
            assert form["validation"]["score_max"] < 1e-4 and form["validation"]["changed"] == 0
        else:
            assert form["output_difference"] > 0.01, f"{name} is INT8, or is it?"
            assert abs(form["validation"]["score_mean"]) < 0.1
    assert result["forms"]["INT8 .nb x86"]["against_simulation"]["score_max"] < 0.3


def test_people_can_read_it_and_see_it(passed: Path) -> None:
    page = (passed / "PASSPORT.md").read_text()
    assert page.startswith("# Passport of `tiny`: passed")
    for words in ("INT8 armv8, simulated", "AP33 by class", "Layers that add most error", "verified for each"):
        assert words in page
    for plot in ("layers.png", "confidence_differences.png"):
        assert (passed / plot).stat().st_size > 5000
    record = json.loads((passed / "passport.record.json").read_text())
    assert record["step"] == "passport" and record["results"]["passed"]


def test_it_holds_golden_samples_and_their_expectation(passed: Path) -> None:
    golden = msgspec.json.decode((passed / "golden/expected.json").read_bytes(), type=Golden)
    assert golden.reference.startswith("last.pdckpt, SHA-256 ")
    assert read(passed)["sets"]["golden"]["images"] == len(golden.samples) > 1


def test_the_same_command_does_not_run_the_models_again(passed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(passed)
    monkeypatch.setattr(Subject, "_run", lambda *_: pytest.fail("a model was run again"))
    run(passed)
    assert read(passed) == before


def test_a_difference_over_its_limit_fails_the_step_by_name(passed: Path, tmp_path: Path) -> None:
    shutil.copytree(passed, tmp_path / "p")
    with pytest.raises(ToolError) as caught:
        run(tmp_path / "p", limits=[*BEARABLE, "int8.output=0.001", "int8.iou=1"])
    said = str(caught.value)
    for name in ("INT8 .nb x86: output is", "INT8 armv8, simulated: iou is"):
        assert name in said
    assert "FP32" not in said.splitlines()[1]
    assert not read(tmp_path / "p")["passed"], "the passport is there to look at"
    assert (tmp_path / "p/PASSPORT.md").read_text().startswith("# Passport of `tiny`: FAILED")
    assert (tmp_path / "p/layers.png").is_file()


def test_weights_of_another_training_are_found(tmp_path: Path) -> None:
    _, models = tiny_models()
    other = tmp_path / "models"
    shutil.copytree(models, other)
    shutil.copy(other / "detector.x86_64.int8.nb", other / "detector.x86_64.fp32.nb")
    with pytest.raises(ToolError, match=r"FP32 \.nb x86: output is"):
        run(tmp_path / "out", models=other, more=["--images", "3"])
    assert read(tmp_path / "out")["sets"]["validation"]["images"] == 3


def test_a_missing_form_is_named_with_the_step_that_makes_it(tmp_path: Path) -> None:
    _, models = tiny_models()
    shutil.copytree(models, tmp_path / "models")
    shutil.rmtree(tmp_path / "models/int8-x86")
    assert len(find_forms(tmp_path / "models")) == 4, "the simulation for x86 is welcome, not needed"
    (tmp_path / "models/detector.onnx").unlink()
    with pytest.raises(ToolError, match=r"missing: .*detector\.onnx; `export` and `quantize`"):
        find_forms(tmp_path / "models")


def test_a_layer_that_loses_is_found(tmp_path: Path) -> None:
    _, models = tiny_models()
    spoiled = tmp_path / "int8"
    shutil.copytree(models / "int8-armv8", spoiled)
    model = StaticModel.load(spoiled)
    victim = [name for name, (op, _, int8) in output_names(model).items() if op == "conv2d" and int8][7]
    weights = model.weight(victim)
    model.set_weight(victim, np.where(np.random.default_rng(0).random(weights.shape) < 0.5, 0, weights))
    model.save(spoiled)
    tensors = [np.random.default_rng(k).random((1, 3, 64, 128)).astype(np.float32) for k in range(2)]
    errors = layer_errors(models / "fp32", spoiled, tensors)
    assert max(errors, key=lambda e: e.added).filter == victim
    assert all(e.name.endswith((".conv", "cls", "reg")) for e in errors), "named as in the network"
    assert {e.int8 for e in errors if e.op == "depthwise_conv2d"} == {False}
    sound = layer_errors(models / "fp32", models / "fp32", tensors)
    assert all(e.error == 0 and not e.int8 for e in sound) and len(sound) == len(errors)


def test_kernels_that_compute_other_sums_are_told_apart_from_the_loss_of_int8(passed: Path) -> None:
    form = read(passed)["forms"]["INT8 .nb x86"]["against_simulation"]
    kernels = Agreement(**{name: form[name] for name in Agreement.__dataclass_fields__})
    assert wrong_kernels(kernels, INT8) == []
    said = wrong_kernels(replace(kernels, score_p95=0.2), INT8)
    assert len(said) == 1 and "kernels is 0.2, the limit is 0.03: Paddle Lite computes other sums" in said[0]
    assert wrong_kernels(replace(kernels, score_p95=float("nan"), boxes=0), INT8) == []


def test_a_model_of_another_network_has_no_layer_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, models = tiny_models()
    names = iter([{"a": ("conv2d", "x", False)}, {"b": ("conv2d", "y", True)}])
    monkeypatch.setattr("tools.layer_errors.output_names", lambda _: next(names))
    with pytest.raises(ToolError, match="shares no convolution with"):
        layer_errors(models / "fp32", models / "int8-armv8", [])


class Nudged:
    """A runtime that writes into its input."""

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        tensor[0, 0, 0, 0] += 1e-7
        return []


class Still:
    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        return []


def test_a_single_bit_of_the_input_shows() -> None:
    digests = []
    for predictor in (Still(), Still(), Nudged()):
        witness = Witness(predictor)
        witness.run(np.full((1, 1, 4, 4), 0.25, np.float32))
        digests.append(witness.hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_what_json_cannot_say_becomes_nothing() -> None:
    given = {"a": [1.0, float("inf")], "b": float("nan"), "c": "x"}
    assert without_nan(given) == {"a": [1.0, None], "b": None, "c": "x"}
