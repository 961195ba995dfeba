"""What every annotation format is read into, and what the formats share: finding images, pairing, naming problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
# Tells by an image's name below the source whether to leave it out, so that nothing is said about it either.
Skip = Callable[[str], bool]
MOST_SHOWN = 20  # problems; more of them are counted only


def take_all(name: str) -> bool:
    """The `skip` that leaves out nothing."""
    return False


@dataclass(frozen=True)
class RawBox:
    """One label as the annotation file gives it."""

    xyxy: tuple[float, float, float, float]  # pixels, or fractions of the image's size if `relative`
    label: str  # the class's name in the source
    origin: str  # file and line or record, begins every message about this box
    relative: bool = False


@dataclass(frozen=True)
class RawImage:
    """One image with its labels; `boxes` is None where nobody has labelled it, empty where somebody found nothing."""

    name: str  # path below the source folder, with "/"
    path: Path
    boxes: tuple[RawBox, ...] | None
    origin: str
    size: tuple[int, int] | None = None  # (width, height) the labels were drawn on, where the format says so
    template: Path | None = None
    group: str | None = None


@dataclass(frozen=True)
class RawData:
    """All that was read; `classes` in the source's own order, empty where the format has no list of them."""

    images: list[RawImage]
    classes: tuple[str, ...] = ()


@dataclass
class Problems:
    """Everything that is wrong with a source, so that it is mended in one go.

    >>> problems = Problems()
    >>> with problems.collect():
    ...     raise DataError("a.txt:3: expected 5 fields, found 4")
    >>> problems.add("b.txt:1: the class 'hloe' is unknown")
    >>> problems.raise_any("2 files")
    Traceback (most recent call last):
    tools.errors.DataError: 2 files: 2 problems
      a.txt:3: expected 5 fields, found 4
      b.txt:1: the class 'hloe' is unknown
    """

    found: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Note a problem; the same text counts once."""
        if text not in self.found:
            self.found.append(text)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Note the DataError that the block raises, if it raises one, and go on behind it."""
        try:
            yield
        except DataError as error:
            self.add(str(error))

    def raise_any(self, about: str) -> None:
        """Raise what was noted.

        Raises:
            DataError: something was; the message lists the first `MOST_SHOWN`.
        """
        if not self.found:
            return
        count = len(self.found)
        more = [f"and {count - MOST_SHOWN} more"] if count > MOST_SHOWN else []
        lines = [f"{about}: {count} problem{'s' if count > 1 else ''}", *self.found[:MOST_SHOWN], *more]
        raise DataError("\n  ".join(lines))


def find_files(source: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files below `source` with one of the suffixes (lower case), hidden ones left out, in order of their path.

    Raises:
        DataError: `source` is no folder.
    """
    if not source.is_dir():
        raise DataError(f"{source}: is not a folder; --source names the folder with the images and their labels")
    found = (path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    return sorted(p for p in found if p.is_file() and not any(s.startswith(".") for s in p.relative_to(source).parts))


def pair(
    source: Path, suffix: str, problems: Problems, skip: Skip, is_label: Callable[[Path], bool]
) -> list[tuple[Path, Path | None]]:
    """Every image below `source` with the label file of the same name, or None where it has none.

    Label files may lie beside the images or in folders of their own (`data/a.jpg` and `label/a.json`,
    `images/train/a.jpg` and `labels/train/a.txt`). Where several share a name, the folders decide.

    Args:
        suffix: of label files, such as ".json".
        problems: takes label files without an image, and pairs that are not unique.
        skip: images to leave out, with their label files.
        is_label: tells a label file from others of the same suffix; asked only about those without an image.

    Raises:
        DataError: no image at all.
    """
    images = find_files(source, IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{source}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in find_files(source, frozenset({suffix})):
        by_stem[path.stem].append(path)
    images_by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in images:
        images_by_stem[image.stem].append(image)
    label_of: dict[Path, Path] = {}
    for stem, same in images_by_stem.items():
        with problems.collect():
            label_of |= _match(same, by_stem.get(stem, []), source)
    used = set(label_of.values())
    for path in (p for paths in by_stem.values() for p in paths):
        if path not in used and is_label(path):
            problems.add(f"{path}: its image is missing; no image below {source} belongs to it by name and folder")
    return [(image, label_of.get(image)) for image in images if not skip(image.relative_to(source).as_posix())]


def _match(images: Sequence[Path], labels: Sequence[Path], source: Path) -> dict[Path, Path]:
    """Images and label files of one name, each to the one whose folders are most like its own."""
    places = [
        (_likeness(image.parent.relative_to(source), label.parent.relative_to(source)), image, label)
        for image in images
        for label in labels
    ]
    taken: dict[Path, Path] = {}
    for score, image, label in sorted(places, key=lambda place: -place[0]):
        if score < 0 or image in taken or label in taken.values():
            continue
        for other_score, other_image, other_label in places:
            rival = other_image == image and other_label not in taken.values()
            rival |= other_label == label and other_image not in taken
            if rival and other_score == score and (other_image, other_label) != (image, label):
                raise DataError(
                    f"{label}: it is not clear which image it labels: {image} with {label}, or {other_image} with "
                    f"{other_label}; rename or remove one"
                )
        taken[image] = label
    return taken


def _likeness(one: Path, other: Path) -> int:
    """How many folders agree, from the front and from the back; -1 where a pair would be a mistake.

    >>> _likeness(Path("images/train"), Path("labels/train")), _likeness(Path("images/val"), Path("labels/train"))
    (1, -1)
    """
    if one == other:
        return 1000
    if min(len(one.parts), len(other.parts)) > 1 and not set(one.parts) & set(other.parts):
        return -1
    return _common(one.parts, other.parts) + _common(one.parts[::-1], other.parts[::-1])


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def bounds(points: Sequence[Sequence[float]], origin: str) -> tuple[float, float, float, float]:
    """The box around a polygon's points.

    Raises:
        DataError: not pairs of numbers, or fewer than two.

    >>> bounds([[3, 1], [5, 2], [4, 9]], "a.json: shape 0")
    (3.0, 1.0, 5.0, 9.0)
    """
    try:
        x = [float(point[0]) for point in points]
        y = [float(point[1]) for point in points]
    except (TypeError, ValueError, IndexError) as error:
        raise DataError(f"{origin}: its points are not pairs of numbers: {points!r:.80}") from error
    if len(x) < 2:
        raise DataError(f"{origin}: has {len(x)} points, and a box needs two at least")
    return min(x), min(y), max(x), max(y)


def read_text(path: Path) -> str:
    """A label file's text.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from error
