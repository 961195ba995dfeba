"""Decide layer by layer what is quantized for a target, from a latency table.

INT8 pays for a layer where its kernel gains more than the changes between INT8 and FP32 cost. A quantized layer that
reads FP32 pays for rounding it, once a reader; it can write INT8 only if every layer that reads it is quantized, else
it writes FP32. So the choice of a layer depends on its neighbours, and the layers that are bound to each other are
decided together: all combinations where they are few, step by step from both ends where they are many.

Output layers stay FP32, since their errors reach the boxes undamped; so do depthwise convolutions, which lose in INT8,
and sizes that the target's kernels compute wrongly.
Weights keep to seven bits on x86, whose multiplication saturates on full-range ones; on ARM they use all eight.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tools.errors import ToolError
from tools.latency_table import FEW_OUTPUTS, Row, Table, read_table
from tools.layers import CONV, DEPTHWISE, Layer, Shape, consumers, read_layers
from tools.plots import figure
from tools.run_record import write_record

TABLES = Path(__file__).parent / "tables"
WEIGHTS = {"x86": "reduced", "armv8": "full"}  # range of the integers, by target
LEAST_GAIN = 0.03  # of a layer's FP32 time: what INT8 must save to be worth its rounding
MOST_TOGETHER = 12  # layers whose combinations are all tried
NEIGHBOURS = 3
CELLS_WEIGHT = 0.25  # what INT8 gains depends on the channels more than on the resolution


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, with the table's figures for it; `fp32` is None where the table has none."""

    name: str
    filter: str
    shape: Shape
    int8: bool
    why: str
    fp32: float | None
    int8_cost: float | None  # with what reading and writing FP32 costs at this place
    source: str  # of the figures: the table's own row, or how they were estimated


@dataclass(frozen=True)
class Plan:
    """Decisions in the order the layers run."""

    target: str
    weights: str  # `reduced` or `full`
    unit: str
    machine: str
    layers: tuple[Decision, ...]

    def skipped(self) -> list[str]:
        """Filters of the convolutions that stay FP32."""
        return [layer.filter for layer in self.layers if layer.filter and not layer.int8]

    def total(self, int8: bool = True) -> float:
        """Expected cost of the whole model, of all layers that the table knows, as planned or all in FP32."""
        costs = ((x.int8_cost if int8 and x.int8 else x.fp32) or 0.0 for x in self.layers)
        return sum(costs)


def distance(a: Shape, b: Shape) -> float:
    """How unlike two layers of a kind are: in channels and cells, each by its logarithm."""
    pairs = ((a.inputs, b.inputs), (a.outputs, b.outputs), (a.height * a.width, b.height * b.width))
    weights = (1, 1, CELLS_WEIGHT)
    return math.sqrt(sum(weight * math.log(x / y) ** 2 for weight, (x, y) in zip(weights, pairs, strict=True)))


def stand_in(shape: Shape) -> list[Shape]:
    """Layers of other kinds whose figures may stand for a kind that the table lacks, best first.

    They do the same number of multiplications at the same output: a patch convolution, whose steps are about as long
    as its kernel, is a matrix product like a 1x1 over as many numbers; other dense ones are most like 3x3.

    >>> [str(like) for like in stand_in(Shape("conv2d", 2, 2, 64, 96, 80, 80))]
    ['conv2d 1x1 s1 256->96 at 40x40']
    >>> [str(like) for like in stand_in(Shape("conv2d", 3, 2, 64, 96, 80, 80))]
    ['conv2d 3x3 s1 64->96 at 40x40', 'conv2d 1x1 s1 576->96 at 40x40']
    """
    if shape.op != CONV:
        return []
    height, width = shape.height // shape.stride, shape.width // shape.stride
    product = Shape(CONV, 1, 1, shape.inputs * shape.kernel**2, shape.outputs, height, width)
    if shape.stride > 1 and shape.kernel <= shape.stride * 2 and shape.kernel != 3:
        return [product]
    return [Shape(CONV, 3, 1, shape.inputs, shape.outputs, height, width), product]


def estimate(table: Table, shape: Shape) -> tuple[Row, str] | None:
    """The table's figures for a layer and where they come from; None if it has nothing like it.

    Without a row of its own a layer gets the cost a multiplication of the nearest rows of its kind, by nearness.
    """
    exact = next((row for row in table.rows if row.shape == shape), None)
    if exact is not None:
        return exact, "measured"
    for like in (shape, *stand_in(shape)):
        rows = [row for row in table.rows if row.shape.kind == like.kind]
        if rows:
            return _between(rows, like, shape), "estimated" if like is shape else f"estimated from {like.kind}"
    return None


