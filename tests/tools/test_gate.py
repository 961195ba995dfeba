"""The gate's classifier: what a fault costs, labels by it, and the whole step on tiny products."""

import json

import cv2
import numpy as np
import pytest

from edge.gate import Measures
from edge.gate_classifier import MAP, OUTPUTS, SIDE, GateClassifierSettings, mosaic, read_settings
from edge.recipe import CLASSIFIED
from tests.tools.tiny import tiny_dataset
from tools import gate, gate_data, gate_limits, gate_products
from tools.errors import DataError, ToolError
from tools.gate_data import Example, pack, training_example, trial_plan, turned, unpack
from tools.gate_faults import LADDERS, MOST, conditions, spoil
from tools.gate_figures import NAMED, Trial, auroc, calibrate, confusion, figures, judge_all, roc
from tools.gate_limits import Limits, by_specks, climb, contrasts, limits_of, plant
from tools.gate_products import (
    Product,
    another_look,
    another_size,
    draw_leaves,
    drawn_products,
    open_product,
    open_products,
)
from tools.lens import put_in_the_way, soil
from tools.physical import Conditions, photograph

LIMITS = {cause: Limits(LADDERS[cause][1], LADDERS[cause][3], ((1.0, 0.0),)) for cause in CLASSIFIED}


def leaves(n=3, side=160):
    images = [draw_leaves(np.random.default_rng(i), side) for i in range(n)]
    return Product("leaves", tuple(f"g{i % 4}" for i in range(n)), lambda i: images[i])


# --- Faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_stands_in_the_way_hides_its_share(share, channels):
    hidden = []
    for seed in range(12):
        light = np.zeros((120, 160, 3) if channels == 3 else (120, 160), np.float32)
        put_in_the_way(light, share, np.random.default_rng(seed))
        hidden.append(float((light.reshape(120, 160, -1).max(axis=2) > 0.006).mean()))
    assert np.mean(hidden) == pytest.approx(share, abs=0.05)


def test_dirt_takes_light_and_contrast_the_more_the_worse_it_is():
    scene = draw_leaves(np.random.default_rng(1), 200).astype(np.float32) / 255
    kept = [
        np.mean([soil(scene.copy(), severity, np.random.default_rng(seed)).std() for seed in range(8)])
        for severity in (0.1, 0.4, 0.7, 1.0)
    ]
    assert scene.std() > kept[0] > kept[1] > kept[2] > kept[3]


@pytest.mark.parametrize("cause", CLASSIFIED)
def test_every_fault_grows_with_its_level_and_keeps_the_shape(cause):
    image = draw_leaves(np.random.default_rng(2), 128)
    good = spoil(image, cause, 0.0, np.random.default_rng(0)).astype(int)
    changes = []
    for level in (LADDERS[cause][0], LADDERS[cause][-1]):
        spoilt = spoil(image, cause, level, np.random.default_rng(0))
        assert spoilt.shape == image.shape and spoilt.dtype == np.uint8
        changes.append(np.abs(spoilt - good).mean())
    assert changes[0] < changes[1]
    assert LADDERS[cause] == tuple(sorted(LADDERS[cause])) and LADDERS[cause][-1] <= MOST[cause]


def test_a_cause_that_the_gate_does_not_name_is_refused():
    with pytest.raises(ToolError, match="'smoke'"):
        conditions("smoke", 1.0, np.random.default_rng(0))


def test_new_conditions_change_nothing_where_they_are_not_used():
    image = draw_leaves(np.random.default_rng(3), 96)
    assert np.array_equal(photograph(image, Conditions(), np.random.default_rng(0)), image)


