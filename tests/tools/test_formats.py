"""Each format: what is read, and what is said about what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tools.errors import DataError
from tools.formats import FORMATS, coco, deeppcb, labelme, voc, yolo
from tools.formats.raw import MOST_SHOWN, Problems


def draw(path: Path, width: int = 100, height: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.as_posix().encode()))
    cv2.imwrite(str(path), rng.integers(0, 255, (height, width), np.uint8))
    return path


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read_well(module, source):
    problems = Problems()
    data = module.read(source, problems)
    assert problems.found == []
    return data


def problem(module, source) -> str:
    """The one thing that is wrong."""
    problems = Problems()
    module.read(source, problems)
    assert len(problems.found) == 1, problems.found
    return problems.found[0]


def boxes(image):
    return [(box.label, tuple(round(v, 3) for v in box.xyxy)) for box in image.boxes]


def test_there_is_a_module_for_each_format():
    for name in FORMATS:
        module = __import__(f"tools.formats.{name}", fromlist=["read"])
        assert callable(module.read)


# --- labelme


def shape(label="hole", points=((10, 20), (30, 25), (20, 60)), kind="polygon"):
    return {"label": label, "points": [list(p) for p in points], "shape_type": kind}


def labelme_file(*shapes, **more):
    return {"version": "5", "shapes": list(shapes), "imageWidth": 100, "imageHeight": 80, **more}


def test_labelme(tmp_path):
    draw(tmp_path / "data/a.jpg")
    draw(tmp_path / "data/b.jpg")
    draw(tmp_path / "data/c.jpg")
    write(
        tmp_path / "label/a.json",
        labelme_file(
            shape(),
            shape("bar", ((30, 5), (10, 3)), "rectangle"),
            shape("dot", ((50, 40), (53, 44)), "circle"),
        ),
    )
    write(tmp_path / "label/b.json", labelme_file())
    write(tmp_path / "package.json", {"name": "no labels"})
    data = read_well(labelme, tmp_path)
    a, b, c = data.images
    assert boxes(a) == [("hole", (10, 20, 30, 60)), ("bar", (10, 3, 30, 5)), ("dot", (45, 35, 55, 45))]
    assert (a.name, a.size) == ("data/a.jpg", (100, 80))
    assert b.boxes == ()  # somebody looked and found nothing
    assert c.boxes is None  # nobody looked
    assert data.classes == ()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{\n not json", ["a.json:2", "not JSON"]),
        ({"nothing": 1}, ["a.json", "no list `shapes`"]),
        (labelme_file(shape(kind="point", points=[(1, 2)])), ["a.json: shape 0", "point"]),
        (labelme_file(shape(), {"points": []}), ["a.json: shape 1", "`label`"]),
        (labelme_file(shape(points=[(1, 2)])), ["shape 0", "1 points"]),
        (labelme_file(shape(points=[("x", 2), (3, 4)])), ["shape 0", "not pairs of numbers"]),
        (labelme_file(imageWidth="wide"), ["a.json", "'wide'"]),
    ],
)
def test_labelme_says_what_is_wrong(tmp_path, content, words):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.json", content)
    text = problem(labelme, tmp_path)
    assert all(word in text for word in words), text


def test_a_label_file_without_its_image(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.json", labelme_file())
    write(tmp_path / "b.json", labelme_file(shape()))
    assert "b.json: its image is missing" in problem(labelme, tmp_path)


# --- Pascal VOC


def voc_file(*objects: str, size="<size><width>100</width><height>80</height><depth>1</depth></size>") -> str:
    return "<annotation>\n" + size + "\n" + "\n".join(objects) + "\n</annotation>\n"


def voc_object(name="hole", x1="11", y1="21", x2="30", y2="60") -> str:
    corners = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"


def test_voc(tmp_path):
    draw(tmp_path / "JPEGImages/a.jpg")
    draw(tmp_path / "JPEGImages/b.jpg")
    write(tmp_path / "Annotations/a.xml", voc_file(voc_object(), voc_object("bar", "1", "1", "100", "80")))
    write(tmp_path / "Annotations/b.xml", voc_file(size="<size><width>0</width><height>0</height></size>"))
    a, b = read_well(voc, tmp_path).images
    assert boxes(a) == [("hole", (10, 20, 30, 60)), ("bar", (0, 0, 100, 80))]  # pixels counted from 1
    assert a.boxes[1].origin.endswith("a.xml:4")
    assert (a.size, b.size, b.boxes) == ((100, 80), None, ())


def test_voc_reads_the_encoding_that_the_file_names(tmp_path):
    draw(tmp_path / "a.jpg")
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\n' + voc_file(voc_object("Löcher"))
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    assert read_well(voc, tmp_path).images[0].boxes[0].label == "Löcher"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("<annotation>\n<object>\n</annotation>", ["a.xml:3", "not XML"]),
        ("", ["a.xml:1", "not XML"]),
        ("<kml/>", ["a.xml:1", "<kml>"]),
        (voc_file("<object><name>hole</name></object>"), ["a.xml:3", "<bndbox>"]),
        (voc_file(voc_object(), voc_object(x1="ten")), ["a.xml:4", "<xmin>", "'ten'"]),
        (voc_file("<object><bndbox>\n<xmin>1</xmin></bndbox></object>"), ["a.xml:3", "<ymin>"]),
        ('<!DOCTYPE a [\n<!ENTITY x "y">]>\n<annotation/>', ["a.xml:2", "entity"]),
    ],
)
def test_voc_says_what_is_wrong(tmp_path, content, words):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.xml", content)
    text = problem(voc, tmp_path)
    assert all(word in text for word in words), text


# --- YOLO


def test_yolo(tmp_path):
    for split in ("train", "val"):
        draw(tmp_path / f"images/{split}/a.jpg")
    draw(tmp_path / "images/train/b.jpg")
    draw(tmp_path / "images/val/c.jpg")
    write(tmp_path / "labels/train/a.txt", "0 0.2 0.5 0.2 0.5\n\n1 0.1 0.1 0.5 0.1 0.3 0.9\n")
    write(tmp_path / "labels/val/a.txt", "1 0.5 0.5 1 1\n")
    write(tmp_path / "labels/train/b.txt", "")
    write(tmp_path / "data.yaml", "train: images/train\nnames:\n  0: hole\n  1: bar\n")
    write(tmp_path / "README.txt", "Nothing to see.\n")
    data = read_well(yolo, tmp_path)
    train_a, train_b, val_a, val_c = data.images
    assert data.classes == ("hole", "bar")
    assert boxes(train_a) == [("hole", (0.1, 0.25, 0.3, 0.75)), ("bar", (0.1, 0.1, 0.5, 0.9))]
    assert all(box.relative for box in train_a.boxes)
    assert train_a.boxes[1].origin.endswith("train/a.txt:3")
    assert boxes(val_a) == [("bar", (0, 0, 1, 1))]
    assert (train_b.boxes, val_c.boxes) == ((), None)


def test_yolo_without_names_calls_classes_by_number(tmp_path):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", "3 0.5 0.5 0.1 0.1\n")
    data = read_well(yolo, tmp_path)
    assert (data.classes, data.images[0].boxes[0].label) == ((), "3")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 0.5 0.5 0.1", ["a.txt:2", "found 4 fields"]),
        ("0 0.5 0.5 0.1 0.1 0.2", ["a.txt:2", "found 6 fields"]),
        ("0 0.5 0.5 0.1 wide", ["a.txt:2", "class number and fractions"]),
        ("2 0.5 0.5 0.1 0.1", ["a.txt:2", "class 2 is unknown", "hole, bar"]),
        ("-1 0.5 0.5 0.1 0.1", ["a.txt:2", "class -1"]),
    ],
)
def test_yolo_says_what_is_wrong(tmp_path, line, words):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "a.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    write(tmp_path / "classes.txt", "hole\nbar\n")
    text = problem(yolo, tmp_path)
    assert all(word in text for word in words), text


def test_yolo_label_without_its_image(tmp_path):
    draw(tmp_path / "images/train/a.jpg")
    write(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.1 0.1\n")
    write(tmp_path / "labels/train/b.txt", "0 0.5 0.5 0.1 0.1\n")
    assert "b.txt: its image is missing" in problem(yolo, tmp_path)


def test_a_label_never_goes_to_an_image_of_another_split(tmp_path):
    draw(tmp_path / "images/val/a.jpg")
    write(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.1 0.1\n")
    problems = Problems()
    images = yolo.read(tmp_path, problems).images
    assert images[0].boxes is None
    assert "train/a.txt: its image is missing" in problems.found[0]


def test_two_images_for_one_label_file(tmp_path):
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "a.png")
    write(tmp_path / "a.json", labelme_file())
    problems = Problems()
    labelme.read(tmp_path, problems)
    assert "not clear which image" in problems.found[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("names: [a, b\n", ["data.yaml:", "not YAML"]),
        ("names: {0: a, 2: b}\n", ["data.yaml", "[0, 2]"]),
        ("names: many\n", ["data.yaml", "expected a list"]),
        ("names: [other]\n", ["names other classes", "classes.txt"]),
    ],
)
def test_yolo_class_lists(tmp_path, content, words):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "classes.txt", "hole\nbar\n")
    write(tmp_path / "data.yaml", content)
    with pytest.raises(DataError) as caught:
        yolo.read(tmp_path, Problems())
    assert all(word in str(caught.value) for word in words)


# --- COCO


TWO = [
    {"id": 5, "file_name": "a.jpg", "width": 100, "height": 80},
    {"id": 7, "file_name": "b.jpg", "width": 100, "height": 80},
]


def coco_file(**change):
    record = {
        "images": TWO,
        "categories": [{"id": 3, "name": "hole"}, {"id": 9, "name": "bar"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 20, 20, 40], "iscrowd": 0},
            {"id": 2, "image_id": 5, "category_id": 3, "segmentation": [[1, 2, 9, 4, 5, 8], [3, 1, 4, 1, 4, 3]]},
        ],
    }
    return record | change


def coco_source(tmp_path, content) -> Path:
    draw(tmp_path / "images/a.jpg")
    draw(tmp_path / "images/b.jpg")
    write(tmp_path / "annotations/instances.json", content)
    return tmp_path


def test_coco(tmp_path):
    draw(tmp_path / "images/c.jpg")
    write(tmp_path / "package.json", {"name": "no labels"})
    data = read_well(coco, coco_source(tmp_path, coco_file()))
    a, b, c = data.images
    assert data.classes == ("hole", "bar")
    assert (a.name, a.size) == ("images/a.jpg", (100, 80))
    assert boxes(a) == [("bar", (10, 20, 30, 60)), ("hole", (1, 1, 9, 8))]
    assert (b.boxes, c.boxes) == ((), None)  # listed: looked at; not listed: not


def test_coco_named_by_its_file(tmp_path):
    source = coco_source(tmp_path, coco_file()) / "images/one.json"
    write(source, coco_file(images=[{"id": 5, "file_name": "a.jpg"}]))
    images = read_well(coco, source).images
    assert [(image.name, image.boxes is None) for image in images] == [("a.jpg", False), ("b.jpg", True)]


def test_coco_in_two_files(tmp_path):
    source = coco_source(tmp_path, coco_file(images=TWO[:1]))
    other = coco_file(images=[{"id": 5, "file_name": "b.jpg"}], categories=[{"id": 9, "name": "dent"}])
    write(tmp_path / "annotations/more.json", other | {"annotations": coco_file()["annotations"][:1]})
    data = read_well(coco, source)
    assert data.classes == ("hole", "bar", "dent")
    assert [boxes(image)[0][0] for image in data.images] == ["bar", "dent"]


def annotation(**change):
    return [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [10, 20, 20, 40]} | change]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{\n\n oops", ["instances.json:3", "not JSON"]),
        ({"images": [], "categories": []}, ["no list `annotations`"]),
        (coco_file(annotations=annotation(category_id=4)), ["annotations[0]", "category 4 is unknown", "[3, 9]"]),
        (coco_file(annotations=annotation(category_id=[4])), ["annotations[0]", "`category_id` is [4]"]),
        (coco_file(annotations=annotation(image_id=6)), ["annotations[0]", "image id 6"]),
        (coco_file(annotations=annotation(bbox=[1, 2, 3])), ["annotations[0]", "[x, y, width, height]"]),
        (coco_file(annotations=annotation(bbox=[])), ["annotations[0]", "neither `bbox`"]),
        (coco_file(annotations=annotation(bbox=None, segmentation={"counts": "x"})), ["annotations[0]", "run lengths"]),
        (coco_file(annotations=annotation(iscrowd=1)), ["annotations[0]", "crowd"]),
        (coco_file(annotations=[{"id": 1}]), ["annotations[0]", "lacks `image_id`"]),
        (coco_file(images=[*TWO, {"id": 8}]), ["images[2]", "lacks `file_name`"]),
        (coco_file(images=[*TWO, {"id": 8, "file_name": "z.jpg"}]), ["images[2]", "z.jpg is missing"]),
        (coco_file(images=[*TWO, {"id": [8], "file_name": "b.jpg"}]), ["images[2]", "`id` is [8]"]),
        (coco_file(images=[*TWO, {"id": 5, "file_name": "b.jpg"}]), ["images[2]", "id 5"]),
        (coco_file(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]), ["categories[1]", "id 3"]),
    ],
)
def test_coco_says_what_is_wrong(tmp_path, content, words):
    text = problem(coco, coco_source(tmp_path, content))
    assert all(word in text for word in words), text


def test_folder_without_coco(tmp_path):
    draw(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="holds no COCO file"):
        coco.read(tmp_path, Problems())


# --- DeepPCB


def test_deeppcb(pcb_root):
    data = read_well(deeppcb, pcb_root)
    assert len(data.images) == 8
    assert data.images[0].name == "groupA/a/0_test.jpg"
    assert data.images[0].template == pcb_root / "groupA/a/0_temp.jpg"
    assert {image.group for image in data.images} == {"groupA", "groupB"}
    assert {box.label for image in data.images for box in image.boxes} == {"pin-hole"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 2 3 4", ["0.txt:2", "found 4 fields"]),
        ("1 2 3 4 x", ["0.txt:2", "five whole numbers"]),
        ("1 2 3 4 7", ["0.txt:2", "type 7", "1 to 6"]),
    ],
)
def test_deeppcb_says_what_is_wrong(pcb_root, line, words):
    path = pcb_root / "groupA/a_not/0.txt"
    path.write_text(path.read_text() + line + "\n")
    text = problem(deeppcb, pcb_root)
    assert all(word in text for word in words), text


def test_deeppcb_files_that_are_not_there(pcb_root):
    (pcb_root / "groupA/a/0_temp.jpg").unlink()
    assert "trainval.txt:1: the template" in problem(deeppcb, pcb_root)
    with pytest.raises(DataError, match="--source must name"):
        deeppcb.read(pcb_root / "groupA", Problems())


# --- all of them


@pytest.mark.parametrize("module", [voc, labelme, yolo])
def test_folder_without_images(tmp_path, module):
    with pytest.raises(DataError, match="no image"):
        module.read(tmp_path, Problems())
    with pytest.raises(DataError, match="not a folder"):
        module.read(tmp_path / "none", Problems())


def test_problems_beyond_the_limit_are_counted():
    problems = Problems()
    for k in range(MOST_SHOWN + 5):
        problems.add(f"number {k}")
    with pytest.raises(DataError) as caught:
        problems.raise_any("raw")
    text = str(caught.value)
    assert text.startswith("raw: 25 problems") and text.endswith("and 5 more")
    assert f"number {MOST_SHOWN - 1}\n" in text and f"number {MOST_SHOWN}\n" not in text
