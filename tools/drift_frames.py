"""What a drift autoencoder learns and is judged on: a product's good frames, what is allowed to them, what is not.

Everything is done to the frame as the camera gave it, grey, before it is made small: that is the order on a line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from edge.boxes import Float
from edge.drift import reconstruct
from edge.drift.settings import Autoencoder as Input
from edge.preprocess import Image
from tools.dataset import Sample, read_image
from tools.errors import DataError
from tools.formats.raw import IMAGE_SUFFIXES, find_files
from tools.physical import corrupt

Rng = np.random.Generator

# What drift is: the corruption of `tools.physical` and its level.
DEGRADED = (
    *(("bright", level) for level in (1, 2)),
    *(("dark", level) for level in (1, 2)),
    *(("defocus", level) for level in (1, 2, 3)),
    *(("motion", level) for level in (1, 2, 3)),
    *(("occlusion", level) for level in (2, 3, 4)),
    *(("noise", level) for level in (3, 4)),
)
LIGHT_NOISE = ("noise", 1)  # what any sensor does on a good day


@dataclass(frozen=True)
class Allowed:
    """How a good part may lie under the camera.

    Attributes:
        degrees: turned by up to this, either way. shift: moved by up to this share of the frame's sides.
        quarter_turns: also turned by 90 degrees and mirrored; only where the frame is square.
    """

    degrees: float = 3.0
    shift: float = 0.03
    quarter_turns: bool = False


def frame_files(samples: Sequence[Sample]) -> list[Path]:
    """The files of the good frames among the samples.

    A template is good. So is an inspected image that has one: its defects are small beside what both share, and a line
    shows such parts all day. An image without a template counts if nothing is labelled on it.

    Raises:
        DataError: there are none.
    """
    files: list[Path] = []
    for sample in samples:
        if sample.template is not None:
            files += [sample.template, sample.image]
        elif not len(sample.xyxy):
            files.append(sample.image)
    if not files:
        raise DataError("no image is good: each has a label and none a template; add photos of good parts and import")
    return files


def files_below(folder: Path) -> list[Path]:
    """All images of a folder, as another product's frames.

    Raises:
        DataError: it holds none.
    """
    files = find_files(folder, IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def read_grey(files: Sequence[Path], what: str) -> list[Image]:
    """The frames (H, W) uint8."""
    return [read_image(file, 1) for file in tqdm(files, what, mininterval=5)]


def spread(count: int, most: int) -> list[int]:
    """Up to `most` places, evenly over `count`.

    >>> spread(10, 3), spread(2, 3)
    ([0, 4, 9], [0, 1])
    """
    return [int(i) for i in np.linspace(0, count - 1, min(count, most))]


def moved(image: Image, how: Allowed, rng: Rng) -> Image:
    """The frame with its part turned and shifted as allowed; beyond the border the scene goes on mirrored."""
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(-how.degrees, how.degrees)), 1.0)
    turn[:, 2] += rng.uniform(-how.shift, how.shift, 2) * (width, height)
    # The nearest pixel, not a mean of four: that would blur edges and take out noise, as if focus drifted.
    how_border = {"flags": cv2.INTER_NEAREST, "borderMode": cv2.BORDER_REFLECT_101}
    image = np.asarray(cv2.warpAffine(image, turn, (width, height), **how_border), np.uint8)
    if how.quarter_turns and width == height:
        kind = int(rng.integers(8))
        image = np.rot90(image[:, ::-1] if kind & 1 else image, kind >> 1)
    return np.ascontiguousarray(image)


Change = Callable[[Image, Rng], Image]


def conditions(how: Allowed) -> dict[str, dict[str, Change]]:
    """What happens to frames by its name, in two groups: `allowed` must stay quiet, `degraded` must be seen."""
    name, level = LIGHT_NOISE
    return {
        "allowed": {
            "light noise": lambda image, rng: corrupt(image, name, level, rng),
            "rotation and shift": lambda image, rng: moved(image, how, rng),
        },
        "degraded": {f"{kind} {at}": _corruption(kind, at) for kind, at in DEGRADED},
    }


def _corruption(kind: str, level: int) -> Change:
    return lambda image, rng: corrupt(image, kind, level, rng)


def pictures(frames: Sequence[Image], spec: Input, change: Change | None = None, seed: int = 0) -> Float:
    """What the autoencoder reads of the frames, or of what a change makes of them: (N, 1, H, W)."""
    rng = np.random.default_rng(seed)
    changed = (frame if change is None else change(frame, rng) for frame in frames)
    return np.concatenate([reconstruct.prepare(frame, spec) for frame in changed])
