"""Train one detector from datasets that each label only some of the classes.

What is not labelled on an image may still be on it. Taken as background it teaches the detector to overlook it; each
method here does something better:

    mask    a class teaches nothing on the images where nobody looked for it
    pseudo  detectors of the single datasets label for each other while training goes on: what they are sure of becomes
            a label, cells they are unsure of teach nothing (cross pseudo-labelling; Zhao et al., arXiv:2008.06614)
    soft    the detectors' scores of the missing classes are the target, and their boxes where they are confident
    heads   each dataset has a share of the last layer's channels to itself, and its classes read only these; the
            network is an ordinary detector all the time
    background  missing labels are background; only to see what that costs

The detectors see the same augmented images as the one in training. Classes are joined by name, an image that is in two
datasets becomes one with the labels of both, and neither a group nor an image may be in two splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from edge.boxes import Float, clip, iou_matrix, nms
from edge.detect import decode
from tools.checkpoint import copy_state, network_of, read_checkpoint, write_checkpoint
from tools.dataset import INDEX, Dataset, data_hash, read_dataset, sha256_file
from tools.distill import DistillConfig, box_loss, score_loss
from tools.errors import DataError, ToolError
from tools.journal import Journal
from tools.loss import LossConfig, cell_centres, detection_loss
from tools.merging import known_sets, merge_datasets, restricted, write_folder
from tools.network import STRIDE, Detector
from tools.objective import Batch, Objective, Truth
from tools.plots import figure
from tools.run_record import write_record
from tools.stages import draw_classes, lasting, measure, parameter_count, train_once
from tools.train import Hooks, Run, TrainConfig, add_arguments, check, network_config

METHODS = ("mask", "pseudo", "soft", "heads", "background")
TAUGHT = ("pseudo", "soft")  # the methods that need detectors of the single datasets
SAME_IOU = 0.5  # boxes of one class that overlap more are the same defect
MOST_LABELS = 100  # of a detector on an image
NOTHING_THERE = -30.0  # logit of an ignored cell: its loss and gradient vanish


@dataclass(frozen=True)
class PartialConfig:
    """The knobs of the step.

    Attributes:
        method: one of `METHODS`.
        high, low: `pseudo` takes a box of at least this confidence as a label, and ignores cells between the two;
            `soft` follows the boxes of cells from `low` on.
        weight: of what the detectors say, beside the labels' 1.
    """

    method: str = "mask"
    high: float = 0.5
    low: float = 0.15
    weight: float = 1.0

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            ToolError: with what is wrong and what would do.
        """
        if self.method not in METHODS:
            raise ToolError(f"--method {self.method}: expected one of {', '.join(METHODS)}")
        if not 0 < self.low <= self.high < 1:
            raise ToolError(f"--low {self.low} and --high {self.high}: expected 0 < low <= high < 1")
        if self.weight < 0:
            raise ToolError(f"--weight {self.weight}: expected 0 or more")


