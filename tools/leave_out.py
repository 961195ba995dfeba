"""Make a dataset folder in which one class never occurs, to find out what a detector does with what it never learned.

The pixels of the class go, not just its labels: its defects would else be taught as background. Where an image has a
template, the template replaces them; an image without one that shows the class is left out of the folder. A defect of
another class that the replaced patch touches would be cut in two, so it goes with it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from edge.preprocess import Image
from tools.augment import ERASE_MARGIN_PX, touches
from tools.dataset import INDEX, Dataset, Sample, data_hash, read_dataset, read_image, sha256_file
from tools.errors import ToolError
from tools.run_record import write_record


def without_class(sample: Sample, image: Image, template: Image, class_id: int) -> tuple[Image, np.ndarray]:
    """The image with every defect of `class_id` replaced by the template, and which boxes (N,) bool are left.

    Args:
        image, template: (H, W) or (H, W, 3) uint8, aligned to the pixel.
    """
    cleaned, left = image.copy(), sample.class_id != class_id
    height, width = image.shape[:2]
    pending = list(np.flatnonzero(~left))
    while pending:
        patch = sample.xyxy[pending.pop()] + np.array([-1, -1, 1, 1], np.float32) * ERASE_MARGIN_PX
        x1, y1 = (max(0, int(v)) for v in patch[:2])
        x2, y2 = min(width, int(np.ceil(patch[2]))), min(height, int(np.ceil(patch[3])))
        cleaned[y1:y2, x1:x2] = template[y1:y2, x1:x2]
        cut = [i for i in np.flatnonzero(left) if touches(patch, sample.xyxy[i : i + 1])]
        left[cut] = False
        pending += cut
    return cleaned, left


def write_without(data: Dataset, class_name: str, out: Path) -> dict[str, Any]:
    """Write the dataset folder without the class; returns what the run record says of it.

    Raises:
        ToolError: the class is unknown or the only one, `out` is in use, or no image would be left.
    """
    if class_name not in data.classes or len(data.classes) < 2:
        raise ToolError(f"--class-name {class_name}: expected one of several, the data has {', '.join(data.classes)}")
    if (out / INDEX).exists():
        raise ToolError(f"{out / INDEX}: exists; choose another --out or remove it")
    gone = data.classes.index(class_name)
    index = json.loads((data.root / INDEX).read_text(encoding="utf-8"))
    category = index["categories"][gone]["id"]
    annotations: dict[int, list[dict[str, Any]]] = {}
    for record in index["annotations"]:
        annotations.setdefault(record["image_id"], []).append(record)
    images, kept, dropped = [], [], []
    for sample, record in zip(tqdm(data.samples, "leave out", mininterval=5), index["images"], strict=True):
        own = annotations.get(record["id"], [])
        shows = bool((sample.class_id == gone).any())
        if shows and sample.template is None:
            dropped.append(sample.name)
            continue
        target = out / sample.name
        target.parent.mkdir(parents=True, exist_ok=True)
        left = np.ones(len(own), bool)
        if shows and sample.template is not None:
            channels = data.spec.channels
            image, template = read_image(sample.image, channels), read_image(sample.template, channels)
            cleaned, left = without_class(sample, image, template, gone)
            target = target.with_suffix(".png")  # without loss: no edge of its own around the patch
            cv2.imwrite(str(target), cleaned)
        else:
            shutil.copyfile(sample.image, target)
        if sample.template is not None:
            other = out / record["template"]
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sample.template, other)
        known = {"known": [k for k in record["known"] if k != category]} if record.get("known") is not None else {}
        name = str(target.relative_to(out))
        images.append({**record, "file_name": name, "sha256": sha256_file(target), **known})
        kept += [annotation for annotation, stays in zip(own, left, strict=True) if stays]
    if not images:
        raise ToolError(f"{data.root}: every image shows {class_name!r} and has no template: nothing would be left")
    index["categories"].pop(gone)
    index.update(images=images, annotations=kept)
    (out / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    written = read_dataset(out)
    return {
        "images": len(written.samples),
        "images_left_out": dropped,
        "defects": len(kept),
        "defects_before": sum(len(sample.xyxy) for sample in data.samples),
        "data_sha256": data_hash(written.samples),
    }


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    p = argparse.ArgumentParser(prog="python -m tools leave_out", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--class-name", required=True, help="the class that must not occur")
    p.add_argument("--out", type=Path, required=True, help="the dataset folder to write")
    args = p.parse_args(arguments)
    results = write_without(read_dataset(args.data), args.class_name, args.out)
    write_record(args.out / "leave_out.json", "leave_out", vars(args), results)
    kept, before = results["defects"], results["defects_before"]
    print(f"{args.out / INDEX}: {results['images']} images, {kept} of {before} defects")
