"""Train the gate's classifier over several products, test it on each product that it never saw, and write what ships.

One step: what each fault costs each product (`gate_limits`), examples with labels by that (`gate_data`), one training
for each photographed product left out, tested as INT8 by the device's own code, and one on all products, which ships.
Every part is kept under OUT/work, and the same command goes on where it was stopped. OUT gets what a bundle takes:
gate.x86_64.int8.nb, gate.armv8.int8.nb, gate.onnx, gate.json, the run record gate.run.json and plots.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from edge.gate_classifier import OUTPUTS, SHAPE, GateClassifierSettings
from edge.recipe import CLASSIFIED
from tools.dataset import sha256_file
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.export import largest_difference, write_onnx
from tools.gate_data import Example, Mosaics, together, training_set, trial_set
from tools.gate_figures import Trial, calibrated, figures, plot_confusion, plot_limits, plot_roc, probabilities_of
from tools.gate_limits import Limits, as_record, by_detector, by_specks, from_record
from tools.gate_network import GateNetwork, GateNetworkConfig, network_from
from tools.gate_products import Product, drawn_products, open_products
from tools.gate_training import compile_all, fit, logits_of, quantize, run_all
from tools.journal import Journal
from tools.machine import faster_training
from tools.plots import figure
from tools.run_record import write_record

LIMIT = 0.5  # of each cause against a good frame, in the bundle; `edge calibrate gate` fits a line's own
CALIBRATION = 256  # examples that set the scales of INT8
RUNTIME_TOLERANCE = 2e-3  # of the outputs, ONNX against the network
RECORD = "gate.run.json"  # gate.json are the settings that the device reads


@dataclass(frozen=True)
class Work:
    """What the parts of the step share."""

    args: argparse.Namespace
    photographed: list[Product]
    drawn: list[Product]
    journal: Journal

    @property
    def products(self) -> list[Product]:
        """All."""
        return [*self.photographed, *self.drawn]

    def path(self, kind: str, name: str) -> Path:
        """Where a part of the work is kept."""
        return Path(self.args.out) / "work" / f"{kind}-{name.replace(' ', '-')}.npz"


def limits_for(work: Work) -> dict[str, dict[str, Limits]]:
    """What each product stands of each fault."""
    frames, seed = work.args.limit_frames, work.args.seed

    def measured(product: Product) -> dict[str, Any]:
        return as_record(by_detector(product, frames, seed) if product.bundle else by_specks(product, seed))

    return {p.name: from_record(work.journal.once(f"limits {p.name}", lambda p=p: measured(p))) for p in work.products}


def training_of(work: Work, product: Product, limits: Mapping[str, Limits]) -> tuple[Mosaics, np.ndarray]:
    """The training examples of a product, from disk where they are made already."""
    count = work.args.drawn_examples if product.drawn else work.args.examples
    path, key = work.path("train", product.name), f"train {product.name} {count}"
    if key not in work.journal or not path.is_file():
        mosaics, labels = training_set(product, limits, count, work.args.seed)
        _save(path, mosaics=mosaics, labels=labels)
        work.journal.once(key, lambda: count)
    kept = np.load(path)
    return kept["mosaics"], kept["labels"]


def tests_of(work: Work, product: Product, limits: Mapping[str, Limits]) -> tuple[Mosaics, list[Example]]:
    """The test examples of a product, from disk where they are made already."""
    path, key = work.path("test", product.name), f"test {product.name} {work.args.test_frames}"
    if key not in work.journal or not path.is_file():
        mosaics, examples = trial_set(product, limits, work.args.test_frames, work.args.seed + 1)
        _save(path, mosaics=mosaics, examples=np.frombuffer(msgspec.json.encode(examples), np.uint8))
        work.journal.once(key, lambda: len(examples))
    kept = np.load(path)
    return kept["mosaics"], msgspec.json.decode(kept["examples"].tobytes(), type=list[Example])


def _save(path: Path, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


def network_for(work: Work, name: str, parts: Sequence[tuple[Mosaics, np.ndarray]]) -> GateNetwork:
    """The network trained on these examples, from disk where it is trained already."""
    path, key = work.path("weights", name), weights_key(work, name)
    if key not in work.journal or not path.is_file():
        trained = fit(*together(parts), epochs=work.args.epochs, seed=work.args.seed, name=f"train {name}")
        _save(path, **{key: value.numpy() for key, value in trained.network.state_dict().items()})
        work.journal.once(key, lambda: trained.losses)
    return network_from(dict(np.load(path)))


def weights_key(work: Work, name: str) -> str:
    """Names a training in the journal by all that it depends on beyond the journal's own settings."""
    a = work.args
    return f"weights {name} {a.epochs} {a.examples} {a.drawn_examples} {' '.join(sorted(a.kin))}"


