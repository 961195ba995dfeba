"""Find what spoils a dataset: broken, tiny, near-duplicate and unlabelled images, leaks, doubtful boxes, rare classes.

    python -m tools curate --data DATASET --out FOLDER                       # look, touch nothing
    python -m tools curate --data DATASET --out FOLDER --apply NEW_DATASET   # and write a dataset without those

FOLDER gets report.txt, curate.json, set_aside.txt (an image a line: edit it and pass it with --list), plots, and
contact sheets by class, by group and by finding. Nothing is ever deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogFormatter
from tqdm import tqdm

from tools.contact_sheet import Tile, cut_out, whole, write_sheets
from tools.dataset import INDEX, SPLITS, Dataset, Sample, data_hash, read_dataset, read_image
from tools.errors import DataError, ToolError
from tools.findings import (
    KINDS,
    SET_ASIDE,
    Finding,
    examine,
    findings_of_files,
    findings_of_labels,
    input_scale,
    look_alikes,
    unlisted_files,
)
from tools.look_alikes import BLOCK_DIFFERENCE, HASH_BITS, HASH_DISTANCE
from tools.plots import figure
from tools.run_record import write_record

FEW_TRAINING_BOXES, FEW_VALIDATION_BOXES = 50, 20
IMBALANCE = 10.0  # the most frequent class has this many times the boxes of the rarest

CUTS_PER_CLASS = 72  # shown on the sheets, evenly over all
IMAGES_PER_GROUP = 36
TILES_PER_FINDING = 108

def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m tools curate", description=__doc__.split("\n")[0])
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
    if args.list is not None and args.apply is None:
        raise ToolError("--list goes with --apply NEW_DATASET; alone it would do nothing")
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
