"""Train the model of the unknown that reads a frozen detector's features, set its threshold, and measure it.

Residual pattern learning with context-robust contrast (see `anomaly_net`), on training images with pasted outliers (see
`outliers`). The detector is not touched: it only computes features. The threshold comes from good parts of the
validation groups, through the INT8 models that are shipped, to a wanted share of good parts over it; false alarms are
counted on good parts of groups that had no part in the threshold. Good parts are the templates where the data has
some, else the images without a label.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from tqdm import tqdm

from edge.anomaly import AnomalyJudge, AnomalySettings, limit_for
from edge.detect import Predictor
from edge.preprocess import Image, InputSpec
from edge.records import Scores
from tools.anomaly_data import OTHER_CONTEXT, Cells, cells_of, features_of, open_features, pictures
from tools.anomaly_fit import FitConfig, fit_head, fit_residual, make_network
from tools.anomaly_metrics import separation, wilson
from tools.anomaly_net import AnomalyConfig, AnomalyNetwork
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, sha256_file
from tools.errors import ToolError
from tools.judge_model import write_judge
from tools.machine import faster_training
from tools.outliers import OutlierConfig, add_outliers
from tools.plots import figure
from tools.run_record import write_record
from tools.runtimes import open_predictor
from tools.train import load_boards

NAME = "anomaly"
DONORS = 24  # pictures of other products that patches are cut from
DONOR_SIDE = 960  # they are shrunk to at most this
OUTLIERS = OutlierConfig(most=10)  # on a whole picture, not on a crop
CALIBRATE = 40  # pictures whose features calibrate INT8


@dataclass(frozen=True)
class Part:
    """A picture that is known to be good, and where it comes from."""

    name: str
    group: str
    path: Path


def good_parts(samples: Sequence[Sample]) -> list[Part]:
    """The good parts among samples: templates where there are some, else images without a label on which all classes
    were looked for."""
    with_template = [Part(s.name, s.group, s.template) for s in samples if s.template is not None]
    return with_template or [Part(s.name, s.group, s.image) for s in samples if not len(s.xyxy) and s.known.all()]


def read_donors(folders: Sequence[Path], channels: int) -> list[Image]:
    """Pictures of other products, evenly from below the folders.

    Raises:
        ToolError: a folder without any picture.
    """
    donors = []
    for folder in folders:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not files:
            raise ToolError(f"--donors {folder}: holds no .png or .jpg")
        for at in np.linspace(0, len(files) - 1, min(DONORS, len(files))).round().astype(int):
            image = read_image(files[at], channels)
            shrink = min(1.0, DONOR_SIDE / max(image.shape[:2]))
            donors.append(np.asarray(cv2.resize(image, None, fx=shrink, fy=shrink), np.uint8))
    return donors


def training_cells(
    extractor: Predictor, data: Dataset, samples: Sequence[Sample], args: argparse.Namespace, contexts: bool = True
) -> tuple[Cells, Cells | None]:
    """Cells of the product's own scene, and with `contexts` of it under other light, focus and noise."""
    rng = np.random.default_rng(args.seed)
    boards = load_boards([samples[i] for i in rng.permutation(len(samples))], data.spec)
    donors = read_donors(args.donors, data.spec.channels)
    size = (data.spec.width, data.spec.height)

    def made(count: int, name: str, context: Any) -> Cells:
        stream = pictures(boards, count, size, rng, OUTLIERS, donors, context)
        return cells_of(extractor, stream, count, data.spec, args.pool, name)

    own = made(args.images, "own", None)
    return own, made(args.images // 2, "context", OTHER_CONTEXT) if contexts else None


def train(own: Cells, context: Cells | None, classes: int, args: argparse.Namespace) -> tuple[AnomalyNetwork, dict]:
    """Fit head and residual block; returns the network and its last losses."""
    config = AnomalyConfig(channels=own.features.shape[1], classes=classes, pool=args.pool)
    fit = FitConfig(head_steps=args.head_steps, steps=args.steps, contrast=args.contrast, seed=args.seed)
    network = make_network(config, args.seed)
    losses = {"head": round(fit_head(network, own, fit), 4)}
    return network, losses | fit_residual(network, own, context, fit)


# --- The chain that scores --------------------------------------------------------------------------------------------


class Chain:
    """Detector and anomaly model one behind the other, each in any form."""

    def __init__(self, detector: Predictor, model: Predictor, spec: InputSpec, settings: AnomalySettings):
        self._detector, self._model, self._spec = detector, model, spec
        self.settings = settings

    def scores(self, image: Image) -> Scores:
        """Score and map of one picture."""
        judge = AnomalyJudge(self._model, self.settings)
        return judge.judge(features_of(self._detector, image, self._spec))

    def with_settings(self, settings: AnomalySettings) -> Chain:
        """The same models, scored in another way."""
        return Chain(self._detector, self._model, self._spec, settings)


def score_all(chain: Chain, images: Iterator[Image], count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and highest cells (N,) of pictures."""
    found = [chain.scores(image) for image in tqdm(images, f"score {name}", count, mininterval=5)]
    return np.array([s.anomaly for s in found]), np.array([s.anomaly_map.max() for s in found])


def normalised(chain: Chain, parts: Sequence[Part], channels: int) -> Chain:
    """The chain with mean and scale of its map over some good parts."""
    maps = [chain.scores(read_image(p.path, channels)).anomaly_map for p in tqdm(parts, "normalise", mininterval=5)]
    values = np.concatenate([m.ravel() for m in maps])
    mean, scale = float(values.mean()), max(float(values.std()), 1e-6)
    return chain.with_settings(msgspec.structs.replace(chain.settings, mean=round(mean, 6), scale=round(scale, 6)))


def false_alarms(count: int, of: int) -> dict[str, Any]:
    """A count of false alarms as a rate in 1000 good parts, with its 95 % interval."""
    low, high = wilson(count, of)
    return {"count": count, "of": of, "per_1000": round(1000 * count / max(of, 1), 2),
            "interval_95": [round(1000 * low, 2), round(1000 * high, 2)]}  # fmt: skip


def across_groups(scores: np.ndarray, groups: np.ndarray, overkill: float) -> dict[str, Any]:
    """For each group: false alarms on it at a threshold from all other groups; those with enough good parts."""
    found = {}
    for group in np.unique(groups):
        others = scores[groups != group]
        if len(others) >= 20:
            limit = limit_for(others, overkill)
            mine = scores[groups == group]
            found[str(group)] = false_alarms(int((mine >= limit.threshold).sum()), len(mine))
    return found


def rounded_up(limit: float) -> float:
    """A limit with few digits that is not lower: one just over the highest score must stay over it.

    >>> rounded_up(1.0000001)
    1.00001
    """
    return math.ceil(limit * 1e5) / 1e5


def set_threshold(
    chain: Chain, scores: np.ndarray, highest: np.ndarray, overkill: float
) -> tuple[AnomalySettings, bool]:
    """The chain's settings with limits for scores and cells; and whether the threshold is extrapolated."""
    limit, cell = limit_for(scores, overkill), limit_for(highest, overkill)
    settings = msgspec.structs.replace(
        chain.settings, threshold=rounded_up(limit.threshold), map_limit=rounded_up(cell.threshold), overkill=overkill,
        good_parts=len(scores),
    )  # fmt: skip
    return settings, limit.extrapolated


# --- Measuring --------------------------------------------------------------------------------------------------------


def with_outliers(parts: Sequence[Part], channels: int, donors: Sequence[Image], seed: int) -> Iterator[Image]:
    """Each good part with a single pasted outlier."""
    rng = np.random.default_rng([seed, 7])
    one = OutlierConfig(share=1.0, most=1)
    for part in parts:
        image, mask = read_image(part.path, channels), np.zeros(1, bool)
        pasted = image
        while not mask.any():
            pasted, mask = add_outliers(image, rng, one, donors, np.empty((0, 4), np.float32))
        yield pasted


def parity(a: np.ndarray, b: np.ndarray, threshold_a: float, threshold_b: float) -> dict[str, Any]:
    """How scores of the same parts differ between two chains, each with its own threshold."""
    return {
        "parts": len(a),
        "rms": round(float(np.sqrt(np.mean(np.square(a - b)))), 5),
        "largest": round(float(np.abs(a - b).max()), 5),
        "correlation": round(float(np.corrcoef(a, b)[0, 1]), 5),
        "decisions_differ": int(((a >= threshold_a) != (b >= threshold_b)).sum()),
    }


def draw_scores(path: Path, by_name: dict[str, np.ndarray], threshold: float) -> None:
    """Histograms of scores with the threshold, as PNG."""
    everything = np.concatenate(list(by_name.values()))
    bins = np.linspace(everything.min(), np.percentile(everything, 99.5), 50)
    with figure(path, "Anomaly scores of parts", "score (higher is worse)", "share of parts") as axes:
        for name, scores in by_name.items():
            weights = np.full(len(scores), 1 / len(scores))
            axes.hist(
                np.clip(scores, bins[0], bins[-1]),
                bins,
                weights=weights,
                histtype="step",
                label=f"{name} ({len(scores)})",
            )
        axes.axvline(threshold, color="black", linestyle=":", label="threshold")
        axes.legend()


def page(results: dict[str, Any], settings: AnomalySettings, hold: Sequence[str]) -> str:
    """What a model card says of the model, as Markdown."""
    held, pasted, known = results["held_out"], results["pasted_outlier"], results["known_defects"]
    far = " (beyond what so few parts can show: extrapolated)" if results["threshold_extrapolated"] else ""
    lines = [
        "Residual pattern learning (arXiv:2211.14512) on the frozen detector's features: the map is the free energy of "
        "a closed-set pixel head whose features a residual block disturbs where they are foreign. Trained with pasted "
        "outliers that know no class of defect. A part whose score reaches the threshold goes to REVIEW.",
        "",
        f"- Threshold {settings.threshold:.3f} from {settings.good_parts} good parts of the validation groups, for a "
        f"wanted overkill of {100 * settings.overkill:g} %{far}.",
    ]
    if held:
        low, high = held["interval_95"]
        lines.append(
            f"- False alarms on good parts of {', '.join(hold)}, which had no part in threshold or training of this "
            f"model: {held['count']} of {held['of']}, {held['per_1000']} in 1000 (95 %: {low} to {high})."
        )
    for group, alarms in results["good"]["by_group_from_the_others"].items():
        lines.append(
            f"- With a threshold from the other groups, {group} would have {alarms['count']} of {alarms['of']}."
        )
    lines.append(
        f"- One pasted outlier on a good part: AUROC {pasted['auroc']:.3f}, {100 * pasted['caught']:.0f} % reach it."
    )
    if known:
        lines.append(
            f"- Known defects reach it on {100 * known['over']:.0f} % of their parts; the detector names those."
        )
    same = results["parity_int8_fp32"]
    lines.append(
        f"- INT8 against FP32 on {same['parts']} good parts: RMS {same['rms']}, correlation {same['correlation']}, "
        f"{same['decisions_differ']} decisions differ."
    )
    return "\n".join(lines) + "\n"


# --- The step ---------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools anomaly", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder of the detector")
    p.add_argument("--checkpoint", type=Path, required=True, help="the detector, frozen")
    p.add_argument("--detector", type=Path, help="INT8 .nb of it with features (`export --features`), which sets the "
                   "threshold (default: its FP32 features)")  # fmt: skip
    p.add_argument("--donors", type=Path, nargs="*", default=[], help="folders with pictures of other products")
    p.add_argument("--hold", nargs="*", default=[], help="training groups kept out of it, to count false alarms on")
    p.add_argument("--images", type=int, default=500, help="pictures to train on; with CoroCL half as many besides")
    p.add_argument("--pool", type=int, default=2, help="cells of the detector a side that make one of the map")
    p.add_argument("--head-steps", type=int, default=FitConfig.head_steps, help="(%(default)s)")
    p.add_argument("--steps", type=int, default=FitConfig.steps, help="of the residual block (%(default)s)")
    p.add_argument("--smoothing", type=int, default=1, help="side in cells of the box that averages the map")
    p.add_argument("--top", type=int, default=1, help="cells whose mean is the score (%(default)s)")
    p.add_argument("--contrast", type=float, default=0.0, help="weight of CoroCL (%(default)s: it lost in `unknown`)")
    p.add_argument("--overkill", type=float, default=0.005, help="good parts wanted over the threshold (%(default)s)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--out", type=Path, required=True, help="folder of models, settings, record and plots")
    return p


def check(args: argparse.Namespace, data: Dataset) -> None:
    """Refuse what cannot work before anything is computed.

    Raises:
        ToolError: with what is wrong.
    """
    groups = {s.group for s in data.part("train")}
    strange = sorted(set(args.hold) - groups)
    if strange or set(args.hold) == groups:
        raise ToolError(f"--hold {' '.join(args.hold)}: expected some, not all, of {', '.join(sorted(groups))}")
    if args.smoothing < 1 or args.smoothing % 2 == 0 or args.top < 1 or args.pool < 1:
        raise ToolError("--smoothing is odd and at least 1, --top and --pool are at least 1")
    if len(good_parts(data.part("validation"))) < 20:
        raise ToolError("a threshold wants at least 20 good parts in the validation split: templates, or images "
                        "without a label")  # fmt: skip


def measure(
    chain: Chain, data: Dataset, held: Sequence[Part], donors: Sequence[Image], args: argparse.Namespace
) -> tuple[Chain, dict[str, Any], dict[str, np.ndarray]]:
    """Set the chain's threshold and count on what it does not rest on."""
    channels, validation = data.spec.channels, data.part("validation")
    parts = good_parts(validation)
    bad = [s for s in validation if len(s.xyxy)]

    def images(paths: Sequence[Path]) -> Iterator[Image]:
        return (read_image(path, channels) for path in paths)

    good, highest = score_all(chain, images([p.path for p in parts]), len(parts), "good")
    settings, extrapolated = set_threshold(chain, good, highest, args.overkill)
    chain = chain.with_settings(settings)
    unseen, _ = score_all(chain, images([p.path for p in held]), len(held), "held out")
    pasted, _ = score_all(chain, with_outliers(parts, channels, donors, args.seed), len(parts), "outliers")
    known, _ = score_all(chain, images([s.image for s in bad]), len(bad), "defective")
    limit, groups = settings.threshold, np.array([p.group for p in parts])
    results = {
        "settings": msgspec.to_builtins(settings),
        "threshold_extrapolated": extrapolated,
        "good": {
            "parts": len(good),
            "over": int((good >= limit).sum()),
            "by_group_from_the_others": across_groups(good, groups, args.overkill),
        },
        "held_out": false_alarms(int((unseen >= limit).sum()), len(unseen)) if len(held) else None,
        "pasted_outlier": {"caught": round(float((pasted >= limit).mean()), 4), **asdict(separation(pasted, good))},
        "known_defects": {"over": round(float((known >= limit).mean()), 4), **asdict(separation(known, good))}
        if len(bad)
        else None,
    }
    shown = {"good": good, "held out": unseen, "one pasted outlier": pasted, "known defects": known}
    return chain, results, {name: scores for name, scores in shown.items() if len(scores)}


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    data = read_dataset(args.data)
    check(args, data)
    faster_training()
    extractor, saved = open_features(args.checkpoint, args.out / "work")
    train_samples = [s for s in data.part("train") if s.group not in args.hold]
    held = good_parts([s for s in data.part("train") if s.group in args.hold])
    own, context = training_cells(extractor, data, train_samples, args, args.contrast > 0)
    network, losses = train(own, context, len(saved.classes), args)
    parts = good_parts(train_samples)
    chosen = [parts[i] for i in np.linspace(0, len(parts) - 1, min(CALIBRATE, len(parts))).astype(int)]
    tensors = [features_of(extractor, read_image(p.path, data.spec.channels), data.spec)[0] for p in chosen]
    written = write_judge(network, NAME, tensors, args.out)
    donors = read_donors(args.donors, data.spec.channels)
    settings = AnomalySettings(kind="energy", smoothing=args.smoothing, top=args.top, threshold=0.0, map_limit=0.0)
    with closing(open_predictor(args.out / f"{NAME}.x86_64.int8.nb")) as model:
        detector = open_predictor(args.detector) if args.detector else extractor
        chain = normalised(Chain(detector, model, data.spec, settings), chosen, data.spec.channels)
        chain, results, scores = measure(chain, data, held, donors, args)
    reference = Chain(extractor, open_predictor(args.out / f"{NAME}.onnx"), data.spec, chain.settings)
    same = good_parts(data.part("validation"))
    fp32, _ = score_all(reference, (read_image(p.path, data.spec.channels) for p in same), len(same), "fp32")
    results["parity_int8_fp32"] = parity(scores["good"], fp32, chain.settings.threshold, chain.settings.threshold)
    (args.out / f"{NAME}.json").write_bytes(msgspec.json.format(msgspec.json.encode(chain.settings)) + b"\n")
    (args.out / f"{NAME}.md").write_text(page(results, chain.settings, args.hold), encoding="utf-8")
    draw_scores(args.out / "scores.png", scores, chain.settings.threshold)
    settings_record = {
        **vars(args),
        "data_sha256": data_hash(data.samples),
        "checkpoint_sha256": sha256_file(args.checkpoint),
    }
    write_record(args.out / "anomaly.record.json", NAME, settings_record, {"losses": losses, **written, **results})
    print(json.dumps(results, indent=1))
