"""Time models against each other: bare inference, one thread each, in turns so that the machine's mood is shared.

The make of the processor and environment variables that steer matrix products change the figures, so both are part of
the record; see `tools.latency_table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edge.boxes import Float
from edge.preprocess import InputSpec, preprocess
from tools.dataset import read_dataset, read_image
from tools.device_runtime import RUNTIMES, DevicePredictor
from tools.errors import ToolError
from tools.lite_timer import measured_on
from tools.plots import figure
from tools.run_record import write_record

TURNS = 10


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """Fastest, median and 99th percentile in milliseconds.

    >>> percentiles([3.0, 1.0, 2.0])
    {'min': 1.0, 'p50': 2.0, 'p99': 2.98}
    """
    low, p50, p99 = np.percentile(times_ms, [0, 50, 99])
    return {"min": round(float(low), 2), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def onnx_input(model: Path) -> InputSpec:
    """The input that an ONNX model states.

    Raises:
        ToolError: it cannot be read, or its input has no fixed size.
    """
    import onnxruntime

    try:
        shape = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].shape
        _, channels, height, width = (int(n) for n in shape)
        return InputSpec(width, height, channels)
    except Exception as error:  # onnxruntime raises its own kinds, none of which it exports
        raise ToolError(f"{model}: its input cannot be read ({error}); give --size and --channels") from error


def input_of(args: argparse.Namespace) -> InputSpec:
    """The input to time at: of the dataset, or as given, or what an ONNX model among the others states.

    Raises:
        ToolError: none of them says.
    """
    if args.data is not None:
        return read_dataset(args.data).spec
    if args.size is not None:
        return InputSpec(*args.size, args.channels)
    for model in args.models:
        if model.suffix == ".onnx":
            return onnx_input(model)
    raise ToolError("an .nb does not say how large its input is: give --data, or --size and --channels")


def time_in_turns(models: Sequence[Path], tensor: Float, rounds: int, turns: int = TURNS) -> dict[str, list[float]]:
    """Milliseconds of at least `rounds` runs of each model on the tensor, by the model's path.

    Raises:
        ToolError: a model does not run, or not on such an input.
    """
    predictors = {str(path): DevicePredictor(path) for path in models}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    try:
        for turn in tqdm(range(turns + 1), "latency", mininterval=5):
            for name, predictor in predictors.items():
                took = predictor.time_ms(tensor, -(-rounds // turns))
                times[name] += took if turn else []  # the first turn warms up
    finally:
        for predictor in predictors.values():
            predictor.close()
    return times


def draw(path: Path, times: Mapping[str, Sequence[float]]) -> None:
    """How the times of each model spread, as PNG; the slowest hundredth is left out."""
    with figure(path, "Time of one inference, one thread", "ms", figsize=(7.0, 1.2 + 0.5 * len(times))) as axes:
        shown = [np.sort(mine)[: max(1, len(mine) * 99 // 100)] for mine in times.values()]
        axes.boxplot(shown, orientation="horizontal", whis=(0, 100))
        axes.set_yticks(range(1, len(times) + 1), [Path(name).name for name in times])
        axes.set_xlim(left=0), axes.invert_yaxis(), axes.set_xlabel("ms")


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools latency", description=__doc__.splitlines()[0])
    p.add_argument("models", type=Path, nargs="+", help=".nb or .onnx files")
    p.add_argument("--data", type=Path, help="dataset folder: its input is what the models take")
    p.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="of the input, instead of --data")
    p.add_argument("--channels", type=int, choices=(1, 3), default=1, help="with --size (%(default)s)")
    p.add_argument("--image", type=Path, help="an image to run on (default: noise)")
    p.add_argument("--rounds", type=int, default=100, help="runs of each model (%(default)s)")
    p.add_argument("--out", type=Path, help="where the run record goes, and a plot beside it (default: none)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    strange = [str(path) for path in args.models if path.suffix not in RUNTIMES or not path.is_file()]
    if strange:
        raise ToolError(f"{strange[0]}: not a file that ends in {' or '.join(RUNTIMES)}")
    if args.rounds < 1:
        raise ToolError(f"--rounds {args.rounds}: at least one run has to be timed")
    spec = input_of(args)
    if args.image is not None:
        tensor = preprocess(read_image(args.image, spec.channels), spec)[0]
    else:
        tensor = np.random.default_rng(0).random((1, spec.channels, spec.height, spec.width)).astype(np.float32)
    times = time_in_turns(args.models, tensor, args.rounds)
    results = {name: percentiles(mine) for name, mine in times.items()}
    first = next(iter(results.values()))["p50"]
    for name, r in results.items():
        ratio = r["p50"] / first if first else float("nan")
        print(f"{r['p50']:8.2f} ms p50 {r['min']:8.2f} min {r['p99']:8.2f} p99 {ratio:6.2f} x the first  {name}")
    if args.out:
        draw(args.out.with_suffix(".png"), times)
        size = {"width": spec.width, "height": spec.height, "channels": spec.channels}
        write_record(args.out, "latency", {**vars(args), "input": size, **measured_on()}, results)
