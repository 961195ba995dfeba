"""DeepPCB as records: image pairs, boxes, and a split by group folder.

Layout read here (one group of seven):

    trainval.txt                                 group/13000/13000001.jpg group/13000_not/13000001.txt
    group13000/13000/13000001_test.jpg           the inspected board, 640x640 grey
    group13000/13000/13000001_temp.jpg           the same place without defects, aligned to the pixel
    group13000/13000_not/13000001.txt            a line a box: x1 y1 x2 y2 type
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image
from tools.errors import DataError

# Position in this tuple = class id of the detector = type in the label file minus one.
CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")

# Whole groups, because the images of one group are neighbours on the same board.
VALIDATION_GROUPS = ("group50600", "group92000")


@dataclass(frozen=True)
class Sample:
    """One labelled board: where its images are and what is wrong with it."""

    name: str  # "group13000/13000/13000001"
    group: str
    test: Path
    template: Path
    xyxy: Float  # (N, 4) pixels of the test image
    class_id: np.ndarray  # (N,) int64, index into CLASSES


def parse_box(text: str, origin: str) -> tuple[list[float], int]:
    """One label line `x1 y1 x2 y2 type` as a box and a class id.

    Raises:
        DataError: wrong number of fields, not numbers, an empty box or an unknown type; starts with `origin`.

    >>> parse_box("10 20 30 50 6", "a.txt:1")
    ([10.0, 20.0, 30.0, 50.0], 5)
    """
    fields = text.split()
    if len(fields) != 5:
        raise DataError(f"{origin}: expected 'x1 y1 x2 y2 type', found {len(fields)} fields: {text.strip()!r}")
    try:
        x1, y1, x2, y2, kind = (int(field) for field in fields)
    except ValueError as error:
        raise DataError(f"{origin}: expected five whole numbers, found {text.strip()!r}") from error
    if x2 <= x1 or y2 <= y1 or x1 < 0 or y1 < 0:
        raise DataError(f"{origin}: the box {x1} {y1} {x2} {y2} is empty, turned round or outside the image")
    if not 1 <= kind <= len(CLASSES):
        raise DataError(f"{origin}: type {kind} is unknown, expected 1 to {len(CLASSES)} ({', '.join(CLASSES)})")
    return [float(x1), float(y1), float(x2), float(y2)], kind - 1


def read_labels(path: Path) -> tuple[Float, np.ndarray]:
    """All boxes of a label file: (N, 4) float32 and (N,) int64; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a label file: {error}") from error
    parsed = [parse_box(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    xyxy = np.array([box for box, _ in parsed], np.float32).reshape(-1, 4)
    return xyxy, np.array([kind for _, kind in parsed], np.int64)


def read_image(path: Path) -> Image:
    """One grey image, (H, W) uint8."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    if image is None:
        raise DataError(f"{path}: {'is not a readable image' if data.size else 'missing or empty'}")
    return np.asarray(image, np.uint8)


def read_index(root: Path) -> list[Sample]:
    """Every sample that `trainval.txt` lists, in its order, labels read and checked.

    Raises:
        DataError: no such list, a malformed line, a bad label or a missing image.
    """
    index = root / "trainval.txt"
    if not index.is_file():
        raise DataError(f"{index}: missing; --data must name the unpacked DeepPCB folder that holds it")
    samples = []
    for number, line in enumerate(index.read_text(encoding="ascii").splitlines(), 1):
        if line.strip():
            samples.append(_read_entry(root, line, f"{index}:{number}"))
    if not samples:
        raise DataError(f"{index}: lists no image")
    return samples


def _read_entry(root: Path, line: str, origin: str) -> Sample:
    fields = line.split()
    if len(fields) != 2:
        raise DataError(f"{origin}: expected 'image.jpg labels.txt', found {line.strip()!r}")
    stem = fields[0].rsplit(".", 1)[0]
    test, template = root / f"{stem}_test.jpg", root / f"{stem}_temp.jpg"
    for path in (test, template):
        if not path.is_file():
            raise DataError(f"{origin}: image {path} is missing")
    xyxy, class_id = read_labels(root / fields[1])
    return Sample(stem, stem.split("/")[0], test, template, xyxy, class_id)


def split(samples: Sequence[Sample], validation: Iterable[str]) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples; `validation` names whole groups, the rest trains.

    Raises:
        DataError: a group nobody has, or a side left empty.
    """
    held_out = set(validation)
    unknown = held_out - {sample.group for sample in samples}
    if unknown:
        raise DataError(f"no sample belongs to {', '.join(sorted(unknown))}: check --validation-groups")
    train = [sample for sample in samples if sample.group not in held_out]
    held = [sample for sample in samples if sample.group in held_out]
    if not train or not held:
        raise DataError("the split leaves no sample to train on or none to validate on: check --validation-groups")
    return train, held


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_hash(samples: Sequence[Sample]) -> str:
    """One SHA-256 over names, labels and the bytes of both images: changes when the data does."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda item: item.name):
        digest.update(sample.name.encode())
        digest.update(sample.xyxy.tobytes() + sample.class_id.tobytes())
        digest.update(sample.test.read_bytes() + sample.template.read_bytes())
    return digest.hexdigest()
