"""INT8 for a target: post-training quantization by the best of several algorithms, training where that loses too much.

What is quantized says a plan (see `plan`); how large activations get say the calibration images (see `calibration`).
paddleslim quantizes the program; several algorithms (see `tools.ranges`) turn what was seen into scales of activations.
Each is tried, and judged by Paddle's own simulation of the quantized model, with the weights' range reduced where the
target needs it, on training images that calibrated nothing: validation images stay untouched by the choice. The winner
is then measured against FP32 on the whole validation split. If it loses more than the limit, a short
quantization-aware training follows (see `tools.qat`), and if that does not mend it the step fails: no `.nb` is written
that was not shown to be good.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edge.boxes import Float
from edge.detect import Predictor
from edge.preprocess import preprocess
from tools import qat
from tools.calibration import list_for, read_list
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, sha256_file, truth_of
from tools.errors import ToolError
from tools.evaluate import detect_all, figures, model_hash
from tools.journal import Journal
from tools.layers import read_layers
from tools.machine import faster_training
from tools.paddle_model import PROGRAM, WEIGHTS, StaticModel, compile_nb
from tools.plan import Plan, add_arguments, check_fits, plan_for, read_plan, show
from tools.plots import figure
from tools.ptq import ALGORITHMS, PERCENT, filters, post_training, reduce_range, set_scales
from tools.ranges import collect, scale_of
from tools.run_record import write_record

# Others import these from here too.
__all__ = ["filters", "main", "parser", "post_training", "reduce_range"]

PLACES = {"x86": "x86", "armv8": "arm"}
HIST_PERCENTS = (0.999, 0.9999, 0.99999)
TIE = 0.005  # AP33: candidates nearer than this are told apart by the error of their confidences


@dataclass(frozen=True)
class Candidate:
    """A way to find the scales of activations; `percent` is the share of values that `hist` keeps."""

    algorithm: str
    percent: float = PERCENT

    @property
    def name(self) -> str:
        """What tells it from the others.

        >>> Candidate("hist", 0.999).name, Candidate("KL").name
        ('hist_0.999', 'KL')
        """
        return f"hist_{self.percent}" if self.algorithm == "hist" else self.algorithm


@dataclass(frozen=True)
class Score:
    """How a quantized model does on some images against the FP32 one.

    Attributes:
        ap33: pooled AP at IoU 0.33, in [0, 1]. rms: of the difference of the raw outputs.
        rms_confidence: of the difference of the confidences of all cells, in [0, 1].
    """

    ap33: float
    rms: float
    rms_confidence: float


class Recorder:
    """A predictor that keeps what it answered."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self.outputs: list[list[Float]] = []

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of one input (1, C, H, W)."""
        self.outputs.append(self._predictor.run(tensor))
        return self.outputs[-1]


def candidates(algorithm: str | None, percent: float) -> list[Candidate]:
    """All ways to try, or the one that is asked for."""
    if algorithm is not None:
        return [Candidate(algorithm, percent)]
    return [*(Candidate("hist", p) for p in HIST_PERCENTS), *(Candidate(a) for a in ALGORITHMS if a != "hist")]


def best(scores: dict[str, Score]) -> str:
    """The name of the best: of all whose AP33 is about the highest, the one with the least error.

    >>> good, same, bad = Score(0.95, 0.5, 0.02), Score(0.9505, 0.4, 0.03), Score(0.9, 0.1, 0.01)
    >>> best({"a": good, "b": same, "c": bad})
    'a'
    """
    highest = max(score.ap33 for score in scores.values())
    near = {name: score for name, score in scores.items() if score.ap33 >= highest - TIE}
    return min(near, key=lambda name: near[name].rms_confidence)


def differences(want: Sequence[Sequence[Float]], got: Sequence[Sequence[Float]]) -> tuple[float, float]:
    """RMS difference of the raw outputs of some images, and of their confidences."""
    raw = [np.square(a - b).mean() for w, g in zip(want, got, strict=True) for a, b in zip(w, g, strict=True)]
    confidence = [np.square(_sigmoid(w[0]) - _sigmoid(g[0])).mean() for w, g in zip(want, got, strict=True)]
    return float(np.sqrt(np.mean(raw))), float(np.sqrt(np.mean(confidence)))


def _sigmoid(x: Float) -> Float:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)


class Judge:
    """Measures models on fixed samples, against the outputs of the FP32 model on the same."""

    def __init__(self, data: Dataset, samples: Sequence[Sample], fp32: Path):
        self._data, self._samples, self._fp32 = data, samples, fp32
        self._want: list[list[Float]] = []
        self._most = 1.0

    def figures(self, folder: Path, name: str) -> dict[str, Any]:
        """All figures of the model in `folder`."""
        return self._figures(StaticModel.load(folder), name)

    def score(self, folder: Path, name: str) -> Score:
        """The model in `folder` against FP32. An AP33 over FP32's counts as FP32's: on a few images it is chance."""
        if not self._want:
            fp32 = Recorder(StaticModel.load(self._fp32))
            self._most = float(self._figures(fp32, "fp32")["ap33_pooled"])
            self._want = fp32.outputs
        recorder = Recorder(StaticModel.load(folder))
        result = self._figures(recorder, name)
        rms, rms_confidence = differences(self._want, recorder.outputs)
        return Score(min(result["ap33_pooled"], self._most), round(rms, 5), round(rms_confidence, 6))

    def _figures(self, predictor: Predictor, name: str) -> dict[str, Any]:
        images = (read_image(sample.image, self._data.spec.channels) for sample in self._samples)
        shown = tqdm(images, f"judge {name}", len(self._samples), mininterval=5)
        found = detect_all(predictor, shown, self._data.spec)
        known = [sample.known for sample in self._samples]
        return figures(found, truth_of(self._samples), self._data.classes, known)


def spread_out(samples: Sequence[Sample], count: int, without: Sequence[str]) -> list[Sample]:
    """`count` of the samples evenly over all, leaving out those named in `without`; 0: all."""
    left = [sample for sample in samples if sample.name not in set(without)] or list(samples)
    if not count or count >= len(left):
        return left
    return [left[i] for i in np.linspace(0, len(left) - 1, count).round().astype(int)]


def quantize(fp32: Path, out: Path, tensor: Float, plan: Plan) -> None:
    """Quantize the model in `fp32` as planned, into `out`; the scales of its activations are still to be set.

    Args:
        tensor: any input of the network, (C, H, W).

    Raises:
        ToolError: the plan quantizes nothing.
    """
    if not any(layer.int8 for layer in plan.layers):
        raise ToolError(f"the plan for {plan.target} keeps all layers FP32: ship the FP32 model, or make another plan")
    post_training(fp32, out, [tensor], "abs_max", plan.skipped())


def with_scales(quantized: Path, out: Path, plan: Plan, scales: Mapping[str, float]) -> None:
    """The model of `quantize` with these scales, and its weights in the planned range, into `out`.

    Args:
        scales: largest magnitude that the input of each quantized layer keeps, by the layer's name.
    """
    model = StaticModel.load(quantized)
    set_scales(model, {layer.filter: scales[layer.name] for layer in plan.layers if layer.int8})
    if plan.weights == "reduced":
        reduce_range(model)
    model.save(out)


def all_scales(
    fp32: Path, tensors: Sequence[Float], plan: Plan, tried: Sequence[Candidate]
) -> dict[str, dict[str, float]]:
    """For each candidate the scale of the input of each quantized layer, by the layer's name."""
    planned = {layer.filter: layer.name for layer in plan.layers if layer.int8}
    histograms = collect(fp32, list(planned), tensors)
    return {
        c.name: {planned[f]: scale_of(h, c.algorithm, c.percent) for f, h in histograms.items()} for c in tried
    }


