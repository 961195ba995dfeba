"""A judge's network: every form is written, and says what the network says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from tools.errors import ToolError
from tools.judge_model import FORMS, write_judge
from tools.network import ConvNorm

pytestmark = pytest.mark.timeout(600)


def small() -> nn.Layer:
    paddle.seed(1)
    return nn.Sequential(ConvNorm(4, 32), ConvNorm(32, 32), nn.Conv2D(32, 3, 1))


def inputs(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).random((count, 4, 8, 12)).astype(np.float32))


def test_every_form_is_written_and_agrees(tmp_path: Path) -> None:
    said = write_judge(small(), "anomaly", inputs(24), tmp_path)
    assert set(said["bytes"]) == {form.format(name="anomaly") for form in FORMS}
    assert all(size > 500 for size in said["bytes"].values())
    assert said["int8_layers"] == {"x86": 3, "armv8": 3}
    errors = said["relative_rms_error"]
    assert errors["onnx"] < 1e-4
    assert 0 < errors["x86 int8 nb"] < 0.1, "INT8 rounds, and no more than that"
    assert 0 < errors["armv8 int8 simulated"] < 0.1


def test_a_layer_can_be_kept(tmp_path: Path) -> None:
    assert write_judge(small(), "gate", inputs(24), tmp_path, keep_fp32=["2"])["int8_layers"]["x86"] == 2


def test_too_few_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="15 inputs to calibrate on, at least 16"):
        write_judge(small(), "gate", inputs(15), tmp_path)
