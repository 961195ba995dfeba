"""Quantization on networks small enough for a test, through Paddle's real passes and Paddle Lite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from edge.preprocess import InputSpec
from tests.tools.tiny import tiny_dataset
from tools import quantize
from tools.calibration import main as calibration
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import read_dataset
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.network import ConvNorm, Detector, NetworkConfig
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.ptq import (
    DEQUANTIZE,
    activation_scales,
    filters,
    halve_range,
    post_training,
    quantized,
    reduce_range,
    set_scales,
)
from tools.quantize import Candidate, Score, best, candidates, differences, main

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy

SPEC = InputSpec(64, 64, 1)
SIZES = {"stem": 16, "width8": 32, "width16": 32, "width32": 32, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 32}


class Small(nn.Layer):
    """Stem, pointwise, depthwise, dense, pointwise: the kinds of layers of a detector."""

    def __init__(self) -> None:
        super().__init__()
        layers = ConvNorm(1, 16, 8, 4), ConvNorm(16, 32), ConvNorm(32, 32, 3, groups=32), ConvNorm(32, 32, 3)
        self.body = nn.Sequential(*layers, ConvNorm(32, 16))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.body(x)


@pytest.fixture(scope="module")
def tensors() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.random((1, 64, 64)) > 0.5).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tensors: list[np.ndarray]) -> Path:
    """Folder with `fp32` and, made from it, `int8` with every convolution but the stem quantized."""
    root = tmp_path_factory.mktemp("models")
    paddle.seed(0)
    save_layer(Small(), root / "fp32", SPEC)
    shapes = filters(StaticModel.load(root / "fp32"))
    post_training(root / "fp32", root / "int8", tensors, "abs_max", list(shapes)[:1])
    return root


def test_chosen_layers_alone_hold_integers(models: Path) -> None:
    model = StaticModel.load(models / "int8")
    peaks = [float(np.abs(model.weight(name)).max()) for name in filters(model)]
    assert peaks[0] < 2 and peaks[1:] == [127, 127, 127]
    depthwise = model.weight(model.operators("depthwise_conv2d")[0].input("Filter")[0])
    assert np.abs(depthwise).max() < 4, "depthwise convolutions stay FP32"


def test_quantized_stays_near_fp32(models: Path, tensors: list[np.ndarray]) -> None:
    want = StaticModel.load(models / "fp32").run(tensors[0][None])[0]
    got = StaticModel.load(models / "int8").run(tensors[0][None])[0]
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).max()


def test_reduced_range_is_exactly_half(models: Path) -> None:
    before, after = StaticModel.load(models / "int8"), StaticModel.load(models / "int8")
    assert reduce_range(after) == 3 == len(quantized(before))
    for name in quantized(before):
        assert np.array_equal(after.weight(name), np.round(before.weight(name) / 2))
        assert np.abs(after.weight(name)).max() == 64
    for op in before.operators(DEQUANTIZE):
        scale = op.input("Scales")[0]
        assert np.array_equal(after.weight(scale), before.weight(scale) * 2)


def test_x86_runs_reduced_range_as_simulated(models: Path, tensors: list[np.ndarray], tmp_path: Path) -> None:
    reduced = StaticModel.load(models / "int8")
    reduce_range(reduced)
    reduced.save(tmp_path / "reduced")
    compile_nb(tmp_path / "reduced", tmp_path / "model.nb", "x86")
    device = DevicePredictor(tmp_path / "model.nb")
    want, got = reduced.run(tensors[1][None])[0], device.run(tensors[1][None])[0]
    device.close()
    assert np.abs(got - want).mean() < 0.005 * np.abs(want).max()


def test_scales_are_set_where_they_are_read(models: Path, tensors: list[np.ndarray]) -> None:
    model = StaticModel.load(models / "int8")
    before = model.run(tensors[0][None])[0]
    variables = activation_scales(model)
    last = list(variables)[-1]
    set_scales(model, {last: 1e-3})
    assert float(model.weight(variables[last]).reshape(-1)[0]) == pytest.approx(1e-3)
    after = model.run(tensors[0][None])[0]
    assert np.abs(after).max() < 0.1 * np.abs(before).max(), "nearly everything is clipped away"


def test_arm_model_compiles(models: Path, tmp_path: Path) -> None:
    compile_nb(models / "int8", tmp_path / "model.nb", "arm")
    assert (tmp_path / "model.nb").stat().st_size > 1000


@pytest.mark.parametrize(
    ("integers", "halved"),
    [([127, -127], [64, -64]), ([1, -1], [0, 0]), ([3, -3], [2, -2]), ([5, 6], [2, 3]), ([0, 126], [0, 63])],
)
def test_halve_range_rounds_ties_to_even(integers: list[int], halved: list[int]) -> None:
    values, scales = halve_range(np.array(integers, np.float32), np.array([0.25], np.float32))
    assert values.tolist() == halved and scales.tolist() == [0.5]


def test_candidates_are_all_algorithms_or_the_one_asked_for() -> None:
    names = [c.name for c in candidates(None, 0.9)]
    assert len(set(names)) == len(names) == 8 and {"hist_0.999", "KL", "emd", "mse", "avg", "abs_max"} <= set(names)
    assert candidates("hist", 0.9) == [Candidate("hist", 0.9)]


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ({"a": Score(0.9, 1, 0.1), "b": Score(0.8, 1, 0.01)}, "a"),
        ({"a": Score(0.9, 1, 0.1), "b": Score(0.8995, 1, 0.01)}, "b"),
        ({"a": Score(0.0, 1, 0.1)}, "a"),
    ],
)
def test_best_is_accurate_first_and_faithful_then(scores: dict[str, Score], wanted: str) -> None:
    assert best(scores) == wanted


def test_differences_of_equal_outputs_are_none() -> None:
    outputs = [[np.ones((1, 2, 3, 3), np.float32), np.zeros((1, 4, 3, 3), np.float32)]]
    assert differences(outputs, outputs) == (0, 0)
    other = [[outputs[0][0] + 2, outputs[0][1] + 2]]
    raw, confidence = differences(outputs, other)
    assert raw == pytest.approx(2) and 0 < confidence < 1


class Product:
    """A tiny product: dataset, calibration list, checkpoint and its exported FP32 model."""

    def __init__(self, root: Path):
        self.data = tiny_dataset(root / "data", size=(64, 96))
        data = read_dataset(self.data)
        paddle.seed(0)
        network = Detector(NetworkConfig(classes=2, expand=2.0, **SIZES))
        self.checkpoint, self.model, self.list = root / "c.pdckpt", root / "fp32", root / "images.json"
        write_checkpoint(self.checkpoint, network, copy_state(network), data)
        save_layer(network, self.model, data.spec)
        calibration(["--data", str(self.data), "--count", "2", "--list", str(self.list), "--out", str(root / "cal")])

    def arguments(self, out: Path, *more: str) -> list[str]:
        given = {"--data": self.data, "--model": self.model, "--calibration": self.list, "--out": out}
        given["--nb"] = out / "m.nb"
        return [str(x) for pair in given.items() for x in pair] + ["--compare-on", "1", *more]


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return Product(tmp_path_factory.mktemp("product"))


def test_step_compares_and_ships_what_it_measured(
    product: Product, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = product.arguments(tmp_path, "--target", "x86")
    main(arguments)
    results = json.loads((tmp_path / "quantize.json").read_text())["results"]
    assert len(results["algorithms"]) == 8 and results["kept"] in results["algorithms"]
    assert results["validation"]["fp32"]["images"] == 4 and results["weights"] == "reduced"
    assert "stage8.0.expand.conv" in results["int8_layers"] and "cls" in results["fp32_layers"]
    assert results["nb_bytes"] == (tmp_path / "m.nb").stat().st_size and (tmp_path / "quantize.png").is_file()
    image = np.random.default_rng(0).random((1, 1, 96, 64)).astype(np.float32)
    device = DevicePredictor(tmp_path / "m.nb")
    for want, got in zip(StaticModel.load(tmp_path).run(image), device.run(image), strict=True):
        assert np.abs(want - got).max() < 0.05 * np.abs(want).max()
    device.close()
    monkeypatch.setattr(quantize, "quantize", lambda *_: pytest.fail("done again"))
    main(arguments)


def test_arm_in_full_range_by_a_plan_of_its_own(product: Product, tmp_path: Path) -> None:
    main(product.arguments(tmp_path, "--target", "armv8", "--dot", "--algorithm", "avg", "--keep-fp32", "stem.conv"))
    results = json.loads((tmp_path / "quantize.json").read_text())["results"]
    assert list(results["algorithms"]) == ["avg"] and "stem.conv" in results["fp32_layers"]
    model = StaticModel.load(tmp_path)
    assert all(np.abs(model.weight(name)).max() == 127 for name in quantized(model))
    assert len(quantized(model)) == len(results["int8_layers"]) > 3


def test_over_the_limit_nothing_ships(product: Product, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"m\.nb: not written: INT8 \(avg\) loses .* points .*give --checkpoint"):
        main(product.arguments(tmp_path, "--target", "x86", "--algorithm", "avg", "--limit", "-50"))
    assert not (tmp_path / "m.nb").exists() and (tmp_path / "quantize.json").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "x86", "--train"], "--train needs --checkpoint"),
        (["--target", "x86", "--percent", "1.5"], "expected a share"),
        (["--target", "x86", "--plan", "nowhere.json"], r"nowhere\.json: cannot be read as a plan"),
        (["--target", "x86", "--keep-fp32", "nose"], "--keep-fp32 nose: the model has no such layer"),
    ],
)
def test_bad_requests_are_refused(product: Product, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        main(product.arguments(tmp_path, *more))


def test_missing_model_is_named(product: Product, tmp_path: Path) -> None:
    arguments = product.arguments(tmp_path, "--target", "x86", "--model", str(tmp_path / "none"))
    with pytest.raises(ToolError, match=r"model\.pdmodel: missing"):
        main(arguments)


def test_bad_model_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nb"
    bad.write_bytes(b"not a model" * 50)
    with pytest.raises(ToolError, match=r"bad\.nb"):
        DevicePredictor(bad)
