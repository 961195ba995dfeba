"""The networks that see the unknown in a frozen detector's features, and the losses that teach them.

Residual pattern learning (RPL, Liu et al., arXiv:2211.14512): a closed-set pixel head reads the features; it is fitted
to the labels and frozen. A residual block r looks at the same features, and what it gives is added to them before the
head. It learns to leave in-distribution pixels alone and to disturb foreign ones so far that no class is likely any
more: the free energy of the disturbed logits, -logsumexp, is the anomaly map.

The detector's own class branch cannot be that head. It ends in sigmoids, one a class and each trained against all else
(focal loss), so background is the absence of all, logits far below zero everywhere, and a logsumexp over them ranks
pixels by how defect-like they are, not by how known. The pixel head has background as a class of its own, under one
softmax with the defects. It is a branch beside the detector; the detector's outputs do not depend on it.

Context-robust contrastive learning (CoroCL, same paper): pixels of the product as it is and of other contexts are
projected; inliers of all contexts are drawn together, and so are outliers, so that another light is not foreign.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import paddle
from paddle import nn
from paddle.nn import functional as F

from tools.network import ConvNorm

OUTLIER, IGNORE = 254, 255  # labels of cells; below: 0 background, 1 and up the classes
TEMPERATURE = 0.1  # of the contrast, as in the paper's code
STAY = 0.5  # weight of the inliers' change of energy


@dataclass(frozen=True)
class AnomalyConfig:
    """Shape of the network.

    Attributes:
        channels: of the features. classes: defect classes, background not counted.
        pool: cells of the detector's map a side that make one of the anomaly map; averaged.
        hidden: width of the pixel head. kernel, inner: of the residual block. projection: of the contrast.
    """

    channels: int = 64
    classes: int = 6
    pool: int = 2
    hidden: int = 64
    kernel: int = 5
    inner: int = 128
    projection: int = 64

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


class PixelHead(nn.Layer):
    """Closed-set head: features (B, C, h, w) -> logits (B, 1 + classes, h, w), background first."""

    def __init__(self, config: AnomalyConfig):
        super().__init__()
        self.hidden = ConvNorm(config.channels, config.hidden)
        self.out = nn.Conv2D(config.hidden, 1 + config.classes, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.out(self.hidden(x))


class Residual(nn.Layer):
    """What is added to the features: depthwise kxk, 1x1 expand, 1x1 project, as a block of the detector."""

    def __init__(self, config: AnomalyConfig):
        super().__init__()
        self.look = ConvNorm(config.channels, config.channels, config.kernel, activation=False, groups=config.channels)
        self.expand = ConvNorm(config.channels, config.inner)
        self.project = nn.Conv2D(config.inner, config.channels, 1, bias_attr=False)
        # Starts as nothing: the untrained block leaves every pixel alone.
        self.project.weight.set_value(paddle.zeros_like(self.project.weight))

    def inside(self, x: paddle.Tensor) -> paddle.Tensor:
        """The block's hidden layer (B, inner, h, w), which the projector reads as well."""
        return self.expand(self.look(x))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.project(self.inside(x))


class AnomalyNetwork(nn.Layer):
    """Detector features (1, C, H/8, W/8) -> disturbed logits (1, 1 + classes, H/16, W/16) with `pool` 2."""

    def __init__(self, config: AnomalyConfig):
        super().__init__()
        self.config = config
        self.pool = nn.AvgPool2D(config.pool) if config.pool > 1 else None
        self.residual = Residual(config)
        self.head = PixelHead(config)

    def pooled(self, features: paddle.Tensor) -> paddle.Tensor:
        """What head and residual block read."""
        return features if self.pool is None else self.pool(features)

    def forward(self, features: paddle.Tensor) -> paddle.Tensor:
        x = self.pooled(features)
        return self.head(x + self.residual(x))


