"""The bundles as shipped: the board detector on boards that this project draws, all of them on their golden samples."""

import hashlib
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.boxes import iou_matrix
from edge.bundle import manifest
from edge.capture.simulated import SimulatedSource
from edge.config import Runtime, SimulatedCamera
from edge.gate import check
from edge.pipeline import Pipeline
from edge.predictor import installed_runtimes
from edge.preprocess import preprocess
from edge.records import Frame
from edge.serving import open_product
from tests.flow.rig import PCB, REPOSITORY

BOARDS = 24
BUNDLES = sorted({PCB.resolve(), *(path.parent.resolve() for path in (REPOSITORY / "models").glob("*/manifest.json"))})
NEAR = 0.2  # of confidence: what INT8 may move a box by
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


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request):
    return request.param


@pytest.fixture
def golden(bundle):
    read = manifest.read(bundle)
    if read.golden is None:
        pytest.skip("this bundle was made before there were golden samples")
    return manifest.read_golden(bundle, read)


def image_of(path, channels):
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)


@pytest.mark.parametrize("runtime", sorted(installed_runtimes()))
def test_golden_samples_get_the_verdicts_of_the_reference(bundle, golden, runtime):
    product = open_product(bundle, Runtime(prefer=runtime))
    pipeline = Pipeline(product.detector, product.recipe, product.classes, lambda: 0)
    for sample in golden.samples:
        image = image_of(bundle / sample.file, product.spec.channels)
        tensor, _ = preprocess(image, product.spec)
        assert hashlib.sha256(tensor.tobytes()).hexdigest() == sample.tensor_sha256, "the same input to the last bit"
        inspection = pipeline.inspect(Frame(image, "golden", 1, 0, 0.0, sample.file))
        assert inspection.verdict.kind.value == sample.verdict, sample.file
        if inspection.gate.passed:  # what the gate refuses is not searched
            least = manifest.read_golden(bundle, manifest.read(bundle)).least_confidence
            assert_same_boxes(sample.detections, inspection.detections, product.classes, least, sample.file)


def assert_same_boxes(expected, found, classes, least, name):
    """Every box that is clearly over the least confidence has its like on the other side, as sure but for `NEAR`."""
    theirs = np.array([box.xyxy for box in expected], np.float32).reshape(-1, 4)
    confidence = np.array([box.confidence for box in expected], np.float32)
    kind = np.array([classes.index(box.class_name) for box in expected], np.int64)
    same = (iou_matrix(theirs, found.xyxy) > 0.5) & (kind[:, None] == found.class_id)  # (expected, found)
    same &= np.abs(confidence[:, None] - found.confidence) < NEAR
    assert same.any(axis=1)[confidence > least + NEAR].all(), name
    assert same.any(axis=0)[found.confidence > least + NEAR].all(), name


def test_golden_samples_are_small_and_of_more_than_one_kind(bundle, golden):
    assert 2 <= len(golden.samples) <= 8
    assert sum((bundle / sample.file).stat().st_size for sample in golden.samples) <= 400_000
    assert len({sample.verdict for sample in golden.samples}) > 1


def test_the_passport_was_passed_by_these_very_files(bundle):
    read = manifest.read(bundle)
    if read.passport is None:
        pytest.skip("this bundle was made before there were passports")
    passport = json.loads((bundle / read.passport).read_text())
    assert passport["passed"] and passport["problems"] == []
    for form in passport["forms"].values():
        for name, sha256 in ((form["file"], form["sha256"]), (form["stands_for"], form["stands_for_sha256"])):
            assert read.files.get(name, sha256) == sha256, name
        assert form["input_sha256"] == passport["reference"]["input_sha256"]
