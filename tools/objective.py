"""What a training step works on and what it minimises.

`train` draws a `Batch` and asks an `Objective` for its loss; the plain one compares the network's outputs with the
labels. Adversarial training, distillation and pseudo-labels are objectives too, and wrap another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import paddle

from edge.boxes import Float
from tools.loss import LossConfig, detection_loss
from tools.network import STRIDE, Detector


@dataclass(frozen=True)
class Truth:
    """The labels of one image of a batch."""

    xyxy: Float  # (N, 4) pixels
    class_id: np.ndarray  # (N,) int64
    weight: Float  # (N,) in (0, 1]: how much a box counts; under 1 in images that Mixup blended
    known: np.ndarray  # (classes,) bool: a class that is False teaches nothing where no box says otherwise


@dataclass(frozen=True)
class Batch:
    """Images (B, C, H, W) in [0, 1] and the labels of each."""

    images: paddle.Tensor
    truth: list[Truth]


class Objective(Protocol):
    """Turns a batch into a loss."""

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """The loss to minimise, a scalar tensor, and its parts by name for the progress line and the history."""


@dataclass(frozen=True)
class LabelLoss:
    """The plain objective: the network's outputs against the labels."""

    config: LossConfig = field(default_factory=LossConfig)

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        cls, reg = network(batch.images)
        return detection_loss(cls, reg, batch.truth, STRIDE, self.config)
