"""Measure a detector on a split of a dataset: AP at several overlaps, F, confusion, escape and overkill of a recipe.

Every figure comes through `edge`'s own preprocess, decode, suppression, gate and decision, whatever runs the network;
give the `.nb` that ships for the figures that count. Each image is kept in a journal: the same command goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edge import gate
from edge import recipe as recipes
from edge.detect import Detector, DetectSettings, Predictor
from edge.preprocess import Image, InputSpec
from edge.recipe import DetectRecipe, Recipe
from edge.records import Detections
from tools.dataset import SPLITS, Dataset, Sample, data_hash, read_dataset, read_image, truth_of
from tools.errors import ToolError
from tools.journal import Journal
from tools.metrics import (
    COCO_RULES,
    IOU_DEEPPCB,
    Ranking,
    Truth,
    average_precision,
    best_f,
    confusion,
    curve,
    drop_unknown,
    figures,
    match,
    operating_point,
    pool,
    rank,
)
from tools.network import STRIDE
from tools.plots import figure
from tools.run_record import write_record
from tools.verdicts import Seen, part_rates, tally

# Others import the figures from here too.
__all__ = ["Ranking", "average_precision", "best_f", "detect_all", "figures", "main", "match", "parser", "rank"]

SETTINGS = DetectSettings(strides=(STRIDE,), min_confidence=0.01, nms_iou=0.35, max_detections=100)


def detect_all(
    predictor: Predictor,
    images: Iterable[Image],
    spec: InputSpec,
    progress: str = "",
    settings: DetectSettings = SETTINGS,
) -> list[Detections]:
    """Detections of each image through `edge.detect`, with a progress bar if it is given a name.

    Args:
        images: grey or BGR, of any size; an iterator is read one by one.
        spec: the input contract of the network, as `Dataset.spec` has it.
    """
    detector = Detector(predictor, spec, settings)
    return [detector.detect(image) for image in tqdm(images, progress, disable=not progress, mininterval=5)]


@contextmanager
def opened(model: Path, spec: InputSpec, classes: Sequence[str]) -> Iterator[Predictor]:
    """The model, checked to fit the dataset, and closed at the end.

    Raises:
        ToolError: it cannot be run, or was made for other classes or another input.
    """
    from tools.runtimes import open_predictor

    if model.suffix == ".pdckpt":
        _check_checkpoint(model, spec, classes)
    predictor = open_predictor(model)
    try:
        _check_outputs(predictor, model, spec, classes)
        yield predictor
    finally:
        close = getattr(predictor, "close", None)
        if close is not None:
            close()


def _check_checkpoint(model: Path, spec: InputSpec, classes: Sequence[str]) -> None:
    from tools.checkpoint import read_checkpoint

    saved = read_checkpoint(model)
    if saved.classes != tuple(classes):
        made, wanted = ", ".join(saved.classes), ", ".join(classes)
        raise ToolError(f"{model}: made for the classes {made}; the dataset has {wanted}")
    if saved.spec.channels != spec.channels:
        raise ToolError(f"{model}: made for {saved.spec.channels} channels, the dataset's input has {spec.channels}")


def _check_outputs(predictor: Predictor, model: Path, spec: InputSpec, classes: Sequence[str]) -> None:
    height, width = spec.height // STRIDE, spec.width // STRIDE
    expected = [(1, len(classes), height, width), (1, 4, height, width)]
    shapes = [out.shape for out in predictor.run(np.full((1, spec.channels, spec.height, spec.width), 0.5, np.float32))]
    if shapes[:2] != expected or len(shapes) > 3:  # a third one is the features, for the judges beside the detector
        raise ToolError(
            f"{model}: made for another dataset: its outputs have the shapes {shapes}, and {len(classes)} classes at "
            f"{spec.width}x{spec.height} want {expected}"
        )


def model_hash(model: Path) -> str:
    """SHA-256 over the bytes of a model, a file or a folder of files."""
    digest = hashlib.sha256()
    for path in [model] if model.is_file() else sorted(p for p in model.rglob("*") if p.is_file()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Evidence:
    """Everything the device saw of a split.

    Attributes:
        samples: the labelled images. seen: what was found on each.
        templates: what was found on defect-free pictures. owners: which sample each of these belongs to.
    """

    samples: Sequence[Sample]
    seen: Sequence[Seen]
    templates: Sequence[Seen]
    owners: Sequence[int]
    classes: tuple[str, ...]

    @property
    def bad(self) -> list[Seen]:
        """Parts with a labelled defect."""
        return [seen for sample, seen in zip(self.samples, self.seen, strict=True) if len(sample.xyxy)]

    @property
    def good(self) -> list[Seen]:
        """Parts that are known to have none."""
        pairs = zip(self.samples, self.seen, strict=True)
        return [*self.templates, *(seen for sample, seen in pairs if not len(sample.xyxy) and sample.known.all())]

    def part(self, images: np.ndarray) -> Evidence:
        """Only the samples that are True in `images`, (samples,) bool, with their templates."""
        place = np.cumsum(images) - 1
        mine = [i for i, owner in enumerate(self.owners) if images[owner]]
        return Evidence(
            [sample for sample, keep in zip(self.samples, images, strict=True) if keep],
            [seen for seen, keep in zip(self.seen, images, strict=True) if keep],
            [self.templates[i] for i in mine],
            [int(place[self.owners[i]]) for i in mine],
            self.classes,
        )

    @property
    def found(self) -> list[Detections]:
        """Boxes on each labelled image, without those of classes that nobody looked for there."""
        return drop_unknown([seen.found for seen in self.seen], [sample.known for sample in self.samples])

    @property
    def truth(self) -> list[Truth]:
        """Labels of each image."""
        return truth_of(self.samples)


def gather(
    data: Dataset, samples: Sequence[Sample], predictor: Predictor, recipe: Recipe, kept: Journal
) -> Evidence:
    """Let the device's code look at the samples and their templates, each once."""
    detector = Detector(predictor, data.spec, settings_of(recipe.detect))
    owners = {sample.template: i for i, sample in enumerate(samples) if sample.template is not None}
    work = [(sample.image, sample) for sample in samples] + [(path, samples[i]) for path, i in owners.items()]
    seen = []
    for path, sample in tqdm(work, "detect", mininterval=5):
        name = str(path.relative_to(data.root))
        stored = kept.once(name, lambda path=path: _look(read_image(path, data.spec.channels), detector, recipe))
        width, height = stored.get("size") or size_of(read_image(path, data.spec.channels))
        seen.append(Seen(name, sample.group, unpack(stored), stored["cause"], (width, height)))
    return Evidence(samples, seen[: len(samples)], seen[len(samples) :], list(owners.values()), data.classes)


