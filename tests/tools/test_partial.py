"""Partial labels: datasets joined, what each method learns from, and that missing labels are no background."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from tests.tools.tiny import tiny_dataset
from tools import partial
from tools.checkpoint import copy_state, network_of, read_checkpoint, write_checkpoint
from tools.dataset import Dataset, read_dataset, read_image
from tools.errors import DataError, ToolError
from tools.evaluate import detect_all
from tools.loss import LossConfig
from tools.merging import known_sets, merge_datasets, restricted, write_folder
from tools.metrics import match
from tools.network import Detector, NetworkConfig
from tools.objective import Batch, LabelLoss, Objective, Truth
from tools.partial import (
    BackgroundObjective,
    Heads,
    HeadsObjective,
    PartialConfig,
    PseudoObjective,
    SoftObjective,
    Teacher,
    add_labels,
)
from tools.runtimes import LayerPredictor
from tools.train import TrainConfig, run_all

NARROW = {"stem": 8, "width8": 16, "width16": 16, "width32": 16, "depth8": 1, "depth16": 1, "depth32": 1}
NARROW |= {"neck": 16, "kernel": 3}
SIDE = 64


def surfaces(root: Path, images: int = 24, held: int = 24) -> Path:
    """A dataset folder of black discs and white squares on dark and bright surfaces; both are on every image.

    For training squares are labelled on the bright surfaces only, a third of all; for validation everywhere.
    """
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    records, annotations = [], []
    for n in range(images + held):
        train = n < images
        bright = n % 3 == 0 if train else n % 2 == 0
        picture = rng.normal(170 if bright else 80, 4, (SIDE, SIDE)).clip(0, 255).astype(np.uint8)
        x, y = rng.integers(2, 8, 2) + 32 * rng.permutation(2), rng.integers(2, SIDE - 22, 2)
        cv2.circle(picture, (int(x[0]) + 9, int(y[0]) + 9), 9, 20, cv2.FILLED)
        cv2.rectangle(picture, (int(x[1]), int(y[1])), (int(x[1]) + 17, int(y[1]) + 17), 250, cv2.FILLED)
        cv2.imwrite(str(root / f"{n}.png"), picture)
        record = {"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE, "group": f"{train} {bright}"}
        known = [0, 1] if bright or not train else [0]
        records.append(record | {"split": "train" if train else "validation", "known": known})
        for kind in known:
            box = [int(x[kind]), int(y[kind]), 19 - kind, 19 - kind]
            annotations.append({"id": len(annotations), "image_id": n, "category_id": kind, "bbox": box})
    info = {"product": "surfaces", "input": {"width": SIDE, "height": SIDE, "channels": 1}}
    categories = [{"id": 0, "name": "disc"}, {"id": 1, "name": "square"}]
    index = {"info": info, "categories": categories, "images": records, "annotations": annotations}
    (root / "dataset.json").write_text(json.dumps(index))
    return root


def learn(root: Path, out: Path, config: PartialConfig) -> Detector:
    """Train a narrow network on the surfaces."""
    out.mkdir()
    (out / "network.json").write_text(json.dumps(NARROW))
    quick = {"epochs": 18, "processes": 1, "batch": 4, "crop": SIDE, "evaluate_every": 0, "rate": 1e-2}
    quick |= {"warmup_steps": 10, "ema_decay": 0.95}
    run_all(TrainConfig(str(root), str(out), str(out / "network.json"), **quick), partial.hooks(config))
    return network_of(read_checkpoint(out / "final.pdckpt"), out)


def found_squares(network: Detector, data: Dataset) -> float:
    """Share of the squares on dark surfaces, where none was labelled, that are found with a confidence of 0.3."""
    samples = [sample for sample in data.part("validation") if sample.group.endswith("False")]
    images = (read_image(sample.image) for sample in samples)
    found = detect_all(LayerPredictor(network), images, data.spec)
    hits = [
        (match(d, s.xyxy, s.class_id, 0.33) & (d.class_id == 1) & (d.confidence >= 0.3)).any()
        for d, s in zip(found, samples, strict=True)
    ]
    return float(np.mean(hits))


def test_a_missing_label_is_no_background(tmp_path: Path) -> None:
    data = read_dataset(surfaces(tmp_path / "data"))
    found = {
        method: found_squares(learn(data.root, tmp_path / method, PartialConfig(method)), data)
        for method in ("mask", "background")
    }
    assert found["mask"] > found["background"] + 0.3


# Datasets


def two(tmp_path: Path, **second: object) -> list[Dataset]:
    """Folders a (hole, bar) and b (bar, crack), of groups A and C for training, B and D for validation."""
    first = tiny_dataset(tmp_path / "a", classes=("hole", "bar"), images=2, templates=True)
    how = {"classes": ("bar", "crack"), "groups": ("C", "D"), "validation": ("D",), "images": 2, "seed": 5} | second
    return [read_dataset(first), read_dataset(tiny_dataset(tmp_path / "b", **how))]


def test_classes_are_joined_and_each_image_keeps_what_was_looked_for(tmp_path: Path) -> None:
    parts = two(tmp_path)
    write_folder(merge_datasets(parts), tmp_path / "ab")
    merged = read_dataset(tmp_path / "ab")
    assert merged.classes == ("hole", "bar", "crack") and merged.spec == parts[0].spec
    train = merged.part("train")
    assert [sample.known.tolist() for sample in train] == [[True, True, False]] * 2 + [[False, True, True]] * 2
    assert known_sets(train) == [(True, True, False), (False, True, True)]
    for sample, old in zip(train, [*parts[0].part("train"), *parts[1].part("train")], strict=True):
        assert sample.image.read_bytes() == old.image.read_bytes() and np.array_equal(sample.xyxy, old.xyxy)
        assert (sample.template is None) == (old.template is None)
    assert [merged.classes[k] for k in train[3].class_id] == [parts[1].classes[k] for k in parts[1].samples[1].class_id]
    assert len(merged.part("validation")) == 4


def test_an_image_of_both_becomes_one_with_the_labels_of_both(tmp_path: Path) -> None:
    first = tiny_dataset(tmp_path / "a", classes=("hole", "bar"), images=2)
    shutil.copytree(first, tmp_path / "b")
    for root, known in ((first, [1]), (tmp_path / "b", [2])):
        index = json.loads((root / "dataset.json").read_text())
        index["annotations"] = [a for a in index["annotations"] if a["category_id"] in known]
        index["images"] = [image | {"known": known} for image in index["images"]]
        (root / "dataset.json").write_text(json.dumps(index))
    merged = merge_datasets([read_dataset(first), read_dataset(tmp_path / "b")])
    whole = read_dataset(tiny_dataset(tmp_path / "c", classes=("hole", "bar"), images=2))
    assert len(merged.samples) == len(whole.samples) == 4
    for mine, theirs in zip(merged.samples, whole.samples, strict=True):
        assert mine.known.all() and sorted(mine.class_id) == sorted(theirs.class_id)


def test_a_restricted_dataset_has_its_classes_alone(tmp_path: Path) -> None:
    merged = merge_datasets(two(tmp_path))
    cracks = restricted(merged, (False, True, True))
    assert cracks.classes == ("bar", "crack") and len(cracks.samples) == 4
    assert all(sample.known.all() and sample.group in "CD" for sample in cracks.samples)
    bars = restricted(merged, (False, True, False))
    assert len(bars.samples) == 8 and sum(len(s.xyxy) for s in bars.samples) < sum(len(s.xyxy) for s in merged.samples)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"groups": ("B", "D")}, r"the group 'B' is in validation and in train"),
        ({"size": (64, 96)}, r"input of 64x96x1, and .* for 96x96x1: import both for the same input"),
        ({"channels": 3}, "96x96x3"),
        ({"classes": ("Bar", "crack")}, "has the class 'bar' and .* 'Bar'"),
        (
            {"classes": ("hole", "bar"), "seed": 0, "groups": ("X", "Y"), "validation": ("X",)},
            "are the same image: figures would look better",
        ),
    ],
)
def test_datasets_that_cannot_be_joined_are_refused(tmp_path: Path, second: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        merge_datasets(two(tmp_path, **second))


# Objectives


def detector(classes: int = 2, seed: int = 1) -> Detector:
    paddle.seed(seed)
    network = Detector(NetworkConfig(classes=classes, **NARROW))
    network.eval()
    return network


def truth(known: tuple[bool, ...], kinds: tuple[int, ...] = ()) -> Truth:
    boxes = np.array([[8 + 24 * i, 8, 24 + 24 * i, 24] for i in range(len(kinds))], np.float32).reshape(-1, 4)
    return Truth(boxes, np.array(kinds, np.int64), np.ones(len(kinds), np.float32), np.array(known))


def images(count: int) -> paddle.Tensor:
    return paddle.to_tensor(np.random.default_rng(0).random((count, 1, SIDE, SIDE)).astype(np.float32))


def gradients(objective: Objective, network: Detector, batch: Batch) -> np.ndarray:
    """Gradient (classes,) of the class output's bias: which classes the batch teaches."""
    network.clear_gradients()
    objective.loss(network, batch)[0].backward()
    return network.cls.bias.grad.numpy()


