"""Choosing calibration images, and refusing others in their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tools.calibration import describe, farthest_points, main, read_list
from tools.errors import DataError


def test_farthest_points_spread() -> None:
    features = np.array([[0.0, 0], [0.1, 0], [5, 5], [10, 0], [0, 10], [10, 10]])
    assert set(farthest_points(features, 5)) >= {2, 3, 4, 5}


def test_farthest_points_of_too_few_takes_all() -> None:
    assert sorted(farthest_points(np.arange(3.0)[:, None], 9)) == [0, 1, 2]


def test_describe_is_in_range_and_tells_images_apart() -> None:
    plain, striped = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    striped[::8] = 255
    assert describe(plain).max() == 0 and 0.2 < describe(striped).max() <= 1


def test_list_round_trip_holds_training_images_only(pcb_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.json"
    arguments = ["--data", str(pcb_root), "--validation-groups", "groupB", "--count", "3", "--out", str(out)]
    main(arguments)
    assert len(read_list(out, pcb_root)) == 3
    assert all(entry["file"].startswith("groupA/") for entry in json.loads(out.read_text())["images"])


def test_changed_image_is_refused(pcb_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "images.json"
    main(["--data", str(pcb_root), "--validation-groups", "groupB", "--count", "2", "--out", str(out)])
    file = json.loads(out.read_text())["images"][0]["file"]
    (pcb_root / file).write_bytes((pcb_root / "groupB/a/0_test.jpg").read_bytes())
    with pytest.raises(DataError, match="SHA-256 differs"):
        read_list(out, pcb_root)


def test_unreadable_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\.json: cannot be read"):
        read_list(tmp_path / "images.json", tmp_path)
