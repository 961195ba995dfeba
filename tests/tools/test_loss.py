"""Assigner, GIoU and the whole loss, on cases small enough to know the answer."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from tools.loss import LossConfig, assign, cell_centres, detection_loss, giou
from tools.objective import Truth

STRIDE = 8
CONFIG = LossConfig(topk=3)


def labels(gt: np.ndarray, *kinds: int, known: tuple[bool, ...] = (True,) * 6, weight: float = 1.0) -> Truth:
    """What is labelled on an image: boxes (N, 4) and the class of each."""
    return Truth(gt.reshape(-1, 4), np.array(kinds, np.int64), np.full(len(kinds), weight, np.float32), np.array(known))


def perfect(gt: np.ndarray, kind: int, size: int = 8, confident: float = 6.0) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Outputs of a network that is right at every cell: one box, one class inside it."""
    centres = cell_centres(size, size, STRIDE)
    sides = np.concatenate([centres - gt[:2], gt[2:] - centres], axis=1) / STRIDE
    raw = np.log(np.expm1(np.maximum(sides, 1e-3))).astype(np.float32)
    logits = np.full((1, 6, size * size), -confident, np.float32)
    logits[0, kind, sides.min(axis=1) > 0] = confident
    return paddle.to_tensor(logits.reshape(1, 6, size, size)), paddle.to_tensor(raw.T.reshape(1, 4, size, size))


def test_centres_go_row_by_row() -> None:
    assert cell_centres(2, 2, 8).tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]


def test_assign_takes_topk_aligned_cells_inside() -> None:
    centres = cell_centres(4, 4, STRIDE)
    gt = np.array([[0, 0, 24, 24]], np.float32)  # holds 3x3 centres
    boxes = np.repeat(gt, 16, axis=0)
    score = np.full((16, 2), 0.1, np.float32)
    score[[0, 5, 10], 1] = [0.9, 0.8, 0.7]
    score[15, 1] = 1.0  # outside the box: never chosen
    targets = assign(score, boxes, centres, labels(gt, 1), CONFIG)
    assert sorted(targets.cell.tolist()) == [0, 5, 10]
    assert targets.quality[targets.cell == 0] == pytest.approx(1.0)  # best cell: its IoU, here 1
    assert targets.quality[targets.cell == 10] == pytest.approx(0.7 / 0.9)


def test_assign_gives_a_box_between_centres_the_nearest_cell() -> None:
    gt = np.array([[13, 13, 18, 18]], np.float32)
    boxes = np.tile(gt, (16, 1))
    targets = assign(np.full((16, 1), 0.5, np.float32), boxes, cell_centres(4, 4, STRIDE), labels(gt, 0), CONFIG)
    assert targets.cell.tolist() == [5]


def test_assign_gives_each_cell_to_the_truth_it_overlaps_more() -> None:
    gt = np.array([[0, 0, 32, 32], [0, 0, 16, 16]], np.float32)
    boxes = np.repeat(gt[1:], 16, axis=0)  # every prediction fits the small one
    score = np.full((16, 1), 0.5, np.float32)
    targets = assign(score, boxes, cell_centres(4, 4, STRIDE), labels(gt, 0, 0), LossConfig(topk=16))
    small = np.isin(targets.cell, [0, 1, 4, 5])
    assert (targets.xyxy[small] == gt[1]).all() and (targets.xyxy[~small] == gt[0]).all()
    assert len(set(targets.cell.tolist())) == len(targets.cell)


def test_assign_without_truth_is_empty() -> None:
    empty = np.empty((0, 4), np.float32)
    centres = cell_centres(4, 4, STRIDE)
    targets = assign(np.ones((16, 1), np.float32), np.ones((16, 4), np.float32), centres, labels(empty), CONFIG)
    assert len(targets.cell) == 0 and targets.xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3),  # hull 6 = union 6
        ([0, 0, 1, 1], [1, 1, 2, 2], -0.5),  # touching: union 2 of hull 4
        ([0, 0, 1, 1], [3, 0, 4, 1], -0.5),  # apart: union 2 of hull 4
    ],
)
def test_giou(a: list[float], b: list[float], value: float) -> None:
    got = giou(paddle.to_tensor([a], "float32"), paddle.to_tensor([b], "float32"))
    assert float(got) == pytest.approx(value, abs=1e-4)


