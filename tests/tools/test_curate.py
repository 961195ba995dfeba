"""Each kind of finding is made, drawn and set aside, and nothing is found where nothing is wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools import curate, findings, look_alikes
from tools.contact_sheet import COLUMNS, ROWS, TILE_PX, Tile, cut_out, cut_window, page, picture, whole, write_sheets
from tools.curate import main, read_list
from tools.dataset import read_dataset, read_image, sha256_file
from tools.errors import DataError, ToolError

SIZE = (320, 256)


def textured(seed: int, size=SIZE) -> np.ndarray:
    """A picture with large and small structure, as a part has: (H, W) uint8."""
    rng = np.random.default_rng(seed)
    picture = np.full((size[1], size[0]), 128, np.float32)
    for cells in (4, 8, 20):
        noise = rng.normal(0, 25, (cells, cells)).astype(np.float32)
        picture += cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture
def data(tmp_path):
    """Twelve images of two groups that differ from each other, as a good dataset's do."""
    root = tiny_dataset(tmp_path / "data", size=SIZE, images=6)
    for k, sample in enumerate(read_dataset(root).samples):
        replace(root, sample.name, textured(k))
    return root


@pytest.fixture(autouse=True)
def no_plots(request, monkeypatch):
    """Drawing takes most of the time; one test looks at the plots."""
    if "plots" not in request.node.name:
        monkeypatch.setattr(curate, "draw_plots", lambda *_: None)


def edit(root: Path, change) -> None:
    index = json.loads((root / "dataset.json").read_text())
    change(index)
    (root / "dataset.json").write_text(json.dumps(index))


def replace(root: Path, name: str, image: np.ndarray) -> None:
    """Put another image in the place of one, hash and size with it."""
    cv2.imwrite(str(root / name), image)
    height, width = image.shape[:2]

    def change(index):
        record = next(r for r in index["images"] if r["file_name"] == name)
        record.update(width=width, height=height, sha256=sha256_file(root / name))

    edit(root, change)


def no_boxes(root: Path, *names: str) -> None:
    def change(index):
        ids = {r["id"] for r in index["images"] if r["file_name"] in names}
        index["annotations"] = [a for a in index["annotations"] if a["image_id"] not in ids]

    edit(root, change)


def boxes_of(root: Path, name: str, *boxes) -> None:
    """Give an image these boxes of class 1."""
    no_boxes(root, name)

    def change(index):
        image = next(r for r in index["images"] if r["file_name"] == name)
        for k, box in enumerate(boxes):
            index["annotations"].append({"id": 900 + k, "image_id": image["id"], "category_id": 1, "bbox": list(box)})

    edit(root, change)


def run(root: Path, *more: str) -> tuple[Path, dict[str, set[str]]]:
    """Output folder, and kind -> names found."""
    out = root.parent / "out"
    sheets = [] if "--sheets" in more else ["--no-sheets"]
    main(["--data", str(root), "--out", str(out), *sheets, *(word for word in more if word != "--sheets")])
    found: dict[str, set[str]] = {}
    for finding in json.loads((out / "curate.json").read_text())["results"]["findings"]:
        found.setdefault(finding["kind"], set()).add(finding["name"])
    return out, found


def test_a_good_dataset_has_no_findings(data):
    out, found = run(data)
    assert found == {}
    assert "no image and no box looks wrong" in (out / "report.txt").read_text()
    assert read_list(out / "set_aside.txt") == []


def test_plots(data):
    out, _ = run(data)
    for name in ("classes.png", "box_sizes.png"):
        assert read_image(out / name, 3).std() > 10


