"""What goes wrong between a part and its picture: dirt, glare, motion, focus, exposure, noise and JPEG.

Everything happens in the order in which a camera meets it, in linear light: what lies on the part and the highlights
of the lamps are there before the lens, blur mixes light, the sensor clips and counts electrons, and only then come
grey levels and the codec. One corruption at a time, at levels 1 (a good day) to 5 (the line should stop), measures a
detector (after Hendrycks and Dietterich, arXiv:1903.12261); a random mixture of them trains one.

Two augmentations that are not physics live here too, because they keep the same rule that no label may lie:
RandomErasing (arXiv:1708.04896) and Mixup for detection (arXiv:1902.04103).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import cv2
import numpy as np

from edge.boxes import Float
from edge.capture.optics import defocus_kernel
from edge.capture.optics import motion_kernel as bent_path_kernel
from edge.preprocess import Image
from tools.errors import ToolError
from tools.lens import put_in_the_way, soil

if TYPE_CHECKING:  # importing it for real would pull Paddle into processes that only draw pictures
    from tools.objective import Truth

Rng = np.random.Generator
NOTHING = np.empty((0, 4), np.float32)
LEVELS = (1, 2, 3, 4, 5)

# The scale of each corruption, by level 1 to 5.
MOTION_PX = (2.0, 4.0, 7.0, 11.0, 16.0)  # path of the part during the exposure: speed x exposure time / pixel size
DEFOCUS_PX = (1.0, 1.7, 2.6, 3.8, 5.5)  # radius of the disc of confusion
GLARE_SHARE = (0.004, 0.01, 0.02, 0.04, 0.07)  # of the picture that highlights saturate
STOPS = (0.5, 1.0, 1.6, 2.3, 3.0)  # too much or too little light, in powers of two
OCCLUDED_SHARE = (0.003, 0.008, 0.016, 0.03, 0.055)  # of the picture under dust, hairs, dirt and stickers
FULL_WELL = (8000.0, 2500.0, 800.0, 250.0, 80.0)  # electrons at full light: the signal to noise ratio is its root
JPEG_QUALITY = (70, 45, 28, 16, 9)

READ_NOISE_E = 6.0  # electrons, of a small industrial CMOS sensor
STRAY = 0.015  # light that reaches even black: no surface is quite black and every lens scatters
MOST_COVERED = 0.5  # of a box, in measurements: a defect that nobody can see would measure luck
TRIES = 6  # places tried for an occluder before it is left out

# Why a table and not a power of each pixel: a tenth of the time. The curve is sRGB's (IEC 61966-2-1), whose straight
# part near black keeps noise there finite.
_STEPS = 8191


def _to_linear(value: np.ndarray) -> np.ndarray:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _from_linear(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


_LIGHT = (STRAY + (1 - STRAY) * _to_linear(np.arange(256) / 255)).astype(np.float32)
_NORMAL = np.array([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)], np.float32)
_GREY = np.rint(255 * _from_linear(np.arange(_STEPS + 1) / _STEPS)).astype(np.uint8)


@dataclass(frozen=True)
class Conditions:
    """How one picture is taken; each default leaves the picture as it is."""

    occluded_share: float = 0.0  # of the picture, under things that lie on the part
    glare_share: float = 0.0  # of the picture, saturated by highlights
    hidden_share: float = 0.0  # of the picture, behind a thing that stands in the way
    motion_px: float = 0.0
    vibration_px: float = 0.0  # length of a path with a bend
    defocus_px: float = 0.0
    lens_dirt: float = 0.0  # severity, in [0, 1]
    stops: float = 0.0  # exposure: 1 is twice the light, -1 half
    full_well: float = 0.0  # electrons at full light; 0: no noise
    jpeg_quality: int = 0  # 1..100; 0: no JPEG


@dataclass(frozen=True)
class PhysicalConfig:
    """How often and how strongly training pictures suffer: probabilities in [0, 1], amounts up to the given one."""

    occlusion: float = 0.25
    glare: float = 0.2
    motion: float = 0.2
    defocus: float = 0.15
    exposure: float = 0.35
    noise: float = 0.35
    jpeg: float = 0.2
    occluded_share: float = 0.03
    glare_share: float = 0.03
    motion_px: float = 8.0
    defocus_px: float = 2.8
    stops: float = 2.4
    full_well: float = 300.0  # the noisiest sensor
    jpeg_quality: int = 20  # the worst
    most_covered: float = 0.35  # of a box that occluders and highlights may hide, as a label must not lie


def photograph(
    image: Image, how: Conditions, rng: Rng, xyxy: Float = NOTHING, most_covered: float = MOST_COVERED
) -> Image:
    """The picture that a camera takes of a scene under these conditions.

    Args:
        image: (H, W) grey or (H, W, 3) BGR uint8, the scene as a good camera sees it.
        how: the conditions.
        rng: directions, places, shapes and noise.
        xyxy: (N, 4) pixels, what must stay visible.
        most_covered: share in [0, 1] of a box that occluders and highlights together may hide.

    Returns:
        A picture of the same shape; boxes stay where they are.

    >>> grey = np.full((32, 32), 128, np.uint8)
    >>> int(photograph(grey, Conditions(stops=-1), np.random.default_rng(0))[0, 0])
    89
    """
    image = np.ascontiguousarray(image)
    if how != Conditions(jpeg_quality=how.jpeg_quality):
        light = np.asarray(cv2.LUT(image, _LIGHT), np.float32)
        cover = Cover(light.shape[:2], xyxy, most_covered)
        if how.occluded_share > 0:
            add_occluders(light, how.occluded_share, rng, cover)
        if how.glare_share > 0:
            add_glare(light, how.glare_share, rng, cover)
        if how.motion_px > 0:
            light = filtered(light, motion_kernel(rng.uniform(0, math.pi), how.motion_px))
        if how.vibration_px > 0:
            light = filtered(light, bent_path_kernel(rng, how.vibration_px))
        if how.defocus_px > 0:
            light = filtered(light, _disc(round(how.defocus_px, 1)))
        if how.hidden_share > 0:
            put_in_the_way(light, how.hidden_share, rng)
        if how.lens_dirt > 0:
            light = soil(light, how.lens_dirt, rng)
        image = expose(light, 2.0**how.stops, how.full_well, rng)
    return jpeg(image, how.jpeg_quality) if how.jpeg_quality else image


# --- Blur -------------------------------------------------------------------------------------------------------------


def motion_kernel(angle: float, length_px: float) -> np.ndarray:
    """What a point becomes that moves `length_px` in a straight line at `angle` radians; its sum is 1.

    (h, w) float32, odd sides, just large enough for the path. The path is laid on the grid by its points' shares of
    the four pixels around each, so that any direction and length are kept to a fraction of a pixel.

    >>> motion_kernel(0.0, 2.0).round(2).tolist()
    [[0.25, 0.5, 0.25]]
    """
    t = np.linspace(-0.5, 0.5, 2 * math.ceil(4 * length_px) + 1)
    t_weight = np.where(np.abs(t) < 0.5, 1.0, 0.5)  # ends of the trapezoidal rule
    dx, dy = length_px * math.cos(angle), length_px * math.sin(angle)
    half_x, half_y = (math.ceil(abs(d) / 2 - 1e-6) for d in (dx, dy))
    x, y = t * dx + half_x, t * dy + half_y
    kernel = np.zeros((2 * half_y + 2, 2 * half_x + 2))  # a row and column of nothing for points at the far edge
    left, top = np.floor(x + 1e-9).astype(int), np.floor(y + 1e-9).astype(int)
    right, down = x - left, y - top
    for ox, wx in ((0, 1 - right), (1, right)):
        for oy, wy in ((0, 1 - down), (1, down)):
            np.add.at(kernel, (top + oy, left + ox), t_weight * wx * wy)
    kernel = kernel[:-1, :-1]
    return (kernel / kernel.sum()).astype(np.float32)


@lru_cache(maxsize=128)
def _disc(radius_px: float) -> np.ndarray:
    return defocus_kernel(radius_px)


def filtered(light: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Light (H, W) or (H, W, 3) float32 convolved with a symmetric kernel; beyond the border the scene goes on."""
    return np.asarray(cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_REFLECT_101), np.float32)


