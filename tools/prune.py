"""Take out the channels that a detector can spare, then train on what is left.

A width of the network can only change as a whole: a residual sum ties the outputs of all its blocks. paddleslim's
pruner finds the tied layers in the traced program, ranks their channels by L1 norm (Li et al., arXiv:1608.08710) and
takes them out. Each width is first cut alone, at several ratios, to see what accuracy it costs; then channels go in
steps of `ALIGN` wherever they cost least for the multiplications they save, until the goal is reached; then the network
is trained on, with itself before the cut as teacher. Before a cut network is judged, BatchNorm's statistics follow the
cut (EagleEye, Li et al., arXiv:2007.02491): most of what a cut seems to cost is only that they no longer fit. What it
costs is measured on training images, so that the validation images stay fit to judge the result.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from edge.preprocess import InputSpec, preprocess
from tools.checkpoint import copy_state, network_of, read_checkpoint, write_checkpoint
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, sha256_file
from tools.device_runtime import DevicePredictor
from tools.distill import DistillConfig, hooks
from tools.errors import ToolError
from tools.journal import Journal
from tools.network import Detector, NetworkConfig
from tools.paddle_model import compile_nb, save_layer
from tools.plots import figure
from tools.run_record import write_record
from tools.stages import lasting, measure, parameter_count, train_once
from tools.train import Hooks, TrainConfig, add_arguments, check, refuse_other_data, spread

ALIGN = 8  # widths stay multiples of it: vector units work on so many channels at once
TRACE_SIDE = 64  # of the input that shows paddleslim which layers are tied
STATISTICS_IMAGES = 8  # for BatchNorm after a cut
TIMING_TURNS, TIMING_ROUNDS = 8, 5
LATENCY_TRIES, LATENCY_MARGIN = 4, 0.03
PRUNED = "pruned.pdckpt"


@dataclass(frozen=True)
class Cut:
    """One width of the network.

    Attributes:
        name: the field of `NetworkConfig`, or `inner.3` for the inside of the fourth block.
        layers: convolutions whose outputs have this width, one for each group of layers that a sum ties together.
        width: channels before pruning.
    """

    name: str
    layers: tuple[str, ...]
    width: int


def cuts_of(config: NetworkConfig) -> list[Cut]:
    """The widths of a network that pruning may change.

    >>> config = NetworkConfig(depth8=1, depth16=0, depth32=0, width8=48, neck=64, expand=2)
    >>> [(cut.name, cut.width) for cut in cuts_of(config)][-3:-1]
    [('inner.0', 96), ('inner.1', 128)]
    """
    counts = {"stage8": config.depth8, "stage16": config.depth16, "stage32": config.depth32}
    blocks = [f"{stage}.{i}" for stage, count in counts.items() for i in range(count)] + ["fuse16", "fuse8"]
    first = "expand" if config.block == "mixer" else "first"
    outer = {"stem": "stem", "width8": "down8", "width16": "down16", "width32": "down32"}
    found = [Cut(name, (layer,), getattr(config, name)) for name, layer in outer.items()]
    found.append(Cut("neck", ("lateral32", "cls_tower", "reg_tower"), config.neck))
    inner = config.inner_widths()
    return found + [Cut(f"inner.{i}", (f"{block}.{first}",), inner[i]) for i, block in enumerate(blocks)]


def with_widths(config: NetworkConfig, widths: Mapping[str, int]) -> NetworkConfig:
    """The network with other widths, by name of the cut; the others stay."""
    inner = tuple(widths.get(f"inner.{i}", width) for i, width in enumerate(config.inner_widths()))
    outer = {name: width for name, width in widths.items() if not name.startswith("inner.")}
    return replace(config, inner=inner, **outer)


def multiply_adds(config: NetworkConfig, spec: InputSpec) -> int:
    """Multiplications of one inference, in all convolutions.

    >>> small, large = (multiply_adds(NetworkConfig(), InputSpec(side, side, 1)) for side in (320, 640))
    >>> small > 10**7, large == 4 * small
    (True, True)
    """
    c, square = config, config.kernel**2
    layers = [  # stride of the output, multiplications a cell
        (4, c.channels * c.stem * 64),
        (8, c.stem * c.width8 * 4),
        (16, c.width8 * c.width16 * 4),
        (32, c.width16 * c.width32 * 4),
        (8, c.width8 * c.neck),
        (16, c.width16 * c.neck),
        (32, c.width32 * c.neck),
        (8, 2 * c.neck**2 + c.neck * (c.classes + 4)),
    ]
    strides = [8] * c.depth8 + [16] * c.depth16 + [32] * c.depth32 + [16, 8]
    for stride, width, inner in zip(strides, c.block_widths(), c.inner_widths(), strict=True):
        layers.append((stride, width * square + 2 * width * inner if c.block == "mixer" else 18 * width * inner))
    return sum(spec.width * spec.height // stride**2 * cost for stride, cost in layers)


class Pruner:
    """paddleslim's pruner around one network, with the layers' own names.

    Args:
        network: in evaluation mode; it stays as it is.
        images: (B, C, H, W) that show how a cut changes BatchNorm's inputs.

    Raises:
        ToolError: paddleslim does not find the layers of a cut.
    """

    def __init__(self, network: Detector, images: paddle.Tensor):
        from paddleslim.dygraph import L1NormFilterPruner  # slow to import

        self.network, self._images = network, images
        self._seen = statistics(network, images)
        shape = [1, network.config.channels, TRACE_SIDE, TRACE_SIDE]
        with _quiet():
            self._pruner = L1NormFilterPruner(network, shape)
        self._names = names = {parameter.name: name for name, parameter in network.named_parameters()}
        self._master = {
            names[detail.name].removesuffix(".conv.weight"): group.master_name
            for group in self._pruner.collections
            for detail in group.all_pruning_details()
            if detail.axis == 0 and names.get(detail.name, "").endswith(".conv.weight")
        }

    def cut(self, cuts: Sequence[Cut], widths: Mapping[str, int]) -> Detector:
        """A new network with the strongest channels of this one: `widths` of them, by name of the cut."""
        ratios = {}
        for cut in cuts:
            for layer in cut.layers if widths.get(cut.name, cut.width) < cut.width else ():
                if layer not in self._master:
                    raise ToolError(f"paddleslim finds no channels to prune in {layer}, which sets {cut.name}")
                ratios[self._master[layer]] = (cut.width - widths[cut.name]) / cut.width
        with _quiet():
            plan = self._pruner.prune_vars(ratios, 0)
            state = {name: value.numpy() for name, value in self.network.state_dict().items()}
            plan.restore(self.network)
        small = Detector(with_widths(self.network.config, widths))
        missing, _ = small.set_state_dict(state)
        if missing:
            raise ToolError(f"paddleslim cut a network that does not fit the widths {dict(widths)}: {missing}")
        small.eval()
        masks = {self._names.get(name, ""): found[0].mask for name, found in plan.masks.items()}
        self._follow(small, {name: np.array(mask, bool) for name, mask in masks.items()})
        return small

    def _follow(self, small: Detector, kept: Mapping[str, np.ndarray]) -> None:
        """Change BatchNorm's statistics as the cut changes those of the images.

        Not simply those of the images: the old ones come from augmented crops, and whole clean images have others.
        """
        state = small.state_dict()
        for name, now in statistics(small, self._images).items():
            before = self._seen[name][kept.get(name, slice(None))]
            old, factor = state[name].numpy(), np.clip((now + 1e-9) / (before + 1e-9), 0.01, 100)
            state[name].set_value(old + now - before if name.endswith("_mean") else old * factor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without paddleslim's line for each layer it touches."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def statistics(network: Detector, images: paddle.Tensor) -> dict[str, np.ndarray]:
    """Means and variances that BatchNorm layers see on `images` (B, C, H, W), by name; the network stays as it is."""
    norms = [layer for layer in network.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    mine = {name: value for name, value in network.state_dict().items() if name.endswith(("._mean", "._variance"))}
    before = {name: value.numpy() for name, value in mine.items()}
    momentum = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 0.0
        norm.train()
    with paddle.no_grad():
        network(images)
    for norm, old in zip(norms, momentum, strict=True):
        norm._momentum = old
        norm.eval()
    seen = {name: value.numpy() for name, value in mine.items()}
    for name, value in mine.items():
        value.set_value(before[name])
    return seen


def whole_images(samples: Sequence[Sample], spec: InputSpec) -> paddle.Tensor:
    """The samples' images as the network gets them: (B, C, H, W)."""
    tensors = [preprocess(read_image(sample.image, spec.channels), spec)[0] for sample in samples]
    return paddle.to_tensor(np.concatenate(tensors))


