"""How much of each fault a product stands: measured by what its own detector still finds, not by taste.

The defects of labelled frames are looked for again under each fault at growing levels. From the level on at which the
detector loses a tenth of what it finds on the same frames taken well, a frame is bad; up to the level at which it loses
less than three in a hundred it is good; what lies between is neither. A defect counts as found when a box of its class
overlaps it that is sure enough to change the verdict, be it to REVIEW.

A product without a detector gets planted specks instead, of the sizes of real defects: one counts as found while half
of its contrast against its surroundings is left. Where a product has both, the record shows how far they agree.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from edge import recipe as recipes
from edge.bundle import manifest as manifests
from edge.detect import Detector
from edge.parity import assign
from edge.preprocess import Image, to_channels
from tools.dataset import read_image
from tools.errors import ToolError
from tools.evaluate import opened, settings_of, thresholds_of
from tools.gate_faults import LADDERS, MOST, spoil
from tools.gate_products import Product
from tools.metrics import IOU_DEEPPCB

Rng = np.random.Generator

HARMLESS, HARMFUL = 0.03, 0.10  # of the recall on the same frames taken well
LEAST_DEFECTS = 25

PLANTS, PLANTED_FRAMES = 24, 12  # specks a frame, and frames
SPECK_PX = (2.0, 6.0)  # radius: defects of bare boards are 8 to 16 px across, pits more
LEFT = 0.5  # of a speck's contrast, with which it still counts as found

# The number of defects found on frame i under a fault at a level.
Finder = Callable[[int, str, float], int]


@dataclass(frozen=True)
class Limits:
    """What a product stands of one fault, in the units of `tools.gate_faults.LADDERS`.

    Attributes:
        harmless: up to here a frame is good. harmful: from here on it is bad.
        curve: level and share of the recall that is lost there.
    """

    harmless: float
    harmful: float
    curve: tuple[tuple[float, float], ...]


def limits_of(levels: Sequence[float], lost: Sequence[float], most: float) -> Limits:
    """Limits from the losses at growing levels; where no level reaches a loss, its limit is `most`.

    A loss that falls again is chance: each level counts as losing at least what milder ones did.

    >>> found = limits_of((1.0, 2.0, 4.0), (0.0, 0.06, 0.14), 9.0)
    >>> found.harmless, found.harmful
    (1.5, 3.0)
    """
    xs = np.array([0.0, *levels])
    ys = np.maximum.accumulate(np.array([0.0, *lost]))

    def crossing(loss: float) -> float:
        over = np.flatnonzero(ys >= loss)
        if not len(over):
            return most
        i = int(over[0])
        return float(xs[i - 1] + (xs[i] - xs[i - 1]) * (loss - ys[i - 1]) / (ys[i] - ys[i - 1]))

    curve = tuple((float(x), round(float(y), 4)) for x, y in zip(levels, lost, strict=True))
    return Limits(round(crossing(HARMLESS), 3), round(crossing(HARMFUL), 3), curve)


def climb(find: Finder, frames: int, causes: Sequence[str] = tuple(LADDERS), name: str = "") -> dict[str, Limits]:
    """Limits of each cause, by what is found on `frames` frames.

    Raises:
        ToolError: too few defects are found on good frames to tell a loss of a tenth.
    """
    whole = sum(find(i, "motion", 0.0) for i in range(frames))
    if whole < LEAST_DEFECTS:
        raise ToolError(f"{name}: only {whole} defects are found on {frames} frames: give more labelled frames")
    result = {}
    for cause in (bar := tqdm(causes, f"limits {name}", mininterval=5)):
        levels = LADDERS[cause]

        def lost(k: int, cause: str = cause, levels: Sequence[float] = levels) -> float:
            bar.set_postfix_str(f"{cause} {levels[k]:g}")
            return 1 - sum(find(i, cause, levels[k]) for i in range(frames)) / whole

        curve = bisected(lost, len(levels), (HARMFUL, HARMLESS))
        result[cause] = limits_of([levels[k] for k in curve], list(curve.values()), MOST[cause])
    return result


def bisected(lost: Callable[[int], float], count: int, losses: Sequence[float]) -> dict[int, float]:
    """What is lost at the places, of `count`, around which growing losses are crossed; measured where it must be.

    >>> asked = []
    >>> bisected(lambda k: (asked.append(k), k / 10)[1], 9, (0.55, 0.25)), asked
    ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.6}, [4, 6, 5, 1, 2, 3])
    """
    measured: dict[int, float] = {}
    for loss in losses:
        low, high = -1, count  # below the loss, and not
        while high - low > 1:
            k = (low + high) // 2
            if k not in measured:
                measured[k] = lost(k)
            low, high = (k, high) if measured[k] < loss else (low, k)
    return dict(sorted(measured.items()))


def _chance(seed: int, i: int) -> Rng:
    """The same directions and places for a frame at every level, so that levels differ by the level alone."""
    return np.random.default_rng([seed, i])


def by_detector(product: Product, frames: int, seed: int) -> dict[str, Limits]:
    """Limits by what the detector of the product's bundle finds on its labelled validation frames."""
    data, bundle = product.dataset, product.bundle
    if data is None or bundle is None:
        raise ToolError(f"{product.name} has no detector")
    labelled = [sample for sample in data.part("validation") if len(sample.xyxy)]
    chosen = [labelled[i] for i in np.linspace(0, len(labelled) - 1, min(frames, len(labelled))).astype(int)]
    recipe = recipes.load(bundle / "recipe.toml", data.classes).detect
    least = np.minimum(thresholds_of(recipe, data.classes), recipe.review)  # (classes,)
    with opened(shipped(bundle), data.spec, data.classes) as predictor:
        detector = Detector(predictor, data.spec, settings_of(recipe))

        def find(i: int, cause: str, level: float) -> int:
            image = read_image(chosen[i].image, data.spec.channels)
            found = detector.detect(spoil(image, cause, level, _chance(seed, i)))
            taken = assign(found, chosen[i].xyxy, chosen[i].class_id, IOU_DEEPPCB)
            return int(((taken >= 0) & (found.confidence >= least[found.class_id])).sum())

        return climb(find, len(chosen), name=product.name)


