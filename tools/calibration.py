"""Choose the images that calibrate INT8: few, from the training split, as unlike each other as possible.

An image is described by edge density and brightness on a coarse grid, a colour image by the brightness of each
channel. The first is the one nearest the mean of all; then comes, again and again, the one farthest from all chosen so
far (greedy k-centre, Gonzalez 1985), so that any beginning of the list is a good shorter list. No label is looked at,
and no validation image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from edge.preprocess import Image, InputSpec, letterbox, to_channels
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, sha256_file
from tools.errors import DataError
from tools.journal import Journal
from tools.plots import figure
from tools.run_record import write_record

GRID = 8
LISTS = Path("calibration_data")
THUMBNAIL = 160  # side in pixels on the contact sheet
COLUMNS = 8


def describe(image: Image) -> np.ndarray:
    """What an image looks like, coarsely: (2 * 64,) for a grey one, (4 * 64,) for a colour one, all in [0, 1].

    Brightness of each channel on a grid, then edge density on the same grid; the image's size does not matter.
    """
    edges = cv2.Laplacian(to_channels(image, 1), cv2.CV_32F)
    busy = cv2.resize(np.minimum(np.abs(edges), 255), (GRID, GRID), interpolation=cv2.INTER_AREA)
    bright = cv2.resize(image.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
    return np.concatenate([bright.ravel() / 255, np.minimum(busy.ravel() / 64, 1)])


def farthest(features: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Greedy k-centre: the row nearest the mean, then always the row farthest from all chosen.

    Returns:
        Rows in the order they were chosen, each with its distance from the nearest row chosen before it; 0 the first.

    >>> farthest(np.array([[0.0], [1.0], [10.0], [9.0]]), 3)
    [(1, 0.0), (2, 9.0), (0, 1.0)]
    """
    centre = features.mean(axis=0)
    chosen = [(int(np.square(features - centre).sum(axis=1).argmin()), 0.0)]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < min(count, len(features)):
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1][0]]).sum(axis=1))
        nearest[chosen[-1][0]] = -1.0  # the same picture twice is still chosen once each
        row = int(nearest.argmax())
        chosen.append((row, float(np.sqrt(nearest[row]))))
    return chosen


def farthest_points(features: np.ndarray, count: int) -> list[int]:
    """The rows that `farthest` chooses.

    >>> farthest_points(np.array([[0.0], [1.0], [10.0], [9.0]]), 3)
    [1, 2, 0]
    """
    return [row for row, _ in farthest(features, count)]


def list_for(data: Dataset, given: Path | None) -> Path:
    """The list to use: the one that is given, else the product's own.

    Raises:
        DataError: there is none.
    """
    path = given or LISTS / data.product / "images.json"
    if not path.is_file():
        raise DataError(f"{path}: missing; choose images with `python -m tools calibration --data {data.root}`")
    return path


