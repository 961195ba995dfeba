"""The fast depthwise convolution gives what Paddle's own gives: values and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from edge.preprocess import InputSpec
from tools.depthwise import Depthwise
from tools.paddle_model import StaticModel, save_layer


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 9), (8, 40), (13, 46)])
def test_values_and_gradients_are_those_of_paddle(kernel: int, height: int, width: int) -> None:
    paddle.seed(kernel)
    layer = Depthwise(6, kernel)
    x = paddle.randn([3, 6, height, width])
    pull = paddle.randn([3, 6, height, width])
    results = []
    for fast in (True, False):
        x.stop_gradient = False
        y = layer(x) if fast else F.conv2d(x, layer.weight, padding=kernel // 2, groups=6)
        to_input, to_filter = paddle.grad((y * pull).sum(), [x, layer.weight])
        results.append([y.numpy(), to_input.numpy(), to_filter.numpy()])
    for ours, theirs in zip(*results, strict=True):
        assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())


def test_gradient_reaches_the_input_when_the_filter_is_frozen() -> None:
    layer = Depthwise(2, 3)
    layer.weight.stop_gradient = True
    x = paddle.randn([1, 2, 6, 6])
    x.stop_gradient = False
    layer(x).sum().backward()
    assert float(paddle.abs(x.grad).max()) > 0


def test_an_exported_model_holds_an_ordinary_convolution(tmp_path: Path) -> None:
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 1), Depthwise(4, 3))
    save_layer(layer, tmp_path / "model", InputSpec(32, 32, 1))
    model = StaticModel.load(tmp_path / "model")
    assert len(model.operators("depthwise_conv2d")) == 1
    x = np.random.default_rng(0).random((1, 1, 32, 32)).astype(np.float32)
    assert np.abs(model.run(x)[0] - layer(paddle.to_tensor(x)).numpy()).max() < 1e-5


def test_an_even_side_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        Depthwise(4, 4)
