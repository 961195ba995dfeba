"""What INT8 keeps of an activation: each algorithm on distributions whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from edge.preprocess import InputSpec
from tools.errors import ToolError
from tools.network import ConvNorm
from tools.paddle_model import StaticModel, save_layer
from tools.ptq import ALGORITHMS, activation_scales, filters, post_training
from tools.ranges import BINS, CHOOSE, LEAST, Histogram, collect, relative_entropy, scale_of


def histogram(*tensors: np.ndarray) -> Histogram:
    made = Histogram()
    for tensor in tensors:
        made.add(tensor.astype(np.float32))
    return made


def test_every_algorithm_is_there() -> None:
    assert set(CHOOSE) == set(ALGORITHMS)


def test_growing_range_loses_no_count() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, spread, 1000) for spread in (0.1, 3.0, 40.0)]
    made, magnitudes = histogram(*parts), np.abs(np.concatenate(parts)).astype(np.float32)
    direct, _ = np.histogram(magnitudes, BINS, (0, made.range))
    assert made.counts.sum() == 3000 and made.range >= magnitudes.max() > made.range / 2
    assert np.abs(made.counts - direct).sum() <= 6, "only values on a bin's edge may change sides"


UNIFORM = np.linspace(-2, 2, 20001)
LONG_TAIL = np.concatenate([np.random.default_rng(1).normal(0, 0.3, 100_000), [30.0]])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_uniform_values_are_kept_whole(algorithm: str) -> None:
    assert scale_of(histogram(UNIFORM), algorithm, 0.9999) == pytest.approx(2.0, rel=0.03)


@pytest.mark.parametrize(("algorithm", "clips"), [(a, a not in ("abs_max", "avg")) for a in ALGORITHMS])
def test_a_lone_outlier_is_clipped_by_all_that_may(algorithm: str, clips: bool) -> None:
    assert (scale_of(histogram(LONG_TAIL), algorithm, 0.9999) < 25) == clips


def test_avg_is_the_mean_of_the_images() -> None:
    assert scale_of(histogram(np.array([1.0]), np.array([-3.0])), "avg", 1) == 2
    assert scale_of(histogram(np.array([1.0]), np.array([-3.0])), "abs_max", 1) == 3


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_hist_keeps_the_share(share: float) -> None:
    assert scale_of(histogram(UNIFORM), "hist", share) == pytest.approx(2 * share, abs=0.002)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_input_that_is_always_zero_has_a_scale(algorithm: str) -> None:
    assert scale_of(histogram(np.zeros(10)), algorithm, 0.9999) == LEAST


def test_relative_entropy_grows_with_what_is_clipped() -> None:
    counts = np.full(BINS, 10, np.int64)
    assert relative_entropy(counts, BINS) == pytest.approx(0, abs=1e-9)
    assert 0 < relative_entropy(counts, BINS // 2) < relative_entropy(counts, BINS // 4)


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ToolError, match="not finite"):
        Histogram().add(np.array([1.0, np.nan], np.float32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranges")
    paddle.seed(1)
    save_layer(nn.Sequential(ConvNorm(1, 16, 4, 4), ConvNorm(16, 16)), root, InputSpec(64, 32, 1))
    return root


@pytest.mark.parametrize(("algorithm", "close"), [("abs_max", 1e-5), ("avg", 1e-5), ("hist", 0.02)])
def test_paddleslim_finds_the_same(model: Path, tmp_path: Path, algorithm: str, close: float) -> None:
    rng = np.random.default_rng(2)
    tensors = [rng.random((1, 32, 64)).astype(np.float32) for _ in range(3)]
    post_training(model, tmp_path / "int8", tensors, algorithm, percent=0.99)
    theirs = StaticModel.load(tmp_path / "int8")
    names = list(filters(StaticModel.load(model)))
    for name, histogram in collect(model, names, tensors).items():
        wanted = float(theirs.weight(activation_scales(theirs)[name]).reshape(-1)[0])
        assert scale_of(histogram, algorithm, 0.99) == pytest.approx(wanted, rel=close)
