"""Augmentation moves boxes with pixels, and erasing leaves no trace of a defect."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tools.augment import AugmentConfig, Board, cut, dihedral, erase, roughen, training_crop, visible_share

CALM = AugmentConfig(erase=0, negative=0, blur=0, noise=0, contrast=0)


def bounds(image: np.ndarray) -> list[int]:
    """The box around all white pixels."""
    y, x = np.nonzero(image > 127)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def board(boxes: list[list[int]], side: int = 96) -> Board:
    """White blobs on a black template; each box is exactly a blob."""
    template, test = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    for x1, y1, x2, y2 in boxes:
        test[y1:y2, x1:x2] = 255
    return Board(test, template, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes)), np.ones(6, bool))


@pytest.mark.parametrize("kind", range(8))
def test_dihedral_moves_box_with_pixels(kind: int) -> None:
    b = board([[10, 20, 40, 30]])
    image, xyxy = dihedral(b.test, b.xyxy, kind)
    assert bounds(image) == xyxy[0].astype(int).tolist()


def test_the_eight_symmetries_differ() -> None:
    b = board([[10, 20, 40, 30]])
    assert len({dihedral(b.test, b.xyxy, kind)[0].tobytes() for kind in range(8)}) == 8


def test_erase_removes_defect_and_label() -> None:
    b = board([[10, 10, 20, 20], [60, 60, 80, 70]])
    erased = erase(b, np.array([True, False]))
    assert bounds(erased.test) == [60, 60, 80, 70]
    assert erased.class_id.tolist() == [1]


def test_erase_spares_a_box_whose_patch_would_cut_another() -> None:
    b = board([[10, 10, 20, 20], [23, 10, 40, 20]])
    assert len(erase(b, np.array([True, False])).xyxy) == 2


def test_erase_at_the_border_stays_inside() -> None:
    assert not erase(board([[0, 0, 12, 12], [84, 84, 96, 96]]), np.array([True, True])).test.any()


@pytest.mark.parametrize(
    ("box", "share"),
    [([0, 0, 10, 10], 1.0), ([-5, 0, 5, 10], 0.5), ([-5, -5, 5, 5], 0.25), ([20, 0, 30, 10], 0.0)],
)
def test_visible_share(box: list[int], share: float) -> None:
    assert visible_share(np.array([box], np.float32), np.array([0, 0, 20, 20], np.float32))[0] == pytest.approx(share)


def test_cut_outside_is_grey() -> None:
    out = cut(np.zeros((10, 10), np.uint8), (-5, -5, 20, 20), (20, 20))
    assert out[0, 0] == 114 and out[10, 10] == 0


@pytest.mark.parametrize("seed", range(12))
def test_crop_boxes_fit_pixels(seed: int) -> None:
    b = board([[40, 40, 56, 52]])
    image, truth = training_crop(b, (64, 64), np.random.default_rng(seed), CALM)
    assert image.shape == (64, 64)
    if len(truth.xyxy):
        assert np.abs(np.array(bounds(image)) - truth.xyxy[0]).max() <= 1.5  # resizing moves an edge by up to a pixel
    else:
        assert not (image == 255).any()  # a defect that lost its label left the picture too


def test_crop_is_deterministic() -> None:
    b = board([[40, 40, 56, 52]])
    one, two = (training_crop(b, (64, 64), np.random.default_rng(3), AugmentConfig()) for _ in range(2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1].xyxy, two[1].xyxy)


def test_negative_has_no_box_and_no_defect() -> None:
    b = board([[40, 40, 56, 52]])
    config = AugmentConfig(negative=1, noise=0, contrast=0)
    image, truth = training_crop(b, (64, 64), np.random.default_rng(0), config)
    assert len(truth.xyxy) == 0 and not (image == 255).any()


def test_roughened_is_black_and_white_and_keeps_the_picture() -> None:
    b = board([[20, 20, 60, 70]])
    rough = roughen(b.test, np.random.default_rng(1))
    assert set(np.unique(rough)) <= {0, 255} and (rough != b.test).mean() < 0.1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_long_colour_image_without_template_is_cropped_at_its_scale(channels: int, seed: int) -> None:
    test = np.zeros((60, 200), np.uint8)
    test[20:40, 80:110] = 255
    test = test if channels == 1 else cv2.merge([test] * 3)
    b = Board(test, None, np.array([[80, 20, 110, 40]], np.float32), np.array([0]), np.array([True]), scale=0.5)
    image, truth = training_crop(b, (96, 32), np.random.default_rng(seed), CALM)
    assert image.shape[:2] == (32, 96) and image.ndim == test.ndim
    for box in truth.xyxy:
        low, high = 15 * CALM.scale_low - 2, 15 * CALM.scale_high + 2
        seen = bounds(image if channels == 1 else image[..., 0])
        assert low <= box[2] - box[0] <= high and np.abs(np.array(seen) - box).max() <= 2
