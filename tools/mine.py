"""Pick the images that are worth labelling from a folder of evidence or replayed frames, and label them beforehand.

    python -m tools mine --images EVIDENCE --model last.pdckpt --like DATASET --out TO_LABEL --count 60

Each pick says why it was picked (see `tools.mining`). The model's boxes are written for the annotator to correct, in
the formats that are asked for; `sheet_1.png` and so on show the picks with their boxes and reasons, `mine.json` lists
them. A JSON beside an image may hold the device's result for it: its `anomaly` counts as the anomaly score.
Every image is kept in a journal: stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from edge.boxes import Float
from edge.detect import Detector, Predictor
from edge.preprocess import Image
from edge.recipe import DetectRecipe
from edge.records import Detections
from tools import mining
from tools.calibration import describe
from tools.contact_sheet import Tile, write_sheets
from tools.dataset import Dataset, data_hash, read_dataset, read_image, sha256_file
from tools.drift_evidence import findings as drift_findings
from tools.drift_evidence import read_moved
from tools.errors import DataError, ToolError
from tools.evaluate import choose_recipe, model_hash, opened, pack, settings_of, thresholds_of, unpack
from tools.formats.raw import IMAGE_SUFFIXES, find_files
from tools.journal import Journal
from tools.look_alikes import perceptual_hash, same_pairs, thumbnail
from tools.mining import DISAGREE, DRIFT, NEAR, UNUSUAL, Finding
from tools.model_info import Purpose, purpose_of
from tools.plots import figure
from tools.prelabels import WRITERS, Prelabelled, unique_names
from tools.run_record import write_record

MIRRORS = {1: "mirrored", 0: "upside down"}  # axis: what the picture then is
SHORTLIST = 8  # times the count: so many are compared for near duplicates
TRAINING_IMAGES = 300  # of the training set that novelty is measured against


class Watched:
    """A checkpoint's network that keeps a description of the image it last saw: its features, pooled, (2 * neck,)."""

    def __init__(self, checkpoint: Path):
        from tools.runtimes import load_network

        self._network = load_network(checkpoint)
        self.pooled = np.empty(0, np.float32)

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of one input (1, C, H, W)."""
        import paddle

        with paddle.no_grad():
            features = self._network.features(paddle.to_tensor(tensor))  # (1, neck, H/8, W/8)
            outputs = [np.asarray(out.numpy(), np.float32) for out in self._network.head(features)]
        cells = features.numpy()[0].reshape(features.shape[1], -1)
        self.pooled = np.concatenate([cells.mean(axis=1), cells.max(axis=1)])
        return outputs


@contextmanager
def looking(model: Path, purpose: Purpose) -> Iterator[Predictor]:
    """The model ready to run; a checkpoint also describes what it sees."""
    with opened(model, purpose.spec, purpose.classes) as predictor:
        yield Watched(model) if model.suffix == ".pdckpt" else predictor


@dataclass(frozen=True)
class Looked:
    """What is known of one image.

    Attributes:
        features: (D,) its description. findings: by reason, the ones that come from boxes. anomaly: the device's score.
    """

    file: Path
    width: int
    height: int
    found: Detections
    features: Float
    findings: dict[str, Finding]
    anomaly: float | None


class Looker:
    """Looks at images with one model and its mirror images, or with two models."""

    def __init__(self, predictor: Predictor, second: Predictor | None, purpose: Purpose, recipe: DetectRecipe):
        settings = settings_of(recipe)
        self._predictor = predictor
        self._first = Detector(predictor, purpose.spec, settings)
        self._second = Detector(second, purpose.spec, settings) if second is not None else None
        self._purpose = purpose
        self._thresholds = thresholds_of(recipe, purpose.classes)

    def features(self, image: Image) -> Float:
        """The image's description alone, (D,)."""
        if isinstance(self._predictor, Watched):
            self._first.detect(image)
            return self._predictor.pooled
        return describe(image)

    def look(self, file: Path) -> dict[str, Any]:
        """Everything about one image, as the journal keeps it; `error` alone when it cannot be read."""
        try:
            image = read_image(file, self._purpose.spec.channels)
        except DataError as error:
            return {"error": str(error)}
        found = self._first.detect(image)
        pooled = self._predictor.pooled if isinstance(self._predictor, Watched) else describe(image)
        near = mining.near_threshold(found, self._thresholds, self._purpose.classes)
        findings = {NEAR: near, DISAGREE: self._disagreement(image, found)}
        return {
            "size": [image.shape[1], image.shape[0]],
            "found": pack(found),
            "features": [round(float(v), 5) for v in pooled],
            "findings": {reason: asdict(finding) for reason, finding in findings.items()},
        }

    def _disagreement(self, image: Image, found: Detections) -> Finding:
        classes = self._purpose.classes
        if self._second is not None:
            return mining.disagreement(found, self._second.detect(image), classes, "second model")
        height, width = image.shape[:2]
        worst = Finding(0.0)
        for axis, called in MIRRORS.items():
            turned = mining.mirror_back(self._first.detect(mining.mirrored(image, axis)), axis, width, height)
            worst = max(worst, mining.disagreement(found, turned, classes, called), key=lambda f: f.score)
        return worst


