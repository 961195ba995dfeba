"""Near duplicates among images.

They are found in two steps. A perceptual hash, the signs of the low frequencies of a cosine transform (Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions"), finds images that look alike at a glance. On a
line with a fixed camera all of them do, so the pairs are then compared place by place: they are duplicates only if no
place differs after brightness is taken out. A part with a new defect, or another part in the same pose, is none.
"""

from __future__ import annotations

import cv2
import numpy as np
from tqdm import tqdm

from edge.preprocess import Image

# The hash: signs of the 16x16 lowest frequencies of the image at 64x64, without the mean.
HASH_SIDE, HASH_FREQUENCIES = 64, 16
HASH_BITS = HASH_FREQUENCIES**2 - 1
# Hashes of duplicates differ in at most so many bits. Measured on circuit boards and ball screws: saved again, resized,
# noisy or brighter 0 to 12; other boards 17 and more.
HASH_DISTANCE = 12
# The most by which a block of a duplicate's thumbnail differs, as part of the thumbnail's contrast. Same measurement:
# saved again and the like 0.01 to 0.13 (0.3 for 15 % more light that clips), a new spot of 20 pixels 0.15 and more,
# another part in front of the same camera 0.18 and more.
THUMB_SIDE, BLOCKS = 128, 8
BLOCK_DIFFERENCE = 0.14

PAIRS_AT_ONCE = 512


def perceptual_hash(image: Image) -> np.ndarray:
    """(255,) bool: which low frequencies of a grey image (H, W) are above their median.

    >>> noise = np.random.default_rng(0).integers(0, 200, (40, 40), np.uint8)
    >>> image = cv2.resize(noise, (400, 400), interpolation=cv2.INTER_CUBIC)
    >>> int((perceptual_hash(image) != perceptual_hash(image // 2 + 30)).sum()) < 6
    True
    """
    small = cv2.resize(image, (HASH_SIDE, HASH_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:HASH_FREQUENCIES, :HASH_FREQUENCIES].ravel()[1:]
    return np.asarray(low > np.median(low))


def thumbnail(image: Image) -> Image:
    """A grey image (H, W) as (128, 128) uint8, its aspect ratio not kept."""
    return np.asarray(cv2.resize(image, (THUMB_SIDE, THUMB_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def same_pairs(
    hashes: np.ndarray, thumbs: np.ndarray, distance: int = HASH_DISTANCE, difference: float = BLOCK_DIFFERENCE
) -> list[tuple[int, int, int]]:
    """Pairs (i, j, differing bits), i < j, of images that look the same.

    Args:
        hashes: (N, 255) bool.
        thumbs: (N, 128, 128) uint8.
    """
    if len(hashes) < 2:
        return []
    signs = hashes.astype(np.float32) * 2 - 1
    plain = np.stack([without_brightness(thumb).astype(np.float16) for thumb in thumbs])  # 32 kB an image
    found = []
    for i in tqdm(range(len(hashes) - 1), desc="compare", mininterval=5, unit="image"):
        bits = np.rint((hashes.shape[1] - signs[i + 1 :] @ signs[i]) / 2).astype(int)
        near = np.flatnonzero(bits <= distance)
        for start in range(0, len(near), PAIRS_AT_ONCE):
            part = near[start : start + PAIRS_AT_ONCE]
            differs = block_difference(plain[i], plain[i + 1 + part])
            found += [(i, int(i + 1 + j), int(bits[j])) for j in part[differs <= difference]]
    return found


def without_brightness(thumb: Image) -> np.ndarray:
    """The thumbnail without slow changes of brightness, in units of its own contrast: (128, 128) float32."""
    values = thumb.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), THUMB_SIDE / 16)
    return np.asarray(values / (values.std() + 2))


def block_difference(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest root mean square difference of any block: (128, 128) and (M, 128, 128) give (M,)."""
    side = THUMB_SIDE // BLOCKS
    squares = np.square(others.astype(np.float32) - one).reshape(len(others), BLOCKS, side, BLOCKS, side)
    return np.asarray(np.sqrt(squares.mean(axis=(2, 4)).reshape(len(others), -1).max(axis=1)))