def test_background_teaches_what_was_not_looked_for_and_mask_does_not() -> None:
    network, batch = detector(), Batch(images(1), [truth((True, False), (0,))])
    assert (gradients(LabelLoss(), network, batch) != 0).tolist() == [True, False]
    assert (gradients(BackgroundObjective(LossConfig()), network, batch) != 0).tolist() == [True, True]


def sure(network: Detector, biases: tuple[float, ...]) -> Detector:
    """The network with these logits at every cell."""
    network.cls.weight.set_value(paddle.zeros_like(network.cls.weight))
    network.cls.bias.set_value(paddle.to_tensor(biases))
    return network


def test_soft_labels_teach_the_missing_classes_alone() -> None:
    teacher = Teacher(sure(detector(seed=2), (3.0, 3.0)), np.array([1, 0]), np.array([0, 1]))
    batch = Batch(images(2), [truth((True, False), (0,)), truth((True, True), (1,))])
    network = detector()
    alone = gradients(LabelLoss(), network, batch)
    taught = gradients(SoftObjective(LossConfig(), [teacher], PartialConfig("soft")), network, batch)
    assert taught[0] == pytest.approx(alone[0]) and taught[1] < alone[1] - 0.1  # up to the teacher's 0.95
    parts = SoftObjective(LossConfig(), [teacher], PartialConfig("soft")).loss(network, batch)[1]
    assert parts["teacher_scores"] > 0 and parts["teacher_boxes"] > 0
    nothing = SoftObjective(LossConfig(), [teacher], PartialConfig("soft", weight=0.0))
    assert gradients(nothing, network, batch) == pytest.approx(alone)


