"""The classifier reads what it should of any frame, names causes, and never passes what the cheap measures refused."""

import json
import math

import cv2
import numpy as np
import pytest

from edge.errors import BundleError, PredictorError
from edge.gate import check, undecided
from edge.gate_classifier import (
    CLIP,
    MAP,
    OUTPUTS,
    SHAPE,
    TILE,
    GateClassifier,
    GateClassifierSettings,
    fit_limits,
    mosaic,
    places,
    read_settings,
)
from edge.recipe import CLASSIFIED, GateRecipe
from edge.records import Cause, GateResult

SETTINGS = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, 0.5))
ALWAYS = GateRecipe(classifier="always")
CHEAP = GateResult(True, None, sharpness=150.0, brightness=120.0, saturated=0.01)
BLURRED = GateResult(False, Cause.BLUR, 20.0, 120.0, 0.0, measured=20.0, limit=100.0, advice="sharpen")


class Scripted:
    """A predictor that answers with these numbers and keeps what it was asked."""

    def __init__(self, **logits: float) -> None:
        self.answer = [np.array([[logits.get(name, -5.0) for name in OUTPUTS]], np.float32)]
        self.asked: list[np.ndarray] = []

    def run(self, tensor):
        self.asked.append(tensor.copy())
        return self.answer


def textured(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 640), (640, 1), (63, 65), (64, 64), (7, 7, 3), (640, 640), (460, 1130, 3), (31, 2000)]
)
def test_any_frame_becomes_a_mosaic(shape):
    for image in (np.zeros(shape, np.uint8), np.full(shape, 255, np.uint8), textured(*shape[:2])):
        tensor = mosaic(image)
        assert tensor.shape == SHAPE and tensor.dtype == np.float32
        assert np.isfinite(tensor).all() and np.abs(tensor).max() <= CLIP


def test_contrast_of_the_product_does_not_reach_the_spectra_and_its_light_does_the_thumbnail():
    image = textured(256, 256)
    bright, pale = mosaic(image)[0, 0], mosaic((image // 2 + 100).astype(np.uint8))[0, 0]
    assert np.abs(bright[:MAP] - pale[:MAP]).mean() < 0.05
    assert pale[MAP:, :MAP].mean() > bright[MAP:, :MAP].mean() + 0.2


def test_spectra_are_those_of_the_tiles():
    """A wave of four pixels: all its power lies a quarter of the sampling rate from the middle, on both sides."""
    x = np.arange(300)
    wave = np.rint(128 + 100 * np.cos(2 * np.pi * x / 4)).astype(np.uint8)
    lying = mosaic(np.tile(wave, (300, 1)))[0, 0]
    standing = mosaic(np.tile(wave[:, None], (1, 300)))[0, 0]
    for left in (0, MAP):  # the mean and the highest
        row = lying[:MAP, left : left + MAP]
        assert set(np.argwhere(row == row.max())[:, 1]) <= {7, 8, 23, 24}
        assert set(np.argwhere(row == row.max())[:, 0]) <= {15, 16}
        column = standing[:MAP, left : left + MAP]
        assert set(np.argwhere(column == column.max())[:, 0]) <= {7, 8, 23, 24}


def test_a_blur_takes_the_high_frequencies_and_motion_those_along_it():
    image = np.asarray(cv2.GaussianBlur(textured(300, 300), (0, 0), 0.7), np.uint8)
    sharp = mosaic(image)[0, 0, :MAP, :MAP]
    soft = mosaic(np.asarray(cv2.GaussianBlur(image, (0, 0), 2), np.uint8))[0, 0, :MAP, :MAP]
    moved = mosaic(np.asarray(cv2.blur(image, (9, 1)), np.uint8))[0, 0, :MAP, :MAP]
    assert soft[2].mean() < sharp[2].mean() - 0.5 and soft[:, 2].mean() < sharp[:, 2].mean() - 0.5
    assert moved[:, 3].mean() < sharp[:, 3].mean() - 0.3, "frequencies across"
    assert moved[3, 15:17].mean() > sharp[3, 15:17].mean() - 0.3, "frequencies down stay"


def test_a_cover_shows_in_the_map_of_steps():
    image = textured(400, 400)
    covered = image.copy()
    covered[:200] = 90
    steps = mosaic(covered)[0, 0, MAP:, MAP:]
    assert steps[:14].max() < steps[18:].min()


def test_every_twelfth_gives_its_most_structured_place_and_a_blur_does_not_move_it():
    image = np.full((480, 640), 128, np.uint8)
    marks = [(80 + 160 * i, 80 + 160 * j) for i in range(3) for j in range(4)]
    for y, x in marks:
        image[y - 20 : y + 20, x - 20 : x + 20] = textured(40, 40, y + x)
    found = places(image)
    for (y, x), (top, left) in zip(marks, found, strict=True):
        assert top <= y - 20 and y + 20 <= top + TILE and left <= x - 20 and x + 20 <= left + TILE
    blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), 2), np.uint8)
    assert all(abs(a - c) <= 16 and abs(b - d) <= 16 for (a, b), (c, d) in zip(found, places(blurred), strict=True))