# --- Sensor and codec -------------------------------------------------------------------------------------------------


def expose(light: np.ndarray, gain: float, full_well: float, rng: Rng) -> Image:
    """Light to 8 bits: gain, shot and read noise, black level, clipping, sRGB curve.

    Args:
        light: (H, W) or (H, W, 3) float32, 1 is what white sends; changed in place.
        gain: factor on the light, from exposure time or lamp.
        full_well: electrons at which the sensor saturates; 0: no noise.
    """
    if gain != 1:
        light *= np.float32(gain)
    if full_well > 0:
        # A sensor stops counting at its full well, so there is no more noise in a saturated pixel than there.
        np.minimum(light, 1.2, out=light)
        deviation = cv2.sqrt(light * np.float32(1 / full_well) + np.float32((READ_NOISE_E / full_well) ** 2))
        light += cv2.multiply(deviation.reshape(light.shape), _normal(light.shape, rng))
    index = (light - np.float32(STRAY)) * np.float32(_STEPS / (1 - STRAY))
    np.clip(index, 0, _STEPS, out=index)
    return np.asarray(_GREY[index.astype(np.uint16)], np.uint8)


def _normal(shape: tuple[int, ...], rng: Rng) -> np.ndarray:
    # A byte of chance a pixel through a table: its lack of outliers beyond 2.9 sigma shows nowhere in 8 bits.
    chance = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.asarray(cv2.LUT(chance, _NORMAL), np.float32)


