"""Search a small space of networks by what they cost and what they see: `.nb` latency, size, and accuracy after a
short training.

Every network of the space is built for INT8 first: patches instead of dense convolutions on the way down, wide 1x1
pairs, the width at low resolution. A plain random search draws networks and compiles them untrained, since latency and
size do not depend on the weights; what breaks a limit is listed and dropped. The rest are trained a few minutes each on
the training split without some of its groups, and judged on those groups, so that the validation split stays unseen.
Then the best are varied by one step each (a round of evolution), and the same is done again. All of it is in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from edge.preprocess import InputSpec
from tools.dataset import INDEX, Dataset, read_dataset
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.export import write_onnx
from tools.journal import Journal
from tools.network import Detector, NetworkConfig
from tools.paddle_model import StaticModel, compile_nb, save_layer
from tools.plots import figure
from tools.quantize import filters, post_training, reduce_range
from tools.run_record import write_record

SPACE: dict[str, tuple[Any, ...]] = {
    "stem": (16, 24, 32),
    "width8": (48, 64),
    "width16": (128, 160),
    "width32": (128, 160, 192),
    "depth8": (1, 2),
    "depth16": (3, 4, 5),
    "depth32": (1, 2),
    "kernel": (3, 5),
    "expand": (1.5, 2.0, 3.0),
    "neck": (48, 64),
}
FEWEST_OUTPUTS = 16  # convolutions with fewer stay FP32: the output layers, whose errors reach the boxes undamped
TURNS = 10
FASTEST = 0.2
TRAIN_TIMEOUT_S = 3600.0

Choice = dict[str, Any]
Space = Mapping[str, tuple[Any, ...]]


def draw(rng: np.random.Generator, space: Space = SPACE) -> Choice:
    """A network drawn at random from the space."""
    return {name: values[int(rng.integers(len(values)))] for name, values in space.items()}


def vary(choice: Choice, rng: np.random.Generator, space: Space = SPACE) -> Choice:
    """The network with one field moved by one step.

    >>> base = {name: values[0] for name, values in SPACE.items()}
    >>> sum(base[k] != v for k, v in vary(base, np.random.default_rng(0)).items())
    1
    """
    name = str(rng.choice(sorted(name for name in space if len(space[name]) > 1)))
    values = space[name]
    at = values.index(choice[name])
    steps = [k for k in (at - 1, at + 1) if 0 <= k < len(values)]
    return {**choice, name: values[steps[int(rng.integers(len(steps)))]]}


def title(choice: Choice, space: Space = SPACE) -> str:
    """A network's name: its fields in the order of the space."""
    return "-".join(f"{choice[name]:g}" for name in space)


def build(config: NetworkConfig, spec: InputSpec, folder: Path) -> dict[str, Path]:
    """Compile an untrained network: FP32 and INT8 `.nb` for x86, and ONNX; by name. What is there is not made again."""
    made = {name: folder / f"{name}.{end}" for name, end in (("fp32", "nb"), ("onnx", "onnx"), ("int8", "nb"))}
    if all(path.is_file() for path in made.values()):
        return made
    shutil.rmtree(folder, ignore_errors=True)
    paddle.seed(0)
    save_layer(Detector(config), folder / "fp32", spec)
    compile_nb(folder / "fp32", made["fp32"], "x86")
    write_onnx(folder / "fp32", made["onnx"])
    shapes = filters(StaticModel.load(folder / "fp32"))
    skip = [name for name, shape in shapes.items() if shape[0] < FEWEST_OUTPUTS]
    noise = np.random.default_rng(0).random((spec.channels, spec.height, spec.width)).astype(np.float32)
    post_training(folder / "fp32", folder / "quantized", [noise], "abs_max", skip, 0.9999)
    model = StaticModel.load(folder / "quantized")
    reduce_range(model)
    model.save(folder / "quantized")
    compile_nb(folder / "quantized", made["int8"], "x86")
    return made


