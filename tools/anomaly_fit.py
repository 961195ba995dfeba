"""Fits the networks of `anomaly_net` to cells of features: first the closed-set head, then the residual block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import paddle
from paddle.nn import functional as F
from tqdm import tqdm

from tools.anomaly_data import Cells
from tools.anomaly_net import (
    OUTLIER,
    STAY,
    AnomalyConfig,
    AnomalyNetwork,
    Projector,
    by_cell,
    contrast,
    free_energy,
    rpl_losses,
)
from tools.errors import ToolError


@dataclass(frozen=True)
class FitConfig:
    """How the networks are trained.

    Attributes:
        head_steps, steps: of the head and of the residual block. batch: pictures a step of each scene.
        rate: of AdamW, falling by a cosine. energy: weight of the outliers' loss. stay: see `rpl_losses`.
        contrast: weight of CoroCL; 0: without.
        views: cells of each kind and scene that are contrasted a step.
        defects: weight of a defect's cell over one of background, in the head's loss.
    """

    head_steps: int = 400
    steps: int = 500
    batch: int = 12
    window: int = 20
    rate: float = 2e-3
    energy: float = 0.1
    stay: float = STAY
    contrast: float = 0.2
    views: int = 128
    defects: float = 3.0
    seed: int = 1


def batch_of(cells: Cells, count: int, window: int, rng: np.random.Generator) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Features (B, C, h, w) float32 and labels (B*h*w,) int64 of random windows, one a picture.

    Args:
        window: side in cells, cut to the picture where it is smaller.
    """
    _, height, width = cells.label.shape
    high, wide = min(window, height), min(window, width)
    features, labels = [], []
    for row in rng.integers(len(cells), size=count):
        y, x = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
        features.append(cells.features[row, :, y : y + high, x : x + wide])
        labels.append(cells.label[row, y : y + high, x : x + wide])
    tensor = paddle.to_tensor(np.stack(features).astype(np.float32))
    tensor.stop_gradient = False  # the depthwise convolution's own backward pass gives its input a gradient
    return tensor, paddle.to_tensor(np.stack(labels).astype(np.int64).ravel())


def _optimizer(parameters: list[paddle.Tensor], rate: float, steps: int) -> tuple[paddle.optimizer.Optimizer, object]:
    falling = paddle.optimizer.lr.CosineAnnealingDecay(rate, steps)
    clip = paddle.nn.ClipGradByGlobalNorm(5.0)
    return paddle.optimizer.AdamW(falling, parameters=parameters, weight_decay=1e-2, grad_clip=clip), falling


def fit_head(network: AnomalyNetwork, cells: Cells, config: FitConfig) -> float:
    """Fit the closed-set head to background and known classes, then freeze it; returns its last mean loss.

    Args:
        cells: at the stride of the anomaly map, see `Cells.pooled`.

    Raises:
        ToolError: no cell of a known class.
    """
    if not ((cells.label > 0) & (cells.label < OUTLIER)).any():
        raise ToolError("no cell shows a known defect: the training images have no labels to fit a pixel head to")
    rng, head = np.random.default_rng(config.seed), network.head
    optimizer, falling = _optimizer(head.parameters(), config.rate, config.head_steps)
    weight = paddle.to_tensor([1.0, *[config.defects] * network.config.classes])
    losses: list[float] = []
    head.train()
    for _ in tqdm(range(config.head_steps), "pixel head", mininterval=5):
        features, label = batch_of(cells, config.batch, config.window, rng)
        inside = label < OUTLIER
        logits = by_cell(head(features))
        loss = F.cross_entropy(logits[inside], label[inside], weight=weight)
        loss.backward()
        optimizer.step(), optimizer.clear_grad(), falling.step()  # type: ignore[attr-defined]
        losses.append(float(loss))
    head.eval()
    for parameter in head.parameters():
        parameter.stop_gradient = True
    return float(np.mean(losses[-50:]))


