"""What the drift autoencoder reads of a frame, and its error."""

from __future__ import annotations

import numpy as np
import pytest

from edge.drift.reconstruct import error, in_squares, mosaic, prepare
from edge.drift.settings import Autoencoder
from edge.errors import ImageError, PredictorError
from edge.preprocess import Image

SPEC = Autoencoder(width=64, height=32, tile=16)


def textured(height: int, width: int) -> Image:
    return np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)


def test_each_piece_is_of_the_frame_pixel_by_pixel_and_from_the_middle_of_its_part() -> None:
    frame = textured(320, 640)
    picture = mosaic(frame, 64, 32, 16)
    for row in range(2):
        for column in range(4):
            y, x = 80 + 160 * row - 8, 80 + 160 * column - 8
            piece = picture[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            assert np.array_equal(piece, frame[y : y + 16, x : x + 16])


def test_a_frame_of_the_picture_s_own_size_is_the_picture() -> None:
    frame = textured(32, 64)
    assert np.array_equal(mosaic(frame, 64, 32, 16), frame)


@pytest.mark.parametrize("size", [(1, 640), (480, 1), (1, 1), (31, 64), (33, 65), (4000, 3000)])
@pytest.mark.parametrize("tile", [0, 16])
def test_a_frame_of_any_size_has_a_picture(size: tuple[int, int], tile: int) -> None:
    tensor = prepare(textured(*size), Autoencoder(width=64, height=32, tile=tile))
    assert tensor.shape == (1, 1, 32, 64) and tensor.dtype == np.float32
    assert tensor.min() >= 0 and tensor.max() <= 1


def test_colour_becomes_grey_where_the_network_is_grey() -> None:
    frame = textured(320, 640)
    coloured = np.repeat(frame[:, :, None], 3, axis=2)
    assert np.array_equal(prepare(coloured, SPEC), prepare(frame, SPEC))
    three = Autoencoder(width=64, height=32, tile=16, channels=3)
    assert np.array_equal(prepare(coloured, three)[0, 1], prepare(frame, SPEC)[0, 0])


def test_a_sixteen_bit_frame_is_refused() -> None:
    with pytest.raises(ImageError, match="uint16"):
        prepare(np.zeros((320, 640), np.uint16), SPEC)  # type: ignore[arg-type]


def test_the_error_compares_squares_in_the_order_of_the_output() -> None:
    tensor = prepare(textured(320, 640), SPEC)
    squares = in_squares(tensor, (1, 64, 4, 8))
    assert squares[0, 0, 0, 0] == tensor[0, 0, 0, 0]
    assert squares[0, 8 * 3 + 5, 2, 7] == tensor[0, 0, 8 * 2 + 3, 8 * 7 + 5]
    assert error(tensor, squares) == 0
    assert error(tensor, squares + 0.1) > error(tensor, squares + 0.05) > 0


def test_half_the_light_is_the_same_error_where_the_network_paints_half_as_bright() -> None:
    tensor = prepare(textured(320, 640), SPEC)
    off = in_squares(tensor, (1, 64, 4, 8)) + np.float32(0.1)
    whole, half = error(tensor, off), error(tensor / 2, off / 2)
    assert half == pytest.approx(whole, rel=0.01)


def test_a_constant_frame_has_a_finite_error() -> None:
    tensor = prepare(np.zeros((320, 640), np.uint8), SPEC)
    assert error(tensor, np.zeros((1, 64, 4, 8), np.float32)) == 0
    assert np.isfinite(error(tensor, np.full((1, 64, 4, 8), 0.5, np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_answer_that_is_no_number_is_no_small_error(value: float) -> None:
    tensor = prepare(textured(320, 640), SPEC)
    squares = in_squares(tensor, (1, 64, 4, 8)).copy()
    squares[0, 3, 1, 1] = value
    with pytest.raises(PredictorError, match="not finite"):
        error(tensor, squares)


@pytest.mark.parametrize("shape", [(1, 64, 4, 7), (1, 63, 4, 8), (1, 1, 32), (1, 64, 0, 8), (2, 64, 4, 8)])
def test_an_answer_of_another_bundle_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PredictorError, match="not of one bundle"):
        error(prepare(textured(320, 640), SPEC), np.zeros(shape, np.float32))