def jpeg(image: Image, quality: int) -> Image:
    """The image through a JPEG file of this quality, 1 to 100."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), np.uint8)


# --- What hides a part of the picture ---------------------------------------------------------------------------------


class Cover:
    """Which pixels are hidden so far, and whether more may be.

    Attributes:
        hidden: (H, W) bool.
    """

    def __init__(self, shape: tuple[int, ...], xyxy: Float = NOTHING, most: float = MOST_COVERED):
        self.hidden = np.zeros(shape[:2], bool)
        self._most = most
        low = np.clip(np.floor(xyxy[:, :2]), 0, None)
        self._boxes = np.concatenate([low, np.ceil(xyxy[:, 2:])], axis=1).astype(int)

    def hide(self, mask: np.ndarray, x: int, y: int) -> bool:
        """Hide the pixels of `mask` (h, w) bool at x, y, all inside; False, and nothing, if a box would suffer."""
        h, w = mask.shape
        here = self.hidden[y : y + h, x : x + w]
        both = here | mask
        x1, y1, x2, y2 = self._boxes.T
        for i in np.flatnonzero((x1 < x + w) & (x2 > x) & (y1 < y + h) & (y2 > y)):
            a, b, c, d = self._boxes[i]
            already = np.count_nonzero(self.hidden[b:d, a:c]) - self._inside(here, x, y, i)
            if already + self._inside(both, x, y, i) > self._most * (c - a) * (d - b):
                return False
        here |= mask
        return True

    def _inside(self, mask: np.ndarray, x: int, y: int, i: int) -> int:
        a, b, c, d = self._boxes[i]
        return int(np.count_nonzero(mask[max(0, b - y) : max(0, d - y), max(0, a - x) : max(0, c - x)]))


@dataclass(frozen=True)
class Occluder:
    """A thing that lies on the part, as a small picture."""

    alpha: np.ndarray  # (h, w) float32 in [0, 1], how much of the part it hides
    light: np.ndarray  # (h, w) float32, what it reflects
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # BGR factors on `light`


def _clipped(patch: np.ndarray, x: int, y: int, shape: tuple[int, ...]) -> tuple[slice, slice, slice, slice]:
    """Rows and columns of the picture under the patch at x, y, and of the patch inside the picture."""
    h, w = patch.shape[:2]
    x1, y1, x2, y2 = max(0, x), max(0, y), min(shape[1], x + w), min(shape[0], y + h)
    return slice(y1, y2), slice(x1, x2), slice(y1 - y, y2 - y), slice(x1 - x, x2 - x)


def add_occluders(light: np.ndarray, share: float, rng: Rng, cover: Cover) -> None:
    """Lay dust, hairs, dirt and stickers on the part until they hide this share of it; changes `light` in place."""
    height, width = light.shape[:2]
    target = share * height * width
    done, failed = 0.0, 0
    while done < target and failed < TRIES:
        item = _KINDS[int(rng.choice(len(_KINDS), p=_OFTEN))](target - done, rng)
        h, w = item.alpha.shape
        x, y = int(rng.integers(-w // 2, width - w // 2)), int(rng.integers(-h // 2, height - h // 2))
        rows, columns, inner_rows, inner_columns = _clipped(item.alpha, x, y, light.shape)
        alpha = item.alpha[inner_rows, inner_columns]
        hides = alpha > 0.4
        if not hides.any() or not cover.hide(hides, columns.start, rows.start):
            failed += 1
            continue
        _blend(light[rows, columns], alpha, item.light[inner_rows, inner_columns], item.tint)
        done += float(np.count_nonzero(hides))


def _blend(under: np.ndarray, alpha: np.ndarray, light: np.ndarray, tint: tuple[float, float, float]) -> None:
    if under.ndim == 2:
        under += alpha * (light - under)
    else:
        under += alpha[..., None] * (light[..., None] * np.float32(tint) - under)


@lru_cache(maxsize=1)
def _textures() -> np.ndarray:
    """Smooth random fields (8, 256, 256) float32, mean 0, deviation 1: drawn once, cut anywhere."""
    rng = np.random.default_rng(7)
    fields = []
    for sigma in (2, 3, 4, 6, 8, 11, 15, 20):
        field = cv2.GaussianBlur(rng.standard_normal((256, 256)).astype(np.float32), (0, 0), sigma)
        fields.append((field - field.mean()) / field.std())
    return np.stack(fields)


def _texture(h: int, w: int, rng: Rng, detail: float) -> np.ndarray:
    """A piece (h, w) of a smooth random field, whose waves are about `detail` of its size."""
    fields = _textures()
    side = 128
    k = int(np.clip(round(detail * len(fields)), 0, len(fields) - 1))
    x, y = rng.integers(0, 256 - side, 2)
    return np.asarray(cv2.resize(fields[k, y : y + side, x : x + side], (w, h), interpolation=cv2.INTER_LINEAR))


def dust(budget_px: float, rng: Rng) -> Occluder:
    """A few specks close together, some bright and some dark."""
    side = 56
    alpha = np.zeros((side, side), np.uint8)
    for _ in range(int(rng.integers(2, 12))):
        x, y = (int(v) for v in rng.integers(6 * 16, (side - 6) * 16, 2))
        axes = (int(16 * rng.uniform(0.5, 2.2)), int(16 * rng.uniform(0.5, 2.2)))
        turn = float(rng.uniform(0, 180))
        cv2.ellipse(alpha, (x, y), axes, turn, 0, 360, int(rng.integers(150, 256)), -1, cv2.LINE_AA, 4)
    soft = cv2.GaussianBlur(alpha, (3, 3), 0).astype(np.float32) * np.float32(1 / 255)
    level = rng.uniform(0.25, 0.6) if rng.random() < 0.6 else rng.uniform(0.03, 0.12)
    return Occluder(soft, np.full(soft.shape, level, np.float32), (0.95, 0.98, 1.0))


def hair(budget_px: float, rng: Rng) -> Occluder:
    """A fibre: a thin curve, dark with a lighter edge where the lamp catches it, or pale like lint."""
    length = float(np.clip(budget_px / 2, 25, 160)) * rng.uniform(0.6, 1.2)
    t = np.linspace(0, 1, 24)[:, None]
    corners = np.cumsum(np.vstack([np.zeros(2), _wander(rng, length / 3)]), axis=0)
    p = sum(b * t**k * (1 - t) ** (3 - k) * corners[k] for k, b in enumerate((1, 3, 3, 1)))
    p -= p.min(axis=0) - 3
    w, h = (int(v) + 4 for v in np.ceil(p.max(axis=0)))
    mask = np.zeros((h, w), np.uint8)
    points = [np.rint(p * 16).astype(np.int32)]
    cv2.polylines(mask, points, False, 255, int(rng.integers(1, 3)), cv2.LINE_AA, shift=4)
    pale = rng.random() < 0.35
    value = rng.uniform(0.25, 0.6) if pale else rng.uniform(0.03, 0.12)
    light = np.full(mask.shape, value, np.float32)
    return Occluder(mask.astype(np.float32) * np.float32(rng.uniform(0.75, 1) / 255), light, (0.9, 0.95, 1.0))


def _wander(rng: Rng, step: float) -> np.ndarray:
    """Three steps (3, 2) in directions that turn by chance."""
    angles = np.cumsum([rng.uniform(0, 2 * math.pi), *rng.normal(0, 0.9, 2)])
    return step * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def dirt(budget_px: float, rng: Rng) -> Occluder:
    """A smear or clot with a ragged edge, thinner towards it; the part shows through where it is thin."""
    side = int(np.clip(1.6 * math.sqrt(budget_px) * rng.uniform(0.4, 1.0), 10, 200))
    h, w = side, max(8, int(side * rng.uniform(0.5, 1.4)))
    y, x = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    body = (1 - np.hypot(x, y).astype(np.float32) * 1.35) * 2.2 + 0.55 * _texture(h, w, rng, 0.75)
    body += 0.25 * _texture(h, w, rng, 0.15)
    edge = np.clip(4 * (1 - np.maximum(np.abs(x), np.abs(y))), 0, 1)  # nothing is cut off by the patch
    alpha = np.clip(body * np.float32(rng.uniform(0.8, 2.5)), 0, rng.uniform(0.7, 0.97)) * edge
    light = np.clip(rng.uniform(0.04, 0.22) * (1 + 0.35 * _texture(h, w, rng, 0.1)), 0.005, 1)
    return Occluder(alpha.astype(np.float32), light.astype(np.float32), (0.65, 0.85, 1.0))


def sticker(budget_px: float, rng: Rng) -> Occluder:
    """A label: a turned rectangle of paper with printed bars or lines of text, its edge slightly in shadow."""
    area = float(np.clip(budget_px * rng.uniform(0.3, 1.0), 80, 20000))
    ratio = rng.uniform(1.0, 3.0)
    w, h = max(8, round(math.sqrt(area * ratio))), max(6, round(math.sqrt(area / ratio)))
    paper = np.full((h, w), rng.uniform(0.3, 0.95), np.float32)
    paper *= np.float32(1) + np.float32(0.03) * _texture(h, w, rng, 0.2)
    _print_on(paper, rng)
    shade = np.ones((h, w), np.float32)
    shade[[0, -1], :], shade[:, [0, -1]] = 0.75, 0.75
    side = math.ceil(math.hypot(w, h)) + 4
    turn = cv2.getRotationMatrix2D((w / 2, h / 2), float(rng.uniform(0, 360)), 1.0)
    turn[:, 2] += (side - w) / 2, (side - h) / 2
    light = cv2.warpAffine(paper * shade, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(np.ones((h, w), np.float32), turn, (side, side))
    return Occluder(alpha, light, tuple(float(v) for v in rng.uniform(0.7, 1.0, 3)))


def _print_on(paper: np.ndarray, rng: Rng) -> None:
    """Bars of a code or dashes of text, in ink, on a paper (h, w)."""
    h, w = paper.shape
    ink = np.float32(rng.uniform(0.02, 0.15))
    if rng.random() < 0.5:
        bars = np.repeat(rng.random(w) < 0.5, rng.integers(1, 4, w))[:w]
        paper[h // 5 : h - h // 4, 2 : w - 2][:, bars[2 : w - 2]] = ink
        return
    for y in range(2, h - 3, 5):
        words = np.repeat(rng.random(w) < 0.65, rng.integers(1, 6, w))[:w]
        paper[y : y + 2, 2 : w - 2][:, words[2 : w - 2]] = ink


_KINDS = (dust, hair, dirt, sticker)
_OFTEN = (0.4, 0.25, 0.22, 0.13)


# --- Glare ------------------------------------------------------------------------------------------------------------

_REACH = 4.0  # the profile goes to this many radii of the saturated core


@lru_cache(maxsize=1)
def _spot() -> np.ndarray:
    """Light of a highlight (129, 129) float32: 1 at the core's edge, more inside, a halo outside that ends at zero."""
    axis = np.linspace(-_REACH, _REACH, 129)
    r = np.hypot(axis[:, None], axis[None])
    halo = 0.35 * np.exp(-((r / 1.6) ** 1.2)) * np.clip((_REACH - r) / 2.5, 0, 1) ** 2
    return (4.5 * np.exp(-math.log(5.2) * r**2.2) + halo).astype(np.float32)


