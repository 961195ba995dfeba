"""Brings a part to where the reference part lay in the picture, for models that know what belongs to each place.

Only shifts: they are what a stop and a trigger leave. A turned part needs a fixture, or a model that does not know
places. The shift is where the phase correlation of the two pictures, made small, peaks (Kuglin and Hines, 1975): it
does not mind light, and costs about a millisecond.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import cv2
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge.errors import BundleError
from edge.preprocess import Image, to_channels

BLUR = 1.5  # deviation in pixels of the small picture: what is left is layout, not grain
LEAST_SIDE = 16

Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.float32])


class AlignSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Where parts are brought to.

    Attributes:
        reference: PNG of the reference part, grey and small (base64 in JSON).
        most: largest shift as a share of the picture's width; one beyond it is taken for a mistake and not made.
    """

    reference: bytes
    most: Annotated[float, Meta(gt=0, le=0.5)] = 0.1


def make_reference(image: Image, width: int) -> bytes:
    """The PNG for `AlignSettings.reference`: the picture in grey, `width` pixels wide.

    >>> len(make_reference(np.zeros((40, 80), np.uint8), 40)) > 50
    True
    """
    height = max(LEAST_SIDE, round(image.shape[0] * width / image.shape[1]))
    grey = cv2.resize(to_channels(image, 1), (width, height), interpolation=cv2.INTER_AREA)
    done, png = cv2.imencode(".png", grey)
    if not done:
        raise ValueError(f"an image of shape {image.shape} cannot be a reference")
    return png.tobytes()


class Aligner:
    """Shifts pictures onto a reference.

    Raises:
        BundleError: the reference is no picture, or smaller than 16 pixels a side.
    """

    def __init__(self, settings: AlignSettings) -> None:
        data = np.frombuffer(settings.reference or b"?", np.uint8)  # OpenCV takes no empty array
        grey = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)
        if grey is None or min(grey.shape) < LEAST_SIDE:
            raise BundleError("the reference picture for aligning parts cannot be used; install the bundle again")
        self._size = (grey.shape[1], grey.shape[0])
        self._most = settings.most
        self._window = cv2.createHanningWindow(self._size, cv2.CV_32F)
        self._reference = self._small(np.asarray(grey, np.uint8))

    def shift(self, image: Image) -> tuple[int, int]:
        """Whole pixels (x, y) by which the part lies right of and below the reference; (0, 0) beyond the limit.

        Args:
            image: uint8 (H, W) grey or (H, W, 3) BGR, of the reference's aspect ratio.

        >>> part = np.zeros((64, 96), np.uint8)
        >>> part[20:40, 30:60] = 200
        >>> part[25:30, 35:40] = 90
        >>> aligner = Aligner(AlignSettings(reference=make_reference(part, 96), most=0.2))
        >>> aligner.shift(np.roll(part, (3, -5), axis=(0, 1)))
        (-5, 3)
        """
        height, width = image.shape[:2]
        # Made small before it is made grey: a tenth of the pixels to convert.
        small = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        (dx, dy), _ = cv2.phaseCorrelate(self._reference, self._small(np.asarray(small, np.uint8)), self._window)
        x, y = round(dx * width / self._size[0]), round(dy * height / self._size[1])
        return (x, y) if max(abs(x), abs(y)) <= self._most * width else (0, 0)

    def align(self, image: Image) -> Image:
        """The picture with its part where the reference lay; what comes in at the sides repeats the border.

        A picture that lies right already is given back itself.
        """
        x, y = self.shift(image)
        return moved(image, -x, -y)

    def _small(self, image: Image) -> NDArray[np.float32]:
        grey = to_channels(image, 1).astype(np.float32)
        return np.asarray(cv2.GaussianBlur(grey, (0, 0), BLUR), np.float32)


def moved(image: Pixels, x: int, y: int) -> Pixels:
    """The picture moved right by `x` and down by `y` pixels; its border fills the rest, at least one line of it stays.

    >>> moved(np.array([[1, 2, 3]], np.uint8), 1, 0).tolist()
    [[1, 1, 2]]
    >>> moved(np.array([[1, 2, 3]], np.float32), 0, 7).tolist()
    [[1.0, 2.0, 3.0]]
    """
    if not (x or y):
        return image
    height, width = image.shape[:2]
    x, y = max(1 - width, min(width - 1, x)), max(1 - height, min(height - 1, y))
    left, top, right, bottom = max(0, x), max(0, y), max(0, -x), max(0, -y)
    kept = image[bottom : height - top, right : width - left]
    return np.asarray(cv2.copyMakeBorder(kept, top, bottom, left, right, cv2.BORDER_REPLICATE), image.dtype)
