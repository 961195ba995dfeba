"""Loss of the detector: task-aligned assignment, IoU-aware class targets, GIoU for boxes.

References: task alignment TOOD (Feng et al., arXiv:2108.07755); varifocal weighting (Zhang et al.,
arXiv:2008.13367); GIoU (Rezatofighi et al., arXiv:1902.09630).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import paddle
import paddle.nn.functional as F

from edge.boxes import Float, iou_matrix

if TYPE_CHECKING:
    from tools.objective import Truth


@dataclass(frozen=True)
class LossConfig:
    """Weights and the assigner's constants."""

    topk: int = 10
    alpha: float = 1.0  # exponent of the class score in the alignment
    beta: float = 6.0  # exponent of the IoU in the alignment
    class_weight: float = 1.0
    box_weight: float = 2.0
    background_alpha: float = 0.75  # varifocal weight of negatives
    background_gamma: float = 2.0
    smoothing: float = 0.0  # label smoothing: share of a positive's class target that goes to the other classes


@dataclass(frozen=True)
class Targets:
    """What one image's cells should say. `cell` (P,) flat indices y * W + x of the positive cells."""

    cell: np.ndarray  # (P,) int64
    class_id: np.ndarray  # (P,) int64
    quality: Float  # (P,) class target in [0, 1], by alignment
    xyxy: Float  # (P, 4) pixels
    weight: Float  # (P,) how much each counts, from its truth


def cell_centres(height: int, width: int, stride: int) -> Float:
    """Centres (H * W, 2) of all cells in pixels, row by row."""
    y, x = np.mgrid[:height, :width]
    return ((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride).astype(np.float32)


def assign(score: Float, boxes: Float, centres: Float, truth: Truth, config: LossConfig) -> Targets:
    """Choose for each ground truth the `topk` cells inside it that are best aligned with it.

    Args:
        score: (A, C) confidences of the cells. boxes: (A, 4) their boxes. centres: (A, 2).
        truth: the image's labels, boxes in pixels.

    A box that holds no cell centre takes the nearest cell. A cell wanted twice goes to the truth it overlaps more.
    """
    gt, gt_class = truth.xyxy, truth.class_id
    if len(gt) == 0:
        nothing, none = np.empty(0, np.int64), np.empty(0, np.float32)
        return Targets(nothing, nothing, none, np.empty((0, 4), np.float32), none)
    sides = np.concatenate([centres[None] - gt[:, None, :2], gt[:, None, 2:] - centres[None]], axis=-1)
    inside = sides.min(axis=-1) > 0  # (G, A)
    middle = (gt[:, :2] + gt[:, 2:]) / 2
    for g in np.flatnonzero(~inside.any(axis=1)):
        inside[g, np.argmin(np.square(centres - middle[g]).sum(axis=1))] = True
    iou = iou_matrix(gt, boxes)  # (G, A)
    align = np.power(score[:, gt_class].T, config.alpha) * np.power(iou, config.beta)
    ranked = np.where(inside, align + 1e-12, -1.0)
    top = np.argsort(-ranked, axis=1, kind="stable")[:, : config.topk]
    chosen = np.zeros_like(inside)
    np.put_along_axis(chosen, top, True, axis=1)
    chosen &= inside
    owner = np.where(chosen, iou + 1e-9, 0.0).argmax(axis=0)  # (A,)
    chosen &= owner[None, :] == np.arange(len(gt))[:, None]
    return _targets(chosen, align, iou, truth)


def _targets(chosen: np.ndarray, align: Float, iou: Float, truth: Truth) -> Targets:
    """The best cell of a truth gets its best IoU as class target, the others in proportion to alignment."""
    align, iou = align * chosen, iou * chosen
    best = np.maximum(align.max(axis=1, keepdims=True), 1e-12)
    quality = align / best * iou.max(axis=1, keepdims=True)  # (G, A)
    owner, cell = np.nonzero(chosen)
    scores = quality[owner, cell].astype(np.float32)
    return Targets(cell, truth.class_id[owner], scores, truth.xyxy[owner], truth.weight[owner])


def distances_to_boxes(raw: paddle.Tensor, centres: paddle.Tensor, stride: int) -> paddle.Tensor:
    """Raw distances (P, 4) and centres (P, 2) -> boxes (P, 4) in pixels, differentiable."""
    distance = F.softplus(raw) * stride
    return paddle.concat([centres - distance[:, :2], centres + distance[:, 2:]], axis=1)


def _area(sides: paddle.Tensor) -> paddle.Tensor:
    """Products of sides (P, 2). Not `prod`: its gradient divides by each side, and is NaN where boxes do not meet."""
    return sides[:, 0] * sides[:, 1]


def giou(a: paddle.Tensor, b: paddle.Tensor) -> paddle.Tensor:
    """Generalised IoU of paired boxes (P, 4), in [-1, 1]."""
    inter = _area(F.relu(paddle.minimum(a[:, 2:], b[:, 2:]) - paddle.maximum(a[:, :2], b[:, :2])))
    area_a = _area(a[:, 2:] - a[:, :2])
    area_b = _area(b[:, 2:] - b[:, :2])
    hull = _area(paddle.maximum(a[:, 2:], b[:, 2:]) - paddle.minimum(a[:, :2], b[:, :2]))
    union = area_a + area_b - inter
    return inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)


