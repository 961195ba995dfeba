"""Choosing calibration images, and refusing others in their place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools.calibration import describe, farthest, farthest_points, main, principal, read_list
from tools.dataset import read_dataset
from tools.errors import DataError


def test_farthest_points_spread() -> None:
    features = np.array([[0.0, 0], [0.1, 0], [5, 5], [10, 0], [0, 10], [10, 10]])
    assert set(farthest_points(features, 5)) >= {2, 3, 4, 5}


def test_distances_are_to_what_was_chosen_before() -> None:
    chosen = farthest(np.array([[0.0], [4.0], [5.0], [20.0]]), 4)
    assert chosen == [(2, 0.0), (3, 15.0), (0, 5.0), (1, 1.0)]


@pytest.mark.parametrize("rows", [np.arange(3.0)[:, None], np.zeros((3, 2))])
def test_farthest_points_of_too_few_takes_each_once(rows: np.ndarray) -> None:
    assert sorted(farthest_points(rows, 9)) == [0, 1, 2]


def test_describe_is_in_range_and_tells_images_apart() -> None:
    plain, striped = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    striped[::8] = 255
    assert describe(plain).max() == 0 and 0.2 < describe(striped).max() <= 1


def test_describe_sees_colour_and_takes_any_size() -> None:
    blue, red = np.zeros((40, 90, 3), np.uint8), np.zeros((40, 90, 3), np.uint8)
    blue[..., 0], red[..., 2] = 200, 200
    assert describe(blue).shape == (4 * 64,) == describe(np.zeros((300, 20, 3), np.uint8)).shape
    assert np.linalg.norm(describe(blue) - describe(red)) > 5


def test_principal_keeps_two_dimensions_of_one() -> None:
    flat = principal(np.array([[0.0], [2.0], [4.0]]))
    assert flat.shape == (3, 2) and np.abs(flat[:, 0]).tolist() == pytest.approx([2, 0, 2]) and not flat[:, 1].any()


@pytest.mark.parametrize(("size", "channels"), [((96, 96), 1), ((128, 64), 3)])
def test_list_holds_training_images_with_hash_and_reason(
    tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    root = tiny_dataset(tmp_path / "data", size=size, channels=channels)
    path, out = tmp_path / "images.json", tmp_path / "out"
    main(["--data", str(root), "--count", "3", "--list", str(path), "--out", str(out)])
    data = read_dataset(root)
    assert [sample.split for sample in read_list(path, data)] == ["train"] * 3
    content = json.loads(path.read_text())
    assert content["product"] == "tiny" and "groups A" in content["provenance"]
    distances = [entry["distance"] for entry in content["images"]]
    assert distances[0] == 0 and distances[1] >= distances[2] > 0
    assert (out / "calibration.jpg").stat().st_size > 1000 and (out / "calibration.png").stat().st_size > 1000
    record = json.loads((out / "calibration.json").read_text())
    assert record["results"]["images"] == 3 and record["results"]["of"] == 4
    before = path.read_bytes()
    main(["--data", str(root), "--count", "3", "--list", str(path), "--out", str(out)])
    assert path.read_bytes() == before


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Path, Path]:
    """A dataset and a list of two of its images."""
    root, path = tiny_dataset(tmp_path / "data"), tmp_path / "images.json"
    main(["--data", str(root), "--count", "2", "--list", str(path), "--out", str(tmp_path / "out")])
    return root, path


def test_changed_image_is_refused(listed: tuple[Path, Path]) -> None:
    root, path = listed
    (root / json.loads(path.read_text())["images"][0]["file"]).write_bytes((root / "images/B/0.png").read_bytes())
    with pytest.raises(DataError, match="SHA-256 differs"):
        read_list(path, read_dataset(root))


@pytest.mark.parametrize(
    ("file", "message"), [("images/B/0.png", "only training images may calibrate"), ("no.png", "not an image of")]
)
def test_images_of_no_use_are_refused(listed: tuple[Path, Path], file: str, message: str) -> None:
    root, path = listed
    path.write_text(json.dumps({"images": [{"file": file, "sha256": "0"}]}))
    with pytest.raises(DataError, match=message):
        read_list(path, read_dataset(root))


@pytest.mark.parametrize("text", ["", "[]", '{"images": [{}]}', '{"images": 3}'])
def test_unreadable_list_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "images.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"images\.json: cannot be read"):
        read_list(path, read_dataset(tiny_dataset(tmp_path / "data")))


def test_empty_list_and_no_count_are_refused(tmp_path: Path) -> None:
    root, path = tiny_dataset(tmp_path / "data"), tmp_path / "images.json"
    path.write_text('{"images": []}')
    with pytest.raises(DataError, match="names no image"):
        read_list(path, read_dataset(root))
    with pytest.raises(DataError, match="--count 0"):
        main(["--data", str(root), "--count", "0", "--out", str(tmp_path / "out")])