# --- Limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "harmless", "harmful", "why"),
    [
        ((0.0, 0.0, 0.2), 2.3, 3.0, "between two levels"),
        ((0.0, 0.0, 0.0), 9.0, 9.0, "nothing is lost: the most there is"),
        ((0.2, 0.3, 0.4), 0.15, 0.5, "the mildest level costs too much"),
        ((0.04, 0.0, 0.2), 0.75, 2.75, "a loss that falls again is chance"),
    ],
)
def test_limits(lost, harmless, harmful, why):
    found = limits_of((1.0, 2.0, 4.0), lost, 9.0)
    assert (found.harmless, found.harmful) == (pytest.approx(harmless), pytest.approx(harmful)), why


def test_the_ladder_is_climbed_only_as_far_as_it_must():
    asked = []

    def find(i, cause, level):
        asked.append((cause, level))
        return round(100 * (1 - 0.02 * level)) if cause == "motion" else 100

    found = climb(find, 2, ("motion", "defocus"))
    assert found["motion"].harmful == pytest.approx(5.0) and found["motion"].harmless == pytest.approx(1.5)
    assert found["defocus"].harmful == MOST["defocus"]
    assert len(set(asked)) < len(LADDERS["motion"]) + len(LADDERS["defocus"]) - 4


def test_a_detector_that_finds_hardly_anything_cannot_tell():
    with pytest.raises(ToolError, match="only 2 defects are found on 2 frames"):
        climb(lambda i, cause, level: 1, 2, name="x")


def test_planted_specks_have_the_contrast_that_is_measured():
    image = np.full((200, 200), 100, np.uint8)
    planted, specks = plant(image, np.random.default_rng(0))
    assert np.abs(contrasts(planted, specks)).min() > 40 and np.abs(contrasts(image, specks)).max() == 0


def test_a_product_without_a_detector_gets_limits_by_specks(monkeypatch):
    monkeypatch.setattr(gate_limits, "PLANTED_FRAMES", 3)
    found = by_specks(leaves(3, 220), 1)
    assert set(found) == set(CLASSIFIED)
    assert all(0 <= x.harmless <= x.harmful for x in found.values())
    assert 1.5 < found["defocus"].harmful < 6 and 3 < found["motion"].harmful < 16
    assert found["occluded"].harmful == pytest.approx(0.1, abs=0.06), "what is hidden is lost"


# --- Products ---------------------------------------------------------------------------------------------------------


def test_products_are_dataset_folders_or_folders_of_photographs(tmp_path):
    data = open_product(tiny_dataset(tmp_path / "data", channels=3), [])
    assert data.name == "tiny" and len(data) == 8 and data.read(0).shape == (96, 96, 3) and data.bundle is None
    photographs = tmp_path / "module"
    photographs.mkdir()
    for i in range(20):
        cv2.imwrite(str(photographs / f"{i}.png"), np.full((1700, 30), i, np.uint8))
    product = open_product(photographs, [])
    assert (product.name, len(product)) == ("module", 20) and product.read(0).shape == (1600, 30, 3)


def test_other_folders_and_two_of_a_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="0 photographs; a product is"):
        open_product(tmp_path, [])
    data = tiny_dataset(tmp_path / "data")
    with pytest.raises(ToolError, match="two products are called 'tiny'"):
        open_products([data, data], [])


def test_drawn_products_are_the_same_for_the_same_seed():
    for one, other in zip(drawn_products(1, 4), drawn_products(1, 4), strict=True):
        assert np.array_equal(one.read(2), other.read(2)) and not np.array_equal(one.read(2), one.read(3))
        assert one.drawn


