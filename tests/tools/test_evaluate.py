"""The metrics by hand and against pycocotools; the step on a predictor that sees, and on an untrained network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.boxes import iou_matrix
from edge.recipe import DetectRecipe, GateRecipe, Recipe
from edge.records import Detections
from tests.tools.seeing import SeeingPredictor
from tests.tools.tiny import tiny_dataset
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import Dataset, read_dataset
from tools.errors import ToolError
from tools.evaluate import Evidence, choose_recipe, gather, judge, main, model_hash, thresholds_of
from tools.journal import Journal
from tools.metrics import (
    COCO_OVERLAPS,
    Ranking,
    average_precision,
    best_f,
    coco_map,
    confusion,
    curve,
    figures,
    match,
    operating_point,
    rank,
)
from tools.network import Detector, NetworkConfig
from tools.verdicts import Rate, Seen, part_rates, verdict

BOX = [10, 10, 30, 30]
SHIFTED = [20, 10, 40, 30]  # IoU with BOX: 1/3
FAR = [60, 60, 80, 80]


def found(*rows: tuple[list[int], float, int]) -> Detections:
    """Detections from (box, confidence, class)."""
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


def truth(*rows: tuple[list[int], int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and classes."""
    return np.array([r[0] for r in rows], np.float32).reshape(-1, 4), np.array([r[1] for r in rows], np.int64)


@pytest.mark.parametrize(
    ("detections", "truths", "iou", "correct"),
    [
        pytest.param(found((BOX, 0.9, 0)), truth((BOX, 0)), 0.5, [True], id="exact"),
        pytest.param(found((BOX, 0.9, 1)), truth((BOX, 0)), 0.5, [False], id="wrong class"),
        pytest.param(found((SHIFTED, 0.9, 0)), truth((BOX, 0)), 0.33, [True], id="a third is larger than 0.33"),
        pytest.param(found((SHIFTED, 0.9, 0)), truth((BOX, 0)), 0.34, [False], id="a third is not larger than 0.34"),
        pytest.param(found((BOX, 0.9, 0), (BOX, 0.8, 0)), truth((BOX, 0)), 0.5, [True, False], id="taken once"),
        pytest.param(found((BOX, 0.8, 0), (BOX, 0.9, 0)), truth((BOX, 0)), 0.5, [False, True], id="by confidence"),
        pytest.param(found((FAR, 0.9, 0)), truth(), 0.5, [False], id="nothing to find"),
        pytest.param(found(), truth((BOX, 0)), 0.5, [], id="nothing found"),
        pytest.param(
            found((SHIFTED, 0.9, 0), (BOX, 0.8, 0)),
            truth((BOX, 0), (SHIFTED, 0)),
            0.3,
            [True, True],
            id="takes the one it overlaps most",
        ),
    ],
)
def test_match(detections: Detections, truths: tuple, iou: float, correct: list[bool]) -> None:
    assert match(detections, *truths, iou).tolist() == correct


@pytest.mark.parametrize(
    ("correct", "truths", "value"),
    [
        pytest.param([True, True], 2, 1.0, id="perfect"),
        pytest.param([True, False], 1, 1.0, id="a false one behind all hits costs nothing"),
        pytest.param([False, True], 1, 0.5, id="a false one in front halves"),
        pytest.param([True, False, True], 2, (1 + 2 / 3) / 2, id="interleaved"),
        pytest.param([False, True, True, True], 3, 3 / 4, id="envelope lifts early precision"),
        pytest.param([True], 4, 0.25, id="misses limit recall"),
        pytest.param([], 3, 0.0, id="nothing found"),
    ],
)
def test_average_precision(correct: list[bool], truths: int, value: float) -> None:
    ranking = Ranking(np.linspace(0.9, 0.1, len(correct), dtype=np.float32), np.array(correct, bool), truths)
    assert average_precision(ranking) == pytest.approx(value)


def test_average_precision_without_truth_is_nan() -> None:
    assert np.isnan(average_precision(Ranking(np.empty(0), np.empty(0, bool), 0)))


def test_pooled_ranking_mixes_images_and_classes() -> None:
    detections = [found((BOX, 0.6, 0), (FAR, 0.9, 1)), found((BOX, 0.7, 1))]
    truths = [truth((BOX, 0)), truth((BOX, 1))]
    ranking = rank(detections, truths, 0.33)
    assert ranking.confidence == pytest.approx([0.9, 0.7, 0.6]) and ranking.correct.tolist() == [False, True, True]
    assert average_precision(ranking) == pytest.approx(2 / 3)


def test_best_f_names_its_threshold() -> None:
    f, threshold = best_f(Ranking(np.array([0.9, 0.8, 0.3]), np.array([True, True, False]), 2))
    assert (f, threshold) == (1.0, 0.8)