def left_out_with(name: str, kin: Sequence[str]) -> set[str]:
    """A product and those that `--kin` says are too like it to train on in its stead.

    >>> sorted(left_out_with("pcb", ["pcb=drawn boards"])), left_out_with("drawn boards", ["pcb=drawn boards"])
    (['drawn boards', 'pcb'], {'drawn boards'})
    """
    pairs = [pair.partition("=") for pair in kin]
    return {name, *(other.strip() for one, _, other in pairs if one.strip() == name)}


def calibrating(product: Product, examples: Sequence[Example]) -> np.ndarray:
    """Which examples may set thresholds, (N,) bool: those of every other group, so that the others are unseen."""
    order = {group: k for k, group in enumerate(dict.fromkeys(product.groups))}
    return np.array([order[product.groups[x.frame]] % 2 == 0 for x in examples])


def try_fold(work: Work, product: Product, network: GateNetwork, calibration: Mosaics,
              tests: tuple[Mosaics, list[Example]]) -> Trial:  # fmt: skip
    """The left-out product through the INT8 model, as the device runs it."""
    folder = Path(work.args.out) / "work" / f"fold-{product.name}"
    mosaics, examples = tests

    def outputs() -> list[list[float]]:
        compiled = compile_all(quantize(network, calibration, folder), folder)
        predictor = DevicePredictor(compiled[0])
        logits = run_all(predictor, mosaics)
        predictor.close()
        return [[round(float(v), 5) for v in row] for row in logits]

    logits = np.array(
        work.journal.once(f"outputs of {weights_key(work, product.name)} {work.args.test_frames}", outputs), np.float32
    )
    return Trial(examples, probabilities_of(logits), calibrating(product, examples))