def test_looks_keep_the_shape_and_sizes_shrink():
    image = draw_leaves(np.random.default_rng(1), 96)
    looks = [another_look(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(look.shape[:2] == image.shape and look.dtype == np.uint8 for look in looks)
    assert any(look.ndim == 3 for look in looks), "coloured ones too"
    assert another_size(image, 0.5).shape == (48, 48) and another_size(image, 1.0) is image


# --- Examples ---------------------------------------------------------------------------------------------------------


def test_packing_loses_less_than_int8_does():
    tensor = mosaic(draw_leaves(np.random.default_rng(1), 200))
    assert np.abs(unpack(pack(tensor)[None]) - tensor).max() < 1.5 / 127 / 4


def test_labels_follow_the_limits(monkeypatch):
    seen = []
    real = gate_data.conditions

    def spy(cause, level, rng):
        seen.append((cause, level))
        return real(cause, level, rng)

    monkeypatch.setattr(gate_data, "conditions", spy)
    image, kinds = draw_leaves(np.random.default_rng(1), 120), set()
    for n in range(150):
        seen.clear()
        packed, label = training_example(image, LIMITS, np.random.default_rng(n))
        kinds.add(label)
        assert packed.shape == (SIDE, SIDE)
        for cause, level in seen:  # a frame that was made smaller stands a smaller blur
            low = 0.4 if cause in ("motion", "defocus") else 1.0
            if label == "ok":
                assert level <= LIMITS[cause].harmless
            else:
                assert label == cause and LIMITS[cause].harmful * low <= level <= MOST[cause]
    assert kinds == set(OUTPUTS)


def test_the_plan_of_tests_keeps_between_apart():
    plan = list(trial_plan(leaves(6), LIMITS, 3, np.random.default_rng(0)))
    assert sum(label == "ok" and not cause for _, label, cause, _ in plan) == 6, "each frame once as captured"
    for _, label, cause, level in plan:
        if cause and label == "ok":
            assert level <= LIMITS[cause].harmless
        elif label == "between":
            assert LIMITS[cause].harmless <= level <= LIMITS[cause].harmful
        elif cause:
            assert label == cause and level >= LIMITS[cause].harmful


def test_turned_mosaics_are_those_of_turned_frames():
    """Of a frame that is symmetric under the choice of its tiles: one tile."""
    image = draw_leaves(np.random.default_rng(1), 64)
    wanted = {
        mosaic(np.ascontiguousarray(t))[0, 0, MAP:].round(2).tobytes()
        for one in (image, image.T)
        for t in (one, one[::-1], one[:, ::-1], one[::-1, ::-1])
    }
    batch = np.repeat(mosaic(image), 40, axis=0)
    got = turned(batch, np.random.default_rng(0))
    assert {one[0, MAP:].round(2).tobytes() for one in got} == wanted
    spectra, sharp = got[:, 0, :MAP], batch[:, 0, :MAP]
    assert np.allclose(np.sort(spectra.reshape(40, -1)), np.sort(sharp.reshape(40, -1)))


# --- Figures ----------------------------------------------------------------------------------------------------------


def drawn_trial(n=200):
    """Good frames of which one in a hundred looks defocused, and defocused ones of which some look good."""
    rng = np.random.default_rng(0)
    examples, probabilities = [], []
    for k in range(n):
        for label, mean in (("ok", -4.0), ("defocus", 4.0)):
            p = 1 / (1 + np.exp(-rng.normal(mean, 1.0)))
            sharpness = 500.0 if label == "ok" else 100.0
            cause = "" if label == "ok" else label
            examples.append(Example(label, cause, 3.0, k, Measures(sharpness, 120.0, 0.0), bool(cause)))
            probabilities.append({**dict.fromkeys(OUTPUTS, 0.0), "ok": 1 - p, "defocus": p})
    return Trial(examples, probabilities, np.arange(2 * n) % 4 < 2)


def test_figures_count_what_the_gate_does():
    settings = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, 0.5))
    t = drawn_trial()
    result = figures(t, settings, 0.005)
    ranked = result["auroc_blur"]
    assert ranked["gate"] > 0.999 and ranked["classifier_alone"] > 0.999 and ranked["sharpness_alone"] == 1.0
    assert result["good_refused"]["as_captured"] == {
        "share": 0.0, "count": 0, "of": 100, "wilson95": result["good_refused"]["as_captured"]["wilson95"]
    }  # fmt: skip
    assert result["bad_refused"]["defocus"]["share"] == 1.0 and result["n_calibrating"] == 100
    table = confusion(t.labels, judge_all(t, calibrate(t, settings, 0.005)))
    assert table[OUTPUTS.index("ok")][NAMED.index("passed")] == 200
    assert table[OUTPUTS.index("defocus")][NAMED.index("defocus")] >= 198
    assert sum(map(sum, table)) == 400