@dataclass(frozen=True)
class Teacher:
    """A detector of some of the classes: its outputs `columns` are the classes `place` of the merged list."""

    network: Detector
    columns: np.ndarray  # (K,) int64
    place: np.ndarray  # (K,) int64

    def wanted(self, truth: Sequence[Truth]) -> np.ndarray:
        """Which of its classes nobody looked for, (B, K) bool."""
        return ~np.stack([labels.known[self.place] for labels in truth])

    def answer(self, images: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Logits (B, K, H, W) of its classes in the merged list, and raw distances (B, 4, H, W)."""
        with paddle.no_grad():
            cls, reg = self.network(images)
            return paddle.index_select(cls, paddle.to_tensor(self.columns), axis=1), reg


def read_teachers(paths: Sequence[Path], classes: Sequence[str], channels: int) -> list[Teacher]:
    """Detectors from their checkpoints, joined with the classes by name.

    Raises:
        ToolError: one knows none of the classes, or images of another kind.
    """
    teachers = []
    for path in paths:
        saved = read_checkpoint(path)
        columns = [k for k, name in enumerate(saved.classes) if name in classes]
        if not columns or saved.spec.channels != channels:
            raise ToolError(
                f"{path}: knows {', '.join(saved.classes)} on {saved.spec.channels} channels, and the data has "
                f"{', '.join(classes)} on {channels}"
            )
        place = [classes.index(saved.classes[k]) for k in columns]
        teachers.append(Teacher(network_of(saved, path), np.array(columns), np.array(place)))
    return teachers


@dataclass(frozen=True)
class BackgroundObjective:
    """Takes every class as looked for on every image."""

    labels: LossConfig

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        truth = [replace(labels, known=np.ones_like(labels.known)) for labels in batch.truth]
        return detection_loss(*network(batch.images), truth, STRIDE, self.labels)


@dataclass(frozen=True)
class SoftObjective:
    """Labels where there are some, the teachers' scores and boxes where there are none."""

    labels: LossConfig
    teachers: Sequence[Teacher]
    config: PartialConfig

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        cls, reg = network(batch.images)
        loss, parts = detection_loss(cls, reg, batch.truth, STRIDE, self.labels)
        sums = {"teacher_scores": 0.0, "teacher_boxes": 0.0}
        for teacher in self.teachers:
            wanted = teacher.wanted(batch.truth)
            if not wanted.any():
                continue
            images = np.flatnonzero(wanted.any(axis=1))
            rows, mask = paddle.to_tensor(images), paddle.to_tensor(wanted[images][:, :, None, None].astype(np.float32))
            wanted_cls, wanted_reg = teacher.answer(paddle.gather(batch.images, rows))
            mine = paddle.index_select(paddle.gather(cls, rows), paddle.to_tensor(teacher.place), axis=1)
            confidence = (F.sigmoid(wanted_cls) * mask).max(axis=1)  # (B, H, W)
            pulls = {
                "teacher_scores": score_loss(mine, wanted_cls, DistillConfig(), mask),
                "teacher_boxes": box_loss(paddle.gather(reg, rows), wanted_reg, confidence, self.config.low),
            }
            for name, pull in pulls.items():
                if pull is not None:
                    sums[name] += float(pull)
                    loss = loss + self.config.weight * pull
        return loss, {**parts, **sums}


@dataclass(frozen=True)
class PseudoObjective:
    """Labels where there are some, boxes that the teachers are sure of where there are none."""

    labels: LossConfig
    teachers: Sequence[Teacher]
    config: PartialConfig

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        cls, reg = network(batch.images)
        truth, ignored = list(batch.truth), np.zeros(cls.shape, bool)
        before = sum(len(labels.xyxy) for labels in truth)
        for teacher in self.teachers:
            wanted = teacher.wanted(truth)  # what an earlier one has answered is known by now
            images = np.flatnonzero(wanted.any(axis=1))
            if not len(images):
                continue
            answer_cls, answer_reg = teacher.answer(paddle.gather(batch.images, paddle.to_tensor(images)))
            for i, logits, raw in zip(images, answer_cls.numpy(), answer_reg.numpy(), strict=True):
                truth[i], unsure = add_labels(truth[i], logits, raw, teacher.place, self.config)
                ignored[i, teacher.place] |= unsure
        heard = paddle.where(paddle.to_tensor(ignored), paddle.full_like(cls, NOTHING_THERE), cls)
        loss, parts = detection_loss(heard, reg, truth, STRIDE, self.labels)
        return loss, {**parts, "pseudo": sum(len(labels.xyxy) for labels in truth) - float(before)}


def add_labels(
    truth: Truth, logits: Float, raw: Float, place: np.ndarray, config: PartialConfig
) -> tuple[Truth, np.ndarray]:
    """An image's labels with those of a teacher for the classes that were not looked for.

    Args:
        logits: (K, H, W) of the teacher's classes. raw: its distances (4, H, W). place: (K,) these classes' ids.

    Returns:
        The labels, with these classes known now, and the cells (K, H, W) bool where the teacher is unsure.
    """
    wanted = ~truth.known[place]
    logits = np.where(wanted[:, None, None], logits, NOTHING_THERE).astype(np.float32)
    _, height, width = logits.shape
    xyxy, confidence, kind = decode([logits[None], raw[None]], (STRIDE,), config.high)
    keep = nms(xyxy, confidence, kind, SAME_IOU, MOST_LABELS)
    xyxy, confidence = clip(xyxy[keep], width * STRIDE, height * STRIDE), confidence[keep]
    class_id = place[kind[keep]].astype(np.int64)
    new = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
    if len(truth.xyxy) and len(xyxy):  # a mark that was drawn on the image has its label already
        same = (iou_matrix(xyxy, truth.xyxy) > SAME_IOU) & (class_id[:, None] == truth.class_id)
        new &= ~same.any(axis=1)
    known = truth.known.copy()
    known[place] = True
    labels = Truth(
        np.concatenate([truth.xyxy, xyxy[new]]),
        np.concatenate([truth.class_id, class_id[new]]),
        np.concatenate([truth.weight, confidence[new]]),
        known,
    )
    score = 1 / (1 + np.exp(-logits))
    unsure = (score >= config.low) & (score < config.high)
    for k, identity in enumerate(place):
        unsure[k] &= ~_inside(labels.xyxy[labels.class_id == identity], height, width)
    return labels, unsure


def _inside(xyxy: Float, height: int, width: int) -> np.ndarray:
    """Cells (H, W) whose centre is in one of the boxes."""
    centres = cell_centres(height, width, STRIDE)[:, None]  # (A, 1, 2)
    within = (centres > xyxy[None, :, :2]) & (centres < xyxy[None, :, 2:])  # (A, N, 2)
    return within.all(axis=2).any(axis=1).reshape(height, width)


@dataclass(frozen=True)
class Heads:
    """Which channels of the class tower each class reads.

    Each set of known classes is a head with an equal share of the channels. A class of several heads has the mean of
    their logits in the end; in training each head answers for its own images.

    Args:
        known: (heads, classes) bool. width: channels of the tower.
    """

    known: np.ndarray
    width: int

    def owner(self) -> np.ndarray:
        """The head of each channel, (width,)."""
        return np.arange(self.width) * len(self.known) // self.width

    def joined(self) -> np.ndarray:
        """Where the weights of the class output are, (classes, width) bool."""
        return self.known[self.owner()].T

    def alone(self, head: int) -> Float:
        """Factors (classes, width) of the weights that make a head answer alone, for the classes that it knows."""
        own = self.known[head][:, None] & (self.owner() == head)  # (classes, width)
        shared = self.known.sum(axis=0, keepdims=True).T  # (classes, 1) heads that know the class
        return np.where(self.known[head][:, None], own * shared, self.joined()).astype(np.float32)

    def head_of(self, known: np.ndarray) -> int:
        """The head of an image; -1: none, all answer together."""
        same = np.flatnonzero((self.known == known).all(axis=1))
        return int(same[0]) if len(same) else -1


@dataclass(frozen=True)
class HeadsObjective:
    """Labels, with a head of its own for each set of known classes."""

    labels: LossConfig
    heads: Heads

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        features = network.features(batch.images)
        tower, reg = network.cls_tower(features), network.reg(network.reg_tower(features))
        head = np.array([self.heads.head_of(labels.known) for labels in batch.truth])
        order, logits = [], []
        for k in np.unique(head):
            mine = np.flatnonzero(head == k)
            factors = self.heads.joined().astype(np.float32) if k < 0 else self.heads.alone(int(k))
            weight = network.cls.weight * paddle.to_tensor(factors[:, :, None, None])
            logits.append(F.conv2d(paddle.gather(tower, paddle.to_tensor(mine)), weight, network.cls.bias))
            order.append(mine)
        cls = paddle.gather(paddle.concat(logits), paddle.to_tensor(np.argsort(np.concatenate(order))))
        return detection_loss(cls, reg, batch.truth, STRIDE, self.labels)


def write_heads(path: Path, network: Detector, data: Dataset) -> None:
    """A checkpoint to start from: the class output reads nothing but its heads' channels.

    The other weights are zero and get no gradient, so they stay zero: weight decay and averaging keep them there.
    """
    heads = heads_of(data, network)
    network.cls.weight.set_value(network.cls.weight.numpy() * heads.joined()[:, :, None, None])
    write_checkpoint(path, network, copy_state(network), data)


def heads_of(data: Dataset, network: Detector) -> Heads:
    """A head for each set of classes that are known together."""
    return Heads(np.array(known_sets(data.part("train"))), network.config.neck)


def make_objective(run: Run, config: PartialConfig, teachers: tuple[str, ...]) -> Objective:
    """The objective of a run."""
    if config.method == "background":
        return BackgroundObjective(run.loss_config)
    if config.method == "heads":
        return HeadsObjective(run.loss_config, heads_of(run.data, run.network))
    found = read_teachers([Path(path) for path in teachers], run.data.classes, run.data.spec.channels)
    kind = PseudoObjective if config.method == "pseudo" else SoftObjective
    return kind(run.loss_config, found, config)


def hooks(config: PartialConfig, teachers: Sequence[Path] = ()) -> Hooks:
    """What makes a run of `train` one with partial labels; `mask` is what `train` does by itself."""
    if config.method == "mask":
        return Hooks(step="partial-training")
    names = tuple(str(path) for path in teachers)
    return Hooks(partial(make_objective, config=config, teachers=names), step="partial-training")


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = PartialConfig()
    p = argparse.ArgumentParser(
        prog="python -m tools partial",
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
    )
    add_arguments(p)
    p.add_argument("--data", required=True, nargs="+", type=Path, help="dataset folders, or one with known classes")
    p.add_argument("--method", choices=METHODS, default=d.method, help="(%(default)s)")
    p.add_argument("--high", type=float, default=d.high, help="confidence of a pseudo-label (%(default)s)")
    p.add_argument("--low", type=float, default=d.low, help="below it there is nothing (%(default)s)")
    p.add_argument("--weight", type=float, default=d.weight, help="of the teachers in `soft` (%(default)s)")
    p.add_argument(
        "--teachers", nargs="+", type=Path, default=[], metavar="CHECKPOINT", help="instead of training them here"
    )
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on after a stop."""
    values = vars(parser().parse_args(arguments))
    folders, given = values.pop("data"), values.pop("teachers")
    config = PartialConfig(**{f.name: values.pop(f.name) for f in fields(PartialConfig)})
    config.check()
    parts = [read_dataset(folder) for folder in folders]
    out = Path(values["out"])
    root = folders[0] if len(folders) == 1 else out / "data"
    journal = Journal(out / "data.journal", {str(part.root): data_hash(part.samples) for part in parts})
    if len(folders) > 1 and not ("data" in journal and (root / INDEX).is_file()):
        write_folder(merge_datasets(parts), root)
        journal.once("data", lambda: True)
    data = read_dataset(root)
    refuse_complete(data)
    training = TrainConfig(**values, data=str(root))
    check(training)
    depends = {"data": data_hash(data.samples), "train": lasting(training)}
    teachers = [*given]
    if config.method in TAUGHT and not given:
        teachers = train_teachers(data, training, Journal(out / "teachers.journal", depends))
    if config.method in TAUGHT:
        refuse_unanswered(data, read_teachers(teachers, data.classes, data.spec.channels))
    depends |= {"partial": asdict(config), "teachers": [sha256_file(path) for path in teachers]}
    journal = Journal(out / "partial.journal", depends)
    if config.method == "heads":
        training = replace(training, start_from=start_of_heads(training, data, journal))
    final = train_once(training, hooks(config, teachers), journal, "training")
    networks = {**{f"teacher {k}": path for k, path in enumerate(teachers)}, config.method: final}
    results = {name: journal.once(f"{name} done", partial(_result, path, data)) for name, path in networks.items()}
    settings = {**asdict(training), **asdict(config), "teachers": teachers, "depends": depends}
    write_record(out / "partial.json", "partial", settings, {"labels": label_table(data), "networks": results})
    with figure(out / "partial.png", "Partial labels: AP on the validation images", "class", "AP33") as axes:
        draw_classes(axes, {name: result["validation"] for name, result in results.items()}, data.classes)
    for name, result in results.items():
        print(f"{name:<12} AP33 {result['validation']['ap33_pooled']:.4f} {result['validation']['ap33']}")


def train_teachers(data: Dataset, training: TrainConfig, journal: Journal) -> list[Path]:
    """A detector for each set of classes that are known together, on its own images."""
    found = []
    for k, known in enumerate(known_sets(data.part("train"))):
        out = Path(training.out) / "teachers" / str(k)
        mine = restricted(data, known)
        mine.part("validation")  # says what is missing before anything is trained
        if f"data {k}" not in journal or not (out / "data" / INDEX).is_file():
            write_folder(mine, out / "data")
            journal.once(f"data {k}", lambda: True)
        share = len(mine.part("train")) / len(data.part("train"))  # fewer images: more rounds for as many steps
        epochs = max(1, round(training.epochs / share))
        own = replace(training, data=str(out / "data"), out=str(out), start_from="", epochs=epochs)
        found.append(train_once(own, Hooks(step=f"teacher-{k}"), journal, f"teacher {k}"))
    return found


def start_of_heads(training: TrainConfig, data: Dataset, journal: Journal) -> str:
    """The checkpoint that the heads start from, from new weights or those of `--start-from`."""
    start = Path(training.out) / "heads.pdckpt"
    if not ("heads" in journal and start.is_file()):
        if training.start_from:
            network = network_of(read_checkpoint(Path(training.start_from)), Path(training.start_from))
        else:
            paddle.seed(training.seed)
            shape = network_config(training.network, len(data.classes), data.spec.channels, training.drop_path)
            network = Detector(shape)
        start.parent.mkdir(parents=True, exist_ok=True)
        write_heads(start, network, data)
        journal.once("heads", lambda: True)
    return str(start)


def refuse_complete(data: Dataset) -> None:
    """Check that there is something to do, and that each class is labelled somewhere.

    Raises:
        DataError: all is labelled, or a class nowhere.
    """
    known = np.stack([sample.known for sample in data.part("train")])  # (images, classes)
    if known.all():
        raise DataError(f"{data.root / INDEX}: every class was looked for on every training image: `train` is enough")
    never = [name for name, somewhere in zip(data.classes, known.any(axis=0), strict=True) if not somewhere]
    if never:
        raise DataError(f"{data.root / INDEX}: nobody looked for {', '.join(never)} on any training image")


def refuse_unanswered(data: Dataset, teachers: Sequence[Teacher]) -> None:
    """Check that the teachers know every class that is missing on some image.

    Raises:
        ToolError: they do not.
    """
    taught = np.zeros(len(data.classes), bool)
    for teacher in teachers:
        taught[teacher.place] = True
    missing = ~np.stack([sample.known for sample in data.part("train")]).all(axis=0)
    lacking = [data.classes[k] for k in np.flatnonzero(missing & ~taught)]
    if lacking:
        raise ToolError(f"--teachers: none of them knows {', '.join(lacking)}, which some images are not labelled for")


def label_table(data: Dataset) -> dict[str, Mapping[str, int]]:
    """By class: training images on which it was looked for, and its boxes."""
    train = data.part("train")
    known = np.stack([sample.known for sample in train]).sum(axis=0)
    boxes = np.bincount(np.concatenate([sample.class_id for sample in train]), minlength=len(data.classes))
    return {
        name: {"images": len(train), "labelled": int(known[k]), "boxes": int(boxes[k])}
        for k, name in enumerate(data.classes)
    }


def _result(checkpoint: Path, data: Dataset) -> dict[str, Any]:
    """Figures of a network on the validation images of the classes that it knows."""
    saved = read_checkpoint(checkpoint)
    network = network_of(saved, checkpoint)
    if saved.classes != data.classes:
        data = restricted(data, [name in saved.classes for name in data.classes])
        order = [saved.classes.index(name) for name in data.classes]
        network = _Columns(network, order)
    figures = measure(network, data, data.part("validation"), f"evaluate {checkpoint.name}")
    return {"parameters": parameter_count(network), "validation": figures}


class _Columns(paddle.nn.Layer):
    """A network that gives some of its classes, in another order."""

    def __init__(self, network: Detector, columns: Sequence[int]):
        super().__init__()
        self.network, self.columns = network, list(columns)

    def forward(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        cls, reg = self.network(image)
        return paddle.index_select(cls, paddle.to_tensor(self.columns), axis=1), reg