def test_figures_of_a_small_set() -> None:
    result = figures([found((BOX, 0.9, 0), (SHIFTED, 0.2, 1))], [truth((BOX, 0), (BOX, 1))], ("open", "short", "spur"))
    assert result["ap33_pooled"] == 1.0 and result["ap33"]["short"] == 1.0
    assert result["map50"] == pytest.approx(0.5)  # the shifted one does not reach 0.5
    assert result["truths"] == 2 and np.isnan(result["ap33"]["spur"])


def test_equally_confident_ones_count_the_same_in_any_order() -> None:
    confidence = np.array([0.9, 0.5, 0.5, 0.5, 0.2], np.float32)
    orders = [[1, 1, 0, 1, 0], [1, 0, 1, 1, 0], [1, 1, 1, 0, 0]]
    values = {average_precision(Ranking(confidence, np.array(order, bool), 4)) for order in orders}
    assert values == {(1 + 2 * 0.75) / 4}  # 1 of 1, then 3 of 4 at once
    assert {best_f(Ranking(confidence, np.array(order, bool), 4)) for order in orders} == {(0.75, 0.5)}


def test_a_threshold_cannot_part_equal_confidences() -> None:
    f, threshold = best_f(Ranking(np.array([0.5, 0.5]), np.array([True, False]), 1))
    assert (f, threshold) == (pytest.approx(2 / 3), 0.5)  # not 1.0, which would need a cut between them


def random_set(seed: int, ties: bool, images: int = 30) -> tuple[list[Detections], list[tuple[np.ndarray, np.ndarray]]]:
    """Truths, and detections that are shifted, missed, doubled or invented."""
    rng = np.random.default_rng(seed)
    found, truths = [], []
    for _ in range(images):
        n = int(rng.integers(0, 5))
        corner, size = rng.uniform(0, 80, (n, 2)), rng.uniform(8, 24, (n, 2))
        boxes, kinds = np.hstack([corner, corner + size]).astype(np.float32), rng.integers(0, 3, n)
        truths.append((boxes, kinds))
        seen = boxes + rng.normal(0, 1.5, (n, 4)).astype(np.float32)
        invented = np.hstack([c := rng.uniform(0, 80, (4, 2)), c + rng.uniform(5, 30, (4, 2))]).astype(np.float32)
        again = np.concatenate([seen, seen[:1] + 2, invented])
        kind = np.concatenate([kinds, kinds[:1], rng.integers(0, 3, 4)])
        confidence = rng.permutation(len(again)) / 10 * 0.6 + rng.uniform(0.01, 0.4, len(again))
        confidence[: n // 2 if ties else 0] = 0.5
        order = np.argsort(-confidence, kind="stable")
        found.append(Detections(again[order], confidence[order].astype(np.float32).clip(0, 1), kind[order]))
    return found, truths


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_agrees_with_our_own_matching(seed: int) -> None:
    found, truths = random_set(seed, ties=False)  # pycocotools reads its curve between equal ones too
    theirs = coco_map(found, truths, 3)
    ours = [[coco_sampled(rank(found, truths, iou - 1e-6, k)) for k in range(3)] for iou in COCO_OVERLAPS]
    assert theirs["map50"] == pytest.approx(np.mean(ours[0]), abs=1e-9)
    assert theirs["map50_95"] == pytest.approx(np.mean(ours), abs=1e-9)
    # The area under the envelope, which we report at 0.33, is near the mean over 101 recalls, and not the same.
    areas = np.mean([average_precision(rank(found, truths, 0.5, k)) for k in range(3)])
    assert theirs["map50"] == pytest.approx(areas, abs=0.03)


def coco_sampled(ranking: Ranking) -> float:
    """COCO's AP from a ranking: the envelope's precision at 101 recalls."""
    c = curve(ranking)
    envelope = np.append(np.maximum.accumulate(c.precision[::-1])[::-1], 0)
    return float(envelope[np.searchsorted(c.recall, np.linspace(0, 1, 101), side="left")].mean())


def slow_match(detections: Detections, gt: np.ndarray, gt_class: np.ndarray, iou: float) -> list[bool]:
    """The rule of `match` word by word."""
    free, correct = set(range(len(gt))), [False] * len(detections)
    for i in sorted(range(len(detections)), key=lambda i: -detections.confidence[i]):
        overlap = {j: iou_matrix(detections.xyxy[i : i + 1], gt[j : j + 1])[0, 0] for j in free}
        overlap = {j: v for j, v in overlap.items() if v > iou and gt_class[j] == detections.class_id[i]}
        if overlap:
            free.discard(max(overlap, key=lambda j: overlap[j]))
            correct[i] = True
    return correct


@pytest.mark.parametrize("seed", range(3))
def test_fast_matching_is_the_rule(seed: int) -> None:
    for detections, truths in zip(*random_set(seed, ties=True), strict=True):
        assert match(detections, *truths, 0.33).tolist() == slow_match(detections, *truths, 0.33)


def test_figures_without_any_detection_or_truth() -> None:
    nothing = figures([found()], [truth((BOX, 0))], ("a", "b"))
    assert (nothing["ap33_pooled"], nothing["map50_95"], nothing["f33_best"]) == (0.0, 0.0, 0.0)
    assert np.isnan(figures([found((BOX, 0.9, 0))], [truth()], ("a",))["map50"])


def test_a_class_nobody_looked_for_is_neither_right_nor_wrong() -> None:
    boxes, labels = [found((BOX, 0.8, 0), (FAR, 0.9, 1))], [truth((BOX, 0))]
    assert figures(boxes, labels, ("a", "b"))["ap33_pooled"] == 0.5
    assert figures(boxes, labels, ("a", "b"), [np.array([True, False])])["ap33_pooled"] == 1.0


def test_confusion_says_what_became_of_each() -> None:
    boxes = [found((BOX, 0.9, 1), (FAR, 0.8, 1), (SHIFTED, 0.7, 0), ([0, 60, 9, 69], 0.3, 0))]
    table = confusion(boxes, [truth((BOX, 0), (FAR, 0))], np.array([0.5, 0.5]), 2)
    # BOX goes to the shifted box of its own class, though the wrong class is surer; FAR is confused.
    assert table.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    table = confusion(boxes, [truth((BOX, 0), (FAR, 0))], np.array([0.95, 0.85]), 2)
    assert table.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_operating_point_takes_each_class_at_its_own_threshold() -> None:
    boxes = [found((BOX, 0.9, 0), (FAR, 0.4, 1), (SHIFTED, 0.3, 0))]
    at = operating_point(boxes, [truth((BOX, 0), (FAR, 1))], np.array([0.5, 0.4]), ("a", "b"))
    assert (at["hits"], at["boxes"], at["f33"]) == (2, 2, 1.0) and at["class"]["b"]["recall"] == 1.0
    at = operating_point(boxes, [truth((BOX, 0), (FAR, 1))], np.array([0.95, 0.95]), ("a", "b"))
    assert at["precision"] is None and at["recall"] == 0.0


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        pytest.param(0, 100, 0.0, 0.0370, id="none is not never"),
        pytest.param(100, 100, 0.9630, 1.0, id="all"),
        pytest.param(10, 100, 0.0552, 0.1744, id="textbook"),
        pytest.param(1, 2, 0.0945, 0.9055, id="two parts say little"),
        pytest.param(0, 0, 0.0, 1.0, id="no part says nothing"),
    ],
)
def test_wilson_interval(count: int, total: int, low: float, high: float) -> None:
    assert Rate(count, total).interval == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def seen(*rows: tuple[list[int], float, int], cause: str | None = None) -> Seen:
    """A part on which these boxes were found."""
    return Seen("x", "g", found(*rows), cause)