def measure(made: dict[str, Path], spec: InputSpec) -> dict[str, float]:
    """Time of each form in milliseconds, in turns, and size of the INT8 `.nb` in kilobytes.

    The time is the fastest fifth's slowest: what else the machine does only ever adds to it.
    """
    tensor = np.random.default_rng(1).random((1, spec.channels, spec.height, spec.width)).astype(np.float32)
    predictors = {name: DevicePredictor(path) for name, path in made.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(TURNS + 1):
        for name, predictor in predictors.items():
            took = predictor.time_ms(tensor, 3)
            times[name] += took if turn else []  # the first turn warms up
    for predictor in predictors.values():
        predictor.close()
    result = {f"{name}_ms": round(float(np.quantile(values, FASTEST)), 3) for name, values in times.items()}
    return {**result, "int8_kb": round(made["int8"].stat().st_size / 1000, 1)}


def broken_limits(cost: dict[str, float], args: argparse.Namespace) -> list[str]:
    """Which limits a network breaks, in words; none if it may be trained."""
    limits = {
        f"INT8 .nb over {args.max_kb:g} kB": cost["int8_kb"] > args.max_kb,
        f"INT8 over {args.max_ms:g} ms": bool(args.max_ms) and cost["int8_ms"] > args.max_ms,
        f"INT8 over {args.max_of_fp32:g} x FP32": cost["int8_ms"] > args.max_of_fp32 * cost["fp32_ms"],
        f"INT8 over {args.max_of_onnx:g} x ONNX": cost["int8_ms"] > args.max_of_onnx * cost["onnx_ms"],
    }
    return [text for text, broken in limits.items() if broken]


def inner_dataset(data: Dataset, held: Sequence[str], folder: Path) -> Path:
    """A dataset folder of the training split alone, in which the groups `held` are the validation split.

    Raises:
        ToolError: a group that does not train, or nothing left to train on.
    """
    groups = {sample.group for sample in data.part("train")}
    unknown = set(held) - groups
    if unknown or not groups - set(held):
        known = ", ".join(sorted(groups))
        raise ToolError(f"--judge-on {' '.join(held)}: must be some, and not all, of the groups that train: {known}")
    index = json.loads((data.root / INDEX).read_text(encoding="utf-8"))
    index["images"] = [record for record in index["images"] if record["split"] == "train"]
    for record in index["images"]:
        record["split"] = "validation" if record["group"] in held else "train"
    kept = {record["id"] for record in index["images"]}
    index["annotations"] = [a for a in index["annotations"] if a["image_id"] in kept]
    folder.mkdir(parents=True, exist_ok=True)
    for name in {Path(r["file_name"]).parts[0] for r in index["images"]}:
        if not (folder / name).exists():
            (folder / name).symlink_to((data.root / name).resolve())
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return folder


def score(choice: Choice, data: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Accuracy of a network after a short training in a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "network.json"
    network.write_text(json.dumps(choice), encoding="utf-8")
    command = [sys.executable, "-m", "tools", "train", "--data", str(data), "--out", str(folder)]
    command += ["--network", str(network), "--minutes", str(args.minutes), "--epochs", str(args.epochs)]
    command += ["--processes", "1", "--evaluate-every", "0", "--full-from", "1", "--seed", str(args.seed)]
    command += ["--warmup-steps", "100", "--ema-decay", "0.995"]
    command += ["--resume"] if (folder / "last.pdckpt").is_file() else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TRAIN_TIMEOUT_S, check=False, env=environment
    )
    if done.returncode != 0:
        said = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise ToolError(f"training {title(choice)} failed ({done.returncode}): {said}")
    results = json.loads((folder / "train.json").read_text(encoding="utf-8"))["results"]
    validation = results["validation"]
    return {"ap33": validation["ap33_pooled"], "map50": validation["map50"], "steps": results["steps"]}


def front(rows: Sequence[dict[str, Any]], by: str = "ap33") -> list[dict[str, Any]]:
    """The rows that no other beats in both time and accuracy (the field `by`), fastest first.

    >>> rows = [{"int8_ms": 2, "ap33": 0.5}, {"int8_ms": 1, "ap33": 0.6}, {"int8_ms": 3, "ap33": 1}]
    >>> [row["ap33"] for row in front(rows)]
    [0.6, 1]
    """
    best: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["int8_ms"], -r[by])):
        if not best or row[by] > best[-1][by]:
            best.append(row)
    return best


class Search:
    """The state of a search: what is known of each network so far."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.data = read_dataset(args.data)
        self.inner = inner_dataset(self.data, args.judge_on, args.out / "data")
        settings = {k: v for k, v in vars(args).items() if k not in ("out", "trials", "train", "children", "workers")}
        self.journal = Journal(args.out / "search.journal", settings)
        self.rows: dict[str, dict[str, Any]] = {}

    def _config(self, choice: Choice) -> NetworkConfig:
        return NetworkConfig(**choice, classes=len(self.data.classes), channels=self.data.spec.channels)

    def measure_all(self, choices: Sequence[Choice], what: str) -> list[dict[str, Any]]:
        """Rows of the networks. All are built before the first is timed, one after the other: work on the other cores
        takes from the memory's speed, and one kind of model suffers more from it than another."""
        spec, folder = self.data.spec, self.args.out / "build"
        new = {title(c): c for c in choices if title(c) not in self.rows}
        todo = [name for name in new if f"cost {name}" not in self.journal]
        for name in tqdm(todo, f"build {what}", mininterval=5):
            build(self._config(new[name]), spec, folder / name)
        for name, choice in tqdm(new.items(), f"time {what}", mininterval=5):
            made = {} if name not in todo else build(self._config(choice), spec, folder / name)
            cost = self.journal.once(f"cost {name}", partial(measure, made, spec))
            dropped = broken_limits(cost, self.args)
            self.rows[name] = {"name": name, "network": choice, **cost, "dropped": dropped}
        return [self.rows[name] for name in dict.fromkeys(map(title, choices))]

    def train_all(self, rows: Sequence[dict[str, Any]], what: str) -> None:
        """Train the rows that have no accuracy yet, as many at once as there are workers."""
        todo = [row for row in rows if not row["dropped"] and "ap33" not in row]
        with ThreadPoolExecutor(self.args.workers) as pool, tqdm(total=len(todo), desc=what) as bar:
            jobs = [(row, pool.submit(self._trained, row)) for row in todo]
            for row, job in jobs:
                row.update(job.result())
                bar.update()

    def _trained(self, row: dict[str, Any]) -> dict[str, float]:
        folder = self.args.out / "runs" / row["name"]
        if f"score {row['name']}" in self.journal:
            return dict(self.journal.once(f"score {row['name']}", dict))
        result = score(row["network"], self.inner, folder, self.args)
        return dict(self.journal.once(f"score {row['name']}", lambda: result))