def add_glare(light: np.ndarray, share: float, rng: Rng, cover: Cover) -> None:
    """Add highlights of lamps, some with a streak, which saturate this share of the picture; changes it in place.

    Light adds to light: whatever lies under the core is lost, and under the halo it is washed out.
    """
    height, width = light.shape[:2]
    target = share * height * width
    spots = int(rng.integers(1, 5))
    angle = rng.uniform(0, math.pi)  # the same for all: it comes from the surface and from the lamp
    streak = rng.random() < 0.35
    for part in rng.dirichlet(np.full(spots, 2.0)):
        ratio = math.exp(rng.uniform(0, 1.2))
        radius = math.sqrt(part * target / math.pi)
        axes = (max(1.5, radius * math.sqrt(ratio)), max(1.5, radius / math.sqrt(ratio)))
        for _ in range(TRIES):
            if _shine(light, (rng.uniform(0, width), rng.uniform(0, height)), axes, angle, streak, cover):
                break


def _shine(
    light: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    angle: float,
    streak: bool,
    cover: Cover,
) -> bool:
    """Add one highlight unless it would hide a box; says whether it did."""
    if not _add_spot(light, centre, axes, angle, 1.0, cover):
        return False
    if streak:  # a scratched or brushed surface draws the highlight out across its lines
        _add_spot(light, centre, (axes[0] * 5, max(1.0, axes[1] * 0.18)), angle, 0.6, cover)
    return True


