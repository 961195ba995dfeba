"""Models of what good parts look like, in the feature space of a detector: fitted to good parts alone, no training data
of anything bad.

All take features (C, h, w) of a part and give a map (h, w), higher where the part is less like the good ones:

    gaussian   mean and deviation of each feature at each place; the map is the mean squared deviation (PaDiM, Defard et
               al., arXiv:2011.08785, with a diagonal covariance: a score of good parts gives no more at each place)
    whitened   mean at each place, one full covariance for all places
    bank       distance to the nearest of a coreset of patches from anywhere (PatchCore, Roth et al., arXiv:2106.08265)
    places     distance to the nearest patch of any good part at the same place or its neighbours
    student    error of a small network that learned to reproduce the features of good parts through a bottleneck
               (student and teacher, Bergmann et al., arXiv:1911.02357; the frozen detector is the teacher)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from edge.boxes import Float
from tools.network import ConvNorm

Map = Callable[[Float], Float]  # features (C, h, w) of a part -> map (h, w)

FLOOR = 0.1  # share of the features' overall variance added at each place: a score of parts cannot show a tail
SHRINK = 0.1  # of the full covariance towards a multiple of the identity
BANK = 500  # patches of the coreset
BOTTLENECK = 8  # channels through which the student must get the features
STUDENT_STEPS, STUDENT_BATCH, STUDENT_WINDOW = 300, 6, 16


@dataclass(frozen=True)
class Gaussian:
    """Mean and deviation of each feature at each place, both (C, h, w)."""

    mean: Float
    deviation: Float

    def __call__(self, features: Float) -> Float:
        """The map of one part."""
        return np.asarray(np.mean(np.square((features - self.mean) / self.deviation), axis=0), np.float32)


def gaussian(good: Float, floor: float = FLOOR) -> Gaussian:
    """Fit to good parts (N, C, h, w).

    >>> model = gaussian(np.array([[[[0.0, 1.0]]], [[[2.0, 1.0]]]]), floor=0.5)
    >>> model(np.array([[[1.0, 3.0]]])).round(2).tolist()
    [[0.0, 16.0]]
    """
    variance = good.var(axis=0) + floor * float(good.var())
    return Gaussian(good.mean(axis=0), np.sqrt(variance))


def whitened(good: Float) -> Map:
    """Mean at each place and one covariance for all; the Mahalanobis distance over the channels."""
    mean = good.mean(axis=0)
    rows = (good - mean).transpose(0, 2, 3, 1).reshape(-1, good.shape[1])  # (N*h*w, C)
    covariance = rows.T @ rows / len(rows)
    covariance += np.eye(len(covariance)) * SHRINK * np.trace(covariance) / len(covariance)
    whiten = np.linalg.cholesky(np.linalg.inv(covariance)).T  # (C, C)
    return lambda features: np.square(np.einsum("kc,chw->khw", whiten, features - mean)).mean(axis=0)


def coreset(rows: Float, count: int) -> Float:
    """Greedy k-centre: `count` of the rows (N, C), each the farthest from those before it.

    >>> coreset(np.array([[0.0], [1.0], [10.0], [9.0]], np.float32), 2).ravel().tolist()
    [0.0, 10.0]
    """
    chosen = [0]
    nearest = np.square(rows - rows[0]).sum(axis=1)
    while len(chosen) < min(count, len(rows)):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.square(rows - rows[chosen[-1]]).sum(axis=1))
    return rows[chosen]


def bank(good: Float, count: int = BANK) -> Map:
    """Squared distance to the nearest patch of a coreset."""
    rows = good.transpose(0, 2, 3, 1).reshape(-1, good.shape[1])
    kept = coreset(rows, count)
    length = np.square(kept).sum(axis=1)

    def score(features: Float) -> Float:
        channels, height, width = features.shape
        mine = features.transpose(1, 2, 0).reshape(-1, channels)
        distance = np.square(mine).sum(axis=1) + (length - 2 * mine @ kept.T).min(axis=1)
        return np.asarray(np.maximum(distance, 0).reshape(height, width), np.float32)

    return score


def places(good: Float, reach: int = 1) -> Map:
    """Squared distance to the nearest patch of any good part at most `reach` cells away."""
    _, _, height, width = good.shape
    padded = np.pad(good, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")

    def score(features: Float) -> Float:
        best = np.full((height, width), np.inf, np.float32)
        for y in range(2 * reach + 1):
            for x in range(2 * reach + 1):
                there = padded[:, :, y : y + height, x : x + width]
                best = np.minimum(best, np.square(there - features).sum(axis=1).min(axis=0))
        return best

    return score


class Student(nn.Layer):
    """Features (B, C, h, w) through a bottleneck and back."""

    def __init__(self, channels: int):
        super().__init__()
        self.inward = ConvNorm(channels, channels, 3)
        self.narrow = nn.Conv2D(channels, BOTTLENECK, 1)
        self.outward = ConvNorm(BOTTLENECK, channels, 3)
        self.out = nn.Conv2D(channels, channels, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.out(self.outward(self.narrow(self.inward(x))))


def student(good: Float, steps: int = STUDENT_STEPS, seed: int = 1) -> Map:
    """Fit a student to good parts; the map is its squared error, by each channel's deviation."""
    paddle.seed(seed)
    network, rng = Student(good.shape[1]), np.random.default_rng(seed)
    deviation = good.std(axis=(0, 2, 3), keepdims=True)[0] + 1e-6  # (C, 1, 1)
    rate = paddle.optimizer.lr.CosineAnnealingDecay(3e-3, steps)
    optimizer = paddle.optimizer.AdamW(rate, parameters=network.parameters())
    for _ in range(steps):
        x = paddle.to_tensor((_windows(good, rng) / deviation).astype(np.float32))
        loss = F.mse_loss(network(x), x)
        loss.backward()
        optimizer.step(), optimizer.clear_grad(), rate.step()
    network.eval()

    def score(features: Float) -> Float:
        x = (features / deviation).astype(np.float32)
        with paddle.no_grad():
            told = network(paddle.to_tensor(x[None])).numpy()[0]
        return np.asarray(np.square(told - x).mean(axis=0), np.float32)

    return score