@pytest.mark.parametrize(("height", "width"), [(64, 640), (640, 64), (460, 1130), (64, 64), (77, 91)])
def test_places_lie_inside(height, width):
    assert all(0 <= y <= height - TILE and 0 <= x <= width - TILE for y, x in places(textured(height, width)))


def test_the_region_of_interest_is_all_that_it_sees():
    image = textured(400, 400)
    changed = image.copy()
    changed[:, :100] = 0
    roi = (0.25, 0.0, 0.75, 1.0)
    assert np.array_equal(mosaic(image, roi), mosaic(changed, roi))
    assert not np.array_equal(mosaic(image), mosaic(changed))


@pytest.mark.parametrize("cause", CLASSIFIED)
def test_it_names_each_cause_with_advice(cause):
    result = GateClassifier(Scripted(**{cause: 3.0, "ok": 0.0}), SETTINGS, ALWAYS).judge(textured(90, 90), CHEAP)
    assert (result.passed, result.cause) == (False, Cause(cause))
    assert result.measured == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6) and result.limit == 0.5 and result.advice
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert (result.sharpness, result.brightness) == (150.0, 120.0), "what the cheap part measured stays"


def test_a_frame_less_sharp_than_usual_is_the_more_probably_blurred():
    predictor = Scripted(defocus=-1.0, ok=0.0)
    line = {"classifier": "always", "usual_sharpness": 400.0, "sharpness_spread": 0.5}
    for usual, passed in ((CHEAP.sharpness, True), (400.0, False), (1.0, True)):
        recipe = GateRecipe(**{**line, "usual_sharpness": usual})
        assert GateClassifier(predictor, SETTINGS, recipe).judge(textured(90, 90), CHEAP).passed is passed
    other = Scripted(dirty_lens=-1.0, ok=0.0)
    assert GateClassifier(other, SETTINGS, GateRecipe(**line)).judge(textured(90, 90), CHEAP).passed, "blur alone"


def test_a_good_frame_passes_with_its_probabilities():
    result = GateClassifier(Scripted(ok=3.0), SETTINGS, ALWAYS).judge(textured(90, 90), CHEAP)
    assert result.passed and result.probabilities["ok"] > 0.9


def test_the_recipes_limit_goes_before_the_bundles():
    recipe = GateRecipe(classifier="always", classifier_limit={"defocus": 0.99})
    predictor = Scripted(defocus=3.0, ok=0.0)
    assert GateClassifier(predictor, SETTINGS, recipe).judge(textured(90, 90), CHEAP).passed


@pytest.mark.parametrize(
    ("logits", "cause", "why"),
    [
        ({"motion": 4.0, "ok": 0.0}, Cause.MOTION, "the kind of blur"),
        ({"defocus": 0.1, "ok": 0.0, "motion": 0.05}, Cause.DEFOCUS, "the more probable kind"),
        ({"dirty_lens": 4.0, "ok": 0.0}, Cause.DIRTY_LENS, "another cause of low sharpness"),
        ({"ok": 6.0}, Cause.BLUR, "a frame that looks good stays refused, and a blur"),
    ],
)
def test_what_was_refused_for_its_sharpness_stays_refused_and_is_named(logits, cause, why):
    result = GateClassifier(Scripted(**logits), SETTINGS, ALWAYS).judge(textured(90, 90), BLURRED)
    assert (result.passed, result.cause) == (False, cause), why
    assert (result.measured, result.limit) == (20.0, 100.0), "it was the sharpness that refused it"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_error_and_no_pass(bad):
    with pytest.raises(PredictorError, match="not finite"):
        GateClassifier(Scripted(ok=bad), SETTINGS, ALWAYS).judge(textured(90, 90), CHEAP)


