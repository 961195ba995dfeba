"""A camera as physics has it: light is blurred, then counted with noise, then turned into grey levels."""

from __future__ import annotations

import math
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.preprocess import Image

# What the surfaces reflect, as shares of the light: even black copper oxide is not quite black.
DARK, LIGHT = 0.03, 0.8
# The camera's black level and gain put this window of light on 0 to 255, so that a well exposed board is
# almost binary, as after the thresholding of the real data.
WINDOW = (0.05, 0.6)
GAMMA = 2.2
FULL_WELL = 10_000  # electrons at light 1: shot noise is the root of the electrons counted
READ_NOISE = 0.002  # of full light, at noise 1

Kernel = NDArray[np.float32]
_NORMAL = np.array([NormalDist().inv_cdf((k + 0.5) / 256) for k in range(256)], np.float32)


def motion_kernel(rng: np.random.Generator, length_px: float) -> Kernel:
    """What a point becomes when the part moves by `length_px` during the exposure; its sum is 1.

    (K, K) float32, K odd. The path has a random direction and a bend, so that edges along it suffer too, as they
    do from vibration.
    """
    size = 2 * math.ceil(length_px / 2) + 3
    angle, bend = rng.uniform(0, math.pi), rng.uniform(0.4, 0.8)
    t = np.linspace(-0.5, 0.5, 9)
    along, across = t * length_px, bend * length_px * (1 / 12 - t**2)
    x = along * math.cos(angle) - across * math.sin(angle)
    y = along * math.sin(angle) + across * math.cos(angle)
    # Drawn with 4 fractional bits, so that the path lies where it should and not on whole pixels.
    points = np.rint((np.stack([x, y], axis=1) + size // 2) * 16).astype(np.int32)
    kernel = np.zeros((size, size), np.uint8)
    cv2.polylines(kernel, [points], False, (255,), 1, cv2.LINE_AA, shift=4)
    return _normalised(kernel)


def defocus_kernel(radius_px: float) -> Kernel:
    """The disc a point becomes when it is out of focus; its sum is 1. (K, K) float32, K odd."""
    half = math.ceil(radius_px) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return _normalised(np.clip(radius_px + 0.5 - np.hypot(x, y), 0, 1))


def _normalised(kernel: NDArray[np.generic]) -> Kernel:
    total = float(np.sum(kernel, dtype=np.float64))
    return np.asarray(kernel.astype(np.float64) / total, np.float32)


def expose(
    image: Image,
    rng: np.random.Generator,
    motion_px: float = 0.0,
    defocus_px: float = 0.0,
    exposure: float = 1.0,
    noise: float = 1.0,
) -> Image:
    """What a camera makes of a scene.

    Args:
        image: (H, W) uint8, what the surfaces are: 0 dark, 255 light.
        rng: direction of the motion and the noise.
        motion_px: how far the part moves during the exposure; 0: it stands.
        defocus_px: radius of the disc of confusion; 0: in focus.
        exposure: 1 is right, 2 is one stop too much light.
        noise: 0 none, 1 of a decent sensor.

    Returns:
        (H, W) uint8.

    >>> flat = np.full((4, 4), 255, np.uint8)
    >>> int(expose(flat, np.random.default_rng(0)).min())
    255
    """
    # Blur mixes light, not grey levels, and comes before the noise: a blurred photograph is still grainy.
    surfaces = np.linspace(DARK, LIGHT, 256, dtype=np.float32)
    light = np.asarray(cv2.LUT(image, surfaces), np.float32)
    if motion_px > 0:
        light = np.asarray(cv2.filter2D(light, -1, motion_kernel(rng, motion_px)), np.float32)
    if defocus_px > 0:
        light = np.asarray(cv2.filter2D(light, -1, defocus_kernel(defocus_px)), np.float32)
    light *= np.float32(exposure)
    if noise > 0:
        deviation = np.sqrt(light * np.float32(1 / FULL_WELL) + np.float32(READ_NOISE**2))
        # A byte of chance a pixel, through a table of the normal distribution: a seventh of the time of
        # standard_normal, and its lack of outliers beyond 2.9 sigma shows nowhere in 8 bits.
        chance = np.asarray(cv2.LUT(rng.integers(0, 256, light.shape, dtype=np.uint8), _NORMAL), np.float32)
        light += deviation * chance * np.float32(noise)
    return _to_grey(light)


def _to_grey(light: NDArray[np.float32]) -> Image:
    """Black level, gain, gamma and the eight bits, by a table: a power of each pixel would take longer."""
    low, high = WINDOW
    steps = 4095
    index = np.clip((light - np.float32(low)) * np.float32(steps / (high - low)), 0, steps).astype(np.uint16)
    table = np.rint(255 * (np.arange(steps + 1) / steps) ** (1 / GAMMA)).astype(np.uint8)
    return np.asarray(table[index], np.uint8)
