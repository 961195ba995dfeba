"""COCO (cocodataset.org/#format-data): JSON files with images, annotations and categories; segmentations become boxes.

A dataset folder of this project is COCO too: its groups are kept. An image that the JSON lists without annotations
was looked at and shows nothing; an image file that no JSON lists is not labelled.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.errors import DataError
from tools.formats.raw import (
    IMAGE_SUFFIXES,
    Problems,
    RawBox,
    RawData,
    RawImage,
    Skip,
    bounds,
    find_files,
    read_text,
    take_all,
)


def read(source: Path, problems: Problems, skip: Skip = take_all) -> RawData:
    """Every image of every COCO file below `source`, or of the one file that `source` names.

    Raises:
        DataError: no COCO file.
    """
    indices = [source] if source.is_file() else find_files(source, frozenset({".json"}))
    root = source.parent if source.is_file() else source
    files: dict[str, list[Path]] = defaultdict(list)
    for path in find_files(root, IMAGE_SUFFIXES):
        files[path.name].append(path)
    images: list[RawImage] = []
    classes: dict[str, None] = {}
    for index in indices:
        with problems.collect():
            record = _load(index, must=source.is_file())
            if record is not None:
                classes |= dict.fromkeys(_names(record, index).values())
                images += _images(record, index, root, files, problems, skip)
    if not images and not problems.found:
        raise DataError(f"{source}: holds no COCO file, a JSON with `images`, `annotations` and `categories`")
    listed = {image.path for image in images} | {image.template for image in images}
    rest = sorted(path for paths in files.values() for path in paths if path not in listed)
    images += [RawImage(path.relative_to(root).as_posix(), path, None, str(path)) for path in rest]
    return RawData([image for image in images if not skip(image.name)], tuple(classes))


def _load(path: Path, must: bool) -> Mapping[str, Any] | None:
    """The file's content; None if it is JSON of another kind and need not be COCO."""
    try:
        record = json.loads(read_text(path))
    except ValueError as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: is not JSON: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if not _is_list_of_objects(record, key)]
    if not missing:
        return record  # type: ignore[no-any-return]
    if must or len(missing) < 3:
        raise DataError(f"{path}: has no list {' and no list '.join(f'`{key}`' for key in missing)}")
    return None


def _is_list_of_objects(record: Any, key: str) -> bool:
    value = record.get(key) if isinstance(record, dict) else None
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _names(record: Mapping[str, Any], index: Path) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for place, category in enumerate(record["categories"]):
        origin = f"{index}: categories[{place}]"
        identifier, name = (_identifier(category, key, origin) for key in ("id", "name"))
        if identifier in names:
            raise DataError(f"{origin}: has the id {identifier!r} of {names[identifier]!r}")
        names[identifier] = str(name)
    return names


def _identifier(entry: Mapping[str, Any], key: str, origin: str) -> int | str:
    """A number or a name that the record must have."""
    value = entry.get(key)
    if not isinstance(value, int | str):
        raise DataError(f"{origin}: {f'`{key}` is {value!r:.80}, not a number' if key in entry else f'lacks `{key}`'}")
    return value


def _images(
    record: Mapping[str, Any],
    index: Path,
    root: Path,
    files: Mapping[str, Sequence[Path]],
    problems: Problems,
    skip: Skip,
) -> list[RawImage]:
    skipped = {str(entry.get("id")) for entry in record["images"] if skip(str(entry.get("file_name")))}
    boxes = _boxes_by_image(record, index, problems, skipped)
    images, seen = [], set()
    for place, entry in enumerate(record["images"]):
        origin = f"{index}: images[{place}]"
        if str(entry.get("id")) in skipped:
            continue
        with problems.collect():
            identifier, name = _identifier(entry, "id", origin), str(_identifier(entry, "file_name", origin))
            if identifier in seen:
                raise DataError(f"{origin}: has the id {identifier!r} of an image before it")
            seen.add(identifier)
            path = _find(name, index, root, files, f"{origin}: the image")
            template = entry.get("template")
            images.append(
                RawImage(
                    path.relative_to(root).as_posix(),
                    path,
                    tuple(boxes.get(identifier, ())),
                    origin,
                    _size(entry, origin),
                    _find(str(template), index, root, files, f"{origin}: the template") if template else None,
                    entry.get("group"),
                )
            )
    for image_id in boxes.keys() - seen:
        problems.add(f"{boxes[image_id][0].origin}: names the image id {image_id!r}, which `images` does not have")
    return images


def _find(name: str, index: Path, root: Path, files: Mapping[str, Sequence[Path]], what: str) -> Path:
    """The image file: from the JSON's folder, from the source folder, from `images`, or the only one of that name."""
    name = name.replace("\\", "/")
    for folder in (index.parent, root, index.parent / "images", root / "images"):
        path = Path(os.path.normpath(folder / name))
        if path.is_file() and root in path.parents:
            return path
    same = files.get(Path(name).name, [])
    if len(same) != 1:
        why = f"{len(same)} files below {root} have its name" if same else f"it is nowhere below {root}"
        raise DataError(f"{what} {name} is missing: {why}")
    return same[0]


def _size(entry: Mapping[str, Any], origin: str) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    try:
        return (int(width), int(height)) if width and height else None
    except (TypeError, ValueError) as error:
        raise DataError(f"{origin}: width {width!r} and height {height!r} are not numbers") from error


def _boxes_by_image(
    record: Mapping[str, Any], index: Path, problems: Problems, skipped: Collection[str]
) -> dict[Any, list[RawBox]]:
    names = _names(record, index)
    found: dict[Any, list[RawBox]] = defaultdict(list)
    for place, entry in enumerate(record["annotations"]):
        origin = f"{index}: annotations[{place}]"
        if str(entry.get("image_id")) in skipped:
            continue
        with problems.collect():
            image, kind = (_identifier(entry, key, origin) for key in ("image_id", "category_id"))
            if kind not in names:
                raise DataError(f"{origin}: category {kind!r} is unknown, `categories` has {list(names)}")
            if entry.get("iscrowd"):
                raise DataError(f"{origin}: is a crowd region; box its defects one by one, or remove it")
            found[image].append(RawBox(_around(entry, origin), names[kind], origin))
    return found


def _around(entry: Mapping[str, Any], origin: str) -> tuple[float, float, float, float]:
    """The annotation's box, or the box around its polygons."""
    box = entry.get("bbox")
    if box:
        try:
            x, y, width, height = (float(v) for v in box)
        except (TypeError, ValueError) as error:
            raise DataError(f"{origin}: bbox is {box!r:.80}, expected [x, y, width, height]") from error
        return x, y, x + width, y + height
    polygons = entry.get("segmentation")
    if not isinstance(polygons, list) or not polygons or not all(isinstance(p, list) for p in polygons):
        raise DataError(f"{origin}: has neither `bbox` nor polygons in `segmentation` (run lengths need a `bbox`)")
    flat = [v for polygon in polygons for v in polygon]
    return bounds(list(zip(flat[::2], flat[1::2], strict=False)), origin)