def read_anomaly(file: Path) -> float | None:
    """The anomaly score in the JSON beside an image, if there is one: `anomaly`, or `scores.anomaly`.

    Raises:
        DataError: the JSON cannot be read, or the score is no number.
    """
    sidecar = file.with_suffix(".json")
    if not sidecar.is_file():
        return None
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{sidecar}: cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        return None
    nested = record.get("scores")
    score = record.get("anomaly", nested.get("anomaly") if isinstance(nested, dict) else None)
    if score is None:
        return None
    if isinstance(score, bool) or not isinstance(score, int | float) or not np.isfinite(score):
        raise DataError(f"{sidecar}: anomaly is {score!r:.40}, expected a number")
    return float(score)


def look_at_all(files: Sequence[Path], root: Path, looker: Looker, kept: Journal) -> tuple[list[Looked], list[str]]:
    """Look at each image, and what is wrong with those that cannot be used."""
    looked, problems = [], []
    for file in tqdm(files, "look", mininterval=5):
        # By content, so that the journal holds good when images come or go.
        stored = kept.once(sha256_file(file), lambda file=file: looker.look(file))
        if "error" in stored:
            problems.append(stored["error"])
            continue
        anomaly = None
        try:
            anomaly = read_anomaly(file)
        except DataError as error:  # the image itself may still be worth labelling
            problems.append(str(error))
        findings = {reason: Finding(**finding) for reason, finding in stored["findings"].items()}
        features = np.array(stored["features"], np.float32)
        looked.append(Looked(file, *stored["size"], unpack(stored["found"]), features, findings, anomaly))
    if not looked:
        raise DataError(f"{root}: none of {len(files)} images can be read; the first: {problems[0]}")
    return looked, problems


