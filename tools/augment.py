"""Training crops: template erasing, flips and rotations, scale jitter, light image noise.

Where a template is aligned to the pixel, a defect can be taken out of the inspected image by copying the template over
it. That gives free variety (the same part with other subsets of its defects) and true negatives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import PAD_VALUE, Image
from tools.objective import Truth

ERASE_MARGIN_PX = 6  # the copied patch is larger than the label, which often sits tight on the defect


@dataclass(frozen=True)
class Board:
    """One sample in memory: images (H, W) or (H, W, 3) uint8, boxes (N, 4) in pixels, class ids (N,).

    `scale` is input pixels a pixel of the image when the whole image is letterboxed: crops keep near to it.
    """

    test: Image
    template: Image | None
    xyxy: Float
    class_id: np.ndarray
    known: np.ndarray  # (classes,) bool
    scale: float = 1.0


@dataclass(frozen=True)
class AugmentConfig:
    """How strongly crops vary; probabilities in [0, 1]. Scales are relative to the scale of serving."""

    erase: float = 0.15  # a box becomes template
    negative: float = 0.06  # the whole image becomes template
    scale_low: float = 0.65
    scale_high: float = 1.9
    visible: float = 0.7  # a box cut by the crop keeps its label if this share of it remains
    rough: float = 0.5  # binarized again with ragged edges; only for binary images
    blur: float = 0.2
    noise: float = 0.3
    aimed: float = 0.8  # the crop is placed so that it holds some box, where the board has one
    contrast: float = 0.4


def touches(box: Float, others: Float) -> bool:
    """Whether `box` (4,) overlaps any of `others` (N, 4) by more than nothing."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    return bool(np.any(np.all(high > low, axis=1)))


def erase(board: Board, chosen: np.ndarray) -> Board:
    """The board with the `chosen` boxes (N,) bool taken out and their labels dropped.

    Template replaces them, or plain grey where there is none. A box whose enlarged patch would cut into another label
    stays as it is.
    """
    if not chosen.any():
        return board
    image = board.test.copy()
    height, width = image.shape[:2]
    keep = np.ones(len(board.xyxy), bool)
    for i in np.flatnonzero(chosen):
        patch = board.xyxy[i] + np.array([-1, -1, 1, 1], np.float32) * ERASE_MARGIN_PX
        if touches(patch, board.xyxy[np.arange(len(keep)) != i]):
            continue
        x1, y1 = (max(0, int(v)) for v in patch[:2])
        x2, y2 = min(width, int(patch[2])), min(height, int(patch[3]))
        image[y1:y2, x1:x2] = PAD_VALUE if board.template is None else board.template[y1:y2, x1:x2]
        keep[i] = False
    return replace(board, test=image, xyxy=board.xyxy[keep], class_id=board.class_id[keep])


def dihedral(image: Image, xyxy: Float, kind: int) -> tuple[Image, Float]:
    """One of the eight symmetries of the square, `kind` 0..7: bit 0 mirrors, the rest turns by 90 degrees.

    >>> dihedral(np.zeros((4, 4), np.uint8), np.array([[0, 1, 2, 4]], np.float32), 1)[1].tolist()
    [[2.0, 1.0, 4.0, 4.0]]
    """
    height, width = image.shape[:2]
    x1, y1, x2, y2 = xyxy.T
    if kind & 1:
        image, x1, x2 = image[:, ::-1], width - x2, width - x1
    for _ in range(kind >> 1):  # counter-clockwise: (x, y) -> (y, width - x)
        image, (x1, y1, x2, y2) = np.rot90(image), (y1, width - x2, y2, width - x1)
        height, width = width, height
    return np.ascontiguousarray(image), np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)


def visible_share(xyxy: Float, window: Float) -> Float:
    """How much of each box's area (N,) lies in the window (4,)."""
    low = np.maximum(xyxy[:, :2], window[:2])
    high = np.minimum(xyxy[:, 2:], window[2:])
    inside = np.prod(np.maximum(high - low, 0), axis=1)
    return np.asarray(inside / np.maximum(np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1), 1e-6), np.float32)


def cut(image: Image, window: tuple[int, int, int, int], size: tuple[int, int]) -> Image:
    """The `window` (x, y, width, height; may reach outside, which is grey) resized to `size` (width, height)."""
    x, y, wide, high = window
    height, width = image.shape[:2]
    x1, y1, x2, y2 = max(0, x), max(0, y), min(width, x + wide), min(height, y + high)
    patch = image[y1:y2, x1:x2]
    if (x2 - x1, y2 - y1) != (wide, high):
        canvas = np.full((high, wide, *image.shape[2:]), PAD_VALUE, np.uint8)
        canvas[y1 - y : y2 - y, x1 - x : x2 - x] = patch
        patch = canvas
    if (wide, high) == size:
        return np.asarray(patch)
    how = cv2.INTER_AREA if size[0] < wide else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(patch, size, interpolation=how), np.uint8)


