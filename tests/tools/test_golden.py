"""Golden samples: drawn here, the same every time, clear cases only, small."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from edge.boxes import Float
from edge.bundle.manifest import Golden
from edge.capture.board import DEFECTS
from edge.decide import decide
from edge.detect import Detector, DetectSettings
from edge.preprocess import Image, InputSpec
from edge.recipe import DetectRecipe, GateRecipe, Recipe
from edge.records import Detections, VerdictKind
from tools import golden
from tools.errors import ToolError
from tools.golden import Answer, Candidate, choose, draw_candidates, make_golden, read_images, verdict_margin

GREY, COLOUR = InputSpec(256, 256, 1), InputSpec(192, 96, 3)
RECIPE = Recipe(detect=DetectRecipe(threshold=0.6, review=0.4))


class DarkSpots:
    """A network of one class that is sure of a cell by how dark it is: pits are found, a bright surface is OK."""

    def run(self, tensor: Float) -> list[Float]:
        _, _, height, width = tensor.shape
        cells = tensor.mean(axis=1).reshape(height // 8, 8, width // 8, 8).mean(axis=(1, 3))  # (H/8, W/8)
        logits = ((0.16 - cells) * 60).clip(-9, 9)
        return [logits[None, None].astype(np.float32), np.full((1, 4, *cells.shape), 1.0, np.float32)]


def test_boards_are_drawn_with_their_truth_and_other_products_as_metal() -> None:
    for candidate in draw_candidates(DEFECTS, GREY, 6):
        assert candidate.image.shape == (256, 256) and {t.class_name for t in candidate.truths} <= set(DEFECTS)
        assert np.isin(candidate.image, (0, 255)).mean() > 0.9, "copper and laminate"
    for spec, shape in ((COLOUR, (96, 192, 3)), (InputSpec(192, 96, 1), (96, 192))):
        for number, candidate in enumerate(draw_candidates(["pit"], spec, 6)):
            assert candidate.image.shape == shape and bool(candidate.truths) == bool(number % 3)


def test_what_is_said_to_be_a_pit_is_dark() -> None:
    for candidate in draw_candidates(["pit"], COLOUR, 12):
        grey = candidate.image.mean(axis=2)
        for truth in candidate.truths:
            left, top, right, bottom = (int(v) for v in truth.xyxy)
            assert 0 <= left < right <= 192 and 0 <= top < bottom <= 96
            inside = grey[top:bottom, left:right]
            assert inside.min() < 40 and inside.mean() < grey.mean()


def test_the_same_arguments_draw_the_same_samples() -> None:
    first, second = (list(draw_candidates(DEFECTS, GREY, 4)) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) and a.truths == b.truths for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0].image, first[3].image)


@pytest.fixture
def made(tmp_path: Path) -> Golden:
    return make_golden(tmp_path, ["pit"], COLOUR, RECIPE, DarkSpots(), "dark spots")


def test_a_set_has_good_and_bad_parts_and_reads_back(made: Golden, tmp_path: Path) -> None:
    verdicts = [sample.verdict for sample in made.samples]
    assert len(verdicts) == golden.SAMPLES and {"OK", "NG"} <= set(verdicts)
    on_disk = msgspec.json.decode((tmp_path / "golden/expected.json").read_bytes(), type=Golden)
    assert on_disk == made
    images = read_images(tmp_path, made, COLOUR)
    detector = Detector(DarkSpots(), COLOUR, DetectSettings((8,), 0.4, RECIPE.detect.nms_iou))
    for image, sample in zip(images, made.samples, strict=True):
        found = detector.detect(image)
        assert [box.confidence for box in sample.detections] == [round(float(c), 5) for c in found.confidence]


def test_verdicts_stay_when_confidences_move_a_little(made: Golden, tmp_path: Path) -> None:
    detector = Detector(DarkSpots(), COLOUR, DetectSettings((8,), 0.05, RECIPE.detect.nms_iou))
    for image, sample in zip(read_images(tmp_path, made, COLOUR), made.samples, strict=True):
        found = detector.detect(image)
        for move in (-0.99 * golden.MARGIN, 0.99 * golden.MARGIN):
            moved = Detections(found.xyxy, (found.confidence + np.float32(move)).clip(0, 1), found.class_id)
            assert decide(moved, RECIPE.detect, ["pit"]).kind.value == sample.verdict


@pytest.mark.parametrize(
    ("confidences", "margin", "why"),
    [
        ([], 1.0, "nothing can come of nothing"),
        ([0.1], 0.3, "OK until it reaches review"),
        ([0.45], 0.05, "REVIEW until it falls under review"),
        ([0.55], 0.05, "or reaches the threshold"),
        ([0.9, 0.41], 0.3, "NG by the surest box, whatever the others do"),
    ],
)
def test_margins_are_those_of_the_verdict(confidences: list[float], margin: float, why: str) -> None:
    n = len(confidences)
    found = Detections(np.zeros((n, 4), np.float32), np.array(confidences, np.float32), np.zeros(n, np.int64))
    assert verdict_margin(found, RECIPE.detect, ["pit"]) == pytest.approx(margin, abs=1e-6), why


def test_a_set_is_small_and_leaves_nothing_of_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/77.png").write_bytes(b"old")
    monkeypatch.setattr(golden, "MOST_BYTES", 12_000)
    made = make_golden(tmp_path, ["pit"], COLOUR, RECIPE, DarkSpots(), "dark spots")
    files = sorted((tmp_path / "golden").glob("*.png"))
    assert len(files) == len(made.samples) < golden.SAMPLES
    assert sum(file.stat().st_size for file in files) <= 12_000


def test_an_image_that_decodes_to_other_pixels_is_found(made: Golden, tmp_path: Path) -> None:
    path = tmp_path / made.samples[1].file
    image = cv2.imread(str(path))
    image[0, 0, 0] ^= 1
    cv2.imwrite(str(path), image)
    with pytest.raises(ToolError, match=r"1\.png: gives another tensor"):
        read_images(tmp_path, made, COLOUR)
    path.unlink()
    with pytest.raises(ToolError, match=r"1\.png: missing or not an image"):
        read_images(tmp_path, made, COLOUR)


def test_a_gate_that_refuses_every_drawing_still_gives_a_set(tmp_path: Path) -> None:
    recipe = Recipe(gate=GateRecipe(sharpness_min=1e6), detect=RECIPE.detect)
    made = make_golden(tmp_path, ["pit"], COLOUR, recipe, DarkSpots(), "dark spots")
    assert {sample.verdict for sample in made.samples} == {"RETAKE"}


def an_answer(margin: float, *classes: int, verdict: VerdictKind = VerdictKind.NG) -> Answer:
    n = len(classes)
    boxes = Detections(np.zeros((n, 4), np.float32), np.full(n, 0.9, np.float32), np.array(classes, np.int64))
    return Answer(Candidate(empty_image(), []), boxes, verdict, margin)


def empty_image() -> Image:
    return np.zeros((8, 8), np.uint8)


def test_clear_and_different_cases_are_chosen_first() -> None:
    good = [an_answer(1.0, verdict=VerdictKind.OK) for _ in range(5)]
    bad = [an_answer(0.3, 0), an_answer(0.4, 0, 0), an_answer(0.01, 3), an_answer(0.3, 1, 2), an_answer(0.3, 2)]
    refused = an_answer(0.5, verdict=VerdictKind.RETAKE)
    chosen = choose([*good, *bad, refused], 4)
    assert [a.found.class_id.tolist() for a in chosen] == [[], [1, 2], [0, 0], [0]]
    assert all(a is not refused for a in chosen)


def test_without_clear_cases_the_clearest_are_taken() -> None:
    doubtful = [an_answer(margin, 0) for margin in (0.01, 0.05, 0.03)]
    assert [a.margin for a in choose(doubtful, 2)] == [0.05, 0.03]
    with pytest.raises(ToolError, match="no candidate"):
        choose([])


def test_the_expectation_is_plain_json(made: Golden, tmp_path: Path) -> None:
    data = json.loads((tmp_path / "golden/expected.json").read_text())
    assert data["reference"] == "dark spots" and data["least_confidence"] == 0.4
    assert {"file", "tensor_sha256", "verdict", "detections", "truths"} == set(data["samples"][0])