def test_another_number_of_outputs_is_an_error():
    predictor = Scripted()
    predictor.answer = [np.zeros((1, 3), np.float32)]
    with pytest.raises(PredictorError, match="expected 7 numbers"):
        GateClassifier(predictor, SETTINGS, ALWAYS).judge(textured(90, 90), CHEAP)


SURE = {"sure_sharpness": 300.0, "sure_brightness_min": 80.0, "sure_brightness_max": 160.0, "sure_saturated": 0.02}


@pytest.mark.parametrize(
    ("recipe", "cheap", "looks", "why"),
    [
        (GateRecipe(), CHEAP, True, "never calibrated: no frame is sure"),
        (GateRecipe(**SURE), CHEAP, True, "less sharp than sure"),
        (GateRecipe(**{**SURE, "sure_sharpness": 100.0}), CHEAP, False, "within all limits"),
        (GateRecipe(**{**SURE, "sure_sharpness": 100.0, "sure_brightness_min": 130.0}), CHEAP, True, "rather dark"),
        (GateRecipe(**{**SURE, "sure_sharpness": 100.0, "sure_saturated": 0.0}), CHEAP, True, "rather bright spots"),
        (GateRecipe(classifier="always", **{**SURE, "sure_sharpness": 100.0}), CHEAP, True, "always is always"),
        (GateRecipe(classifier="never"), CHEAP, False, "never is never"),
        (GateRecipe(classifier="never"), BLURRED, False, "never, not even to name a blur"),
        (GateRecipe(**SURE), BLURRED, True, "a blur is to be named"),
        (ALWAYS, GateResult(False, Cause.UNDEREXPOSED, 5.0, 3.0, 0.0), False, "exposure is known as well without it"),
    ],
)
def test_when_it_looks(recipe, cheap, looks, why):
    predictor = Scripted(ok=9.0)
    result = GateClassifier(predictor, SETTINGS, recipe).judge(textured(90, 90), cheap)
    assert (len(predictor.asked) == 1) == looks == undecided(cheap, recipe), why
    if not looks:
        assert result is cheap


@pytest.mark.parametrize(
    ("image", "cause"),
    [
        (np.zeros((480, 640), np.uint8), Cause.UNDEREXPOSED),
        (np.full((480, 640), 255, np.uint8), Cause.OVEREXPOSED),
        (np.full((480, 640, 3), 130, np.uint8), Cause.OCCLUDED),
        (np.full((1, 1), 130, np.uint8), Cause.OCCLUDED),
        (np.zeros((1, 640), np.uint8), Cause.UNDEREXPOSED),
    ],
)
def test_a_frame_without_anything_on_it_is_refused_by_any_recipe(image, cause):
    result = check(image, GateRecipe())
    assert (result.passed, result.cause) == (False, cause) and result.advice
    assert GateClassifier(Scripted(ok=9.0), SETTINGS, GateRecipe()).judge(image, result).cause is cause


def test_a_frame_one_pixel_high_with_something_on_it_is_judged():
    image = textured(1, 640)
    cheap = check(image, GateRecipe())
    assert cheap.passed and math.isfinite(cheap.sharpness)
    assert GateClassifier(Scripted(ok=9.0), SETTINGS, GateRecipe()).judge(image, cheap).passed


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"{", "cannot be read"),
        (json.dumps({"limits": {**SETTINGS.limits, "motion": 1.5}}).encode(), "cannot be read"),
        (json.dumps({"limits": SETTINGS.limits, "outputs": ["ok"]}).encode(), "the network's outputs are ok"),
        (json.dumps({"limits": {**SETTINGS.limits, "smoke": 0.5}}).encode(), "limits name"),
        (json.dumps({"limits": SETTINGS.limits, "more": 1}).encode(), "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(data, problem):
    with pytest.raises(BundleError, match=f"gate.json: {problem}"):
        read_settings(data, "gate.json")


def test_fitted_limits_keep_unseen_good_frames_of_a_soft_product():
    rng = np.random.default_rng(3)

    def soft(n):
        odds = rng.normal(1.0, 0.5, n)  # the classifier would call half of them defocused
        shares = 1 / (1 + np.exp(-odds))
        return [{**dict.fromkeys(OUTPUTS, 1e-4), "ok": 1 - s, "defocus": s} for s in shares]

    limits = fit_limits(soft(60), SETTINGS, 0.005)
    assert limits["motion"] == 0.5 and 0.85 < limits["defocus"] < 0.999
    refused = sum(p["defocus"] / (p["defocus"] + p["ok"]) > limits["defocus"] for p in soft(2000))
    assert refused <= 10