def test_rates_count_what_the_device_decides() -> None:
    bad = [seen((BOX, 0.9, 0)), seen((BOX, 0.4, 0)), seen(), seen(cause="blur")]
    good = [seen(), seen((BOX, 0.6, 1)), seen((BOX, 0.6, 0))]
    recipe = DetectRecipe(threshold=0.5, review=0.3, class_threshold={"b": 0.7})
    rates = part_rates(bad, good, recipe, ("a", "b"))
    assert {name: rate.count for name, rate in rates.items()} == {
        "escape": 1, "overkill": 1, "bad_review": 1, "good_review": 1, "bad_retake": 1, "good_retake": 0,
    }  # fmt: skip


def test_what_lies_outside_of_the_recipes_region_makes_no_part_bad() -> None:
    part = replace(seen((BOX, 0.9, 0)), size=(1000, 500))
    right = DetectRecipe(region=(0.5, 0.0, 0.5, 1.0))
    assert verdict(part, right, ("a",)).value == "OK" and verdict(part, DetectRecipe(), ("a",)).value == "NG"
    with pytest.raises(ValueError, match="the frame's size is needed"):
        verdict(replace(part, size=None), right, ("a",))


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return read_dataset(tiny_dataset(tmp_path / "data", size=(96, 64), templates=True, negatives=1))


def look_at(data: Dataset, out: Path, predictor: SeeingPredictor, recipe: Recipe) -> Evidence:
    return gather(data, data.part("validation"), predictor, recipe, Journal(out / "evaluate.journal", {}))


