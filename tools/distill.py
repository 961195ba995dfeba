"""Teach a small detector what a larger one has learned: train it on labels and on the teacher's answers at once.

The teacher is trained by `python -m tools train --network teacher` (ResNet blocks). At each step it sees the same
augmented images as the student (Beyer et al., arXiv:2106.05237), which follows it in three things: class scores at all
cells, where the weight is the square of the disagreement (quality focal loss, Li et al., arXiv:2006.04388); boxes at
the cells where the teacher is confident; and features at these cells, through a 1x1 convolution of its own that is not
exported (FitNets, Romero et al., arXiv:1412.6550), after each channel is standardised (PKD, Cao et al.,
arXiv:2207.02039).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn

from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import Dataset, Sample, data_hash, read_dataset, sha256_file
from tools.errors import ToolError
from tools.journal import Journal
from tools.loss import LossConfig, cell_centres, detection_loss, distances_to_boxes, giou
from tools.network import STRIDE, Detector
from tools.objective import Batch
from tools.plots import figure
from tools.run_record import write_record
from tools.stages import draw_classes, lasting, measure, parameter_count, train_once
from tools.train import Hooks, Run, TrainConfig, add_arguments, check, refuse_other_data

ADAPTOR = "adaptor.pdparams"
ADAPTOR_RATE = 2e-3


@dataclass(frozen=True)
class DistillConfig:
    """How much of the teacher is followed.

    Attributes:
        class_weight, box_weight, feature_weight: of the three parts, beside the loss on labels, which has weight 1.
        temperature: divides the logits of both; above 1 what the teacher finds unlikely counts for more.
        focus: exponent of the disagreement in the weight of a cell; 0 weighs all alike.
        confidence: boxes of cells under it are not followed, in (0, 1).
    """

    class_weight: float = 1.0
    box_weight: float = 1.0
    feature_weight: float = 0.5
    temperature: float = 1.0
    focus: float = 2.0
    confidence: float = 0.2


def score_loss(
    student: paddle.Tensor, teacher: paddle.Tensor, config: DistillConfig, mask: paddle.Tensor | None = None
) -> paddle.Tensor:
    """How far the student's class scores are from the teacher's: a scalar, 0 where they agree.

    The binary Kullback-Leibler divergence of each score, times |difference| ** focus, summed and divided by the
    teacher's sum of scores over the cells, which plays the part of the number of objects.

    Args:
        student, teacher: logits (B, C, H, W). mask: (B, C, 1, 1) or like the logits, 0 where nothing is to be learned.

    >>> z = paddle.to_tensor([[[[2.0]]]])
    >>> float(score_loss(z, z, DistillConfig())), float(score_loss(-z, z, DistillConfig())) > 0.1
    (0.0, True)
    """
    wanted = F.sigmoid(teacher / config.temperature)
    logits = student / config.temperature
    entropy = F.binary_cross_entropy_with_logits(teacher / config.temperature, wanted, reduction="none")
    divergence = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") - entropy
    weight = (F.sigmoid(logits.detach()) - wanted).abs().pow(config.focus)
    sure = F.sigmoid(teacher)
    if mask is not None:
        weight, sure = weight * mask, sure * mask
    objects = sure.max(axis=1).sum().clip(min=1.0)
    return (divergence * weight).sum() / objects * config.temperature**2


def box_loss(
    student: paddle.Tensor, teacher: paddle.Tensor, confidence: paddle.Tensor, least: float
) -> paddle.Tensor | None:
    """1 - GIoU of the student's to the teacher's boxes, weighed by the teacher's confidence; in [0, 2].

    Args:
        student, teacher: raw distances (B, 4, H, W). confidence: the teacher's, (B, H, W).
        least: cells under this confidence are left out.

    Returns:
        The mean over the cells, or None when there is none.
    """
    batch, _, height, width = student.shape
    sure = confidence.reshape([-1])
    cells = paddle.nonzero(sure >= least).reshape([-1])  # (P,) over B * H * W
    if cells.shape[0] == 0:
        return None
    centres = paddle.to_tensor(cell_centres(height, width, STRIDE)).tile([batch, 1])

    def boxes(raw: paddle.Tensor) -> paddle.Tensor:
        flat = raw.transpose([0, 2, 3, 1]).reshape([-1, 4])
        return distances_to_boxes(paddle.gather(flat, cells), paddle.gather(centres, cells), STRIDE)

    weight = paddle.gather(sure, cells)
    return ((1 - giou(boxes(student), boxes(teacher))) * weight).sum() / weight.sum()


def standardised(features: paddle.Tensor) -> paddle.Tensor:
    """Each channel of (B, C, H, W) with mean 0 and deviation 1 over the batch."""
    centred = features - features.mean(axis=[0, 2, 3], keepdim=True)
    return centred / (centred.square().mean(axis=[0, 2, 3], keepdim=True) + 1e-5).sqrt()


def feature_loss(adapted: paddle.Tensor, teacher: paddle.Tensor, confidence: paddle.Tensor) -> paddle.Tensor:
    """Mean squared difference of standardised features (B, C, H, W), weighed by the teacher's confidence (B, H, W)."""
    squared = (standardised(adapted) - standardised(teacher)).square().mean(axis=1)  # (B, H, W)
    return (squared * confidence).sum() / confidence.sum().clip(min=1e-3)


