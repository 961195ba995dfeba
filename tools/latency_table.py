"""Measure how long each kind of layer takes with Paddle Lite on this machine, in FP32 and INT8, conversions apart.

A single layer is too short to time. So several copies of it stand side by side in one model, and the same model with
one copy is the baseline: the difference, divided by the further copies, is one layer. Four such pairs of models tell
apart what an INT8 layer pays: the work itself, reading an FP32 input, and writing an FP32 output (which a layer has to
as soon as one of its readers is not quantized).

A table is about one machine. The make of its processor counts, not only its speed: the MKL that Paddle Lite brings for
FP32 takes slower code on processors of another maker than its own, and environment variables that steer MKL change the
figures as well. Both are written into the table, and `plan` is only as good as the likeness to the device.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from edge.preprocess import InputSpec
from tools.checkpoint import network_of, read_checkpoint
from tools.errors import ToolError
from tools.journal import Journal
from tools.layers import ADD, CONV, DEPTHWISE, UPSAMPLE, Shape, read_layers
from tools.lite_timer import Job, measured_on, time_jobs
from tools.network import INPUT_SIZE, ConvNorm, Detector, NetworkConfig
from tools.paddle_model import PROGRAM, WEIGHTS, save_layer, save_traced
from tools.plots import figure
from tools.ptq import post_training
from tools.run_record import versions, write_record

COPIES = 5
FEW_OUTPUTS = 16  # layers with fewer are the output layers: always FP32, since their errors reach the boxes undamped
LEAST_MS = 0.001  # a difference of times that is smaller, or negative, is noise
NARROW = 8  # channels of the layers that only lead to or away from the one that is measured
PLACES = {"x86_64": "x86", "aarch64": "arm"}


def _pairs(kernel: int, stride: int, sizes: Iterable[tuple[int, int, int]]) -> list[Shape]:
    return [Shape(CONV, kernel, stride, a, b, side, side) for a, b, side in sizes]


GRID = [
    *_pairs(1, 1, [(32, 64, 80), (64, 64, 80), (64, 128, 80), (128, 64, 80), (128, 128, 80)]),
    *_pairs(1, 1, [(64, 128, 40), (128, 64, 40), (128, 128, 40), (128, 256, 40), (256, 128, 40)]),
    *_pairs(1, 1, [(64, 64, 20), (128, 128, 20), (128, 256, 20), (256, 128, 20), (256, 256, 20)]),
    *_pairs(3, 1, [(32, 32, 80), (64, 64, 80), (64, 64, 40), (128, 128, 40), (128, 128, 20)]),
    *_pairs(3, 2, [(32, 64, 160), (64, 96, 80), (96, 128, 40)]),
    *_pairs(2, 2, [(16, 64, 160), (64, 96, 80), (96, 128, 40), (128, 192, 40)]),
    *_pairs(4, 4, [(1, 16, 640), (3, 16, 640)]),
    *_pairs(8, 4, [(1, 16, 640), (3, 16, 640), (1, 32, 640)]),
    *[Shape(DEPTHWISE, k, 1, c, c, s, s) for k in (3, 5) for c, s in ((64, 80), (96, 40), (128, 40), (128, 20))],
    *[Shape(ADD, 1, 1, c, c, s, s) for c, s in ((64, 80), (96, 40), (128, 20))],
    *[Shape(UPSAMPLE, 2, 1, 64, 64, s, s) for s in (40, 20)],
]


@dataclass(frozen=True)
class Row:
    """Cost of one layer, in the table's unit.

    Attributes:
        fp32: the layer in FP32. int8: the same in INT8, reading and writing INT8; None where it has no INT8 form.
        read: what more it costs to read FP32. write: what more it costs to write FP32.
    """

    shape: Shape
    fp32: float
    int8: float | None = None
    read: float = 0.0
    write: float = 0.0


@dataclass(frozen=True)
class Table:
    """Costs of layers on one kind of machine."""

    unit: str
    machine: str
    rows: tuple[Row, ...]


def read_table(path: Path, dot: bool = False) -> Table:
    """Read a table.

    Args:
        dot: take the figures of cores with dot-product instructions, which only some tables have.

    Raises:
        ToolError: not a table, or one without these figures.
    """
    key = "int8_dot" if dot else "int8"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if dot and not any(key in row for row in content["rows"]):
            raise ToolError(f"{path}: has no figures for cores with dot products; leave out --dot")
        rows = tuple(
            Row(
                Shape(**row["shape"]),
                float(row["fp32"]),
                None if row.get(key) is None else float(row[key]),
                float(row.get("read", 0)),
                float(row.get("write", 0)),
            )
            for row in content["rows"]
        )
        return Table(str(content["unit"]), str(content["machine"]["cpu"]), rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"{path}: cannot be read as a latency table: {type(error).__name__}: {error}") from error


class _Copies(nn.Layer):
    """Layers of one kind side by side, all reading the same: the input, or a 1x1 convolution of it (`before`)."""

    def __init__(self, make: Callable[[], nn.Layer], count: int, before: nn.Layer | None = None):
        super().__init__()
        self.before = before
        self.copies = nn.LayerList([make() for _ in range(count)])

    def forward(self, image: paddle.Tensor, other: paddle.Tensor | None = None) -> list[paddle.Tensor]:
        x = image if self.before is None else self.before(image)
        return [copy(x) if other is None else copy(x, other) for copy in self.copies]


class _Sum(nn.Layer):
    def forward(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        return x + y


def _layer(shape: Shape) -> nn.Layer:
    if shape.op == ADD:
        return _Sum()
    if shape.op == UPSAMPLE:
        return nn.Upsample(scale_factor=shape.kernel, mode="nearest")
    groups = shape.inputs if shape.op == DEPTHWISE else 1
    return ConvNorm(shape.inputs, shape.outputs, shape.kernel, shape.stride, groups=groups)


@dataclass(frozen=True)
class Probe:
    """A kind of model to time with one copy and with several: the copies' maker, what stands before, and the input."""

    make: Callable[[], nn.Layer]
    before: Callable[[], nn.Layer | None]
    inputs: tuple[tuple[int, ...], ...]  # shapes (1, C, H, W)
    int8: bool


