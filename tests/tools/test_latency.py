"""Timing: at the right input, with a record, and with a sentence where it cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import paddle
import pytest

from edge.preprocess import InputSpec
from tests.tools.tiny import tiny_dataset
from tools.errors import ToolError
from tools.export import write_onnx
from tools.latency import main, onnx_input
from tools.network import ConvNorm
from tools.paddle_model import compile_nb, save_layer

SPEC = InputSpec(96, 32, 3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("latency")
    paddle.seed(0)
    save_layer(ConvNorm(3, 16, 4, 4), root / "fp32", SPEC)
    compile_nb(root / "fp32", root / "m.nb", "x86")
    write_onnx(root / "fp32", root / "m.onnx")
    return [str(root / "m.nb"), str(root / "m.onnx")]


def test_record_has_percentiles_of_each_model(models: list[str], tmp_path: Path) -> None:
    main([*models, "--rounds", "20", "--out", str(tmp_path / "l.json")])
    record = json.loads((tmp_path / "l.json").read_text())
    assert list(record["results"]) == models
    assert all(0 < r["min"] <= r["p50"] <= r["p99"] for r in record["results"].values())
    assert record["settings"]["input"] == {"width": 96, "height": 32, "channels": 3}
    assert "cpu" in record["settings"] and (tmp_path / "l.png").stat().st_size > 1000


def test_input_comes_from_dataset_or_size(models: list[str], tmp_path: Path) -> None:
    root = tiny_dataset(tmp_path / "data", size=(96, 32), channels=3)
    main([models[0], "--data", str(root), "--image", str(root / "images/A/0.png"), "--rounds", "1"])
    main([models[0], "--size", "96", "32", "--channels", "3", "--rounds", "1"])
    assert onnx_input(Path(models[1])) == SPEC


def test_what_cannot_be_timed_is_said(models: list[str], tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not say how large its input is"):
        main([models[0]])
    with pytest.raises(ToolError, match=r"none\.nb: not a file"):
        main([str(tmp_path / "none.nb"), "--size", "96", "32"])
    with pytest.raises(ToolError, match="--rounds 0"):
        main([models[1], "--rounds", "0"])
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ToolError, match=r"bad\.onnx: its input cannot be read"):
        main([str(tmp_path / "bad.onnx")])