@dataclass(frozen=True)
class Work:
    """What the parts of the step share."""

    args: argparse.Namespace
    data: Dataset
    plan: Plan
    tensors: Sequence[Float]  # calibration inputs, (C, H, W) each
    journal: Journal

    def folder(self, name: str) -> Path:
        """Where the model of a candidate is, or of `qat`."""
        return Path(self.args.out) / "work" / name


def compare(work: Work, judge: Judge) -> tuple[str, dict[str, Score], dict[str, float]]:
    """Try every candidate; returns the best's name, whose model is in its folder, all scores, and the best's scales."""
    tried = candidates(work.args.algorithm, work.args.percent)
    if "scales" not in work.journal:
        shutil.rmtree(work.folder("base"), ignore_errors=True)  # of another plan or model
    scales = work.journal.once("scales", lambda: all_scales(work.args.model, work.tensors, work.plan, tried))

    def made(name: str) -> Path:
        if not (work.folder("base") / WEIGHTS).is_file():
            quantize(work.args.model, work.folder("base"), work.tensors[0], work.plan)
        with_scales(work.folder("base"), work.folder(name), work.plan, scales[name])
        return work.folder(name)

    scores = {
        name: Score(**work.journal.once(name, lambda name=name: asdict(judge.score(made(name), name))))
        for name in scales
    }
    name = best(scores)
    if not (work.folder(name) / PROGRAM).is_file():  # scored by an earlier call, and cleared away since
        made(name)
    return name, scores, scales[name]