def roughen(image: Image, rng: np.random.Generator) -> Image:
    """Black and white again, edges ragged by up to a pixel or two: what binarizing a scan does."""
    grain = np.empty((image.shape[0], image.shape[1]), np.float32)
    cv2.setRNGSeed(int(rng.integers(1 << 30)))
    cv2.randn(grain, 0.0, float(rng.uniform(0, 160)))
    grain = cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.7, 1.5)))
    soft = cv2.GaussianBlur(image, (0, 0), 0.8).astype(np.float32)
    return ((soft + np.clip(grain, -110, 110) > rng.uniform(100, 155)) * np.uint8(255)).astype(np.uint8)


def photometric(image: Image, rng: np.random.Generator, config: AugmentConfig) -> Image:
    """Ragged edges, light blur, contrast, brightness and noise: what scanning and a real camera do to a board."""
    if rng.random() < config.rough:
        image = roughen(image, rng)
    if rng.random() < config.blur:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.3))), np.uint8)
    changed = rng.random() < config.contrast
    noisy = rng.random() < config.noise
    if not (changed or noisy):
        return image
    values = image.astype(np.float32)
    if changed:
        values = values * rng.uniform(0.65, 1.0) + rng.uniform(0, 50)
    if noisy:
        grain = np.empty(image.shape, np.float32)
        cv2.setRNGSeed(int(rng.integers(1 << 30)))
        cv2.randn(grain, 0.0, float(rng.uniform(2, 10)))
        values += grain
    return np.clip(values, 0, 255).astype(np.uint8)


def _window(
    board: Board, size: tuple[int, int], rng: np.random.Generator, config: AugmentConfig
) -> tuple[int, int, int, int]:
    height, width = board.test.shape[:2]
    jitter = np.exp(rng.uniform(np.log(config.scale_low), np.log(config.scale_high)))
    sides = np.maximum(8, np.round(np.array(size) / (board.scale * jitter))).astype(int)  # (2,) width, height
    room = np.array([width, height]) - sides
    low, high = np.minimum(0, room), np.maximum(0, room)
    if len(board.xyxy) and rng.random() < config.aimed:
        box = board.xyxy[rng.integers(len(board.xyxy))]
        low = np.clip(np.ceil(box[2:] - sides), low, high)
        high = np.maximum(low, np.clip(np.floor(box[:2]), low, high))
    x, y = rng.integers(low.astype(int), high.astype(int) + 1)
    return int(x), int(y), int(sides[0]), int(sides[1])


def training_crop(
    board: Board, size: tuple[int, int], rng: np.random.Generator, config: AugmentConfig
) -> tuple[Image, Truth]:
    """One random training example of a board: an image of `size` (width, height) and its labels.

    A box that the crop cuts below the `visible` share is taken out where that is possible, so that the remainder of a
    defect is not taught as background. `photometric` comes later, after synthetic marks.
    """
    if board.template is not None and rng.random() < config.negative:
        board = replace(board, test=board.template, xyxy=board.xyxy[:0], class_id=board.class_id[:0])
    x, y, wide, high = _window(board, size, rng, config)
    inside = np.array([x, y, x + wide, y + high], np.float32)
    share = visible_share(board.xyxy, inside)
    out = (share > 0) & (share < config.visible)
    if board.template is not None:
        out |= rng.random(len(board.xyxy)) < config.erase
    board = erase(board, out)
    kept = visible_share(board.xyxy, inside) >= config.visible
    stretch = np.array([size[0] / wide, size[1] / high] * 2, np.float32)
    boxes = (board.xyxy[kept] - np.array([x, y, x, y], np.float32)) * stretch
    image = cut(board.test, (x, y, wide, high), size)
    limits = np.array([*size, *size], np.float32)
    # Only a square may be turned by 90 degrees without changing the size of the batch's images.
    kind = int(rng.integers(8)) if size[0] == size[1] else int(rng.choice([0, 1, 4, 5]))
    image, boxes = dihedral(image, np.clip(boxes, 0, limits), kind)
    return image, Truth(boxes, board.class_id[kept], np.ones(len(boxes), np.float32), board.known)