def widths_to_try(width: int, ratios: Sequence[float]) -> list[int]:
    """Widths, in steps of `ALIGN` and falling, that leave out about these shares.

    >>> widths_to_try(64, [0.25, 0.5, 0.55]), widths_to_try(8, [0.5])
    ([48, 32], [])
    """
    tried = {max(ALIGN, ALIGN * round(width * (1 - ratio) / ALIGN)) for ratio in ratios}
    return sorted((kept for kept in tried if kept < width), reverse=True)


def sensitivity(
    pruner: Pruner, cuts: Sequence[Cut], ratios: Sequence[float], score: Callable[[Detector], float], journal: Journal
) -> dict[str, dict[int, float]]:
    """What each cut alone costs: loss of `score` by name and width, in points of the score."""
    baseline = journal.once("uncut", lambda: score(pruner.cut(cuts, {})))
    todo = [(cut, kept) for cut in cuts for kept in widths_to_try(cut.width, ratios)]
    costs: dict[str, dict[int, float]] = {cut.name: {cut.width: 0.0} for cut in cuts}
    for cut, kept in tqdm(todo, "sensitivity", mininterval=5):
        measured = journal.once(f"{cut.name} {kept}", lambda c=cut, k=kept: score(pruner.cut(cuts, {c.name: k})))
        costs[cut.name][kept] = baseline - measured
    return costs


