"""Measure a detector on the validation split: AP at two overlaps, per class, F at the best threshold.

Every figure comes through `edge`'s own preprocess, decode and suppression, whatever runs the network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edge.boxes import Float, iou_matrix
from edge.detect import Detector, DetectSettings, Predictor
from edge.preprocess import InputSpec
from edge.records import Detections
from tools.deeppcb import CLASSES, VALIDATION_GROUPS, Sample, data_hash, read_image, read_index, split
from tools.network import INPUT_CHANNELS, INPUT_SIZE, STRIDE
from tools.run_record import write_record

IOU_DEEPPCB = 0.33  # "larger than 0.33" is the data set's own rule
IOU_COMMON = 0.5
INPUT = InputSpec(INPUT_SIZE, INPUT_SIZE, INPUT_CHANNELS)
SETTINGS = DetectSettings(strides=(STRIDE,), min_confidence=0.01, nms_iou=0.35, max_detections=100)


@dataclass(frozen=True)
class Ranking:
    """All detections of a set, most confident first, and how many truths there were to find."""

    confidence: Float  # (N,)
    correct: np.ndarray  # (N,) bool
    truths: int


def match(found: Detections, gt: Float, gt_class: np.ndarray, iou: float) -> np.ndarray:
    """Which detections of one image are correct, (N,) bool.

    Greedy by confidence: a detection takes the free truth of its own class that it overlaps most, if by more
    than `iou`; each truth is taken once.
    """
    correct = np.zeros(len(found.confidence), bool)
    free = np.ones(len(gt), bool)
    overlaps = iou_matrix(found.xyxy, gt) if len(gt) else np.zeros((len(correct), 0), np.float32)
    for i in np.argsort(-found.confidence, kind="stable"):
        candidates = np.where(free & (gt_class == found.class_id[i]), overlaps[i], -1.0)
        if len(candidates) and candidates.max() > iou:
            free[candidates.argmax()] = False
            correct[i] = True
    return correct


def rank(
    found: Sequence[Detections], truth: Sequence[tuple[Float, np.ndarray]], iou: float, only: int | None = None
) -> Ranking:
    """Pool the detections of all images in one ranking; `only` restricts both sides to one class."""
    confidence, correct, truths = [np.empty(0, np.float32)], [np.empty(0, bool)], 0
    for detections, (gt, gt_class) in zip(found, truth, strict=True):
        good = match(detections, gt, gt_class, iou)
        mine = np.ones(len(good), bool) if only is None else detections.class_id == only
        confidence.append(detections.confidence[mine])
        correct.append(good[mine])
        truths += len(gt) if only is None else int((gt_class == only).sum())
    pooled = np.concatenate(confidence)
    order = np.argsort(-pooled, kind="stable")
    return Ranking(pooled[order], np.concatenate(correct)[order], truths)


def average_precision(ranking: Ranking) -> float:
    """Area under the precision envelope over recall, in [0, 1]; NaN without any truth.

    >>> average_precision(Ranking(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2))
    0.8333333333333333
    """
    if ranking.truths == 0:
        return float("nan")
    hits = np.cumsum(ranking.correct)
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[ranking.correct].sum() / ranking.truths)


def best_f(ranking: Ranking) -> tuple[float, float]:
    """The highest F score over all thresholds, and that threshold."""
    if ranking.truths == 0 or len(ranking.correct) == 0:
        return 0.0, 1.0
    hits = np.cumsum(ranking.correct)
    f = 2 * hits / (np.arange(1, len(hits) + 1) + ranking.truths)
    best = int(f.argmax())
    return float(f[best]), float(ranking.confidence[best])


def figures(
    found: Sequence[Detections], truth: Sequence[tuple[Float, np.ndarray]], classes: Sequence[str] = CLASSES
) -> dict[str, Any]:
    """All figures of one set of detections, rounded to five digits."""
    pooled = rank(found, truth, IOU_DEEPPCB)
    f, threshold = best_f(pooled)
    per_class = [average_precision(rank(found, truth, IOU_DEEPPCB, k)) for k in range(len(classes))]
    at_50 = [average_precision(rank(found, truth, IOU_COMMON, k)) for k in range(len(classes))]
    return {
        "images": len(found),
        "truths": pooled.truths,
        "ap33_pooled": round(average_precision(pooled), 5),
        "ap33_class_mean": round(float(np.nanmean(per_class)), 5),
        "ap33": {name: round(value, 5) for name, value in zip(classes, per_class, strict=True)},
        "map50": round(float(np.nanmean(at_50)), 5),
        "f33_best": round(f, 5),
        "f33_threshold": round(threshold, 4),
    }


def detect_all(predictor: Predictor, images: Iterable[np.ndarray], progress: str = "") -> list[Detections]:
    """Detections of each image through `edge.detect`, with a progress bar if it is given a name."""
    detector = Detector(predictor, INPUT, SETTINGS)
    return [detector.detect(image) for image in tqdm(images, progress, disable=not progress, mininterval=5)]


def truth_of(samples: Sequence[Sample]) -> list[tuple[Float, np.ndarray]]:
    """Boxes and class ids of each sample, as the metrics take them."""
    return [(sample.xyxy, sample.class_id) for sample in samples]


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools evaluate", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="unpacked DeepPCB folder, holds trainval.txt")
    p.add_argument("--model", type=Path, required=True, help="a .pdckpt, .nb or .onnx file, or a Paddle model's folder")
    p.add_argument("--validation-groups", nargs="+", default=list(VALIDATION_GROUPS), metavar="GROUP")
    p.add_argument("--split", choices=("validation", "train"), default="validation")
    p.add_argument("--out", type=Path, help="where the run record goes (default: next to the model)")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    from tools.runtimes import open_predictor

    args = parser().parse_args(arguments)
    train, held = split(read_index(args.data), args.validation_groups)
    samples = held if args.split == "validation" else train
    images = [read_image(sample.test) for sample in samples]
    found = detect_all(open_predictor(args.model), images, "evaluate")
    result = figures(found, truth_of(samples))
    print(json.dumps(result, indent=2))
    out = args.out or args.model.with_name(args.model.name + ".evaluation.json")
    write_record(out, "evaluate", {**vars(args), "data_sha256": data_hash(samples)}, result)
