"""Export: size, channels and classes come from the checkpoint, and every form agrees with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from edge.preprocess import InputSpec
from tools import export
from tools.checkpoint import Saved, copy_state, write_checkpoint
from tools.errors import ToolError
from tools.layers import read_layers
from tools.network import Detector, NetworkConfig
from tools.paddle_model import PROGRAM, WEIGHTS, StaticModel, compile_nb
from tools.runtimes import load_network, open_predictor

pytestmark = pytest.mark.timeout(600)  # models are made first, on a machine that may be busy


NARROW = NetworkConfig(
    classes=2, channels=3, stem=8, width8=16, width16=24, width32=32, depth8=1, depth16=1, depth32=1, kernel=3, neck=16
)
SPEC = InputSpec(128, 64, 3)


def write(path: Path, config: NetworkConfig = NARROW, spec: InputSpec = SPEC) -> Path:
    paddle.seed(3)
    network = Detector(config)
    average = {name: value * 1.1 if value.ndim > 1 else value for name, value in copy_state(network).items()}
    says = Saved({}, config, ("pit", "scratch")[: config.classes], spec, "screw")
    write_checkpoint(path, network, average, says, epoch=1)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write(folder / "last.pdckpt")
    export.main(["--checkpoint", str(folder / "last.pdckpt"), "--out", str(folder / "out")])
    return folder / "out"


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "export.json").read_text())["results"])


def test_a_rectangular_colour_network_is_written_in_every_form(exported: Path) -> None:
    for name in (export.ONNX, *export.LITE):
        assert (exported / name).stat().st_size > 10_000
    results = record(exported)
    assert (results["input"]["width"], results["input"]["height"], results["input"]["channels"]) == (128, 64, 3)
    assert results["classes"] == ["pit", "scratch"]
    assert results["bytes"]["detector.armv8.fp32.nb"] == (exported / "detector.armv8.fp32.nb").stat().st_size
    assert set(results["largest_difference"]) == {"fp32", "detector.onnx", "detector.x86_64.fp32.nb"}
    assert max(results["largest_difference"].values()) < export.TOLERANCE


def test_what_is_exported_are_the_averaged_weights(exported: Path) -> None:
    tensor = np.random.default_rng(1).random((1, 3, 64, 128)).astype(np.float32)
    cls, reg = StaticModel.load(exported / "fp32").run(tensor)
    assert cls.shape == (1, 2, 8, 16) and reg.shape == (1, 4, 8, 16)
    for weights, equal in (("average", True), ("network", False)):
        with paddle.no_grad():
            want, _ = load_network(exported.parent / "last.pdckpt", weights)(paddle.to_tensor(tensor))
        assert np.allclose(cls, want.numpy(), rtol=1e-4, atol=1e-3) == equal, weights


def test_a_form_that_differs_fails_the_step(exported: Path) -> None:
    other = load_network(exported.parent / "last.pdckpt", "network")
    with pytest.raises(ToolError, match=r"fp32 differs from the checkpoint by .*, allowed"):
        export.check_parity(other, SPEC, exported)


def test_numbers_that_are_none_fail_the_step(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "largest_difference", lambda a, b: float("nan"))
    with pytest.raises(ToolError, match="differs from the checkpoint by nan"):
        export.check_parity(load_network(exported.parent / "last.pdckpt"), SPEC, exported)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "missing; `python -m tools train`"), (b"", "damaged"), (b"not a checkpoint", "damaged")],
)
def test_a_bad_checkpoint_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.pdckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ToolError, match=rf"bad\.pdckpt.*{words}"):
        export.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_cut_short_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.pdckpt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ToolError, match=r"cut\.pdckpt"):
        export.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")])


def test_an_input_that_the_network_cannot_halve_so_often_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "odd.pdckpt", spec=replace(SPEC, width=100))
    with pytest.raises(ToolError, match="input 100x64, both sides must be multiples of 32"):
        export.main(["--checkpoint", str(path), "--out", str(tmp_path / "out")])


def test_a_compiler_that_fails_or_hangs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match=r"model\.pdmodel: missing"):
        compile_nb(tmp_path, tmp_path / "x.nb", "x86")
    with pytest.raises(ToolError, match=r"model\.pdmodel: missing"):
        export.write_onnx(tmp_path, tmp_path / "x.onnx")
    for name in (PROGRAM, WEIGHTS):
        (tmp_path / name).write_bytes(b"no model")
    for name in ("x.nb", "x.onnx"):
        (tmp_path / name).write_bytes(b"of an earlier run")
    with pytest.raises(ToolError, match="compiler failed on"):
        compile_nb(tmp_path, tmp_path / "x.nb", "x86")
    with pytest.raises(ToolError, match="paddle2onnx failed on"):
        export.write_onnx(tmp_path, tmp_path / "x.onnx")
    monkeypatch.setattr("tools.paddle_model.COMPILE_TIMEOUT_S", 0.01)
    with pytest.raises(ToolError, match="took over 0 s for"):
        compile_nb(tmp_path, tmp_path / "x.nb", "x86")


def test_features_are_one_output_more_and_leave_the_others_as_they_are_to_the_bit(
    exported: Path, tmp_path: Path
) -> None:
    export.main(["--checkpoint", str(exported.parent / "last.pdckpt"), "--features", "--out", str(tmp_path)])
    assert record(tmp_path)["features"] == {"channels": 16, "stride": 8} and record(exported)["features"] is None
    names = [layer.name for layer in read_layers(exported / "fp32")]
    assert [layer.name for layer in read_layers(tmp_path / "fp32")] == names, "plans and --keep-fp32 go on to fit"
    noise = np.random.default_rng(5).random((1, 3, 64, 128)).astype(np.float32)
    for name in ("fp32", "detector.onnx", "detector.x86_64.fp32.nb"):
        without, with_features = (open_predictor(folder / name).run(noise) for folder in (exported, tmp_path))
        assert len(with_features) == 3 and with_features[2].shape == (1, 16, 8, 16)
        for ours, theirs in zip(with_features, without, strict=False):
            assert np.array_equal(ours, theirs), name
