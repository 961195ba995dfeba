"""Replay judges a folder as the daemon would, and writes what accuracy is measured from."""

import io
import json

import cv2
import numpy as np
import pytest

from edge.config import Runtime
from edge.errors import CaptureError, UsageError
from edge.replay import Summary, replay, table
from edge.serving import EVERYTHING, open_product
from tests.boards import drawn_boards
from tests.flow.rig import PCB


@pytest.fixture(scope="module")
def product():
    return open_product(PCB, Runtime(), min_confidence=EVERYTHING)


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "lot2").mkdir(parents=True)
    boards = drawn_boards(2)
    cv2.imwrite(str(images / "a.png"), boards[0])
    cv2.imwrite(str(images / "lot2" / "b.png"), boards[1])
    cv2.imwrite(str(images / "c_wide.png"), boards[0][:300])
    cv2.imwrite(str(images / "d_flat.png"), np.full((640, 640), 90, np.uint8))
    cv2.imwrite(str(images / "e_deep.png"), boards[0].astype(np.uint16))
    (images / "f_cut.png").write_bytes((images / "a.png").read_bytes()[:2000])
    (images / "notes.txt").write_text("not an image by its name")
    return images


def run(folder, product, annotated=None):
    sink, summary = io.StringIO(), Summary()
    list(replay(folder, product, summary, sink, annotated))
    return [json.loads(line) for line in sink.getvalue().splitlines()], summary


def test_a_line_for_each_image_and_a_loss_for_what_cannot_be_judged(folder, product):
    lines, summary = run(folder, product)
    assert [line["file"] for line in lines] == [
        "a.png",
        "c_wide.png",
        "d_flat.png",
        "e_deep.png",
        "f_cut.png",
        "lot2/b.png",
    ]
    by_file = {line["file"]: line for line in lines}
    for name in ("e_deep.png", "f_cut.png"):
        line = by_file[name]
        assert line["verdict"] is None and line["loss"] == "capture_fault" and line["error"]
    assert summary.judged == 4 and sum(summary.losses.values()) == 2
    assert "6 images" in table(summary) and "predict" in table(summary)


def test_detections_are_listed_whatever_the_threshold_and_lie_in_the_source(folder, product):
    lines, _ = run(folder, product)
    boxes = [(line["file"], box) for line in lines for box in line["detections"]]
    assert any(box["confidence"] < product.shown_from for _, box in boxes), "also those no verdict rests on"
    assert all(0.01 <= box["confidence"] <= 1 for _, box in boxes)
    assert {box["class_name"] for _, box in boxes} <= set(product.classes)
    for name, box in boxes:
        height = 300 if "wide" in name else 640
        left, top, right, bottom = box["xyxy"]
        assert 0 <= left < right <= 640 and 0 <= top < bottom <= height


def test_a_refused_frame_has_its_cause(folder, product):
    lines, _ = run(folder, product)
    line = next(line for line in lines if line["file"] == "d_flat.png")
    assert line["verdict"] == "RETAKE" and line["cause"] == "occluded" and line["sharpness"] == 0


def test_annotated_images_are_written_in_the_same_tree(folder, product, tmp_path):
    run(folder, product, tmp_path / "out")
    assert cv2.imread(str(tmp_path / "out" / "lot2" / "b.jpg")).shape == (664, 640, 3)
    assert not (tmp_path / "out" / "f_cut.jpg").exists()


def test_an_annotated_folder_that_cannot_be_written_is_named(folder, product, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        run(folder, product, tmp_path / "file")


def test_a_folder_without_images_is_named(product, tmp_path):
    with pytest.raises(CaptureError, match="holds no image"):
        run(tmp_path, product)
    with pytest.raises(CaptureError, match="nowhere"):
        run(tmp_path / "nowhere", product)


def test_the_same_folder_gives_the_same_lines(folder, product):
    def without_times(lines):
        return [{k: v for k, v in line.items() if k != "latency_ms"} for line in lines]

    assert without_times(run(folder, product)[0]) == without_times(run(folder, product)[0])