def choose_plan(args: argparse.Namespace) -> Plan:
    """The plan that is given, or one made from a table.

    Raises:
        ToolError: it is for another target or another network.
    """
    layers = read_layers(args.model)
    if args.plan is None:
        return plan_for(args, layers)
    if args.table or args.keep_fp32:
        raise ToolError("--plan says all; --table and --keep-fp32 are for making one")
    plan = read_plan(args.plan)
    if plan.target != args.target:
        raise ToolError(f"{args.plan}: is for {plan.target}, --target is {args.target}")
    return check_fits(plan, layers, args.plan)


def table_of(scores: dict[str, Score], chosen: str) -> str:
    """The comparison for people."""
    width = max(len(name) for name in scores)
    lines = [f"{'algorithm':<{width}}     AP33  rms output  rms confidence"]
    for name, score in sorted(scores.items(), key=lambda item: -item[1].ap33):
        mark = "  <- kept" if name == chosen else ""
        lines.append(f"{name:<{width}}  {score.ap33:7.4f}  {score.rms:10.4f}  {score.rms_confidence:14.5f}{mark}")
    return "\n".join(lines)


def draw(path: Path, scores: dict[str, Score], chosen: str) -> None:
    """AP33 and error of each algorithm, as PNG."""
    names = list(scores)
    colours = ["tab:orange" if name == chosen else "tab:blue" for name in names]
    with figure(path, "Calibration algorithms (orange: kept)", ncols=2, figsize=(9, 3.8)) as (left, right):
        left.bar(names, [scores[name].ap33 for name in names], color=colours)
        low = min(score.ap33 for score in scores.values())
        left.set_ylim(max(0.0, low - 0.02), min(1.0, max(score.ap33 for score in scores.values()) + 0.01))
        left.set_ylabel("pooled AP33")
        right.bar(names, [scores[name].rms_confidence for name in names], color=colours)
        right.set_ylabel("RMS error of confidences")
        for axes in (left, right):
            axes.tick_params(axis="x", rotation=40)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools quantize", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--model", type=Path, required=True, help="folder of the exported FP32 model")
    p.add_argument("--target", choices=sorted(PLACES), required=True)
    p.add_argument("--plan", type=Path, help="from `plan` (default: made here, by what follows)")
    add_arguments(p)
    p.add_argument("--calibration", type=Path, help="of `calibration` (default: calibration_data/PRODUCT/images.json)")
    p.add_argument("--images", type=int, default=0, help="calibrate with the first so many of the list; 0: all")
    p.add_argument("--algorithm", choices=ALGORITHMS, help="use this one (default: the best of all)")
    p.add_argument("--percent", type=float, default=PERCENT, help="with --algorithm hist: share of values kept")
    p.add_argument("--compare-on", type=int, default=48, help="training images that judge the algorithms (%(default)s)")
    p.add_argument("--limit", type=float, default=0.2, help="points of pooled AP33 that INT8 may lose (%(default)s)")
    p.add_argument("--checkpoint", type=Path, help="what --model was exported from, to train on from if need be")
    p.add_argument("--train-minutes", type=float, default=10.0, help="of quantization-aware training (%(default)s)")
    p.add_argument("--train", action="store_true", help="train in any case")
    p.add_argument("--max-steps", type=int, default=0, help="of the training, for a dry run; 0: no")
    p.add_argument("--processes", type=int, default=2, help="of the training (%(default)s)")
    p.add_argument("--out", type=Path, required=True, help="folder of the quantized model, journal, record and plot")
    p.add_argument("--nb", type=Path, required=True, help="the compiled model, ends in .nb")
    return p


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is computed.

    Raises:
        ToolError: with what is wrong.
    """
    if args.nb.suffix != ".nb":
        raise ToolError(f"--nb {args.nb}: a compiled model's name ends in .nb")
    if not 0 < args.percent <= 1:
        raise ToolError(f"--percent {args.percent}: expected a share in (0, 1]")
    if args.train and args.checkpoint is None:
        raise ToolError("--train needs --checkpoint, the one that --model was exported from")
    for name in (PROGRAM, WEIGHTS):
        if not (args.model / name).is_file():
            raise ToolError(f"{args.model / name}: missing; `python -m tools export` writes the model")


def prepare(args: argparse.Namespace) -> tuple[Work, list[Sample], dict[str, Any]]:
    """Read all that is needed; returns it, the calibration samples, and what the results depend on."""
    data, plan = read_dataset(args.data), choose_plan(args)
    listed = list_for(data, args.calibration)
    chosen = read_list(listed, data)[: args.images or None]
    tensors = [preprocess(read_image(x.image, data.spec.channels), data.spec)[0][0] for x in chosen]
    depends = {
        "model": model_hash(args.model),
        "data": data_hash(data.samples),
        "calibration": sha256_file(listed),
        "images": len(tensors),
        "plan": asdict(plan),
        "compare_on": args.compare_on,
        "algorithm": args.algorithm and [args.algorithm, args.percent],
    }
    return Work(args, data, plan, tensors, Journal(args.out / "quantize.journal", depends)), chosen, depends


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on where it was stopped."""
    args = parser().parse_args(arguments)
    check(args)
    faster_training()  # the simulations gain as much; nothing is timed here
    work, chosen, depends = prepare(args)
    plan, journal, held = work.plan, work.journal, work.data.part("validation")
    print(show(plan))
    samples = spread_out(work.data.part("train"), args.compare_on, [x.name for x in chosen])
    name, scores, scales = compare(work, Judge(work.data, samples, args.model))
    print(table_of(scores, name))
    draw(args.out / "quantize.png", scores, name)
    judge = Judge(work.data, held, args.model)
    fp32 = journal.once("validation fp32", lambda: judge.figures(args.model, "fp32"))
    results = {name: journal.once(f"validation {name}", lambda: judge.figures(work.folder(name), name))}
    if args.checkpoint is not None and (args.train or lost(fp32, results[name]) > args.limit):
        key = f"training {args.train_minutes} {args.max_steps}"
        train(work, scales, key)
        results["qat"] = journal.once(f"validation {key}", lambda: judge.figures(work.folder("qat"), "qat"))
    outcome = {
        "kept": max(results, key=lambda each: results[each]["ap33_pooled"]),
        "algorithms": {each: asdict(score) for each, score in scores.items()},
        "validation": {"fp32": fp32, **results},
        "lost_points": {each: round(lost(fp32, result), 3) for each, result in results.items()},
        "int8_layers": [layer.name for layer in plan.layers if layer.int8],
        "fp32_layers": [layer.name for layer in plan.layers if layer.filter and not layer.int8],
        "weights": plan.weights,
        "expected": {"int8": plan.total(), "fp32": plan.total(False), "unit": plan.unit, "machine": plan.machine},
    }
    finish(args, work.folder(outcome["kept"]), outcome, {**vars(args), "depends": depends})


