"""The products on which the gate's classifier is trained and tested: photographed ones, and drawn ones beside them.

A product is a dataset folder (see `tools.dataset`), with a bundle whose detector says what a fault costs, or a plain
folder of photographs. Drawn products are boards, and dead leaves: overlapping shapes whose sizes follow a power law,
which have the statistics of edges of natural scenes (Lee, Mumford and Huang, Int. J. of Computer Vision 41, 2001) and
teach networks about sharpness without any photograph (Achddou, Gousseau and Ladjal, arXiv:2106.12346).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from edge.bundle import manifest as manifests
from edge.capture.board import DEFECTS, draw_board
from edge.preprocess import Image, to_channels
from tools.dataset import INDEX, Dataset, read_dataset, read_image
from tools.errors import DataError, ToolError
from tools.lens import smooth_field

Rng = np.random.Generator

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
LEAST_PHOTOGRAPHS = 20
DRAWN_SIDE = 640
THRESHOLDED = 0.3  # of the looks that are changed
KEPT = 64  # photographs kept in memory
SHAPES = 900  # of a picture of dead leaves
LARGEST_SIDE = 1600  # photographs are cut to it, so that a picture of a telephone does not take a minute


@dataclass(frozen=True)
class Product:
    """Frames of one product, all of them good.

    Attributes:
        name: what it is called in every figure. groups: of each frame, what a line would keep apart.
        dataset, bundle: where a detector tells what a fault costs; None where there is none.
    """

    name: str
    groups: tuple[str, ...]
    read: Callable[[int], Image]  # the frame of a number from 0 on, (H, W) grey or (H, W, 3) BGR
    dataset: Dataset | None = None
    bundle: Path | None = None

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def drawn(self) -> bool:
        """Whether no camera ever saw it."""
        return self.name.startswith("drawn ")


def open_product(folder: Path, bundles: Sequence[Path]) -> Product:
    """The product of a dataset folder or of a plain folder of photographs, named by its first folder.

    Raises:
        DataError: neither; says what is missing.
    """
    if (folder / INDEX).is_file():
        data = read_dataset(folder)
        samples, channels = data.samples, data.spec.channels
        mine = [bundle for bundle in bundles if manifests.read(bundle).product == data.product]
        return Product(
            data.product,
            tuple(sample.group for sample in samples),
            lambda i: read_image(samples[i].image, channels),
            data,
            mine[0] if mine else None,
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTOGRAPHS) if folder.is_dir() else []
    if len(files) < LEAST_PHOTOGRAPHS:
        raise DataError(
            f"{folder}: {len(files)} photographs; a product is a dataset folder, or a folder of at least "
            f"{LEAST_PHOTOGRAPHS} photographs ({', '.join(PHOTOGRAPHS)})"
        )
    read = lru_cache(KEPT)(lambda i: _cut(read_image(files[i], 3)))
    return Product(folder.name, tuple(p.name for p in files), read)


def open_products(folders: Sequence[Path], bundles: Sequence[Path]) -> list[Product]:
    """All products of the folders.

    Raises:
        DataError, ToolError: a folder is none, or two have the same name.
    """
    products = [open_product(folder, bundles) for folder in folders]
    names = [product.name for product in products]
    for name in names:
        if names.count(name) > 1:
            raise ToolError(f"two products are called {name!r}: give one of their folders another name")
    return products


def _cut(image: Image) -> Image:
    height, width = image.shape[:2]
    top, left = max(0, height - LARGEST_SIDE) // 2, max(0, width - LARGEST_SIDE) // 2
    return image[top : top + LARGEST_SIDE, left : left + LARGEST_SIDE]


def drawn_products(seed: int, frames: int) -> list[Product]:
    """Boards and dead leaves, `frames` of each; the same seed draws the same."""
    groups = tuple(str(i) for i in range(frames))
    return [
        Product("drawn boards", groups, lambda i: draw_wired(np.random.default_rng([seed, 1, i]))),
        Product("drawn leaves", groups, lambda i: draw_leaves(np.random.default_rng([seed, 2, i]))),
    ]


def draw_wired(rng: Rng) -> Image:
    """A board with some defects, (640, 640) of 0 and 255."""
    defects = rng.choice(DEFECTS, int(rng.integers(0, 6))).tolist()
    return draw_board(rng, DRAWN_SIDE, DRAWN_SIDE, defects)[0]


def draw_leaves(rng: Rng, side: int = DRAWN_SIDE) -> Image:
    """Overlapping discs, plates, strokes and words on a shaded ground, (side, side) uint8, edges sharp to a pixel.

    >>> draw_leaves(np.random.default_rng(0), 96).shape
    (96, 96)
    """
    picture = np.full((side, side), int(rng.integers(20, 236)), np.uint8)
    low, high = sorted(rng.uniform(0, 256, 2))
    if high - low < 60:
        low, high = max(0.0, low - 60), min(256.0, high + 60)
    radii = 2.0 * (1 - rng.random(int(rng.integers(SHAPES // 8, SHAPES)))) ** -0.8  # a power law of exponent -2.25
    for radius in np.minimum(radii, side / 5):
        _leaf(picture, float(radius), int(rng.uniform(low, high)), rng)
    shade = 1 + np.float32(rng.uniform(0, 0.2)) * smooth_field(picture.shape, 3, rng)
    if rng.random() < 0.5:  # a grain of the surface, from fine to coarse
        grain = cv2.GaussianBlur(rng.standard_normal(picture.shape).astype(np.float32), (0, 0), rng.uniform(0.5, 1.5))
        shade += np.float32(rng.uniform(0.01, 0.06)) * grain / grain.std()
    return np.clip(picture * shade, 0, 255).astype(np.uint8)


def _leaf(picture: Image, radius: float, grey: int, rng: Rng) -> None:
    x, y = (float(v) for v in rng.uniform(0, picture.shape[0], 2))
    kind, angle = int(rng.choice(5, p=(0.4, 0.3, 0.15, 0.1, 0.05))), rng.uniform(0, 180)
    centre = (int(x * 16), int(y * 16))
    if kind == 0:
        axes = (int(radius * 16), int(radius * 16 * rng.uniform(0.3, 1)))
        cv2.ellipse(picture, centre, axes, angle, 0, 360, (grey,), -1, cv2.LINE_AA, 4)
    elif kind == 1:
        box = cv2.boxPoints(((x, y), (2 * radius, 2 * radius * rng.uniform(0.2, 1)), angle))
        cv2.fillPoly(picture, [np.rint(box * 16).astype(np.int32)], (grey,), cv2.LINE_AA, 4)
    elif kind == 2:
        reach = 6 * radius
        end = (int((x + reach * math.cos(angle)) * 16), int((y + reach * math.sin(angle)) * 16))
        cv2.line(picture, centre, end, (grey,), max(1, int(radius / 2)), cv2.LINE_AA, 4)
    elif kind == 3:
        cv2.circle(picture, centre, int(radius * 16), (grey,), max(1, int(radius / 4)), cv2.LINE_AA, 4)
    else:
        word = "".join(chr(c) for c in rng.integers(48, 91, 5))
        size = float(np.clip(radius / 12, 0.4, 2.5))
        cv2.putText(picture, word, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, size, (grey,), 1 + int(2 * size), 16)


# --- Looks: what a product of another surface or under another lamp would be -----------------------------------------


def another_look(image: Image, rng: Rng) -> Image:
    """The frame as that of a darker, paler, inverted, thresholded, shinier or coloured product of the same shape.

    What it shows stays as sharp as it was, but for a thresholded one, whose edges become sharper.
    """
    if rng.random() < THRESHOLDED:
        image = _thresholded(image, rng)
    table = np.arange(256, dtype=np.float32) / 255
    if rng.random() < 0.35:
        table = 1 - table
    table = table ** np.float32(math.exp(rng.uniform(-0.8, 0.8)))
    low = rng.uniform(0, 0.35)
    table = np.float32(low) + np.float32(rng.uniform(0.25, 1 - low)) * table
    changed = np.asarray(cv2.LUT(image, np.rint(255 * np.clip(table, 0, 1)).astype(np.uint8)), np.uint8)
    if rng.random() < 0.3:
        changed = _shiny(changed, rng)
    if changed.ndim == 2 and rng.random() < 0.25:
        tint = rng.uniform(0.5, 1, 3)
        changed = np.dstack([np.rint(changed * share).astype(np.uint8) for share in tint])
    return changed


def _thresholded(image: Image, rng: Rng) -> Image:
    """Black and white, as a line scan of etched copper: light where it is lighter than its surroundings or a limit."""
    grey = cv2.GaussianBlur(to_channels(image, 1), (3, 3), 0.8)
    if rng.random() < 0.5:
        around = cv2.blur(grey, (61, 61)).astype(np.int16) - int(rng.integers(-6, 7))
        return np.where(grey > around, 255, 0).astype(np.uint8)
    return np.where(grey > np.quantile(grey[::4, ::4], rng.uniform(0.25, 0.75)), 255, 0).astype(np.uint8)


def _shiny(image: Image, rng: Rng) -> Image:
    """Broad highlights and shades, as metal and lacquer have them."""
    shade = np.exp(np.float32(0.45) * smooth_field(image.shape[:2], int(rng.integers(2, 5)), rng))
    shade = shade if image.ndim == 2 else shade[..., None]
    return np.clip(image * shade, 0, 255).astype(np.uint8)


def another_size(image: Image, share: float) -> Image:
    """The frame taken from further away: `share` of its size, in (0, 1]."""
    if share >= 0.99:
        return image
    return np.asarray(cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA), np.uint8)
