"""Annotated images of any usual format into one dataset folder, split by group.

    python -m tools import --format labelme --source RAW --out DATASET --product NAME --size 768x320 \\
        --group 'lot(\\d+)' --validation 7 9

The images are copied byte for byte below DATASET/images, the labels go into DATASET/dataset.json (see
`tools/dataset.py`). Everything that is wrong with the source is said at once, and then nothing is written. Stopped, the
same command goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tools.dataset import INDEX, SPLITS, Dataset, data_hash, read_dataset, read_image, sha256_file
from tools.errors import DataError, ToolError
from tools.formats import FORMATS
from tools.formats.raw import Problems, RawBox, RawData, RawImage
from tools.journal import Journal
from tools.run_record import write_record
from tools.split import choose_groups

# A box may reach this far out of its image and is clipped: rounding, or counting pixels from 1 instead of 0.
PROTRUDING_PX = 1.0
RECORD = "import.json"
# Names of images in one message.
NAMES_SHOWN = 5
# Sides of the input are multiples of this, the detector's deepest stride.
SIDE_MULTIPLE = 32


@dataclass(frozen=True)
class Measured:
    """What a source image is, read once."""

    sha256: str
    width: int
    height: int


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m tools import", description=__doc__.split("\n")[0])
    p.add_argument("--format", required=True, choices=FORMATS)
    p.add_argument("--source", required=True, type=Path, help="folder with images and labels (COCO: or its JSON)")
    p.add_argument("--out", required=True, type=Path, help="dataset folder to write")
    p.add_argument("--product", required=True, help="name of the product, such as pcb")
    p.add_argument("--size", required=True, type=parse_size, metavar="WxH", help="input of the detector to be made")
    p.add_argument("--channels", type=int, choices=(1, 3), default=1, help="grey or colour input (default: 1)")
    p.add_argument("--classes", nargs="+", metavar="NAME[=SOURCE,...]", help="class order, and new names if wanted")
    p.add_argument("--known", nargs="+", metavar="CLASS", help="classes that were looked for (default: all)")
    p.add_argument("--group", metavar="REGEX", help="its first group, found in the file name, is the image's group")
    p.add_argument("--validation", nargs="+", default=[], metavar="GROUP", help="groups to keep out of training")
    p.add_argument("--validation-share", type=float, metavar="SHARE", help="or: choose groups for about this share")
    p.add_argument("--exclude", metavar="REGEX", help="leave out images whose file name it matches")
    p.add_argument(
        "--unlabelled",
        choices=("refuse", "negative", "skip"),
        default="refuse",
        help="images without a label file: an error, images without defects, or left out (default: refuse)",
    )
    p.add_argument("--link", action="store_true", help="hard links instead of copies")
    p.add_argument("--licence", default="", help="terms of use of the images, goes into every model card")
    p.add_argument("--source-note", default="", help="where the images come from")
    return p


def parse_size(text: str) -> tuple[int, int]:
    """`WxH` as two numbers.

    >>> parse_size("768x320")
    (768, 320)
    """
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, expected such as 640x640")
    width, height = int(found[1]), int(found[2])
    if not width or not height or width % SIDE_MULTIPLE or height % SIDE_MULTIPLE:
        near = "x".join(str(max(1, round(side / SIDE_MULTIPLE)) * SIDE_MULTIPLE) for side in (width, height))
        raise argparse.ArgumentTypeError(f"{text}: sides must be multiples of {SIDE_MULTIPLE}; {near} is near")
    return width, height


def main(arguments: list[str]) -> None:
    """Read, check everything, copy, write the index."""
    args = parser().parse_args(arguments)
    refuse_arguments(args)
    problems = Problems()
    reader = importlib.import_module(f"tools.formats.{args.format}")
    exclude = compile_pattern(args.exclude, "--exclude")
    raw: RawData = reader.read(args.source, problems, lambda name: bool(exclude and exclude.search(name)))
    refuse_other_format(raw, args, problems)
    classes = class_names(args.classes, raw, problems)
    images = select(raw.images, args.unlabelled, problems)
    groups = groups_of(images, args.group, problems)
    names = list(dict.fromkeys(classes.values()))
    known = known_ids(args.known, names, problems)
    measured = measure_all(images, args, problems)
    records = index_records(images, groups, measured, classes, known, problems)
    problems.raise_any(str(args.source))  # a split of what is wrong would only add strange messages
    split_records(records, names, known, args, problems)
    problems.raise_any(str(args.source))
    copy_all(images, args.out, measured, args.link)
    write_index(args, names, known, records)
    dataset = read_dataset(args.out)
    counts = summary(dataset)
    settings = {**vars(args), "source": source_of(args), "data_sha256": data_hash(dataset.samples)}
    results = {"splits": counts, "unlabelled_skipped": len(raw.images) - len(images)}
    write_record(args.out / RECORD, "import", settings, results)
    print(table(counts, dataset.classes))
    for name, boxes in counts["validation"]["boxes"].items():
        if not boxes:
            print(f"note: the class {name!r} has no box in the validation split, so it will not be measured")
    print(f"{args.out / INDEX}: look at it with `python -m tools curate`")


def refuse_arguments(args: argparse.Namespace) -> None:
    """Check what the arguments say together.

    Raises:
        ToolError: they contradict each other.
    """
    if bool(args.validation) == (args.validation_share is not None):
        raise ToolError("give either --validation GROUP... or --validation-share SHARE: some groups must be kept apart")
    if args.validation_share is not None and not 0 < args.validation_share < 1:
        raise ToolError(f"--validation-share {args.validation_share:g} is not between 0 and 1")
    source, out = args.source.resolve(), args.out.resolve()
    if out == source or source in out.parents:
        raise ToolError(f"--out {args.out} lies in --source {args.source}; choose a folder outside of the raw data")
    for name in ("group", "exclude"):
        compile_pattern(getattr(args, name), f"--{name}")
    refuse_other_dataset(args)


def source_of(args: argparse.Namespace) -> str:
    """The source as the run record has it."""
    return str(args.source.resolve())


def refuse_other_dataset(args: argparse.Namespace) -> None:
    """Check that `--out` does not hold a dataset of another source.

    Raises:
        ToolError: it does.
    """
    if not (args.out / INDEX).exists():
        return
    try:
        source = json.loads((args.out / RECORD).read_text(encoding="utf-8"))["settings"]["source"]
    except (OSError, ValueError, KeyError, TypeError):
        source = "something else"
    if source != source_of(args):
        raise ToolError(f"--out {args.out}: holds a dataset made of {source}; name a new folder")


def refuse_other_format(raw: RawData, args: argparse.Namespace, problems: Problems) -> None:
    """Check that the format fits the source at all.

    Raises:
        DataError: images, and a label for none of them.
    """
    if raw.images and not problems.found and all(image.boxes is None for image in raw.images):
        raise DataError(
            f"{args.source}: {len(raw.images)} images and no {args.format} label for any of them; is --format right?"
        )


def compile_pattern(pattern: str | None, option: str) -> re.Pattern[str] | None:
    """A regular expression from the command line.

    Raises:
        ToolError: it is none, or `--group` has no group in it.
    """
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ToolError(f"{option} {pattern!r} is not a regular expression: {error}") from error
    if option == "--group" and not compiled.groups:
        raise ToolError(f"{option} {pattern!r} has no parentheses around the part that names the group: 'lot(\\d+)'")
    return compiled


def class_names(wanted: Sequence[str] | None, raw: RawData, problems: Problems) -> dict[str, str]:
    """Source name -> class name, in the order of the class ids.

    Args:
        wanted: `--classes`, entries `name` or `name=source,source`; None takes the source's own list, or what is found.
    """
    found: dict[str, list[str]] = {}
    for image in raw.images:
        for box in image.boxes or ():
            found.setdefault(box.label, []).append(box.origin)
    if wanted is None:
        names = raw.classes or sorted(found)
        if not names:
            problems.add("no image has a label, so there is no class; name the classes with --classes")
        return {name: name for name in names}
    mapping: dict[str, str] = {}
    for entry in wanted:
        name, _, sources = entry.partition("=")
        if not name:
            problems.add(f"--classes {entry!r} names no class, expected NAME or NAME=SOURCE,...")
        for source in (sources or name).split(","):
            if mapping.setdefault(source, name) != name:
                problems.add(f"--classes gives {source!r} two names, {mapping[source]!r} and {name!r}")
    for label in sorted(found.keys() - mapping.keys()):
        origins = found[label]
        more = f" (and {len(origins) - 1} more)" if len(origins) > 1 else ""
        problems.add(
            f"{origins[0]}{more}: the class {label!r} is unknown; --classes names {', '.join(mapping)}: "
            f"add {label!r}, or count it to another class with NAME={label}"
        )
    return mapping


def select(images: Sequence[RawImage], unlabelled: str, problems: Problems) -> list[RawImage]:
    """The images to take, those without labels treated as `--unlabelled` says."""
    without = [image for image in images if image.boxes is None]
    if without and unlabelled == "refuse":
        problems.add(
            f"{without[0].path}: has no labels{f' (and {len(without) - 1} more)' if len(without) > 1 else ''}; look at "
            "them, then say --unlabelled negative (they show no defect) or --unlabelled skip (nobody has looked)"
        )
    if unlabelled == "negative":
        return [image if image.boxes is not None else replace(image, boxes=()) for image in images]
    return [image for image in images if image.boxes is not None]


def groups_of(images: Sequence[RawImage], pattern: str | None, problems: Problems) -> list[str]:
    """The group of each image: by the pattern, else what its format says."""
    compiled = compile_pattern(pattern, "--group")
    groups = []
    for image in images:
        group = image.group
        if compiled is not None:
            found = compiled.search(image.name)
            group = next((part for part in found.groups() if part), None) if found else None
        groups.append(group or "")
    without = [image.name for image, group in zip(images, groups, strict=True) if not group]
    if without:
        more = f" and {len(without) - NAMES_SHOWN} more" if len(without) > NAMES_SHOWN else ""
        why = f"--group {pattern!r} does not match" if compiled else "give --group REGEX; no group is known for"
        problems.add(f"{why} {', '.join(without[:NAMES_SHOWN])}{more}")
    return groups


def known_ids(known: Sequence[str] | None, names: Sequence[str], problems: Problems) -> list[int] | None:
    """Category ids of `--known`; None when all classes were looked for."""
    if known is None:
        return None
    for name in known:
        if name not in names:
            problems.add(f"--known {name}: no such class, they are {', '.join(names)}")
    return sorted(names.index(name) + 1 for name in known if name in names)


def measure_all(images: Sequence[RawImage], args: argparse.Namespace, problems: Problems) -> dict[Path, Measured]:
    """Hash and size of every image and template, kept in a journal."""
    journal = Journal(args.out / "import.journal", {"source": str(args.source.resolve())})
    paths = [p for image in images for p in (image.path, image.template) if p is not None]
    origin = {image.path: image.origin for image in images}
    measured = {}
    for path in tqdm(dict.fromkeys(paths), desc="read images", mininterval=5, unit="image"):
        with problems.collect():
            if not path.is_file():
                raise DataError(f"{origin.get(path, args.source)}: the image {path} is missing")
            state = path.stat()
            key = f"{path} {state.st_size} {state.st_mtime_ns}"
            measured[path] = Measured(**journal.once(key, lambda path=path: measure(path)))
    return measured


def measure(path: Path) -> dict[str, Any]:
    """SHA-256, width and height of an image file.

    Raises:
        DataError: it cannot be decoded.
    """
    try:
        height, width = read_image(path).shape[:2]
    except DataError as error:
        raise DataError(f"{error}; mend it or leave it out with --exclude") from error
    return {"sha256": sha256_file(path), "width": width, "height": height}


def index_records(
    images: Sequence[RawImage],
    groups: Sequence[str],
    measured: Mapping[Path, Measured],
    classes: Mapping[str, str],
    known: Sequence[int] | None,
    problems: Problems,
) -> list[dict[str, Any]]:
    """One record an image as `dataset.json` has them, with its boxes under the key `boxes` and no split yet."""
    names = list(dict.fromkeys(classes.values()))
    records: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for image, group in zip(images, groups, strict=True):
        if seen.setdefault(image.name, image.origin) != image.origin:
            problems.add(f"{image.origin}: the image {image.name} is listed twice, first by {seen[image.name]}")
        if ".." in Path(image.name).parts or Path(image.name).is_absolute():
            problems.add(f"{image.origin}: the image {image.name} lies outside of the source folder")
        size = measured.get(image.path)
        if size is None:
            continue
        refuse_other_size(image, size, measured, problems)
        boxes = []
        for box in image.boxes or ():
            with problems.collect():
                kind = names.index(classes[box.label]) + 1 if box.label in classes else 0  # 0 was reported before
                if known is not None and kind and kind not in known:
                    raise DataError(f"{box.origin}: has the class {classes[box.label]!r}, which --known leaves out")
                boxes.append((kind, fit(box, size.width, size.height)))
        template = {"template": f"images/{name_below(image)}"} if image.template else {}
        records.append(
            {
                "id": len(records) + 1,
                "file_name": f"images/{image.name}",
                "width": size.width,
                "height": size.height,
                "group": group,
                "sha256": size.sha256,
                **template,
                **({} if known is None else {"known": list(known)}),
                "boxes": boxes,
            }
        )
    return records


def name_below(image: RawImage) -> str:
    """Where the template goes: beside its image."""
    assert image.template is not None
    return str(Path(image.name).with_name(image.template.name).as_posix())


def refuse_other_size(
    image: RawImage, size: Measured, measured: Mapping[Path, Measured], problems: Problems
) -> None:
    """Note labels drawn on another size than the file has, and a template of another size."""
    if image.size is not None and image.size != (size.width, size.height):
        problems.add(
            f"{image.origin}: was labelled at {image.size[0]}x{image.size[1]}, and {image.path} is "
            f"{size.width}x{size.height}; scaled or turned since?"
        )
    template = measured.get(image.template) if image.template else None
    if template is not None and (template.width, template.height) != (size.width, size.height):
        problems.add(f"{image.template}: is {template.width}x{template.height}, its image {size.width}x{size.height}")


def fit(box: RawBox, width: int, height: int) -> list[float]:
    """The box as COCO's [x, y, width, height] in pixels, clipped where it protrudes a little.

    Raises:
        DataError: it reaches further out, has no area or is turned round.

    >>> fit(RawBox((-0.4, 2.0, 10.0, 8.0), "hole", "a.txt:1"), 10, 10)
    [0.0, 2.0, 10.0, 6.0]
    >>> fit(RawBox((0.2, 0.0, 0.5, 1.0), "hole", "a.txt:1", relative=True), 200, 100)
    [40.0, 0.0, 60.0, 100.0]
    """
    limit = np.array([width, height, width, height], np.float64)
    xyxy = np.array(box.xyxy, np.float64) * (limit if box.relative else 1)
    text = " ".join(f"{v:g}" for v in xyxy)
    if not np.isfinite(xyxy).all() or xyxy[2] <= xyxy[0] or xyxy[3] <= xyxy[1]:
        raise DataError(f"{box.origin}: the box {text} has no area or is turned round, expected x1 < x2 and y1 < y2")
    if (xyxy < -PROTRUDING_PX).any() or (xyxy > limit + PROTRUDING_PX).any():
        raise DataError(f"{box.origin}: the box {text} reaches out of the image, which is {width}x{height}")
    x1, y1, x2, y2 = (round(float(v), 3) for v in np.clip(xyxy, 0, limit))
    if x2 <= x1 or y2 <= y1:
        raise DataError(f"{box.origin}: the box {text} lies outside the image, which is {width}x{height}")
    return [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]


def split_records(
    records: Sequence[dict[str, Any]],
    names: Sequence[str],
    known: Sequence[int] | None,
    args: argparse.Namespace,
    problems: Problems,
) -> None:
    """Give each record its split, whole groups only, and note what makes the split useless."""
    groups = sorted({record["group"] for record in records})
    if len(records) < 2 or len(groups) < 2:
        what = f"{len(records)} image" if len(records) < 2 else f"all {len(records)} images in the group {groups[0]!r}"
        problems.add(f"there is only {what}: training and validation need at least one group of images each")
        return
    held_out = set(args.validation) or choose_groups(records, args.validation_share, len(names))
    for group in sorted(held_out - set(groups)):
        problems.add(f"--validation {group}: no image is in this group; the groups are {listed(groups)}")
    if not set(groups) - held_out:
        problems.add(f"--validation names every group ({listed(groups)}), so none is left to train on")
    for record in records:
        record["split"] = "validation" if record["group"] in held_out else "train"
    refuse_empty_classes(records, names, known, problems)
    refuse_same_image(records, problems)


def listed(names: Sequence[str]) -> str:
    """Names for a message, shortened in the middle when there are many."""
    return ", ".join(names if len(names) <= 40 else [*names[:30], f"... ({len(names) - 40} more)", *names[-10:]])


def refuse_empty_classes(
    records: Sequence[dict[str, Any]], names: Sequence[str], known: Sequence[int] | None, problems: Problems
) -> None:
    """Note classes with nothing to learn from."""
    for kind, name in enumerate(names, 1):
        if known is not None and kind not in known:
            continue
        count = Counter(r["split"] for r in records for k, _ in r["boxes"] if k == kind)
        if not count["train"]:
            where = f"{count['validation']} in validation" if count["validation"] else "none in validation either"
            problems.add(
                f"the class {name!r} has no box in the training split ({where}); leave it out of --classes, or "
                "move a group that shows it out of --validation"
            )


def refuse_same_image(records: Sequence[dict[str, Any]], problems: Problems) -> None:
    """Note images with the same bytes in both splits."""
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        before = first.setdefault(record["sha256"], record)
        if before["split"] != record["split"]:
            problems.add(
                f"{record['file_name']} ({record['split']}) is the same file as {before['file_name']} "
                f"({before['split']}): the groups {record['group']!r} and {before['group']!r} leak into each other"
            )


def copy_all(images: Sequence[RawImage], out: Path, measured: Mapping[Path, Measured], link: bool) -> None:
    """Bring images and templates below `out`, byte for byte."""
    jobs = [(image.path, image.name) for image in images]
    jobs += [(image.template, name_below(image)) for image in images if image.template]
    for path, name in tqdm(jobs, desc="copy", mininterval=5, unit="file"):
        goal = out / "images" / name
        if goal.is_file() and sha256_file(goal) == measured[path].sha256:
            continue
        goal.parent.mkdir(parents=True, exist_ok=True)
        partial = goal.with_name(goal.name + ".partial")
        partial.unlink(missing_ok=True)
        if link:
            os.link(path, partial)
        else:
            shutil.copyfile(path, partial)
        partial.replace(goal)


def write_index(
    args: argparse.Namespace, names: Sequence[str], known: Sequence[int] | None, records: list[dict[str, Any]]
) -> None:
    """Write `dataset.json`, whole or not at all."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        for kind, (x, y, width, height) in record.pop("boxes"):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["id"],
                    "category_id": kind,
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 3),
                    "iscrowd": 0,
                }
            )
    width, height = args.size
    info = {
        "product": args.product,
        "input": {"width": width, "height": height, "channels": args.channels},
        "licence": args.licence,
        "source": args.source_note,
    }
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    data = {"info": info, "categories": categories, "images": records, "annotations": annotations}
    partial = args.out / f"{INDEX}.partial"
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(args.out / INDEX)


def summary(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Counts of each split: groups, images, images without a defect, boxes by class."""
    counts = {}
    for split in SPLITS:
        part = dataset.part(split)
        kinds = Counter(int(kind) for sample in part for kind in sample.class_id)
        counts[split] = {
            "groups": sorted({sample.group for sample in part}),
            "images": len(part),
            "without_defect": sum(not len(sample.xyxy) for sample in part),
            "boxes": {name: kinds[k] for k, name in enumerate(dataset.classes)},
        }
    return counts


def table(counts: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> str:
    """The summary as a table to print."""
    head = ["split", "groups", "images", "without", *classes]
    rows = [head]
    for split, c in counts.items():
        numbers = [len(c["groups"]), c["images"], c["without_defect"], *c["boxes"].values()]
        rows.append([split, *map(str, numbers)])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
