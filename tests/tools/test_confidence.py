"""Temperature, thresholds and the recipe that comes of them: by hand, on seeded chance, and through a network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from edge import recipe as recipes
from edge.recipe import DetectRecipe, GateRecipe, Recipe
from edge.records import Detections
from tests.tools.seeing import SeeingPredictor
from tests.tools.tiny import tiny_dataset
from tools.checkpoint import copy_state, read_checkpoint, write_checkpoint
from tools.confidence import (
    calibrate,
    halves,
    main,
    parts_of,
    rates_of,
    recipe_of,
    recipe_text,
    rescaled,
    verdict_on,
)
from tools.dataset import Dataset, read_dataset
from tools.errors import DataError, ToolError
from tools.evaluate import Evidence, gather
from tools.journal import Journal
from tools.network import Detector, NetworkConfig
from tools.runtimes import load_network
from tools.temperature import (
    calibrated,
    fit_temperature,
    fit_temperatures,
    fold_temperature,
    logit,
    reliability,
    rescale,
    uncalibrated,
)
from tools.thresholds import Parts, Wanted, caught, choose, class_thresholds, collect


def chance(temperature: float, n: int = 20000, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are too sure by a temperature, and whether each box is right."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, n)
    return 1 / (1 + np.exp(-z * temperature)), rng.random(n) < 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    confidence, correct = chance(temperature)
    assert fit_temperature(confidence, correct) == pytest.approx(temperature, rel=0.05)
    after = reliability(calibrated(confidence, fit_temperature(confidence, correct)), correct).error
    assert after < 0.015 and (temperature == 1.0 or after < reliability(confidence, correct).error / 3)


def test_a_class_of_its_own_temperature_needs_boxes_of_both_sorts() -> None:
    (sure, right), (modest, also_right) = chance(3.0), chance(0.5, seed=2)
    confidence = np.concatenate([sure, modest, sure[:50]])
    correct = np.concatenate([right, also_right, np.ones(50, bool)])
    class_id = np.repeat([0, 1, 2], [len(sure), len(modest), 50])
    own = fit_temperatures(confidence, correct, class_id, 3, per_class=True)
    common = fit_temperature(confidence, correct)
    assert own == pytest.approx([3.0, 0.5, common], rel=0.06)
    assert fit_temperatures(confidence, correct, class_id, 3, per_class=False).tolist() == [common] * 3


def test_without_boxes_nothing_is_scaled() -> None:
    assert fit_temperature(np.empty(0), np.empty(0, bool)) == 1.0
    assert reliability(np.empty(0), np.empty(0, bool)).error == 0.0


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.05, 0.15, 0.95, 0.95, 1.0])
    r = reliability(confidence, np.array([False, True, True, True, False]), bins=2)
    assert r.count.tolist() == [2, 3] and r.confidence == pytest.approx([0.1, 2.9 / 3])
    assert r.error == pytest.approx((2 * abs(0.1 - 0.5) + 3 * abs(2.9 / 3 - 2 / 3)) / 5)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_thresholds_map_back(temperature: float) -> None:
    p = np.array([0.01, 0.3, 0.97])
    assert uncalibrated(calibrated(p, temperature), temperature) == pytest.approx(p)
    assert logit(calibrated(p, temperature)) == pytest.approx(logit(p) / temperature)


SMALL = NetworkConfig(classes=2, stem=8, width8=8, width16=8, width32=8, depth8=1, depth16=1, depth32=1, neck=8)


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return read_dataset(tiny_dataset(tmp_path / "data", images=8, templates=True))


@pytest.fixture
def checkpoint(tiny: Dataset, tmp_path: Path) -> Path:
    paddle.seed(3)
    network = Detector(SMALL)
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), tiny, epoch=4)
    return tmp_path / "last.pdckpt"


@pytest.mark.parametrize("weights", ["average", "network"])
def test_folding_divides_the_logits_and_nothing_else(checkpoint: Path, tmp_path: Path, weights: str) -> None:
    out = tmp_path / "folded" / "calibrated.pdckpt"
    fold_temperature(checkpoint, out, np.array([2.0, 0.5]))
    image = paddle.rand([1, 1, 64, 96])
    with paddle.no_grad():
        cls, reg = load_network(checkpoint, weights)(image)
        folded_cls, folded_reg = load_network(out, weights)(image)
    np.testing.assert_allclose(folded_cls[:, 0].numpy(), cls[:, 0].numpy() / 2.0, rtol=1e-5)
    np.testing.assert_allclose(folded_cls[:, 1].numpy(), cls[:, 1].numpy() / 0.5, rtol=1e-5)
    np.testing.assert_array_equal(folded_reg.numpy(), reg.numpy())
    assert read_checkpoint(out).state["epoch"] == 4


def test_folding_twice_multiplies(checkpoint: Path, tmp_path: Path) -> None:
    fold_temperature(checkpoint, tmp_path / "once.pdckpt", 2.0)
    fold_temperature(tmp_path / "once.pdckpt", tmp_path / "twice.pdckpt", 3.0)
    state = read_checkpoint(tmp_path / "twice.pdckpt").state
    assert state["temperature"] == [6.0, 6.0]
    bias = read_checkpoint(checkpoint).state["average"]["cls.bias"]
    np.testing.assert_allclose(state["average"]["cls.bias"], bias / 6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_an_impossible_temperature_is_refused(checkpoint: Path, tmp_path: Path, temperature: float) -> None:
    with pytest.raises(ToolError, match="expected numbers over 0"):
        fold_temperature(checkpoint, tmp_path / "x.pdckpt", temperature)


def parts(bad: Any, good: Any, kinds: Any = None, kind: Any = None) -> Parts:
    """Parts with one kind of defect each: the class of its surest box, unless `kinds` and `kind` say more."""
    bad = np.array(bad, float)
    kinds = bad if kinds is None else np.array(kinds, float)
    kind = kinds.argmax(axis=1) if kind is None else np.array(kind)
    return Parts(bad, np.array(good, float), kinds, kind)


def test_clean_sides_are_parted_in_the_middle() -> None:
    choice = choose(parts([[0.9], [0.8]], [[0.6], [0.1]]), Wanted(0.0, 0.0, 0.0))
    assert choice.threshold[0] == pytest.approx(0.7101, abs=1e-3)  # the middle of 0.6 and 0.8 by logits
    assert all(choice.within.values()) and not choice.zone


def test_overkill_is_spent_where_it_catches_most() -> None:
    bad = [[0.9, 0], [0.6, 0], [0.6, 0], [0, 0.9], [0, 0.6]]
    good = [[0.7, 0], [0, 0.7], [0, 0], [0, 0]]
    assert class_thresholds(parts(bad, good), 0.0) == pytest.approx([0.82, 0.82], abs=0.01)
    first = class_thresholds(parts(bad, good), 0.25)
    assert first[0] < 0.6 and first[1] > 0.7  # one of four may be flagged: class 0 catches two for it
    assert (class_thresholds(parts(bad, good), 0.5) < 0.6).all()


def test_a_step_over_several_good_parts_is_found() -> None:
    # The first good part catches nothing; only flagging both catches the defect at 0.6.
    bad, good = [[0.95], [0.6]], [[0.9], [0.8], [0.1], [0.1]]
    assert caught(parts(bad, good).bad, class_thresholds(parts(bad, good), 0.5)).all()
    assert class_thresholds(parts(bad, good), 0.25)[0] > 0.9  # one alone is not wasted


def test_a_box_more_likely_wrong_than_right_is_no_ground_to_reject() -> None:
    choice = choose(parts([[0.9], [0.3]], [[0.0], [0.0]]), Wanted(0.0, 0.1, 0.5))
    assert choice.threshold[0] >= 0.5 and 0.02 < choice.review <= 0.3 and choice.zone
    assert choice.within == {"escape": True, "escape_by_kind": True, "overkill": True, "review": True}


def test_review_goes_no_lower_than_a_person_can_bear() -> None:
    good = [[0.4], [0.35], [0.0], [0.0]]
    choice = choose(parts([[0.9], [0.3]], good), Wanted(0.0, 0.0, 0.25))
    assert 0.35 < choice.review <= 0.4
    assert choice.within == {"escape": False, "escape_by_kind": False, "overkill": True, "review": True}


def test_what_no_box_shows_cannot_be_caught() -> None:
    choice = choose(parts([[0.9], [0.0]], [[0.0]]), Wanted(0.0, 0.0, 1.0))
    assert not choice.within["escape"] and choice.review == 0.02


def test_a_defect_hides_behind_another_only_when_counted_by_part() -> None:
    # Both parts have class 0, which is plain to see, and class 1, which is not.
    both = parts([[0.9, 0.3], [0.9, 0.0]], [[0, 0]], [[0.9, 0], [0, 0.3], [0.9, 0], [0, 0]], [0, 1, 0, 1])
    choice = choose(both, Wanted(0.0, 0.0, 1.0))
    assert choice.within["escape"] and not choice.within["escape_by_kind"]


@pytest.mark.parametrize("seed", range(20))
def test_limits_hold_whatever_the_scores(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes, n = int(rng.integers(1, 4)), int(rng.integers(1, 60))
    bad = rng.beta(1, 1, (40, classes)).round(2)
    good = (rng.beta(0.5, 2, (n, classes)) * (rng.random((n, classes)) < 0.4)).round(2)
    wanted = Wanted(0.05, float(rng.choice([0, 0.02, 0.1, 0.3])), float(rng.choice([0, 0.1, 0.5])))
    of = parts(bad, good)
    choice = choose(of, wanted)
    flagged = caught(of.good, choice.threshold)
    person = caught(of.good, np.minimum(choice.threshold, choice.review)) & ~flagged
    assert flagged.mean() <= wanted.overkill + 1e-9 and person.mean() <= wanted.review + 1e-9
    assert 0.02 <= choice.review <= choice.threshold.max() < 1
    looser = choose(of, Wanted(0.05, min(1.0, wanted.overkill + 0.2), wanted.review))
    assert caught(of.kinds, looser.threshold).sum() >= caught(of.kinds, choice.threshold).sum()


def boxes(*rows: tuple[list[float], float, int]) -> Detections:
    return Detections(
        np.array([r[0] for r in rows], np.float32).reshape(-1, 4),
        np.array([r[1] for r in rows], np.float32),
        np.array([r[2] for r in rows], np.int64),
    )


A, B, FAR = [0, 0, 20, 20], [40, 0, 60, 20], [0, 60, 20, 80]


def test_collect_takes_what_lies_on_each_kind() -> None:
    found = [boxes((A, 0.9, 1), (A, 0.4, 0), (FAR, 0.8, 0), (B, 0.7, 1)), boxes((A, 0.9, 0))]
    truth = [(np.array([A, B], np.float32), np.array([0, 1])), (np.zeros((0, 4), np.float32), np.zeros(0, int))]
    of = collect(found, truth, [boxes((A, 0.2, 1))], 2)
    assert of.bad == pytest.approx(np.array([[0.8, 0.9]])) and not of.imitated  # the second image has no defect
    assert of.kind.tolist() == [0, 1] and of.kinds == pytest.approx(np.array([[0.4, 0.9], [0, 0.7]]))
    assert of.good == pytest.approx(np.array([[0, 0.2]]))


def test_bad_parts_stand_in_for_good_ones() -> None:
    found, truth = [boxes((A, 0.9, 0), (FAR, 0.3, 1))], [(np.array([A], np.float32), np.array([0]))]
    of = collect(found, truth, [], 2)
    assert of.imitated and of.good == pytest.approx(np.array([[0, 0.3]]))


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        pytest.param(["a"] * 6 + ["b"] * 4 + ["c"] * 3, {6, 7}, id="whole groups"),
        pytest.param(["a"] * 7, {3, 4}, id="one group: every other image"),
        pytest.param(["a"] * 9 + ["b"], {1, 9}, id="two groups, however unlike"),
    ],
)
def test_halves_share_no_group(groups: list[str], sizes: set[int]) -> None:
    first = halves(groups)
    assert {int(first.sum()), int((~first).sum())} == sizes
    mine = {group for group, side in zip(groups, first, strict=True) if side}
    others = {group for group, side in zip(groups, first, strict=True) if not side}
    assert len(set(groups)) == 1 or not mine & others


def seen_by(data: Dataset, out: Path, logits: list[float]) -> Evidence:
    predictor = SeeingPredictor(data.spec, logits=logits)
    base = Recipe(detect=DetectRecipe(nms_iou=0.35))
    return gather(data, data.part("validation"), predictor, base, Journal(out / "x.journal", {"logits": logits}))


def test_both_ways_of_applying_a_temperature_decide_alike(tiny: Dataset, tmp_path: Path) -> None:
    evidence = seen_by(tiny, tmp_path, [0.4, -0.2, 0.1, -0.6, 0.8])
    scaled = rescaled(evidence, np.array([0.3, 0.3]))
    of = parts_of(scaled)
    choice = choose(of, Wanted(0.0, 0.0, 0.5))
    folded = recipe_of(choice, Recipe(), tiny.classes, 1.0)
    mapped = recipe_of(choice, Recipe(), tiny.classes, 0.3)
    assert folded.detect.class_threshold != mapped.detect.class_threshold
    assert rates_of(scaled, folded, of, choice) == rates_of(evidence, mapped, of, choice)
    assert choice.within["escape"] and rates_of(scaled, folded, of, choice)["escape"].count == 0


def test_timid_boxes_that_are_all_correct_become_sure(tiny: Dataset, tmp_path: Path) -> None:
    calibration = calibrate(seen_by(tiny, tmp_path, [0.5, 0.7, 0.9]), per_class=False)
    errors = calibration.errors()
    assert calibration.temperature.tolist() == pytest.approx([0.1, 0.1], rel=1e-3)  # as far as it may go
    assert errors["after"] < errors["before"] / 10 and errors["unseen"] < errors["before"] / 10
    assert calibration.errors(0.65)["before"] < errors["before"]


def test_rescaled_boxes_keep_their_order() -> None:
    found = boxes((A, 0.9, 0), (B, 0.6, 0), (FAR, 0.2, 0))
    assert (np.diff(rescale(found, np.array([3.0])).confidence) < 0).all()


BASE = """name = "demo"