def evidence_of(
    model: Path, data: Dataset, split: str, recipe: Recipe, out: Path
) -> tuple[Evidence, dict[str, Any]]:
    """Everything a model sees of a split, and what that depends on, for the run record.

    Kept in `out/detections.journal`: whoever looks with the same model, data and recipe takes it from there.
    """
    samples = data.part(split)
    settings = asdict(settings_of(recipe.detect))
    depends = {"model": model_hash(model), "data": data_hash(samples), "settings": settings}
    with opened(model, data.spec, data.classes) as predictor:
        gate_text = recipes.dump(Recipe(gate=recipe.gate))
        kept = Journal(out / "detections.journal", {**depends, "gate": gate_text})
        return gather(data, samples, predictor, recipe, kept), depends


def _look(image: Image, detector: Detector, recipe: Recipe) -> dict[str, Any]:
    found, result = detector.detect(image), gate.check(image, recipe.gate)
    return {**pack(found), "cause": result.cause.value if result.cause else None, "size": size_of(image)}


def size_of(image: Image) -> tuple[int, int]:
    """Width and height, pixels."""
    return image.shape[1], image.shape[0]


def pack(found: Detections) -> dict[str, Any]:
    """Boxes as plain data, for a journal; `unpack` gives the same boxes back to the last bit."""
    return {"xyxy": found.xyxy.tolist(), "confidence": found.confidence.tolist(), "class": found.class_id.tolist()}


def unpack(stored: dict[str, Any]) -> Detections:
    """What `pack` made plain."""
    xyxy = np.array(stored["xyxy"], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array(stored["confidence"], np.float32), np.array(stored["class"], np.int64))


def settings_of(recipe: DetectRecipe) -> DetectSettings:
    """How boxes are chosen: as the recipe says, but all down to the least confidence."""
    return DetectSettings((STRIDE,), SETTINGS.min_confidence, recipe.nms_iou, recipe.max_detections)


def choose_recipe(path: Path | None, threshold: float | None, classes: Sequence[str]) -> Recipe:
    """The recipe to judge by; `threshold` goes before its own, for all classes."""
    recipe = recipes.load(path, classes) if path else Recipe(detect=DetectRecipe(nms_iou=SETTINGS.nms_iou))
    if threshold is None:
        return recipe
    if not SETTINGS.min_confidence <= threshold < 1:
        raise ToolError(f"--threshold {threshold}: expected a confidence in [{SETTINGS.min_confidence}, 1)")
    d = recipe.detect
    review = min(d.review, threshold)
    detect = DetectRecipe(threshold=threshold, review=review, nms_iou=d.nms_iou, max_detections=d.max_detections)
    return Recipe(name=recipe.name, gate=recipe.gate, detect=detect)


def thresholds_of(recipe: DetectRecipe, classes: Sequence[str]) -> np.ndarray:
    """Confidence from which each class is a defect, (classes,)."""
    return np.array([recipe.class_threshold.get(name, recipe.threshold) for name in classes])


