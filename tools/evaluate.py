"""Measure a detector on a split of a dataset: AP at several overlaps, per class, F at the best threshold.

Every figure comes through `edge`'s own preprocess, decode and suppression, whatever runs the network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from edge.detect import Detector, DetectSettings, Predictor
from edge.preprocess import Image, InputSpec
from edge.records import Detections
from tools.dataset import SPLITS, data_hash, read_dataset, read_image, truth_of
from tools.metrics import Ranking, average_precision, best_f, figures, match, rank
from tools.network import STRIDE
from tools.run_record import write_record

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


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools evaluate", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--model", type=Path, required=True, help="a .pdckpt, .nb or .onnx file, or a Paddle model's folder")
    p.add_argument("--split", choices=SPLITS, default="validation")
    p.add_argument("--out", type=Path, required=True, help="folder of the run record")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    from tools.runtimes import open_predictor

    args = parser().parse_args(arguments)
    data = read_dataset(args.data)
    samples = data.part(args.split)
    images = (read_image(sample.image, data.spec.channels) for sample in samples)
    found = detect_all(open_predictor(args.model), images, data.spec, "evaluate")
    result = figures(found, truth_of(samples), data.classes, [sample.known for sample in samples])
    print(json.dumps(result, indent=2))
    write_record(args.out / "evaluate.json", "evaluate", {**vars(args), "data_sha256": data_hash(samples)}, result)