def shipped(bundle: Path) -> Path:
    """The bundle's detector as this machine would run it: INT8 where it has that, else ONNX.

    Raises:
        ToolError: it has neither.
    """
    artifacts = manifests.read(bundle).artifacts
    for precision, arch in (("int8", platform.machine()), ("fp32", "any")):
        for artifact in artifacts:
            if (artifact.precision, artifact.arch) == (precision, arch):
                return bundle / artifact.file
    raise ToolError(f"{bundle}: has no detector for this machine ({platform.machine()})")


def by_specks(product: Product, seed: int) -> dict[str, Limits]:
    """Limits by the planted specks whose contrast is left."""
    chosen = np.linspace(0, len(product) - 1, min(PLANTED_FRAMES, len(product))).astype(int)

    def find(i: int, cause: str, level: float) -> int:
        image = to_channels(product.read(int(chosen[i])), 1)
        planted, specks = plant(image, _chance(seed + 1, i))
        clean = spoil(image, cause, level, _chance(seed, i))
        spoilt = spoil(planted, cause, level, _chance(seed, i))
        whole = contrasts(planted, specks) - contrasts(image, specks)
        left = contrasts(spoilt, specks) - contrasts(clean, specks)
        return int((left * np.sign(whole) >= LEFT * np.abs(whole)).sum())

    return climb(find, len(chosen), name=f"{product.name} by specks")


def plant(image: Image, rng: Rng) -> tuple[Image, np.ndarray]:
    """The grey image with specks, and their (N, 3) centres x, y and radii in pixels."""
    planted = image.copy()
    height, width = image.shape
    radii = rng.uniform(*SPECK_PX, PLANTS)
    xs, ys = rng.uniform(16, width - 16, PLANTS), rng.uniform(16, height - 16, PLANTS)
    for x, y, radius in zip(xs, ys, radii, strict=True):
        here = int(image[int(y), int(x)])
        grey = here + (1 if here < 128 else -1) * int(rng.uniform(90, 200))
        at, size = (int(x * 16), int(y * 16)), int(radius * 16)
        cv2.circle(planted, at, size, (min(255, max(0, grey)),), -1, cv2.LINE_AA, 4)
    return planted, np.stack([xs, ys, radii], axis=1)


def contrasts(image: Image, specks: np.ndarray) -> np.ndarray:
    """Mean of each speck's disc minus mean of the ring around it, (N,) grey levels."""
    found = []
    for x, y, radius in specks:
        reach = math.ceil(2.5 * radius)
        x1, y1 = max(0, int(x) - reach), max(0, int(y) - reach)
        patch = image[y1 : int(y) + reach + 1, x1 : int(x) + reach + 1].astype(np.float32)
        rows, columns = np.ogrid[y1 : y1 + patch.shape[0], x1 : x1 + patch.shape[1]]
        away = np.hypot(columns - x, rows - y) / radius
        found.append(patch[away <= 1].mean() - patch[(away > 1.5) & (away <= 2.5)].mean())
    return np.array(found)


def as_record(limits: dict[str, Limits]) -> dict[str, Any]:
    """For a journal or a run record; `from_record` reads it back."""
    return {cause: {"harmless": x.harmless, "harmful": x.harmful, "curve": x.curve} for cause, x in limits.items()}


def from_record(record: dict[str, Any]) -> dict[str, Limits]:
    """Limits as `as_record` wrote them."""
    return {
        cause: Limits(x["harmless"], x["harmful"], tuple((float(a), float(b)) for a, b in x["curve"]))
        for cause, x in record.items()
    }