def ship(work: Work, network: GateNetwork, calibration: Mosaics, settings: GateClassifierSettings) -> dict[str, Any]:
    """Write the models and `gate.json`; returns how far the forms agree, and their sizes.

    Raises:
        ToolError: ONNX differs from the network.
    """
    out = Path(work.args.out)
    folders = quantize(network, calibration, out / "work" / "final")
    made = compile_all(folders, out)
    write_onnx(folders["fp32"], out / "gate.onnx")
    (out / "gate.json").write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=2) + b"\n")
    want = logits_of(network, calibration[:64])
    differences = {}
    for path in (out / "gate.onnx", made[0]):
        predictor = DevicePredictor(path)
        got = run_all(predictor, calibration[:64])
        tensor = np.zeros(SHAPE, np.float32)
        differences[path.name] = {
            "largest_difference": largest_difference([want], [got]),
            "same_class": float((want.argmax(axis=1) == got.argmax(axis=1)).mean()),
            "median_ms": float(np.median(predictor.time_ms(tensor, 300))),
        }
        predictor.close()
    if not differences["gate.onnx"]["largest_difference"] <= RUNTIME_TOLERANCE:
        raise ToolError(f"gate.onnx differs from the network: {differences['gate.onnx']}")
    sizes = {p.name: p.stat().st_size for p in (*made, out / "gate.onnx")}
    return {"forms": differences, "bytes": sizes, "sha256": {name: sha256_file(out / name) for name in sizes}}


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools gate", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, action="append", required=True, metavar="DIR",
                   help="dataset folder or folder of photographs, one a product; repeat it")  # fmt: skip
    p.add_argument("--bundle", type=Path, action="append", default=[], metavar="DIR",
                   help="bundle whose detector tells what a fault costs its product; repeat it")  # fmt: skip
    p.add_argument("--kin", action="append", default=[], metavar="A=B",
                   help="leave product B out too when A is tested, since it is like it; repeat it")  # fmt: skip
    p.add_argument("--examples", type=int, default=1200, help="training examples a product (%(default)s)")
    p.add_argument("--drawn-examples", type=int, default=800, help="of each drawn product (%(default)s)")
    p.add_argument("--epochs", type=int, default=16, help="(%(default)s)")
    p.add_argument("--limit-frames", type=int, default=32, help="that tell what a fault costs (%(default)s)")
    p.add_argument("--test-frames", type=int, default=30, help="of a product, that are spoilt in tests (%(default)s)")
    p.add_argument("--refuse", type=float, default=0.005, help="share of good frames that may be refused (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, required=True, help="folder of the models, record and plots")
    return p


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is computed.

    Raises:
        ToolError: with what is wrong.
    """
    if len(args.data) < 2:
        raise ToolError("--data: one product; at least two are needed, since each is tested by training on the others")
    if not 0 <= args.refuse < 0.5:
        raise ToolError(f"--refuse {args.refuse}: expected a share in [0, 0.5)")
    for pair in args.kin:
        if "=" not in pair:
            raise ToolError(f"--kin {pair!r}: expected A=B, such as --kin 'pcb=drawn boards'")
    for name in ("examples", "drawn_examples", "epochs", "limit_frames", "test_frames"):
        if getattr(args, name) < 1:
            raise ToolError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1")


def prepare(args: argparse.Namespace) -> Work:
    """Open the products and the journal."""
    photographed = open_products(args.data, args.bundle)
    settings = {name: getattr(args, name) for name in ("data", "bundle", "limit_frames", "seed")}
    depends = {**settings, "frames": {p.name: len(p) for p in photographed}, "network": GateNetworkConfig().as_dict()}
    drawn = drawn_products(args.seed, args.drawn_examples)
    return Work(args, photographed, drawn, Journal(args.out / "work" / "gate.journal", depends))


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on where it was stopped."""
    args = parser().parse_args(arguments)
    check(args)
    faster_training()
    work = prepare(args)
    settings = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, LIMIT))
    limits = limits_for(work)
    plot_limits(args.out / "gate_limits.png", limits)
    sets = {p.name: training_of(work, p, limits[p.name]) for p in work.products}
    tested, results = {}, {}
    for product in tqdm(work.photographed, "products left out"):
        away = left_out_with(product.name, args.kin)
        network = network_for(work, f"without {product.name}", [s for name, s in sets.items() if name not in away])
        tests = tests_of(work, product, limits[product.name])
        tested[product.name] = try_fold(work, product, network, sample(sets, away), tests)
        results[product.name] = {
            "left_out": sorted(away), **figures(tested[product.name], settings, args.refuse)
        }  # fmt: skip
        print(summary(product.name, results[product.name]))
    network = network_for(work, "all", list(sets.values()))
    shipped = ship(work, network, sample(sets, set()), settings)
    draw(args.out, work, {name: calibrated(t, settings, args.refuse) for name, t in tested.items()}, results)
    record = {
        "left_out": results,
        "shipped": shipped,
        "limits": {name: as_record(x) for name, x in limits.items()},
        "losses": {name: work.journal.once(weights_key(work, name), list) for name in _trainings(work)},
        "network": asdict(GateNetworkConfig()),
        "parameters": int(sum(np.prod(p.shape) for p in network.parameters())),
        "outputs": list(OUTPUTS),
    }
    write_record(args.out / RECORD, "gate", vars(args), record)
    print(json.dumps(shipped["bytes"]))


def sample(sets: Mapping[str, tuple[Mosaics, np.ndarray]], away: set[str]) -> Mosaics:
    """Examples that calibrate INT8, evenly from all products but those."""
    chosen = [mosaics for name, (mosaics, _) in sets.items() if name not in away]
    each = max(1, CALIBRATION // len(chosen))
    return np.concatenate([m[:each] for m in chosen])


def _trainings(work: Work) -> list[str]:
    return [*(f"without {p.name}" for p in work.photographed), "all"]


def draw(out: Path, work: Work, tested: Mapping[str, Trial], results: Mapping[str, dict[str, Any]]) -> None:
    """The plots."""
    plot_roc(out / "gate_roc.png", tested)
    plot_confusion(out / "gate_confusion.png", {name: result["confusion"] for name, result in results.items()})
    with figure(out / "gate_training.png", "Training", "epoch", "loss") as axes:
        for name in _trainings(work):
            losses = work.journal.once(weights_key(work, name), list)
            axes.plot(range(1, len(losses) + 1), losses, label=name)
        axes.legend()


def summary(name: str, result: Mapping[str, Any]) -> str:
    """One product for people."""
    ranked, refused = result["auroc_blur"], result["good_refused"]
    return (
        f"{name}: AUROC of harmful blur {ranked['gate']:.4f} (classifier alone "
        f"{ranked['classifier_alone']:.4f}, sharpness alone {ranked['sharpness_alone']:.4f}, "
        f"n {ranked['n_bad']} and {ranked['n_good']}); good frames refused as captured "
        f"{refused['as_captured']['count']}/{refused['as_captured']['of']}, all good "
        f"{refused['all_good']['count']}/{refused['all_good']['of']}; bad ones refused "
        + ", ".join(f"{c} {result['bad_refused'][c]['share']}" for c in CLASSIFIED)
    )
