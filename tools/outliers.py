"""Outliers for outlier exposure: foreign things pasted into training images, with the mask of what they changed.

What a model of the unknown is trained with must not be what it is tested with. So nothing here knows any class of
defect: shapes are random (polygons, ellipses, strokes, clouds), and what fills them is a texture, a patch of another
product, a patch of this one put elsewhere (CutPaste, Li et al., arXiv:2104.04015) or a plain tone. Some fillings are
brought to the picture's own darkest and brightest tone, or a model would learn to look for grey on a picture that is
black and white, and never see a foreign thing that is black and white too.

Outlier exposure is Hendrycks et al., arXiv:1812.04606; pasting foreign objects for it, Tian et al., arXiv:2111.12264.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from edge.boxes import Float
from edge.preprocess import Image, to_channels
from tools.augment import touches

Rng = np.random.Generator
VISIBLE = 24  # grey levels by which a pixel must change to count
LEAST_PX = 12  # changed pixels of an outlier that counts
TRIES = 8  # places tried for an outlier before it is left out
TONES = (2.0, 98.0)  # percentiles of a picture that are its darkest and brightest tone


@dataclass(frozen=True)
class OutlierConfig:
    """How many outliers a picture gets and what they are.

    Attributes:
        share: of the pictures that get any, in [0, 1]. most: outliers on one picture.
        least_px, most_px: side of an outlier, drawn evenly over its logarithm.
        texture, foreign, cut_paste, tone: relative weights of the fillings.
        own_tones: share in [0, 1] of the textures and foreign patches brought to the picture's two tones.
        soft: share in [0, 1] of outliers whose edge is blended over a pixel or two.
    """

    share: float = 0.85
    most: int = 4
    least_px: float = 5.0
    most_px: float = 72.0
    texture: float = 0.3
    foreign: float = 0.2
    cut_paste: float = 0.3
    tone: float = 0.2
    own_tones: float = 0.6
    soft: float = 0.5


def add_outliers(
    image: Image, rng: Rng, config: OutlierConfig, donors: Sequence[Image], avoid: Float
) -> tuple[Image, np.ndarray]:
    """A copy of the picture with outliers, and the mask (H, W) bool of what they changed visibly.

    Args:
        image: (H, W) grey or (H, W, 3) BGR uint8.
        donors: pictures of other products, any size and colour; without one, textures take their place.
        avoid: (N, 4) boxes in pixels that nothing is pasted on.

    >>> plain = np.full((64, 64), 200, np.uint8)
    >>> nothing = np.empty((0, 4), np.float32)
    >>> pasted, mask = add_outliers(plain, np.random.default_rng(3), OutlierConfig(share=1.0), [], nothing)
    >>> bool(mask.any()), pasted.shape, bool(np.all(plain == 200))
    (True, (64, 64), True)
    """
    pasted, mask = image.copy(), np.zeros(image.shape[:2], bool)
    if rng.random() >= config.share:
        return pasted, mask
    for _ in range(int(rng.integers(1, config.most + 1))):
        shape = foreign_shape(rng, _side(rng, config))
        place = _place(rng, image.shape[:2], shape.shape, avoid)
        if place is not None:
            mask |= _paste(pasted, shape, place, rng, config, donors)
    return pasted, mask


def _side(rng: Rng, config: OutlierConfig) -> float:
    return float(np.exp(rng.uniform(np.log(config.least_px), np.log(config.most_px))))


def _place(rng: Rng, size: tuple[int, ...], shape: tuple[int, ...], avoid: Float) -> tuple[int, int] | None:
    """Left and top of a place that touches no box of `avoid`; None if none was found."""
    room = (size[0] - shape[0], size[1] - shape[1])
    if min(room) < 1:
        return None
    for _ in range(TRIES):
        y, x = int(rng.integers(room[0])), int(rng.integers(room[1]))
        box = np.array([x, y, x + shape[1], y + shape[0]], np.float32)
        if not len(avoid) or not touches(box, avoid):
            return x, y
    return None


def _paste(
    picture: Image, shape: np.ndarray, place: tuple[int, int], rng: Rng, config: OutlierConfig, donors: Sequence[Image]
) -> np.ndarray:
    """Put one outlier on the picture in place; returns the mask (H, W) of the pixels it changed."""
    x, y = place
    height, width = shape.shape
    before = picture[y : y + height, x : x + width].copy()
    filling = fill(picture, (height, width), rng, config, donors)
    alpha = cv2.GaussianBlur(shape, (0, 0), 0.9) if rng.random() < config.soft else shape
    weight = alpha.astype(np.float32) / 255
    if picture.ndim == 3:
        weight = weight[..., None]
    after = np.rint(before * (1 - weight) + filling * weight).astype(np.uint8)
    changed = np.abs(after.astype(np.int16) - before)
    visible = (changed if changed.ndim == 2 else changed.max(axis=2)) > VISIBLE
    mask = np.zeros(picture.shape[:2], bool)
    if visible.sum() >= LEAST_PX:  # else it is no outlier, and not left there to be one unseen
        picture[y : y + height, x : x + width] = after
        mask[y : y + height, x : x + width] = visible
    return mask


# --- Shapes -----------------------------------------------------------------------------------------------------------


def foreign_shape(rng: Rng, side: float) -> np.ndarray:
    """A random shape about `side` pixels long: mask (h, w) uint8, 255 inside.

    >>> shape = foreign_shape(np.random.default_rng(0), 20.0)
    >>> shape.dtype, bool(shape.max() == 255), max(shape.shape) <= 40
    (dtype('uint8'), True, True)
    """
    n = max(8, round(side * 1.5))
    canvas = np.zeros((n, n), np.uint8)
    kind = int(rng.integers(4))
    if kind == 0:
        _polygon(canvas, rng, side)
    elif kind == 1:
        axes = (float(side), float(side * rng.uniform(0.25, 1)))
        cv2.ellipse(canvas, ((n / 2, n / 2), axes, float(rng.uniform(0, 180))), 255, cv2.FILLED)
    elif kind == 2:
        _stroke(canvas, rng, side)
    else:
        _cloud(canvas, rng, side)
    if not canvas.any():
        canvas[n // 2 - 2 : n // 2 + 2, n // 2 - 2 : n // 2 + 2] = 255
    x, y, width, height = cv2.boundingRect(canvas)
    return np.ascontiguousarray(canvas[y : y + height, x : x + width])


def _polygon(canvas: np.ndarray, rng: Rng, side: float) -> None:
    corners = int(rng.integers(3, 8))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    reach = side / 2 * rng.uniform(0.4, 1.2, corners)
    points = len(canvas) / 2 + np.stack([np.cos(angle) * reach, np.sin(angle) * reach], axis=1)
    cv2.fillPoly(canvas, [points.round().astype(np.int32)], 255)


def _stroke(canvas: np.ndarray, rng: Rng, side: float) -> None:
    """A bent line such as a hair or a chip of swarf."""
    steps = 6
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, steps))
    walk = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1) * side / steps, axis=0)
    points = walk - walk.mean(axis=0) + len(canvas) / 2
    thick = max(1, round(side * rng.uniform(0.05, 0.3)))
    cv2.polylines(canvas, [points.round().astype(np.int32)], False, 255, thick)


def _cloud(canvas: np.ndarray, rng: Rng, side: float) -> None:
    """The part of smooth noise over a limit, inside a disc: ragged, often of several pieces."""
    n = len(canvas)
    noise = cv2.GaussianBlur(rng.random((n, n), np.float32), (0, 0), max(1.0, side * rng.uniform(0.06, 0.2)))
    disc = np.zeros_like(canvas)
    cv2.circle(disc, (n // 2, n // 2), max(2, round(side / 2)), 255, cv2.FILLED)
    canvas[(noise > np.quantile(noise, rng.uniform(0.3, 0.7))) & (disc > 0)] = 255


# --- Fillings ---------------------------------------------------------------------------------------------------------


def fill(picture: Image, size: tuple[int, int], rng: Rng, config: OutlierConfig, donors: Sequence[Image]) -> np.ndarray:
    """What an outlier of `size` (height, width) shows: uint8 with the channels of the picture."""
    weights = np.array([config.texture, config.foreign, config.cut_paste, config.tone])
    kind = int(rng.choice(4, p=weights / weights.sum()))
    if kind == 2:
        return _cut(picture, size, rng)
    if kind == 3:
        return _tone(picture, size, rng)
    channels = 1 if picture.ndim == 2 else 3
    if kind == 1 and donors:
        filling = to_channels(_cut(donors[int(rng.integers(len(donors)))], size, rng), channels)
    else:
        filling = texture(rng, size, channels)
    return in_tones_of(picture, filling, rng) if rng.random() < config.own_tones else filling


def texture(rng: Rng, size: tuple[int, int], channels: int) -> np.ndarray:
    """Noise of a random grain, stripes or checks, or a slope, in random tones: (h, w) or (h, w, 3) uint8."""
    height, width = size
    kind = int(rng.integers(4))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    period = rng.uniform(3, 16)
    if kind == 0:
        grain = cv2.GaussianBlur(rng.random(size, np.float32), (0, 0), float(rng.uniform(0.4, 3)))
        value = (grain - grain.min()) / max(float(np.ptp(grain)), 1e-6)
    elif kind == 1:
        value = 0.5 + 0.5 * np.sin(2 * np.pi * along / period)
    elif kind == 2:
        value = ((along // period + across // period) % 2).astype(np.float32)
    else:
        value = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    low, high = rng.uniform(0, 255, (2, channels))
    tones = low + value[..., None] * (high - low)  # (h, w, channels)
    return np.asarray(tones[..., 0] if channels == 1 else tones, np.float32).astype(np.uint8)


def _tone(picture: Image, size: tuple[int, int], rng: Rng) -> np.ndarray:
    """A plain tone: one of the picture's own, taken from a random pixel, or any other."""
    height, width = picture.shape[:2]
    own = picture[int(rng.integers(height)), int(rng.integers(width))]
    tone = own if rng.random() < 0.6 else rng.integers(0, 256, np.shape(own))
    return np.broadcast_to(np.asarray(tone, np.uint8), (*size, *np.shape(own))).copy()


