"""The drift autoencoder's side of a frame: what the network reads, and how far off what it paints is.

The network reads pieces of the frame at the camera's own resolution, evenly spread, side by side as one small picture:
made smaller, a frame loses what focus, noise and wear change first. A frame that is smaller than the picture is made
larger.

The error is scaled by what the frame has to show: a frame full of traces is harder to paint than an empty one, and a
dark one has smaller differences everywhere. The scale is the error of the simplest guess, that a pixel is as one a few
pixels further is (after the mean absolute scaled error of forecasts: Hyndman and Koehler, Int. J. Forecast. 22, 2006).
Few pixels, not one: at that distance blur and noise change the guess little and the error much. So the error falls
where the picture gets simpler for its structure, as blur makes it, and rises with what no good frame has.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from edge.boxes import Float
from edge.drift.settings import Autoencoder
from edge.errors import PredictorError
from edge.preprocess import Image, check_image, to_channels

REACH_PX = 4
# Mean square of that guess's error where there is nothing but noise and JPEG: two grey levels.
FLOOR = (2 / 255) ** 2


def prepare(image: Image, spec: Autoencoder) -> Float:
    """What the autoencoder reads of a frame: (1, channels, height, width), in the network's unit.

    Args:
        image: uint8, (H, W) grey or (H, W, 3) BGR, of any size.

    Raises:
        ImageError: not such an image.

    >>> frame = np.full((200, 300, 3), 255, np.uint8)
    >>> tensor = prepare(frame, Autoencoder(width=128, height=64, tile=32))
    >>> tensor.shape, float(tensor.min())
    ((1, 1, 64, 128), 1.0)
    """
    check_image(image)
    picture = mosaic(to_channels(image, spec.channels), spec.width, spec.height, spec.tile)
    planes = picture[None] if spec.channels == 1 else picture.transpose(2, 0, 1)  # (C, H, W)
    return np.asarray((planes[None] - np.float32(spec.mean)) * np.float32(spec.scale), np.float32)


def mosaic(image: Image, width: int, height: int, tile: int) -> Image:
    """Pieces of the image, `tile` pixels square, from an even grid over it, side by side: (height, width).

    Args:
        tile: divides `width` and `height`; 0: the whole image, scaled.

    >>> frame = np.arange(64, dtype=np.uint8).reshape(8, 8)
    >>> mosaic(frame, 4, 4, 2)[0].tolist()  # of each half of the first row, the two pixels in its middle
    [9, 10, 13, 14]
    """
    here_height, here_width = image.shape[:2]
    if tile == 0 or here_width < width or here_height < height:
        how = cv2.INTER_AREA if here_width >= width and here_height >= height else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, (width, height), interpolation=how), np.uint8)
    rows, columns = height // tile, width // tile
    out = np.empty((height, width, *image.shape[2:]), np.uint8)
    for row in range(rows):
        y = (2 * row + 1) * here_height // (2 * rows) - tile // 2
        for column in range(columns):
            x = (2 * column + 1) * here_width // (2 * columns) - tile // 2
            place = np.s_[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
            out[place] = image[y : y + tile, x : x + tile]
    return out


def error(tensor: Float, output: Float) -> float:
    """How far the picture that the network painted is from the one it was given.

    Args:
        tensor: (1, C, H, W) from `prepare`.
        output: (1, C s s, H/s, W/s): each place has the pixels of a square of side s, row by row.

    Returns:
        Mean square error over that of guessing each pixel by one `REACH_PX` further: 0 for a perfect copy, 1 where the
        network knows no more than that.

    Raises:
        PredictorError: the output belongs to another input, or is not finite.

    >>> board = (np.indices((8, 8)) // REACH_PX).sum(axis=0)[None, None] % 2
    >>> round(error(board.astype(np.float32), np.full((1, 4, 4, 4), 0.5, np.float32)), 3)
    0.25
    """
    off = _mean_square(output - in_squares(tensor, output.shape))
    if not math.isfinite(off):
        raise PredictorError(
            "the drift autoencoder answered with numbers that are not finite; install the bundle again"
        )
    return off / (simple_guess(tensor) + FLOOR)


def in_squares(tensor: Float, shape: tuple[int, ...]) -> Float:
    """The tensor (B, C, H, W) in the order of an output (B, C s s, H/s, W/s) of this shape.

    Raises:
        PredictorError: no s makes one of the other.
    """
    batch, channels, height, width = tensor.shape
    side = height // shape[2] if len(shape) == 4 and shape[2] else 0
    if side == 0 or tuple(shape) != (batch, channels * side**2, height // side, width // side):
        raise PredictorError(
            f"the drift autoencoder was given {tensor.shape} and answered with {shape}: its model and its settings "
            "are not of one bundle; install the bundle again"
        )
    split = tensor.reshape(batch, channels, height // side, side, width // side, side)
    return split.transpose(0, 1, 3, 5, 2, 4).reshape(shape)


def simple_guess(tensor: Float) -> float:
    """Mean square error of guessing each pixel by the one `REACH_PX` further, across and down.

    Args:
        tensor: (B, C, H, W), sides over `REACH_PX`.

    >>> step = np.repeat(np.array([0, 1], np.float32), REACH_PX)  # dark, then light
    >>> simple_guess(np.tile(step, (1, 1, 8, 1)))
    0.5
    """
    across = tensor[..., REACH_PX:] - tensor[..., :-REACH_PX]
    down = tensor[:, :, REACH_PX:] - tensor[:, :, :-REACH_PX]
    return (_mean_square(across) + _mean_square(down)) / 2


def _mean_square(values: Float) -> float:
    # A third of the time of np.mean(np.square(...)), and on this thread alone, as a dot product would not be.
    flat = values.reshape(-1)
    return float(np.einsum("i,i->", flat, flat)) / flat.size