def describe_training(like: Dataset, looker: Looker, kept: Journal) -> Float:
    """Descriptions (M, D) of training images, evenly spread over the set if there are many."""
    samples = like.part("train")
    some = samples[:: -(-len(samples) // TRAINING_IMAGES)]

    def one(file: Path) -> list[float]:
        return [round(float(v), 5) for v in looker.features(read_image(file, like.spec.channels))]

    bar = tqdm(some, "training set", mininterval=5)
    return np.array([kept.once(f"training {s.name}", lambda s=s: one(s.image)) for s in bar], np.float32)


def unusual(looked: Sequence[Looked], features: Float, reference: Float) -> list[Finding]:
    """How unusual each image is among all, as the share that is less so: by the device's anomaly scores where there
    are any, else by the distance to the training set. NaN where nothing says it."""
    anomaly = np.array([np.nan if item.anomaly is None else item.anomaly for item in looked])
    if not np.isnan(anomaly).all():
        pairs = zip(anomaly, mining.percentile(anomaly), strict=True)
        return [Finding(float(rank), f"anomaly {score:.3g}, over {rank:.0%} of them") for score, rank in pairs]
    if not len(reference):
        return [Finding(float("nan"))] * len(looked)
    usual = float(np.median(mining.distance_to(reference, reference, leave_out=True))) or 1.0
    distance = mining.distance_to(features, reference) / usual
    ranks = mining.percentile(distance)
    return [
        Finding(float(r), f"{d:.1f} x the usual distance")  # of training images from each other
        for d, r in zip(distance, ranks, strict=True)
    ]


def without_look_alikes(
    looked: Sequence[Looked], scores: dict[str, Float], features: Float, like: Dataset | None, count: int
) -> tuple[np.ndarray, int]:
    """Which images may be chosen, (N,) bool, and how many were left out because they look like another one.

    Only a shortlist is compared: the best of each reason, and those spread over all.
    """
    short: dict[int, None] = {}
    for values in scores.values():
        order = np.argsort(-np.where(np.isnan(values), -np.inf, values), kind="stable")
        short |= dict.fromkeys(int(i) for i in order[: SHORTLIST * count])
    usable = np.ones(len(looked), bool)
    spread = mining.choose({}, features, np.empty((0, features.shape[1])), usable, SHORTLIST * count)
    rows = list(short | dict.fromkeys(row for row, _ in spread))
    train = [sample.image for sample in like.part("train")] if like else []
    grey = [read_image(path) for path in tqdm([*[looked[i].file for i in rows], *train], "compare", mininterval=5)]
    hashes, thumbs = np.stack([perceptual_hash(i) for i in grey]), np.stack([thumbnail(i) for i in grey])
    pairs = same_pairs(hashes, thumbs)
    worth = np.array([max((np.nan_to_num(values[i]) for values in scores.values()), default=0.0) for i in rows])
    labelled = np.full(len(train), np.inf)  # what is in the training set already stays, its look-alikes go
    keep = mining.keep_one_of_each([(i, j) for i, j, _ in pairs], np.concatenate([worth, labelled]))[: len(rows)]
    usable[:] = False
    usable[np.array(rows)[keep]] = True
    return usable, int((~keep).sum())


@dataclass(frozen=True)
class Pick:
    """One image to label: the reason it was chosen for, and the words for every reason that holds."""

    item: Looked
    name: str
    reason: str
    why: tuple[str, ...]


def pick(
    looked: Sequence[Looked], chosen: Sequence[tuple[int, str]], all_findings: Sequence[dict[str, Finding]], root: Path
) -> list[Pick]:
    """The chosen images with their names and words."""
    names = unique_names([looked[row].file for row, _ in chosen], root)
    picks = []
    for (row, reason), name in zip(chosen, names, strict=True):
        held = {r: f for r, f in all_findings[row].items() if f.score >= mining.LEAST[r]}
        first = [f"{reason}: {held[reason].text}" if reason in held else f"{reason}: unlike all chosen before"]
        more = [f"{r}: {f.text}" for r, f in held.items() if r != reason]
        picks.append(Pick(looked[row], name, reason, (*first, *more)))
    return picks


def prelabels(picks: Sequence[Pick], recipe: DetectRecipe, classes: Sequence[str]) -> list[Prelabelled]:
    """The boxes that change a verdict: those that reach their class's review threshold."""
    least = np.minimum(thresholds_of(recipe, classes), recipe.review)
    result = []
    for p in picks:
        found = p.item.found
        keep = found.confidence >= least[found.class_id]
        shown = Detections(found.xyxy[keep], found.confidence[keep], found.class_id[keep])
        result.append(Prelabelled(p.item.file, p.name, p.item.width, p.item.height, shown))
    return result


def tile(chosen: Pick, label: Prelabelled, classes: Sequence[str]) -> Tile:
    """The picture of a pick on the contact sheet: its reason below, boxes with class and confidence."""
    found = label.found
    texts = [f"{classes[k]} {c:.2f}" for k, c in zip(found.class_id, found.confidence, strict=True)]
    title = chosen.why[0].removeprefix(f"{chosen.reason}: ")
    return Tile(title, lambda: read_image(chosen.item.file, 3), found.xyxy, texts, [int(k) for k in found.class_id])


def draw(path: Path, features: Float, reference: Float, chosen: Sequence[tuple[int, str]]) -> None:
    """Training set, evidence and picks in two dimensions, as PNG: where the picks lie."""
    both = np.concatenate([features, reference])
    centred = both - both.mean(axis=0)
    _, _, axes_of = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes_of[:2].T
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    title = f"{len(chosen)} of {len(features)} images"
    with figure(path, title, "first principal component", "second") as axes:
        axes.scatter(*flat[len(features) :].T, s=6, color="lightgrey", label="training set")
        axes.scatter(*flat[: len(features)].T, s=6, color="tab:blue", alpha=0.4, label="evidence")
        for reason in dict.fromkeys(r for _, r in chosen):
            rows = [row for row, r in chosen if r == reason]
            axes.scatter(*flat[rows].T, s=22, label=reason)
        axes.legend()


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools mine", description=__doc__.splitlines()[0])
    p.add_argument("--images", type=Path, required=True, help="folder of images, with the device's JSON beside or not")
    p.add_argument("--model", type=Path, required=True, help="checkpoint, .nb, .onnx, or a Paddle model's folder")
    p.add_argument("--second", type=Path, help="another model of the same classes; default: the first on mirror images")
    p.add_argument("--like", type=Path, help="the dataset the model was trained on: what is unlike it is worth more")
    p.add_argument("--recipe", type=Path, help="thresholds; default: threshold 0.5, review 0.3")
    p.add_argument("--drift", type=Path, metavar="REPORT", help="drift report: frames it points at are worth labelling")
    p.add_argument("--count", type=int, default=50, help="how many to pick (%(default)s)")
    p.add_argument("--format", default="coco,labelme,yolo", help="of the labels, with commas (%(default)s)")
    p.add_argument("--out", type=Path, required=True, help="folder of labels, sheets, record and journal")
    return p


def refuse_arguments(args: argparse.Namespace) -> list[str]:
    """Check what the arguments say; returns the formats.

    Raises:
        ToolError: something cannot be.
    """
    formats = [name.strip() for name in args.format.split(",") if name.strip()]
    unknown = [name for name in formats if name not in WRITERS]
    if unknown or not formats:
        raise ToolError(f"--format {args.format}: expected some of {', '.join(WRITERS)}, with commas")
    if args.count < 1:
        raise ToolError(f"--count {args.count}: at least one image has to be picked")
    inside = args.out.resolve()
    if inside == args.images.resolve() or args.images.resolve() in inside.parents:
        raise ToolError(f"--out {args.out}: lies in --images, so its copies would be picked next time")
    return formats


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    formats = refuse_arguments(args)
    files = find_files(args.images, IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{args.images}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    moved = read_moved(args.drift) if args.drift else []
    like = read_dataset(args.like) if args.like else None
    purpose = purpose_of(args.model, like)
    recipe = choose_recipe(args.recipe, None, purpose.classes).detect
    looked, problems, reference = look(args, files, like, purpose, recipe)

    features, reference = mining.standardised(np.stack([item.features for item in looked]), reference)
    strange = unusual(looked, features, reference)
    all_findings = [{**item.findings, UNUSUAL: s} for item, s in zip(looked, strange, strict=True)]
    if moved:
        shown = drift_findings(moved, {str(file.relative_to(args.images)): file for file in files})
        for item, known in zip(looked, all_findings, strict=True):
            known[DRIFT] = shown.get(item.file, Finding(0.0))
    scores = {r: np.array([f[r].score for f in all_findings]) for r in all_findings[0]}
    scores = {reason: values for reason, values in scores.items() if not np.isnan(values).all()}
    usable, alike = without_look_alikes(looked, scores, features, like, args.count)
    chosen = mining.choose(scores, features, reference, usable, args.count)
    picks = pick(looked, chosen, all_findings, args.images)

    labels = prelabels(picks, recipe, purpose.classes)
    for name in formats:
        WRITERS[name](labels, purpose.classes, args.out / name)
    write_sheets([tile(p, label, purpose.classes) for p, label in zip(picks, labels, strict=True)], args.out, "sheet")
    draw(args.out / "mine.png", features, reference, chosen)
    counts = dict(Counter(reason for _, reason in chosen))
    listed = [
        {"file": str(p.item.file.relative_to(args.images)), "name": p.name, "why": p.why, "boxes": len(label.found)}
        for p, label in zip(picks, labels, strict=True)
    ]
    result = {"images": len(files), "look_alikes": alike, "picked": counts, "problems": problems, "picks": listed}
    write_record(args.out / "mine.json", "mine", {**vars(args), "model_sha256": model_hash(args.model)}, result)
    told = ", ".join(f"{n} {reason}" for reason, n in counts.items())
    print(f"{len(picks)} of {len(files)} images: {told}; {alike} look like another, {len(problems)} have a problem")
    print(*problems[:5], f"{args.out}: labels in {', '.join(formats)}, sheet_1.png, mine.json", sep="\n")


def look(
    args: argparse.Namespace, files: Sequence[Path], like: Dataset | None, purpose: Purpose, recipe: DetectRecipe
) -> tuple[list[Looked], list[str], Float]:
    """Everything about the images and the training set, with the models open; kept in the journal."""
    depends: dict[str, Any] = {"model": model_hash(args.model), "recipe": msgspec.to_builtins(recipe)}
    depends |= {"second": model_hash(args.second) if args.second else ""}
    depends |= {"like": data_hash(like.part("train")) if like else ""}
    with ExitStack() as stack:
        first = stack.enter_context(looking(args.model, purpose))
        second = stack.enter_context(opened(args.second, purpose.spec, purpose.classes)) if args.second else None
        looker, kept = Looker(first, second, purpose, recipe), Journal(args.out / "mine.journal", depends)
        looked, problems = look_at_all(files, args.images, looker, kept)
        width = len(looked[0].features)
        reference = describe_training(like, looker, kept) if like else np.empty((0, width), np.float32)
    return looked, problems, reference
