"""Write a judge's small network in every form that a bundle has: ONNX, and INT8 `.nb` for x86 and ARM.

One way for the gate's classifier, the anomaly model and the drift autoencoder: traced at a fixed input, quantized after
training with the `hist` algorithm, weights in reduced range for x86 (its multiplication saturates), in full range for
ARM. What runs on this machine is compared with the network it came from, on inputs that calibrated nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from edge.boxes import Float
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.export import TOLERANCE, largest_difference, write_onnx
from tools.layers import CONV, read_layers
from tools.paddle_model import StaticModel, compile_nb, save_traced
from tools.plan import sums_wrongly
from tools.ptq import post_training, reduce_range
from tools.runtimes import LayerPredictor

FORMS = ("{name}.x86_64.int8.nb", "{name}.armv8.int8.nb", "{name}.onnx")
TARGETS = {"x86": "x86", "armv8": "arm"}  # our word and the compiler's
HELD_BACK = 8  # of the inputs, at the end: what INT8 is compared on
PERCENT = 0.99999


def write_judge(
    network: nn.Layer, name: str, tensors: Sequence[Float], out: Path, *, keep_fp32: Sequence[str] = ()
) -> dict[str, Any]:
    """Write `NAME.x86_64.int8.nb`, `NAME.armv8.int8.nb` and `NAME.onnx` into `out`.

    Args:
        network: takes (1, C, H, W), gives one output or several.
        tensors: real inputs, (C, H, W) float32 each; the last few are kept to compare on, so at least 16.
        keep_fp32: names in the network of convolutions that are not to be quantized, such as the output layer's.

    Returns:
        For the run record: sizes in bytes, INT8 layers, and for each form that runs here its error against the
        network, as a share of the output's standard deviation.

    Raises:
        ToolError: too few inputs, or the ONNX differs from the network by more than rounding.
    """
    if len(tensors) < 2 * HELD_BACK:
        raise ToolError(f"{name}: {len(tensors)} inputs to calibrate on, at least {2 * HELD_BACK} are wanted")
    work = out / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    _save(network, work / "fp32", tensors[0].shape)
    write_onnx(work / "fp32", out / f"{name}.onnx")
    calibrating, held = tensors[:-HELD_BACK], [np.ascontiguousarray(x[None]) for x in tensors[-HELD_BACK:]]
    quantized: dict[str, int] = {}
    for target, places in TARGETS.items():
        folder = work / target
        quantized[target] = _quantize(work / "fp32", folder, calibrating, target, keep_fp32)
        file = f"{name}.{'x86_64' if target == 'x86' else 'armv8'}.int8.nb"
        compile_nb(folder, out / file, places)
    want = [LayerPredictor(network).run(x) for x in held]
    errors = {
        "onnx": _compare(out / f"{name}.onnx", held, want),
        "x86 int8 nb": _compare(out / f"{name}.x86_64.int8.nb", held, want),
        "armv8 int8 simulated": _error(want, [StaticModel.load(work / "armv8").run(x) for x in held]),
    }
    if not errors["onnx"] <= TOLERANCE:
        raise ToolError(f"{name}.onnx differs from the network by {errors['onnx']:.2e} of its output's deviation")
    files = [form.format(name=name) for form in FORMS]
    return {
        "bytes": {file: (out / file).stat().st_size for file in files},
        "int8_layers": quantized,
        "relative_rms_error": {form: round(error, 6) for form, error in errors.items()},
    }


def _save(network: nn.Layer, folder: Path, shape: Sequence[int]) -> None:
    network.eval()
    save_traced(network, folder, [paddle.static.InputSpec([1, *shape], "float32", "image")])


def _quantize(fp32: Path, out: Path, tensors: Sequence[Float], target: str, keep_fp32: Sequence[str]) -> int:
    """Quantize every convolution that the target computes rightly; returns how many."""
    layers = [layer for layer in read_layers(fp32) if layer.shape.op == CONV]
    skip = [x.filter for x in layers if sums_wrongly(x.shape, target) or {x.name, x.filter} & set(keep_fp32)]
    if len(skip) == len(layers):
        raise ToolError(f"{fp32}: no layer is left to quantize for {target}; ship it in FP32")
    post_training(fp32, out, tensors, "hist", skip, PERCENT)
    if target == "x86":
        model = StaticModel.load(out)
        reduce_range(model)
        model.save(out)
    return len(layers) - len(skip)


def _compare(model: Path, held: Sequence[Float], want: Sequence[Sequence[Float]]) -> float:
    with closing(DevicePredictor(model)) as predictor:
        got = [predictor.run(x) for x in held]
    if model.suffix == ".onnx":
        worst = max(largest_difference(a, b) for a, b in zip(want, got, strict=True))
        return worst / max(1.0, float(np.std([x for outputs in want for x in outputs[0].ravel()])))
    return _error(want, got)


def _error(want: Sequence[Sequence[Float]], got: Sequence[Sequence[Float]]) -> float:
    """RMS difference of all outputs over the standard deviation of the wanted ones."""
    a = np.concatenate([x.ravel() for outputs in want for x in outputs])
    b = np.concatenate([x.ravel() for outputs in got for x in outputs])
    return float(np.sqrt(np.mean(np.square(a - b))) / max(float(np.std(a)), 1e-9))