def spread_by_time(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows within the limits, evenly over their times, the slowest (and so the largest) among them."""
    fitting = sorted((row for row in rows if not row["dropped"]), key=lambda row: row["int8_ms"])
    if len(fitting) <= count:
        return fitting
    return [fitting[i] for i in np.linspace(0, len(fitting) - 1, count).round().astype(int)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """All networks as Markdown, best first, dropped ones last."""
    order = sorted(rows, key=lambda r: (bool(r["dropped"]), -r.get("ap33", -1), r["int8_ms"]))
    head = "| " + " | ".join(SPACE) + " | INT8 ms | FP32 ms | ONNX ms | kB | AP33 | why not |\n"
    lines = [head + "|---" * (len(SPACE) + 6) + "|"]
    for row in order:
        values = [f"{row['network'][name]:g}" for name in SPACE]
        values += [f"{row[k]:.1f}" for k in ("int8_ms", "fp32_ms", "onnx_ms", "int8_kb")]
        values += [f"{row['ap33']:.4f}" if "ap33" in row else "", "; ".join(row["dropped"])]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], best: dict[str, Any], path: Path) -> None:
    """Time against accuracy, with the front and the chosen network."""
    trained = [row for row in rows if "ap33" in row]
    edge = front(trained)
    with figure(path, "Networks by cost and accuracy", "INT8 .nb, ms", "pooled AP33 after a short training") as axes:
        axes.plot([r["int8_ms"] for r in trained], [r["ap33"] for r in trained], "o", label="trained")
        axes.step([r["int8_ms"] for r in edge], [r["ap33"] for r in edge], where="post", label="Pareto front")
        axes.plot(best["int8_ms"], best["ap33"], "*", markersize=14, label=f"chosen: {best['name']}")
        axes.legend()


def choose(rows: Sequence[dict[str, Any]], worth_ms: float) -> dict[str, Any]:
    """The trained row with the best accuracy, when each millisecond costs `worth_ms` of AP33."""
    trained = [row for row in rows if "ap33" in row]
    return max(trained, key=lambda row: row["ap33"] - worth_ms * row["int8_ms"])


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools search", description=__doc__.split(":")[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--out", type=Path, required=True, help="folder for table, plot, best.json and short trainings")
    p.add_argument("--judge-on", nargs="+", required=True, metavar="GROUP", help="groups of the training split")
    p.add_argument("--trials", type=int, default=20, help="networks drawn and measured (%(default)s)")
    p.add_argument("--train", type=int, default=6, help="of them, trained (%(default)s)")
    p.add_argument("--children", type=int, default=4, help="variations of the best, measured and trained (%(default)s)")
    p.add_argument("--minutes", type=float, default=4.0, help="of training each (%(default)s)")
    p.add_argument("--epochs", type=int, default=1000, help="at most, each (%(default)s)")
    p.add_argument("--workers", type=int, default=2, help="trainings at once (%(default)s)")
    p.add_argument("--max-kb", type=float, default=1000, help="size of the INT8 .nb (%(default)s)")
    p.add_argument("--max-ms", type=float, default=0, help="time of the INT8 .nb; 0: any")
    p.add_argument("--max-of-fp32", type=float, default=0.6, help="INT8 time over FP32 time, at most (%(default)s)")
    p.add_argument("--max-of-onnx", type=float, default=1.2, help="INT8 time over ONNX Runtime's (%(default)s)")
    p.add_argument("--worth", type=float, default=0.0005, help="AP33 that a millisecond must bring (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on where it was stopped."""
    args = parser().parse_args(arguments)
    search, rng = Search(args), np.random.default_rng(args.seed)
    default = {f.name: f.default for f in fields(NetworkConfig) if f.name in SPACE}
    measured = search.measure_all([default, *(draw(rng) for _ in range(args.trials - 1))], "networks")
    chosen = spread_by_time(measured, args.train)
    if not chosen:
        raise ToolError("no network of the trials keeps the limits:\n" + table(measured))
    search.train_all(chosen, "train")
    parents = sorted(chosen, key=lambda row: -row["ap33"])[:2]
    children = [vary(parents[i % len(parents)]["network"], rng) for i in range(args.children)]
    search.train_all(search.measure_all(children, "children"), "train children")
    rows = list(search.rows.values())
    best = choose(rows, args.worth)
    (args.out / "table.md").write_text(table(rows), encoding="utf-8")
    (args.out / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    plot(rows, best, args.out / "search.png")
    write_record(args.out / "search.json", "search", vars(args), {"best": best, "rows": rows})
    print(table(rows) + f"\nchosen: {best['name']}")