def test_broken_files(data):
    whole_file = (data / "images/A/0.png").read_bytes()
    (data / "images/A/0.png").write_bytes(whole_file[: len(whole_file) // 2])
    (data / "images/A/1.png").write_bytes(b"no image")
    jpeg = cv2.imencode(".jpg", textured(50))[1].tobytes()
    (data / "images/A/2.png").write_bytes(jpeg[: len(jpeg) * 2 // 3])
    _, found = run(data)
    assert found["broken"] == {"images/A/0.png", "images/A/1.png", "images/A/2.png"}
    assert found["changed"] == found["broken"]


def test_a_changed_file(data):
    cv2.imwrite(str(data / "images/A/0.png"), textured(77))
    assert run(data)[1] == {"changed": {"images/A/0.png"}}


def test_blank_and_tiny_images(data):
    replace(data, "images/A/0.png", np.full((SIZE[1], SIZE[0]), 200, np.uint8))
    replace(data, "images/A/1.png", textured(60, (120, 96)))
    no_boxes(data, "images/A/1.png")
    assert run(data)[1] == {"blank": {"images/A/0.png"}, "tiny_image": {"images/A/1.png"}}


def test_unlabelled_and_unlisted_images(data):
    edit(data, lambda index: index["images"][0].update(known=[]))
    no_boxes(data, "images/A/0.png")
    cv2.imwrite(str(data / "images/A/stray.png"), textured(61))
    assert run(data)[1] == {"unlabelled": {"images/A/0.png"}, "unlisted": {"images/A/stray.png"}}


def test_doubtful_boxes(data):
    boxes_of(data, "images/A/0.png", (10, 10, 30, 3))
    boxes_of(data, "images/A/1.png", (10, 10, 30, 30), (11, 10, 30, 30))
    boxes_of(data, "images/A/2.png", (10, 10, 30, 30), (15, 15, 8, 8))
    assert run(data)[1] == {
        "tiny_box": {"images/A/0.png"},
        "double_box": {"images/A/1.png"},
        "nested_box": {"images/A/2.png"},
    }


SAME = {
    "saved again": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 0),
    "smaller": lambda image: cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA),
    "noisy": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).astype(np.uint8),
    "darker": lambda image: (image * 0.9).astype(np.uint8),
}
OTHER = {
    "with a spot": lambda image: cv2.circle(image.copy(), (160, 128), 12, 0, cv2.FILLED),
    "turned": lambda image: np.ascontiguousarray(image[::-1, ::-1]),
    "moved": lambda image: np.roll(image, 16, axis=1),
}


@pytest.mark.parametrize("how", SAME)
def test_near_duplicates(data, how):
    replace(data, "images/A/3.png", SAME[how](textured(0)))
    no_boxes(data, "images/A/3.png", "images/A/0.png")
    out, found = run(data)
    assert found == {"duplicate": {"images/A/3.png"}}
    assert "like images/A/0.png of group A" in (out / "set_aside.txt").read_text()


@pytest.mark.parametrize("how", OTHER)
def test_what_is_no_duplicate(data, how):
    replace(data, "images/A/3.png", OTHER[how](textured(0)))
    no_boxes(data, "images/A/3.png", "images/A/0.png")
    assert run(data)[1] == {}


def test_near_duplicates_with_other_labels_stay(data):
    replace(data, "images/A/3.png", SAME["noisy"](textured(0)))
    boxes_of(data, "images/A/3.png", (10, 10, 30, 30))
    boxes_of(data, "images/A/0.png", (90, 60, 30, 30))
    out, found = run(data)
    assert found == {"labels_differ": {"images/A/3.png"}}
    assert read_list(out / "set_aside.txt") == []
    boxes_of(data, "images/A/0.png", (12, 9, 30, 30))
    assert run(data)[1] == {"duplicate": {"images/A/3.png"}}


def test_one_of_a_cluster_stays(data):
    for k in (2, 3, 4):
        replace(data, f"images/A/{k}.png", (textured(0) * (1 - k / 50)).astype(np.uint8))
    no_boxes(data, *(f"images/A/{k}.png" for k in (0, 2, 3, 4)))
    assert run(data)[1] == {"duplicate": {f"images/A/{k}.png" for k in (2, 3, 4)}}


def test_a_leak_is_loud(data, capsys):
    replace(data, "images/A/3.png", SAME["saved again"](textured(7)))  # 6 to 11 are group B, the validation split
    out, found = run(data)
    assert found == {"leak": {"images/A/3.png"}}
    assert "!!! LEAK: 1 training image" in capsys.readouterr().out
    assert read_list(out / "set_aside.txt") == ["images/A/3.png"]


def test_apply_leaves_out_what_is_set_aside(data, tmp_path, capsys):
    edit(data, lambda index: index["images"][0].update(template="images/A/5.png"))
    replace(data, "images/A/3.png", SAME["saved again"](textured(7)))
    new = tmp_path / "new"
    run(data, "--apply", str(new))
    before, after = read_dataset(data), read_dataset(new)
    assert {s.name for s in before.samples} - {s.name for s in after.samples} == {"images/A/3.png"}
    assert not (new / "images/A/3.png").exists() and (data / "images/A/3.png").exists()
    assert after.samples[0].template == new / "images/A/5.png"
    for sample in after.samples:
        old = next(s for s in before.samples if s.name == sample.name)
        np.testing.assert_array_equal(sample.xyxy, old.xyxy)
        assert sample.image.read_bytes() == old.image.read_bytes()
    assert json.loads((new / "curate.json").read_text())["results"]["left_out"] == ["images/A/3.png"]
    assert "1 images left out, 5 for train and 6 for validation remain" in capsys.readouterr().out


def test_an_edited_list_is_applied(data, tmp_path):
    replace(data, "images/A/3.png", SAME["saved again"](textured(7)))
    edited = tmp_path / "mine.txt"
    edited.write_text("# kept A/3\nimages/A/1.png\tmy own reason\n")
    run(data, "--apply", str(tmp_path / "new"), "--list", str(edited))
    names = {s.name for s in read_dataset(tmp_path / "new").samples}
    assert "images/A/3.png" in names and "images/A/1.png" not in names


def test_kinds_that_are_kept(data):
    replace(data, "images/A/3.png", SAME["saved again"](textured(7)))
    out, found = run(data, "--keep", "leak")
    assert found == {"leak": {"images/A/3.png"}} and read_list(out / "set_aside.txt") == []


def test_what_apply_refuses(data, tmp_path):
    with pytest.raises(ToolError, match="the dataset itself"):
        run(data, "--apply", str(data))
    other = tmp_path / "other"
    shutil.copytree(data, other)
    with pytest.raises(ToolError, match="already holds"):
        run(data, "--apply", str(other))
    (tmp_path / "list.txt").write_text("images/none.png\n")
    with pytest.raises(DataError, match=r"does not list images/none.png"):
        run(data, "--apply", str(tmp_path / "new"), "--list", str(tmp_path / "list.txt"))
    with pytest.raises(ToolError, match="goes with --apply"):
        run(data, "--list", str(tmp_path / "list.txt"))
    with pytest.raises(ToolError, match="cannot be read"):
        run(data, "--apply", str(tmp_path / "newer"), "--list", str(tmp_path / "no.txt"))


def test_balance_is_judged(data, capsys):
    def change(index):
        index["categories"].append({"id": 3, "name": "dent"})
        index["annotations"][0]["category_id"] = 3

    edit(data, change)
    out, _ = run(data)
    notes = json.loads((out / "curate.json").read_text())["results"]["balance"]["notes"]
    assert any("dent: 1 boxes in train are few" in note for note in notes)
    assert any("dent: 0 boxes in validation" in note for note in notes)
    assert any("dent: all its training boxes are in one group" in note for note in notes)
    assert "note: dent" in capsys.readouterr().out


def test_again_examines_only_what_is_new(data, monkeypatch):
    run(data)
    seen = []
    broken = findings.broken
    monkeypatch.setattr(findings, "broken", lambda path: seen.append(path.name) or broken(path))
    replace(data, "images/A/0.png", textured(70))
    shutil.rmtree(data.parent / "out/thumbs")
    assert run(data)[1] == {}
    assert seen == ["0.png"]


def test_sheets_by_class_group_and_finding(data):
    replace(data, "images/A/3.png", SAME["saved again"](textured(7)))
    (data / "images/A/1.png").write_bytes(b"no image")
    out, _ = run(data, "--sheets")
    names = Counter(path.stem for path in (out / "sheets").glob("*.png"))
    assert set(names) == {
        "class_hole_1",
        "class_bar_1",
        "group_train_A_1",
        "group_validation_B_1",
        "finding_broken_1",
        "finding_changed_1",
        "finding_leak_1",
    }
    leak = read_image(out / "sheets/finding_leak_1.png", 3)
    assert leak.shape[1] > 2 * TILE_PX  # the image and the one it looks like


# --- contact sheets


def tile(width=100, height=50, value=120) -> Tile:
    return Tile("a.png", lambda: np.full((height, width, 3), value, np.uint8))


def test_pages_of_tiles(tmp_path):
    many = [tile()] * (COLUMNS * ROWS + 2)
    first, second = write_sheets(many, tmp_path, "group_A")
    assert (first.name, second.name) == ("group_A_1.png", "group_A_2.png")
    assert read_image(first, 3).shape[1] > read_image(second, 3).shape[1] > 2 * TILE_PX
    (tmp_path / "group_A_note.png").write_bytes(b"")
    write_sheets(many[:1], tmp_path, "group_A")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["group_A_1.png", "group_A_note.png"]


@pytest.mark.parametrize("size", [(1000, 40), (40, 1000), (3, 3)])
def test_any_shape_fits_a_tile(size):
    shown = picture(tile(*size))
    assert shown.shape[1] == TILE_PX and shown.shape[0] <= TILE_PX + 20
    assert page([tile(*size), tile()]).shape[2] == 3


def test_a_box_is_drawn_where_it_is_and_never_too_small():
    plain = Tile("a", lambda: np.full((480, 480, 3), 120, np.uint8))
    boxed = Tile("a", plain.read, np.array([[200, 200, 204, 204]], np.float32), ["hole"], [0])
    changed = np.argwhere(np.any(picture(plain) != picture(boxed), axis=2))
    centre = 202 * TILE_PX / 480
    square = changed[np.abs(changed - centre).max(axis=1) <= 6]
    assert np.ptp(square[:, 0]) >= 8 and np.ptp(square[:, 1]) >= 8


def test_a_file_that_cannot_be_read_is_a_tile_too(tmp_path):
    shown = picture(Tile("a.png", lambda: read_image(tmp_path / "a.png", 3)))
    assert shown.shape[1] == TILE_PX and shown.max() > 100


def test_cut_outs_show_the_box_in_the_middle(tmp_path):
    dataset = read_dataset(tiny_dataset(tmp_path))
    sample = dataset.samples[1]
    image = read_image(sample.image, 3)
    for k, box in enumerate(sample.xyxy.astype(int)):
        made = cut_out(sample, k, dataset.classes)
        x1, y1, _, _ = made.xyxy[k].astype(int)
        shown = made.read()
        width, height = box[2] - box[0], box[3] - box[1]
        np.testing.assert_array_equal(
            shown[y1 : y1 + height, x1 : x1 + width], image[box[1] : box[3], box[0] : box[2]]
        )
        side = cut_window(sample.xyxy[k])[2] - cut_window(sample.xyxy[k])[0]
        assert shown.shape == (side, side, 3)
        assert abs(x1 + width / 2 - side / 2) <= 1
    assert len(whole(sample, dataset.classes).names) == len(sample.xyxy)


# --- near duplicates


def test_pairs_have_a_place():
    images = [textured(k) for k in range(5)]
    images[4] = SAME["darker"](images[1])
    hashes = np.array([look_alikes.perceptual_hash(image) for image in images])
    thumbs = np.array([look_alikes.thumbnail(image) for image in images])
    assert [(i, j) for i, j, _ in look_alikes.same_pairs(hashes, thumbs)] == [(1, 4)]
    assert look_alikes.same_pairs(hashes[:1], thumbs[:1]) == []
    assert look_alikes.same_pairs(hashes[:0], thumbs[:0]) == []


def test_a_block_that_differs_is_not_averaged_away():
    one = np.zeros((128, 128), np.float32)
    other = one.copy()
    other[0:16, 0:16] = 1
    assert look_alikes.block_difference(one, np.stack([one, other])).tolist() == [0, 1]
