"""The quality gate: is this frame good enough to be judged, and if not, why not.

Cheap measures: variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), mean brightness and the share of saturated
pixels, over a region of interest. Exposure is judged before sharpness, since a frame that is too dark or too bright has
little contrast left and would be called blurred, which sends the technician to the wrong knob. What they leave open is
for the classifier (`edge.gate_classifier`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import msgspec
import numpy as np

from edge.preprocess import Image, to_channels
from edge.recipe import GateRecipe
from edge.records import Cause, GateResult

ADVICE = {
    Cause.BLUR: "Check focus and lens, shorten the exposure or light more, look for vibration and a loose mount.",
    Cause.MOTION: "Shorten the exposure and light more, or trigger later; look for vibration and a loose mount.",
    Cause.DEFOCUS: "Focus the lens again and lock its ring; check the distance and height of the part.",
    Cause.OCCLUDED: "Look for what stands between the camera and the part: a hand, a cable, a cover on the lens.",
    Cause.DIRTY_LENS: "Clean the lens and its cover glass; look for oil mist and coolant that reach it.",
    Cause.OVEREXPOSED: "Dim the light or shorten the exposure; look for a reflection or sunlight on the part.",
    Cause.UNDEREXPOSED: "Check that the light is on and the lens is not covered; lengthen the exposure.",
}

# What a frame without any detail counts as, where the logarithm of its sharpness is taken.
LEAST_SHARPNESS = 0.01

# A frame whose grey levels are all alike was not taken of a part, whatever the recipe checks: even a picture of a wall
# has the sensor's noise. All black or all white says which way the light went.
BLACK, WHITE = 2.0, 253.0

# Of good frames, the share at each end of a measure that is left to the classifier.
UNSURE = 0.025

# Of the logarithm of sharpness: frames that are all alike are not taken for more alike than any line's are.
LEAST_SPREAD = 0.25


@dataclass(frozen=True)
class Measures:
    """What the gate measures on one frame; see `GateResult` for units and directions."""

    sharpness: float
    brightness: float
    saturated: float


def region(image: Image, roi: tuple[float, float, float, float]) -> Image:
    """The part of the image that `roi` (x, y, width, height as shares of the frame) names; at least one pixel.

    >>> region(np.zeros((100, 200), np.uint8), (0.5, 0.1, 0.25, 0.5)).shape
    (50, 50)
    """
    height, width = image.shape[:2]
    left, top = min(int(roi[0] * width), width - 1), min(int(roi[1] * height), height - 1)
    right = max(left + 1, min(width, round((roi[0] + roi[2]) * width)))
    bottom = max(top + 1, min(height, round((roi[1] + roi[3]) * height)))
    return image[top:bottom, left:right]


def measure(image: Image, roi: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)) -> Measures:
    """Sharpness, brightness and saturation of the region of interest.

    >>> measure(np.full((16, 16), 255, np.uint8))
    Measures(sharpness=0.0, brightness=255.0, saturated=1.0)
    """
    grey = to_channels(region(image, roi), 1)
    # 16 bits hold every value of the 3x3 kernel (-1020 to 1020) and are half the memory traffic of floats.
    laplacian = cv2.Laplacian(grey, cv2.CV_16S, ksize=1)
    # E[x^2] - E[x]^2 by two vectorised sums, exact here: a tenth of the time of cv2.meanStdDev on 16 bits.
    mean_square = float(cv2.norm(laplacian, cv2.NORM_L2SQR)) / grey.size
    mean = float(cv2.sumElems(laplacian)[0]) / grey.size
    saturated = int(np.count_nonzero(grey == 255)) / grey.size
    return Measures(sharpness=max(0.0, mean_square - mean**2), brightness=float(cv2.mean(grey)[0]), saturated=saturated)


def judge(measures: Measures, recipe: GateRecipe) -> GateResult:
    """Pass the frame or name the first cause against it.

    >>> judge(Measures(sharpness=40.0, brightness=120.0, saturated=0.0), GateRecipe(sharpness_min=100)).cause.value
    'blur'
    >>> judge(Measures(sharpness=0.0, brightness=0.0, saturated=0.0), GateRecipe()).cause.value
    'underexposed'
    """
    m, r = measures, recipe
    empty = m.sharpness < LEAST_SHARPNESS
    checks = (
        (Cause.UNDEREXPOSED, m.brightness, BLACK, empty and m.brightness < BLACK),
        (Cause.OVEREXPOSED, m.brightness, WHITE, empty and m.brightness > WHITE),
        (Cause.OCCLUDED, m.sharpness, LEAST_SHARPNESS, empty),
        (Cause.UNDEREXPOSED, m.brightness, r.brightness_min, m.brightness < r.brightness_min),
        (Cause.OVEREXPOSED, m.brightness, r.brightness_max, m.brightness > r.brightness_max),
        (Cause.OVEREXPOSED, m.saturated, r.saturated_max, m.saturated > r.saturated_max),
        (Cause.BLUR, m.sharpness, r.sharpness_min, m.sharpness < r.sharpness_min),
    )
    for cause, measured, limit, crossed in checks:
        if crossed:
            return GateResult(
                passed=False,
                cause=cause,
                sharpness=m.sharpness,
                brightness=m.brightness,
                saturated=m.saturated,
                measured=measured,
                limit=limit,
                advice=ADVICE[cause],
            )
    return GateResult(True, None, m.sharpness, m.brightness, m.saturated)


def undecided(result: GateResult, recipe: GateRecipe) -> bool:
    """Whether the cheap measures leave it to the classifier, if there is one, to judge or to name the cause.

    They do not where the frame is within all of the recipe's `sure_*` limits, nor where they refused it for a cause
    that they know as well as anyone: exposure, or nothing on it at all. A blur is refused, but not yet named.

    >>> recipe = GateRecipe(
    ...     sharpness_min=100, sure_sharpness=300, sure_brightness_min=80, sure_brightness_max=160, sure_saturated=0.02
    ... )
    >>> [undecided(judge(Measures(sharpness, 120, 0.01), recipe), recipe) for sharpness in (50, 150, 350)]
    [True, True, False]
    """
    r = recipe
    if r.classifier == "never":
        return False
    if not result.passed:
        return result.cause is Cause.BLUR
    if r.classifier == "always" or None in (
        r.sure_sharpness,
        r.sure_brightness_min,
        r.sure_brightness_max,
        r.sure_saturated,
    ):
        return True
    sure = (
        result.sharpness >= (r.sure_sharpness or 0.0)
        and (r.sure_brightness_min or 0.0) <= result.brightness <= (r.sure_brightness_max or 0.0)
        and result.saturated <= (r.sure_saturated or 0.0)
    )
    return not sure


def check(image: Image, recipe: GateRecipe) -> GateResult:
    """Measure and judge one frame: uint8, (H, W) grey or (H, W, 3) BGR."""
    return judge(measure(image, recipe.roi), recipe)


def propose(good: list[Measures], roi: tuple[float, float, float, float], refuse_share: float) -> GateRecipe:
    """Thresholds that refuse about `refuse_share` of frames like these good ones.

    Each limit lies twice as far from the median as the quantile of the good frames does: a few dozen frames do not
    show the tail of a shift's light and focus. Sharpness is compared by its logarithm, since blur divides it: good
    boards of one line lie a factor of ten apart, and a blur of two pixels costs a factor of a hundred.

    Args:
        good: measures of frames known to be good; at least 2.
        roi: the region they were measured over, written into the proposal.
        refuse_share: share of good frames that may be refused, in [0, 0.5).
    """
    if len(good) < 2:
        raise ValueError(f"a proposal wants at least 2 good frames, got {len(good)}")
    log_sharpness = np.log([max(m.sharpness, LEAST_SHARPNESS) for m in good])
    brightness = np.array([m.brightness for m in good])
    saturated = np.array([m.saturated for m in good])
    return GateRecipe(
        sharpness_min=_down(math.exp(_limit(log_sharpness, refuse_share))),
        brightness_min=max(0.0, _down(_limit(brightness, refuse_share))),
        brightness_max=min(255.0, -_down(-_limit(brightness, 1 - refuse_share))),
        saturated_max=min(1.0, round(_limit(saturated, 1 - refuse_share) + 0.001, 4)),
        roi=roi,
    )


def propose_sure(good: list[Measures], defocused: list[Measures], recipe: GateRecipe) -> GateRecipe:
    """The recipe with limits within which a frame passes without the classifier.

    Sharp for sure is what hardly any of these frames would be if it were out of focus. Where sharpness varies much from
    part to part that is few frames or none, and the classifier looks at most: no cheap measure could tell them apart.

    Args:
        good: measures of good frames. defocused: of the same frames, made so blurred that it would cost defects.

    >>> good = [Measures(1000.0 + i, 120.0, 0.0) for i in range(5)]
    >>> proposal = propose_sure(good, [Measures(90.0 + i, 120.0, 0.0) for i in range(5)], GateRecipe())
    >>> proposal.sure_sharpness, proposal.sure_brightness_min, proposal.sure_brightness_max
    (93.9, 120.0, 120.0)
    """
    brightness = [m.brightness for m in good]
    usual, spread = usual_sharpness(good)
    return msgspec.structs.replace(
        recipe,
        usual_sharpness=usual,
        sharpness_spread=spread,
        sure_sharpness=math.ceil(10 * float(np.quantile([m.sharpness for m in defocused], 1 - UNSURE))) / 10,
        sure_brightness_min=max(0.0, _down(float(np.quantile(brightness, UNSURE)))),
        sure_brightness_max=min(255.0, -_down(-float(np.quantile(brightness, 1 - UNSURE)))),
        sure_saturated=min(1.0, round(float(np.quantile([m.saturated for m in good], 1 - UNSURE)) + 0.001, 4)),
    )


def usual_sharpness(good: list[Measures]) -> tuple[float, float]:
    """Median sharpness, and how far its natural logarithm lies below at the least sharp tenth; at least 0.25.

    >>> usual_sharpness([Measures(100.0 * 2**k, 120.0, 0.0) for k in range(11)])
    (3200.0, 2.7726)
    """
    logs = np.log([max(m.sharpness, LEAST_SHARPNESS) for m in good])
    middle = float(np.median(logs))
    return round(math.exp(middle), 3), max(LEAST_SPREAD, round(middle - float(np.quantile(logs, 0.1)), 4))


def _limit(values: np.ndarray[tuple[int], np.dtype[np.float64]], quantile: float) -> float:
    edge = float(np.quantile(values, quantile))
    return 2 * edge - float(np.median(values))


def _down(value: float) -> float:
    """Rounded towards the lenient side, so that rounding alone refuses nothing."""
    return math.floor(value * 10) / 10
