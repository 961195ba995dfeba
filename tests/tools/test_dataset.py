from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools.dataset import data_hash, read_dataset, read_image, truth_of
from tools.errors import DataError


def edit(root: Path, change) -> Path:
    """Change the index of a dataset folder."""
    index = root / "dataset.json"
    data = json.loads(index.read_text())
    change(data)
    index.write_text(json.dumps(data))
    return root


def test_tiny_dataset_is_what_was_asked_for(tmp_path):
    root = tiny_dataset(
        tmp_path, size=(128, 64), channels=3, classes=("a", "b", "c", "d"), images=4, templates=True, negatives=1
    )
    dataset = read_dataset(root)
    assert (dataset.spec.width, dataset.spec.height, dataset.spec.channels) == (128, 64, 3)
    assert dataset.classes == ("a", "b", "c", "d")
    for split in ("train", "validation"):
        part = dataset.part(split)
        assert len(part) == 5
        assert set(np.concatenate([s.class_id for s in part])) == {0, 1, 2, 3}
        assert [len(s.xyxy) for s in part] == [1, 2, 1, 2, 0]
    for sample in dataset.samples:
        image = read_image(sample.image, 3)
        assert image.shape == (64, 128, 3)
        difference = np.any(image != read_image(sample.template, 3), axis=2)
        inside = np.zeros_like(difference)
        for x1, y1, x2, y2 in sample.xyxy.astype(int):
            assert difference[y1:y2, x1:x2].mean() > 0.6
            inside[y1:y2, x1:x2] = True
        assert not (difference & ~inside).any()


def test_tiny_dataset_repeats_itself(tmp_path):
    first, second, other = (
        data_hash(read_dataset(tiny_dataset(tmp_path / name, seed=seed)).samples)
        for name, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    assert first == second != other


def test_known_classes(tmp_path):
    root = tiny_dataset(tmp_path, known={"A": ["bar"]})
    dataset = read_dataset(root)
    assert [s.known.tolist() for s in dataset.part("train")] == [[False, True]] * 4
    assert set(np.concatenate([s.class_id for s in dataset.part("train")])) == {1}
    assert [s.known.tolist() for s in dataset.part("validation")] == [[True, True]] * 4


def test_truth_is_in_order(tmp_path):
    dataset = read_dataset(tiny_dataset(tmp_path))
    truth = truth_of(dataset.samples)
    assert [len(boxes) for boxes, _ in truth] == [1, 2, 1, 2] * 2
    assert all(boxes.shape == (len(kinds), 4) for boxes, kinds in truth)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["annotations"][0].update(category_id=9), ["annotation 1", "category 9"]),
        (lambda d: d["annotations"][0].update(bbox=[90, 10, 20, 20]), ["annotation 1", "reaches out", "96x96"]),
        (lambda d: d["annotations"][0].update(bbox=[9, 10, 0, 20]), ["annotation 1", "no area"]),
        (lambda d: d["annotations"][0].update(image_id=99), ["image id 99"]),
        (lambda d: d["images"][0].update(split="test"), ["'test'", "train or validation"]),
        (lambda d: d["images"][0].update(split="validation"), ["'A'", "neighbours"]),
        (lambda d: d["images"][0].update(sha256=d["images"][-1]["sha256"]), ["A/0.png", "B/3.png", "the same image"]),
        (lambda d: d["images"][0].update(file_name="no.png"), ["no.png", "missing"]),
        (lambda d: d.pop("info"), ["cannot be read", "info"]),
        (lambda d: d["images"].clear() or d["annotations"].clear(), ["lists no image"]),
    ],
)
def test_bad_folders_are_refused(tmp_path, change, words):
    root = edit(tiny_dataset(tmp_path), change)
    with pytest.raises(DataError) as caught:
        read_dataset(root)
    for word in [*words, "dataset.json"]:
        assert word in str(caught.value)


def test_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(DataError, match="tools import"):
        read_dataset(tmp_path / "none")


def test_empty_split(tmp_path):
    with pytest.raises(DataError, match="--validation"):
        read_dataset(tiny_dataset(tmp_path, validation=())).part("validation")


def test_read_image(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((4, 6, 3), 7, np.uint8))
    assert read_image(path).shape == (4, 6)
    assert read_image(path, 3).shape == (4, 6, 3)
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        read_image(path)
    with pytest.raises(DataError, match="missing"):
        read_image(tmp_path / "b.png")