def test_evidence_of_one_who_sees(tiny: Dataset, tmp_path: Path) -> None:
    recipe = choose_recipe(None, None, tiny.classes)
    evidence = look_at(tiny, tmp_path, SeeingPredictor(tiny.spec), recipe)
    assert (len(evidence.bad), len(evidence.good)) == (4, 6)  # five templates and the image without defects
    result = judge(evidence, recipe)
    assert result["ap33_pooled"] == 1.0 and result["at_thresholds"]["f33"] == 1.0 and result["map50_95"] > 0.7
    assert result["parts"]["escape"]["count"] == result["parts"]["overkill"]["count"] == 0
    assert result["parts"]["bad"] == {"OK": 0, "NG": 4, "REVIEW": 0, "RETAKE": 0}


def test_going_on_looks_only_at_what_is_left(tiny: Dataset, tmp_path: Path) -> None:
    recipe, again = Recipe(), SeeingPredictor(tiny.spec)
    first = look_at(tiny, tmp_path, SeeingPredictor(tiny.spec), recipe)
    journal = tmp_path / "evaluate.journal"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))
    second = look_at(tiny, tmp_path, again, recipe)
    assert again.calls == 10 - 3
    for one, other in zip([*first.seen, *first.templates], [*second.seen, *second.templates], strict=True):
        np.testing.assert_array_equal(one.found.xyxy, other.found.xyxy)
        np.testing.assert_array_equal(one.found.confidence, other.found.confidence)


def test_an_image_on_which_not_all_was_looked_for_is_no_good_part(tmp_path: Path) -> None:
    root = tiny_dataset(tmp_path / "data", negatives=2, known={"A": ["hole", "bar"], "B": ["hole"]})
    data = read_dataset(root)
    evidence = look_at(data, tmp_path, SeeingPredictor(data.spec), Recipe())
    assert (len(evidence.bad), len(evidence.good)) == (4, 0)
    assert judge(evidence, Recipe())["parts"]["overkill"]["share"] is None


def test_the_gate_refuses_before_anything_is_decided(tiny: Dataset, tmp_path: Path) -> None:
    recipe = Recipe(gate=GateRecipe(brightness_min=250.0))
    evidence = look_at(tiny, tmp_path, SeeingPredictor(tiny.spec), recipe)
    assert judge(evidence, recipe)["parts"]["bad"] == {"OK": 0, "NG": 0, "REVIEW": 0, "RETAKE": 4}


def test_threshold_goes_before_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[gate]\nsharpness_min = 5.0\n[detect]\nreview = 0.4\nclass_threshold = {bar = 0.9}\n")
    chosen = choose_recipe(path, 0.35, ("hole", "bar"))
    assert (chosen.detect.threshold, chosen.detect.review, chosen.detect.class_threshold) == (0.35, 0.35, {})
    assert chosen.gate.sharpness_min == 5.0
    assert thresholds_of(choose_recipe(path, None, ("hole", "bar")).detect, ("hole", "bar")).tolist() == [0.5, 0.9]
    with pytest.raises(ToolError, match=r"--threshold 0\.001: expected"):
        choose_recipe(path, 0.001, ("hole", "bar"))


SMALL = NetworkConfig(classes=2, stem=8, width8=8, width16=8, width32=8, depth8=1, depth16=1, depth32=1, neck=8)


@pytest.fixture
def checkpoint(tiny: Dataset, tmp_path: Path) -> Path:
    network = Detector(SMALL)
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), tiny)
    return tmp_path / "last.pdckpt"


def test_the_step_on_an_untrained_network(tiny: Dataset, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--data", str(tiny.root), "--model", str(checkpoint), "--out", str(tmp_path / "out")]
    main([*arguments, "--split", "train"])
    record = json.loads((tmp_path / "out" / "evaluate.json").read_text())
    assert record["results"]["rules"]["max_detections"] == 100 and "maxDets: 100" in record["results"]["rules"]["coco"]
    assert record["results"]["images"] == 5 and record["settings"]["model"] == model_hash(checkpoint)
    assert all((tmp_path / "out" / f"{n}.png").is_file() for n in ("precision_recall", "f_threshold", "confusion"))
    assert "5 images, 6 defects, at most 100 boxes" in capsys.readouterr().out


def test_a_class_without_defects_has_no_figure(checkpoint: Path, tmp_path: Path) -> None:
    root = tiny_dataset(tmp_path / "holes", images=1, groups=("B",))  # one image, and on it no bar
    main(["--data", str(root), "--model", str(checkpoint)])
    text = (tmp_path / "last.pdckpt.evaluation" / "evaluate.json").read_text()
    assert json.loads(text)["results"]["ap33"]["bar"] is None and "NaN" not in text


def test_a_model_of_another_dataset_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    three = tiny_dataset(tmp_path / "three", classes=("hole", "bar", "post"))
    with pytest.raises(ToolError, match="made for the classes hole, bar; the dataset has hole, bar, post"):
        main(["--data", str(three), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
    colour = tiny_dataset(tmp_path / "colour", channels=3)
    with pytest.raises(ToolError, match="made for 1 channels, the dataset's input has 3"):
        main(["--data", str(colour), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
