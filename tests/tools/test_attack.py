"""An attack raises the loss, stays in its box and leaves the network as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from edge.preprocess import InputSpec
from tools.attack import (
    PGD,
    AttackConfig,
    FalseAlarms,
    Hide,
    PinnedLoss,
    attack,
    attack_scene,
    batch_of,
    fast,
    frozen,
    in_grey_levels,
    scene,
)
from tools.errors import ToolError
from tools.loss import LossConfig, assign_batch, detection_loss
from tools.network import STRIDE, Detector, NetworkConfig
from tools.objective import Batch, LabelLoss, Objective, Truth

NARROW = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 16}


@pytest.fixture(scope="module")
def network() -> Detector:
    """Untrained, but with BatchNorm statistics of its own data: else its outputs hardly depend on the image."""
    paddle.seed(3)
    made = Detector(NetworkConfig(classes=2, channels=1, **NARROW))
    made.train()
    with paddle.no_grad():
        for k in range(20):
            made(paddle.to_tensor(np.random.default_rng(k).random((2, 1, 64, 64), np.float32)))
    made.eval()
    return made


@pytest.fixture
def batch() -> Batch:
    rng = np.random.default_rng(1)
    images = rng.random((2, 1, 64, 64), np.float32)
    images[0, 0, :8] = 0.0
    images[0, 0, 8:16] = 1.0
    return Batch(paddle.to_tensor(images), [truth([[10, 10, 30, 30]], [0]), truth([], [])])


def truth(boxes: list[list[float]], kinds: list[int]) -> Truth:
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Truth(xyxy, np.array(kinds, np.int64), np.ones(len(xyxy), np.float32), np.ones(2, bool))


def loss_of(network: Detector, images: paddle.Tensor, batch: Batch, objective: Objective | None = None) -> float:
    with paddle.no_grad():
        return float((objective or LabelLoss()).loss(network, Batch(images, batch.truth))[0])


def pinned_to(network: Detector, batch: Batch) -> PinnedLoss:
    pinned = PinnedLoss()
    loss_of(network, batch.images, batch, pinned)
    return pinned


@pytest.mark.parametrize("config", [PGD, fast(0.03), AttackConfig(0.1, 0.05, 3), AttackConfig(random_start=False)])
def test_the_loss_rises_within_the_box(network: Detector, batch: Batch, config: AttackConfig) -> None:
    pinned = pinned_to(network, batch)
    done = attack(network, batch, pinned, config, np.random.default_rng(0))
    images, clean = done.images.numpy(), batch.images.numpy()
    assert np.abs(images - clean).max() <= config.epsilon + 1e-6
    assert images.min() >= 0 and images.max() <= 1
    assert done.final_loss == pytest.approx(loss_of(network, done.images, batch, pinned), rel=1e-4)
    assert done.final_loss > 1.05 * loss_of(network, batch.images, batch)
    assert done.note() == {
        "epsilon": config.epsilon,
        "first_loss": pytest.approx(done.first_loss, abs=1e-5),
        "final_loss": pytest.approx(done.final_loss, abs=1e-5),
        "largest": pytest.approx(np.abs(images - clean).max(), abs=1e-5),
        "mean": pytest.approx(np.abs(images - clean).mean(), abs=1e-5),
    }


def test_without_a_random_start_the_first_loss_is_that_of_the_clean_images(network: Detector, batch: Batch) -> None:
    done = attack(network, batch, LabelLoss(), AttackConfig(steps=1, random_start=False), np.random.default_rng(0))
    assert done.first_loss == pytest.approx(loss_of(network, batch.images, batch), rel=1e-5)


def test_ten_steps_beat_one_and_the_sign_of_chance(network: Detector, batch: Batch) -> None:
    pinned = pinned_to(network, batch)
    ten = attack(network, batch, pinned, PGD, np.random.default_rng(0)).final_loss
    one = attack(network, batch, pinned, fast(0.03), np.random.default_rng(0)).final_loss
    noise = 0.03 * np.sign(np.random.default_rng(2).standard_normal(batch.images.shape)).astype(np.float32)
    chance = loss_of(network, paddle.to_tensor(np.clip(batch.images.numpy() + noise, 0, 1)), batch, pinned)
    assert ten > one > chance


def test_a_pinned_loss_keeps_the_targets_of_the_first_images(network: Detector, batch: Batch) -> None:
    pinned = pinned_to(network, batch)
    assert loss_of(network, batch.images, batch, pinned) == pytest.approx(loss_of(network, batch.images, batch))
    other = paddle.to_tensor(1 - batch.images.numpy())
    cls, reg = network(other)
    with paddle.no_grad():
        chosen = assign_batch(*network(batch.images), batch.truth, STRIDE, LossConfig())
        expected, _ = detection_loss(cls, reg, batch.truth, STRIDE, LossConfig(), chosen)
    assert loss_of(network, other, batch, pinned) == pytest.approx(float(expected))
    assert loss_of(network, other, batch, pinned) != pytest.approx(loss_of(network, other, batch))


def test_the_network_is_left_as_it_was(network: Detector, batch: Batch) -> None:
    network.train()
    network.stage8[0].eval()  # a part that someone froze for a reason of his own
    modes = [layer.training for layer in network.sublayers(include_self=True)]
    flags = [p.stop_gradient for p in network.parameters()]
    before = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    attack(network, batch, LabelLoss(), PGD, np.random.default_rng(0))
    assert modes == [layer.training for layer in network.sublayers(include_self=True)]
    assert flags == [p.stop_gradient for p in network.parameters()] and any(flags) and not all(flags)
    assert all(np.array_equal(before[name], value.numpy()) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    network.eval()


def test_the_network_is_left_as_it_was_by_an_error_too(network: Detector) -> None:
    network.train()
    with pytest.raises(RuntimeError), frozen(network):
        assert not network.training
        raise RuntimeError
    assert network.training and not network.cls.weight.stop_gradient
    network.eval()


def test_gradients_of_weights_that_wait_for_their_step_survive(network: Detector, batch: Batch) -> None:
    network.train()
    LabelLoss().loss(network, batch)[0].backward()
    waiting = [None if p.grad is None else p.grad.numpy().copy() for p in network.parameters()]
    attack(network, batch, LabelLoss(), fast(0.03), np.random.default_rng(0))
    for before, weight in zip(waiting, network.parameters(), strict=True):
        assert (before is None and weight.grad is None) or np.array_equal(before, weight.grad.numpy())
    network.clear_gradients()
    network.eval()


def test_an_attack_follows_its_seed(network: Detector, batch: Batch) -> None:
    runs = [attack(network, batch, LabelLoss(), PGD, np.random.default_rng(s)).images.numpy() for s in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])


def test_false_alarms_raise_confidence(network: Detector, batch: Batch) -> None:
    done = attack(network, batch, FalseAlarms(cells=5), PGD, np.random.default_rng(0))
    with paddle.no_grad():
        before, after = (float(network(images)[0].max()) for images in (batch.images, done.images))
    assert after > before and done.final_loss > done.first_loss


def test_hiding_lowers_confidence_in_the_labelled_boxes_alone(network: Detector, batch: Batch) -> None:
    done = attack(network, batch, Hide(), PGD, np.random.default_rng(0))
    with paddle.no_grad():
        before, after = (network(images)[0].numpy() for images in (batch.images, done.images))
        cls = network(batch.images)[0].numpy()
        value = float(Hide().loss(network, batch)[0])
    assert value == pytest.approx(-cls[0, 0, 1:4, 1:4].mean(), rel=1e-5), "cells at 12, 20 and 28 lie in 10 to 30"
    assert (after - before)[0, 0, 1:4, 1:4].mean() < 0
    assert np.isfinite(float(Hide().loss(network, Batch(batch.images, [batch.truth[1]] * 2))[0]))


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"step": 0.0}, {"steps": 0}])
def test_an_attack_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ToolError, match="expected an epsilon"):
        AttackConfig(**bad)  # type: ignore[arg-type]


@pytest.fixture
def wide() -> Iterator[tuple[np.ndarray, InputSpec]]:
    """A colour image whose sides have another ratio than the input."""
    yield np.random.default_rng(5).integers(0, 256, (40, 100, 3), dtype=np.uint8), InputSpec(96, 64, 3)


def test_a_scene_is_placed_as_in_serving(wide: tuple[np.ndarray, InputSpec]) -> None:
    image, spec = wide
    boxes = np.array([[10, 5, 60, 35]], np.float32)
    placed = scene(image, boxes, np.array([1]), np.ones(2, bool), spec)
    assert placed.canvas.shape == (64, 96, 3)
    assert placed.truth.xyxy[0].tolist() == pytest.approx([9.6, 13 + 4.8, 57.6, 13 + 33.6], abs=0.6)
    rows = np.flatnonzero(placed.inside.any(axis=1))
    assert (rows[0], rows[-1]) == (13, 50) and placed.inside[13:51].all()
    assert (placed.canvas[~placed.inside] == 114).all()


def test_a_whole_image_is_attacked_beside_its_padding_and_in_grey_levels(wide: tuple[np.ndarray, InputSpec]) -> None:
    image, spec = wide
    network = Detector(NetworkConfig(classes=2, channels=3, **NARROW))
    placed = scene(image, np.array([[10, 5, 60, 35]], np.float32), np.array([1]), np.ones(2, bool), spec)
    done = attack_scene(network, placed, AttackConfig(steps=2), np.random.default_rng(0))
    picture = in_grey_levels(done, placed)
    change = np.abs(picture.astype(int) - placed.canvas)
    assert picture.dtype == np.uint8 and picture.shape == placed.canvas.shape
    assert change.max() == 7, "0.03 of 255 is 7.65 grey levels"
    assert (change[~placed.inside] == 0).all() and (change[placed.inside] > 0).mean() > 0.5
    values = batch_of([placed]).images.numpy()
    assert values.shape == (1, 3, 64, 96) and values[0, 2, 20, 30] == pytest.approx(placed.canvas[20, 30, 2] / 255)