def test_sure_boxes_become_labels_and_unsure_cells_teach_nothing() -> None:
    logits, raw = np.full((2, 8, 8), -6, np.float32), np.full((4, 8, 8), 1.5, np.float32)
    logits[0, 2, 3] = 2.0  # a sure crack: cell (3, 2), its centre at (28, 20), and 13.6 pixels to each side
    logits[0, 2, 4] = 0.1  # in the same box: suppressed, and inside a label
    logits[0, 6, 6] = -1.0  # unsure
    logits[1, 5, 1] = 2.0  # a sure hole, but holes are labelled
    labels, unsure = add_labels(truth((True, False), (0,)), logits, raw, np.array([1, 0]), PartialConfig("pseudo"))
    assert labels.class_id.tolist() == [0, 1] and labels.known.tolist() == [True, True]
    assert labels.xyxy[1] == pytest.approx([14.4, 6.4, 41.6, 33.6], abs=0.1)
    assert labels.weight[1] == pytest.approx(0.88, abs=0.01)
    assert np.argwhere(unsure).tolist() == [[0, 6, 6]]


def test_a_label_that_is_there_is_not_given_twice() -> None:
    logits, raw = np.full((1, 8, 8), -6, np.float32), np.full((4, 8, 8), 0.55, np.float32)
    logits[0, 1, 1] = 2.0  # about (4, 4, 20, 20): most of the label
    place = np.array([1])
    same = replace(truth((True, False), (1,)), xyxy=np.array([[4, 4, 20, 20]], np.float32))
    assert len(add_labels(same, logits, raw, place, PartialConfig("pseudo"))[0].xyxy) == 1
    other = replace(same, class_id=np.array([0]))
    assert len(add_labels(other, logits, raw, place, PartialConfig("pseudo"))[0].xyxy) == 2


@pytest.mark.parametrize(
    ("bias", "direction", "why"),
    [(3.0, -1, "a label"), (-1.0, 0, "unsure everywhere"), (-6.0, 1, "sure that there is nothing")],
)
def test_pseudo_labels_pull_by_what_the_teacher_says(bias: float, direction: int, why: str) -> None:
    teacher = Teacher(sure(detector(seed=2), (bias, bias)), np.array([1]), np.array([1]))
    objective = PseudoObjective(LossConfig(), [teacher], PartialConfig("pseudo"))
    network, batch = detector(), Batch(images(1), [truth((True, False), (0,))])
    assert np.sign(gradients(objective, network, batch)[1]) == direction, why
    assert objective.loss(network, batch)[1]["pseudo"] in (range(10, 65) if direction < 0 else [0])