def _add_spot(
    light: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    angle: float,
    strength: float,
    cover: Cover,
) -> bool:
    c, s = math.cos(angle), math.sin(angle)
    reach_x = _REACH * math.hypot(axes[0] * c, axes[1] * s)
    reach_y = _REACH * math.hypot(axes[0] * s, axes[1] * c)
    x1, y1 = max(0, int(centre[0] - reach_x)), max(0, int(centre[1] - reach_y))
    x2, y2 = min(light.shape[1], int(centre[0] + reach_x) + 1), min(light.shape[0], int(centre[1] + reach_y) + 1)
    scale = (_spot().shape[0] - 1) / 2 / _REACH
    middle = (_spot().shape[0] - 1) / 2
    turn = np.array([[c / axes[0], s / axes[0]], [-s / axes[1], c / axes[1]]]) * scale
    shift = middle - turn @ (np.array(centre) - (x1, y1))
    matrix = np.column_stack([turn, shift])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    added = cv2.warpAffine(_spot(), matrix, (x2 - x1, y2 - y1), flags=how)
    added *= np.float32(strength)
    if not cover.hide(added >= 0.6, x1, y1):
        return False
    light[y1:y2, x1:x2] += added if light.ndim == 2 else added[..., None]
    return True


# --- One at a time, for measurements ----------------------------------------------------------------------------------