def probes(shape: Shape) -> dict[str, Probe]:
    """The models that together tell what a layer costs."""

    def nothing() -> None:
        return None

    own, narrow = (1, shape.inputs, shape.height, shape.width), (1, NARROW, shape.height, shape.width)

    def before() -> nn.Layer:
        return ConvNorm(NARROW, shape.inputs)

    if shape.op in (ADD, UPSAMPLE):  # Paddle does not save a model without any weights
        inputs = (narrow, own) if shape.op == ADD else (narrow,)
        return {"fp32": Probe(lambda: _layer(shape), before, inputs, False)}
    found = {"fp32": Probe(lambda: _layer(shape), nothing, (own,), False)}
    if shape.op != CONV or shape.outputs < FEW_OUTPUTS:
        return found
    after = (1, NARROW, shape.height // shape.stride, shape.width // shape.stride)

    def tail() -> nn.Layer:
        return ConvNorm(shape.outputs, NARROW)

    found["from_fp32"] = Probe(lambda: _layer(shape), nothing, (own,), True)
    if shape.inputs >= NARROW:  # narrower ones read the image, which is FP32 anyhow
        found["from_int8"] = Probe(lambda: _layer(shape), before, (narrow,), True)
    found["to_int8"] = Probe(lambda: nn.Sequential(_layer(shape), tail()), nothing, (own,), True)
    found["tail"] = Probe(tail, lambda: ConvNorm(NARROW, shape.outputs), (after,), True)
    return found


def row_of(shape: Shape, ms: dict[str, float]) -> Row:
    """The costs of a layer from the milliseconds of one copy in each of its probes.

    >>> shape = Shape("conv2d", 1, 1, 64, 128, 80, 80)
    >>> ms = {"fp32": 2.8, "from_fp32": 1.3, "from_int8": 1.2, "to_int8": 1.1, "tail": 0.2}
    >>> row = row_of(shape, ms)
    >>> round(row.read, 3), round(row.int8, 3), round(row.write, 3)
    (0.1, 0.8, 0.4)
    """
    if "to_int8" not in ms:
        return Row(shape, max(LEAST_MS, ms["fp32"]))
    from_int8 = ms.get("from_int8", ms["from_fp32"])
    read = max(0.0, ms["from_fp32"] - from_int8)
    int8 = max(LEAST_MS, ms["to_int8"] - ms["tail"] - read)
    return Row(shape, max(LEAST_MS, ms["fp32"]), int8, read, max(0.0, from_int8 - int8))


def measure(shape: Shape, turns: int, rounds: int) -> Row:
    """Time one kind of layer on this machine.

    Raises:
        ToolError: Paddle Lite died or refused a model.
    """
    counts = (1, COPIES)
    with tempfile.TemporaryDirectory() as scratch:
        names, jobs = [], []
        for name, probe in probes(shape).items():
            for count in counts:
                names.append((name, count))
                jobs.append(_write(probe, count, Path(scratch) / f"{name}_{count}"))
        ms = dict(zip(names, time_jobs(jobs, places(), turns, rounds), strict=True))
    one = {name: (ms[name, COPIES] - ms[name, 1]) / (COPIES - 1) for name, _ in names}
    return row_of(shape, one)


def _write(probe: Probe, count: int, folder: Path) -> Job:
    network = _Copies(probe.make, count, probe.before())
    network.eval()
    specs = [paddle.static.InputSpec(shape, "float32", f"x{i}") for i, shape in enumerate(probe.inputs)]
    save_traced(network, folder, specs)
    if probe.int8:
        noise = np.random.default_rng(0).random(probe.inputs[0][1:]).astype(np.float32)
        post_training(folder, folder / "int8", [noise], "abs_max")
        folder = folder / "int8"
    return Job(folder / PROGRAM, folder / WEIGHTS, folder / "model.nb", probe.inputs)


def places() -> str:
    """What Paddle Lite calls this machine.

    Raises:
        ToolError: it has no name for it.
    """
    machine = platform.machine()
    if machine not in PLACES:
        raise ToolError(f"Paddle Lite does not run on {machine}; a table is measured on {' or '.join(PLACES)}")
    return PLACES[machine]


def network_layers(network: str, size: tuple[int, int], channels: int) -> list[Shape]:
    """The layers of a network: a checkpoint or a Paddle model's folder at their own input, or `default` at this one.

    Raises:
        ToolError: it is none of these.
    """
    if Path(network).is_dir():
        return [layer.shape for layer in read_layers(Path(network))]
    if network == "default":
        made, spec = Detector(NetworkConfig(channels=channels)), InputSpec(*size, channels)
    else:
        saved = read_checkpoint(Path(network))
        made, spec = network_of(saved, Path(network)), saved.spec
    with tempfile.TemporaryDirectory() as scratch:
        save_layer(made, Path(scratch), spec)
        return [layer.shape for layer in read_layers(Path(scratch))]


def known(shapes: Iterable[Shape]) -> list[Shape]:
    """Each shape once, without those that cannot be measured, which are named on the terminal."""
    once = list(dict.fromkeys(shapes))
    strange = sorted({shape.op for shape in once} - {CONV, DEPTHWISE, ADD, UPSAMPLE})
    if strange:
        print(f"not measured: {', '.join(strange)}")
    return [shape for shape in once if shape.op not in strange]


def write_table(path: Path, rows: Sequence[Row], note: str) -> None:
    """Write a table, whole or not at all."""
    content = {
        "unit": "ms",
        "note": note,
        "machine": measured_on(),
        "versions": versions(),
        "rows": [{**asdict(row), **rounded(row)} for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def rounded(row: Row) -> dict[str, float | None]:
    """The figures of a row to a tenth of a microsecond."""
    int8 = None if row.int8 is None else round(row.int8, 4)
    return {"fp32": round(row.fp32, 4), "int8": int8, "read": round(row.read, 4), "write": round(row.write, 4)}


def draw(path: Path, rows: Sequence[Row], title: str) -> None:
    """Bars of FP32 and INT8 for each row, as PNG."""
    at = np.arange(len(rows))
    with figure(path, title, figsize=(8.0, 1.2 + 0.24 * len(rows))) as axes:
        axes.barh(at - 0.2, [row.fp32 for row in rows], 0.38, label="FP32")
        axes.barh(at + 0.2, [row.int8 or 0 for row in rows], 0.38, label="INT8")
        left = [row.int8 or 0 for row in rows]
        both = [row.read + row.write if row.int8 else 0 for row in rows]
        axes.barh(at + 0.2, both, 0.38, left, color="tab:orange", alpha=0.4, label="INT8, reading and writing FP32")
        axes.set_yticks(at, [str(row.shape) for row in rows])
        axes.margins(y=0.01), axes.invert_yaxis(), axes.set_xlabel("ms"), axes.legend()


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools latency_table", description=__doc__.splitlines()[0])
    p.add_argument("--out", type=Path, required=True, help="the table, ends in .json; journal, record and plot beside")
    p.add_argument(
        "--network",
        nargs="*",
        default=[],
        help="measure the layers of: a checkpoint, a Paddle model's folder, `default` (without any: a general grid)",
    )
    p.add_argument("--grid", action="store_true", help="measure the general grid besides")
    p.add_argument("--size", type=int, nargs=2, default=(INPUT_SIZE, INPUT_SIZE), metavar=("WIDTH", "HEIGHT"))
    p.add_argument("--channels", type=int, choices=(1, 3), default=1, help="of `default`'s input (%(default)s)")
    p.add_argument("--turns", type=int, default=12, help="how often each model has its turn (%(default)s)")
    p.add_argument("--rounds", type=int, default=3, help="runs a turn (%(default)s)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    if args.out.suffix != ".json":
        raise ToolError(f"--out {args.out}: a table's name ends in .json")
    shapes = [shape for name in args.network for shape in network_layers(name, tuple(args.size), args.channels)]
    shapes = known(shapes + (GRID if args.grid or not args.network else []))
    depends = {**measured_on(), **versions(), "turns": args.turns, "rounds": args.rounds}
    kept = Journal(args.out.with_suffix(".journal"), depends)
    rows = []
    bar = tqdm(shapes, "latency_table", mininterval=5)
    for shape in bar:
        bar.set_postfix_str(str(shape))
        done = kept.once(str(shape), lambda shape=shape: rounded(measure(shape, args.turns, args.rounds)))
        rows.append(Row(shape, **done))
    write_table(args.out, rows, "measured with Paddle Lite, one thread")
    draw(args.out.with_suffix(".png"), rows, measured_on()["cpu"])
    print("    FP32     INT8    +read   +write FP32, ms")
    for row in rows:
        int8 = f"{row.int8:8.3f} {row.read:8.3f} {row.write:8.3f}" if row.int8 is not None else 26 * " "
        print(f"{row.fp32:8.3f} {int8}  {row.shape}")
    results = {"rows": len(rows), **measured_on()}
    write_record(args.out.with_suffix(".record.json"), "latency_table", vars(args), results)
