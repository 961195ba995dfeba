"""Frames from image files, in the order of their names."""

from __future__ import annotations

import glob
import re
import struct
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from edge.capture.base import Grab
from edge.capture.pacing import Pacer
from edge.config import FolderCamera
from edge.errors import CaptureError, FrameUnreadableError, SourceEndedError
from edge.preprocess import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class FolderSource:
    """The images of a folder, or those a glob names; implements `Source`.

    A loop looks at the folder again each time it starts over, so files may come and go meanwhile.
    """

    def __init__(self, settings: FolderCamera) -> None:
        self._settings = settings
        self._pacer = Pacer(settings.fps)
        self._root = Path()
        self._files: list[Path] = []
        self._next = 0

    def open(self) -> None:
        """List the files.

        Raises:
            CaptureError: nothing there to read.
        """
        self._root, self._files = list_images(self._settings.path)
        self._next = 0

    def read(self, timeout_s: float) -> Grab | None:
        """The next file, when it is due; see `Source.read`."""
        if not self._files:
            raise CaptureError(f"{self._settings.path} is not open")
        if self._next == len(self._files):
            if not self._settings.loop:
                raise SourceEndedError(f"{self._settings.path}: all {len(self._files)} images were read")
            self.open()
        if not self._pacer.wait(timeout_s):
            return None
        path = self._files[self._next]
        self._next += 1
        return Grab(read_image(path), path.relative_to(self._root).as_posix())

    def close(self) -> None:
        """Forget the files."""
        self._files, self._next = [], 0


def list_images(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the image files of a folder or a glob in natural order.

    Raises:
        CaptureError: it does not exist, cannot be listed, or holds no image.
    """
    root = Path(pattern)
    try:
        if root.is_dir():
            found = [path for path in root.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
        elif glob.has_magic(pattern):
            root = _fixed_part(root)
            found = [Path(name) for name in glob.glob(pattern, recursive=True)]
        elif root.exists():
            root, found = root.parent, [root]
        else:
            raise CaptureError(f"{pattern} does not exist: correct the camera's path, or mount what should be there")
        files = [path for path in found if path.is_file()]
    except OSError as error:
        raise CaptureError(f"{pattern} cannot be listed: {error.strerror}; check its permissions") from error
    if not files:
        raise CaptureError(
            f"{pattern} holds no image: put files there that end in {', '.join(SUFFIXES)}, "
            f"or name its subfolders too, as in {root.as_posix()}/**/*.png"
        )
    return root, sorted(files, key=lambda path: natural_key(path.as_posix()))


def find_images(where: Path) -> list[Path]:
    """One image file, those a glob names, or those of a folder and all its subfolders; in natural order.

    Raises:
        CaptureError: it does not exist, cannot be listed, or holds no image.
    """
    if not where.is_dir():
        return list_images(str(where))[1]
    files = list_images(f"{glob.escape(str(where))}/**/*")[1]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise CaptureError(
            f"{where} and its subfolders hold no image: put files there that end in {', '.join(SUFFIXES)}"
        )
    return images


def _fixed_part(pattern: Path) -> Path:
    """The part of a glob before its first wildcard."""
    parts = pattern.parts
    wild = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:wild])


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts as people count.

    >>> sorted(["b10.png", "b9.png"], key=natural_key)
    ['b9.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part.lower()) for part in parts]


def read_image(path: Path) -> Image:
    """One image as it is stored: 16 bits or 4 channels stay, so that the pipeline can refuse them by name.

    Raises:
        FrameUnreadableError: gone, empty, cut short or not an image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FrameUnreadableError(f"{path} cannot be read: {error.strerror}") from error
    problem = "it is empty" if not data else truncation(data)
    if problem:
        raise FrameUnreadableError(f"{path} is cut short: {problem}; copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise FrameUnreadableError(f"{path} cannot be decoded: {error.err}") from error
    if image is None:
        raise FrameUnreadableError(f"{path} is not an image this program can decode")
    return cast(Image, image)  # not a conversion: another depth is refused later, by name


def truncation(data: bytes) -> str:
    """What is missing at the end of an image file, "" when nothing is or the format is not known.

    OpenCV decodes a JPEG that was cut short to a partly grey picture and only warns on standard error, so
    this is found out before decoding.

    >>> truncation(b"\\x89PNG\\r\\n\\x1a\\n")
    'a PNG without its end chunk'
    """
    if data.startswith(b"\xff\xd8"):
        return "" if _jpeg_ends(data) else "a JPEG without its end marker"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "" if _png_ends(data) else "a PNG without its end chunk"
    sizes = {b"BM": (0, 2), b"RI": (8, 4)}  # what the size counts from, and where it stands
    if data[:2] in sizes and len(data) >= 14 and (data[:2] == b"BM" or data[:4] == b"RIFF"):
        extra, at = sizes[data[:2]]
        size = extra + int(struct.unpack_from("<I", data, at)[0])
        return "" if size <= len(data) else f"it has {len(data)} of {size} bytes"
    return ""


def _jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the image data; the one of an embedded thumbnail does not count."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # start of scan: behind it 0xFFD9 cannot be anything but the end
            return data.find(b"\xff\xd9", at) >= 0
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return False


def _png_ends(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + int(length)
        if kind == b"IEND":
            return at <= len(data)
    return False