class DistillObjective:
    """Labels and a teacher at once; see `tools.objective.Objective`.

    Args:
        teacher: in evaluation mode. student_width: channels of the student's features. labels: the loss on labels.
    """

    def __init__(self, teacher: Detector, student_width: int, labels: LossConfig, config: DistillConfig):
        self.teacher, self.labels, self.config = teacher, labels, config
        self.adaptor = nn.Conv2D(student_width, teacher.config.neck, 1)
        self._optimizer = paddle.optimizer.AdamW(ADAPTOR_RATE, parameters=self.adaptor.parameters())
        self._waiting = False  # whether the adaptor has a gradient that it has not followed yet
        for parameter in teacher.parameters():
            parameter.stop_gradient = True

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        self._train_adaptor()
        features = network.features(batch.images)
        cls, reg = network.head(features)
        loss, parts = detection_loss(cls, reg, batch.truth, STRIDE, self.labels)
        with paddle.no_grad():
            wanted_features = self.teacher.features(batch.images)
            wanted_cls, wanted_reg = self.teacher.head(wanted_features)
            confidence = F.sigmoid(wanted_cls).max(axis=1)  # (B, H, W)
        c = self.config
        extra = {
            "scores": (c.class_weight, score_loss(cls, wanted_cls, c)),
            "boxes": (c.box_weight, box_loss(reg, wanted_reg, confidence, c.confidence)),
        }
        if c.feature_weight:
            adapted = self.adaptor(features)
            extra["features"] = (c.feature_weight, feature_loss(adapted, wanted_features, confidence))
        for name, (weight, value) in extra.items():
            if value is not None:
                parts[f"teacher_{name}"] = float(value)
                loss = loss + weight * value
        return loss, parts

    def _train_adaptor(self) -> None:
        """Follow the gradient of the last step; the run's own optimizer knows only what is exported."""
        if self._waiting:
            self._optimizer.step()
            self._optimizer.clear_grad()
        self._waiting = self.config.feature_weight > 0

    def save(self, path: Path) -> None:
        """Keep the adaptor, so that a run that was stopped goes on with it."""
        paddle.save(self.adaptor.state_dict(), str(path))

    def load(self, path: Path) -> None:
        """Take up the adaptor of a stopped run."""
        self.adaptor.set_state_dict(paddle.load(str(path)))


def make_objective(run: Run, teacher: str, config: DistillConfig) -> DistillObjective:
    """The objective of a run, with the teacher read from its checkpoint."""
    path = Path(teacher)
    saved = read_checkpoint(path)
    refuse_other_data(saved, run.data, path)
    objective = DistillObjective(network_of(saved, path), run.network.config.neck, run.loss_config, config)
    adaptor = Path(run.config.out) / ADAPTOR
    if run.config.resume and adaptor.is_file():
        objective.load(adaptor)
    return objective


