"""Distillation: its losses, its gradients, and the whole step on tiny data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest

from tests.tools.tiny import tiny_dataset
from tools import distill
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import read_dataset
from tools.distill import DistillConfig, DistillObjective, box_loss, feature_loss, score_loss
from tools.errors import ToolError
from tools.journal import Journal
from tools.loss import LossConfig
from tools.network import Detector, NetworkConfig
from tools.objective import Batch, Truth
from tools.runtimes import load_network
from tools.stages import train_once
from tools.train import CHECKPOINT, FINAL, Run, TrainConfig

STUDENT = NetworkConfig(
    classes=2, stem=8, width8=8, width16=16, width32=16, depth8=1, depth16=1, depth32=1, neck=8, kernel=3
)
TEACHER = replace(STUDENT, block="basic", width8=16, neck=24)
FOLLOW = DistillConfig()


def detector(config: NetworkConfig, seed: int) -> Detector:
    paddle.seed(seed)
    network = Detector(config)
    network.eval()
    return network


def test_scores_are_pulled_to_the_teachers_where_they_differ() -> None:
    teacher = paddle.to_tensor([[[[3.0, -4.0]], [[-4.0, -4.0]]]])
    student = paddle.to_tensor([[[[-3.0, -4.0]], [[-4.0, 2.0]]]], stop_gradient=False)
    loss = score_loss(student, teacher, FOLLOW)
    loss.backward()
    gradient = student.grad.numpy()[0, :, 0]
    assert gradient[0, 0] < 0 and gradient[1, 1] > 0  # up to the teacher's defect, down from the student's own
    assert gradient[0, 1] == gradient[1, 0] == 0  # they agree
    assert float(score_loss(teacher, teacher, FOLLOW)) == pytest.approx(0, abs=1e-7)


def test_a_mask_leaves_classes_alone() -> None:
    teacher, student = paddle.full([2, 2, 1, 1], 3.0), paddle.full([2, 2, 1, 1], -3.0)
    student.stop_gradient = False
    score_loss(student, teacher, FOLLOW, paddle.to_tensor([[1.0, 0.0], [0.0, 0.0]]).reshape([2, 2, 1, 1])).backward()
    assert (student.grad.numpy().reshape(2, 2) != 0).tolist() == [[True, False], [False, False]]


def test_boxes_of_sure_cells_are_followed() -> None:
    teacher = paddle.full([1, 4, 2, 2], 1.0)
    student = paddle.full([1, 4, 2, 2], 2.0)
    student.stop_gradient = False
    confidence = paddle.to_tensor([[[0.9, 0.1], [0.3, 0.0]]])
    loss = box_loss(student, teacher, confidence, 0.2)
    loss.backward()
    moved = np.abs(student.grad.numpy()[0]).sum(axis=0)
    assert moved[0, 0] > moved[1, 0] > 0 and moved[0, 1] == moved[1, 1] == 0
    assert (student.grad.numpy()[0, :, 0, 0] > 0).all()  # all sides come in
    assert float(box_loss(teacher, teacher, confidence, 0.2)) == pytest.approx(0, abs=1e-5)
    assert box_loss(teacher, teacher, confidence, 0.95) is None


def test_features_are_compared_but_for_scale_and_offset() -> None:
    teacher = paddle.rand([2, 3, 4, 4])
    everywhere = paddle.ones([2, 4, 4])
    assert float(feature_loss(5 * teacher - 2, teacher, everywhere)) == pytest.approx(0, abs=1e-3)
    assert float(feature_loss(-teacher, teacher, everywhere)) == pytest.approx(4, rel=0.01)


def batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    images = rng.random((2, 1, 64, 64)).astype(np.float32)
    boxes = np.array([[10, 10, 30, 30]], np.float32)
    truth = Truth(boxes, np.array([1]), np.ones(1, np.float32), np.ones(2, bool))
    return Batch(paddle.to_tensor(images), [truth, truth])


def test_student_comes_near_its_teacher_and_only_the_student_and_the_adaptor_learn() -> None:
    teacher, student = detector(TEACHER, 1), detector(STUDENT, 2)
    with paddle.no_grad():
        teacher.cls.bias.set_value(paddle.to_tensor([0.5, -1.0]))  # a teacher that is sure of something
        student.cls.bias.set_value(paddle.to_tensor([-1.0, -1.0]))
    objective = DistillObjective(teacher, STUDENT.neck, LossConfig(class_weight=0, box_weight=0), FOLLOW)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=student.parameters())
    fixed, adaptor = copy_state(teacher), objective.adaptor.weight.numpy()
    history = []
    student.train()
    for _ in range(40):
        loss, parts = objective.loss(student, batch(0))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        history.append(parts)
    for name, share in {"teacher_scores": 0.7, "teacher_boxes": 0.8, "teacher_features": 0.85}.items():
        assert history[-1][name] < share * history[0][name]
    assert all(np.array_equal(fixed[name], value.numpy()) for name, value in teacher.state_dict().items())
    assert not np.allclose(adaptor, objective.adaptor.weight.numpy())
    assert not any("adaptor" in name for name in student.state_dict())


@pytest.fixture
def tiny(tmp_path: Path) -> TrainConfig:
    """A dataset, a teacher `teacher.pdckpt` and a narrow student."""
    root = tiny_dataset(tmp_path / "data", size=(64, 64), images=4)
    teacher = detector(TEACHER, 1)
    write_checkpoint(tmp_path / "teacher.pdckpt", teacher, copy_state(teacher), read_dataset(root))
    (tmp_path / "student.json").write_text(json.dumps(STUDENT.as_dict()))
    return TrainConfig(
        str(root),
        str(tmp_path / "out"),
        network=str(tmp_path / "student.json"),
        epochs=3,
        processes=1,
        batch=2,
        crop=64,
        warmup_steps=2,
        evaluate_every=0,
    )


def arguments(config: TrainConfig, teacher: Path, *more: str) -> list[str]:
    fixed = ["--data", config.data, "--out", config.out, "--network", config.network, "--teacher", str(teacher)]
    quick = ["--epochs", "3", "--processes", "1", "--batch", "2", "--crop", "64", "--evaluate-every", "0"]
    return [*fixed, *quick, *more]


def test_whole_step(tiny: TrainConfig, tmp_path: Path) -> None:
    distill.main(arguments(tiny, tmp_path / "teacher.pdckpt"))
    out = Path(tiny.out)
    results = json.loads((out / "distill.json").read_text())["results"]
    assert results["teacher"]["parameters"] > results["student"]["parameters"]
    assert all(result["validation"]["images"] == 4 for result in results.values())
    history = json.loads((out / "distill-training.json").read_text())["results"]["history"]
    assert len(history) == 3 and history[0]["teacher_scores"] > 0 and history[0]["teacher_features"] > 0
    assert (out / "distill.png").stat().st_size > 5000
    assert load_network(out / FINAL).config == replace(STUDENT)
    distill.main(arguments(tiny, tmp_path / "teacher.pdckpt", "--start-from", str(out / FINAL)))
    results = json.loads((out / "distill.json").read_text())["results"]
    assert results["student_before"]["parameters"] == results["student"]["parameters"]


def test_a_stopped_run_goes_on_with_its_adaptor(tiny: TrainConfig, tmp_path: Path) -> None:
    out, seen = Path(tiny.out), []
    how = distill.hooks(tmp_path / "teacher.pdckpt", FOLLOW, "distill-training")

    def stop(run: Run, held: object) -> dict[str, object]:
        seen.append((run.epoch, run.objective.adaptor.weight.numpy()))
        distill.keep_adaptor(run, [])
        if run.epoch == 2 and len(seen) == 2:
            raise KeyboardInterrupt
        return {}

    journal = Journal(out / "x.journal", {})
    with pytest.raises(KeyboardInterrupt):
        train_once(tiny, replace(how, note=stop), journal, "training")

    def look(run: Run) -> DistillObjective:
        objective = how.objective(run)
        seen.append((-1, objective.adaptor.weight.numpy()))
        return objective

    final = train_once(tiny, replace(how, objective=look, note=stop), Journal(out / "x.journal", {}), "training")
    assert [epoch for epoch, _ in seen] == [1, 2, -1, 2, 3]  # the second epoch was lost, the first was not
    assert np.array_equal(seen[2][1], seen[1][1])
    assert final == out / FINAL and (out / CHECKPOINT).is_file()
    train_once(tiny, how, Journal(out / "x.journal", {}), "training")
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--temperature", "0"], "--temperature 0.0: expected more than 0"),
        (["--confidence", "1"], "--confidence 1.0"),
        (["--box-weight", "-1"], "must not be negative"),
        (["--teacher", "no.pdckpt"], r"no\.pdckpt: missing"),
    ],
)
def test_bad_arguments_are_refused(tiny: TrainConfig, tmp_path: Path, more: list[str], words: str) -> None:
    with pytest.raises(ToolError, match=words):
        distill.main(arguments(tiny, tmp_path / "teacher.pdckpt", *more))


def test_a_teacher_of_other_classes_is_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    other = read_dataset(tiny_dataset(tmp_path / "other", classes=("scratch", "dent")))
    teacher = detector(TEACHER, 1)
    write_checkpoint(tmp_path / "other.pdckpt", teacher, copy_state(teacher), other)
    with pytest.raises(ToolError, match="scratch, dent"):
        distill.main(arguments(tiny, tmp_path / "other.pdckpt"))
