"""Find what spoils a dataset: broken, tiny, near-duplicate and unlabelled images, leaks, doubtful boxes, rare classes.

    python -m tools curate --data DATASET --out FOLDER                       # look, touch nothing
    python -m tools curate --data DATASET --out FOLDER --apply NEW_DATASET   # and write a dataset without those

FOLDER gets report.txt, curate.json, set_aside.txt (an image a line: edit it and pass it with --list), plots, and
contact sheets by class, by group and by finding. Nothing is ever deleted.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.ticker import LogFormatter
from PIL import Image as PillowImage
from tqdm import tqdm

from edge.boxes import Float, area, iou_matrix
from edge.preprocess import Image, InputSpec
from tools.contact_sheet import Tile, cut_out, whole, write_sheets
from tools.dataset import INDEX, SPLITS, Dataset, Sample, data_hash, read_dataset, read_image, sha256_file
from tools.errors import DataError, ToolError
from tools.formats.raw import IMAGE_SUFFIXES, find_files
from tools.journal import Journal
from tools.look_alikes import (
    BLOCK_DIFFERENCE,
    HASH_BITS,
    HASH_DISTANCE,
    THUMB_SIDE,
    perceptual_hash,
    same_pairs,
    thumbnail,
)
from tools.plots import figure
from tools.run_record import write_record

BLANK_CONTRAST = 3.0  # standard deviation of the grey levels of an image that shows nothing
MOST_ENLARGED = 2.0  # an image that the input enlarges more than this shows too little
SMALLEST_BOX_PX = 4.0  # shorter side of a box at the input's scale; half a cell of the detector
DOUBLE_BOX_IOU = 0.85  # two boxes that overlap more label one thing twice
NESTED_SHARE = 0.9  # a box of which more lies within another of its class is part of that
SAME_BOX_IOU = 0.3  # boxes on two near duplicates that overlap more mean the same thing

FEW_TRAINING_BOXES, FEW_VALIDATION_BOXES = 50, 20
IMBALANCE = 10.0  # the most frequent class has this many times the boxes of the rarest

CUTS_PER_CLASS = 72  # shown on the sheets, evenly over all
IMAGES_PER_GROUP = 36
TILES_PER_FINDING = 108

# Image -> the images that look the same, and how many bits of their hashes differ.
Alike = Mapping[int, Mapping[int, int]]

# Kind -> what it means, in the order of the report.
KINDS = {
    "broken": "cannot be read, or ends too early",
    "changed": "has other bytes than when it was imported, so its labels may not fit",
    "blank": "shows nothing",
    "tiny_image": f"is enlarged more than {MOST_ENLARGED:g} times for the input",
    "unlabelled": "nobody has looked for any class on it",
    "unlisted": "lies in images/ and is not in the index",
    "leak": "is in training and looks the same as an image of validation",
    "duplicate": "looks the same as another of its split",
    "labels_differ": "looks the same as another of its split and is labelled otherwise",
    "tiny_box": f"has a box under {SMALLEST_BOX_PX:g} px at the input's scale",
    "double_box": "has one thing labelled twice",
    "nested_box": "has a box within another of its class",
}
SET_ASIDE = ("broken", "blank", "tiny_image", "unlabelled", "leak", "duplicate")


@dataclass(frozen=True)
class Finding:
    """One thing that was found about an image."""

    name: str
    kind: str  # one of KINDS
    text: str  # what is the matter
    other: str = ""  # the image that it looks like
    box: int = -1  # the box it is about


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="tools curate", description=__doc__.split("\n")[0])
    p.add_argument("--data", required=True, type=Path, help="dataset folder")
    p.add_argument("--out", required=True, type=Path, help="folder for report and sheets")
    p.add_argument("--apply", type=Path, metavar="NEW_DATASET", help="write a dataset without the images set aside")
    p.add_argument("--list", type=Path, help="with --apply: the edited set_aside.txt instead of what is found")
    p.add_argument("--keep", nargs="+", default=[], choices=SET_ASIDE, help="kinds that are reported only")
    p.add_argument(
        "--distance",
        type=int,
        default=HASH_DISTANCE,
        help=f"duplicates differ in at most so many of {HASH_BITS} bits of a perceptual hash (default: %(default)s)",
    )
    p.add_argument(
        "--difference",
        type=float,
        default=BLOCK_DIFFERENCE,
        help="and in no place by more than this part of the contrast (default: %(default)s)",
    )
    p.add_argument("--no-sheets", action="store_true", help="no contact sheets")
    return p


def main(arguments: list[str]) -> None:
    """Examine, report, draw, and apply if asked to."""
    args = parser().parse_args(arguments)
    dataset = read_dataset(args.data)
    if args.apply is not None:
        refuse_target(args.apply, args.data)
    facts, thumbs = examine(dataset, args.out)
    findings = [
        *findings_of_files(dataset, facts),
        *unlisted_files(dataset),
        *findings_of_labels(dataset, facts),
        *look_alikes(dataset, facts, thumbs, args.distance, args.difference),
    ]
    aside = set_aside(findings, args.keep)
    balance = class_balance(dataset)
    args.out.mkdir(parents=True, exist_ok=True)
    write_list(args.out / "set_aside.txt", aside)
    text = report(dataset, findings, aside, balance)
    (args.out / "report.txt").write_text(text, encoding="utf-8")
    draw_plots(dataset, facts, args.out)
    if not args.no_sheets:
        draw_sheets(dataset, findings, args.out / "sheets")
    results = {"findings": [vars(f) for f in findings], "set_aside": sorted(aside), "balance": balance}
    write_record(args.out / "curate.json", "curate", {**vars(args), "data_sha256": data_hash(dataset.samples)}, results)
    print(text)
    if args.apply is not None:
        apply(dataset, args.apply, read_list(args.list) if args.list else aside.keys())


# --- looking at files


def examine(dataset: Dataset, out: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What each image file is, and thumbnails (N, 128, 128) uint8; both are kept in `out` for the next time."""
    index = json.loads((dataset.root / INDEX).read_text(encoding="utf-8"))
    imported = {record["file_name"]: record.get("sha256") for record in index["images"]}
    journal = Journal(out / "curate.journal", {"root": str(dataset.root.resolve())})
    facts, thumbs = [], np.zeros((len(dataset.samples), THUMB_SIDE, THUMB_SIDE), np.uint8)
    for k, sample in enumerate(tqdm(dataset.samples, desc="examine", mininterval=5, unit="image")):
        state = sample.image.stat()
        key = f"{sample.name} {state.st_size} {state.st_mtime_ns}"
        fact = journal.once(key, lambda path=sample.image: examine_file(path, out / "thumbs"))
        if not fact["error"]:
            thumbs[k] = read_image(kept_thumbnail(out / "thumbs", fact["sha256"], sample.image))
        facts.append({**fact, "changed": imported[sample.name] not in (None, fact["sha256"])})
    return facts, thumbs


