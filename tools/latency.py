"""Time models against each other: bare inference, one thread each, in turns so that the machine's mood is shared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tools.deeppcb import read_image
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.network import INPUT_CHANNELS, INPUT_SIZE
from tools.run_record import write_record

TURNS = 10


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Fastest, median and 99th percentile in milliseconds.

    >>> percentiles([3.0, 1.0, 2.0])
    {'min': 1.0, 'p50': 2.0, 'p99': 2.98}
    """
    low, p50, p99 = np.percentile(times_ms, [0, 50, 99])
    return {"min": round(float(low), 2), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools latency", description=__doc__.splitlines()[0])
    p.add_argument("models", type=Path, nargs="+", help=".nb or .onnx files")
    p.add_argument("--image", type=Path, help="a 640x640 image (default: noise)")
    p.add_argument("--rounds", type=int, default=100, help="runs of each model (%(default)s)")
    p.add_argument("--out", type=Path, help="where the run record goes (default: none)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    shape = (1, INPUT_CHANNELS, INPUT_SIZE, INPUT_SIZE)
    pixels = read_image(args.image) if args.image else np.random.default_rng(0).integers(0, 256, shape[2:])
    if pixels.shape != shape[2:]:
        raise ToolError(f"{args.image}: is {pixels.shape[1]}x{pixels.shape[0]}, expected {INPUT_SIZE}x{INPUT_SIZE}")
    tensor = (pixels.reshape(shape) / 255).astype(np.float32)
    predictors = {str(path): DevicePredictor(path) for path in args.models}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for turn in range(TURNS + 1):
        for name, predictor in predictors.items():
            took = predictor.time_ms(tensor, max(1, args.rounds // TURNS))
            times[name] += took if turn else []  # the first turn warms up
    results = {name: percentiles(values) for name, values in times.items()}
    for name, result in results.items():
        print(f"{result['p50']:8.2f} ms p50 {result['min']:8.2f} min {result['p99']:8.2f} p99  {name}")
    for predictor in predictors.values():
        predictor.close()
    if args.out:
        write_record(args.out, "latency", vars(args), results)
