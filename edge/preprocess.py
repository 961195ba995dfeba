"""From a source image to the tensor a detector reads. The only implementation: training imports this one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.boxes import Float, clip
from edge.errors import ImageError

Image = NDArray[np.uint8]

# What surrounds an image of another aspect ratio: the mid grey used by most letterboxing detectors.
PAD_VALUE = 114


@dataclass(frozen=True)
class InputSpec:
    """The input contract of a detector: tensor (1, channels, height, width) = (pixel - mean) * scale."""

    width: int
    height: int
    channels: int
    scale: float = 1 / 255
    mean: float = 0.0

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ImageError(f"an input size must be positive, this one is {self.width}x{self.height}")
        if self.channels not in (1, 3):
            raise ImageError(f"an input has 1 (grey) or 3 (BGR) channels, not {self.channels}")


@dataclass(frozen=True)
class Placement:
    """Where letterboxing put the source image: input = source * scale + (dx, dy), in pixels."""

    scale: float
    dx: int
    dy: int

    def to_source(self, xyxy: Float, width: int, height: int) -> Float:
        """Boxes (N, 4) from input pixels back to the source image of `width` x `height`, clipped to it.

        >>> Placement(0.5, 0, 10).to_source(np.array([[5, 15, 10, 20]], np.float32), 100, 80).tolist()
        [[10.0, 10.0, 20.0, 20.0]]
        """
        offset = np.array([self.dx, self.dy, self.dx, self.dy], np.float32)
        return clip((xyxy - offset) / np.float32(self.scale), width, height)

    def on_source(self, cells: Float, width: int, height: int, stride: float) -> Float:
        """The part of a map over the network's input (h, w) that lies on the source image; at least one cell.

        Args:
            cells: one value each `stride` input pixels.
            width, height: of the source image.

        >>> Placement(0.5, 0, 8).on_source(np.arange(6, dtype=np.float32).reshape(3, 2), 32, 16, 8.0).tolist()
        [[2.0, 3.0]]
        """
        left, top = int(self.dx / stride), int(self.dy / stride)
        right = max(left + 1, math.ceil((self.dx + width * self.scale) / stride - 1e-6))
        bottom = max(top + 1, math.ceil((self.dy + height * self.scale) / stride - 1e-6))
        return cells[top:bottom, left:right]


def check_image(image: Image) -> None:
    """Refuse what the pipeline cannot judge.

    Raises:
        ImageError: not 8 bits a channel, not grey or BGR, or empty; the message says what it is instead.
    """
    if image.dtype != np.uint8:
        raise ImageError(
            f"the image has {image.dtype} pixels and the pipeline takes 8 bits a channel: "
            "convert it (a 16-bit image: divide by 256) or set the camera to an 8-bit format"
        )
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ImageError(
            f"the image has shape {image.shape} and the pipeline takes (height, width) grey or "
            "(height, width, 3) BGR: drop the alpha channel or set the camera to another format"
        )
    if image.size == 0:
        raise ImageError(f"the image is empty: its shape is {image.shape}")


def to_channels(image: Image, channels: int) -> Image:
    """The image with 1 (grey) or 3 (BGR) channels, converted only where it differs."""
    has = 1 if image.ndim == 2 else 3
    if has == channels:
        return image
    code = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_GRAY2BGR
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def letterbox(image: Image, spec: InputSpec) -> tuple[Image, Placement]:
    """Scale the image to fit the input, centred, the rest grey; its aspect ratio is kept.

    Returns:
        The canvas, (height, width) or (height, width, 3) uint8, and where the image lies on it.

    >>> canvas, place = letterbox(np.zeros((20, 40), np.uint8), InputSpec(20, 20, 1))
    >>> canvas.shape, place
    ((20, 20), Placement(scale=0.5, dx=0, dy=5))
    """
    image = to_channels(image, spec.channels)
    height, width = image.shape[:2]
    if (width, height) == (spec.width, spec.height):
        return image, Placement(1.0, 0, 0)
    scale = min(spec.width / width, spec.height / height)
    new_width = max(1, min(spec.width, round(width * scale)))
    new_height = max(1, min(spec.height, round(height * scale)))
    # Area averaging does not alias fine traces when shrinking; it is poor when enlarging.
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (new_width, new_height), interpolation=how)
    dx, dy = (spec.width - new_width) // 2, (spec.height - new_height) // 2
    shape = (spec.height, spec.width) if spec.channels == 1 else (spec.height, spec.width, 3)
    canvas = np.full(shape, PAD_VALUE, np.uint8)
    canvas[dy : dy + new_height, dx : dx + new_width] = resized
    return canvas, Placement(scale, dx, dy)


def to_tensor(canvas: Image, spec: InputSpec, out: Float | None = None) -> Float:
    """The canvas as float32 (1, channels, height, width); `out`, of that shape, saves the allocation."""
    shape = (1, spec.channels, spec.height, spec.width)
    tensor = np.empty(shape, np.float32) if out is None else out
    planes = canvas[None] if spec.channels == 1 else canvas.transpose(2, 0, 1)  # (C, H, W)
    if spec.mean == 0:
        np.multiply(planes, np.float32(spec.scale), out=tensor[0], casting="unsafe")
    else:
        np.subtract(planes, np.float32(spec.mean), out=tensor[0], casting="unsafe")
        tensor *= np.float32(spec.scale)
    return tensor


def preprocess(image: Image, spec: InputSpec, out: Float | None = None) -> tuple[Float, Placement]:
    """Check, letterbox and normalise one image.

    Raises:
        ImageError: an image the pipeline cannot take.

    >>> tensor, _ = preprocess(np.full((8, 8), 255, np.uint8), InputSpec(8, 8, 1))
    >>> tensor.shape, float(tensor.max())
    ((1, 1, 8, 8), 1.0)
    """
    check_image(image)
    canvas, placement = letterbox(image, spec)
    return to_tensor(canvas, spec, out), placement