def judge(evidence: Evidence, recipe: Recipe) -> dict[str, Any]:
    """All figures of the evidence, for the run record."""
    classes, d = evidence.classes, recipe.detect
    found, truth = evidence.found, evidence.truth
    result = figures(found, truth, classes)
    result["at_thresholds"] = {
        "threshold": dict(zip(classes, thresholds_of(d, classes).tolist(), strict=True)),
        "review": d.review,
        **operating_point(found, truth, thresholds_of(d, classes), classes),
    }
    rates = part_rates(evidence.bad, evidence.good, d, classes)
    result["parts"] = {
        **{name: rate.as_dict() for name, rate in rates.items()},
        "bad": {kind: rate.count for kind, rate in tally(evidence.bad, d, classes).items()},
        "good": {kind: rate.count for kind, rate in tally(evidence.good, d, classes).items()},
    }
    return result


def without_nan(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have: the figure of a class that has no defect here.

    >>> without_nan({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def summary(result: dict[str, Any]) -> str:
    """The figures for people."""
    at, parts = result["at_thresholds"], result["parts"]
    most = result["rules"]["max_detections"]
    lines = [
        f"{result['images']} images, {result['truths']} defects, at most {most} boxes an image",
        f"AP33 pooled {result['ap33_pooled']:.4f}, class mean {result['ap33_class_mean']:.4f}; "
        f"mAP50 {result['map50']:.4f}, mAP50-95 {result['map50_95']:.4f}",
        f"F33 best {result['f33_best']:.4f} at {result['f33_threshold']:.3f}; at the thresholds {at['f33']:.4f}: "
        f"{at['hits']} of {at['boxes']} boxes are correct, {at['hits']} of {at['truths']} defects are found",
    ]
    for title, key, side in (("escape  ", "escape", "bad"), ("overkill", "overkill", "good")):
        rate, others = parts[key], ", ".join(f"{kind} {n}" for kind, n in parts[side].items())
        share = "no such part" if rate["share"] is None else f"{rate['share']:.2%} of {rate['of']} {side} parts"
        lines.append(f"{title} {share} ({others})")
    width = max(map(len, result["ap33"]))
    lines += [
        f"  {name:<{width}}  AP33 {value:.4f}  AP50-95 {result['ap50_95'][name]:.4f}"
        for name, value in result["ap33"].items()
    ]
    return "\n".join(lines)


def draw(evidence: Evidence, recipe: DetectRecipe, out: Path) -> None:
    """Precision over recall, F over the threshold, and the confusion of classes, as PNG files in `out`."""
    classes, found, truth = evidence.classes, evidence.found, evidence.truth
    correct = [match(detections, *labels, IOU_DEEPPCB) for detections, labels in zip(found, truth, strict=True)]
    curves = {name: curve(pool(found, truth, correct, k)) for k, name in enumerate(classes)}
    with figure(out / "precision_recall.png", "Precision and recall, IoU over 0.33", "recall", "precision") as axes:
        for name, c in curves.items():
            axes.plot(c.recall, c.precision, label=name)
        axes.set_xlim(0, 1.01), axes.set_ylim(0, 1.01), axes.legend()
    with figure(out / "f_threshold.png", "F over the threshold, IoU over 0.33", "threshold", "F") as axes:
        for name, c in curves.items():
            (line,) = axes.plot(c.threshold, c.f, label=name)
            if name in recipe.class_threshold:
                axes.axvline(recipe.class_threshold[name], linestyle="--", color=line.get_color())
        together = curve(pool(found, truth, correct))
        axes.plot(together.threshold, together.f, color="black", label="all")
        axes.axvline(recipe.threshold, linestyle="--", color="grey")
        axes.set_xlim(0, 1), axes.set_ylim(0, 1.01), axes.legend()
    _draw_confusion(confusion(found, truth, thresholds_of(recipe, classes), len(classes)), classes, out)


def _draw_confusion(table: np.ndarray, classes: Sequence[str], out: Path) -> None:
    with figure(out / "confusion.png", "Defects at the thresholds", "found as", "labelled") as axes:
        share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(classes) + 1), [*classes, "missed"], rotation=30, ha="right")
        axes.set_yticks(range(len(classes) + 1), [*classes, "false"])
        axes.grid(False)
        for (row, column), count in np.ndenumerate(table):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools evaluate", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--model", type=Path, required=True, help="a .pdckpt, .nb or .onnx file, or a Paddle model's folder")
    p.add_argument("--split", choices=SPLITS, default="validation")
    p.add_argument("--recipe", type=Path, help="thresholds, gate and suppression; default: threshold 0.5, review 0.3")
    p.add_argument("--threshold", type=float, help="one threshold for all classes, goes before the recipe's")
    p.add_argument("--out", type=Path, help="folder of record, plots and journal (default: MODEL.evaluation)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    data = read_dataset(args.data)
    recipe = choose_recipe(args.recipe, args.threshold, data.classes)
    out = args.out or args.model.with_name(args.model.name + ".evaluation")
    evidence, depends = evidence_of(args.model, data, args.split, recipe, out)
    rules = {**depends["settings"], "iou": f"> {IOU_DEEPPCB}", "coco": COCO_RULES}
    result = {**judge(evidence, recipe), "rules": rules}
    draw(evidence, recipe.detect, out)
    write_record(out / "evaluate.json", "evaluate", {**vars(args), **depends}, without_nan(result))
    print(summary(result))
    print(f"{out / 'evaluate.json'}: all figures, beside it the plots")
