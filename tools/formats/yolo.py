"""YOLO (docs.ultralytics.com/datasets/detect): a text file an image, a line a box in fractions of the image's size.

    class x_centre y_centre width height
    class x1 y1 x2 y2 x3 y3 ...             a polygon, becomes a box

The classes' names come from `names` in a .yaml file, or from classes.txt or obj.names, a line a name. Without them a
class is called by its number, and `--classes hole=0 bar=1` names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tools.errors import DataError
from tools.formats.raw import Problems, RawBox, RawData, RawImage, Skip, bounds, find_files, pair, read_text, take_all

NAME_FILES = ("classes.txt", "obj.names")


def read(source: Path, problems: Problems, skip: Skip = take_all) -> RawData:
    """Every image below `source`, with its text file where there is one.

    Raises:
        DataError: no image at all, or lists of names that contradict each other.
    """
    names = _class_names(source)
    images = []
    for image, label in pair(source, ".txt", problems, skip, _is_label):
        name = image.relative_to(source).as_posix()
        if label is None:
            images.append(RawImage(name, image, None, str(image)))
            continue
        with problems.collect():
            images.append(RawImage(name, image, _boxes(label, names, problems), str(label)))
    return RawData(images, tuple(names))


def _class_names(source: Path) -> list[str]:
    """The classes in the order of their numbers; empty where no file names them."""
    found: dict[Path, list[str]] = {}
    for path in find_files(source, frozenset({".txt", ".names", ".yaml", ".yml"})):
        if path.name in NAME_FILES:
            found[path] = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        elif path.suffix in (".yaml", ".yml"):
            names = _yaml_names(path)
            if names is not None:
                found[path] = names
    lists = list(found.items())
    for path, names in lists[1:]:
        if names != lists[0][1]:
            raise DataError(f"{path}: names other classes than {lists[0][0]}: {names} and {lists[0][1]}; keep one")
    return lists[0][1] if lists else []


def _yaml_names(path: Path) -> list[str] | None:
    try:
        record: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(f"{path}:{mark.line + 1 if mark else 1}: is not YAML: {error}") from error
    names = record.get("names") if isinstance(record, dict) else None
    if names is None:
        return None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: `names` numbers its classes {sorted(names)}, expected 0 to {len(names) - 1}")
        names = [names[k] for k in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: `names` is {names!r:.80}, expected a list of class names")
    return [str(name) for name in names]


def _is_label(path: Path) -> bool:
    """Whether a text file without an image looks like labels: its first line is a class number and fractions."""
    if path.name in NAME_FILES:
        return False
    try:
        first = next((line for line in read_text(path).splitlines() if line.strip()), "")
        return len(parse_line(first, [], str(path)).xyxy) == 4
    except DataError:
        return False


def _boxes(path: Path, names: list[str], problems: Problems) -> tuple[RawBox, ...]:
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            with problems.collect():
                boxes.append(parse_line(line, names, f"{path}:{number}"))
    return tuple(boxes)


def parse_line(text: str, names: list[str], origin: str) -> RawBox:
    """One label line, a box or a polygon.

    Raises:
        DataError: wrong number of fields, not numbers, or a class number without a name; starts with `origin`.

    >>> parse_line("1 0.5 0.5 0.2 0.4", ["hole", "bar"], "a.txt:1")
    RawBox(xyxy=(0.4, 0.3, 0.6, 0.7), label='bar', origin='a.txt:1', relative=True)
    """
    fields = text.split()
    if len(fields) != 5 and (len(fields) < 7 or len(fields) % 2 == 0):
        raise DataError(
            f"{origin}: expected 'class x y width height' or a class and three points or more, found {len(fields)} "
            f"fields: {text.strip()!r:.80}"
        )
    try:
        kind, values = int(fields[0]), [float(field) for field in fields[1:]]
    except ValueError as error:
        raise DataError(f"{origin}: expected a class number and fractions, found {text.strip()!r:.80}") from error
    if kind < 0 or (names and kind >= len(names)):
        raise DataError(f"{origin}: class {kind} is unknown, expected 0 to {len(names) - 1} ({', '.join(names)})")
    label = names[kind] if names else str(kind)
    if len(values) > 4:
        return RawBox(bounds(list(zip(values[::2], values[1::2], strict=True)), origin), label, origin, True)
    x, y, width, height = values
    return RawBox((x - width / 2, y - height / 2, x + width / 2, y + height / 2), label, origin, True)
