"""The gate names the right cause and its proposals keep good frames."""

import cv2
import numpy as np
import pytest

from edge.gate import Measures, check, judge, measure, propose, region
from edge.recipe import GateRecipe
from edge.records import Cause

RECIPE = GateRecipe(sharpness_min=100, brightness_min=30, brightness_max=220, saturated_max=0.3)


@pytest.mark.parametrize(
    ("measures", "cause", "why"),
    [
        (Measures(500, 120, 0.0), None, "within every limit"),
        (Measures(100, 30, 0.3), None, "limits themselves pass"),
        (Measures(99.9, 120, 0.0), Cause.BLUR, "just under the sharpness limit"),
        (Measures(500, 29.9, 0.0), Cause.UNDEREXPOSED, "too dark"),
        (Measures(500, 220.1, 0.0), Cause.OVEREXPOSED, "too bright on average"),
        (Measures(500, 120, 0.31), Cause.OVEREXPOSED, "bright spot over a third of the frame"),
        (Measures(1, 10, 0.0), Cause.UNDEREXPOSED, "a dark frame is never called blurred"),
        (Measures(1, 250, 0.9), Cause.OVEREXPOSED, "a washed out frame is never called blurred"),
    ],
)
def test_judge(measures, cause, why):
    result = judge(measures, RECIPE)
    assert result.cause == cause, why
    assert result.passed == (cause is None)
    assert bool(result.advice) == (cause is not None), "every refusal comes with advice"


def test_refusal_tells_measured_and_limit():
    result = judge(Measures(40, 120, 0), RECIPE)
    assert (result.measured, result.limit) == (40, 100)


def test_blur_lowers_sharpness_and_is_refused():
    rng = np.random.default_rng(3)
    sharp = np.where(rng.random((200, 300)) > 0.5, 200, 60).astype(np.uint8)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 3)
    limit = (measure(sharp).sharpness + measure(blurred).sharpness) / 2
    recipe = GateRecipe(sharpness_min=limit)
    assert check(sharp, recipe).passed
    assert check(blurred, recipe).cause is Cause.BLUR


def test_sharpness_is_the_variance_of_the_laplacian():
    image = np.random.default_rng(1).integers(0, 256, (40, 60), dtype=np.uint8)
    expected = cv2.Laplacian(image, cv2.CV_64F, ksize=1).var()
    assert measure(image).sharpness == pytest.approx(expected, rel=1e-9)


def test_roi_hides_what_is_outside():
    image = np.zeros((100, 100), np.uint8)
    image[:, :50] = 255
    assert measure(image, (0.5, 0.0, 0.5, 1.0)).brightness == 0
    assert measure(image, (0.0, 0.0, 0.5, 1.0)).saturated == 1


@pytest.mark.parametrize("roi", [(0, 0, 1, 1), (0.999, 0.999, 0.001, 0.001), (0.5, 0.5, 0.0, 0.0), (1, 1, 0, 0)])
def test_region_is_never_empty(roi):
    assert region(np.zeros((7, 5), np.uint8), roi).size > 0


def test_colour_frames_are_measured_in_grey():
    grey = np.random.default_rng(2).integers(0, 256, (32, 32), dtype=np.uint8)
    colour = np.dstack([grey, grey, grey])
    assert measure(colour).brightness == pytest.approx(measure(grey).brightness, abs=0.6)


def test_proposal_keeps_unseen_good_frames_and_refuses_far_ones():
    rng = np.random.default_rng(5)

    def good(n):
        return [Measures(rng.normal(1000, 60), rng.normal(120, 5), 0.01) for _ in range(n)]

    recipe = propose(good(100), (0.0, 0.0, 1.0, 1.0), refuse_share=0.005)
    refused = sum(not judge(m, recipe).passed for m in good(2000))
    assert refused <= 10
    assert judge(Measures(500, 120, 0.01), recipe).cause is Cause.BLUR
    assert judge(Measures(1000, 60, 0.01), recipe).cause is Cause.UNDEREXPOSED
    assert judge(Measures(1000, 180, 0.01), recipe).cause is Cause.OVEREXPOSED


def test_proposal_wants_frames():
    with pytest.raises(ValueError, match="at least 2"):
        propose([Measures(1, 1, 0)], (0, 0, 1, 1), 0.005)


def test_proposal_from_identical_frames_accepts_them():
    same = [Measures(812.345, 100.06, 0.25)] * 30
    recipe = propose(same, (0.0, 0.0, 1.0, 1.0), 0.005)
    assert judge(same[0], recipe).passed, "rounding must not put the limit inside the good frames"


def test_sharpness_is_exact_on_a_large_frame_of_the_strongest_edges():
    checks = (np.indices((1944, 2592)).sum(axis=0) % 2 * 255).astype(np.uint8)
    expected = cv2.Laplacian(checks, cv2.CV_64F, ksize=1).var()
    assert measure(checks).sharpness == pytest.approx(expected, rel=1e-9)