def test_right_answers_cost_little_and_wrong_ones_more() -> None:
    gt = np.array([16, 16, 40, 40], np.float32)  # 9 cells: all are wanted
    truth = [labels(gt, 2)]
    right, parts = detection_loss(*perfect(gt, 2), truth, STRIDE, LossConfig())
    wrong_class, _ = detection_loss(*perfect(gt, 3), truth, STRIDE, LossConfig())
    wrong_box, _ = detection_loss(*perfect(gt + 24, 2), truth, STRIDE, LossConfig())
    assert parts["box"] < 1e-3 and float(right) < 0.05
    assert float(wrong_class) > 10 * float(right) and float(wrong_box) > 10 * float(right)


def test_image_without_defects_still_teaches() -> None:
    cls, reg = perfect(np.array([16, 16, 48, 48], np.float32), 2)
    cls.stop_gradient = False
    loss, parts = detection_loss(cls, reg, [labels(np.empty((0, 4), np.float32))], STRIDE, CONFIG)
    loss.backward()
    assert parts["positives"] == 0 and float(paddle.abs(cls.grad).max()) > 0


def test_a_class_that_was_not_looked_for_teaches_nothing() -> None:
    gt = np.array([16, 16, 40, 40], np.float32)
    for unknown in (True, False):
        cls, reg = perfect(gt, 3)  # sure of class 3, where the labels say class 2
        cls.stop_gradient = False
        known = tuple(not (unknown and k == 3) for k in range(6))
        loss, _ = detection_loss(cls, reg, [labels(gt, 2, known=known)], STRIDE, CONFIG)
        loss.backward()
        pull = paddle.abs(cls.grad).sum(axis=[0, 2, 3]).numpy()  # (6,)
        assert (pull[3] == 0) == unknown and pull[2] > 0


def test_a_box_counts_by_its_weight() -> None:
    gt = np.array([[8, 8, 32, 32], [40, 40, 56, 56]], np.float32)
    cls, reg = perfect(gt[0], 2)
    pulls = []
    for weight in (1.0, 0.25):
        truth = labels(gt, 2, 4)
        truth.weight[1] = weight
        logits = cls.clone().detach()
        logits.stop_gradient = False
        loss, _ = detection_loss(logits, reg, [truth], STRIDE, CONFIG)
        (grad,) = paddle.grad(loss, logits)
        pulls.append(float(paddle.abs(grad[0, 4]).max()) / float(paddle.abs(grad[0, 2]).max()))
    assert pulls[1] == pytest.approx(0.25 * pulls[0], rel=1e-3)


def test_label_smoothing_keeps_a_positive_from_being_certain() -> None:
    gt = np.array([16, 16, 40, 40], np.float32)
    cls, reg = perfect(gt, 2, confident=12.0)
    plain, _ = detection_loss(cls, reg, [labels(gt, 2)], STRIDE, LossConfig())
    smooth, _ = detection_loss(cls, reg, [labels(gt, 2)], STRIDE, LossConfig(smoothing=0.1))
    assert float(smooth) > float(plain) + 0.5


def test_boxes_that_do_not_meet_have_a_gradient() -> None:
    apart = paddle.to_tensor([[0.0, 0, 4, 4], [0, 0, 4, 4]], stop_gradient=False)
    giou(apart, paddle.to_tensor([[2.0, 8, 6, 12], [8, 8, 12, 12]])).sum().backward()
    assert np.isfinite(apart.grad.numpy()).all() and np.abs(apart.grad.numpy()).max() > 0