def cost_at(costs: Mapping[int, float], width: int) -> float:
    """What a cut to `width` costs, between the measured widths in a straight line; never less than a smaller cut.

    >>> cost_at({64: 0.0, 48: 0.02, 32: 0.01}, 56), cost_at({64: 0.0, 48: 0.02, 32: 0.01}, 32)
    (0.01, 0.02)
    """
    widths = sorted(costs, reverse=True)
    rising = np.maximum.accumulate([costs[w] for w in widths])
    return float(np.interp(-width, [-w for w in widths], rising))


def choose_widths(
    config: NetworkConfig,
    spec: InputSpec,
    costs: Mapping[str, Mapping[int, float]],
    goal: float,
    most_loss: float,
) -> dict[str, int]:
    """Cut where it costs least for what it saves, until `goal` of the multiplications is left.

    Args:
        costs: by name and width, as `sensitivity` gives them. goal: share to keep, in (0, 1).
        most_loss: no width is cut so far that it alone costs more.

    Raises:
        ToolError: the goal is out of reach.
    """
    widths = {name: max(measured) for name, measured in costs.items()}
    whole = multiply_adds(config, spec)
    while (now := multiply_adds(with_widths(config, widths), spec)) > goal * whole:
        options = []
        for name, kept in widths.items():
            smaller = kept - ALIGN
            after = cost_at(costs[name], smaller)
            if smaller < min(costs[name]) or after > most_loss:
                continue
            saved = now - multiply_adds(with_widths(config, {**widths, name: smaller}), spec)
            options.append(((after - cost_at(costs[name], kept) + 1e-4) / saved, name))
        if not options:
            raise ToolError(
                f"only {1 - now / whole:.0%} of the multiplications can go while no width alone costs more than "
                f"{most_loss:.3f}, and {1 - goal:.0%} should: ask for less, or raise --most-loss or --ratios"
            )
        widths[min(options)[1]] -= ALIGN
    return widths


def compile_network(network: Detector, spec: InputSpec, folder: Path) -> Path:
    """The network as an FP32 `.nb` for this machine's Paddle Lite."""
    save_layer(network, folder, spec)
    target = folder / "detector.nb"
    compile_nb(folder, target, "x86")
    return target


def time_against(models: Sequence[Path], spec: InputSpec) -> list[float]:
    """Median time of one inference of each `.nb` in ms, measured in turns so that the machine's mood is shared."""
    tensor = np.random.default_rng(0).random((1, spec.channels, spec.height, spec.width)).astype(np.float32)
    predictors = [DevicePredictor(model) for model in models]
    times: list[list[float]] = [[] for _ in models]
    for turn in range(TIMING_TURNS + 1):
        for mine, predictor in zip(times, predictors, strict=True):
            took = predictor.time_ms(tensor, TIMING_ROUNDS)
            mine += took if turn else []  # the first turn warms up
    for predictor in predictors:
        predictor.close()
    return [float(np.median(mine)) for mine in times]


