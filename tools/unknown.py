"""Leave one class of defect out and find it as unknown: how well the anomaly map tells what the detector never learned.

For each left-out class there is a detector that was trained without it (data from `leave_out`). On the original
validation images, where the class occurs, pixels inside its boxes are unknown, pixels around them to `MARGIN_PX` are
left out, and all others are known: background and the known defects' boxes alike, which are the hard ones; a second
figure is against background alone. Compared are maximum softmax (Hendrycks and Gimpel, arXiv:1610.02136), entropy and
energy (Liu et al., arXiv:2010.03759) of the undisturbed pixel head, residual pattern learning without and with CoroCL,
and energy after the whole detector was trained on with the same outliers, the only one that changes the detector.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from edge.anomaly import limit_for
from edge.boxes import Float
from edge.detect import Predictor
from edge.predictor import OnnxPredictor
from tools import retrain
from tools.anomaly import good_parts, read_donors, training_cells
from tools.anomaly_data import OTHER_CONTEXT, Cells, FeatureLayer, features_of, open_features, pool_features
from tools.anomaly_fit import FitConfig, fit_head, fit_residual, logits_of, make_network
from tools.anomaly_metrics import curves, separation, wilson
from tools.anomaly_net import AnomalyConfig, AnomalyNetwork
from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image
from tools.errors import ToolError
from tools.evaluate import detect_all, figures
from tools.export import write_onnx
from tools.journal import Journal
from tools.machine import faster_training
from tools.network import Detector, with_features
from tools.outliers import OutlierConfig
from tools.paddle_model import save_layer
from tools.physical import photograph, random_conditions
from tools.plots import figure
from tools.quantize import Recorder
from tools.run_record import write_record
from tools.train import load_boards

MARGIN_PX = 8
STEP_PX = 8  # pixels are looked at on a grid of this step
UNKNOWN, KNOWN_DEFECT, BACKGROUND, LEFT_OUT = 1, 2, 0, 255


def truth_grid(sample: Sample, unknown: int, size: tuple[int, int]) -> np.ndarray:
    """What each point of the grid shows, (height / 8, width / 8) uint8.

    Args:
        unknown: the left-out class in the original data. size: (height, width).
    """
    y, x = ((np.arange(side // STEP_PX) + 0.5) * STEP_PX for side in size)
    grid = np.zeros((len(y), len(x)), np.uint8)

    def paint(boxes: Float, margin: float, value: int) -> None:
        for x1, y1, x2, y2 in boxes:
            rows, columns = (y >= y1 - margin) & (y < y2 + margin), (x >= x1 - margin) & (x < x2 + margin)
            grid[rows[:, None] & columns] = value

    mine = sample.class_id == unknown
    paint(sample.xyxy[~mine], 0, KNOWN_DEFECT)
    paint(sample.xyxy[mine], MARGIN_PX, LEFT_OUT)
    paint(sample.xyxy[mine], 0, UNKNOWN)
    return grid


def baselines(logits: np.ndarray) -> dict[str, np.ndarray]:
    """Maps (N, h, w) of the undisturbed head's logits (N, K, h, w); higher is less known.

    >>> maps = baselines(np.array([8.0, 0.0]).reshape(1, 2, 1, 1))
    >>> [round(float(m), 3) for m in maps.values()]
    [0.0, 0.003, -8.0]
    """
    most = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - most).sum(axis=1)
    log_p = logits - most - np.log(total)[:, None]
    p = np.exp(log_p)
    return {
        "max softmax": 1 - p.max(axis=1),
        "entropy": -(p * log_p).sum(axis=1),
        "energy": -(most[:, 0] + np.log(total)),
    }


def on_grid(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps (N, h, w) at the points of the grid, (N, height / 8, width / 8), bilinear."""
    target = (size[1] // STEP_PX, size[0] // STEP_PX)
    return np.stack([cv2.resize(m, target, interpolation=cv2.INTER_LINEAR) for m in maps.astype(np.float32)])


def pixel_figures(maps: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Separation of unknown pixels from all known ones, and from background alone."""
    unknown = maps[truth == UNKNOWN]
    known, background = maps[(truth == BACKGROUND) | (truth == KNOWN_DEFECT)], maps[truth == BACKGROUND]
    return {"all_known": asdict(separation(unknown, known)), "background": asdict(separation(unknown, background))}


def component_figures(
    maps: np.ndarray, truth: np.ndarray, good: np.ndarray, samples: Sequence[Sample], unknown: int, overkill: float
) -> dict[str, Any]:
    """Share of the left-out defects that reach a threshold from good parts.

    Args:
        maps: (N, h, w) on the grid, of the inspected images. good: (M,) highest cell of each good part.
    """
    limit = limit_for(good, overkill).threshold
    reached = []
    for found, sample in zip(maps, samples, strict=True):
        for x1, y1, x2, y2 in sample.xyxy[sample.class_id == unknown] / STEP_PX:
            inside = found[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
            reached.append(bool(inside.size) and float(inside.max()) >= limit)
    low, high = wilson(sum(reached), len(reached))
    over = int((good >= limit).sum())
    return {
        "defects": len(reached),
        "to_review": round(float(np.mean(reached)), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "overkill_wanted": overkill,
        "good_parts_over": [over, len(good)],
    }


def all_features(extractor: Predictor, paths: Sequence[Path], data: Dataset, pool: int, name: str) -> np.ndarray:
    """Pooled features (N, C, h, w) float16 of whole images."""
    found = [
        pool_features(features_of(extractor, read_image(path, data.spec.channels), data.spec), pool)[0].astype(
            np.float16
        )
        for path in tqdm(paths, f"features {name}", mininterval=5)
    ]
    return np.stack(found)


def maps_of(network: AnomalyNetwork, features: np.ndarray, disturbed: bool) -> dict[str, np.ndarray]:
    """Maps by method of pooled features."""
    return baselines(logits_of(network, features, disturbed))


def fit_both(own: Cells, context: Cells, classes: int, args: argparse.Namespace) -> dict[str, AnomalyNetwork]:
    """The head with a residual block by RPL alone, and by RPL and CoroCL; both share the same head."""
    networks = {}
    for name, other in (("RPL", None), ("RPL + CoroCL", context)):
        fit = FitConfig(head_steps=args.head_steps, steps=args.steps, seed=args.seed)
        network = make_network(AnomalyConfig(own.features.shape[1], classes, args.pool), args.seed)
        if networks:
            network.head.set_state_dict(networks["RPL"].head.state_dict())
            for parameter in network.head.parameters():
                parameter.stop_gradient = True
        else:
            fit_head(network, own, fit)
        fit_residual(network, own, other, fit)
        networks[name] = network
    return networks


# --- One class --------------------------------------------------------------------------------------------------------


class Case:
    """A left-out class: its detector, its data and the original validation images."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.args = name, args
        self.checkpoint = args.detectors / name / "final.pdckpt"
        self.data = read_dataset(args.detectors / f"{name}-data")
        original = read_dataset(args.data)
        if name not in original.classes or set(self.data.classes) != set(original.classes) - {name}:
            raise ToolError(f"{self.data.root}: expected all classes of {args.data} but {name}")
        self.unknown = original.classes.index(name)
        self.original, self.validation = original, original.part("validation")
        self.work = args.out / "work" / name
        spec = self.data.spec
        self.size = (spec.height, spec.width)
        self.truth = np.stack([truth_grid(s, self.unknown, self.size) for s in self.validation])

    def known_truth(self) -> list[tuple[Float, np.ndarray]]:
        """Boxes and class ids of the known classes, as the detector numbers them."""
        found = []
        for sample in self.validation:
            mine = sample.class_id != self.unknown
            names = [self.original.classes[k] for k in sample.class_id[mine]]
            found.append((sample.xyxy[mine], np.array([self.data.classes.index(n) for n in names], np.int64)))
        return found

    def detector(self, network: nn.Layer, name: str) -> Recorder:
        """The network as ONNX, keeping what it answers."""
        folder = self.work / name
        save_layer(network, folder, self.data.spec)
        write_onnx(folder, folder / "detector.onnx")
        return Recorder(OnnxPredictor(folder / "detector.onnx"))

    def ap33(self, predictor: Predictor) -> float:
        """Pooled AP33 of the known classes on the original validation images."""
        images = (read_image(s.image, self.data.spec.channels) for s in self.validation)
        found = detect_all(predictor, images, self.data.spec, f"detect {self.name}")
        return float(figures(found, self.known_truth(), self.data.classes)["ap33_pooled"])

    def unchanged(self, network: Detector) -> dict[str, Any]:
        """AP33 of the known classes without and with the features handed out, and whether any output differs at all."""
        alone = self.detector(network, "alone")  # written before the network is told to give its features
        beside = self.detector(with_features(network), "beside")
        result = {"detector": self.ap33(alone), "with_features": self.ap33(beside)}
        pairs = zip(alone.outputs, beside.outputs, strict=True)
        equal = [all(np.array_equal(x, y) for x, y in zip(a, b[:-1], strict=True)) for a, b in pairs]
        return {**result, "images": len(equal), "identical_to_the_bit": int(sum(equal))}

    def figures(self, images: dict[str, np.ndarray], good: dict[str, np.ndarray]) -> dict[str, Any]:
        """Pixel and component figures of each method's maps."""
        result = {}
        for method, maps in images.items():
            grid, parts = on_grid(maps, self.size), on_grid(good[method], self.size)
            highest = parts.reshape(len(parts), -1).max(axis=1)
            args = (grid, self.truth, highest, self.validation, self.unknown, self.args.overkill)
            result[method] = {**pixel_figures(grid, self.truth), "components": component_figures(*args)}
        return result


def evaluate_class(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """All methods on one left-out class but retraining."""
    case = Case(name, args)
    extractor, saved = open_features(case.checkpoint, case.work)
    own, context = training_cells(extractor, case.data, case.data.part("train"), args)
    networks = fit_both(own, context, len(saved.classes), args)
    validation = case.validation
    images = all_features(extractor, [s.image for s in validation], case.data, args.pool, "inspected")
    good = all_features(extractor, [p.path for p in good_parts(validation)], case.data, args.pool, "good")
    other = context_features(extractor, case, args)
    maps = {"images": images, "good": good, "other": other}
    by_method = {kind: methods_of(networks, features) for kind, features in maps.items()}
    draw_curves(args.out / f"{name}.png", name, by_method["images"], case)
    result = {
        "methods": case.figures(by_method["images"], by_method["good"]),
        "other_context": {m: pixel_figures(on_grid(v, case.size), case.truth) for m, v in by_method["other"].items()},
    }
    paddle.save(networks["RPL + CoroCL"].state_dict(), str(case.work / "rpl.pdparams"))
    return result


def evaluate_known(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the anomaly model does to the known classes: nothing, which is measured."""
    case = Case(name, args)
    return case.unchanged(network_of(read_checkpoint(case.checkpoint), case.checkpoint))


def methods_of(networks: Mapping[str, AnomalyNetwork], features: np.ndarray) -> dict[str, np.ndarray]:
    """Maps by the name of the method."""
    found = maps_of(networks["RPL"], features, False)
    return found | {name: maps_of(network, features, True)["energy"] for name, network in networks.items()}


def context_features(extractor: Predictor, case: Case, args: argparse.Namespace) -> np.ndarray:
    """Features of the inspected images under other light, focus and noise."""
    rng = np.random.default_rng([args.seed, 5])
    channels, found = case.data.spec.channels, []
    for sample in tqdm(case.validation, "features other context", mininterval=5):
        image = photograph(read_image(sample.image, channels), random_conditions(rng, OTHER_CONTEXT), rng)
        found.append(pool_features(features_of(extractor, image, case.data.spec), args.pool)[0].astype(np.float16))
    return np.stack(found)


def evaluate_retrained(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Energy after training on with outlier exposure, and the AP33 that is left."""
    case = Case(name, args)
    saved = read_checkpoint(case.checkpoint)
    detector = network_of(saved, case.checkpoint)
    network = make_network(AnomalyConfig(saved.network_config.neck, len(saved.classes), args.pool), args.seed)
    state = paddle.load(str(case.work / "rpl.pdparams"))
    network.set_state_dict(state)
    boards = load_boards(case.data.part("train"), case.data.spec)
    donors = read_donors(args.donors, case.data.spec.channels)
    steps = retrain.retrain(
        detector, network, boards, case.data, donors, OutlierConfig(), args.retrain_minutes, args.seed
    )
    folder = case.work / "retrained-features"
    save_layer(FeatureLayer(detector), folder, case.data.spec)
    write_onnx(folder, folder / "features.onnx")
    extractor = OnnxPredictor(folder / "features.onnx")
    images = all_features(extractor, [s.image for s in case.validation], case.data, args.pool, "inspected")
    good = all_features(extractor, [p.path for p in good_parts(case.validation)], case.data, args.pool, "good")
    named = [{"retrained": maps_of(network, features, False)["energy"]} for features in (images, good)]
    ap33 = case.ap33(case.detector(detector, "retrained"))
    return {"steps": steps, "methods": case.figures(*named), "ap33_known": ap33}


# --- The step ---------------------------------------------------------------------------------------------------------


def draw_curves(path: Path, name: str, maps: Mapping[str, np.ndarray], case: Case) -> None:
    """Precision over recall of the unknown pixels by method, as PNG."""
    with figure(path, f"{name} as unknown, pixels", "recall of unknown pixels", "precision") as axes:
        for method, values in maps.items():
            grid = on_grid(values, case.size)
            known = grid[(case.truth == BACKGROUND) | (case.truth == KNOWN_DEFECT)]
            precision, recall, _ = curves(grid[case.truth == UNKNOWN], known)
            keep = np.unique(np.searchsorted(recall, np.linspace(recall[0], 1, 300)))  # evenly over what is drawn
            axes.plot(recall[keep], precision[keep], label=method)
        axes.set_ylim(0, 1), axes.legend()


def draw_bars(path: Path, results: Mapping[str, Any], figure_name: str, against: str) -> None:
    """A figure of all classes and methods as bars, as PNG."""
    names = list(results)
    with figure(path, f"Pixel {figure_name} of the left-out class against {against}", figsize=(9.0, 4.0)) as axes:
        methods = list(results[names[0]]["methods"])
        width = 0.8 / len(methods)
        for k, method in enumerate(methods):
            values = [results[n]["methods"][method][against][figure_name] for n in names]
            axes.bar(np.arange(len(names)) + (k - len(methods) / 2 + 0.5) * width, values, width, label=method)
        axes.set_xticks(range(len(names)), names), axes.legend(ncols=3), axes.set_ylabel(figure_name)


def table_of(results: Mapping[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| left out | method | AuPRC | FPR95 | AuPRC, background | FPR95, background | to review |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for method, f in {**result["methods"], **result.get("retrained", {}).get("methods", {})}.items():
            a, b, c = f["all_known"], f["background"], f["components"]
            cells = [*(f"{x:.4f}" for x in (a["auprc"], a["fpr95"], b["auprc"], b["fpr95"])), f"{c['to_review']:.3f}"]
            lines.append(f"| {name} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools unknown", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="the original dataset folder, with all classes")
    p.add_argument("--detectors", type=Path, required=True, help="folder with CLASS/final.pdckpt and CLASS-data")
    p.add_argument("--classes", nargs="+", required=True, help="the left-out classes")
    p.add_argument("--retrain", nargs="*", default=[], help="of these, also train the detector on (compares)")
    p.add_argument("--retrain-minutes", type=float, default=5.0)
    p.add_argument("--donors", type=Path, nargs="*", default=[], help="folders with pictures of other products")
    p.add_argument("--images", type=int, default=300, help="pictures of the own scene; half as many of other contexts")
    p.add_argument("--pool", type=int, default=2, help="cells of the detector a side that make one of the map")
    p.add_argument("--head-steps", type=int, default=FitConfig.head_steps, help="(%(default)s)")
    p.add_argument("--steps", type=int, default=FitConfig.steps, help="of the residual block (%(default)s)")
    p.add_argument("--overkill", type=float, default=0.005, help="good parts wanted over the threshold (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, required=True, help="folder of journal, record, table and plots")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on where it was stopped."""
    args = parser().parse_args(arguments)
    strange = sorted(set(args.retrain) - set(args.classes))
    if strange:
        raise ToolError(f"--retrain {strange[0]}: is not among --classes")
    faster_training()
    depends = {k: v for k, v in vars(args).items() if k not in ("classes", "retrain", "out")}
    depends["data_sha256"] = data_hash(read_dataset(args.data).samples)
    journal = Journal(args.out / "unknown.journal", depends)
    results: dict[str, Any] = {}
    for name in args.classes:
        results[name] = journal.once(name, lambda name=name: evaluate_class(name, args))
        known = journal.once(f"{name} known", lambda name=name: evaluate_known(name, args))
        results[name]["ap33_known"] = known
        if name in args.retrain:
            results[name]["retrained"] = journal.once(
                f"{name} retrained", lambda name=name: evaluate_retrained(name, args)
            )
    for against in ("all_known", "background"):
        for figure_name in ("auprc", "fpr95"):
            draw_bars(args.out / f"{figure_name}-{against}.png", results, figure_name, against)
    text = table_of(results)
    (args.out / "unknown.md").write_text(text, encoding="utf-8")
    write_record(args.out / "unknown.json", "unknown", {**vars(args), "depends": depends}, results)
    print(text)