def test_auroc_is_the_chance_of_the_right_order():
    rng = np.random.default_rng(1)
    bad, good = rng.integers(0, 10, 60).astype(float), rng.integers(0, 8, 50).astype(float)
    pairs = np.mean([(b > g) + 0.5 * (b == g) for b in bad for g in good])
    assert auroc(bad, good) == pytest.approx(float(pairs))
    x, y = roc(bad, good)
    assert np.trapz(y, x) == pytest.approx(auroc(bad, good))


def test_groups_that_calibrate_are_not_those_that_are_tested():
    product = leaves(8)
    examples = [Example("ok", "", 0.0, i, Measures(1, 1, 0)) for i in range(8)]
    which = gate.calibrating(product, examples)
    assert {product.groups[i] for i in range(8) if which[i]}.isdisjoint(
        product.groups[i] for i in range(8) if not which[i]
    )
    assert which.sum() == 4


# --- The step ---------------------------------------------------------------------------------------------------------


def photographs(folder, name, seed, n=20):
    (folder / name).mkdir()
    for i in range(n):
        cv2.imwrite(str(folder / name / f"{i}.png"), draw_leaves(np.random.default_rng([seed, i]), 160))
    return folder / name


def test_the_step_writes_what_a_bundle_takes_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gate_limits, "PLANTED_FRAMES", 3)
    monkeypatch.setattr(gate_products, "DRAWN_SIDE", 200)
    monkeypatch.setattr(gate, "CALIBRATION", 16)
    one, other = photographs(tmp_path, "one", 1), photographs(tmp_path, "other", 2)
    out = tmp_path / "out"
    command = ["--data", str(one), "--data", str(other), "--examples", "40", "--drawn-examples", "12", "--epochs", "1",
               "--test-frames", "3", "--out", str(out)]  # fmt: skip
    gate.main(command)
    for name in ("gate.x86_64.int8.nb", "gate.armv8.int8.nb"):
        assert 10_000 < (out / name).stat().st_size < 150_000
    settings = read_settings((out / "gate.json").read_bytes(), "gate.json")
    assert settings.outputs == OUTPUTS
    record = json.loads((out / gate.RECORD).read_text())["results"]
    assert set(record["left_out"]) == {"one", "other"}
    assert record["left_out"]["one"]["good_refused"]["as_captured"]["of"] == 10
    assert record["shipped"]["forms"]["gate.onnx"]["largest_difference"] < 2e-3
    assert record["shipped"]["forms"]["gate.x86_64.int8.nb"]["median_ms"] < 50
    assert {p.name for p in out.glob("*.png")} == {
        "gate_roc.png", "gate_confusion.png", "gate_limits.png", "gate_training.png"
    }  # fmt: skip
    monkeypatch.setattr(gate, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(gate, "training_set", lambda *a, **k: pytest.fail("made again"))
    gate.main(command)
    again = json.loads((out / gate.RECORD).read_text())["results"]
    assert again["left_out"] == record["left_out"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--data", "x"], "at least two are needed"),
        (["--data", "x", "--data", "y", "--refuse", "0.6"], "expected a share"),
        (["--data", "x", "--data", "y", "--kin", "a"], "expected A=B"),
        (["--data", "x", "--data", "y", "--epochs", "0"], "--epochs 0"),
    ],
)
def test_senseless_arguments_are_refused(arguments, problem, tmp_path):
    with pytest.raises(ToolError, match=problem):
        gate.main([*arguments, "--out", str(tmp_path)])