def _cut(source: Image, size: tuple[int, int], rng: Rng) -> np.ndarray:
    """A patch of a picture, turned by quarters, mirrored and scaled."""
    zoom = float(np.exp(rng.uniform(np.log(0.6), np.log(1.7))))
    height, width = source.shape[:2]
    wide, high = (max(2, min(limit, round(side / zoom))) for limit, side in ((width, size[1]), (height, size[0])))
    x, y = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
    patch = np.rot90(source[y : y + high, x : x + wide], int(rng.integers(4)))
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    return np.asarray(cv2.resize(np.ascontiguousarray(patch), (size[1], size[0])), np.uint8)


def in_tones_of(picture: Image, filling: np.ndarray, rng: Rng) -> np.ndarray:
    """The filling in the picture's own darkest and brightest tone only, split at a random level of its own.

    A picture of one tone gets black and white.

    >>> board = np.repeat(np.array([[10, 240]], np.uint8), 8, axis=0)
    >>> np.unique(in_tones_of(board, np.arange(64, dtype=np.uint8).reshape(8, 8), np.random.default_rng(0))).tolist()
    [10, 240]
    """
    grey = to_channels(filling, 1)
    split = grey > np.quantile(grey, rng.uniform(0.25, 0.75))
    dark, bright = np.percentile(picture, TONES, axis=(0, 1))  # () or (3,)
    if np.max(bright - dark) < VISIBLE:
        dark, bright = np.zeros_like(dark), np.full_like(bright, 255)
    return np.where(split if picture.ndim == 2 else split[..., None], bright, dark).astype(np.uint8)
