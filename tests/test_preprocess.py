"""Letterboxing keeps geometry; what the pipeline cannot take is refused in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import ImageError
from edge.preprocess import PAD_VALUE, InputSpec, letterbox, preprocess

GREY = InputSpec(64, 48, 1)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((48, 64), "same size"), ((480, 640), "same aspect"), ((100, 20), "tall"), ((20, 100), "wide"), ((1, 1), "a dot"),
     ((1, 500), "a line"), ((37, 53, 3), "colour, odd")],
)  # fmt: skip
def test_every_shape_fills_the_tensor(shape, why):
    tensor, placement = preprocess(np.full(shape, 255, np.uint8), GREY)
    assert tensor.shape == (1, 1, 48, 64) and tensor.dtype == np.float32, why
    assert tensor.max() == pytest.approx(1.0), "the image itself is there"
    assert placement.scale > 0


@given(st.integers(8, 900), st.integers(8, 900), st.integers(0, 2**31))
def test_boxes_come_back_to_the_source(width, height, seed):
    rng = np.random.default_rng(seed)
    _, placement = letterbox(np.zeros((height, width), np.uint8), GREY)
    x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
    source = np.array([[x[0], y[0], x[1], y[1]]], np.float32)
    placed = source * placement.scale + np.array([placement.dx, placement.dy] * 2, np.float32)
    assert np.allclose(placement.to_source(placed.astype(np.float32), width, height), source, atol=0.05)


def test_the_rest_is_padding():
    canvas, placement = letterbox(np.zeros((10, 64), np.uint8), GREY)
    assert (canvas[: placement.dy] == PAD_VALUE).all() and (canvas[placement.dy + 10 :] == PAD_VALUE).all()


def test_channels_are_converted():
    colour, _ = preprocess(np.zeros((48, 64), np.uint8), InputSpec(64, 48, 3))
    assert colour.shape == (1, 3, 48, 64)
    image = np.zeros((48, 64, 3), np.uint8)
    image[..., 2] = 255
    tensor, _ = preprocess(image, InputSpec(64, 48, 3))
    assert tensor[0, :, 5, 5].tolist() == [0, 0, 1], "channel order stays BGR"


def test_mean_and_scale():
    tensor, _ = preprocess(np.full((48, 64), 100, np.uint8), InputSpec(64, 48, 1, scale=0.5, mean=90))
    assert np.all(tensor == 5.0)


def test_the_given_tensor_is_used():
    out = np.empty((1, 1, 48, 64), np.float32)
    tensor, _ = preprocess(np.zeros((48, 64), np.uint8), GREY, out=out)
    assert tensor is out


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint16), "uint16.*8 bits"),
        (np.zeros((4, 4), np.float32), "float32"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\).*alpha"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), "empty"),
        (np.zeros(4, np.uint8), "shape"),
    ],
)
def test_what_cannot_be_judged_is_named(image, words):
    with pytest.raises(ImageError, match=words):
        preprocess(image, GREY)


@pytest.mark.parametrize("spec", [(0, 8, 1), (8, -1, 1), (8, 8, 2)])
def test_an_impossible_input_contract_is_refused(spec):
    with pytest.raises(ImageError):
        InputSpec(*spec)