def examine_file(path: Path, thumbs: Path) -> dict[str, Any]:
    """Hash, size, contrast and perceptual hash of an image file, or why it is broken; keeps its thumbnail."""
    fact: dict[str, Any] = {"sha256": sha256_file(path), "error": broken(path)}
    if fact["error"]:
        return fact
    image = read_image(path)
    keep_thumbnail(thumbs, fact["sha256"], image)
    height, width = image.shape
    code = np.packbits(perceptual_hash(image)).tobytes().hex()
    return {**fact, "width": width, "height": height, "contrast": float(image.std()), "phash": code}


def keep_thumbnail(folder: Path, sha256: str, image: Image) -> Path:
    """Write the thumbnail of an image under the hash of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sha256}.png"
    cv2.imwrite(str(path), thumbnail(image))
    return path


def kept_thumbnail(folder: Path, sha256: str, source: Path) -> Path:
    """Where the thumbnail is; made again if somebody has removed it."""
    path = folder / f"{sha256}.png"
    return path if path.is_file() else keep_thumbnail(folder, sha256, read_image(source))


def broken(path: Path) -> str:
    """Why an image file cannot be trusted, or nothing. OpenCV fills a file that ends too early with grey in silence."""
    data = path.read_bytes()
    try:
        with PillowImage.open(io.BytesIO(data)) as image:
            image.load()
        read_image(path)
    except (OSError, SyntaxError, ValueError, DataError) as error:  # Pillow raises all of these
        return str(error).replace(str(path), path.name) or type(error).__name__
    return ""


def findings_of_files(dataset: Dataset, facts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Broken, changed, blank and tiny images, and those without known classes."""
    found = []
    for sample, fact in zip(dataset.samples, facts, strict=True):
        if fact["changed"]:
            found.append(Finding(sample.name, "changed", "other bytes than at import"))
        if not sample.known.any():
            found.append(Finding(sample.name, "unlabelled", "no class was looked for"))
        if fact["error"]:
            found.append(Finding(sample.name, "broken", fact["error"]))
            continue
        if fact["contrast"] < BLANK_CONTRAST:
            found.append(Finding(sample.name, "blank", f"its grey levels vary by {fact['contrast']:.1f}"))
        scale = input_scale(fact, dataset.spec)
        if scale > MOST_ENLARGED:
            text = f"{fact['width']}x{fact['height']}, enlarged {scale:.1f} times"
            found.append(Finding(sample.name, "tiny_image", text))
    return found


