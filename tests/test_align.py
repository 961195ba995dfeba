"""Parts are brought back to where the reference lay."""

import numpy as np
import pytest

from edge.align import Aligner, AlignSettings, make_reference, moved
from edge.errors import BundleError
from tests.boards import drawn_boards


@pytest.fixture(scope="module")
def board():
    return drawn_boards(1)[0][:320]


@pytest.mark.parametrize("by", [(0, 0), (12, 0), (0, -9), (-17, 14)])
def test_a_shifted_part_is_brought_back(board, by):
    aligner = Aligner(AlignSettings(reference=make_reference(board, 320)))
    shifted = moved(board, *by)
    x, y = aligner.shift(shifted)
    assert abs(x - by[0]) <= 2 and abs(y - by[1]) <= 2
    back = aligner.align(shifted)
    inner = (slice(30, -30), slice(30, -30))
    assert np.mean(back[inner] != board[inner]) <= 0.5 * np.mean(shifted[inner] != board[inner])


def test_other_light_does_not_matter(board):
    aligner = Aligner(AlignSettings(reference=make_reference(board, 320)))
    dim = (moved(board, 10, -6) * 0.5 + 20).astype(np.uint8)
    x, y = aligner.shift(np.repeat(dim[..., None], 3, axis=2))
    assert abs(x - 10) <= 2 and abs(y + 6) <= 2


def test_a_shift_beyond_the_limit_is_not_made(board):
    aligner = Aligner(AlignSettings(reference=make_reference(board, 320), most=0.01))
    shifted = moved(board, 40, 0)
    assert aligner.shift(shifted) == (0, 0)
    assert aligner.align(shifted) is shifted


@pytest.mark.parametrize("shape", [(320, 640), (1, 640), (320, 640, 3)])
def test_pictures_without_structure_stay_in_range(shape, board):
    aligner = Aligner(AlignSettings(reference=make_reference(board, 320)))
    flat = np.zeros(shape, np.uint8)
    assert aligner.align(flat).shape == shape and not aligner.align(flat).any()


@pytest.mark.parametrize("reference", [b"", b"no picture", make_reference(np.zeros((64, 64), np.uint8), 8)])
def test_a_reference_that_is_none_is_refused(reference):
    with pytest.raises(BundleError, match="reference picture"):
        Aligner(AlignSettings(reference=reference))
