"""Choose the images that calibrate INT8: few, from the training groups, as unlike each other as possible."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edge.preprocess import Image
from tools.deeppcb import VALIDATION_GROUPS, read_image, read_index, sha256_file, split
from tools.errors import DataError

GRID = 8


def describe(image: Image) -> np.ndarray:
    """What an image looks like, coarsely: copper share and edge density on a grid, (2 * 64,) in [0, 1]."""
    edges = cv2.Laplacian(image, cv2.CV_32F)
    busy = cv2.resize(np.minimum(np.abs(edges), 255), (GRID, GRID), interpolation=cv2.INTER_AREA)
    bright = cv2.resize(image.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.concatenate([bright.ravel() / 255, np.minimum(busy.ravel() / 64, 1)])


def farthest_points(features: np.ndarray, count: int) -> list[int]:
    """Greedy k-centre: begin at the row nearest the mean, then always add the row farthest from all chosen.

    >>> farthest_points(np.array([[0.0], [1.0], [10.0], [9.0]]), 3)
    [1, 2, 0]
    """
    centre = features.mean(axis=0)
    chosen = [int(np.square(features - centre).sum(axis=1).argmin())]
    distance = np.full(len(features), np.inf)
    while len(chosen) < min(count, len(features)):
        distance = np.minimum(distance, np.square(features - features[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return chosen


def read_list(path: Path, root: Path) -> list[Image]:
    """The images a list names, each checked against its hash.

    Raises:
        DataError: the list is unreadable, or an image is missing or not the one that was chosen.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as a calibration list: {error!r}") from error
    images = []
    for entry in entries:
        file = root / entry["file"]
        image = read_image(file)
        if sha256_file(file) != entry["sha256"]:
            raise DataError(f"{file}: is not the image that {path} names: its SHA-256 differs")
        images.append(image)
    return images


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools calibration", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="unpacked DeepPCB folder, holds trainval.txt")
    p.add_argument("--validation-groups", nargs="+", default=list(VALIDATION_GROUPS), metavar="GROUP")
    p.add_argument("--count", type=int, default=64, help="images chosen (%(default)s)")
    p.add_argument("--out", type=Path, required=True, help="the list, e.g. calibration_data/pcb/images.json")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    train, _ = split(read_index(args.data), args.validation_groups)
    features = np.stack([describe(read_image(sample.test)) for sample in train])
    chosen = sorted(train[i].test for i in farthest_points(features, args.count))
    images = [{"file": str(path.relative_to(args.data)), "sha256": sha256_file(path)} for path in chosen]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    provenance = f"DeepPCB trainval, inspected images, without {', '.join(args.validation_groups)}"
    text = json.dumps({"provenance": provenance, "method": "farthest points", "images": images}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")
    print(f"{args.out}: {len(images)} images")
