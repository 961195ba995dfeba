"""Write a checkpoint's averaged weights as a Paddle inference model, ONNX and FP32 `.nb`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge.boxes import Float
from tools.deeppcb import sha256_file
from tools.errors import ToolError
from tools.network import INPUT_CHANNELS, INPUT_SIZE
from tools.paddle_model import PROGRAM, WEIGHTS, compile_nb, save_layer
from tools.run_record import write_record
from tools.runtimes import LayerPredictor, load_network, open_predictor

OPSET = 13
TOLERANCE = 2e-3  # of the raw outputs, whose range is about -10 to 10


def write_onnx(folder: Path, target: Path) -> None:
    """Convert a Paddle model folder to ONNX with paddle2onnx.

    Raises:
        ToolError: the converter failed; holds the end of what it said.
    """
    command = [sys.executable, "-m", "paddle2onnx.command", "--model_dir", str(folder), "--model_filename", PROGRAM]
    command += ["--params_filename", WEIGHTS, "--save_file", str(target), "--opset_version", str(OPSET)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0 or not target.is_file():
        said = "\n".join((child.stdout + child.stderr).strip().splitlines()[-5:])
        raise ToolError(f"paddle2onnx failed on {folder} ({child.returncode}): {said}")


def largest_difference(a: Sequence[Float], b: Sequence[Float]) -> float:
    """The largest absolute difference of two models' outputs."""
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools export", description=__doc__.splitlines()[0])
    p.add_argument("--checkpoint", type=Path, required=True, help="from `train`, e.g. runs/pcb/final.pdckpt")
    p.add_argument("--out", type=Path, required=True, help="folder; gets fp32/, detector.onnx, detector.x86_64.fp32.nb")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step: write all three, then check that they agree with the network they came from."""
    args = parser().parse_args(arguments)
    network = load_network(args.checkpoint)
    noise = np.random.default_rng(0).random((1, INPUT_CHANNELS, INPUT_SIZE, INPUT_SIZE)).astype(np.float32)
    want = LayerPredictor(network).run(noise)
    folder, onnx, lite = args.out / "fp32", args.out / "detector.onnx", args.out / "detector.x86_64.fp32.nb"
    save_layer(network, folder, INPUT_SIZE)
    write_onnx(folder, onnx)
    compile_nb(folder, lite, "x86")
    differences = {path.name: largest_difference(want, open_predictor(path).run(noise)) for path in (onnx, lite)}
    for name, difference in differences.items():
        print(f"{name}: outputs differ by at most {difference:.2e}")
        if difference > TOLERANCE:
            raise ToolError(f"{name} differs from the checkpoint by {difference:.2e}, allowed {TOLERANCE:.0e}")
    settings = {**vars(args), "checkpoint_sha256": sha256_file(args.checkpoint)}
    write_record(args.out / "export.json", "export", settings, {"largest_difference": differences})
