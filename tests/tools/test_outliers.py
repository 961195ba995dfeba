"""Outliers change a picture where their mask says, look foreign, and know no class of defect."""

import numpy as np
import pytest

from tests.boards import drawn_boards
from tools.outliers import OutlierConfig, add_outliers, fill, foreign_shape, in_tones_of, texture

NOTHING = np.empty((0, 4), np.float32)
ALWAYS = OutlierConfig(share=1.0)


@pytest.fixture(scope="module")
def board():
    return drawn_boards(1)[0][:256, :256]


@pytest.mark.parametrize("seed", range(8))
def test_only_what_the_mask_says_changes_visibly(board, seed):
    pasted, mask = add_outliers(board, np.random.default_rng(seed), ALWAYS, [], NOTHING)
    difference = np.abs(pasted.astype(int) - board)
    assert (difference[~mask] <= 24).all() and pasted.shape == board.shape and pasted.dtype == np.uint8
    assert not mask.any() or (difference[mask] > 24).mean() > 0.9  # outliers may lie over each other


def test_the_picture_itself_stays_as_it_was(board):
    before = board.copy()
    add_outliers(board, np.random.default_rng(0), ALWAYS, [], NOTHING)
    assert (board == before).all()


def test_known_boxes_are_left_alone(board):
    box = np.array([[40, 40, 200, 200]], np.float32)
    for seed in range(20):
        _, mask = add_outliers(board, np.random.default_rng(seed), OutlierConfig(share=1.0, most_px=20), [], box)
        assert not mask[40:200, 40:200].any()


def test_the_share_of_pictures_is_kept(board):
    rng = np.random.default_rng(1)
    hit = [add_outliers(board, rng, OutlierConfig(share=0.3), [], NOTHING)[1].any() for _ in range(150)]
    assert 0.12 < np.mean(hit) < 0.42
    assert not add_outliers(board, rng, OutlierConfig(share=0.0), [], NOTHING)[1].any()


def test_colour_pictures_and_foreign_donors(board):
    colour = np.repeat(board[..., None], 3, axis=2)
    only_foreign = OutlierConfig(share=1.0, texture=0, foreign=1, cut_paste=0, tone=0, own_tones=0)
    donor = np.zeros((50, 70, 3), np.uint8)
    donor[..., 2] = 255
    masks = []
    for seed in range(6):
        pasted, mask = add_outliers(colour, np.random.default_rng(seed), only_foreign, [donor], NOTHING)
        masks.append(mask.sum())
        red = pasted[mask].astype(int)
        assert not len(red) or (red[:, 2] >= red[:, 0]).all()
    assert sum(masks) > 0


def test_own_tones_leave_no_grey_on_a_black_and_white_picture():
    picture = np.zeros((64, 64), np.uint8)
    picture[:, 32:] = 255
    rng = np.random.default_rng(2)
    assert set(np.unique(in_tones_of(picture, texture(rng, (20, 30), 1), rng))) <= {0, 255}
    flat = np.full((64, 64), 255, np.uint8)
    assert set(np.unique(in_tones_of(flat, texture(rng, (20, 30), 1), rng))) <= {0, 255}


@pytest.mark.parametrize("side", [4.0, 20.0, 70.0])
def test_shapes_are_about_as_large_as_asked(side):
    rng = np.random.default_rng(3)
    longest = [max(foreign_shape(rng, side).shape) for _ in range(60)]
    assert 0.3 * side < np.median(longest) < 1.6 * side + 4 and max(longest) <= max(8, 1.5 * side + 1)


def test_fillings_have_the_size_and_channels_of_the_picture(board):
    colour, rng = np.repeat(board[..., None], 3, axis=2), np.random.default_rng(4)
    for picture, channels in ((board, ()), (colour, (3,))):
        for _ in range(20):
            made = fill(picture, (9, 17), rng, ALWAYS, [board, colour])
            assert made.shape == (9, 17, *channels) and made.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 300), (5, 5), (300, 2, 3)])
def test_pictures_too_small_for_an_outlier_stay_clean(shape):
    picture = np.full(shape, 9, np.uint8)
    pasted, mask = add_outliers(picture, np.random.default_rng(5), ALWAYS, [], NOTHING)
    assert mask.shape == shape[:2] and (mask.any() or (pasted == picture).all())