def assign_batch(
    cls: paddle.Tensor, reg: paddle.Tensor, truth: Sequence[Truth], stride: int, config: LossConfig
) -> list[Targets]:
    """The targets of each image of a batch, from the network's outputs as `detection_loss` takes them."""
    batch, classes, height, width = cls.shape
    centres = cell_centres(height, width, stride)
    scores = F.sigmoid(cls.detach()).numpy().reshape(batch, classes, -1).transpose(0, 2, 1)  # (B, A, C)
    reach = F.softplus(reg.detach()).numpy().reshape(batch, 4, -1).transpose(0, 2, 1) * stride  # (B, A, 4)
    targets = []
    for i, labels in enumerate(truth):
        boxes = np.concatenate([centres - reach[i, :, :2], centres + reach[i, :, 2:]], axis=1)
        targets.append(assign(scores[i], boxes, centres, labels, config))
    return targets


def detection_loss(
    cls: paddle.Tensor,
    reg: paddle.Tensor,
    truth: Sequence[Truth],
    stride: int,
    config: LossConfig,
    found: list[Targets] | None = None,
) -> tuple[paddle.Tensor, dict[str, float]]:
    """Loss of a batch, and its parts for the progress line.

    A class that is not known on an image (see `Truth.known`) teaches nothing there, except in the cells of its labels.

    Args:
        cls: (B, C, H, W) logits. reg: (B, 4, H, W) raw distances. truth: the labels of each image.
        found: targets of `assign_batch` to keep to; None: those that these outputs choose.
    """
    batch = cls.shape[0]
    found = assign_batch(cls, reg, truth, stride, config) if found is None else found
    image = np.concatenate([np.full(len(t.cell), i) for i, t in enumerate(found)]).astype(np.int64)
    cell = np.concatenate([t.cell for t in found]).astype(np.int64)
    counts = np.concatenate([t.quality * t.weight for t in found])
    total = max(float(counts.sum()), 1.0)
    class_loss = _class_loss(cls.reshape([batch, cls.shape[1], -1]), found, image, truth, config) / total
    parts = {"cls": float(class_loss), "positives": float(len(cell))}
    loss = config.class_weight * class_loss
    if len(cell):
        box_loss = _box_loss(reg, found, image, cell, counts, stride) / total
        parts["box"] = float(box_loss)
        loss = loss + config.box_weight * box_loss
    return loss, parts


def _class_loss(
    logits: paddle.Tensor, found: list[Targets], image: np.ndarray, truth: Sequence[Truth], config: LossConfig
) -> paddle.Tensor:
    """Varifocal loss over logits (B, C, A), summed: positives weigh what they are worth, negatives by their error."""
    batch, classes, cells = logits.shape
    cell = np.concatenate([t.cell for t in found]).astype(np.int64)
    kind = np.concatenate([t.class_id for t in found]).astype(np.int64)
    quality = np.concatenate([t.quality for t in found])
    wanted = np.zeros((batch, classes, cells), np.float32)
    share = np.zeros_like(wanted)  # how much a positive counts
    if config.smoothing and classes > 1:
        wanted[image, :, cell] = (config.smoothing * quality / (classes - 1))[:, None]
    wanted[image, kind, cell] = quality * (1 - config.smoothing)
    share[image, kind, cell] = quality * np.concatenate([t.weight for t in found])
    heard = np.array([labels.known for labels in truth], np.float32)[:, :, None]  # (B, C, 1)
    target, positive = paddle.to_tensor(wanted), paddle.to_tensor(share)
    score = F.sigmoid(logits.detach())
    negative = config.background_alpha * score.pow(config.background_gamma) * paddle.to_tensor(heard)
    weight = paddle.where(positive > 0, positive, negative)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="sum")


def _box_loss(
    reg: paddle.Tensor, found: list[Targets], image: np.ndarray, cell: np.ndarray, counts: Float, stride: int
) -> paddle.Tensor:
    _, _, height, width = reg.shape
    flat = reg.transpose([0, 2, 3, 1]).reshape([-1, 4])
    raw = paddle.gather(flat, paddle.to_tensor(image * (height * width) + cell))  # (P, 4)
    centres = paddle.to_tensor(cell_centres(height, width, stride)[cell])
    wanted = paddle.to_tensor(np.concatenate([t.xyxy for t in found]))
    overlap = giou(distances_to_boxes(raw, centres, stride), wanted)
    return ((1 - overlap) * paddle.to_tensor(counts)).sum()