def widths_for_latency(
    choose: Callable[[float], dict[str, int]], latency: Callable[[dict[str, int]], float], target: float
) -> dict[str, int]:
    """Search the share of multiplications that gives a share of the time.

    Args:
        choose: widths for a share of multiplications. latency: share of the time that such widths take.
        target: wanted share of the time, in (0, 1).
    """
    low, high, goal = 0.0, 1.0, target
    widths = choose(goal)
    for _ in range(LATENCY_TRIES):
        took = latency(widths)
        if abs(took - target) <= LATENCY_MARGIN:
            break
        low, high = (low, goal) if took > target else (goal, high)
        guess = goal * target / took
        goal = guess if low < guess < high else (low + high) / 2
        widths = choose(goal)
    return widths


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools prune", description=__doc__.splitlines()[0])
    add_arguments(p)
    p.set_defaults(epochs=30, rate=6e-4, warmup_steps=50, full_from=0.8)
    p.add_argument("--checkpoint", required=True, dest="start_from", help="the network to prune")
    goal = p.add_mutually_exclusive_group()
    goal.add_argument("--keep", type=float, default=0.7, help="share of the multiplications to keep (%(default)s)")
    goal.add_argument("--latency-target", type=float, default=0.0, help="share of the FP32 .nb's time to keep instead")
    p.add_argument("--most-loss", type=float, default=0.05, help="AP33 that one width alone may cost (%(default)s)")
    p.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="to measure (%(default)s)")
    p.add_argument("--images", type=int, default=32, help="training images for the sensitivity; 0: all (%(default)s)")
    p.add_argument("--no-teacher", action="store_true", help="train on labels alone after the cut")
    p.add_argument("--no-nb", action="store_true", help="without size and time of the .nb")
    return p


@dataclass(frozen=True)
class Settings:
    """The knobs of the step beside training's; see `parser`."""

    keep: float
    latency_target: float
    most_loss: float
    ratios: tuple[float, ...]
    images: int
    no_teacher: bool
    no_nb: bool

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ToolError: with the option and what it expects.
        """
        for name, value in (("--keep", self.keep), *(("--ratios", ratio) for ratio in self.ratios)):
            if not 0 < value < 1:
                raise ToolError(f"{name} {value}: expected a share between 0 and 1")
        if not 0 <= self.latency_target < 1:
            raise ToolError(f"--latency-target {self.latency_target}: expected a share between 0 and 1")
        if not 0 <= self.most_loss <= 1 or self.images < 0:
            raise ToolError("--most-loss must be a share from 0 to 1 and --images a number from 0 on")


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on after a stop."""
    values = vars(parser().parse_args(arguments))
    values["ratios"] = tuple(values["ratios"])
    settings = Settings(**{name: values.pop(name) for name in Settings.__dataclass_fields__})
    settings.check()
    training = TrainConfig(**values)
    check(training)
    data, source = read_dataset(Path(training.data)), Path(training.start_from)
    saved = read_checkpoint(source)
    refuse_other_data(saved, data, source)
    network, out = network_of(saved, source), Path(training.out)
    depends = {"data": data_hash(data.samples), "checkpoint": sha256_file(source)}
    journal = Journal(out / "sensitivity.journal", {**depends, "images": settings.images})
    costs = measure_costs(network, data, settings, journal)
    draw_costs(out / "prune.png", costs)
    depends |= {"prune": asdict(settings), "train": lasting(training)}
    journal = Journal(out / "prune.journal", depends)
    small = journal.once("widths", partial(prune, network, data, costs, settings, out))
    pruned = out / PRUNED
    tuning = replace(training, start_from=str(pruned), resume=False)
    step = "prune-training"
    with_teacher = hooks(source, DistillConfig(), step)
    tuned = train_once(tuning, Hooks(step=step) if settings.no_teacher else with_teacher, journal, "training")
    forms = {"before": source, "pruned": pruned, "tuned": tuned}
    results = {name: journal.once(name, partial(describe, path, data)) for name, path in forms.items()}
    if not settings.no_nb:
        for name, extra in journal.once("nb", partial(describe_nb, forms, data.spec, out)).items():
            results[name] |= extra
    results |= {"widths": small, "costs": costs}
    write_record(out / "prune.json", "prune", {**asdict(training), **asdict(settings), "depends": depends}, results)
    report(results, forms)


