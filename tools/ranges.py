"""How large activations get, and which part of that INT8 should keep: the calibration algorithms.

One pass over the calibration images collects a histogram of the magnitudes at the input of each quantized layer; every
algorithm chooses from the histogram. paddleslim has the same algorithms by the same names, but runs the network anew
for each and searches whole tensors image by image, which takes hours where this takes a minute.

    abs_max   the largest magnitude of all: nothing is clipped, rounding is coarse
    avg       the mean over the images of the largest magnitude of each
    hist      the magnitude that a share of all values stays under
    mse       the least mean squared error of rounding and clipping together
    emd       the least change of mean and deviation of the magnitudes
    KL        the least relative entropy between the histogram and its rounded form (Migacz, "8-bit Inference with
              TensorRT", 2017)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

from edge.boxes import Float
from tools.errors import ToolError
from tools.paddle_model import StaticModel, static_mode
from tools.ptq import LEVELS

BINS = 4096  # a multiple of two, because bins are merged in pairs when the range doubles
SHARES = np.arange(0.2, 1.001, 0.01)  # of the largest magnitude, that a search tries
LEAST = 1e-6  # scale of an input that is always zero


class Histogram:
    """Counts of magnitudes in bins of equal width from zero on; the range doubles when a larger one comes.

    >>> h = Histogram()
    >>> h.add(np.array([0.5, -1.0], np.float32)), h.add(np.array([3.0], np.float32))
    (None, None)
    >>> h.range, h.tops, int(h.counts.sum())
    (4.0, [1.0, 3.0], 3)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.range = 0.0
        self.tops: list[float] = []  # the largest magnitude of each tensor

    def add(self, values: Float) -> None:
        """Count the values of a tensor of any shape.

        Raises:
            ToolError: they are not finite.
        """
        magnitudes = np.abs(values).reshape(-1)
        top = float(magnitudes.max())
        if not math.isfinite(top):
            raise ToolError("an activation is not finite: the model is broken, train or export it again")
        self.tops.append(top)
        if self.range == 0:
            self.range = 2.0 ** math.ceil(math.log2(max(top, LEAST)))
        while top > self.range:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
            self.range *= 2
        place = np.minimum((magnitudes * (BINS / self.range)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(place, minlength=BINS)

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.range / BINS

    @property
    def centres(self) -> np.ndarray:
        """Magnitude that each bin stands for, (BINS,)."""
        return (np.arange(BINS) + 0.5) * self.width


def _abs_max(h: Histogram, percent: float) -> float:
    return max(h.tops)


def _avg(h: Histogram, percent: float) -> float:
    return float(np.mean(h.tops))


def _hist(h: Histogram, percent: float) -> float:
    place = int(np.searchsorted(np.cumsum(h.counts), percent * h.counts.sum()))
    return min((place + 1) * h.width, max(h.tops))


def _mse(h: Histogram, percent: float) -> float:
    def error(scale: float) -> float:
        return float(np.dot(h.counts, np.square(h.centres - rounded(h.centres, scale))))

    return min(SHARES * max(h.tops), key=error)


def _emd(h: Histogram, percent: float) -> float:
    total = h.counts.sum()

    def moments(values: np.ndarray) -> tuple[float, float]:
        mean = np.dot(h.counts, values) / total
        return float(mean), float(np.sqrt(np.dot(h.counts, np.square(values - mean)) / total))

    mean, deviation = moments(h.centres)

    def error(scale: float) -> float:
        mine, spread = moments(rounded(h.centres, scale))
        return abs(mine - mean) + abs(spread - deviation)

    return min(SHARES * max(h.tops), key=error)


def _kl(h: Histogram, percent: float) -> float:
    used = math.ceil(max(h.tops) / h.width)
    ends = np.unique(np.round(SHARES * used).astype(int))
    return min((e for e in ends if e > LEVELS), key=lambda end: relative_entropy(h.counts, end), default=used) * h.width


def relative_entropy(counts: np.ndarray, end: int) -> float:
    """Kullback-Leibler divergence of a histogram, clipped at bin `end`, from its form with 127 levels; 0 or more."""
    want = counts[:end].astype(np.float64)
    edges = np.linspace(0, end, LEVELS + 1).astype(int)[:-1]
    filled = (want > 0).astype(np.float64)
    share = np.add.reduceat(want, edges) / np.maximum(np.add.reduceat(filled, edges), 1)
    got = np.repeat(share, np.diff([*edges, end])) * filled
    want[-1] += counts[end:].sum()  # what is clipped lands in the last bin, which its rounded form does not know
    got = np.maximum(got, 1e-9)
    p, q = want / want.sum(), got / got.sum()
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))


def rounded(magnitudes: np.ndarray, scale: float) -> np.ndarray:
    """What INT8 makes of magnitudes when 127 stands for `scale`.

    >>> rounded(np.array([0.4, 1.0, 5.0]), 1.27).round(2).tolist()
    [0.4, 1.0, 1.27]
    """
    step = scale / LEVELS
    return np.minimum(np.round(magnitudes / step), LEVELS) * step


CHOOSE: Mapping[str, Callable[[Histogram, float], float]] = {
    "hist": _hist,
    "avg": _avg,
    "mse": _mse,
    "abs_max": _abs_max,
    "KL": _kl,
    "emd": _emd,
}


def scale_of(histogram: Histogram, algorithm: str, percent: float) -> float:
    """The magnitude that 127 stands for, by one of the algorithms in `CHOOSE`; what is larger is clipped.

    Args:
        percent: share of the values that `hist` keeps, in (0, 1].
    """
    if max(histogram.tops) <= 0:
        return LEAST
    return max(LEAST, float(CHOOSE[algorithm](histogram, percent)))


def collect(folder: Path, filters: Sequence[str], tensors: Sequence[Float]) -> dict[str, Histogram]:
    """Histograms of the inputs of convolutions of the FP32 model in `folder`, by the names of their filters.

    Args:
        tensors: calibration inputs, (C, H, W) each, as the network takes them.
    """
    if not filters:
        return {}  # Paddle's executor takes no list of variables for all of them
    model = StaticModel.load(folder)
    read = {op.input("Filter")[0]: op.input("Input")[0] for op in model.operators("conv2d")}
    variables = sorted({read[name] for name in filters})
    found = {variable: Histogram() for variable in variables}
    wanted = [model.program.global_block().var(variable) for variable in variables]
    with static_mode(), paddle.static.scope_guard(model.scope):
        for tensor in tqdm(tensors, "calibrate", mininterval=5):
            values = model.executor.run(model.program, {model.feeds[0]: tensor[None]}, wanted)
            for variable, value in zip(variables, values, strict=True):
                found[variable].add(np.asarray(value))
    return {name: found[read[name]] for name in filters}
