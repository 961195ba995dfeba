"""Synthetic defects get the class that their effect on the copper has, and labels like the data's own."""

from __future__ import annotations

import numpy as np
import pytest

from tools.augment import Board
from tools.synthetic import (
    COPPER,
    MARGIN_PX,
    MOUSEBITE,
    OPEN,
    PIN_HOLE,
    SHORT,
    SIDE_MIN_PX,
    SPUR,
    SyntheticConfig,
    add_marks,
    classify,
    crack,
    defect_shapes,
    draw_rounds,
    smooth_shape,
    vary,
)

ALWAYS = SyntheticConfig(share=1, drills=0, pads=0, slots=0, tracks=0, mended=0, accept=(1.0,) * 6)


def two_traces() -> np.ndarray:
    """Copper (60, 60) bool: vertical traces at x 10..24 and 36..50."""
    copper = np.zeros((60, 60), bool)
    copper[:, 10:24] = copper[:, 36:50] = True
    return copper


def mark(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    out = np.zeros((60, 60), bool)
    out[y1:y2, x1:x2] = True
    return out


@pytest.mark.parametrize(
    ("where", "removes", "kind"),
    [
        pytest.param((14, 18, 20, 30), True, PIN_HOLE, id="hole inside a trace"),
        pytest.param((6, 20, 16, 28), True, MOUSEBITE, id="bite at its edge"),
        pytest.param((6, 20, 28, 28), True, OPEN, id="cut through it"),
        pytest.param((27, 18, 33, 30), False, COPPER, id="copper between traces"),
        pytest.param((20, 20, 30, 28), False, SPUR, id="copper on one edge"),
        pytest.param((20, 20, 40, 28), False, SHORT, id="copper from trace to trace"),
        pytest.param((22, 20, 40, 28), True, None, id="would bite two traces at once"),
        pytest.param((11, 20, 17, 28), True, None, id="a pixel from the edge: hole or bite?"),
        pytest.param((27, 20, 30, 23), False, None, id="too small"),
        pytest.param((14, 20, 20, 26), True, None, id="as round as a drill"),
        pytest.param((27, 20, 33, 28), True, None, id="removes copper where there is none"),
        pytest.param((8, 0, 26, 60), True, None, id="would remove the whole trace"),
    ],
)
def test_class_follows_connectivity(where: tuple[int, int, int, int], removes: bool, kind: int | None) -> None:
    assert classify(two_traces(), mark(*where), removes) == kind


def test_shapes_are_the_differences_inside_labels() -> None:
    template = np.full((80, 80), 255, np.uint8)
    test = template.copy()
    test[20:28, 30:42] = 0
    test[60:70, 60:70] = 0  # not labelled
    board = Board(test, template, np.array([[21, 11, 51, 37]], np.float32), np.array([COPPER]), np.ones(6, bool))
    shapes = defect_shapes([board])
    assert [shape.shape for shape in shapes] == [(8, 12)] and (shapes[0] == 255).all()


@pytest.mark.parametrize("seed", range(20))
def test_varied_shape_keeps_near_its_size(seed: int) -> None:
    soft = vary(np.full((10, 20), 255, np.uint8), np.random.default_rng(seed), SyntheticConfig())
    area = (soft > 127).sum() / 200
    assert 0.6**2 * 0.8 < area < 2.4**2 * 1.2 and soft.max() == 255


@pytest.mark.parametrize("seed", range(20))
def test_marks_are_where_their_labels_say(seed: int) -> None:
    clean = np.where(np.arange(200) % 50 < 25, 0, 255).astype(np.uint8)[None].repeat(200, axis=0)
    before = np.empty((0, 4), np.float32)
    shape = np.full((12, 12), 255, np.uint8)
    rng = np.random.default_rng(seed)
    image, xyxy, class_id = add_marks(clean, before, np.empty(0, np.int64), [shape], rng, ALWAYS)
    assert len(xyxy) == len(class_id) and (clean == np.where(np.arange(200) % 50 < 25, 0, 255)).all()
    left = image != clean
    for x1, y1, x2, y2 in xyxy:
        inner = left[round(y1) : round(y2), round(x1) : round(x2)]
        assert inner.any() and min(x2 - x1, y2 - y1) >= min(SIDE_MIN_PX, 2 * MARGIN_PX)
        left[round(y1) : round(y2), round(x1) : round(x2)] = False
    assert not left.any()


def test_marks_are_deterministic_and_keep_what_was_there() -> None:
    clean = np.full((120, 120), 255, np.uint8)
    had = np.array([[10, 10, 40, 40]], np.float32)
    shape = np.full((9, 9), 255, np.uint8)
    one, two = (
        add_marks(clean, had, np.array([3]), [shape], np.random.default_rng(5), SyntheticConfig(share=1))
        for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert (one[1][0] == had[0]).all() and one[2][0] == 3


def test_drills_go_into_copper_clear_of_labels() -> None:
    image = np.zeros((120, 120), np.uint8)
    boxes = np.array([[0, 0, 60, 120]], np.float32)
    for seed in range(10):
        draw_rounds(image, np.random.default_rng(seed), boxes, hole=True)
    assert image[:, 60:].any() and not image[:, :60].any()


def test_no_copper_no_drill() -> None:
    image = np.full((60, 60), 255, np.uint8)
    draw_rounds(image, np.random.default_rng(0), np.empty((0, 4), np.float32), hole=True)
    assert (image == 255).all()


@pytest.mark.parametrize("seed", range(10))
def test_crack_is_about_as_long_as_asked_and_smooth_shapes_are_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert 20 < np.hypot(*crack(60, rng).shape) < 100
    soft = smooth_shape(rng)
    assert soft.max() == 255 and min(soft.shape) >= 4 and max(soft.shape) <= 70