def fit_residual(network: AnomalyNetwork, own: Cells, context: Cells | None, config: FitConfig) -> dict[str, float]:
    """Fit the residual block by RPL, and by CoroCL where there is another context; returns the last mean losses.

    Args:
        own: cells of the product's own scene, with outliers, at the stride of the anomaly map.
        context: the same of other contexts.
    """
    rng = np.random.default_rng([config.seed, 2])
    projector = Projector(network.config)
    trained = [*network.residual.parameters(), *projector.parameters()]
    optimizer, falling = _optimizer(trained, config.rate, config.steps)
    history: list[tuple[float, float, float]] = []
    network.head.eval(), network.residual.train()
    for _ in tqdm(range(config.steps), "residual", mininterval=5):
        x, label = batch_of(own, config.batch, config.window, rng)
        inside = network.residual.inside(x)
        logits = by_cell(network.head(x + network.residual.project(inside)))
        with paddle.no_grad():
            vanilla = by_cell(network.head(x))
        inlier, outlier = rpl_losses(logits, vanilla, label, config.stay)
        apart = paddle.zeros([])
        if context is not None and config.contrast > 0:
            others, theirs = batch_of(context, config.batch, config.window, rng)
            far = network.residual.inside(others)
            apart = _contrast(projector, (inside, label), (far, theirs), config.views, rng)
        loss = inlier + config.energy * outlier + config.contrast * apart
        loss.backward()
        optimizer.step(), optimizer.clear_grad(), falling.step()  # type: ignore[attr-defined]
        history.append((float(inlier), float(outlier), float(apart)))
        if not math.isfinite(history[-1][0] + history[-1][1]):
            raise ToolError("the residual block's training diverged: lower --rate")
    network.eval()
    last = np.mean(history[-50:], axis=0)
    return dict(zip(("inlier", "outlier", "contrast"), (round(float(x), 4) for x in last), strict=True))


def _contrast(
    projector: Projector,
    own: tuple[paddle.Tensor, paddle.Tensor],
    other: tuple[paddle.Tensor, paddle.Tensor],
    views: int,
    rng: np.random.Generator,
) -> paddle.Tensor:
    """CoroCL over equally many inliers and outliers of both scenes."""
    scenes = [(by_cell(projector(inside)), label.numpy()) for inside, label in (own, other)]
    places = [[np.flatnonzero(label == OUTLIER), np.flatnonzero(label < OUTLIER)] for _, label in scenes]
    n = min(views, *(len(rows) for scene in places for rows in scene))
    if n < 2:
        return paddle.zeros([])
    drawn = [[paddle.to_tensor(rng.choice(rows, n, replace=False)) for rows in scene] for scene in places]
    vectors = [paddle.concat([rows[index] for index in pair]) for (rows, _), pair in zip(scenes, drawn, strict=True)]
    kinds = paddle.to_tensor(np.repeat([True, False], n))
    return contrast(vectors[0], kinds, paddle.concat(vectors), paddle.concat([kinds, kinds]))


def energy_map(network: AnomalyNetwork, features: np.ndarray, disturbed: bool = True) -> np.ndarray:
    """Free energy (N, h, w) of pooled features (N, C, h, w), with the residual block or without it."""
    return np.asarray(free_energy(paddle.to_tensor(logits_of(network, features, disturbed))).numpy())


def logits_of(network: AnomalyNetwork, features: np.ndarray, disturbed: bool = True) -> np.ndarray:
    """Logits (N, K, h, w) of features (N, C, h, w) that are pooled already, as `Cells` are."""
    parts = []
    with paddle.no_grad():
        for start in range(0, len(features), 8):
            x = paddle.to_tensor(features[start : start + 8].astype(np.float32))
            parts.append(network.head(x + network.residual(x) if disturbed else x).numpy())
    return np.concatenate(parts)


def make_network(config: AnomalyConfig, seed: int) -> AnomalyNetwork:
    """An untrained network, the same for the same seed."""
    paddle.seed(seed)
    network = AnomalyNetwork(config)
    network.eval()
    return network