Corruption = Callable[..., Image]


def _at(level: int, of: Sequence[float]) -> float:
    if level not in LEVELS:
        raise ToolError(f"the level of a corruption is {LEVELS[0]} to {LEVELS[-1]}, not {level!r}")
    return float(of[level - 1])


def _one(conditions: Callable[[int, Rng], Conditions]) -> Corruption:
    def corruption(image: Image, level: int, rng: Rng, xyxy: Float = NOTHING) -> Image:
        return photograph(image, conditions(level, rng), rng, xyxy)

    return corruption


# name -> (image, level 1..5, rng, xyxy=NOTHING) -> image. With `xyxy`, no box is hidden for more than MOST_COVERED.
CORRUPTIONS: dict[str, Corruption] = {
    "motion": _one(lambda level, _: Conditions(motion_px=_at(level, MOTION_PX))),
    "defocus": _one(lambda level, _: Conditions(defocus_px=_at(level, DEFOCUS_PX))),
    "glare": _one(lambda level, _: Conditions(glare_share=_at(level, GLARE_SHARE))),
    "bright": _one(lambda level, _: Conditions(stops=_at(level, STOPS))),
    "dark": _one(lambda level, _: Conditions(stops=-_at(level, STOPS))),
    "noise": _one(lambda level, _: Conditions(full_well=_at(level, FULL_WELL))),
    "occlusion": _one(lambda level, _: Conditions(occluded_share=_at(level, OCCLUDED_SHARE))),
    "jpeg": _one(lambda level, _: Conditions(jpeg_quality=int(_at(level, JPEG_QUALITY)))),
}


