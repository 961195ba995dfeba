"""From annotated images to a dataset folder, and everything that is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools import import_data
from tools.dataset import data_hash, read_dataset, read_image
from tools.errors import DataError, ToolError
from tools.import_data import main
from tools.split import choose_groups

LOTS = {"lot1": 3, "lot2": 3, "lot3": 2}


def draw(path: Path, seed: int, width: int = 100, height: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8))


@pytest.fixture
def raw(tmp_path):
    """YOLO: three lots of images, each image with a hole, the first two of a lot with a bar too."""
    root = tmp_path / "raw"
    seed = 0
    for lot, count in LOTS.items():
        for k in range(count):
            draw(root / f"images/{lot}_{k}.png", seed)
            lines = ["0 0.5 0.5 0.2 0.25"] + ["1 0.25 0.25 0.1 0.1"] * (k < 2)
            (root / "labels").mkdir(exist_ok=True)
            (root / f"labels/{lot}_{k}.txt").write_text("\n".join(lines) + "\n")
            seed += 1
    (root / "classes.txt").write_text("hole\nbar\n")
    return root


def run(raw: Path, *more: str, **change: str | None) -> Path:
    options = {"format": "yolo", "source": str(raw), "product": "part", "size": "64x64", "group": r"(lot\d)_"}
    if not any(word.startswith("--validation") for word in more):
        options["validation"] = "lot3"
    out = raw.parent / "data"
    options["out"] = str(out)
    options |= change
    flat = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    main([*flat, *more])
    return out


def refusal(raw: Path, *more: str, **change: str | None) -> str:
    with pytest.raises((DataError, ToolError)) as caught:
        run(raw, *more, **change)
    assert not (raw.parent / "data/dataset.json").exists()
    return str(caught.value)


def test_a_dataset_folder_comes_out(raw, capsys):
    out = run(raw, "--channels", "3", "--licence", "mine", "--source-note", "line 4")
    dataset = read_dataset(out)
    assert (dataset.product, dataset.classes) == ("part", ("hole", "bar"))
    assert (dataset.licence, dataset.source) == ("mine", "line 4")
    assert (dataset.spec.width, dataset.spec.height, dataset.spec.channels) == (64, 64, 3)
    assert [s.group for s in dataset.part("validation")] == ["lot3", "lot3"]
    assert len(dataset.part("train")) == 6
    first = dataset.samples[0]
    assert first.name == "images/images/lot1_0.png"
    assert first.image.read_bytes() == (raw / "images/lot1_0.png").read_bytes()
    np.testing.assert_allclose(first.xyxy, [[40, 30, 60, 50], [20, 16, 30, 24]])
    assert first.class_id.tolist() == [0, 1]
    assert all(s.known.all() for s in dataset.samples)
    record = json.loads((out / "import.json").read_text())
    assert record["results"]["splits"]["train"]["boxes"] == {"hole": 6, "bar": 4}
    assert record["settings"]["data_sha256"] == data_hash(dataset.samples)
    printed = capsys.readouterr().out
    assert "validation" in printed and "hole" in printed


def test_again_reads_no_image_twice(raw, monkeypatch):
    before = data_hash(read_dataset(run(raw)).samples)
    draw(raw / "images/lot1_0.png", 99)
    read = []
    monkeypatch.setattr(import_data, "read_image", lambda path: read.append(path.name) or read_image(path))
    assert data_hash(read_dataset(run(raw)).samples) != before
    assert read == ["lot1_0.png"]


def test_links(raw):
    out = run(raw, "--link")
    assert (out / "images/images/lot1_0.png").samefile(raw / "images/lot1_0.png")


def test_classes_are_ordered_renamed_and_joined(raw):
    out = run(raw, "--classes", "bar", "pit=hole")
    assert read_dataset(out).classes == ("bar", "pit")
    assert read_dataset(out).samples[0].class_id.tolist() == [1, 0]
    assert set(read_dataset(run(raw, "--classes", "any=hole,bar")).samples[0].class_id) == {0}


def test_known_classes(raw):
    (raw / "classes.txt").write_text("hole\nbar\ndent\n")
    out = run(raw, "--known", "bar", "hole")
    assert read_dataset(out).samples[0].known.tolist() == [True, True, False]


def test_deeppcb_brings_its_groups_and_templates(pcb_root):
    (pcb_root / "groupA/a_not/1.txt").write_text("10 10 20 20 1\n10 40 20 50 2\n30 10 40 20 3\n5 5 9 9 4\n2 2 8 8 5\n")
    out = run(pcb_root, "--validation", "groupB", format="deeppcb", group=None)
    dataset = read_dataset(out)
    assert dataset.classes == ("open", "short", "mousebite", "spur", "copper", "pin-hole")
    assert dataset.samples[0].template.read_bytes() == (pcb_root / "groupA/a/0_temp.jpg").read_bytes()
    assert {s.group for s in dataset.part("train")} == {"groupA"}


def test_a_dataset_folder_can_be_imported(tmp_path):
    source = tiny_dataset(tmp_path / "raw", templates=True, channels=3)
    out = run(source, "--validation", "B", format="coco", group=None)
    before, after = read_dataset(source), read_dataset(out)
    assert after.classes == before.classes
    for old, new in zip(before.samples, after.samples, strict=True):
        assert (new.group, new.split) == (old.group, old.split)
        np.testing.assert_array_equal(new.xyxy, old.xyxy)
        assert new.template.read_bytes() == old.template.read_bytes()


@pytest.mark.parametrize(("choice", "train"), [("negative", 7), ("skip", 6)])
def test_unlabelled_images(raw, choice, train):
    draw(raw / "images/lot1_9.png", 77)
    dataset = read_dataset(run(raw, "--unlabelled", choice))
    assert len(dataset.part("train")) == train
    assert sum(len(s.xyxy) == 0 for s in dataset.samples) == train - 6


def test_unlabelled_images_are_refused_by_default(raw):
    draw(raw / "images/lot1_9.png", 77)
    text = refusal(raw)
    assert "lot1_9.png: has no labels" in text and "--unlabelled negative" in text


def test_excluded_images(raw):
    draw(raw / "images/lot1_x.png", 78)
    (raw / "labels/lot1_0.txt").write_text("nothing is said about what is left out\n")
    assert len(read_dataset(run(raw, "--exclude", "lot1_(0|x)")).samples) == 7


# --- refusals


def test_every_problem_is_said_at_once_with_its_place(raw):
    (raw / "labels/lot1_0.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.99 0.5 0.2 0.2\n")
    (raw / "labels/lot1_1.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    (raw / "labels/lot1_2.txt").write_text("0 0.5 0.5 0.2\n")
    (raw / "labels/lot2_0.txt").write_text("0 0.5 0.5 0 0.2\n")
    (raw / "images/lot2_1.png").unlink()
    (raw / "images/lot2_2.png").write_bytes(b"no image")
    text = refusal(raw)
    assert "6 problems" in text
    for words in (
        "lot1_0.txt:2: the box 89 32 109 48 reaches out of the image, which is 100x80",
        "lot1_1.txt:1: class 7 is unknown, expected 0 to 1 (hole, bar)",
        "lot1_2.txt:1: expected",
        "lot2_0.txt:1: the box 50 32 50 48 has no area",
        "lot2_1.txt: its image is missing",
        "lot2_2.png: is not a readable image",
    ):
        assert words in text


def test_a_little_outside_is_clipped(raw):
    (raw / "labels/lot1_0.txt").write_text("0 0.104 0.5 0.216 0.2\n1 0.5 0.5 0.1 0.1\n")  # begins at -0.4 px
    assert read_dataset(run(raw)).samples[0].xyxy[0, 0] == 0


def test_unknown_class(raw):
    text = refusal(raw, "--classes", "hole")
    assert "lot1_0.txt:2 (and 5 more): the class 'bar' is unknown" in text and "NAME=bar" in text


def test_a_class_that_known_leaves_out_but_is_there(raw):
    assert "lot1_0.txt:2: has the class 'bar', which --known leaves out" in refusal(raw, "--known", "hole")


def test_known_names_no_class(raw):
    assert "--known dent: no such class, they are hole, bar" in refusal(raw, "--known", "hole", "bar", "dent")


def test_empty_class(raw):
    (raw / "classes.txt").write_text("hole\nbar\ndent\n")
    assert "the class 'dent' has no box in the training split" in refusal(raw)


def test_class_only_in_validation(raw):
    for path in (raw / "labels").glob("lot[12]*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    assert "'bar' has no box in the training split (2 in validation)" in refusal(raw)


def test_class_only_in_training_is_said(raw, capsys):
    for path in (raw / "labels").glob("lot3*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    run(raw)
    assert "'bar' has no box in the validation split" in capsys.readouterr().out


def test_one_image_only(tmp_path):
    draw(tmp_path / "raw/a.png", 1)
    (tmp_path / "raw/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "raw/classes.txt").write_text("hole\n")
    assert "there is only 1 image" in refusal(tmp_path / "raw", group="(a)", validation="a")


def test_one_group_only(raw):
    assert "all 8 images in the group 'lot'" in refusal(raw, group="(lot)")


def test_validation_group_that_nobody_has(raw):
    assert "lot7: no image is in this group; the groups are lot1, lot2, lot3" in refusal(raw, "--validation", "lot7")


def test_all_groups_in_validation(raw):
    assert "none is left to train on" in refusal(raw, "--validation", "lot1", "lot2", "lot3")


def test_class_options_that_cannot_be(raw):
    assert "'hole' two names, 'a' and 'b'" in refusal(raw, "--classes", "a=hole", "b=hole,bar")
    assert "'=bar' names no class" in refusal(raw, "--classes", "hole", "=bar")


def test_excluded_records_of_one_file(tmp_path):
    source = tiny_dataset(tmp_path / "raw")
    data = json.loads((source / "dataset.json").read_text())
    (source / data["images"][0]["file_name"]).unlink()
    data["annotations"][0]["category_id"] = 77
    (source / "dataset.json").write_text(json.dumps(data))
    text = refusal(source, "--validation", "B", format="coco", group=None)
    assert "images[0]" in text and "annotations[0]" in text
    out = run(source, "--validation", "B", "--exclude", "A/0", format="coco", group=None)
    assert len(read_dataset(out).samples) == 7


def test_excluded_lines_of_a_list(pcb_root):
    (pcb_root / "groupA/a/0_temp.jpg").unlink()
    more = ("--validation", "groupB", "--classes", "pin-hole")
    assert "trainval.txt:1: the template" in refusal(pcb_root, *more, format="deeppcb", group=None)
    assert len(read_dataset(run(pcb_root, *more, "--exclude", "A/a/0", format="deeppcb", group=None)).samples) == 7


def test_a_pattern_that_does_not_match(raw):
    text = refusal(raw, group="(lot[12])_")
    assert "'(lot[12])_' does not match images/lot3_0.png, images/lot3_1.png" in text


def test_no_group(raw):
    text = refusal(raw, group=None)
    assert "give --group REGEX" in text and "images/lot1_0.png" in text and "and 3 more" in text


def test_another_format(raw):
    assert "8 images and no voc label for any of them; is --format right?" in refusal(raw, format="voc")


def test_the_same_image_on_both_sides(raw):
    (raw / "images/lot3_1.png").write_bytes((raw / "images/lot1_2.png").read_bytes())
    text = refusal(raw)
    assert "lot3_1.png (validation) is the same file as" in text and "'lot1' leak" in text


def test_labels_drawn_on_another_size(tmp_path):
    source = tiny_dataset(tmp_path / "raw")
    data = json.loads((source / "dataset.json").read_text())
    data["images"][2]["width"] = 200
    (source / "dataset.json").write_text(json.dumps(data))
    text = refusal(source, "--validation", "B", format="coco", group=None)
    assert "images[2]: was labelled at 200x96" in text and "is 96x96" in text


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        ({"validation": None}, (), "--validation-share"),
        ({}, ("--validation-share", "0.2", "--validation", "lot3"), "either"),
        ({}, ("--validation-share", "1.5"), "between 0 and 1"),
        ({"group": "lot("}, (), "not a regular expression"),
        ({"group": "lot"}, (), "no parentheses"),
        ({"exclude": "["}, (), "--exclude"),
    ],
)
def test_arguments_that_cannot_be(raw, change, more, words):
    assert words in refusal(raw, *more, **change)


def test_out_that_holds_another_dataset(raw, tmp_path):
    other = tiny_dataset(tmp_path / "data")
    with pytest.raises(ToolError, match="something else; name a new folder"):
        run(raw)
    assert read_dataset(other).product == "tiny"


def test_a_broken_label_is_not_taken_for_another_format(tmp_path):
    draw(tmp_path / "raw/a.png", 1)
    (tmp_path / "raw/a.json").write_text("{")
    assert "a.json:1: is not JSON" in refusal(tmp_path / "raw", format="labelme")


def test_out_within_source(raw):
    with pytest.raises(ToolError, match="outside of the raw data"):
        run(raw, out=str(raw / "data"))


@pytest.mark.parametrize("size", ["64", "0x64", "100x64"])
def test_sizes_that_cannot_be(raw, size, capsys):
    with pytest.raises(SystemExit):
        run(raw, size=size)
    assert "64" in capsys.readouterr().err


# --- choosing groups


def records(counts):
    """Group -> boxes of (class 1, class 2) in each of its images."""
    return [
        {"group": group, "boxes": [(1, None)] * one + [(2, None)] * two}
        for group, images in counts.items()
        for one, two in images
    ]


def test_share_of_groups_is_chosen(raw):
    dataset = read_dataset(run(raw, "--validation-share", "0.25"))
    assert {s.group for s in dataset.part("validation")} == {"lot3"}


def test_each_class_is_on_both_sides_where_possible():
    counts = {f"g{k}": [(1, 0)] * 10 for k in range(8)} | {"rare1": [(0, 1)], "rare2": [(0, 1)]}
    chosen = choose_groups(records(counts), 0.2, 2)
    assert len(chosen & {"rare1", "rare2"}) == 1
    images = sum(len(counts[group]) for group in chosen)
    assert 0.1 < images / 82 < 0.3
    assert chosen == choose_groups(records(dict(reversed(counts.items()))), 0.2, 2)


def test_a_class_of_one_group_stays_in_training():
    counts = {"a": [(1, 1)] * 2, "b": [(1, 0)] * 9, "c": [(1, 0)] * 9}
    chosen = choose_groups(records(counts), 0.3, 2)
    assert "a" not in chosen and chosen


def test_many_groups_reach_the_share():
    rng = np.random.default_rng(0)
    counts = {f"lot{k}": [(int(rng.integers(0, 3)), 1)] * int(rng.integers(1, 30)) for k in range(300)}
    chosen = choose_groups(records(counts), 0.2, 2)
    share = sum(len(counts[group]) for group in chosen) / sum(map(len, counts.values()))
    assert abs(share - 0.2) < 0.01
