"""What is wrong in front of the sensor but not on the part: a thing that stands in the way, dirt on the lens.

Both act on linear light (see `tools.physical`). What stands in the way is nearer to the lens than the part, so its
edges are out of focus. Dirt on a lens or its cover glass is so near that it has no edges at all: it takes light away
softly, scatters the rest of the scene over the picture as a veil, and where grease smears it, blurs what lies behind
(after Gu et al., "Removing image artifacts due to dirty camera lenses and thin occluders", SIGGRAPH Asia 2009).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

Rng = np.random.Generator

SPECKS = 24  # of dirt on a lens at full severity
MOST_TAKEN = 0.85  # of the light, by a speck at full severity
MOST_VEIL = 0.45  # of the light, scattered at full severity


def smooth_field(shape: tuple[int, int], waves: int, rng: Rng) -> np.ndarray:
    """A smooth random field (H, W) float32 with about `waves` waves a side, mean 0, deviation about 1."""
    coarse = rng.standard_normal((waves + 2, waves + 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def _axes(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (1, W) and (H, 1) from -1 to 1."""
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    return x, y


def _outline(shape: tuple[int, int], rng: Rng) -> np.ndarray:
    """A field (H, W) that is highest inside the thing: from one side, a band across, or anywhere."""
    x, y = _axes(shape)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    kind = rng.choice(3, p=(0.5, 0.2, 0.3))
    if kind == 0:  # a hand, a gripper, a sheet
        field = along
    elif kind == 1:  # a cable, a strap
        field = -np.abs(along - np.float32(rng.uniform(-0.5, 0.5)))
    else:  # a scrap that lies there
        field = -np.hypot(x - np.float32(rng.uniform(-0.7, 0.7)), y - np.float32(rng.uniform(-0.7, 0.7)))
    return field + np.float32(rng.uniform(0.03, 0.25)) * smooth_field(shape, int(rng.integers(2, 7)), rng)


def put_in_the_way(light: np.ndarray, share: float, rng: Rng) -> None:
    """Let a foreign thing hide this share of the picture; changes `light` in place.

    Args:
        light: (H, W) or (H, W, 3) float32.
        share: of the picture, in (0, 1).

    >>> light = np.zeros((100, 100), np.float32)
    >>> put_in_the_way(light, 0.25, np.random.default_rng(0))
    >>> 0.2 < float((light > 0.01).mean()) < 0.35
    True
    """
    shape = light.shape[:2]
    field = _outline(shape, rng)
    sample = field[:: max(1, shape[0] // 96), :: max(1, shape[1] // 96)]
    hides = (field >= np.quantile(sample, 1 - share)).astype(np.float32)
    edge = rng.uniform(0.0, 0.012) * max(shape)  # deviation of the edge's blur
    alpha = cv2.GaussianBlur(hides, (0, 0), edge) if edge > 0.5 else hides
    thing = np.float32(rng.uniform(0.03, 0.85)) * (1 + np.float32(0.2) * smooth_field(shape, 3, rng))
    if rng.random() < 0.5:  # cloth, skin, a printed sheet
        grain = rng.standard_normal((shape[0] // 4 + 1, shape[1] // 4 + 1)).astype(np.float32)
        thing *= 1 + np.float32(rng.uniform(0.05, 0.35)) * cv2.resize(grain, (shape[1], shape[0]))
    np.clip(thing, 0.01, 1, out=thing)
    if light.ndim == 2:
        light += alpha * (thing - light)
    else:
        tint = rng.uniform(0.5, 1.0, 3).astype(np.float32)
        light += alpha[..., None] * (thing[..., None] * tint - light)


def soil(light: np.ndarray, severity: float, rng: Rng) -> np.ndarray:
    """The light that passes a dirty lens.

    Args:
        light: (H, W) or (H, W, 3) float32.
        severity: of the dirt, in (0, 1]: 0.1 is a lens after a clean shift, 1 one that nobody wipes.

    >>> light = np.full((64, 64), 0.5, np.float32)
    >>> light[::2] = 0.1
    >>> dirty = soil(light, 0.8, np.random.default_rng(0))
    >>> bool(dirty.std() < light.std())
    True
    """
    shape = light.shape[:2]
    passes = 1 - _specks(shape, severity, rng)  # (H, W)
    grease = np.clip(smooth_field(shape, int(rng.integers(2, 6)), rng) - np.float32(1.2 - 1.8 * severity), 0, 1)
    sigma = float(1.0 + 5.0 * severity * rng.uniform(0.5, 1.0))
    spread = cv2.GaussianBlur(light, (0, 0), sigma)
    veil = np.float32(MOST_VEIL * severity * rng.uniform(0.4, 1.0))
    mean = light.mean(axis=(0, 1))
    if light.ndim == 3:
        passes, grease = passes[..., None], grease[..., None]
    soiled = light + grease * (spread - light)
    return np.asarray(soiled * passes * (1 - veil) + veil * mean, np.float32)


def _specks(shape: tuple[int, int], severity: float, rng: Rng) -> np.ndarray:
    """What specks and drops on the glass take away, (H, W) float32 in [0, MOST_TAKEN]."""
    takes = np.zeros(shape, np.float32)
    side = max(shape)
    for _ in range(2 + int(rng.uniform(0.3, 1.0) * SPECKS * severity)):
        radius = side * rng.uniform(0.01, 0.02 + 0.06 * severity)
        x, y = rng.uniform(0, shape[1]), rng.uniform(0, shape[0])
        x1, x2 = max(0, int(x - 2 * radius)), min(shape[1], int(x + 2 * radius) + 1)
        y1, y2 = max(0, int(y - 2 * radius)), min(shape[0], int(y + 2 * radius) + 1)
        away = np.hypot(np.arange(x1, x2)[None] - x, np.arange(y1, y2)[:, None] - y) / radius
        soft = 1 / (1 + np.exp(np.clip((away - 1) * rng.uniform(3, 9), -30, 30)))
        part = takes[y1:y2, x1:x2]
        np.maximum(part, soft * MOST_TAKEN * severity * rng.uniform(0.3, 1.0), out=part, casting="unsafe")
    return takes