def corrupt(image: Image, name: str, level: int, rng: Rng, xyxy: Float = NOTHING) -> Image:
    """One corruption of an image (H, W) or (H, W, 3) uint8, at a level from 1 to 5.

    Raises:
        ToolError: an unknown name or level.

    >>> grey = np.full((64, 64), 90, np.uint8)
    >>> [int(corrupt(grey, "bright", level, np.random.default_rng(0)).mean()) for level in (1, 3, 5)]
    [108, 158, 246]
    """
    if name not in CORRUPTIONS:
        raise ToolError(f"no corruption is called {name!r}; there are {', '.join(CORRUPTIONS)}")
    return CORRUPTIONS[name](image, level, rng, xyxy)


FIELD_SHARE = 0.5  # of the pictures in which each thing goes wrong
FIELD_LEVELS = 3


def field_stress(image: Image, rng: Rng, xyxy: Float = NOTHING) -> Image:
    """What a line that nobody looks after does to a picture: each thing goes wrong in half of them, at levels 1 to 3.

    At least one always does.
    """
    while True:
        wrong = rng.random(7) < FIELD_SHARE
        if wrong.any():
            break
    level = [int(v) for v in rng.integers(1, FIELD_LEVELS + 1, 7)]
    sign = 1 if rng.random() < 0.5 else -1
    how = Conditions(
        occluded_share=wrong[0] * _at(level[0], OCCLUDED_SHARE),
        glare_share=wrong[1] * _at(level[1], GLARE_SHARE),
        motion_px=wrong[2] * _at(level[2], MOTION_PX),
        defocus_px=(wrong[3] and not wrong[2]) * _at(level[3], DEFOCUS_PX),  # one blur hides the other
        stops=sign * wrong[4] * _at(level[4], STOPS),
        full_well=wrong[5] * _at(level[5], FULL_WELL),
        jpeg_quality=int(wrong[6] * _at(level[6], JPEG_QUALITY)),
    )
    return photograph(image, how, rng, xyxy)


# --- Training ---------------------------------------------------------------------------------------------------------


def random_conditions(rng: Rng, config: PhysicalConfig) -> Conditions:
    """Conditions of one training picture: each thing with its probability, its amount drawn anew."""
    happens = rng.random(7)
    amount = rng.random(7)
    blur = happens[2] < config.motion
    return Conditions(
        occluded_share=(happens[0] < config.occlusion) * config.occluded_share * amount[0] ** 2,
        glare_share=(happens[1] < config.glare) * config.glare_share * amount[1] ** 2,
        motion_px=blur * (1 + (config.motion_px - 1) * amount[2]),
        defocus_px=(happens[3] < config.defocus and not blur) * (0.5 + (config.defocus_px - 0.5) * amount[3]),
        stops=(happens[4] < config.exposure) * config.stops * (2 * amount[4] - 1),
        full_well=(happens[5] < config.noise) * config.full_well * (FULL_WELL[0] / config.full_well) ** amount[5],
        jpeg_quality=int((happens[6] < config.jpeg) * (config.jpeg_quality + (80 - config.jpeg_quality) * amount[6])),
    )