def keep_adaptor(run: Run, held: Sequence[Sample]) -> dict[str, Any]:
    """At the end of an epoch: the adaptor goes with the checkpoint."""
    if isinstance(run.objective, DistillObjective):
        run.objective.save(Path(run.config.out) / ADAPTOR)
    return {}


def hooks(teacher: Path, config: DistillConfig, step: str) -> Hooks:
    """What makes a run of `train` one of distillation."""
    return Hooks(partial(make_objective, teacher=str(teacher), config=config), keep_adaptor, step)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    d = DistillConfig()
    p = argparse.ArgumentParser(prog="python -m tools distill", description=__doc__.splitlines()[0])
    add_arguments(p)
    p.add_argument("--teacher", type=Path, required=True, help="checkpoint of `train --network teacher`")
    p.add_argument("--class-weight", type=float, default=d.class_weight, help="of the class scores (%(default)s)")
    p.add_argument("--box-weight", type=float, default=d.box_weight, help="of the boxes (%(default)s)")
    p.add_argument("--feature-weight", type=float, default=d.feature_weight, help="of the features (%(default)s)")
    p.add_argument("--temperature", type=float, default=d.temperature, help="of the class scores (%(default)s)")
    p.add_argument("--focus", type=float, default=d.focus, help="exponent of the disagreement (%(default)s)")
    p.add_argument("--confidence", type=float, default=d.confidence, help="least, of a box to follow (%(default)s)")
    return p


def check_settings(teacher: Path, config: DistillConfig, data: Dataset) -> None:
    """Refuse what cannot work.

    Raises:
        ToolError: with what is wrong and what would do.
    """
    refuse_other_data(read_checkpoint(teacher), data, teacher)
    if not config.temperature > 0:
        raise ToolError(f"--temperature {config.temperature}: expected more than 0")
    if not 0 < config.confidence < 1:
        raise ToolError(f"--confidence {config.confidence}: expected between 0 and 1")
    if min(config.class_weight, config.box_weight, config.feature_weight, config.focus) < 0:
        raise ToolError("the weights and --focus must not be negative")


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on after a stop."""
    values = vars(parser().parse_args(arguments))
    teacher = values.pop("teacher")
    config = DistillConfig(**{f.name: values.pop(f.name) for f in fields(DistillConfig)})
    training = TrainConfig(**values)
    check(training)
    data = read_dataset(Path(training.data))
    check_settings(teacher, config, data)
    out, held = Path(training.out), data.part("validation")
    depends = {"train": lasting(training), "distill": asdict(config), "data": data_hash(data.samples)}
    depends |= {name: sha256_file(Path(path)) for name, path in _networks(teacher, training).items()}
    journal = Journal(out / "distill.journal", depends)
    results: dict[str, Any] = {}
    for name, path in _networks(teacher, training).items():
        results[name] = journal.once(name, partial(_result, path, data, held))
    student = train_once(training, hooks(teacher, config, "distill-training"), journal, "training")
    results["student"] = journal.once("student", partial(_result, student, data, held))
    settings = {**asdict(training), "teacher": teacher, "distill": asdict(config), "depends": depends}
    write_record(out / "distill.json", "distill", settings, results)
    with figure(out / "distill.png", "Teacher and student on the validation images", "class", "AP33") as axes:
        draw_classes(axes, {name: result["validation"] for name, result in results.items()}, data.classes)
    for name, result in results.items():
        print(f"{name:<14} {result['parameters']:>9} parameters, AP33 {result['validation']['ap33_pooled']:.4f}")


def _networks(teacher: Path, training: TrainConfig) -> dict[str, Path]:
    """The checkpoints that are there before the run."""
    found = {"teacher": teacher}
    if training.start_from:
        found["student_before"] = Path(training.start_from)
    return found


def _result(checkpoint: Path, data: Dataset, held: Sequence[Sample]) -> dict[str, Any]:
    network = network_of(read_checkpoint(checkpoint), checkpoint)
    figures = measure(network, data, held, f"evaluate {checkpoint.name}")
    return {"parameters": parameter_count(network), "validation": figures}
