"""Features of a frozen detector with a label for each cell: what the models of the unknown are trained on.

The detector runs once over each picture, and training goes over the features alone, which takes a fraction of the
time. A cell is background, a known class, an outlier, or none of these and left out: the border of a label, and the
ring around an outlier, where the features know of it already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import paddle
from paddle import nn
from tqdm import tqdm

from edge.boxes import Float
from edge.detect import Predictor
from edge.predictor import OnnxPredictor
from edge.preprocess import Image, InputSpec, preprocess
from tools.anomaly_net import IGNORE, OUTLIER
from tools.augment import AugmentConfig, Board, training_crop
from tools.checkpoint import Saved, network_of, read_checkpoint
from tools.dataset import sha256_file
from tools.export import write_onnx
from tools.network import Detector
from tools.outliers import OutlierConfig, add_outliers
from tools.paddle_model import save_layer
from tools.physical import PhysicalConfig, photograph, random_conditions

CORE = 0.6  # middle share of a box's sides that surely shows its defect
COVERED = 0.08  # share of a cell that an outlier must cover to count
RING = 1  # cells around an outlier that are left out

# Cuts as they are: scale and symmetry vary, nothing is erased or drawn.
AS_IS = AugmentConfig(erase=0.0, negative=0.35, scale_low=0.65, scale_high=1.6, rough=0.0, aimed=0.6)
# Light, focus, noise and codec of another camera or day. Nothing that lies on the part: that would be an outlier.
OTHER_CONTEXT = PhysicalConfig(occlusion=0.0, glare=0.0, motion=0.3, defocus=0.5, exposure=0.8, noise=0.6, jpeg=0.3,
                               motion_px=3.0, defocus_px=1.7, stops=1.2)  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """Features of N pictures with labels.

    Attributes:
        features: (N, C, h, w) float16. label: (N, h, w) uint8, with OUTLIER and IGNORE.
    """

    features: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


Picture = tuple[Image, Float, np.ndarray, np.ndarray]  # image, boxes (N, 4), class ids (N,), outlier mask (H, W) bool


def cell_labels(
    size: tuple[int, int], xyxy: Float, class_id: np.ndarray, outlier: np.ndarray, stride: int
) -> np.ndarray:
    """Label of each cell, (height / stride, width / stride) uint8.

    Args:
        size: (height, width) of the picture. xyxy, class_id: its known defects.
        outlier: (height, width) bool.

    >>> box = np.array([[0, 0, 32, 32]], np.float32)
    >>> nothing = np.zeros((32, 64), bool)
    >>> cell_labels((32, 64), box, np.array([0]), nothing, 8)[1].tolist()
    [255, 1, 1, 255, 0, 0, 0, 0]
    """
    height, width = size[0] // stride, size[1] // stride
    label = np.zeros((height, width), np.uint8)
    centre_x, centre_y = (np.arange(width) + 0.5) * stride, (np.arange(height) + 0.5) * stride
    core = np.full((height, width), IGNORE, np.uint8)
    for box, kind in zip(xyxy, class_id, strict=True):
        label[_inside(box, centre_x, centre_y)] = IGNORE
        middle, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2 * CORE, stride * 0.6)
        core[_inside(np.concatenate([middle - half, middle + half]), centre_x, centre_y)] = kind + 1
    label = np.where(core < OUTLIER, core, label)
    covered = cv2.resize(outlier[: height * stride, : width * stride].astype(np.float32), (width, height),
                         interpolation=cv2.INTER_AREA)  # fmt: skip
    near = cv2.dilate((covered > 0).astype(np.uint8), np.ones((2 * RING + 1,) * 2, np.uint8)) > 0
    label[near] = IGNORE
    label[covered >= COVERED] = OUTLIER
    return label


def _inside(box: Float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))


def pool_labels(label: np.ndarray, pool: int) -> np.ndarray:
    """Labels of cells `pool` times as large: (N, h, w) -> (N, h / pool, w / pool).

    An outlier in any of the small cells makes an outlier; else a known class does; else a left out one leaves it out.

    >>> pool_labels(np.array([[[0, 255, 0, 0], [0, 3, 0, 0]]], np.uint8), 2).tolist()
    [[[3, 0]]]
    """
    if pool == 1:
        return label
    n, height, width = label.shape
    high, wide = height // pool, width // pool
    parts = label[:, : high * pool, : wide * pool].reshape(n, high, pool, wide, pool)
    known = np.where(parts < OUTLIER, parts, 0).max(axis=(2, 4))
    doubtful = np.where((parts == IGNORE).any(axis=(2, 4)) & (known == 0), IGNORE, known)
    return np.where((parts == OUTLIER).any(axis=(2, 4)), OUTLIER, doubtful).astype(np.uint8)


def pool_features(features: Float, pool: int) -> Float:
    """Means of `pool` x `pool` cells: (N, C, h, w) -> (N, C, h / pool, w / pool).

    >>> pool_features(np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), 2).tolist()
    [[[[1.5]]]]
    """
    n, channels, height, width = features.shape
    high, wide = height // pool, width // pool
    parts = features[:, :, : high * pool, : wide * pool].reshape(n, channels, high, pool, wide, pool)
    return np.asarray(parts.mean(axis=(3, 5)), np.float32)


def pictures(
    boards: Sequence[Board],
    count: int,
    side: tuple[int, int],
    rng: np.random.Generator,
    outliers: OutlierConfig,
    donors: Sequence[Image],
    context: PhysicalConfig | None = None,
) -> Iterator[Picture]:
    """Crops of the boards in turn, (width, height) `side`, with outliers; taken by another camera with `context`."""
    for k in range(count):
        image, truth = training_crop(boards[k % len(boards)], side, rng, AS_IS)
        image, mask = add_outliers(image, rng, outliers, donors, truth.xyxy)
        if context is not None:
            image = photograph(image, random_conditions(rng, context), rng)
        yield image, truth.xyxy, truth.class_id, mask


def features_of(detector: Predictor, image: Image, spec: InputSpec) -> Float:
    """Neck features (1, C, h, w) of one image: the detector's last output."""
    return detector.run(preprocess(image, spec)[0])[-1]


def cells_of(detector: Predictor, made: Iterator[Picture], count: int, spec: InputSpec, pool: int, name: str) -> Cells:
    """Features and labels of `count` pictures of the detector's input size, `pool` x `pool` cells in one."""
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for image, xyxy, class_id, mask in tqdm(made, f"features {name}", count, mininterval=5):
        found = features_of(detector, image, spec)
        features.append(pool_features(found, pool)[0].astype(np.float16))
        labels.append(cell_labels(image.shape[:2], xyxy, class_id, mask, image.shape[0] // found.shape[2]))
    return Cells(np.stack(features), pool_labels(np.stack(labels), pool))


class FeatureLayer(nn.Layer):
    """A detector that answers its features only."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.detector.features(image)


def open_features(checkpoint: Path, work: Path) -> tuple[Predictor, Saved]:
    """The features of a checkpoint as the device's runtime computes them: ten times as fast as in Paddle.

    Raises:
        ToolError: no checkpoint, or it cannot be exported.
    """
    saved = read_checkpoint(checkpoint)
    target = work / f"features-{sha256_file(checkpoint)[:16]}.onnx"
    if not target.is_file():
        save_layer(FeatureLayer(network_of(saved, checkpoint)), work / "features", saved.spec)
        write_onnx(work / "features", target)
    return OnnxPredictor(target), saved