def physical(image: Image, xyxy: Float, rng: Rng, config: PhysicalConfig) -> Image:
    """A training picture (H, W) or (H, W, 3) uint8 as a camera on a line might have taken it.

    Boxes `xyxy` (N, 4) stay where they are, and none is hidden for more than `config.most_covered`.
    """
    return photograph(image, random_conditions(rng, config), rng, xyxy, config.most_covered)


@dataclass(frozen=True)
class ErasingConfig:
    """RandomErasing: the rectangle's share of the picture and its aspect ratio."""

    area_low: float = 0.005
    area_high: float = 0.06  # far below the paper's 0.4: there the object fills the picture, here it is small
    ratio: float = 3.3  # the longer side is at most this many times the shorter
    most_covered: float = 0.35  # of a box


ERASING = ErasingConfig()


def random_erasing(image: Image, xyxy: Float, rng: Rng, config: ErasingConfig = ERASING) -> Image:
    """A rectangle of the picture replaced by noise or by one grey (Zhong et al., arXiv:1708.04896).

    A place where it would hide more than `config.most_covered` of a box is not taken; after a few tries the picture
    stays as it is. (H, W) or (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    cover = Cover(image.shape, xyxy, config.most_covered)
    for _ in range(TRIES):
        area = rng.uniform(config.area_low, config.area_high) * height * width
        ratio = math.exp(rng.uniform(-math.log(config.ratio), math.log(config.ratio)))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if not (0 < h < height and 0 < w < width):
            continue
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        if cover.hide(np.ones((h, w), bool), x, y):
            image = image.copy()
            noise = rng.random() < 0.5
            image[y : y + h, x : x + w] = rng.integers(0, 256, (h, w, *image.shape[2:]) if noise else (), np.uint8)
            break
    return image


MIXUP_ALPHA = 1.5


def mixup(
    images: Sequence[Image], truths: Sequence[Truth], rng: Rng, probability: float = 1.0, alpha: float = MIXUP_ALPHA
) -> tuple[list[Image], list[Truth]]:
    """Blend pictures of a batch with each other (Zhang et al., arXiv:1902.04103).

    The picture is lambda x one + (1 - lambda) x other, lambda ~ Beta(alpha, alpha); it has the boxes of both, which
    count by the share of their picture. A class is known only where it is in both.

    Args:
        images: uint8 (or float), all of one shape.
        truths: labels of each.
        probability: of each picture to be blended, in [0, 1].
    """
    blended, united = list(images), list(truths)
    if len(images) < 2:
        return blended, united
    partner = (np.arange(len(images)) + rng.integers(1, len(images))) % len(images)
    for i in np.flatnonzero(rng.random(len(images)) < probability):
        share = float(rng.beta(alpha, alpha))
        blended[i] = blend(images[i], images[partner[i]], share)
        united[i] = unite(truths[i], truths[partner[i]], share)
    return blended, united


def blend(one: Image, other: Image, share: float) -> Image:
    """`share` of one picture and the rest of the other, in the type of the first."""
    mixed = cv2.addWeighted(one, share, other, 1 - share, 0.0)
    return np.asarray(mixed, one.dtype)


def unite(one: Truth, other: Truth, share: float) -> Truth:
    """The labels of a picture that is `share` one and 1 - `share` other."""
    return replace(
        one,
        xyxy=np.concatenate([one.xyxy, other.xyxy]),
        class_id=np.concatenate([one.class_id, other.class_id]),
        weight=np.concatenate([one.weight * share, other.weight * (1 - share)]).astype(np.float32),
        known=one.known & other.known,
    )