def read_list(path: Path, data: Dataset) -> list[Sample]:
    """The samples a list names, in its order, each checked against its hash.

    Raises:
        DataError: the list is unreadable or empty, or an image is not in the training split, or not the one chosen.
    """
    try:
        entries = [(str(e["file"]), str(e["sha256"])) for e in json.loads(path.read_text(encoding="utf-8"))["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a calibration list: {error!r}") from error
    if not entries:
        raise DataError(f"{path}: names no image; choose some with `python -m tools calibration`")
    by_name = {sample.name: sample for sample in data.samples}
    for name, digest in entries:
        if name not in by_name:
            raise DataError(f"{path}: {name} is not an image of {data.root}; make the list for this dataset")
        if by_name[name].split != "train":
            raise DataError(f"{path}: {name} is in the split {by_name[name].split}; only training images may calibrate")
        if sha256_file(by_name[name].image) != digest:
            raise DataError(f"{by_name[name].image}: is not the image that {path} names: its SHA-256 differs")
    return [by_name[name] for name, _ in entries]


def describe_all(data: Dataset, samples: Sequence[Sample], journal: Journal) -> np.ndarray:
    """Descriptions (N, F) of the samples; each is kept as soon as it is made."""

    def one(sample: Sample) -> list[float]:
        described = describe(read_image(sample.image, data.spec.channels))
        return [round(float(value), 4) for value in described]

    bar = tqdm(samples, "calibration", mininterval=5)
    return np.array([journal.once(sample.name, lambda sample=sample: one(sample)) for sample in bar])


def write_list(path: Path, data: Dataset, chosen: Sequence[tuple[Sample, float]]) -> None:
    """Write the list: provenance, method, and each image with its hash, group and distance."""
    groups = sorted({sample.group for sample in data.samples if sample.split == "train"})
    content = {
        "product": data.product,
        "provenance": f"{data.source or data.product}; training split, groups {', '.join(groups)}",
        "method": "farthest points; `distance` is how far an image is from the nearest above it",
        "images": [
            {
                "file": sample.name,
                "sha256": sha256_file(sample.image),
                "group": sample.group,
                "distance": round(distance, 4),
            }
            for sample, distance in chosen
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def principal(features: np.ndarray) -> np.ndarray:
    """The features' first two principal components, (N, 2).

    >>> principal(np.array([[0.0, 0, 0], [4, 0, 0], [2, 1, 0], [2, -1, 0]])).round(6).tolist()[1][1]
    0.0
    """
    centred = features - features.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))


def draw(path: Path, features: np.ndarray, chosen: Sequence[tuple[int, float]]) -> None:
    """All images in two dimensions with the chosen ones marked, and the distances in order of choice, as PNG."""
    flat, rows = principal(features), [row for row, _ in chosen]
    with figure(path, f"{len(rows)} of {len(features)} training images", ncols=2, figsize=(10, 4.2)) as (left, right):
        left.scatter(*flat.T, s=8, color="lightgrey", label="training images")
        left.scatter(*flat[rows].T, s=14, color="tab:orange", label="chosen")
        left.set_xlabel("first principal component"), left.set_ylabel("second"), left.legend()
        right.plot(range(2, len(rows) + 1), [distance for _, distance in chosen][1:], ".-")
        right.set_xlabel("images chosen"), right.set_ylabel("distance of the last from all before")
        right.set_ylim(bottom=0)


def contact_sheet(path: Path, data: Dataset, chosen: Sequence[tuple[Sample, float]]) -> None:
    """The chosen images side by side in the order of choice, as JPEG."""
    cell = InputSpec(THUMBNAIL, THUMBNAIL, data.spec.channels)
    shape = (THUMBNAIL, THUMBNAIL) if data.spec.channels == 1 else (THUMBNAIL, THUMBNAIL, 3)
    cells = [letterbox(read_image(sample.image, data.spec.channels), cell)[0].copy() for sample, _ in chosen]
    for number, thumbnail in enumerate(cells, 1):
        for colour, thickness in ((0, 3), (255, 1)):
            cv2.putText(thumbnail, str(number), (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (colour,) * 3, thickness)
    cells += [np.full(shape, 255, np.uint8)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(rows))


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools calibration", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder")
    p.add_argument("--count", type=int, default=64, help="images chosen (%(default)s)")
    p.add_argument("--list", type=Path, help="the list (default: calibration_data/PRODUCT/images.json)")
    p.add_argument("--out", type=Path, required=True, help="folder of record, plot, contact sheet and journal")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    if args.count < 1:
        raise DataError(f"--count {args.count}: at least one image has to calibrate")
    data = read_dataset(args.data)
    train = data.part("train")
    digest = data_hash(train)
    journal = Journal(args.out / "calibration.journal", {"data": digest, "grid": GRID})
    features = describe_all(data, train, journal)
    found = farthest(features, args.count)
    chosen = [(train[row], distance) for row, distance in found]
    path = args.list or LISTS / data.product / "images.json"
    write_list(path, data, chosen)
    draw(args.out / "calibration.png", features, found)
    contact_sheet(args.out / "calibration.jpg", data, chosen)
    results = {"list": path, "list_sha256": sha256_file(path), "images": len(chosen), "of": len(train)}
    write_record(args.out / "calibration.json", "calibration", {**vars(args), "data_sha256": digest}, results)
    print(f"{path}: {len(chosen)} of {len(train)} training images; look at them in {args.out / 'calibration.jpg'}")