class Projector(nn.Layer):
    """Hidden layer of the residual block -> unit vectors (B, projection, h, w); needed in training only."""

    def __init__(self, config: AnomalyConfig):
        super().__init__()
        self.out = nn.Conv2D(config.inner, config.projection, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.normalize(self.out(x), axis=1)


def free_energy(logits: paddle.Tensor) -> paddle.Tensor:
    """-logsumexp over the classes (axis 1): higher is less known (Liu et al., arXiv:2010.03759).

    >>> round(float(free_energy(paddle.to_tensor([[0.0, 0.0]]))), 4)
    -0.6931
    """
    return -paddle.logsumexp(logits, axis=1)


def by_cell(maps: paddle.Tensor) -> paddle.Tensor:
    """(B, C, h, w) as rows of cells (B*h*w, C)."""
    return maps.transpose([0, 2, 3, 1]).reshape([-1, maps.shape[1]])


def rpl_losses(
    logits: paddle.Tensor, vanilla: paddle.Tensor, label: paddle.Tensor, stay: float = STAY
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Loss of the inliers and of the outliers.

    As in the paper, inliers keep what the undisturbed head says: cross-entropy to its choice, and the squared
    difference of the entropies; outliers pay for positive logsumexp: their energy is to be positive. Both losses of
    the inliers are blind to a shift of all logits, though, which is just what the energy measures. A small detector's
    features let the block lower all of them on inliers too, and then it is no map of the unknown any more; so here
    inliers also pay for the squared change of their energy.

    Args:
        logits: (N, K) with the residual. vanilla: (N, K) without. label: (N,) int64, with OUTLIER and IGNORE.
        stay: weight of the inliers' change of energy; 0: as in the paper.

    >>> sure = paddle.to_tensor([[8.0, 0.0], [8.0, 0.0]])
    >>> inlier, outlier = rpl_losses(sure, sure, paddle.to_tensor([0, OUTLIER]))
    >>> round(float(inlier), 4), round(float(outlier), 2)
    (0.0003, 8.0)
    """
    inside, outside = label < OUTLIER, label == OUTLIER
    zero = paddle.zeros([])
    inlier = outlier = zero
    if bool(inside.any()):
        mine, theirs = logits[inside], vanilla[inside]
        consistent = F.cross_entropy(mine, theirs.argmax(axis=1))
        change = F.mse_loss(paddle.logsumexp(mine, axis=1), paddle.logsumexp(theirs, axis=1))
        inlier = consistent + F.mse_loss(_entropy(mine), _entropy(theirs)) + stay * change
    if bool(outside.any()):
        outlier = F.relu(paddle.logsumexp(logits[outside], axis=1)).mean()
    return inlier, outlier


def _entropy(logits: paddle.Tensor) -> paddle.Tensor:
    log_p = F.log_softmax(logits, axis=1)
    return -(log_p.exp() * log_p).sum(axis=1)


def contrast(
    anchors: paddle.Tensor, kinds: paddle.Tensor, others: paddle.Tensor, theirs: paddle.Tensor
) -> paddle.Tensor:
    """InfoNCE of CoroCL: anchors near all of their kind, whatever the context, and far from the other kind.

    Args:
        anchors: (A, D) unit vectors of the product's own scene; they come first in `others`.
        kinds: (A,) bool, outlier or not. others: (M, D) unit vectors of all contexts. theirs: (M,) their kinds.

    >>> x = paddle.to_tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> both = paddle.concat([x, x])
    >>> apart = contrast(x, paddle.to_tensor([True, False]), both, paddle.to_tensor([True, False, True, False]))
    >>> float(apart) < 1e-4
    True
    """
    similar = anchors @ others.T / TEMPERATURE  # (A, M)
    similar = similar - similar.max(axis=1, keepdim=True).detach()
    same = (kinds.unsqueeze(1) == theirs.unsqueeze(0)).astype(similar.dtype)
    itself = F.pad(paddle.eye(len(anchors)), [0, 0, 0, len(others) - len(anchors)])
    positive = same * (1 - itself)
    against = (similar.exp() * (1 - same)).sum(axis=1, keepdim=True)
    log_p = similar - paddle.log(similar.exp() + against)
    return -((positive * log_p).sum(axis=1) / positive.sum(axis=1).clip(min=1)).mean()
