"""Write boxes of a model as labels that an annotator corrects: COCO, labelme and YOLO.

Each format is a folder of its own with copies of the images, laid out as its tools expect and as `python -m tools
import` reads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.records import Detections


@dataclass(frozen=True)
class Prelabelled:
    """One image and what a model found on it.

    Attributes:
        file: the image. name: what it is to be called, unique, without a folder. width, height: pixels.
    """

    file: Path
    name: str
    width: int
    height: int
    found: Detections


def unique_names(files: Sequence[Path], root: Path) -> list[str]:
    """A name without folders for each file; names differ also without their suffix, since labels are called by it.

    >>> unique_names([Path("r/a/1.png"), Path("r/b/1.png"), Path("r/b/1.jpg")], Path("r"))
    ['a_1.png', 'b_1.png', 'b_1_2.jpg']
    """
    taken: set[str] = set()
    names = []
    for file in files:
        flat = "_".join(file.relative_to(root).with_suffix("").parts)
        stem, number = flat, 1
        while stem.lower() in taken:
            number += 1
            stem = f"{flat}_{number}"
        taken.add(stem.lower())
        names.append(stem + file.suffix)
    return names


def write_coco(images: Sequence[Prelabelled], classes: Sequence[str], folder: Path) -> None:
    """`annotations.json` with a `score` for each box, and `images/`."""
    records, annotations = [], []
    for number, image in enumerate(images, 1):
        _place(image, folder / "images")
        size = {"width": image.width, "height": image.height}
        records.append({"id": number, "file_name": f"images/{image.name}", **size})
        for (x1, y1, x2, y2), confidence, kind in _rows(image.found):
            box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "bbox": box}
            annotations.append({**entry, "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": confidence})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    data = {"images": records, "annotations": annotations, "categories": categories}
    _write_json(folder / "annotations.json", data)


def write_labelme(images: Sequence[Prelabelled], classes: Sequence[str], folder: Path) -> None:
    """A JSON beside each image; the confidence stands in the shape's description."""
    for image in images:
        _place(image, folder)
        shapes = [
            {
                "label": classes[kind],
                "points": [[x1, y1], [x2, y2]],
                "group_id": None,
                "description": f"confidence {confidence}",
                "shape_type": "rectangle",
                "flags": {},
            }
            for (x1, y1, x2, y2), confidence, kind in _rows(image.found)
        ]
        record: dict[str, Any] = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image.name}
        record |= {"imageData": None, "imageHeight": image.height, "imageWidth": image.width}
        _write_json((folder / image.name).with_suffix(".json"), record)


def write_yolo(images: Sequence[Prelabelled], classes: Sequence[str], folder: Path) -> None:
    """`images/`, `labels/` and `data.yaml`; the format has no place for a confidence."""
    labels = folder / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    for image in images:
        _place(image, folder / "images")
        lines = []
        for (x1, y1, x2, y2), _, kind in _rows(image.found):
            across = ((x1 + x2) / 2 / image.width, (y1 + y2) / 2 / image.height)
            size = ((x2 - x1) / image.width, (y2 - y1) / image.height)
            lines.append(" ".join([str(kind), *(f"{v:.6f}" for v in (*across, *size))]) + "\n")
        (labels / image.name).with_suffix(".txt").write_text("".join(lines), encoding="utf-8")
    names = "".join(f"  {k}: {json.dumps(name)}\n" for k, name in enumerate(classes))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{names}", encoding="utf-8")


Writer = Callable[[Sequence[Prelabelled], Sequence[str], Path], None]
WRITERS: Mapping[str, Writer] = {"coco": write_coco, "labelme": write_labelme, "yolo": write_yolo}


def _rows(found: Detections) -> list[tuple[tuple[float, float, float, float], float, int]]:
    """Boxes to a hundredth of a pixel, confidence to four digits, class id."""
    return [
        (tuple(round(v, 2) for v in box), round(confidence, 4), int(kind))
        for box, confidence, kind in zip(
            found.xyxy.tolist(), found.confidence.tolist(), found.class_id.tolist(), strict=True
        )
    ]


def _place(image: Prelabelled, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.file, folder / image.name)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
