"""Choose and ship a model of normality for a product with good parts only, in the feature space of another's detector.

The detector of another product computes features and nothing else. Several models (see `normality`) are fitted to the
good parts, compared on parts that none of them saw, and timed; what is shipped is the Gaussian at each place, as a
network, unless it loses by more than `--bearable` to a costlier one, which the record says. Thresholds come from scores
of good parts by models fitted without them (cross-validation), so that every good part serves both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from edge.align import Aligner, AlignSettings, make_reference
from edge.anomaly import AnomalyJudge, AnomalySettings, limit_for, score_of
from edge.boxes import Float
from edge.detect import Predictor
from edge.predictor import OnnxPredictor
from edge.preprocess import Image, InputSpec, preprocess
from tools.anomaly import NAME, draw_scores, false_alarms, parity, rounded_up
from tools.anomaly_data import FeatureLayer, pool_features
from tools.anomaly_metrics import separation
from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import read_image, sha256_file
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.judge_model import write_judge
from tools.machine import faster_training
from tools.network import MULTIPLE
from tools.normality import MODELS, Gaussian, GaussianNetwork, Map, gaussian, semi_orthogonal, smoothed
from tools.plots import figure
from tools.run_record import write_record
from tools.runtimes import open_predictor

REFERENCE_PX = 352  # width of the picture that parts are aligned to
FOLDS = 5
OVERKILLS = (0.005, 0.02, 0.05, 0.1)


def pictures(folders: Sequence[Path], pattern: str, channels: int) -> list[Image]:
    """All pictures of folders whose name matches the pattern, in the order of their names.

    Raises:
        ToolError: there is none.
    """
    files = sorted(p for folder in folders for p in folder.glob(pattern) if p.suffix.lower() in (".jpg", ".png"))
    if not files:
        raise ToolError(f"{', '.join(map(str, folders))}: no picture matches {pattern}")
    return [read_image(path, channels) for path in files]


class Backbone:
    """Features of parts: alignment, preprocessing, detector, pooling."""

    def __init__(self, detector: Predictor, spec: InputSpec, aligner: Aligner | None):
        self._detector, self.spec, self._aligner = detector, spec, aligner

    def features(self, image: Image) -> Float:
        """(1, C, h, w) of one picture, not pooled: what the device hands to the judge."""
        aligned = image if self._aligner is None else self._aligner.align(image)
        return self._detector.run(preprocess(aligned, self.spec)[0])[-1]

    def pooled(self, images: Sequence[Image], pool: int, name: str) -> Float:
        """(N, C, h / pool, w / pool) of pictures."""
        return np.concatenate(
            [pool_features(self.features(x), pool) for x in tqdm(images, f"features {name}", mininterval=5)]
        )


def part_score(found: Float, smoothing: int, top: int) -> float:
    """A part's score from its map, as the device has it."""
    return score_of(smoothed(found, smoothing), top)


def folds(parts: int, seed: int, count: int) -> list[np.ndarray]:
    """Rows of each fold, in random order."""
    return np.array_split(np.random.default_rng(seed).permutation(parts), min(count, parts))


def cross_scores(fit: Callable[[Float], Map], good: Float, args: argparse.Namespace, count: int = FOLDS) -> np.ndarray:
    """Score of each good part by a model fitted to the other of `count` folds."""
    scores = np.empty(len(good))
    for rows in folds(len(good), args.seed, count):
        model = fit(np.delete(good, rows, axis=0))
        scores[rows] = [part_score(model(good[row]), args.smoothing, args.top) for row in rows]
    return scores


def compare(good: Float, unseen: Float, bad: Float, args: argparse.Namespace) -> dict[str, Any]:
    """AUROC and cost of each model; unseen good parts against bad ones, and cross-validated good parts as well."""
    found = {}
    for name, fit in MODELS.items():
        model = fit(good)
        begin = time.process_time()
        fresh = np.array([part_score(model(x), args.smoothing, args.top) for x in unseen])
        took = 1e3 * (time.process_time() - begin) / len(unseen)
        wrong = np.array([part_score(model(x), args.smoothing, args.top) for x in bad])
        crossed = cross_scores(fit, good, args)
        found[name] = {
            "auroc": separation(wrong, fresh).auroc,
            "auroc_with_cross_validated": separation(wrong, np.concatenate([fresh, crossed])).auroc,
            "ms_numpy": round(took, 2),
        }
        print(f"{name:10s} {json.dumps(found[name])}")
    return found


def network_for(good: Float, args: argparse.Namespace) -> tuple[GaussianNetwork, Callable[[Float], Gaussian]]:
    """The shipped network, and how to fit its Gaussian to any projected good parts."""
    projection = semi_orthogonal(args.width, good.shape[1], args.seed)

    def fit(parts: Float) -> Gaussian:
        return gaussian(np.einsum("kc,nchw->nkhw", projection, parts).astype(np.float32))

    return GaussianNetwork(projection, fit(good), args.pool), fit


