"""Contact sheets: many small pictures with their boxes on one page, for a person to look over.

Whole images show what a group looks like and where its defects lie; cut-outs, enlarged around each box, show whether
its label is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image
from tools.dataset import Sample, read_image
from tools.errors import DataError

COLUMNS, ROWS = 6, 6
TILE_PX = 240
TITLE_PX = 16
MARGIN_PX = 4
SMALLEST_BOX_PX = 9  # a box is never drawn smaller: it must be seen
CONTEXT = 2.5  # a cut-out shows this many times the box
SMALLEST_CUT_PX = 40

PAGE_COLOUR = (40, 40, 40)
TEXT_COLOUR = (230, 230, 230)
# BGR, told apart by colour-blind people too (Okabe and Ito 2008, "Color universal design").
PALETTE = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet. `read` gives (H, W, 3) BGR uint8, or raises DataError: then the tile says why."""

    title: str
    read: Callable[[], Image]
    xyxy: Float = field(default_factory=lambda: np.zeros((0, 4), np.float32))  # (N, 4) pixels of the picture
    names: Sequence[str] = ()  # (N,) written at the boxes
    class_id: Sequence[int] = ()  # (N,) choose the colours


def whole(sample: Sample, classes: Sequence[str], title: str = "") -> Tile:
    """The whole image of a sample with its boxes; the title is its file name unless given."""
    names = [classes[k] for k in sample.class_id]
    text = title or Path(sample.name).name
    return Tile(text, lambda: read_image(sample.image, 3), sample.xyxy, names, [int(k) for k in sample.class_id])


def cut_out(sample: Sample, box: int, classes: Sequence[str]) -> Tile:
    """The surroundings of one of the sample's boxes, enlarged; all boxes that reach into it are drawn."""
    x1, y1, x2, y2 = cut_window(sample.xyxy[box])
    names = [classes[k] if k_box == box else "" for k_box, k in enumerate(sample.class_id)]
    moved = sample.xyxy - np.array([x1, y1, x1, y1], np.float32)
    side = x2 - x1

    def read() -> Image:
        image = read_image(sample.image, 3)
        height, width = image.shape[:2]
        canvas = np.full((side, side, 3), PAGE_COLOUR, np.uint8)
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        canvas[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
        return canvas

    return Tile(Path(sample.name).name, read, moved, names, [int(k) for k in sample.class_id])


def cut_window(box: Float) -> tuple[int, int, int, int]:
    """The square (x1, y1, x2, y2) in whole pixels that shows a box (4,) with its surroundings; may leave the image.

    >>> cut_window(np.array([100, 100, 140, 120], np.float32))
    (70, 60, 170, 160)
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(SMALLEST_CUT_PX, math.ceil(CONTEXT * max(x2 - x1, y2 - y1)))
    left, top = round((x1 + x2 - side) / 2), round((y1 + y2 - side) / 2)
    return left, top, left + side, top + side


def write_sheets(tiles: Sequence[Tile], folder: Path, stem: str) -> list[Path]:
    """Write the tiles as pages `stem_1.png`, `stem_2.png`, ... and return them; older ones of the stem are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{stem}_*.png"):
        if old.stem.removeprefix(f"{stem}_").isdigit():
            old.unlink()
    pages = []
    for number, start in enumerate(range(0, len(tiles), COLUMNS * ROWS), 1):
        path = folder / f"{stem}_{number}.png"
        cv2.imwrite(str(path), page(tiles[start : start + COLUMNS * ROWS]))
        pages.append(path)
    return pages


def page(tiles: Iterable[Tile]) -> Image:
    """One page, (H, W, 3) BGR: rows of tiles, each row as high as its highest tile."""
    pictures = [picture(tile) for tile in tiles]
    rows = [pictures[k : k + COLUMNS] for k in range(0, len(pictures), COLUMNS)]
    width = MARGIN_PX + min(len(pictures), COLUMNS) * (TILE_PX + MARGIN_PX)
    heights = [max(p.shape[0] for p in row) for row in rows]
    canvas = np.full((MARGIN_PX + sum(h + MARGIN_PX for h in heights), width, 3), PAGE_COLOUR, np.uint8)
    top = MARGIN_PX
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = MARGIN_PX + column * (TILE_PX + MARGIN_PX)
            canvas[top : top + tile.shape[0], left : left + TILE_PX] = tile
        top += height + MARGIN_PX
    return canvas


def picture(tile: Tile) -> Image:
    """One tile, (H, TILE_PX, 3) BGR: the image scaled to fit, its boxes, the title below."""
    try:
        image = tile.read()
    except DataError:
        image = np.full((TILE_PX // 2, TILE_PX, 3), PAGE_COLOUR, np.uint8)
        _write(image, "cannot be read", (8, TILE_PX // 4), TEXT_COLOUR)
        return _framed(image, tile.title)
    height, width = image.shape[:2]
    scale = TILE_PX / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    for box, name, kind in zip(tile.xyxy, tile.names, tile.class_id, strict=True):
        _draw_box(small, box * scale, name, PALETTE[kind % len(PALETTE)])
    return _framed(np.asarray(small, np.uint8), tile.title)


def _framed(image: Image, title: str) -> Image:
    height, width = image.shape[:2]
    canvas = np.full((height + TITLE_PX, TILE_PX, 3), PAGE_COLOUR, np.uint8)
    left = (TILE_PX - width) // 2
    canvas[:height, left : left + width] = image
    most = TILE_PX // 7  # letters that fit; the end of a file name tells more than its beginning
    _write(canvas, title if len(title) <= most else "..." + title[3 - most :], (2, height + 12), TEXT_COLOUR)
    return canvas


def _draw_box(image: Image, box: Float, name: str, colour: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = (float(v) for v in box)
    grow_x, grow_y = (max(0.0, SMALLEST_BOX_PX - side) / 2 for side in (x2 - x1, y2 - y1))
    corner = (round(x1 - grow_x), round(y1 - grow_y))
    cv2.rectangle(image, corner, (round(x2 + grow_x), round(y2 + grow_y)), colour, 1)
    if name:
        inside = corner[1] < 12
        _write(image, name, (max(0, corner[0]), round(y2 + grow_y) + 10 if inside else corner[1] - 3), colour)


def _write(image: Image, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts have no other letters
    for thickness, ink in ((3, (0, 0, 0)), (1, colour)):
        cv2.putText(image, plain, at, cv2.FONT_HERSHEY_SIMPLEX, 0.34, ink, thickness, cv2.LINE_AA)
