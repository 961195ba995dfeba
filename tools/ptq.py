"""Post-training quantization with paddleslim, and what Paddle Lite's x86 kernels need besides.

A quantized program (`onnx_format=False`, the format that Paddle Lite's compiler reads) holds integers as filters; an
operator before each quantized convolution rounds its input, one behind it brings the sums back to real numbers. Run by
Paddle it simulates the INT8 device.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle

from edge.boxes import Float
from tools.paddle_model import PROGRAM, WEIGHTS, StaticModel, static_mode

ALGORITHMS = ("hist", "avg", "mse", "abs_max", "KL", "emd")
PERCENT = 0.9999
LEVELS = 127  # integers on either side of zero
DEQUANTIZE = "fake_channel_wise_dequantize_max_abs"
QUANTIZE = "fake_quantize_moving_average_abs_max"


class _Calibration(paddle.io.Dataset):
    def __init__(self, tensors: Sequence[Float]):
        super().__init__()
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> Float:
        return self._tensors[index]


@contextlib.contextmanager
def quiet(active: bool = True) -> Iterator[None]:
    """Keep what Paddle says about its own steps, and its progress bars, off the terminal."""
    if not active:
        yield
        return
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def post_training(
    folder: Path,
    out: Path,
    tensors: Sequence[Float],
    algorithm: str,
    skip: Sequence[str] = (),
    percent: float = PERCENT,
) -> None:
    """Quantize the model in `folder` into `out`; convolutions whose filter is in `skip` stay FP32, depthwise ones too.

    Args:
        tensors: calibration inputs, (C, H, W) each, as the network takes them.
        algorithm: one of `ALGORITHMS`. percent: share of values that `hist` keeps.
    """
    with quiet():
        from paddleslim.quant import quant_post_static

    with static_mode(), paddle.static.scope_guard(paddle.static.Scope()), quiet():
        executor = paddle.static.Executor(paddle.CPUPlace())
        program, feeds, _ = paddle.static.load_inference_model(str(folder / "model"), executor)
        feed = program.global_block().var(feeds[0])
        loader = paddle.io.DataLoader(
            _Calibration(tensors), feed_list=[feed], places=[paddle.CPUPlace()], batch_size=1, return_list=False
        )
        quant_post_static(
            executor=executor,
            model_dir=str(folder),
            quantize_model_path=str(out),
            data_loader=loader,
            model_filename=PROGRAM,
            params_filename=WEIGHTS,
            batch_size=1,
            batch_nums=len(tensors),
            scope=paddle.static.global_scope(),
            algo=algorithm,
            hist_percent=percent,
            quantizable_op_type=["conv2d"],
            weight_quantize_type="channel_wise_abs_max",
            activation_quantize_type="moving_average_abs_max",
            onnx_format=False,
            skip_tensor_list=list(skip),
        )


def filters(model: StaticModel) -> dict[str, tuple[int, ...]]:
    """Name and shape (out, in, h, w) of each convolution's filter, in program order; depthwise ones are no part."""
    names = [op.input("Filter")[0] for op in model.operators("conv2d")]
    return {name: tuple(model.weight(name).shape) for name in names}


def halve_range(integers: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantized weights in half the range: integers halved (ties to even), scales doubled.

    The product stays the same up to half a step: integer * scale.

    >>> halve_range(np.array([127.0, -3.0, 2.0]), np.array([0.5]))
    (array([64., -2.,  1.]), array([1.]))
    """
    return np.round(integers / 2).astype(integers.dtype), scales * 2


def quantized(model: StaticModel) -> dict[str, str]:
    """The variables of the filters that hold integers, each with the variable of its scales, in program order."""
    behind = {op.input("X")[0]: op.input("Scales")[0] for op in model.operators(DEQUANTIZE)}
    pairs = ((op.input("Filter")[0], behind.get(op.output("Output")[0])) for op in model.operators("conv2d"))
    return {name: scale for name, scale in pairs if scale is not None}


def reduce_range(model: StaticModel) -> int:
    """Halve the range of every quantized convolution's weights in place; returns how many there were."""
    found = quantized(model)
    for name, scale in found.items():
        integers, scales = halve_range(model.weight(name), model.weight(scale))
        model.set_weight(name, integers)
        model.set_weight(scale, scales)
    return len(found)


def activation_scales(model: StaticModel) -> dict[str, str]:
    """The variable of the scale of each quantized convolution's input, by the name of its filter.

    The scale is the largest magnitude that the input keeps; 127 stands for it.
    """
    rounded = {op.output("Out")[0]: op.input("InScale")[0] for op in model.operators(QUANTIZE)}
    pairs = ((op.input("Filter")[0], rounded.get(op.input("Input")[0])) for op in model.operators("conv2d"))
    return {name: scale for name, scale in pairs if scale is not None}


def set_scales(model: StaticModel, scales: Mapping[str, float]) -> None:
    """Give the inputs of quantized convolutions these scales, by the names of their filters, in place.

    Layers that read the same variable share one scale: the largest of theirs.
    """
    variables = activation_scales(model)
    wanted: dict[str, float] = {}
    for name, scale in scales.items():
        wanted[variables[name]] = max(wanted.get(variables[name], 0.0), scale)
    for variable, scale in wanted.items():
        model.set_weight(variable, np.full(model.weight(variable).shape, scale, np.float32))