def projected(fit: Callable[[Float], Gaussian], width: int, seed: int) -> Callable[[Float], Map]:
    """`fit` as a model of unprojected features."""

    def make(parts: Float) -> Map:
        model, projection = fit(parts), semi_orthogonal(width, parts.shape[1], seed)
        return lambda features: model(np.einsum("kc,chw->khw", projection, features))

    return make


def left_out_scores(good: Float, fit: Callable[[Float], Gaussian], args: argparse.Namespace, top: int) -> np.ndarray:
    """Score of each good part by the shipped kind of model, fitted to all others."""
    top_args = argparse.Namespace(**{**vars(args), "top": top})
    return cross_scores(projected(fit, args.width, args.seed), good, top_args, len(good))


def set_limits(good: Float, fit: Callable[[Float], Gaussian], args: argparse.Namespace) -> AnomalySettings:
    """Settings with thresholds from left-out scores of the good parts."""
    scores, highest = (left_out_scores(good, fit, args, top) for top in (args.top, 1))
    return AnomalySettings(
        kind="square",
        smoothing=args.smoothing,
        top=args.top,
        threshold=rounded_up(limit_for(scores, args.overkill).threshold),
        map_limit=rounded_up(limit_for(highest, args.overkill).threshold),
        overkill=args.overkill,
        good_parts=len(scores),
    )


def operating_points(left_out: np.ndarray, unseen: np.ndarray, bad: np.ndarray) -> list[dict[str, Any]]:
    """What other wanted overkills would give: threshold, bad parts found, and false alarms on unseen good parts."""
    points = []
    for overkill in OVERKILLS:
        limit = limit_for(left_out, overkill)
        points.append(
            {
                "overkill": overkill,
                "threshold": round(limit.threshold, 4),
                "extrapolated": limit.extrapolated,
                "bad_found": [int((bad >= limit.threshold).sum()), len(bad)],
                "unseen_over": [int((unseen >= limit.threshold).sum()), len(unseen)],
            }
        )
    return points


def write_detector(checkpoint: Path, spec: InputSpec, images: Sequence[Image], out: Path) -> dict[str, Any]:
    """The features-only detector at this input in every form that a bundle has; for the record, see `write_judge`.

    Raises:
        ToolError: a side is no multiple of the network's deepest stride, or the export failed.
    """
    saved = read_checkpoint(checkpoint)
    if spec.width % MULTIPLE or spec.height % MULTIPLE or spec.channels != saved.spec.channels:
        raise ToolError(f"--size {spec.width} {spec.height}: sides of multiples of {MULTIPLE} are wanted")
    tensors = [preprocess(image, spec)[0][0] for image in images]
    return write_judge(FeatureLayer(network_of(saved, checkpoint)), "detector", tensors, out)


def draw_comparison(path: Path, found: dict[str, Any]) -> None:
    """AUROC over cost of each model, as PNG."""
    with figure(path, "Models of normality", "ms a part in numpy, one thread", "image AUROC") as axes:
        for name, figures in found.items():
            axes.scatter(figures["ms_numpy"], figures["auroc"], label=name)
        axes.set_xscale("log"), axes.legend()


