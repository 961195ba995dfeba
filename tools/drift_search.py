"""Search the drift autoencoder's shape: what its INT8 `.nb` tells apart, and how long it takes.

Networks are drawn at random, trained a few hundred steps each on the training split without some of its groups, made
into the `.nb` that a device would run, and judged on those groups by that `.nb`: separation (see `tools.drift_score`)
of degraded frames and other products from good ones, less what is allowed. Then the best are varied by one step each
(a round of evolution). The validation split stays unseen, as it gives the baseline. Everything is in the table; the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from edge.boxes import Float
from edge.preprocess import Image, InputSpec
from tools.autoencoder import Autoencoder, AutoencoderConfig
from tools.dataset import data_hash, read_dataset
from tools.device_runtime import DevicePredictor
from tools.drift import add_allowed, allowed_of, other_frames
from tools.drift_frames import conditions, frame_files, pictures, read_grey, spread
from tools.drift_score import GOOD, errors_of, judge, separation
from tools.drift_train import TrainConfig, Training, draw_pictures, train
from tools.errors import ToolError
from tools.journal import Journal
from tools.judge_model import PERCENT
from tools.layers import CONV, read_layers
from tools.machine import faster_training
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.plan import sums_wrongly
from tools.plots import figure
from tools.ptq import post_training, reduce_range
from tools.run_record import write_record
from tools.search import Choice, draw, front, title, vary

SPACE: dict[str, tuple[Any, ...]] = {
    "tile": (0, 32, 64),
    "patch": (4, 8),
    "stem": (16, 32, 48),
    "inner": (32, 64, 96),
    "code": (4, 8, 16, 32),
    "depth": (0, 1, 2),
    "kernel": (1, 3),
}
TURNS, ROUNDS, FASTEST = 5, 20, 0.2
JUDGED = 24  # frames a condition
CALIBRATION_FRAMES = 24


class Frames:
    """What every network of the search learns from and is judged on; pictures are drawn once for each kind of input."""

    def __init__(self, args: argparse.Namespace):
        data = read_dataset(args.data)
        samples = data.part("train")
        groups = {sample.group for sample in samples}
        held = set(args.judge_on)
        if held - groups or not groups - held:
            known = ", ".join(sorted(groups))
            raise ToolError(
                f"--judge-on {' '.join(held)}: must be some, and not all, of the groups that train: {known}"
            )
        self.hash = data_hash(samples)
        self._args = args
        self._train = read_grey(frame_files([s for s in samples if s.group not in held]), "read training frames")
        self._judged = read_grey(frame_files([s for s in samples if s.group in held]), "read frames to judge on")
        self._others = {
            name: read_grey([files[i] for i in spread(len(files), JUDGED)], name)
            for name, files in other_frames(args.other).items()
        }
        self._kept: dict[tuple[str, Any], Any] = {}

    def _once(self, what: str, network: AutoencoderConfig, make: Callable[[], Any]) -> Any:
        key = (what, network.input)
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def training(self, network: AutoencoderConfig, config: TrainConfig) -> Float:
        """Pictures to learn from."""
        how = allowed_of(self._args)
        draw_them = partial(draw_pictures, self._train, network, how, config.drawn, config.seed)
        return self._once("training", network, draw_them)

    def calibration(self, network: AutoencoderConfig) -> list[Float]:
        """Pictures to calibrate INT8 on."""
        some = [self._train[i] for i in spread(len(self._train), CALIBRATION_FRAMES)]
        return list(self._once("calibration", network, lambda: pictures(some, network.input)))

    def judged(self, network: AutoencoderConfig) -> dict[str, dict[str, Float]]:
        """Pictures to judge on: good ones, and each condition by its group."""
        return self._once("judged", network, lambda: self._draw_judged(network))

    def _draw_judged(self, network: AutoencoderConfig) -> dict[str, dict[str, Float]]:
        spec = network.input
        found = {g: {n: pictures(frames, spec) for n, frames in named.items()} for g, named in self._changed().items()}
        found["other"] = {name: pictures(frames, spec) for name, frames in self._others.items()}
        return {GOOD: {GOOD: pictures(self._judged, spec)}, **found}

    @cache  # noqa: B019 - one object, as long as the step
    def _changed(self) -> dict[str, dict[str, list[Image]]]:
        """Frames as each condition leaves them, by its group."""
        some = [self._judged[i] for i in spread(len(self._judged), JUDGED)]
        rng = np.random.default_rng(self._args.seed)
        groups = conditions(allowed_of(self._args))
        return {g: {n: [change(f, rng) for f in some] for n, change in named.items()} for g, named in groups.items()}


def network_of(choice: Choice, base: AutoencoderConfig) -> AutoencoderConfig | None:
    """The network of a choice, on the input's size of `base`; None where its tiles do not fit."""
    try:
        return replace(base, **choice)
    except ValueError:
        return None


