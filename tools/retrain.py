"""What residual pattern learning is compared with: the whole detector trained on with outlier exposure.

Detector and pixel head learn together: boxes and classes by the detector's own loss, background and known classes by
the head's, and outliers pay for positive logsumexp as in `anomaly_net`. Nothing is frozen, so the detector changes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import paddle
from paddle.nn import functional as F
from tqdm import tqdm

from edge.preprocess import Image, to_tensor
from tools.anomaly_data import AS_IS, cell_labels, pool_labels
from tools.anomaly_net import OUTLIER, AnomalyNetwork, by_cell
from tools.augment import Board, training_crop
from tools.dataset import Dataset
from tools.errors import ToolError
from tools.loss import LossConfig, detection_loss
from tools.network import STRIDE, Detector
from tools.objective import Truth
from tools.outliers import OutlierConfig, add_outliers

CROP = 320
BATCH = 4
RATE = 3e-4
ENERGY = 0.1


def example(
    board: Board, rng: np.random.Generator, outliers: OutlierConfig, donors: Sequence[Image]
) -> tuple[Image, Truth, np.ndarray]:
    """A crop with outliers, its labels, and the labels of its cells at the detector's stride."""
    image, truth = training_crop(board, (CROP, CROP), rng, AS_IS)
    image, mask = add_outliers(image, rng, outliers, donors, truth.xyxy)
    return image, truth, cell_labels(image.shape[:2], truth.xyxy, truth.class_id, mask, STRIDE)


def step_loss(
    detector: Detector, network: AnomalyNetwork, images: paddle.Tensor, truths: list[Truth], label: np.ndarray
) -> paddle.Tensor:
    """The detector's loss, the head's, and the outliers'."""
    features = detector.features(images)
    boxes, _ = detection_loss(*detector.head(features), truths, STRIDE, LossConfig())
    logits = by_cell(network.head(network.pooled(features)))
    cells = paddle.to_tensor(pool_labels(label, network.config.pool).astype(np.int64).ravel())
    loss = boxes + F.cross_entropy(logits[cells < OUTLIER], cells[cells < OUTLIER])
    if bool((cells == OUTLIER).any()):
        loss = loss + ENERGY * F.relu(paddle.logsumexp(logits[cells == OUTLIER], axis=1)).mean()
    return loss


def retrain(
    detector: Detector,
    network: AnomalyNetwork,
    boards: Sequence[Board],
    data: Dataset,
    donors: Sequence[Image],
    outliers: OutlierConfig,
    minutes: float,
    seed: int,
) -> int:
    """Train detector and pixel head on together, in place, for so many minutes; returns the steps that were made.

    Raises:
        ToolError: the loss is not finite any more.
    """
    rng = np.random.default_rng([seed, 11])
    parameters = [*detector.parameters(), *network.head.parameters()]
    for parameter in parameters:
        parameter.stop_gradient = False
    clip = paddle.nn.ClipGradByGlobalNorm(10.0)
    optimizer = paddle.optimizer.AdamW(RATE, parameters=parameters, weight_decay=0.01, grad_clip=clip)
    detector.train(), network.head.train()
    end, steps = time.monotonic() + 60 * minutes, 0
    bar = tqdm(desc="retrain", mininterval=5)
    while time.monotonic() < end or not steps:
        made = [example(boards[i], rng, outliers, donors) for i in rng.integers(len(boards), size=BATCH)]
        spec = type(data.spec)(CROP, CROP, data.spec.channels)
        images = paddle.to_tensor(np.concatenate([to_tensor(image, spec) for image, _, _ in made]))
        loss = step_loss(detector, network, images, [t for _, t, _ in made], np.stack([c for _, _, c in made]))
        if not np.isfinite(float(loss)):
            raise ToolError("training on with outlier exposure diverged")
        loss.backward()
        left = max(0.0, (end - time.monotonic()) / (60 * minutes)) if minutes else 0.0
        optimizer.set_lr(RATE * (0.02 + 0.98 * left))
        optimizer.step(), optimizer.clear_grad()
        steps += 1
        bar.update()
    bar.close()
    detector.eval(), network.head.eval()
    return steps