def page(results: dict[str, Any], settings: AnomalySettings) -> str:
    """What a model card says of the model, as Markdown."""
    int8, same, alarms = results["int8"], results["parity_int8_fp32"], results["false_alarms"]
    lines = [
        "Mean and deviation of each feature at each place, learned from good parts alone (PaDiM, arXiv:2011.08785, "
        "diagonal), on the features of another product's detector. A part whose score reaches the threshold goes to "
        "REVIEW." + (" Parts are shifted onto a reference first; a turned part is not." if results["aligned"] else ""),
        "",
        f"- Image AUROC {int8['auroc']:.3f}: {int8['unknown']} bad against {int8['known']} good parts that nothing was "
        "fitted to, all in INT8.",
        f"- Threshold {settings.threshold:.3f} from {settings.good_parts} good parts, each scored by a model of the "
        f"others, for a wanted overkill of {100 * settings.overkill:g} %, which so few parts cannot show: it is "
        "extrapolated.",
        f"- False alarms on unseen good parts: {alarms['count']} of {alarms['of']} (95 %: "
        f"{alarms['interval_95'][0]} to {alarms['interval_95'][1]} in 1000).",
        f"- INT8 against FP32 on {same['parts']} parts: RMS {same['rms']}, correlation {same['correlation']}, "
        f"{same['decisions_differ']} decisions differ.",
        "",
        "| wanted overkill | threshold | bad parts found | unseen good parts over |",
        "|---|---|---|---|",
    ]
    for x in results["operating_points"]:
        found, over = ("{} of {}".format(*x[key]) for key in ("bad_found", "unseen_over"))
        lines.append(f"| {100 * x['overkill']:g} % | {x['threshold']} | {found} | {over} |")
    lines += ["", "| model | AUROC | with cross-validated good parts | ms in numpy |", "|---|---|---|---|"]
    for name, f in results["models"].items():
        lines.append(f"| {name} | {f['auroc']} | {f['auroc_with_cross_validated']} | {f['ms_numpy']} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools normal_parts", description=__doc__.splitlines()[0])
    p.add_argument("--good", type=Path, nargs="+", required=True, help="folders with photos of good parts to fit to")
    p.add_argument("--unseen", type=Path, nargs="+", required=True, help="folders with good parts to test on")
    p.add_argument("--bad", type=Path, nargs="+", required=True, help="folders with bad parts to test on")
    p.add_argument("--patterns", nargs=3, default=["*", "*", "*"], help="of the files in each of the three")
    p.add_argument("--checkpoint", type=Path, required=True, help="the detector whose features are used")
    p.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), required=True, help="of the input")
    p.add_argument("--no-align", action="store_true", help="take the parts as they lie")
    p.add_argument("--pool", type=int, default=2, help="cells of the detector a side that make one of the map")
    p.add_argument("--width", type=int, default=32, help="channels that the features are projected to (%(default)s)")
    p.add_argument("--smoothing", type=int, default=1, help="side in cells of the box that averages the map")
    p.add_argument("--top", type=int, default=5, help="cells whose mean is the score (%(default)s)")
    p.add_argument("--overkill", type=float, default=0.005, help="good parts wanted over the threshold (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, required=True, help="folder of models, settings, record and plots")
    return p


def score_chain(backbone: Backbone, model: Predictor, settings: AnomalySettings, images: Sequence[Image]) -> np.ndarray:
    """Scores of pictures through models as the device runs them."""
    judge = AnomalyJudge(model, settings)
    return np.array([judge.judge(backbone.features(image)).anomaly for image in images])


@dataclass(frozen=True)
class Parts:
    """Photos of parts: what is fitted to, and what nothing was fitted to."""

    good: list[Image]
    unseen: list[Image]
    bad: list[Image]


def read_parts(args: argparse.Namespace, channels: int) -> Parts:
    """The photos that the arguments name."""
    folders = (args.good, args.unseen, args.bad)
    return Parts(*(pictures(f, p, channels) for f, p in zip(folders, args.patterns, strict=True)))


def measure(
    chains: dict[str, tuple[Backbone, Path]], parts: Parts, settings: AnomalySettings
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Figures and scores of each chain of detector and anomaly model, by its name."""
    results: dict[str, Any] = {}
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, (backbone, file) in chains.items():
        with closing(DevicePredictor(file)) as model:
            found = {kind: score_chain(backbone, model, settings, images) for kind, images in vars(parts).items()}
        scores[name] = found
        mine = scores[name]
        over = {kind: int((s >= settings.threshold).sum()) for kind, s in mine.items()}
        results[name] = {**asdict(separation(mine["bad"], mine["unseen"])), "over_threshold": over}
    return results, scores


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    faster_training()
    spec = InputSpec(*args.size, read_checkpoint(args.checkpoint).spec.channels)
    parts = read_parts(args, spec.channels)
    align = None if args.no_align else AlignSettings(reference=make_reference(parts.good[0], REFERENCE_PX))
    aligner = None if align is None else Aligner(align)
    straight = parts.good if aligner is None else [aligner.align(image) for image in parts.good]
    detector_record = write_detector(args.checkpoint, spec, straight, args.out)
    fp32 = Backbone(OnnxPredictor(args.out / "detector.onnx"), spec, aligner)
    int8 = Backbone(open_predictor(args.out / "detector.x86_64.int8.nb"), spec, aligner)
    compared = compare(*(fp32.pooled(x, args.pool, n) for n, x in vars(parts).items()), args)
    good = int8.pooled(parts.good, args.pool, "int8")
    network, fit = network_for(good, args)
    written = write_judge(network, NAME, [int8.features(image)[0] for image in parts.good], args.out)
    settings = msgspec.structs.replace(set_limits(good, fit, args), align=align)
    chains = {"int8": (int8, args.out / f"{NAME}.x86_64.int8.nb"), "fp32": (fp32, args.out / f"{NAME}.onnx")}
    figures, scores = measure(chains, parts, settings)
    shown = scores["int8"]
    results = {
        "models": compared,
        "detector": detector_record,
        "anomaly": written,
        "settings": msgspec.to_builtins(msgspec.structs.replace(settings, align=None)),
        "aligned": align is not None,
        **figures,
        "parity_int8_fp32": parity(
            *(np.concatenate(list(scores[c].values())) for c in chains), settings.threshold, settings.threshold
        ),
        "false_alarms": false_alarms(int((shown["unseen"] >= settings.threshold).sum()), len(shown["unseen"])),
        "operating_points": operating_points(left_out_scores(good, fit, args, args.top), shown["unseen"], shown["bad"]),
    }
    (args.out / f"{NAME}.json").write_bytes(msgspec.json.format(msgspec.json.encode(settings)) + b"\n")
    (args.out / f"{NAME}.md").write_text(page(results, settings), encoding="utf-8")
    draw_scores(args.out / "scores.png", shown, settings.threshold)
    draw_comparison(args.out / "models.png", compared)
    record = {**vars(args), "checkpoint_sha256": sha256_file(args.checkpoint)}
    write_record(args.out / "anomaly.record.json", "normal_parts", record, results)
    print(json.dumps(results, indent=1))