[gate]
# measured on Monday
sharpness_min = 12.5

[detect]
threshold = 0.4
nms_iou = 0.45
"""


def some_table(classes: list[str]) -> dict[str, Any]:
    return {name: {"escape": {"count": 1, "of": 9}, "overkill": {"count": 0, "of": 7}} for name in classes}


def test_the_recipe_keeps_gate_and_suppression_and_says_its_rates(tmp_path: Path) -> None:
    classes = ["pin-hole", 'a "b" \\']
    (tmp_path / "base.toml").write_text(BASE)
    base = recipes.load(tmp_path / "base.toml")
    choice = choose(parts([[0.9, 0], [0, 0.9]], [[0.6, 0], [0, 0]]), Wanted(0.01, 0.0, 0.1))
    recipe = recipe_of(choice, base, classes, 1.0)
    text = recipe_text(recipe, tmp_path / "base.toml", ["Wanted: escape 1 %.", "long " * 60], some_table(classes))
    assert "# measured on Monday\nsharpness_min = 12.5" in text and "# Wanted: escape 1 %." in text
    assert "# escape 1 of 9, overkill 0 of 7" in text and max(map(len, text.splitlines())) <= 120
    (tmp_path / "recipe.toml").write_text(text)
    read = recipes.load(tmp_path / "recipe.toml", classes)
    assert read == recipe and read.detect.nms_iou == 0.45 and read.name == "demo"


def test_the_recipe_without_a_base_has_a_gate_all_the_same() -> None:
    recipe = Recipe(name="x", gate=GateRecipe(brightness_min=3.0), detect=DetectRecipe(class_threshold={"a": 0.5}))
    assert "brightness_min = 3.0" in recipe_text(recipe, None, [], some_table(["a"]))


def test_it_is_said_plainly_when_the_rates_cannot_be_met() -> None:
    of = parts([[0.9], [0.0]], [[0.0]])
    wanted = Wanted(0.01, 0.02, 0.1)
    choice = choose(of, wanted)
    recipe = recipe_of(choice, Recipe(), ["a"], 1.0)
    seen = Evidence([], [], [], [], ("a",))
    rates = {**rates_of(seen, recipe, Parts(of.bad, of.good, of.kinds, of.kind, True), choice)}
    said = " ".join(verdict_on(choice, rates, wanted, of))
    assert "cannot all be met here. Met instead" in said and "1 of these have no box over 0.02" in said
    good = parts([[0.9], [0.95]], [[0.0]])
    assert "All are met on these parts" in verdict_on(choose(good, wanted), rates, wanted, good)[1]


def test_the_step_folds_a_checkpoint(tiny: Dataset, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    main(["--data", str(tiny.root), "--model", str(checkpoint), "--out", str(out), "--escape", "0.1"])
    record = json.loads((out / "confidence.json").read_text())["results"]
    read = recipes.load(out / "recipe.toml", tiny.classes)
    assert read.name == "tiny" and record["applied"] == "fold"
    folded = read_checkpoint(out / "calibrated.pdckpt").state["temperature"]
    assert folded == pytest.approx(list(record["temperature"].values()), rel=1e-4)
    assert all((out / name).is_file() for name in ("reliability.png", "thresholds.png"))
    assert not math.isnan(record["calibration_error"]["unseen"])
    assert "Wanted: escape 10 %, overkill 2 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--apply", "recipe", "--per-class"], "one review threshold for all"),
        (["--model", "x.nb", "--apply", "fold"], r"only a checkpoint \(.pdckpt\)"),
    ],
)
def test_what_cannot_be_applied_is_refused(
    checkpoint: Path, tiny: Dataset, tmp_path: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ToolError, match=message):
        main(["--data", str(tiny.root), "--model", str(checkpoint), "--out", str(tmp_path / "out"), *arguments])


def test_a_split_without_defects_is_nothing_to_choose_by(checkpoint: Path, tmp_path: Path) -> None:
    root = tiny_dataset(tmp_path / "clean", images=0, negatives=3)
    with pytest.raises(DataError, match="nothing to choose by"):
        main(["--data", str(root), "--model", str(checkpoint), "--out", str(tmp_path / "out")])


def test_the_recipe_keeps_what_the_judges_were_told(tmp_path: Path) -> None:
    base = tmp_path / "base.toml"
    base.write_text(
        'name = "x"\n[gate]\n# dark parts\nsharpness_min = 5.0\n[gate.classifier_limit]\nmotion = 0.9\n'
        '[anomaly]\nreview = 4.5\n[drift]\nbaseline = "line"\n[detect]\nthreshold = 0.5\n'
    )
    text = recipe_text(recipes.load(base), base, [], {})
    (tmp_path / "out.toml").write_text(text)
    assert recipes.load(tmp_path / "out.toml") == recipes.load(base)
    assert "# dark parts" in text and "[gate.classifier_limit]\nmotion = 0.9" in text
