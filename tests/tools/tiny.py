"""Tiny dataset folders drawn on the spot: what every test of the toolchain reads instead of real data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np


def tiny_dataset(
    root: Path,
    *,
    size: tuple[int, int] = (96, 96),
    channels: int = 1,
    classes: Sequence[str] = ("hole", "bar"),
    groups: Sequence[str] = ("A", "B"),
    images: int = 4,
    templates: bool = False,
    validation: Sequence[str] = ("B",),
    negatives: int = 0,
    known: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Path:
    """Write a dataset folder (see `tools/dataset.py`) and return it; the same arguments give the same bytes.

    Each group has `images` images with one or two defects, image k one of class k, and `negatives` images without any.

    Args:
        size: (width, height) of the images, and of the input in `info`.
        channels: 1 for grey images, 3 for BGR.
        validation: the groups of the validation split.
        templates: also write the same picture without its defects.
        known: group -> names of the classes that were looked for in it; only these are drawn there.
    """
    root.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for g, group in enumerate(groups):
        looked_for = [classes.index(name) for name in (known or {}).get(group, classes)]
        for k in range(images + negatives):
            rng = np.random.default_rng([seed, g, k])
            kinds = [looked_for[(k + extra) % len(looked_for)] for extra in range(1 + k % 2)] if k < images else []
            template = _background(rng, size, channels)
            picture, boxes = _defects(rng, template, kinds)
            record = _record(root, f"images/{group}/{k}.png", picture, len(records) + 1)
            record |= {"group": group, "split": "validation" if group in validation else "train"}
            if templates:
                record["template"] = f"images/{group}/{k}_template.png"
                cv2.imwrite(str(root / record["template"]), template)
            if known is not None:
                record["known"] = [kind + 1 for kind in looked_for]
            records.append(record)
            for kind, (x, y, width, height) in zip(kinds, boxes, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record["id"],
                        "category_id": kind + 1,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
    data = {
        "info": {
            "product": "tiny",
            "input": {"width": size[0], "height": size[1], "channels": channels},
            "licence": "CC0-1.0",
            "source": "drawn by the tests",
        },
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(classes)],
        "images": records,
        "annotations": annotations,
    }
    (root / "dataset.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return root


def _record(root: Path, name: str, picture: np.ndarray, number: int) -> dict[str, Any]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)
    height, width = picture.shape[:2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"id": number, "file_name": name, "width": width, "height": height, "sha256": digest}


def _background(rng: np.random.Generator, size: tuple[int, int], channels: int) -> np.ndarray:
    """A bright surface with noise and one broad dark stripe: (H, W) or (H, W, 3) uint8."""
    width, height = size
    picture = rng.normal(190, 4, (height, width)).clip(0, 255)
    left = int(rng.integers(0, width // 2))
    picture[:, left : left + width // 3] -= 40
    grey = picture.clip(0, 255).astype(np.uint8)
    return grey if channels == 1 else np.stack([grey, grey, np.minimum(grey, 200)], axis=2)


def _defects(
    rng: np.random.Generator, template: np.ndarray, kinds: Sequence[int]
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """The picture with dark marks side by side, and their boxes (x, y, width, height); each class has its shape."""
    picture = template.copy()
    height, width = picture.shape[:2]
    cell = width // max(len(kinds), 1)
    boxes = []
    for place, kind in enumerate(kinds):
        long = int(rng.integers(14, 22))
        # Round, lying, standing, and so on: the aspect tells the first classes apart, the shade the others.
        w, h = [(long, long), (long, long // 2), (long // 2, long)][kind % 3]
        x = place * cell + int(rng.integers(1, max(cell - w - 1, 2)))
        y = int(rng.integers(1, height - h - 1))
        shade = 20 + 25 * (kind // 3 % 4)
        colour = (shade,) * 3 if picture.ndim == 3 else (shade,)
        if kind % 3 == 0:
            axes = ((w - 1) // 2, (h - 1) // 2)
            cv2.ellipse(picture, (x + w // 2, y + h // 2), axes, 0, 0, 360, colour, cv2.FILLED)
        else:
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), colour, cv2.FILLED)
        boxes.append((x, y, w, h))
    return picture, boxes
