"""Datasets that each label some of the classes, as one dataset that knows what was looked for on each image."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tools.dataset import INDEX, Dataset, Sample, read_image, refuse_leak, sha256_file
from tools.errors import DataError


def merge_datasets(parts: Sequence[Dataset]) -> Dataset:
    """One dataset of several: classes joined by name, each image with the classes that were looked for on it.

    Raises:
        DataError: other inputs, class names that differ only in how they are written, a group or an image in two
            splits.
    """
    classes = joined_classes(parts)
    first = parts[0]
    for part in parts[1:]:
        if part.spec != first.spec:
            a, b = first.spec, part.spec
            raise DataError(
                f"{part.root}: made for an input of {b.width}x{b.height}x{b.channels}, and {first.root} for "
                f"{a.width}x{a.height}x{a.channels}: import both for the same input"
            )
    samples: dict[str, Sample] = {}
    for k, part in enumerate(parts):
        for sample in tqdm(part.samples, f"read {part.root.name}", mininterval=5):
            renamed = _with_classes(sample, part.classes, classes, f"{k}/{sample.name}")
            key = sha256_file(sample.image)
            samples[key] = _joined(samples[key], renamed) if key in samples else renamed
    merged = tuple(samples.values())
    refuse_leak(merged, " and ".join(str(part.root / INDEX) for part in parts))
    text = {key: " + ".join(dict.fromkeys(getattr(p, key) for p in parts)) for key in ("product", "licence", "source")}
    return Dataset(first.root, text["product"], classes, first.spec, text["licence"], text["source"], merged)


def joined_classes(parts: Sequence[Dataset]) -> tuple[str, ...]:
    """The classes of all datasets, each name once, in the order of appearance.

    Raises:
        DataError: two names differ only in case, space or punctuation.
    """
    names: dict[str, tuple[str, Path]] = {}
    for part in parts:
        for name in part.classes:
            plain = "".join(letter for letter in name.casefold() if letter.isalnum()) or name
            before, where = names.setdefault(plain, (name, part.root))
            if before != name:
                raise DataError(
                    f"{where / INDEX} has the class {before!r} and {part.root / INDEX} {name!r}: classes are joined "
                    "by name, so write them alike if they are the same, and otherwise less alike"
                )
    return tuple(name for name, _ in names.values())


def _with_classes(sample: Sample, old: Sequence[str], new: Sequence[str], name: str) -> Sample:
    place = np.array([new.index(label) for label in old])
    known = np.zeros(len(new), bool)
    known[place[sample.known]] = True
    return replace(sample, name=name, class_id=place[sample.class_id].astype(np.int64), known=known)


def _joined(a: Sample, b: Sample) -> Sample:
    """One image with the labels of both; what both looked for is taken from the first."""
    if a.split != b.split:
        raise DataError(
            f"{a.image} ({a.split}) and {b.image} ({b.split}) are the same image: figures would look better than they "
            "are; import again with the image on one side"
        )
    more = ~a.known[b.class_id]
    xyxy, class_id = np.concatenate([a.xyxy, b.xyxy[more]]), np.concatenate([a.class_id, b.class_id[more]])
    return replace(a, xyxy=xyxy, class_id=class_id, known=a.known | b.known, template=a.template or b.template)


def known_sets(samples: Sequence[Sample]) -> list[tuple[bool, ...]]:
    """The different sets of classes that were looked for, each once, in the order of appearance."""
    return list(dict.fromkeys(tuple(sample.known.tolist()) for sample in samples))


def restricted(data: Dataset, known: Sequence[bool]) -> Dataset:
    """A dataset of these classes alone, with the images on which all of them were looked for."""
    chosen = np.flatnonzero(known)
    place = np.full(len(data.classes), -1)
    place[chosen] = np.arange(len(chosen))
    samples = []
    for sample in data.samples:
        if sample.known[chosen].all():
            mine = place[sample.class_id] >= 0
            labels = {"xyxy": sample.xyxy[mine], "class_id": place[sample.class_id[mine]].astype(np.int64)}
            samples.append(replace(sample, known=np.ones(len(chosen), bool), **labels))
    return replace(data, classes=tuple(data.classes[k] for k in chosen), samples=tuple(samples))


def write_folder(data: Dataset, root: Path) -> None:
    """Write a dataset as a folder of its own; images are linked where the file system can, else copied."""
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(tqdm(data.samples, f"write {root.name}", mininterval=5), 1):
        height, width = read_image(sample.image).shape[:2]
        record = {"id": number, "file_name": sample.name, "width": width, "height": height, "group": sample.group}
        record |= {"split": sample.split, "sha256": sha256_file(sample.image)}
        record["known"] = [k + 1 for k in np.flatnonzero(sample.known).tolist()]
        _bring(sample.image, root / sample.name)
        if sample.template:
            record["template"] = f"{sample.name}.template{sample.template.suffix}"
            _bring(sample.template, root / record["template"])
        records.append(record)
        for (x1, y1, x2, y2), kind in zip(sample.xyxy.tolist(), sample.class_id.tolist(), strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "bbox": box}
            annotations.append(entry | {"area": box[2] * box[3], "iscrowd": 0})
    spec = data.spec
    info = {"product": data.product, "licence": data.licence, "source": data.source}
    info["input"] = {"width": spec.width, "height": spec.height, "channels": spec.channels}
    categories = [{"id": k, "name": name} for k, name in enumerate(data.classes, 1)]
    index = {"info": info, "categories": categories, "images": records, "annotations": annotations}
    partial_index = root / f"{INDEX}.partial"
    partial_index.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    partial_index.replace(root / INDEX)


def _bring(path: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.unlink(missing_ok=True)
    try:
        os.link(path, goal)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, goal)