def _between(rows: Sequence[Row], like: Shape, shape: Shape) -> Row:
    if any(row.int8 is not None for row in rows):
        rows = [row for row in rows if row.int8 is not None]
    near = sorted(rows, key=lambda row: distance(row.shape, like))[:NEIGHBOURS]
    weights = np.array([1 / (0.1 + distance(row.shape, like)) for row in near])
    weights /= weights.sum()

    def blend(of: str, size: str) -> float:
        """A figure that grows with a size of the layer: the neighbours' share of it, times the layer's size."""
        shares = [getattr(row, of) / getattr(row.shape, size) for row in near]
        return float(np.dot(weights, shares)) * getattr(shape, size)

    int8 = None if near[0].int8 is None else blend("int8", "macs")
    return Row(shape, blend("fp32", "macs"), int8, blend("read", "elements_in"), blend("write", "elements_out"))


class Costs:
    """Cost of each layer of a model under a choice of quantized ones.

    Args:
        rows: the table's figures for each layer, None where it has none.
        least_gain: share of a layer's FP32 cost that INT8 must save.
    """

    def __init__(self, layers: Sequence[Layer], rows: Sequence[Row | None], least_gain: float = LEAST_GAIN):
        self.layers, self.rows, self.least_gain = layers, rows, least_gain
        self.read_by = consumers(layers)

    def writes_int8(self, place: int, chosen: Collection[int]) -> bool:
        """Whether the layer hands INT8 on: it is quantized and so is everything that reads it."""
        alone = self.layers[place].is_output or not self.read_by[place]
        return place in chosen and not alone and all(reader in chosen for reader in self.read_by[place])

    def of(self, place: int, chosen: Collection[int]) -> float:
        """Cost of one layer, the changes at its ends included."""
        row = self.rows[place]
        if row is None:
            return 0.0
        if place not in chosen or row.int8 is None:
            return row.fp32
        source = self.layers[place].reads[0]
        reads_int8 = source >= 0 and self.writes_int8(source, chosen)
        return row.int8 + (0 if reads_int8 else row.read) + (0 if self.writes_int8(place, chosen) else row.write)

    def total(self, places: Iterable[int], chosen: Collection[int]) -> float:
        """Cost of some layers, with the least gain that each quantized one must bring."""
        chosen = set(chosen)
        least = sum(self.least_gain * self.rows[place].fp32 for place in chosen if self.rows[place] is not None)
        return least + sum(self.of(place, chosen) for place in places)


def groups(layers: Sequence[Layer], free: Collection[int]) -> list[list[int]]:
    """The free layers in groups that bear on each other: one reads the other, or both read the same free one.

    >>> s = Shape("conv2d", 1, 1, 32, 32, 4, 4)
    >>> groups([Layer("a", s, "", (-1,)), Layer("b", s, "", (0,)), Layer("c", s, "", (-1,))], {0, 1, 2})
    [[0, 1], [2]]
    """
    root = {place: place for place in free}

    def find(place: int) -> int:
        while root[place] != place:
            place = root[place]
        return place

    for place in free:
        for source in layers[place].reads:
            if source in root:
                root[find(place)] = find(source)
    found: dict[int, list[int]] = {}
    for place in sorted(free):
        found.setdefault(find(place), []).append(place)
    return list(found.values())


def best_of(group: Sequence[int], costs: Costs) -> set[int]:
    """Which layers of a group are quantized at the least cost."""
    if len(group) <= MOST_TOGETHER:
        choices = itertools.chain.from_iterable(itertools.combinations(group, n) for n in range(len(group) + 1))
        return set(min(choices, key=lambda chosen: costs.total(group, chosen)))
    return min((_descend(group, costs, set(start)) for start in ((), group)), key=lambda c: costs.total(group, c))


def _descend(group: Sequence[int], costs: Costs, chosen: set[int]) -> set[int]:
    """Change one layer, or one and a reader of it, as long as that lowers the cost."""
    moves = [{a} for a in group] + [{a, b} for a in group for b in costs.read_by[a] if b in group]
    while True:
        best = min(moves, key=lambda move: costs.total(group, chosen ^ move))
        if costs.total(group, chosen ^ best) >= costs.total(group, chosen) - 1e-9:
            return chosen
        chosen = chosen ^ best


