"""Image files: their order, and what is wrong with some."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.capture.folder import FolderSource, find_images, read_image
from edge.config import FolderCamera
from edge.errors import CaptureError, FrameUnreadableError, ImageError, SourceEndedError
from edge.preprocess import check_image
from tests.capture.streams import write_images


def encoded(suffix: str, image: np.ndarray | None = None) -> bytes:
    if image is None:
        image = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)
    good, data = cv2.imencode(suffix, image)
    assert good
    return data.tobytes()


def names(source: FolderSource, count: int) -> list[str]:
    found = []
    while len(found) < count:
        grab = source.read(0.5)
        if grab is not None:
            found.append(grab.name)
    return found


def test_files_come_in_the_order_people_count_and_then_end(tmp_path: Path) -> None:
    write_images(tmp_path, 11)
    (tmp_path / "notes.txt").write_text("not an image")
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path), fps=500))
    source.open()
    assert names(source, 11) == [f"part{k}.png" for k in range(1, 12)]
    with pytest.raises(SourceEndedError, match="all 11 images were read"):
        source.read(0.1)


def test_a_loop_starts_over_and_sees_what_came_and_went(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path), fps=500, loop=True))
    source.open()
    assert names(source, 2) == ["part1.png", "part2.png"]
    os.rename(paths[0], tmp_path / "part3.png")
    assert names(source, 3) == ["part2.png", "part3.png", "part2.png"]


def test_a_glob_names_files_relative_to_its_fixed_part(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 1)
    write_images(tmp_path / "b" / "deep", 2)
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path / "**" / "*.png"), fps=500))
    source.open()
    assert names(source, 3) == ["a/part1.png", "b/deep/part1.png", "b/deep/part2.png"]
    assert len(find_images(tmp_path / "b" / "deep")) == 2


def test_the_pace_is_the_one_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path), fps=40, loop=True))
    source.open()
    start = time.monotonic()
    names(source, 21)
    assert 0.45 < time.monotonic() - start < 3, "21 frames at 40 a second take half a second"


MISSING: list[tuple[str, Callable[[Path], Path], str]] = [
    ("no such folder", lambda tmp: tmp / "gone", r"gone does not exist: .*mount"),
    ("an empty folder", lambda tmp: tmp, r"holds no image: put files there that end in .*\.png"),
    ("a glob without a match", lambda tmp: tmp / "*.jpg", r"\*\.jpg holds no image"),
]


@pytest.mark.parametrize(("reason", "where", "message"), MISSING, ids=[row[0] for row in MISSING])
def test_what_cannot_be_opened_is_named_with_a_remedy(
    reason: str, where: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    source = FolderSource(FolderCamera(id="c", path=str(where(tmp_path))))
    with pytest.raises(CaptureError, match=message):
        source.open()


BROKEN = [
    ("a JPEG cut in its image data", "a.jpg", encoded(".jpg")[:-200], "JPEG without its end marker"),
    ("a JPEG cut in its header", "a.jpg", encoded(".jpg")[:100], "JPEG without its end marker"),
    ("a PNG cut in its image data", "a.png", encoded(".png")[:-300], "PNG without its end chunk"),
    ("a PNG that lacks the last byte", "a.png", encoded(".png")[:-1], "PNG without its end chunk"),
    ("a BMP cut short", "a.bmp", encoded(".bmp")[:-50], "bytes"),
    ("a WebP cut short", "a.webp", encoded(".webp")[:-50], "bytes"),
    ("an empty file", "a.png", b"", "it is empty"),
    ("text under an image's name", "a.jpg", b"hello, not an image", "is not an image"),
]


@pytest.mark.parametrize(("reason", "name", "data", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_a_broken_file_is_one_lost_frame_named_and_the_next_is_read(
    reason: str, name: str, data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "b.png").write_bytes(encoded(".png"))
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path), fps=500))
    source.open()
    with pytest.raises(FrameUnreadableError, match=message) as caught:
        source.read(0.5)
    assert name in str(caught.value)
    assert names(source, 1) == ["b.png"]


def test_a_whole_jpeg_with_bytes_behind_its_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "padded.jpg"
    path.write_bytes(encoded(".jpg") + bytes(4096))
    assert read_image(path).shape == (64, 96, 3)


def test_a_file_that_vanished_is_one_lost_frame(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    source = FolderSource(FolderCamera(id="c", path=str(tmp_path), fps=500))
    source.open()
    paths[0].unlink()
    with pytest.raises(FrameUnreadableError, match=r"part1.png cannot be read: No such file"):
        source.read(0.5)
    assert names(source, 1) == ["part2.png"]


ODD = [
    ("16 bits stay 16 bits", np.full((8, 9), 40_000, np.uint16), "uint16"),
    ("four channels stay four", np.zeros((8, 9, 4), np.uint8), r"\(8, 9, 4\)"),
]


@pytest.mark.parametrize(("reason", "image", "message"), ODD, ids=[row[0] for row in ODD])
def test_odd_images_arrive_as_they_are_so_that_the_pipeline_refuses_them_by_name(
    reason: str, image: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(encoded(".png", image))
    read = read_image(path)
    assert np.array_equal(read, image)
    with pytest.raises(ImageError, match=message):
        check_image(read)