def input_scale(fact: Mapping[str, Any], spec: InputSpec) -> float:
    """By how much letterboxing scales the image; 1 for one that cannot be read."""
    if fact["error"]:
        return 1.0
    return float(min(spec.width / fact["width"], spec.height / fact["height"]))


def unlisted_files(dataset: Dataset) -> list[Finding]:
    """Image files of the folder that the index does not name."""
    folder = dataset.root / "images"
    if not folder.is_dir():
        return []
    named = {path for s in dataset.samples for path in (s.image, s.template) if path}
    rest = (path for path in find_files(folder, IMAGE_SUFFIXES) if path not in named)
    return [Finding(path.relative_to(dataset.root).as_posix(), "unlisted", "not in the index") for path in rest]


def findings_of_labels(dataset: Dataset, facts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Boxes that are tiny for the detector, and things labelled twice."""
    found = []
    for sample, fact in zip(dataset.samples, facts, strict=True):
        names = [dataset.classes[k] for k in sample.class_id]
        sides = (sample.xyxy[:, 2:] - sample.xyxy[:, :2]).min(axis=1) * input_scale(fact, dataset.spec)  # (N,)
        for k in np.flatnonzero(sides < SMALLEST_BOX_PX):
            text = f"box {k + 1} ({names[k]}): {sides[k]:.1f} px at the input's scale"
            found.append(Finding(sample.name, "tiny_box", text, box=int(k)))
        double = np.triu(iou_matrix(sample.xyxy, sample.xyxy), 1) > DOUBLE_BOX_IOU  # (N, N)
        for one, other in np.argwhere(double):
            text = f"boxes {one + 1} ({names[one]}) and {other + 1} ({names[other]})"
            found.append(Finding(sample.name, "double_box", text, box=int(one)))
        same_class = sample.class_id[:, None] == sample.class_id
        nested = (share_within(sample.xyxy) > NESTED_SHARE) & same_class & ~double & ~double.T
        for inner, outer in np.argwhere(nested):
            text = f"box {inner + 1} in box {outer + 1} ({names[outer]})"
            found.append(Finding(sample.name, "nested_box", text, box=int(inner)))
    return found


def share_within(xyxy: Float) -> np.ndarray:
    """(N, N): the share of box i's area that lies within box j; 0 for itself.

    >>> share_within(np.array([[0, 0, 10, 10], [5, 0, 25, 10]], np.float32)).tolist()
    [[0.0, 0.5], [0.25, 0.0]]
    """
    low = np.maximum(xyxy[:, None, :2], xyxy[:, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[:, 2:])
    share = np.clip(high - low, 0, None).prod(axis=2) / area(xyxy)[:, None]
    np.fill_diagonal(share, 0)
    return np.asarray(share)


# --- near duplicates


def look_alikes(
    dataset: Dataset, facts: Sequence[Mapping[str, Any]], thumbs: np.ndarray, distance: int, difference: float
) -> list[Finding]:
    """Leaks and duplicates: for each cluster one image stays, and every other one in it looks the same as that one."""
    good = [k for k, fact in enumerate(facts) if not fact["error"]]
    codes = [np.frombuffer(bytes.fromhex(facts[k]["phash"]), np.uint8) for k in good]
    hashes = np.array([np.unpackbits(code)[:HASH_BITS] for code in codes], bool)
    pairs = same_pairs(hashes, thumbs[good], distance, difference)
    alike: dict[int, dict[int, int]] = defaultdict(dict)
    for one, other, bits in pairs:
        alike[good[one]][good[other]] = alike[good[other]][good[one]] = bits
    leaks = _leaks(dataset.samples, alike)
    gone = {finding.name for finding in leaks}
    found = leaks
    for split in SPLITS:
        members = [k for k, s in enumerate(dataset.samples) if s.split == split and k in alike and s.name not in gone]
        found += _duplicates(dataset.samples, facts, members, alike)
    return found


def _leaks(samples: Sequence[Sample], alike: Alike) -> list[Finding]:
    found = []
    for k, sample in enumerate(samples):
        if sample.split != "train":
            continue
        across = {j: bits for j, bits in alike.get(k, {}).items() if samples[j].split != "train"}
        if across:
            nearest = min(across, key=lambda j: (across[j], j))
            found.append(Finding(sample.name, "leak", _alike(across[nearest], samples[nearest]), samples[nearest].name))
    return found


def _duplicates(
    samples: Sequence[Sample], facts: Sequence[Mapping[str, Any]], members: Sequence[int], alike: Alike
) -> list[Finding]:
    """Every image that looks the same as one that stays. Those with most boxes stay; no chains, so no drift.

    An image that is labelled otherwise stays too: a defect can be too small for a thumbnail, or one label is wrong.
    """
    found = []
    stays: set[int] = set()
    for k in sorted(members, key=lambda k: (-len(samples[k].xyxy), k)):
        leaders = {j: bits for j, bits in alike[k].items() if j in stays}
        agreeing = {j: bits for j, bits in leaders.items() if same_labels(samples, facts, k, j)}
        nearest = min(agreeing or leaders or [k], key=lambda j: (leaders.get(j, 0), j))
        text = _alike(leaders.get(nearest, 0), samples[nearest])
        if not agreeing:
            stays.add(k)
        if leaders:
            kind = "duplicate" if agreeing else "labels_differ"
            found.append(Finding(samples[k].name, kind, text, samples[nearest].name))
    return found


def same_labels(samples: Sequence[Sample], facts: Sequence[Mapping[str, Any]], one: int, other: int) -> bool:
    """Whether two images have the same classes at the same places, relative to their sizes."""
    a, b = samples[one], samples[other]
    if sorted(a.class_id) != sorted(b.class_id):
        return False
    boxes = [s.xyxy / np.array([facts[k]["width"], facts[k]["height"]] * 2) for s, k in ((a, one), (b, other))]
    fits = (iou_matrix(boxes[0], boxes[1]) > SAME_BOX_IOU) & (a.class_id[:, None] == b.class_id)  # (N, N)
    return bool(fits.any(axis=0).all() and fits.any(axis=1).all())


def _alike(bits: int, other: Sample) -> str:
    return f"like {other.name} of group {other.group} ({bits} of {HASH_BITS} bits differ)"


# --- what to do about it


def set_aside(findings: Iterable[Finding], keep: Sequence[str]) -> dict[str, Finding]:
    """Image -> the first finding for which it is set aside."""
    aside: dict[str, Finding] = {}
    for finding in findings:
        if finding.kind in SET_ASIDE and finding.kind not in keep:
            aside.setdefault(finding.name, finding)
    return aside


def write_list(path: Path, aside: Mapping[str, Finding]) -> None:
    """Write the list that a person may edit."""
    head = "# One image a line, then its kind and why. Remove the lines of images to keep; add names of others.\n"
    lines = [f"{name}\t{finding.kind}\t{finding.text}\n" for name, finding in aside.items()]
    path.write_text(head + "".join(lines), encoding="utf-8")


def read_list(path: Path) -> list[str]:
    """The image names of an edited list.

    Raises:
        ToolError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError(f"--list {path}: cannot be read: {error}") from error
    return [line.split("\t")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def refuse_target(target: Path, source: Path) -> None:
    """Check that a new dataset does not go over an old one.

    Raises:
        ToolError: it would.
    """
    if target.resolve() == source.resolve():
        raise ToolError(f"--apply {target}: is the dataset itself; name a new folder")
    if (target / INDEX).exists():
        raise ToolError(f"--apply {target}: already holds a dataset; name a new folder or move that one away")


def apply(dataset: Dataset, target: Path, names: Iterable[str]) -> None:
    """Write a dataset folder without these images; its files are hard links, or copies on another disk.

    Raises:
        DataError: a name that is not in the dataset, or nothing useful would be left.
    """
    data = json.loads((dataset.root / INDEX).read_text(encoding="utf-8"))
    gone = set(names)
    unknown = gone - {record["file_name"] for record in data["images"]}
    if unknown:
        raise DataError(f"{dataset.root / INDEX}: does not list {min(unknown)}, which was to be set aside")
    data["images"] = [record for record in data["images"] if record["file_name"] not in gone]
    left = {record["id"] for record in data["images"]}
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in left]
    files = [r[key] for r in data["images"] for key in ("file_name", "template") if r.get(key)]
    for name in tqdm(dict.fromkeys(files), desc="link", mininterval=5, unit="file"):
        _link(dataset.root / name, target / name)
    partial = target / f"{INDEX}.partial"
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(target / INDEX)
    new = read_dataset(target)
    counts = {split: len(new.part(split)) for split in SPLITS}
    settings = {"data": dataset.root, "data_sha256": data_hash(new.samples)}
    write_record(target / "curate.json", "curate", settings, {"left_out": sorted(gone), "images": counts})
    remain = " and ".join(f"{count} for {split}" for split, count in counts.items())
    print(f"{target}: {len(gone)} images left out, {remain} remain")
    for note in class_balance(new)["notes"]:
        print(f"note: {note}")


def _link(source: Path, goal: Path) -> None:
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.unlink(missing_ok=True)
    try:
        os.link(source, goal)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, goal)