def pruner_of(network: Detector, data: Dataset) -> Pruner:
    """The pruner with some training images."""
    return Pruner(network, whole_images(spread(data.part("train"), STATISTICS_IMAGES), data.spec))


def measure_costs(
    network: Detector, data: Dataset, settings: Settings, journal: Journal
) -> dict[str, dict[int, float]]:
    """The sensitivity of every width, in AP33 on training images."""
    train = data.part("train")
    judged = spread(train, settings.images)

    def score(candidate: Detector) -> float:
        return float(measure(candidate, data, judged)["ap33_pooled"])

    return sensitivity(pruner_of(network, data), cuts_of(network.config), settings.ratios, score, journal)


def prune(
    network: Detector, data: Dataset, costs: Mapping[str, Mapping[int, float]], settings: Settings, out: Path
) -> dict[str, int]:
    """Choose widths, cut, and write the checkpoint that training goes on from; returns the widths."""
    cuts, pruner = cuts_of(network.config), pruner_of(network, data)

    def choose(goal: float) -> dict[str, int]:
        return choose_widths(network.config, data.spec, costs, goal, settings.most_loss)

    def latency(widths: Mapping[str, int]) -> float:
        small = pruner.cut(cuts, widths)
        models = [compile_network(n, data.spec, out / "latency" / k) for k, n in (("old", network), ("new", small))]
        old, new = time_against(models, data.spec)
        print(f"{multiply_adds(small.config, data.spec) / 1e6:.1f} M multiplications: {new / old:.2f} of the time")
        return new / old

    target = settings.latency_target
    widths = widths_for_latency(choose, latency, target) if target else choose(settings.keep)
    small = pruner.cut(cuts, widths)
    write_checkpoint(out / PRUNED, small, copy_state(small), data)
    return widths


def describe(checkpoint: Path, data: Dataset) -> dict[str, Any]:
    """Size and validation figures of a network."""
    saved = read_checkpoint(checkpoint)
    network = network_of(saved, checkpoint)
    return {
        "multiply_adds": multiply_adds(saved.network_config, data.spec),
        "parameters": parameter_count(network),
        "network": saved.network_config.as_dict(),
        "validation": measure(network, data, data.part("validation"), f"evaluate {checkpoint.name}"),
    }


def describe_nb(forms: Mapping[str, Path], spec: InputSpec, out: Path) -> dict[str, dict[str, float]]:
    """Bytes and time of the FP32 `.nb` of each network."""
    models = {
        name: compile_network(network_of(read_checkpoint(path), path), spec, out / "nb" / name)
        for name, path in forms.items()
    }
    times = time_against(list(models.values()), spec)
    return {
        name: {"nb_bytes": model.stat().st_size, "nb_ms": round(took, 3)}
        for (name, model), took in zip(models.items(), times, strict=True)
    }


def draw_costs(path: Path, costs: Mapping[str, Mapping[int, float]]) -> None:
    """A line a width: AP33 lost against the share of channels that is left."""
    with figure(path, "What each width costs when it alone is cut", "share of the channels kept", "AP33 lost") as axes:
        for k, (name, measured) in enumerate(costs.items()):
            kept = sorted(measured)
            shares = [width / max(kept) for width in kept]
            axes.plot(shares, [measured[width] for width in kept], "o-" if k < 10 else "s--", label=name, markersize=3)
        axes.invert_xaxis()
        axes.legend(ncols=2, fontsize=7)


def report(results: Mapping[str, Any], forms: Mapping[str, Path]) -> None:
    """Print the table of before and after."""
    print(f"{'':<8}{'M mul':>8}{'k par':>8}{'AP33':>8}{'mAP50':>8}{'.nb kB':>8}{'ms':>8}")
    for name in forms:
        r = results[name]
        figures = r["validation"]
        line = f"{name:<8}{r['multiply_adds'] / 1e6:>8.1f}{r['parameters'] / 1e3:>8.1f}"
        line += f"{figures['ap33_pooled']:>8.4f}{figures['map50']:>8.4f}"
        print(line + (f"{r['nb_bytes'] / 1e3:>8.0f}{r['nb_ms']:>8.2f}" if "nb_ms" in r else ""))
