"""What can be wrong with the images and boxes of a dataset, found one kind at a time; `curate` reports it."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError
from tqdm import tqdm

from edge.boxes import Float, area, iou_matrix
from edge.preprocess import Image, InputSpec
from tools.dataset import INDEX, SPLITS, Dataset, Sample, read_image, sha256_file
from tools.errors import DataError
from tools.formats.raw import IMAGE_SUFFIXES, find_files
from tools.journal import Journal
from tools.look_alikes import HASH_BITS, THUMB_SIDE, perceptual_hash, same_pairs, thumbnail

BLANK_CONTRAST = 3.0  # standard deviation of the grey levels of an image that shows nothing
MOST_ENLARGED = 2.0  # an image that the input enlarges more than this shows too little
SMALLEST_BOX_PX = 4.0  # shorter side of a box at the input's scale; half a cell of the detector
DOUBLE_BOX_IOU = 0.85  # two boxes that overlap more label one thing twice
NESTED_SHARE = 0.9  # a box of which more lies within another of its class is part of that
SAME_BOX_IOU = 0.3  # boxes on two near duplicates that overlap more mean the same thing

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
    PillowImage.MAX_IMAGE_PIXELS = None  # line cameras make images that Pillow takes for an attack
    try:
        read_image(path)
        with PillowImage.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
    except UnidentifiedImageError:  # a kind that OpenCV knows and Pillow does not
        return ""
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
    if sorted(a.class_id) != sorted(b.class_id) or (a.known != b.known).any():
        return False
    boxes = [s.xyxy / np.array([facts[k]["width"], facts[k]["height"]] * 2) for s, k in ((a, one), (b, other))]
    fits = (iou_matrix(boxes[0], boxes[1]) > SAME_BOX_IOU) & (a.class_id[:, None] == b.class_id)  # (N, N)
    return bool(fits.any(axis=0).all() and fits.any(axis=1).all())


def _alike(bits: int, other: Sample) -> str:
    return f"like {other.name} of group {other.group} ({bits} of {HASH_BITS} bits differ)"