# --- balance, report


def class_balance(dataset: Dataset) -> dict[str, Any]:
    """Boxes, images and groups of each class in each split, and what is lopsided about them."""
    counts: dict[str, Any] = {}
    for name_id, name in enumerate(dataset.classes):
        counts[name] = {}
        for split in SPLITS:
            having = [s for s in dataset.samples if s.split == split and name_id in s.class_id]
            boxes = sum(int((s.class_id == name_id).sum()) for s in having)
            groups = len({s.group for s in having})
            counts[name][split] = {"boxes": boxes, "images": len(having), "groups": groups}
    return {"classes": counts, "notes": list(_balance_notes(counts))}


def _balance_notes(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Iterable[str]:
    for name, by_split in counts.items():
        for split, few in (("train", FEW_TRAINING_BOXES), ("validation", FEW_VALIDATION_BOXES)):
            boxes = by_split[split]["boxes"]
            if boxes < few:
                why = "to learn from" if split == "train" else "for a figure to be trusted"
                yield f"{name}: {boxes} boxes in {split} are few {why} (under {few})"
        if by_split["train"]["groups"] == 1:
            yield f"{name}: all its training boxes are in one group, so the detector may learn the group instead"
    boxes = {name: by_split["train"]["boxes"] for name, by_split in counts.items()}
    most, least = max(boxes, key=boxes.__getitem__), min(boxes, key=boxes.__getitem__)
    if boxes[most] > IMBALANCE * boxes[least]:
        yield f"{most} has {boxes[most]} training boxes and {least} {boxes[least]}: weigh or collect the rare ones"


def report(
    dataset: Dataset, findings: Sequence[Finding], aside: Mapping[str, Finding], balance: Mapping[str, Any]
) -> str:
    """What a person reads: loudest things first."""
    lines = [f"{dataset.root / INDEX}: {len(dataset.samples)} images, {len(dataset.classes)} classes"]
    by_kind: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    if by_kind["leak"]:
        count = len(by_kind["leak"])
        lines += [
            "",
            f"!!! LEAK: {count} training image{'s' if count > 1 else ''} look the same as images of validation. Every",
            "!!! figure measured on this split is too good. Set them aside, or put their groups on one side.",
        ]
    for split in SPLITS:
        part = [s for s in dataset.samples if s.split == split]
        clean, groups = sum(not len(s.xyxy) for s in part), len({s.group for s in part})
        lines.append(f"{split}: {len(part)} images in {groups} groups, {clean} without a defect")
    lines += ["", "boxes of each class (train, validation):"]
    width = max(map(len, balance["classes"]))
    for name, by_split in balance["classes"].items():
        lines.append(f"  {name:<{width}}  {by_split['train']['boxes']:>6} {by_split['validation']['boxes']:>6}")
    lines += [f"  note: {note}" for note in balance["notes"]]
    for kind, meaning in KINDS.items():
        lines += ["", *_kind_lines(kind, meaning, by_kind[kind])] if by_kind[kind] else []
    if not findings:
        lines += ["", "no image and no box looks wrong"]
    lines += ["", f"set aside: {len(aside)} of {len(dataset.samples)} images (set_aside.txt; nothing was deleted)"]
    return "\n".join(lines) + "\n"


def _kind_lines(kind: str, meaning: str, found: Sequence[Finding], most: int = 10) -> list[str]:
    images = len({finding.name for finding in found})
    action = "set aside" if kind in SET_ASIDE else "reported only"
    lines = [f"{kind}: {images} image{'s' if images > 1 else ''}, each {meaning} ({action})"]
    lines += [f"  {finding.name}: {finding.text}" for finding in found[:most]]
    return [*lines, f"  and {len(found) - most} more, in curate.json"] if len(found) > most else lines


# --- pictures


def draw_plots(dataset: Dataset, facts: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Class counts of each split, and the sizes of boxes as the detector sees them."""
    scales = np.array([input_scale(fact, dataset.spec) for fact in facts])
    with figure(out / "classes.png", f"{dataset.product}: boxes of each class", "", "boxes") as axes:
        places = np.arange(len(dataset.classes))
        for k, split in enumerate(SPLITS):
            kinds = Counter(int(c) for s in dataset.samples if s.split == split for c in s.class_id)
            bars = axes.bar(places + 0.4 * k - 0.2, [kinds[c] for c in places], 0.4, label=split)
            axes.bar_label(bars, fontsize=7)
        axes.set_xticks(places, dataset.classes, rotation=20 if len(places) > 4 else 0)
        axes.legend()
    with figure(out / "box_sizes.png", f"{dataset.product}: sizes of boxes at the input's scale", ncols=2) as axes:
        for kind, name in enumerate(dataset.classes):
            boxes = [s.xyxy[s.class_id == kind] * scale for s, scale in zip(dataset.samples, scales, strict=True)]
            sides = np.concatenate([b[:, 2:] - b[:, :2] for b in boxes])  # (N, 2)
            axes[0].plot(sides[:, 0], sides[:, 1], ".", markersize=3, alpha=0.5, label=name)
            axes[1].hist(np.sqrt(sides.prod(axis=1)), bins=30, histtype="step", label=name)
        axes[0].set(xlabel="width, px", ylabel="height, px", xscale="log", yscale="log")
        for axis in (axes[0].xaxis, axes[0].yaxis):
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        axes[1].set(xlabel="square root of the area, px", ylabel="boxes")
        axes[1].legend()


def draw_sheets(dataset: Dataset, findings: Sequence[Finding], folder: Path) -> None:
    """Contact sheets: cut-outs by class, whole images by group, and a set for each kind of finding."""
    jobs: list[tuple[str, list[Tile]]] = []
    for kind, name in enumerate(dataset.classes):
        boxes = [(s, int(k)) for s in dataset.samples for k in np.flatnonzero(s.class_id == kind)]
        tiles = [cut_out(s, k, dataset.classes) for s, k in evenly(boxes, CUTS_PER_CLASS)]
        jobs.append((f"class_{_plain(name)}", tiles))
    for group in sorted({s.group for s in dataset.samples}):
        members = [s for s in dataset.samples if s.group == group]
        tiles = [whole(s, dataset.classes) for s in evenly(members, IMAGES_PER_GROUP)]
        jobs.append((f"group_{members[0].split}_{_plain(group)}", tiles))
    by_name = {s.name: s for s in dataset.samples}
    for kind in KINDS:
        tiles = [tile for f in findings if f.kind == kind for tile in _finding_tiles(f, by_name, dataset)]
        if tiles:
            jobs.append((f"finding_{kind}", tiles[:TILES_PER_FINDING]))
    for stem, tiles in tqdm(jobs, desc="contact sheets", mininterval=5, unit="sheet"):
        write_sheets(tiles, folder, stem)


def _finding_tiles(finding: Finding, by_name: Mapping[str, Sample], dataset: Dataset) -> list[Tile]:
    """The box, or the image and beside it the one that it looks like."""
    sample = by_name.get(finding.name)
    if sample is None:
        path = dataset.root / finding.name
        return [Tile(path.name, lambda: read_image(path, 3))]
    if finding.box >= 0:
        return [cut_out(sample, finding.box, dataset.classes)]
    if not finding.other:
        return [whole(sample, dataset.classes)]
    pair = (sample, by_name[finding.other])
    return [whole(s, dataset.classes, f"{s.split[0].upper()} {Path(s.name).name}") for s in pair]  # T or V


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, spread over all of them.

    >>> evenly(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= count:
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _plain(name: str) -> str:
    """A name that can be a file's."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
