"""Quantization on a network small enough for a test, through Paddle's real passes and Paddle Lite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.network import ConvNorm
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.quantize import filters, halve_range, layer_choice, post_training, reduce_range

SIZE = 64


class Small(nn.Layer):
    """Stem, pointwise, dense, pointwise: the kinds of layers of the detector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvNorm(1, 16, 8, 4), ConvNorm(16, 32), ConvNorm(32, 32, 3), ConvNorm(32, 16))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.body(x)


@pytest.fixture(scope="module")
def calibration() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(rng.random((1, SIZE, SIZE)) > 0.5).astype(np.float32) for _ in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, calibration: list[np.ndarray]) -> Path:
    """Folder with `fp32` and, made from it, `int8` with every convolution but the stem quantized."""
    root = tmp_path_factory.mktemp("models")
    paddle.seed(0)
    save_layer(Small(), root / "fp32", SIZE)
    shapes = filters(StaticModel.load(root / "fp32"))
    post_training(root / "fp32", root / "int8", calibration, "abs_max", list(shapes)[:1], 0.9999)
    return root


def test_chosen_layers_alone_hold_integers(models: Path) -> None:
    model = StaticModel.load(models / "int8")
    peaks = [float(np.abs(model.weight(name)).max()) for name in filters(model)]
    assert peaks[0] < 2 and peaks[1:] == [127, 127, 127]


def test_quantized_stays_near_fp32(models: Path, calibration: list[np.ndarray]) -> None:
    want = StaticModel.load(models / "fp32").run(calibration[0][None])[0]
    got = StaticModel.load(models / "int8").run(calibration[0][None])[0]
    assert np.abs(got - want).mean() < 0.03 * np.abs(want).max()


def test_reduced_range_is_exactly_half(models: Path) -> None:
    before, after = StaticModel.load(models / "int8"), StaticModel.load(models / "int8")
    assert reduce_range(after) == 3
    for name in list(filters(before))[1:]:
        assert np.array_equal(after.weight(name), np.round(before.weight(name) / 2))
        assert np.abs(after.weight(name)).max() == 64
    for op in before.operators("fake_channel_wise_dequantize_max_abs"):
        scale = op.input("Scales")[0]
        assert np.array_equal(after.weight(scale), before.weight(scale) * 2)


def test_x86_runs_reduced_range_as_simulated(models: Path, calibration: list[np.ndarray], tmp_path: Path) -> None:
    reduced = StaticModel.load(models / "int8")
    reduce_range(reduced)
    reduced.save(tmp_path / "reduced")
    compile_nb(tmp_path / "reduced", tmp_path / "model.nb", "x86")
    device = DevicePredictor(tmp_path / "model.nb")
    want, got = reduced.run(calibration[1][None])[0], device.run(calibration[1][None])[0]
    device.close()
    assert np.abs(got - want).mean() < 0.005 * np.abs(want).max()


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


@pytest.mark.parametrize("target", ["x86", "armv8"])
def test_output_layers_stay_fp32(target: str) -> None:
    assert not layer_choice([6, 64, 1, 1], target) and not layer_choice([4, 64, 1, 1], target)


def test_compiler_failure_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="compiler failed"):
        compile_nb(tmp_path, tmp_path / "out.nb", "x86")


def test_bad_model_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    bad = tmp_path / "bad.nb"
    bad.write_bytes(b"not a model" * 50)
    with pytest.raises(ToolError, match=r"bad\.nb"):
        DevicePredictor(bad)