def _windows(good: Float, rng: np.random.Generator) -> Float:
    """Random windows of parts, one each of `STUDENT_BATCH`."""
    _, _, height, width = good.shape
    high, wide = min(STUDENT_WINDOW, height), min(STUDENT_WINDOW, width)
    rows = rng.integers(len(good), size=STUDENT_BATCH)
    tops = rng.integers(height - high + 1, size=STUDENT_BATCH)
    lefts = rng.integers(width - wide + 1, size=STUDENT_BATCH)
    return np.stack([good[r, :, y : y + high, x : x + wide] for r, y, x in zip(rows, tops, lefts, strict=True)])


MODELS: dict[str, Callable[[Float], Map]] = {
    "gaussian": gaussian,
    "whitened": whitened,
    "bank": bank,
    "places": places,
    "student": student,
}


class GaussianNetwork(nn.Layer):
    """A `Gaussian` as a network: detector features (1, C, h, w) -> deviations (1, K, h', w') in units of their spread.

    Features are pooled, brought to K channels by a semi-orthogonal matrix (Kim et al., arXiv:2105.14737: any such
    projection keeps distances about as well as the full space), and set off against mean and deviation at the place.
    """

    def __init__(self, projection: Float, model: Gaussian, pool: int):
        super().__init__()
        width, channels = projection.shape
        self.pool = nn.AvgPool2D(pool) if pool > 1 else None
        self.project = nn.Conv2D(channels, width, 1, bias_attr=False)
        self.project.weight.set_value(projection.reshape(width, channels, 1, 1).astype(np.float32))
        self.register_buffer("less", paddle.to_tensor((-model.mean)[None].astype(np.float32)))
        self.register_buffer("scale", paddle.to_tensor((1 / model.deviation)[None].astype(np.float32)))

    def forward(self, features: paddle.Tensor) -> paddle.Tensor:
        x = features if self.pool is None else self.pool(features)
        return (self.project(x) + self.less) * self.scale


def semi_orthogonal(width: int, channels: int, seed: int) -> Float:
    """A random matrix (width, channels) with orthonormal rows.

    >>> m = semi_orthogonal(2, 5, 0)
    >>> np.allclose(m @ m.T, np.eye(2), atol=1e-6)
    True
    """
    if width > channels:
        raise ValueError(f"{width} channels cannot be orthogonal among {channels}")
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, width)))
    return np.asarray(q.T, np.float32)


def smoothed(found: Float, side: int) -> Float:
    """The map averaged over `side` x `side` cells, as the device does it."""
    return found if side < 2 else np.asarray(cv2.blur(found, (side, side), borderType=cv2.BORDER_REPLICATE), np.float32)