def write_nb(network: Autoencoder, tensors: Sequence[Float], folder: Path) -> Path:
    """The INT8 `.nb` for x86 alone, as `tools.judge_model` makes it."""
    fp32, quantized, nb = folder / "fp32", folder / "quantized", folder / "drift.x86_64.int8.nb"
    spec = network.config.input
    save_layer(network, fp32, InputSpec(spec.width, spec.height, spec.channels))
    layers = [layer for layer in read_layers(fp32) if layer.shape.op == CONV]
    kept = [x.filter for x in layers if x.name in network.kept_fp32 or sums_wrongly(x.shape, "x86")]
    post_training(fp32, quantized, tensors, "hist", kept, PERCENT)
    model = StaticModel.load(quantized)
    reduce_range(model)
    model.save(quantized)
    compile_nb(quantized, nb, "x86")
    return nb


def try_out(network: AutoencoderConfig, frames: Frames, config: TrainConfig, folder: Path) -> dict[str, Any]:
    """Train a network, make its `.nb`, time and judge it; the row for the table."""
    run = Training(network, config)
    train(run, frames.training(network, config), folder / "drift.pdckpt")
    nb = write_nb(run.network, frames.calibration(network), folder)
    sets = frames.judged(network)
    with closing(DevicePredictor(nb)) as predictor:
        tensor = sets[GOOD][GOOD][:1]
        times = [t for _ in range(TURNS) for t in predictor.time_ms(np.ascontiguousarray(tensor), ROUNDS)][ROUNDS:]
        errors = {g: {n: errors_of(predictor, p) for n, p in named.items()} for g, named in sets.items()}
    seen = judge(errors[GOOD][GOOD], errors)
    return {
        "int8_ms": round(float(np.quantile(times, FASTEST)), 3),
        "int8_kb": round(nb.stat().st_size / 1000, 1),
        "error": round(float(np.median(errors[GOOD][GOOD].scaled)), 4),
        "separation": round(separation(seen), 3),
        "worst_allowed": round(max(abs(s.score) for s in seen.values() if s.group == "allowed"), 3),
        "seen": {name: asdict(s) for name, s in seen.items()},
    }