def lost(fp32: dict[str, Any], int8: dict[str, Any]) -> float:
    """Points of pooled AP33 that INT8 loses; negative where it gains."""
    return 100 * (fp32["ap33_pooled"] - int8["ap33_pooled"])


def train(work: Work, scales: Mapping[str, float], key: str) -> None:
    """Quantization-aware training from the checkpoint; what comes of it is quantized into the folder of `qat`.

    Args:
        scales: of the post-training model, by the layer's name. key: names this training in the journal.
    """
    args, out = work.args, work.args.out / "training"
    qat.check_origin(args.checkpoint, args.model, work.plan)
    config = qat.settings(args.data, args.checkpoint, out, args.train_minutes, args.max_steps, args.processes)
    trained = qat.fine_tune(config, work.plan, scales, work.data, work.journal, key)
    plan = check_fits(work.plan, read_layers(trained.folder), out)
    quantize(trained.folder, out / "int8", work.tensors[0], plan)
    with_scales(out / "int8", work.folder("qat"), plan, trained.scales)


def finish(args: argparse.Namespace, folder: Path, outcome: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the model, its `.nb` and the record.

    Raises:
        ToolError: the model loses more than the limit; the record is written, the `.nb` is not.
    """
    points = outcome["lost_points"][outcome["kept"]]
    fits = points <= args.limit
    for name in (PROGRAM, WEIGHTS):
        shutil.copy(folder / name, args.out / name)
    if fits:
        compile_nb(args.out, args.nb, PLACES[args.target])
        outcome["nb_bytes"] = args.nb.stat().st_size
    write_record(args.out / "quantize.json", "quantize", settings, outcome)
    if not fits:
        how = "raise --train-minutes" if args.checkpoint else "give --checkpoint for quantization-aware training"
        raise ToolError(
            f"{args.nb}: not written: INT8 ({outcome['kept']}) loses {points:.2f} points of pooled AP33, allowed are "
            f"{args.limit:g}; {how}, keep layers FP32 with --keep-fp32, or raise --limit"
        )
    layers, size = len(outcome["int8_layers"]), outcome["nb_bytes"]
    print(f"{args.nb}: {layers} layers INT8, {outcome['kept']}, {points:+.2f} points of AP33 lost, {size} bytes")
