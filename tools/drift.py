"""Train a product's drift autoencoder and write all that the drift monitor needs of a bundle.

    python -m tools drift --data runs/pcb-data --detector runs/pcb/detector.x86_64.int8.nb --out runs/pcb-drift

Learns from the good frames of the training split (templates, inspected images that have one, unlabelled images), then
judges itself on those of the validation split: quiet where the part is turned or moved as allowed and the sensor is
noisy as any sensor is, far off where light, focus, dirt or the product change. The baseline of every signal of the
monitor is measured on the same frames with the device's own code and the INT8 model that will run. Stopped at any time,
--resume goes on.

    drift.x86_64.int8.nb, drift.armv8.int8.nb, drift.onnx    the model
    drift.json                                               the monitor's settings (`edge.drift.settings`)
    drift_run.json                                           the run record
    train.png, errors.png, table.md                          how it went; painted.png shows frames: not to be published
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.boxes import Float
from edge.drift import settings as drift_settings
from edge.drift.baseline import numbers, score
from edge.drift.plan import PLANS
from edge.drift.reconstruct import in_squares
from edge.preprocess import Image
from tools.autoencoder import Autoencoder, AutoencoderConfig
from tools.contact_sheet import Tile, write_sheets
from tools.dataset import Dataset, read_dataset, sha256_file
from tools.device_runtime import DevicePredictor
from tools.drift_baseline import Baseline, detector_of, measure_baseline
from tools.drift_frames import Allowed, conditions, files_below, frame_files, pictures, read_grey, spread
from tools.drift_score import Errors, Seen, errors_of, judge, separation, table
from tools.drift_train import CHECKPOINT, TrainConfig, Training, draw_pictures, plot_losses, train
from tools.errors import ToolError
from tools.evaluate import choose_recipe
from tools.judge_model import FORMS, write_judge
from tools.latency import percentiles, time_in_turns
from tools.machine import faster_training
from tools.paddle_model import StaticModel
from tools.plots import figure
from tools.run_record import write_record
from tools.runtimes import LayerPredictor

NAME = "drift"
CALIBRATION_FRAMES = 64
MOST_SHIFT = 0.25  # of the mean score of good frames by an INT8 model, from the FP32 network's; sigmas
ROUNDS = 200  # of timing


def check_network(path: Path | None, quarter: bool) -> AutoencoderConfig:
    """The network of a JSON file of `drift_search`, or the default one.

    Raises:
        ToolError: it is not one.
    """
    if path is None:
        return AutoencoderConfig()
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return AutoencoderConfig(**read.get("network", read))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ToolError(f"--network {path}: not a network of `drift_search`: {error}") from error


def other_frames(named: Sequence[str]) -> dict[str, list[Path]]:
    """NAME=FOLDER pairs: frames of other products; a dataset folder stands for its good validation frames.

    Raises:
        ToolError: not such a pair, or no images.
    """
    found = {}
    for text in named:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ToolError(f"--other {text}: expected NAME=FOLDER")
        root = Path(folder)
        is_data = (root / "dataset.json").is_file()
        found[name] = frame_files(read_dataset(root).part("validation")) if is_data else files_below(root)
    return found


def forms_errors(network: Autoencoder, out: Path, good: Float) -> dict[str, list[float]]:
    """Errors of the good pictures by the network, by the x86 `.nb`, and by the simulated ARM `.nb`."""
    with closing(DevicePredictor(out / FORMS[0].format(name=NAME))) as predictor:
        x86 = errors_of(predictor, good).scaled
    simulated = errors_of(StaticModel.load(out / "work" / NAME / "armv8"), good).scaled
    return {
        "fp32": errors_of(LayerPredictor(_Listed(network)), good).scaled,
        "x86 int8 nb": x86,
        "armv8 int8 simulated": simulated,
    }


class _Listed:
    """A network of one output that answers as networks of several do."""

    def __init__(self, network: Autoencoder):
        self._network = network

    def eval(self) -> None:
        """As of a layer."""
        self._network.eval()

    def __call__(self, image: Any) -> list[Any]:
        return [self._network(image)]


def parity(errors: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """How far each form's errors of good frames are from the FP32 network's.

    Returns:
        By form: the median and the worst frame in per cent of its error, and how far the mean score moves.

    Raises:
        ToolError: the mean score moves so far that one form's baseline is not another's.
    """
    want = np.array(errors["fp32"])
    baseline = numbers(want.tolist(), PLANS["ae_error"].least)
    result = {}
    for name, got in errors.items():
        if name == "fp32":
            continue
        off = 100 * (np.array(got) / want - 1)
        moved = float(np.mean([score(g, baseline) - score(w, baseline) for g, w in zip(got, want, strict=True)]))
        result[name] = {
            "median_percent": round(float(np.median(off)), 3),
            "worst_percent": round(float(np.max(np.abs(off))), 3),
            "score": round(moved, 4),
        }
        if not abs(moved) <= MOST_SHIFT:
            raise ToolError(
                f"{name}: scores of good frames move by {moved:.2f} from the FP32 network's, at most {MOST_SHIFT}: "
                "train longer, or search for a network that INT8 takes better"
            )
    return result


def judge_conditions(
    nb: Path, frames: Sequence[Image], others: Mapping[str, Sequence[Path]], args: argparse.Namespace, spec: Any
) -> tuple[Errors, dict[str, dict[str, Errors]]]:
    """Errors of good frames, and of each condition by its group, by the INT8 `.nb`."""
    some = [frames[i] for i in spread(len(frames), args.judged)]
    with closing(DevicePredictor(nb)) as predictor:
        good = errors_of(predictor, pictures(frames, spec))
        found: dict[str, dict[str, Errors]] = {}
        for group, changes in conditions(allowed_of(args)).items():
            drawn = {name: pictures(some, spec, change, args.seed) for name, change in changes.items()}
            found[group] = {name: errors_of(predictor, drawn[name]) for name in drawn}
        strange = {n: read_grey([f[i] for i in spread(len(f), args.judged)], n) for n, f in others.items()}
        found["other"] = {name: errors_of(predictor, pictures(some, spec)) for name, some in strange.items()}
    return good, found


def allowed_of(args: argparse.Namespace) -> Allowed:
    """What the arguments allow a good part."""
    return Allowed(args.degrees, args.shift, args.quarter_turns)


def plot_errors(good: Errors, found: Mapping[str, Mapping[str, Errors]], path: Path) -> None:
    """Histogram of the errors of good frames against those of conditions, a row of three panels by group."""
    with figure(path, "Error of good frames and others", ncols=3, figsize=(12, 3.8)) as panels:
        for axes, group in zip(panels, ("allowed", "degraded", "other"), strict=True):
            shown = {name: errors.scaled for name, errors in found[group].items() if _shown(name, found[group])}
            every = np.concatenate([good.scaled, *shown.values()])
            bins = np.geomspace(every.min(), every.max() * 1.001, 40)
            axes.hist(good.scaled, bins, density=True, color="lightgrey", label="good")
            for name, values in shown.items():
                axes.hist(values, bins, density=True, histtype="step", label=name)
            axes.set_xscale("log"), axes.set_title(group), axes.set_xlabel("error"), axes.legend()


def _shown(name: str, names: Mapping[str, Any]) -> bool:
    """Of each kind of degradation only the strongest level: the others lie between it and the good ones."""
    kind, _, level = name.rpartition(" ")
    return not level.isdigit() or all(f"{kind} {n}" not in names for n in range(int(level) + 1, 6))


def painted_tiles(network: Autoencoder, shown: Mapping[str, Float]) -> list[Tile]:
    """For each named picture (1, 1, H, W) what the network reads above what it paints."""
    runner, tiles = LayerPredictor(_Listed(network)), []
    for name, tensor in shown.items():
        squares = runner.run(tensor)[0]
        side = network.config.cell
        rows, columns = squares.shape[2:]
        back = squares.reshape(side, side, rows, columns).transpose(2, 0, 3, 1).reshape(tensor.shape)
        assert in_squares(back, squares.shape).shape == squares.shape
        both = np.vstack([tensor[0, 0], back[0, 0]])
        picture = cv2.cvtColor((255 * np.clip(both, 0, 1)).astype(np.uint8), cv2.COLOR_GRAY2BGR)
        tiles.append(Tile(name, lambda picture=picture: picture))
    return tiles


def learn(args: argparse.Namespace, data: Dataset) -> tuple[Training, Autoencoder, list[Float]]:
    """Train, or go on; returns the run, its network, and pictures of the training split to calibrate INT8 on."""
    network = check_network(args.network, args.quarter_turns)
    config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    run = Training(network, config)
    if args.resume:
        run.resume(args.out / CHECKPOINT)
    frames = read_grey(frame_files(data.part("train")), "read training frames")
    if run.step < config.steps:
        drawn = draw_pictures(frames, network, allowed_of(args), config.drawn, config.seed)
        train(run, drawn, args.out / CHECKPOINT)
    run.network.eval()
    plain = [frames[i] for i in spread(len(frames), CALIBRATION_FRAMES)]
    return run, run.network, list(pictures(plain, network.input))


def write_results(
    args: argparse.Namespace, run: Training, base: Baseline, found: Mapping[str, Seen], more: dict[str, Any]
) -> None:
    """The run record."""
    settings = {
        **vars(args),
        "network": run.network.config.as_dict(),
        "parameters": int(sum(p.size for p in run.network.parameters())),
        "checkpoint_sha256": sha256_file(args.out / CHECKPOINT),
    }
    results = {
        "separation": round(separation(found), 3),
        "conditions": {name: asdict(seen) for name, seen in found.items()},
        "baseline_frames": base.settings.frames,
        "refused_by_the_gate": base.refused,
        "signals": sorted(base.settings.signals),
        "trained_s": round(run.elapsed_s, 1),
        "losses": run.losses,
        **more,
    }
    write_record(args.out / "drift_run.json", "drift", settings, results)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = TrainConfig()
    p = argparse.ArgumentParser(prog="python -m tools drift", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--detector", type=Path, required=True, help="as the device runs it, with its features")
    p.add_argument("--recipe", type=Path, help="of the product: which frames pass the gate, which boxes count")
    p.add_argument("--out", type=Path, required=True, help="folder for the model, drift.json, record and plots")
    p.add_argument("--network", type=Path, help="best.json of `drift_search` (default: the shipped shape)")
    p.add_argument("--other", nargs="*", default=[], metavar="NAME=FOLDER", help="other products, to judge on")
    add_allowed(p)
    p.add_argument("--every", type=int, default=10, help="the device looks at each so-many-th frame (%(default)s)")
    p.add_argument("--judged", type=int, default=80, help="frames a condition (%(default)s)")
    for name in ("steps", "batch", "crop", "rate", "weight_decay", "noise", "drawn", "seed"):
        default = getattr(d, name)
        flag = f"--{name.replace('_', '-')}"
        p.add_argument(flag, type=type(default), default=default, help="of training (%(default)s)")
    p.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return p


def add_allowed(p: argparse.ArgumentParser) -> None:
    """Arguments that say how a good part may lie."""
    d = Allowed()
    p.add_argument("--degrees", type=float, default=d.degrees, help="a part may be turned by, either way (%(default)s)")
    p.add_argument("--shift", type=float, default=d.shift, help="it may be moved by, share of a side (%(default)s)")
    p.add_argument("--quarter-turns", action="store_true", help="it may lie in any of eight ways (square frames)")


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    cv2.setNumThreads(1)
    faster_training()
    data, others = read_dataset(args.data), other_frames(args.other)
    held = frame_files(data.part("validation"))
    run, network, calibration = learn(args, data)
    plot_losses(run.losses, args.out / "train.png")
    written = write_judge(network, NAME, calibration, args.out, keep_fp32=network.kept_fp32)
    spec, nb = network.config.input, args.out / FORMS[0].format(name=NAME)

    frames = read_grey(held, "read validation frames")
    agreement = parity(forms_errors(network, args.out, pictures(frames, spec)))
    good, errors = judge_conditions(nb, frames, others, args, spec)
    found = judge(good, errors)
    plot_errors(good, errors, args.out / "errors.png")
    changes = {"good": None, **conditions(allowed_of(args))["degraded"]}
    shown = {name: pictures(frames[:1], spec, change) for name, change in changes.items()}
    write_sheets(painted_tiles(network, shown), args.out, "painted")

    recipe = choose_recipe(args.recipe, None, data.classes)
    detector, purpose = detector_of(args.detector, recipe, data)
    base = measure_baseline(held, detector, purpose, recipe, nb, spec, args.every)
    (args.out / "drift.json").write_bytes(drift_settings.encode(base.settings))
    noise = np.random.default_rng(0).random((1, 1, spec.height, spec.width)).astype(np.float32)
    times = {Path(k).name: percentiles(v) for k, v in time_in_turns([nb], noise, ROUNDS).items()}
    write_results(args, run, base, found, {**written, "parity": agreement, "ms": times})
    (args.out / "table.md").write_text(table(found, good), encoding="utf-8")
    shutil.rmtree(args.out / "work")
    print(table(found, good) + f"\nseparation {separation(found):.2f} sigmas; {times}")
