"""Attacks on the detector: the change of an image, too small to see, that raises its loss the most.

PGD (Madry et al., arXiv:1706.06083) climbs the loss in small steps by the sign of its gradient, from a random start,
and never leaves the box of `epsilon` around the image. `fast` is a single long step of it (Wong et al., "Fast is
better than free", arXiv:2001.03994), at about a seventh of the cost of ten steps.
The attacked network is evaluated, not trained: its weights and BatchNorm statistics stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from edge.boxes import Float
from edge.preprocess import Image, InputSpec, letterbox
from tools.errors import ToolError
from tools.loss import LossConfig, Targets, assign_batch, cell_centres, detection_loss
from tools.network import STRIDE, Detector
from tools.objective import Batch, Objective, Truth


@dataclass(frozen=True)
class AttackConfig:
    """How far an attack may go and how it gets there; lengths are shares of the range from black to white."""

    epsilon: float = 0.03  # 7.65 of 255 grey levels
    step: float = 0.01
    steps: int = 10
    random_start: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1 or self.step <= 0 or self.steps < 1:
            raise ToolError(
                f"an attack of epsilon {self.epsilon}, step {self.step} and {self.steps} steps: expected an epsilon "
                "in (0, 1], a step above 0 and at least one of them"
            )

    def shrunk(self, share: float) -> AttackConfig:
        """The same attack with a part of its reach, such as at the start of training."""
        return replace(self, epsilon=self.epsilon * share, step=self.step * share)


PGD = AttackConfig()


def fast(epsilon: float) -> AttackConfig:
    """One step of 1.25 epsilon from a random start, the longest that did not collapse in the paper's trials."""
    return AttackConfig(epsilon, 1.25 * epsilon, 1)


@dataclass(frozen=True)
class Attacked:
    """Attacked images and what is to be told of the attack.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        first_loss: at the random start. final_loss: of `images`. Both of the network in evaluation mode.
        largest: largest change of a pixel. mean: mean size of the change over all pixels.
    """

    images: paddle.Tensor
    epsilon: float
    first_loss: float
    final_loss: float
    largest: float
    mean: float

    def note(self) -> dict[str, float]:
        """What goes into logs and records."""
        numbers = (self.epsilon, self.first_loss, self.final_loss, self.largest, self.mean)
        names = ("epsilon", "first_loss", "final_loss", "largest", "mean")
        return {name: round(float(value), 6) for name, value in zip(names, numbers, strict=True)}


@contextmanager
def frozen(network: nn.Layer) -> Iterator[None]:
    """The network in evaluation mode and its weights out of reach of gradients; everything as before at the end."""
    modes = [(layer, layer.training) for layer in network.sublayers(include_self=True)]
    # BatchNorm's statistics are among the parameters and must not become trainable on the way back.
    flags = [(weight, weight.stop_gradient) for weight in network.parameters()]
    network.eval()
    for weight, _ in flags:
        weight.stop_gradient = True
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.stop_gradient = flag
        for layer, mode in modes:
            layer.training = mode


def attack(
    network: Detector,
    batch: Batch,
    objective: Objective,
    config: AttackConfig,
    rng: np.random.Generator,
    inside: np.ndarray | None = None,
) -> Attacked:
    """Change the images of a batch so that the loss of the objective rises.

    Args:
        network: left as it is.
        batch: images in [0, 1]; its labels are what the loss compares with.
        rng: the random start.
        inside: (B, 1, H, W) float32, 1 where pixels may change, 0 on padding; None: everywhere.
    """
    clean = batch.images.numpy()
    epsilon, step = np.float32(config.epsilon), np.float32(config.step)
    allowed = np.float32(1) if inside is None else inside.astype(np.float32)
    low, high = np.maximum(clean - epsilon * allowed, 0), np.minimum(clean + epsilon * allowed, 1)
    images = clean
    if config.random_start:
        start = rng.uniform(-epsilon, epsilon, clean.shape).astype(np.float32)
        images = np.clip(clean + start * allowed, low, high)
    first = float("nan")
    with frozen(network):
        for k in range(config.steps):
            value, gradient = _slope(network, images, batch.truth, objective)
            first = first if k else value
            images = np.clip(images + step * np.sign(gradient), low, high)
        final = paddle.to_tensor(images)
        with paddle.no_grad():
            reached = float(objective.loss(network, Batch(final, batch.truth))[0])
    change = np.abs(images - clean)
    return Attacked(final, config.epsilon, first, reached, float(change.max()), float(change.mean()))


def _slope(network: Detector, images: Float, truth: list[Truth], objective: Objective) -> tuple[float, Float]:
    """Loss, and its gradient (B, C, H, W) by the image."""
    x = paddle.to_tensor(images, stop_gradient=False)
    loss, _ = objective.loss(network, Batch(x, truth))
    loss.backward()
    return float(loss), x.grad.numpy()


