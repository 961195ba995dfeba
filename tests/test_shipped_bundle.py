"""The bundle as shipped, on boards that this project draws itself: it must see what it is made for."""

import re
from pathlib import Path

import numpy as np
import pytest

from edge.boxes import iou_matrix
from edge.bundle import manifest
from edge.capture.simulated import SimulatedSource
from edge.config import Runtime, SimulatedCamera
from edge.gate import check
from edge.serving import open_product
from tests.flow.rig import PCB

BOARDS = 24
LINE = SimulatedCamera(id="sim", seed=5, fault_rate=0.4, defect_rate=0.7)


@pytest.fixture(scope="module")
def product():
    return open_product(PCB, Runtime())


@pytest.fixture(scope="module")
def line():
    source = SimulatedSource(LINE)
    source.open()
    return source


def frames(line, wanted):
    """Images and truths of the first frames that are clean, or spoiled."""
    numbers = [i for i in range(120) if (line.truth(i)[1] == "none") == wanted][:BOARDS]
    return [(line.image(i), *line.truth(i)) for i in numbers]


def test_defects_that_are_drawn_are_found_by_their_name(product, line):
    drawn = found = 0
    for image, truths, _ in frames(line, wanted=True):
        detections = product.detector.detect(image).above(product.shown_from)
        names = [product.classes[k] for k in detections.class_id]
        for truth in truths:
            overlap = iou_matrix(np.array([truth.xyxy], np.float32), detections.xyxy)[0] > 0.33
            found += any(name == truth.class_name for name, near in zip(names, overlap, strict=True) if near)
        drawn += len(truths)
    assert drawn > 20
    assert found / drawn > 0.75, f"{found} of {drawn}"


def test_the_gate_passes_clean_frames_and_refuses_spoiled_ones(product, line):
    assert all(check(image, product.recipe.gate).passed for image, _, _ in frames(line, wanted=True))
    spoiled = frames(line, wanted=False)
    refused = [check(image, product.recipe.gate).cause is not None for image, _, _ in spoiled]
    assert sum(refused) >= 0.9 * len(spoiled)


def test_every_file_is_small_and_the_card_says_where_it_comes_from():
    read = manifest.read(PCB)
    assert sum((PCB / file).stat().st_size for file in read.files) < 16e6
    card = (PCB / read.card).read_text()
    assert "DeepPCB" in card and not re.search("@[A-Z]+@", card), "no placeholder is left"
    assert {a.file for a in read.artifacts} <= set(read.files)
    assert not (Path(PCB) / "manifest.json").is_symlink()