def sums_wrongly(shape: Shape, target: str) -> bool:
    """Whether Paddle Lite 2.13rc0 computes a quantized convolution wrongly there.

    On x86 its matrix product goes astray where neither the output has a multiple of 4 cells nor each sum a multiple of
    32 terms; seen by comparing with Paddle's simulation.

    >>> wrong, right = Shape("conv2d", 1, 1, 24, 32, 5, 5), Shape("conv2d", 1, 1, 32, 32, 5, 5)
    >>> sums_wrongly(wrong, "x86"), sums_wrongly(right, "x86"), sums_wrongly(wrong, "armv8")
    (True, False, False)
    """
    cells = (shape.height // shape.stride) * (shape.width // shape.stride)
    return target == "x86" and cells % 4 != 0 and (shape.inputs * shape.kernel**2) % 32 != 0


def pinned(layer: Layer, row: Row | None, target: str, keep_fp32: Collection[str]) -> str:
    """Why a layer cannot be quantized; empty if it can."""
    if layer.shape.op == DEPTHWISE:
        return "depthwise convolutions lose in INT8"
    if layer.shape.op != CONV:
        return "runs in FP32 only"
    if layer.name in keep_fp32 or layer.filter in keep_fp32:
        return "kept FP32 by hand"
    if layer.is_output or layer.shape.outputs < FEW_OUTPUTS:
        return "output layer: its errors reach the boxes undamped"
    if sums_wrongly(layer.shape, target):
        return f"Paddle Lite's {target} kernel sums wrongly at this size"
    if row is None or row.int8 is None:
        return "the table has no INT8 figure for its kind"
    return ""


def make_plan(
    layers: Sequence[Layer],
    table: Table,
    target: str,
    keep_fp32: Collection[str] = (),
    least_gain: float = LEAST_GAIN,
) -> Plan:
    """Choose INT8 or FP32 for each layer.

    Args:
        target: `x86` or `armv8`. keep_fp32: names of layers that are not to be quantized.
        least_gain: share of a layer's FP32 cost that INT8 must save; negative where a small model is worth some time.

    Raises:
        ToolError: a name in `keep_fp32` is none of a convolution of the model.
    """
    names = {name for layer in layers if layer.filter for name in (layer.name, layer.filter)}
    strange = sorted(set(keep_fp32) - names)
    if strange:
        known = ", ".join(layer.name for layer in layers if layer.shape.op == CONV)
        raise ToolError(f"--keep-fp32 {strange[0]}: the model has no such layer; its convolutions are {known}")
    found = [estimate(table, layer.shape) for layer in layers]
    rows = [None if entry is None else entry[0] for entry in found]
    reasons = [pinned(layer, row, target, keep_fp32) for layer, row in zip(layers, rows, strict=True)]
    costs = Costs(layers, rows, least_gain)
    chosen: set[int] = set()
    for group in groups(layers, {place for place, why in enumerate(reasons) if not why}):
        chosen |= best_of(group, costs)
    sources = ["not in the table" if entry is None else entry[1] for entry in found]
    decisions = [_decide(place, costs, chosen, reasons[place], sources[place]) for place in range(len(layers))]
    return Plan(target, WEIGHTS[target], table.unit, table.machine, tuple(decisions))


def _decide(place: int, costs: Costs, chosen: set[int], why: str, source: str) -> Decision:
    layer, row = costs.layers[place], costs.rows[place]
    everywhere = range(len(costs.layers))
    if not why:
        without = sum(costs.of(i, chosen - {place}) for i in everywhere)
        saved = without - sum(costs.of(i, chosen | {place}) for i in everywhere)
        why = f"INT8 saves {saved:.3g}" if place in chosen else f"INT8 saves too little: {saved:.3g}"
    int8 = None if row is None or row.int8 is None else costs.of(place, chosen | {place})
    fp32 = None if row is None else row.fp32
    return Decision(layer.name, layer.filter, layer.shape, place in chosen, why, fp32, int8, source)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(plan), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ToolError: not a plan.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        layers = tuple(Decision(**{**entry, "shape": Shape(**entry["shape"])}) for entry in content.pop("layers"))
        return Plan(**content, layers=layers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToolError(f"{path}: cannot be read as a plan: {type(error).__name__}: {error}") from error


def check_fits(plan: Plan, layers: Sequence[Layer], path: Path) -> Plan:
    """The plan with the filters' variables of this export of the model, whose numbers may have changed.

    Raises:
        ToolError: it was made for another network.
    """
    mine = {layer.name: layer for layer in layers}
    planned = {layer.name: layer.shape for layer in plan.layers}
    if planned != {name: layer.shape for name, layer in mine.items()}:
        differs = sorted(set(planned.items()) ^ {(name, layer.shape) for name, layer in mine.items()}, key=str)
        name, shape = differs[0]
        raise ToolError(f"{path}: was made for another network, {name} ({shape}) is in one only; make a new plan")
    renamed = tuple(Decision(**{**vars(x), "filter": mine[x.name].filter}) for x in plan.layers)
    return Plan(plan.target, plan.weights, plan.unit, plan.machine, renamed)


def show(plan: Plan) -> str:
    """The plan for people, one layer a line."""
    width = max(len(layer.name) for layer in plan.layers)
    lines = [f"{'layer':<{width}}  choice    FP32    INT8  why; figures in {plan.unit} from {plan.machine}"]
    for x in plan.layers:
        fp32, int8 = (f"{cost:7.3f}" if cost is not None else "      -" for cost in (x.fp32, x.int8_cost))
        choice = "INT8" if x.int8 else "fp32"
        lines.append(f"{x.name:<{width}}  {choice:<6} {fp32} {int8}  {x.shape}; {x.why}; {x.source}")
    count = sum(x.int8 for x in plan.layers)
    lines.append(
        f"{count} layers INT8 (weights in {plan.weights} range): expected {plan.total():.2f} {plan.unit}, "
        f"all FP32 {plan.total(False):.2f} {plan.unit}"
    )
    return "\n".join(lines)


def draw(path: Path, plan: Plan) -> None:
    """Bars of the layers' costs as planned and in FP32, as PNG."""
    known = [layer for layer in plan.layers if layer.fp32 is not None]
    at = np.arange(len(known))
    planned = [x.int8_cost if x.int8 else x.fp32 for x in known]
    colours = ["tab:orange" if x.int8 else "tab:blue" for x in known]
    title = f"Plan for {plan.target}: {plan.total():.2f} {plan.unit}, all FP32 {plan.total(False):.2f}"
    with figure(path, title, figsize=(7.0, 1.2 + 0.17 * len(known))) as axes:
        axes.barh(at, [x.fp32 for x in known], 0.8, color="lightgrey", label="FP32")
        axes.barh(at, planned, 0.5, color=colours, label="as planned (orange: INT8)")
        axes.set_yticks(at, [x.name for x in known], fontsize=7)
        axes.margins(y=0.01), axes.invert_yaxis(), axes.set_xlabel(plan.unit), axes.legend()


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools plan", description=__doc__.splitlines()[0])
    p.add_argument("--model", type=Path, required=True, help="folder of the exported FP32 model")
    p.add_argument("--target", choices=sorted(WEIGHTS), required=True)
    add_arguments(p)
    p.add_argument("--out", type=Path, required=True, help="the plan, ends in .json; record and plot go beside it")
    return p


def add_arguments(p: argparse.ArgumentParser) -> None:
    """What a plan is made by, for this step and for `quantize`."""
    p.add_argument("--table", type=Path, help="of `latency_table`, from the device or one like it (default: built in)")
    p.add_argument("--dot", action="store_true", help="the device's cores have dot-product instructions (armv8)")
    p.add_argument("--keep-fp32", nargs="+", default=[], metavar="LAYER", help="names of layers as the plan shows them")
    p.add_argument(
        "--least-gain",
        type=float,
        default=LEAST_GAIN,
        metavar="SHARE",
        help="of a layer's FP32 time that INT8 must save; negative: may cost, for a small model (%(default)s)",
    )


def plan_for(args: argparse.Namespace, layers: Sequence[Layer]) -> Plan:
    """The plan that `add_arguments` asks for, by the given table or else the one that comes with the project."""
    table = read_table(args.table or TABLES / f"{args.target}.json", args.dot)
    return make_plan(layers, table, args.target, args.keep_fp32, args.least_gain)


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    plan = plan_for(args, read_layers(args.model))
    write_plan(args.out, plan)
    draw(args.out.with_suffix(".png"), plan)
    text = show(plan)
    args.out.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    print(text)
    results = {
        "int8": sum(x.int8 for x in plan.layers),
        "layers": len(plan.layers),
        "expected": round(plan.total(), 3),
        "fp32": round(plan.total(False), 3),
        "unit": plan.unit,
        "machine": plan.machine,
    }
    write_record(args.out.with_suffix(".record.json"), "plan", vars(args), results)