class Search:
    """What is known of each network so far."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.frames = Frames(args)
        self.base = AutoencoderConfig(width=args.width, height=args.height)
        self.config = TrainConfig(steps=args.steps, batch=args.batch, drawn=args.drawn, seed=args.seed)
        told = {k: v for k, v in vars(args).items() if k not in ("out", "trials", "children", "max_ms", "worth")}
        self.journal = Journal(args.out / "drift_search.journal", {**told, "data_sha256": self.frames.hash})
        self.rows: dict[str, dict[str, Any]] = {}

    def try_all(self, choices: Sequence[Choice], what: str) -> None:
        """Rows of the networks that fit the input and have none yet."""
        new = {title(c, SPACE): c for c in choices if title(c, SPACE) not in self.rows}
        for name, choice in tqdm(new.items(), what):
            network = network_of(choice, self.base)
            if network is None:
                continue
            work = partial(try_out, network, self.frames, self.config, self.args.out / "trials" / name)
            row = self.journal.once(name, work)
            self.rows[name] = {"name": name, "network": network.as_dict(), "choice": choice, **row}

    def best_first(self) -> list[dict[str, Any]]:
        """Rows by what they are worth: separation, less `--worth` a millisecond; those over --max-ms come last."""
        args = self.args

        def key(row: dict[str, Any]) -> tuple[bool, float]:
            return row["int8_ms"] > args.max_ms, args.worth * row["int8_ms"] - row["separation"]

        return sorted(self.rows.values(), key=key)


def table(rows: Sequence[dict[str, Any]], max_ms: float) -> str:
    """All networks as Markdown, in the order given."""
    head = [*SPACE, "INT8 ms", "kB", "error", "worst allowed", "separation", "why not"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        values = [f"{row['choice'][name]:g}" for name in SPACE]
        values += [f"{row['int8_ms']:.2f}", f"{row['int8_kb']:.0f}", f"{row['error']:.3f}"]
        values += [f"{row['worst_allowed']:.2f}", f"{row['separation']:.2f}"]
        values.append(f"over {max_ms:g} ms" if row["int8_ms"] > max_ms else "")
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Time against separation, with the front and the chosen network."""
    edge = front(rows, "separation")
    with figure(path, "Drift autoencoders by cost and separation", "INT8 .nb, ms", "separation, sigmas") as axes:
        axes.plot([r["int8_ms"] for r in rows], [r["separation"] for r in rows], "o", label="tried")
        axes.step([r["int8_ms"] for r in edge], [r["separation"] for r in edge], where="post", label="Pareto front")
        axes.plot(best["int8_ms"], best["separation"], "*", markersize=14, label=f"chosen: {best['name']}")
        axes.legend()


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools drift_search", description=__doc__.split(":")[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--out", type=Path, required=True, help="folder for table, plot, best.json and trials")
    p.add_argument("--judge-on", nargs="+", required=True, metavar="GROUP", help="groups of the training split")
    p.add_argument("--other", nargs="*", default=[], metavar="NAME=FOLDER", help="other products, to judge on")
    add_allowed(p)
    p.add_argument("--width", type=int, default=256, help="of the network's input, pixels (%(default)s)")
    p.add_argument("--height", type=int, default=256, help="(%(default)s)")
    p.add_argument("--trials", type=int, default=8, help="networks drawn, the default one first (%(default)s)")
    p.add_argument("--children", type=int, default=4, help="variations of the best two (%(default)s)")
    p.add_argument("--steps", type=int, default=300, help="of training each (%(default)s)")
    p.add_argument("--batch", type=int, default=16, help="pictures a step (%(default)s)")
    p.add_argument("--drawn", type=int, default=800, help="pictures drawn to learn from (%(default)s)")
    p.add_argument("--max-ms", type=float, default=1.5, help="time of the INT8 .nb, at most (%(default)s)")
    p.add_argument("--worth", type=float, default=0.1, help="sigmas that a millisecond must bring (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    cv2.setNumThreads(1)
    faster_training()
    search, rng = Search(args), np.random.default_rng(args.seed)
    default = {name: getattr(search.base, name) for name in SPACE}
    search.try_all([default, *(draw(rng, SPACE) for _ in range(args.trials - 1))], "networks")
    parents = search.best_first()[:2]
    children = [vary(parents[i % len(parents)]["choice"], rng, SPACE) for i in range(args.children)]
    search.try_all(children, "children")
    rows = search.best_first()
    best = rows[0]
    if best["int8_ms"] > args.max_ms:
        raise ToolError(f"no network of the trials takes at most {args.max_ms:g} ms:\n" + table(rows, args.max_ms))
    (args.out / "table.md").write_text(table(rows, args.max_ms), encoding="utf-8")
    (args.out / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    plot(rows, best, args.out / "drift_search.png")
    write_record(args.out / "drift_search.json", "drift_search", vars(args), {"best": best, "rows": rows})
    print(table(rows, args.max_ms) + f"\nchosen: {best['name']}")
