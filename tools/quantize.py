"""Post-training INT8 of an exported model, for x86 or ARM, and its `.nb`.

What is quantized differs because the kernels do. On x86 each change between INT8 and FP32 costs more than most layers
gain: measured layer by layer on this network, INT8 is free at stride 32 only and costs up to half as much again
elsewhere, so the rest stays FP32; and weights keep to seven bits of range, because the x86 multiplication saturates on
full-range ones. ARM: all convolutions but the two output layers, in full range.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from edge.boxes import Float
from edge.preprocess import InputSpec, preprocess
from tools.calibration import read_list
from tools.errors import ToolError
from tools.network import INPUT_CHANNELS, INPUT_SIZE, NetworkConfig
from tools.paddle_model import PROGRAM, WEIGHTS, StaticModel, compile_nb, static_mode
from tools.run_record import write_record

ALGORITHMS = ("hist", "avg", "mse", "abs_max", "KL", "emd")
TARGETS = {"x86": "x86", "armv8": "arm"}


def layer_choice(shape: Sequence[int], target: str) -> bool:
    """Whether a convolution with this filter (out, in, h, w) is quantized for the target.

    >>> [layer_choice(s, "x86") for s in ([160, 128, 3, 3], [64, 160, 1, 1], [64, 64, 3, 3], [6, 64, 1, 1])]
    [True, True, False, False]
    >>> [layer_choice(s, "armv8") for s in ([160, 128, 3, 3], [64, 160, 1, 1], [64, 64, 3, 3], [6, 64, 1, 1])]
    [True, True, True, False]
    """
    outputs, inputs = shape[:2]
    if outputs < 16:  # the output layers: their errors reach the boxes undamped, and they cost next to nothing
        return False
    return target == "armv8" or NetworkConfig().width32 in (outputs, inputs)


def filters(model: StaticModel) -> dict[str, tuple[int, ...]]:
    """Name and shape (out, in, h, w) of each convolution's filter, in program order."""
    names = [op.input("Filter")[0] for op in model.operators("conv2d")]
    return {name: tuple(model.weight(name).shape) for name in names}


class _Calibration(paddle.io.Dataset):
    def __init__(self, tensors: Sequence[Float]):
        super().__init__()
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> Float:
        return self._tensors[index]


def post_training(
    folder: Path, out: Path, tensors: Sequence[Float], algorithm: str, skip: Sequence[str], percent: float
) -> None:
    """Quantize the model in `folder` into `out`; convolutions whose filter is in `skip` stay FP32.

    Args:
        tensors: calibration inputs, (1, H, W) each, as the network takes them.
        algorithm: one of `ALGORITHMS`. percent: share of values that `hist` keeps.
    """
    from paddleslim.quant import quant_post_static

    with static_mode(), paddle.static.scope_guard(paddle.static.Scope()):
        program, feeds, _ = paddle.static.load_inference_model(
            str(folder / "model"), paddle.static.Executor(paddle.CPUPlace())
        )
        feed = program.global_block().var(feeds[0])
        loader = paddle.io.DataLoader(
            _Calibration(tensors), feed_list=[feed], places=[paddle.CPUPlace()], batch_size=1, return_list=False
        )
        quant_post_static(
            executor=paddle.static.Executor(paddle.CPUPlace()),
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


def halve_range(integers: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantized weights in half the range: integers halved (ties to even), scales doubled.

    The product stays the same up to half a step: integer * scale.

    >>> halve_range(np.array([127.0, -3.0, 2.0]), np.array([0.5]))
    (array([64., -2.,  1.]), array([1.]))
    """
    return np.round(integers / 2).astype(integers.dtype), scales * 2


def reduce_range(model: StaticModel) -> int:
    """Halve the range of every quantized convolution's weights in place; returns how many there were.

    In a program saved with `onnx_format=False` the filter holds integers and the dequantization behind the
    convolution holds the scales.
    """
    dequantized = {op.input("X")[0]: op for op in model.operators("fake_channel_wise_dequantize_max_abs")}
    changed = 0
    for op in model.operators("conv2d"):
        after = dequantized.get(op.output("Output")[0])
        if after is None:
            continue
        name, scale_name = op.input("Filter")[0], after.input("Scales")[0]
        integers, scales = halve_range(model.weight(name), model.weight(scale_name))
        model.set_weight(name, integers)
        model.set_weight(scale_name, scales)
        changed += 1
    return changed


def finish(folder: Path, target: str, nb: Path) -> int:
    """Reduce the range where the target needs it, compile; returns the number of reduced layers."""
    reduced = 0
    if target == "x86":
        model = StaticModel.load(folder)
        reduced = reduce_range(model)
        if not reduced:
            raise ToolError(f"{folder}: no quantized convolution found, so there is nothing to reduce")
        model.save(folder)
    compile_nb(folder, nb, TARGETS[target])
    return reduced


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools quantize", description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, required=True, help="folder of the exported FP32 model")
    p.add_argument("--target", choices=sorted(TARGETS), required=True)
    p.add_argument("--out", type=Path, required=True, help="folder of the quantized model")
    p.add_argument("--nb", type=Path, required=True, help="the compiled model, ends in .nb")
    p.add_argument("--data", type=Path, required=True, help="unpacked DeepPCB folder, holds trainval.txt")
    p.add_argument("--calibration", type=Path, default=Path("calibration_data/pcb/images.json"))
    p.add_argument("--images", type=int, default=0, help="use only the first so many; 0: all")
    p.add_argument("--algorithm", choices=ALGORITHMS, default="hist", help="how activation ranges are found")
    p.add_argument("--percent", type=float, default=0.9999, help="share of values kept by `hist`")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    images = read_list(args.calibration, args.data)
    images = images[: args.images] if args.images else images
    spec = InputSpec(INPUT_SIZE, INPUT_SIZE, INPUT_CHANNELS)
    tensors = [preprocess(image, spec)[0][0] for image in images]
    shapes = filters(StaticModel.load(args.model))
    skip = [name for name, shape in shapes.items() if not layer_choice(shape, args.target)]
    with tempfile.TemporaryDirectory() as scratch:
        post_training(args.model, Path(scratch), tensors, args.algorithm, skip, args.percent)
        args.out.mkdir(parents=True, exist_ok=True)
        for name in (PROGRAM, WEIGHTS):
            shutil.copy(Path(scratch) / name, args.out / name)
    reduced = finish(args.out, args.target, args.nb)
    counts = {"int8": len(shapes) - len(skip), "fp32": len(skip), "reduced_range": reduced, "images": len(images)}
    print(f"{args.nb}: {counts}")
    write_record(args.out / "quantize.json", "quantize", vars(args), counts)