def test_heads_read_their_own_channels_and_answer_for_their_own_images() -> None:
    heads = Heads(np.array([[True, True, False], [False, True, True]]), 6)
    assert heads.joined().astype(int).tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert heads.alone(0).tolist() == [[1, 1, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert np.allclose((heads.alone(0) + heads.alone(1))[1] / 2, heads.joined()[1])  # the mean of both logits
    assert [heads.head_of(np.array(k)) for k in ([False, True, True], [True, True, True])] == [1, -1]


def test_heads_learn_from_their_own_images_and_stay_one_ordinary_network(tmp_path: Path) -> None:
    data = read_dataset(tiny_dataset(tmp_path / "d", groups=("A", "C", "B"), known={"A": ["hole"], "C": ["bar"]}))
    network = detector()
    partial.write_heads(tmp_path / "start.pdckpt", network, data)
    heads = partial.heads_of(data, network)
    assert np.array_equal(network.cls.weight.numpy()[:, :, 0, 0] != 0, heads.joined())
    objective = HeadsObjective(LossConfig(), heads)
    labels = [truth((False, True), (1,)), truth((True, False), (0,)), truth((False, True), (1,))]
    loss, _ = objective.loss(network, Batch(images(3), labels))
    assert float(loss) == pytest.approx(float(LabelLoss().loss(network, Batch(images(3), labels))[0]), rel=1e-5)
    optimizer = paddle.optimizer.AdamW(1e-2, parameters=network.parameters(), weight_decay=0.1)
    loss.backward()
    gradient = network.cls.weight.grad.numpy()[:, :, 0, 0] != 0
    assert gradient.any(axis=1).all() and not (gradient & ~heads.joined()).any()
    optimizer.step()
    assert np.array_equal(network.cls.weight.numpy()[:, :, 0, 0] != 0, heads.joined())


# The step

QUICK = "--epochs 1 --processes 1 --crop 64 --batch 2 --evaluate-every 0"


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """Two datasets and a narrow network: arguments of the step."""
    roots = [str(part.root) for part in two(tmp_path, classes=("crack", "dent"))]
    (tmp_path / "network.json").write_text(json.dumps(NARROW))
    return ["--data", *roots, "--network", str(tmp_path / "network.json"), "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("method", ["mask", "pseudo", "soft", "heads"])
def test_whole_step(folders: list[str], tmp_path: Path, method: str) -> None:
    arguments = [*folders, *QUICK.split(), "--method", method]
    partial.main(arguments)
    out = tmp_path / "out"
    record = json.loads((out / "partial.json").read_text())
    assert record["results"]["labels"]["crack"] == {"images": 4, "labelled": 2, "boxes": 2}
    networks = record["results"]["networks"]
    assert list(networks) == [*(["teacher 0", "teacher 1"] if method in partial.TAUGHT else []), method]
    assert set(networks[method]["validation"]["ap33"]) == {"hole", "bar", "crack", "dent"}
    if method in partial.TAUGHT:
        assert list(networks["teacher 1"]["validation"]["ap33"]) == ["crack", "dent"]
    assert (out / "partial.png").stat().st_size > 5000
    saved = read_checkpoint(out / "final.pdckpt")
    assert saved.classes == ("hole", "bar", "crack", "dent")
    if method == "heads":
        zero = network_of(saved, out).cls.weight.numpy()[:, :, 0, 0] == 0
        assert zero.tolist() == [[k // 2 != channel // 8 for channel in range(16)] for k in range(4)]
    written = (out / "last.pdckpt").stat().st_mtime_ns
    partial.main(arguments)  # all is done: nothing is trained again
    assert (out / "last.pdckpt").stat().st_mtime_ns == written


def teacher_for(tmp_path: Path, *classes: str) -> str:
    data = read_dataset(tiny_dataset(tmp_path / "t", classes=classes))
    network = detector(len(classes))
    write_checkpoint(tmp_path / "t.pdckpt", network, copy_state(network), data)
    return str(tmp_path / "t.pdckpt")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("hole", "bar"), "none of them knows crack, dent"),
        (("rust",), r"t\.pdckpt: knows rust on 1 channels, and the data has hole, bar, crack, dent"),
    ],
)
def test_teachers_that_cannot_help_are_refused(
    folders: list[str], tmp_path: Path, classes: tuple[str, ...], words: str
) -> None:
    teacher = teacher_for(tmp_path, *classes)
    with pytest.raises(ToolError, match=words):
        partial.main([*folders, *QUICK.split(), "--method", "soft", "--teachers", teacher])


def test_data_without_a_gap_or_with_a_class_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    whole = tiny_dataset(tmp_path / "whole")
    with pytest.raises(DataError, match="`train` is enough"):
        partial.main(["--data", str(whole), "--out", str(tmp_path / "out")])
    nobody = tiny_dataset(tmp_path / "nobody", known={"A": ["hole"]})
    with pytest.raises(DataError, match="nobody looked for bar"):
        partial.main(["--data", str(nobody), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--low", "0.6"], "--low 0.6 and --high 0.5"), (["--weight", "-1"], "--weight -1.0: expected 0 or more")],
)
def test_bad_arguments_are_refused(folders: list[str], more: list[str], words: str) -> None:
    with pytest.raises(ToolError, match=words):
        partial.main([*folders, *more])
