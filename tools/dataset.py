"""The dataset folder that every step reads: `dataset.json` (COCO, with a few keys more) beside the images it names.

    dataset.json
        info         {product, input: {width, height, channels}, licence, source}
        categories   [{id, name}]              class id of the detector = place in this list
        images       [{id, file_name, width, height, group, split, sha256, template?, known?}]
        annotations  [{id, image_id, category_id, bbox: [x, y, width, height], area, iscrowd}]
    images/...

`group` is what a line would keep apart (lot, board, camera position); no group is in two splits. `template` names the
defect-free picture of the same place, where there is one. `known` lists the category ids that were looked for on the
image; without it, all were. Any COCO reader can use the folder. `python -m tools import` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image, InputSpec
from tools.errors import DataError

INDEX = "dataset.json"
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Sample:
    """One labelled image: where it is and what is wrong on it."""

    name: str  # file name below the dataset folder, names the image in every message
    group: str
    split: str  # one of SPLITS
    image: Path
    template: Path | None
    xyxy: Float  # (N, 4) pixels of the image
    class_id: np.ndarray  # (N,) int64
    known: np.ndarray  # (classes,) bool: a class that is False may be on the image without a label


@dataclass(frozen=True)
class Dataset:
    """A dataset folder in memory, without its pixels."""

    root: Path
    product: str
    classes: tuple[str, ...]
    spec: InputSpec  # the input of the detector that is to be made
    licence: str
    source: str
    samples: tuple[Sample, ...]

    def part(self, split: str) -> list[Sample]:
        """The samples of a split.

        Raises:
            DataError: it has none.
        """
        found = [sample for sample in self.samples if sample.split == split]
        if not found:
            raise DataError(
                f"{self.root / INDEX}: no image is in the split {split!r}; import again with --validation "
                "naming the groups to keep apart"
            )
        return found


def read_dataset(root: Path) -> Dataset:
    """Read and check a dataset folder; pixels are read later.

    Raises:
        DataError: not a dataset folder, or a record that cannot be used: a missing image, a box outside its image, an
            unknown class, a group in two splits. The message names file and record.
    """
    index = root / INDEX
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
        info, categories = data["info"], data["categories"]
        classes = tuple(str(category["name"]) for category in categories)
        size = info["input"]
        spec = InputSpec(int(size["width"]), int(size["height"]), int(size["channels"]))
        by_image = _boxes_by_image(data["annotations"], [c["id"] for c in categories], index)
        samples = tuple(_sample(root, index, record, by_image, categories) for record in data["images"])
    except FileNotFoundError as error:
        raise DataError(f"{index}: missing; make the folder with `python -m tools import`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: cannot be read as a dataset: {type(error).__name__}: {error}") from error
    strange = sorted(by_image.keys() - {record["id"] for record in data["images"]})
    if strange:
        raise DataError(f"{index}: annotations name the image id {strange[0]}, which is not in `images`")
    if not samples or not classes:
        raise DataError(f"{index}: lists no {'image' if classes else 'category'}")
    refuse_leak(samples, str(index))
    _refuse_same_bytes(data["images"], index)
    text = {key: str(info.get(key, "")) for key in ("product", "licence", "source")}
    return Dataset(root, text["product"], classes, spec, text["licence"], text["source"], samples)


def refuse_leak(samples: Sequence[Sample], origin: str) -> None:
    """Check that no group is in two splits.

    Raises:
        DataError: one is.
    """
    split_of: dict[str, str] = {}
    for sample in samples:
        before = split_of.setdefault(sample.group, sample.split)
        if before != sample.split:
            raise DataError(
                f"{origin}: the group {sample.group!r} is in {before} and in {sample.split} ({sample.name}); "
                "neighbours on both sides make figures look better than they are: keep a group on one side"
            )


def _refuse_same_bytes(records: Sequence[Mapping[str, Any]], index: Path) -> None:
    """Check that no image file is in two splits under two names."""
    first: dict[str, Mapping[str, Any]] = {}
    for record in records:
        before = first.setdefault(str(record.get("sha256") or record["file_name"]), record)
        if before["split"] != record["split"]:
            raise DataError(
                f"{index}: {before['file_name']} ({before['split']}) and {record['file_name']} ({record['split']}) are "
                "the same image; keep it on one side"
            )


def _boxes_by_image(
    annotations: Sequence[Mapping[str, Any]], ids: Sequence[int], index: Path
) -> dict[int, list[tuple[list[float], int, str]]]:
    place = {category: k for k, category in enumerate(ids)}
    found: dict[int, list[tuple[list[float], int, str]]] = {}
    for record in annotations:
        origin = f"{index}: annotation {record['id']}"
        if record["category_id"] not in place:
            raise DataError(f"{origin}: category {record['category_id']} is unknown, expected one of {list(place)}")
        x, y, width, height = (float(v) for v in record["bbox"])
        if not (width > 0 and height > 0):
            raise DataError(f"{origin}: the box {record['bbox']} has no area")
        entry = ([x, y, x + width, y + height], place[record["category_id"]], origin)
        found.setdefault(record["image_id"], []).append(entry)
    return found


def _sample(
    root: Path,
    index: Path,
    record: Mapping[str, Any],
    by_image: Mapping[int, list[tuple[list[float], int, str]]],
    categories: Sequence[Mapping[str, Any]],
) -> Sample:
    name = str(record["file_name"])
    image = root / name
    template = root / record["template"] if record.get("template") else None
    for path in (image, template):
        if path is not None and not path.is_file():
            raise DataError(f"{index}: image {record['id']}: {path} is missing")
    if record["split"] not in SPLITS:
        raise DataError(f"{index}: image {name}: split {record['split']!r} is unknown, expected {' or '.join(SPLITS)}")
    entries = by_image.get(record["id"], [])
    limit = np.array([record["width"], record["height"]] * 2, np.float32)
    for box, _, origin in entries:
        if min(box) < 0 or np.any(np.array(box) > limit + 1e-3):
            raise DataError(f"{origin}: the box {box} reaches out of {name}, {limit[0]:g}x{limit[1]:g}")
    xyxy = np.array([box for box, _, _ in entries], np.float32).reshape(-1, 4)
    class_id = np.array([kind for _, kind, _ in entries], np.int64)
    looked_for = record.get("known")
    known = np.array([looked_for is None or c["id"] in looked_for for c in categories])
    return Sample(name, str(record["group"]), str(record["split"]), image, template, xyxy, class_id, known)


def read_image(path: Path, channels: int = 1) -> Image:
    """One image: (H, W) uint8 grey, or with `channels=3` (H, W, 3) BGR.

    Raises:
        DataError: missing, or not an image.
    """
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    image = cv2.imdecode(data, flag) if data.size else None
    if image is None:
        raise DataError(f"{path}: {'is not a readable image' if data.size else 'missing or empty'}")
    return np.asarray(image, np.uint8)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_hash(samples: Sequence[Sample]) -> str:
    """One SHA-256 over names, labels and the bytes of all images: changes when the data does."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda item: item.name):
        digest.update(sample.name.encode())
        digest.update(sample.xyxy.tobytes() + sample.class_id.tobytes() + sample.known.tobytes())
        for path in (sample.image, sample.template):
            digest.update(path.read_bytes() if path else b"")
    return digest.hexdigest()


def truth_of(samples: Sequence[Sample]) -> list[tuple[Float, np.ndarray]]:
    """Boxes and class ids of each sample, as the metrics take them."""
    return [(sample.xyxy, sample.class_id) for sample in samples]
