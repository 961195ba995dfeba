"""labelme (github.com/wkentaro/labelme): a JSON an image, beside it or in a folder of its own; shapes become boxes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import DataError
from tools.formats.raw import Problems, RawBox, RawData, RawImage, Skip, bounds, pair, read_text, take_all


def read(source: Path, problems: Problems, skip: Skip = take_all) -> RawData:
    """Every image below `source`, with its JSON where there is one.

    Raises:
        DataError: no image at all.
    """
    images = []
    for image, label in pair(source, ".json", problems, skip, _is_label):
        name = image.relative_to(source).as_posix()
        if label is None:
            images.append(RawImage(name, image, None, str(image)))
            continue
        with problems.collect():
            record = _load(label)
            boxes = _boxes(record, label, problems)
            images.append(RawImage(name, image, boxes, str(label), size=_size(record, label)))
    return RawData(images)


def _is_label(path: Path) -> bool:
    try:
        return "shapes" in _load(path)
    except DataError:
        return False


def _load(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(read_text(path))
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("shapes"), list):
        raise DataError(f"{path}: is not a labelme file: it has no list `shapes`")
    return record


def _size(record: Mapping[str, Any], path: Path) -> tuple[int, int] | None:
    width, height = record.get("imageWidth"), record.get("imageHeight")
    try:
        return (int(width), int(height)) if width and height else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: imageWidth {width!r} and imageHeight {height!r} are not numbers") from error


def _boxes(record: Mapping[str, Any], path: Path, problems: Problems) -> tuple[RawBox, ...]:
    boxes = []
    for number, shape in enumerate(record["shapes"]):
        origin = f"{path}: shape {number}"
        with problems.collect():
            try:
                label, points, kind = str(shape["label"]), shape["points"], shape.get("shape_type", "polygon")
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{origin}: lacks `label` or `points`") from error
            boxes.append(RawBox(_around(kind, points, origin), label, origin))
    return tuple(boxes)


def _around(kind: str, points: Any, origin: str) -> tuple[float, float, float, float]:
    """The box around a shape; a circle is given by its centre and a point on it."""
    if kind == "point":
        raise DataError(f"{origin}: is a point, which has no size; draw a rectangle or a polygon")
    x1, y1, x2, y2 = bounds(points, origin)
    if kind == "circle":
        (cx, cy), (px, py) = points[0][:2], points[1][:2]
        radius = math.hypot(px - cx, py - cy)
        return cx - radius, cy - radius, cx + radius, cy + radius
    return x1, y1, x2, y2