class PinnedLoss:
    """The loss against labels, with the targets that the first images chose: the objective of an attack.

    The loss of training chooses its targets anew each time, by how well the boxes fit. An attack that pushes a box away
    so loses the target that it ran from, and the loss falls while the detector errs. One of these serves one batch.
    """

    def __init__(self, config: LossConfig | None = None):
        self._config = config or LossConfig()
        self._found: list[Targets] | None = None

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        cls, reg = network(batch.images)
        if self._found is None:
            self._found = assign_batch(cls, reg, batch.truth, STRIDE, self._config)
        return detection_loss(cls, reg, batch.truth, STRIDE, self._config, self._found)


@dataclass(frozen=True)
class Hide:
    """An objective that grows as confidence falls in the labelled boxes: an attack that only wants defects missed."""

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`; linear in the logits, so that sure cells are pushed as hard as unsure ones."""
        cls, _ = network(batch.images)
        count, classes, height, width = cls.shape
        x, y = cell_centres(height, width, STRIDE).T  # (A,)
        mask = np.zeros((count, classes, height * width), np.float32)
        for i, truth in enumerate(batch.truth):
            for (x1, y1, x2, y2), kind in zip(truth.xyxy, truth.class_id, strict=True):
                mask[i, kind, (x >= x1) & (x < x2) & (y >= y1) & (y < y2)] = 1
        wanted = paddle.to_tensor(mask.reshape(cls.shape))
        return -(cls * wanted).sum() / max(1.0, float(mask.sum())), {}


@dataclass(frozen=True)
class FalseAlarms:
    """An objective that grows with the confidences of an image's `cells` surest cells, for attacks on good parts."""

    cells: int = 50

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`; the labels do not matter."""
        cls, _ = network(batch.images)
        logits = cls.reshape([cls.shape[0], -1])
        surest = paddle.topk(logits, min(self.cells, logits.shape[1]), axis=1)[0]
        return F.softplus(surest).sum(axis=1).mean(), {}


# --- Whole images -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """An image as the network sees it, and its labels there.

    Attributes:
        canvas: (height, width) or (height, width, 3) uint8, of the input's size.
        truth: boxes in pixels of the canvas.
        inside: (height, width) bool, False on the padding, which no light falls on.
    """

    canvas: Image
    truth: Truth
    inside: np.ndarray


def scene(image: Image, xyxy: Float, class_id: np.ndarray, known: np.ndarray, spec: InputSpec) -> Scene:
    """Put an image on the canvas of the input, as serving does, and its boxes (N, 4) with it."""
    canvas, place = letterbox(image, spec)
    offset = np.array([place.dx, place.dy, place.dx, place.dy], np.float32)
    boxes = (xyxy * np.float32(place.scale) + offset).astype(np.float32)
    inside = np.zeros((spec.height, spec.width), bool)
    height, width = (min(s, round(n * place.scale)) for s, n in zip(inside.shape, image.shape[:2], strict=True))
    inside[place.dy : place.dy + height, place.dx : place.dx + width] = True
    return Scene(canvas, Truth(boxes, class_id, np.ones(len(boxes), np.float32), known), inside)


def batch_of(scenes: Sequence[Scene]) -> Batch:
    """Scenes of one size as a batch in [0, 1]."""
    stack = np.stack([s.canvas for s in scenes])
    stack = stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)
    images = paddle.to_tensor(np.ascontiguousarray(stack, np.float32) / np.float32(255))
    return Batch(images, [s.truth for s in scenes])


def attack_scene(
    network: Detector, one: Scene, config: AttackConfig, rng: np.random.Generator, objective: Objective | None = None
) -> Attacked:
    """The attack on one whole image, which spares the padding.

    Args:
        objective: what shall rise; None: the loss against the labels, with the targets of the clean image.
    """
    if objective is None:
        objective = PinnedLoss()
        with frozen(network), paddle.no_grad():
            objective.loss(network, batch_of([one]))
    return attack(network, batch_of([one]), objective, config, rng, one.inside[None, None])


def in_grey_levels(attacked: Attacked, one: Scene) -> Image:
    """An attacked scene as the picture a camera could deliver: 8 bits, and still within epsilon of the canvas.

    The change becomes whole grey levels, at most as many as epsilon allows (7 for 0.03).
    """
    values = attacked.images.numpy()[0]
    values = values[0] if one.canvas.ndim == 2 else values.transpose(1, 2, 0)
    most = int(attacked.epsilon * 255 + 1e-6)
    change = np.clip(np.rint(values * 255 - one.canvas), -most, most)
    return np.clip(one.canvas + change, 0, 255).astype(np.uint8)
