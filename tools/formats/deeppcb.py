"""DeepPCB (github.com/tangsanli5201/DeepPCB): pairs of inspected board and template, a group a folder.

    trainval.txt                                 group/13000/13000001.jpg group/13000_not/13000001.txt
    group13000/13000/13000001_test.jpg           the inspected board, 640x640 grey
    group13000/13000/13000001_temp.jpg           the same place without defects, aligned to the pixel
    group13000/13000_not/13000001.txt            a line a box: x1 y1 x2 y2 type
"""

from __future__ import annotations

from pathlib import Path

from tools.errors import DataError
from tools.formats.raw import Problems, RawBox, RawData, RawImage, Skip, read_text, take_all

INDEX = "trainval.txt"

# Position in this tuple = type in the label file minus one.
CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")


def read(source: Path, problems: Problems, skip: Skip = take_all) -> RawData:
    """Every pair that `trainval.txt` lists, in its order.

    Raises:
        DataError: no such list.
    """
    index = source / INDEX
    if not index.is_file():
        raise DataError(f"{index}: missing; --source must name the unpacked DeepPCB folder that holds it")
    images = []
    for number, line in enumerate(read_text(index).splitlines(), 1):
        if line.strip() and not skip(_name(line)):
            with problems.collect():
                images.append(_entry(source, line, f"{index}:{number}", problems))
    if not images:
        problems.add(f"{index}: lists no image")
    return RawData(images, CLASSES)


def _name(line: str) -> str:
    """The inspected board that a line lists."""
    return f"{line.split()[0].rsplit('.', 1)[0]}_test.jpg"


def _entry(source: Path, line: str, origin: str, problems: Problems) -> RawImage:
    fields = line.split()
    if len(fields) != 2:
        raise DataError(f"{origin}: expected 'image.jpg labels.txt', found {line.strip()!r}")
    stem = fields[0].rsplit(".", 1)[0]
    name = _name(line)
    template = source / f"{stem}_temp.jpg"
    if not template.is_file():
        raise DataError(f"{origin}: the template {template} is missing")
    boxes = _labels(source / fields[1], problems)
    return RawImage(name, source / name, boxes, origin, template=template, group=stem.split("/")[0])


def _labels(path: Path, problems: Problems) -> tuple[RawBox, ...]:
    boxes = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            with problems.collect():
                boxes.append(parse_box(line, f"{path}:{number}"))
    return tuple(boxes)


def parse_box(text: str, origin: str) -> RawBox:
    """One label line `x1 y1 x2 y2 type`.

    Raises:
        DataError: wrong number of fields, not numbers or an unknown type; starts with `origin`.

    >>> parse_box("10 20 30 50 6", "a.txt:1")
    RawBox(xyxy=(10.0, 20.0, 30.0, 50.0), label='pin-hole', origin='a.txt:1', relative=False)
    """
    fields = text.split()
    if len(fields) != 5:
        raise DataError(f"{origin}: expected 'x1 y1 x2 y2 type', found {len(fields)} fields: {text.strip()!r}")
    try:
        x1, y1, x2, y2, kind = (int(field) for field in fields)
    except ValueError as error:
        raise DataError(f"{origin}: expected five whole numbers, found {text.strip()!r}") from error
    if not 1 <= kind <= len(CLASSES):
        raise DataError(f"{origin}: type {kind} is unknown, expected 1 to {len(CLASSES)} ({', '.join(CLASSES)})")
    return RawBox((float(x1), float(y1), float(x2), float(y2)), CLASSES[kind - 1], origin)
