"""Write a checkpoint's averaged weights as a Paddle inference model, ONNX and FP32 `.nb` for x86 and ARM.

Size, channels and classes of the input come from the checkpoint. What was written and can run here is compared with
the network it came from; the ARM `.nb` is compiled from the same folder and can only be run on ARM.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from edge.boxes import Float
from edge.preprocess import InputSpec
from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import sha256_file
from tools.errors import ToolError
from tools.network import MULTIPLE, STRIDE
from tools.paddle_model import PROGRAM, WEIGHTS, compile_nb, require_model, save_layer
from tools.run_record import write_record
from tools.runtimes import LayerPredictor, open_predictor

OPSET = 13
TOLERANCE = 2e-3  # of the raw outputs, whose range is about -10 to 10
CONVERT_TIMEOUT_S = 300.0

FOLDER, ONNX = "fp32", "detector.onnx"
LITE = {"detector.x86_64.fp32.nb": "x86", "detector.armv8.fp32.nb": "arm"}  # name: the compiler's word for the target


def check_size(spec: InputSpec, checkpoint: Path) -> None:
    """Whether the network can take the checkpoint's input at all.

    Raises:
        ToolError: a side is no multiple of the network's deepest stride.
    """
    if spec.width % MULTIPLE or spec.height % MULTIPLE:
        raise ToolError(f"{checkpoint}: input {spec.width}x{spec.height}, both sides must be multiples of {MULTIPLE}")


def write_onnx(folder: Path, target: Path) -> None:
    """Convert a Paddle model folder to ONNX with paddle2onnx.

    Raises:
        ToolError: no model there, or the converter failed; holds the end of what it said.
    """
    require_model(folder)  # the converter ends well without one
    target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", str(folder), "--model_filename", PROGRAM]
    command += ["--params_filename", WEIGHTS, "--save_file", str(target), "--opset_version", str(OPSET)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"paddle2onnx took over {CONVERT_TIMEOUT_S:.0f} s for {folder}") from error
    if child.returncode != 0 or not target.is_file() or not target.stat().st_size:  # it fails with 0 and an empty file
        said = "\n".join((child.stdout + child.stderr).strip().splitlines()[-5:])
        raise ToolError(f"paddle2onnx failed on {folder} ({child.returncode}): {said}")


def largest_difference(a: Sequence[Float], b: Sequence[Float]) -> float:
    """The largest absolute difference of two models' outputs."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def write_all(network: paddle.nn.Layer, spec: InputSpec, out: Path) -> None:
    """Write the Paddle model folder `fp32`, the ONNX and both FP32 `.nb` into `out`."""
    folder = out / FOLDER
    work = {FOLDER: lambda: save_layer(network, folder, spec), ONNX: lambda: write_onnx(folder, out / ONNX)}
    work |= {name: partial(compile_nb, folder, out / name, places) for name, places in LITE.items()}
    bar = tqdm(work.items(), "export", mininterval=5)
    for name, write in bar:
        bar.set_postfix_str(name)
        write()


def check_parity(network: paddle.nn.Layer, spec: InputSpec, out: Path) -> dict[str, float]:
    """Largest difference of each written form from the network, on noise; the ARM `.nb` cannot run here.

    Raises:
        ToolError: one differs by more than `TOLERANCE`.
    """
    noise = np.random.default_rng(0).random((1, spec.channels, spec.height, spec.width)).astype(np.float32)
    want = LayerPredictor(network).run(noise)
    runnable = [out / FOLDER, out / ONNX, *(out / name for name, places in LITE.items() if places == "x86")]
    differences = {path.name: largest_difference(want, open_predictor(path).run(noise)) for path in runnable}
    for name, difference in differences.items():
        print(f"{name}: outputs differ by at most {difference:.2e}")
        if not difference <= TOLERANCE:  # NaN is over the limit too
            raise ToolError(f"{name} differs from the checkpoint by {difference:.2e}, allowed {TOLERANCE:.0e}")
    return differences


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools export", description=__doc__.splitlines()[0])
    p.add_argument("--checkpoint", type=Path, required=True, help="from `train`, e.g. runs/pcb/final.pdckpt")
    p.add_argument("--features", action="store_true", help="one output more: the features, for an anomaly judge")
    p.add_argument("--out", type=Path, required=True, help=f"folder; gets {FOLDER}/, {ONNX}, {', '.join(LITE)}")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step: write all forms, then check that they agree with the network they came from."""
    args = parser().parse_args(arguments)
    saved = read_checkpoint(args.checkpoint)
    check_size(saved.spec, args.checkpoint)
    network = network_of(saved, args.checkpoint)
    network.gives_features = args.features
    write_all(network, saved.spec, args.out)
    results = {
        "largest_difference": check_parity(network, saved.spec, args.out),
        "bytes": {path.name: path.stat().st_size for path in sorted(args.out.glob("detector.*")) if path.is_file()},
        "parameters": int(sum(p.size for p in network.parameters() if not p.stop_gradient)),
        "classes": list(saved.classes),
        "input": asdict(saved.spec),
        "features": {"channels": network.config.neck, "stride": STRIDE} if args.features else None,
    }
    settings = {**vars(args), "checkpoint_sha256": sha256_file(args.checkpoint)}
    write_record(args.out / "export.json", "export", settings, results)
