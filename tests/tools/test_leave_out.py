"""A class that is left out is nowhere in the pictures, and everything else is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools.dataset import INDEX, read_dataset, read_image
from tools.errors import ToolError
from tools.leave_out import main


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "data", templates=True)


def left_out(data: Path, name: str, out: Path) -> None:
    main(["--data", str(data), "--class-name", name, "--out", str(out)])


def test_the_class_is_gone_from_labels_and_pixels(data: Path, tmp_path: Path) -> None:
    left_out(data, "hole", tmp_path / "out")
    before, after = read_dataset(data), read_dataset(tmp_path / "out")
    assert after.classes == ("bar",)
    assert len(after.samples) == len(before.samples)
    for old, new in zip(before.samples, after.samples, strict=True):
        image, template = read_image(new.image), read_image(old.template)  # type: ignore[arg-type]
        original = read_image(old.image)
        changed = image != original
        gone = np.zeros_like(changed)
        for x1, y1, x2, y2 in old.xyxy[old.class_id == 0].astype(int):
            assert (image[y1:y2, x1:x2] == template[y1:y2, x1:x2]).all(), "the template is where the defect was"
            gone[max(0, y1 - 8) : y2 + 8, max(0, x1 - 8) : x2 + 8] = True
        for x1, y1, x2, y2 in new.xyxy.astype(int):
            assert (image[y1:y2, x1:x2] == original[y1:y2, x1:x2]).all(), "a defect that stays is whole"
        if len(new.xyxy) == (old.class_id == 1).sum():
            assert not (changed & ~gone).any(), "nothing else is touched"
        assert (new.split, new.group) == (old.split, old.group)
    record = json.loads((tmp_path / "out" / "leave_out.json").read_text())["results"]
    assert record["defects"] == sum(len(s.xyxy) for s in after.samples) < record["defects_before"]


def test_an_image_without_template_that_shows_the_class_is_left_out_and_named(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data", known={"A": ["bar"], "B": ["hole", "bar"]})
    shows = [s.name for s in read_dataset(data).samples if (s.class_id == 0).any()]
    left_out(data, "hole", tmp_path / "out")
    after = read_dataset(tmp_path / "out")
    assert shows and not {s.name for s in after.samples} & set(shows)
    assert json.loads((tmp_path / "out" / "leave_out.json").read_text())["results"]["images_left_out"] == shows


def test_a_class_on_every_image_is_not_left_out_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="nothing would be left"):
        left_out(tiny_dataset(tmp_path / "data"), "hole", tmp_path / "out")


@pytest.mark.parametrize("name", ["dent", ""])
def test_an_unknown_class_is_refused(data: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ToolError, match="the data has hole, bar"):
        left_out(data, name, tmp_path / "out")


def test_a_folder_in_use_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    left_out(data, "hole", tmp_path / "out")
    before = (tmp_path / "out" / INDEX).read_bytes()
    with pytest.raises(ToolError, match="exists; choose another"):
        left_out(data, "bar", tmp_path / "out")
    assert (tmp_path / "out" / INDEX).read_bytes() == before
    assert cv2.imread(str(next((tmp_path / "out").rglob("*.png")))) is not None
