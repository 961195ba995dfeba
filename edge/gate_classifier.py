"""The learned part of the quality gate: one small network that names what is wrong with a frame.

Blur shows in single pixels, so a frame made smaller cannot show it; a whole frame would cost as much as the detector.
So the most structured place of each twelfth of the frame is cut out at its own resolution, and brought to the same
contrast. What tells blur from the product is not their pixels but their spectra: a blur multiplies the spectrum of any
scene by that of its kernel, which leaves rings of a disc and stripes of a path in its logarithm, whatever the scene is
(Cannon, "Blind deconvolution of spatially invariant image blurs with phase", IEEE Trans. ASSP 24, 1976). Exposure, dirt
and covers show in the whole frame in small, and in how its contrast lies. The network reads these four maps side by
side. That its classes hold on products that it never saw is measured by `python -m tools gate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Annotated, Protocol

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from edge.boxes import Float
from edge.errors import BundleError, PredictorError
from edge.gate import ADVICE, LEAST_SHARPNESS, region, undecided
from edge.preprocess import Image, to_channels
from edge.recipe import CLASSIFIED, GateRecipe
from edge.records import Cause, GateResult

TILE = 64  # pixels of the frame
TILES = 12
MAP = 32  # side of each of the four maps
SIDE = 2 * MAP
SHAPE = (1, 1, SIDE, SIDE)
OK = "ok"
OUTPUTS = (OK, *CLASSIFIED)  # of the network, in its order

COARSE = 8  # places are compared on a copy that is so much smaller
FLOOR = 4.0  # grey levels added to a tile's deviation: the noise of an empty one is not blown up to a structure
LEADING = 6  # tiles of most contrast, whose spectra are averaged
LEAST_POWER = 2e-5  # of a frequency, about 30 dB under the mean of a tile with structure: what is less is noise
LEAST_STEP = 0.5  # grey levels, of the contrast map
CLIP = 1.5
MOST_ODDS = 12.0  # log-odds of the highest limit that is fitted
SHARPNESS_WEIGHT, MOST_SPREADS = 1.0, 8.0  # from 0.5 to 2 it ranks blur of unseen products about as well
BLURS = (Cause.MOTION.value, Cause.DEFOCUS.value)
LEAST_SHARE = 1e-4  # of good frames, that a limit of one cause is fitted for

_NORMAL = NormalDist()
_GRIDS = ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1))  # rows, columns
_HANN = np.hanning(TILE + 2)[1:-1].astype(np.float32)
_WINDOW = np.outer(_HANN, _HANN)  # so that the ends of a tile make no frequencies of their own

Whole = (0.0, 0.0, 1.0, 1.0)
Limit = Annotated[float, Meta(gt=0, lt=1)]


class Predictor(Protocol):
    """What the classifier needs of an inference runtime."""

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of the network for one input (1, C, H, W)."""


class GateClassifierSettings(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`gate.json` of a bundle.

    Attributes:
        outputs: what each output of the network stands for; `ok` and causes.
        limits: cause -> its probability against a good frame, p / (p + p_ok), from which on a frame is refused.
        temperature: the outputs are divided by it before the softmax, above 0.
    """

    outputs: tuple[str, ...] = OUTPUTS
    limits: dict[str, Limit]
    temperature: Annotated[float, Meta(gt=0, le=100)] = 1.0


def read_settings(data: bytes, origin: str) -> GateClassifierSettings:
    """Decode and check `gate.json`.

    Raises:
        BundleError: it cannot be used; says why.

    >>> read_settings(b'{"limits": {"motion": 0.5}}', "gate.json")
    Traceback (most recent call last):
    ...
    edge.errors.BundleError: gate.json: limits name motion, expected each of motion, defocus, overexposed, \
underexposed, occluded, dirty_lens; install the bundle again
    """
    try:
        settings = msgspec.json.decode(data, type=GateClassifierSettings)
    except msgspec.DecodeError as error:
        raise BundleError(f"{origin}: cannot be read: {error}; install the bundle again") from error
    if sorted(settings.outputs) != sorted(OUTPUTS):
        raise BundleError(
            f"{origin}: the network's outputs are {', '.join(settings.outputs)}, this edge knows {', '.join(OUTPUTS)}; "
            "install the bundle again"
        )
    if sorted(settings.limits) != sorted(CLASSIFIED):
        raise BundleError(
            f"{origin}: limits name {', '.join(settings.limits)}, expected each of {', '.join(CLASSIFIED)}; "
            "install the bundle again"
        )
    return settings


def mosaic(image: Image, roi: tuple[float, float, float, float] = Whole, out: Float | None = None) -> Float:
    """What the network reads of a frame: four maps of 32x32 side by side.

    Args:
        image: uint8, (H, W) grey or (H, W, 3) BGR, of any size from one pixel on.
        roi: what of it counts, x, y, width, height as shares of the frame.
        out: of shape `SHAPE`, saves the allocation.

    Returns:
        float32 (1, 1, 64, 64), within -1.5 to 1.5. Above, spectra with frequency 0 in the middle, logarithms of the
        power: the mean of the tiles of most contrast, and the highest of all tiles. Below, the whole frame from -1
        (black) to 1 (white), and the logarithm of the steps in it.

    >>> mosaic(np.full((1, 7), 255, np.uint8)).shape
    (1, 1, 64, 64)
    """
    grey = at_least_a_tile(to_channels(region(image, roi), 1))
    tiles = np.stack([grey[y : y + TILE, x : x + TILE] for y, x in places(grey)]).astype(np.float32)  # (12, 64, 64)
    small = cv2.resize(grey, (4 * MAP, 4 * MAP), interpolation=cv2.INTER_AREA)
    tensor = np.empty(SHAPE, np.float32) if out is None else out
    canvas = tensor[0, 0]
    canvas[:MAP, :MAP], canvas[:MAP, MAP:] = spectra(tiles)
    canvas[MAP:, :MAP] = cv2.resize(small, (MAP, MAP), interpolation=cv2.INTER_AREA) * np.float32(2 / 255) - 1
    canvas[MAP:, MAP:] = steps(np.asarray(small, np.uint8))
    np.clip(canvas, -CLIP, CLIP, out=canvas)
    return tensor


def spectra(tiles: Float) -> tuple[Float, Float]:
    """Two maps (32, 32) of the tiles (12, 64, 64), which it changes: mean of the leading ones, and highest of all."""
    flat = tiles.reshape(len(tiles), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.einsum("ij,ij->i", flat, flat) / flat.shape[1])  # (12,)
    flat /= (deviation + FLOOR)[:, None]
    half = np.fft.rfft2(tiles * _WINDOW)  # (12, 64, 33)
    power = (half.real**2 + half.imag**2).astype(np.float32) * np.float32(1 / (9 * TILE * TILE))
    leading = power[np.argsort(-deviation, kind="stable")[:LEADING]]
    mean = np.log10(leading + np.float32(LEAST_POWER)).mean(axis=0)
    highest = np.log10(power.max(axis=0) + np.float32(LEAST_POWER))
    return _whole_plane(mean), _whole_plane(highest)


def _whole_plane(half: Float) -> Float:
    """A map (32, 32) of one half of a spectrum (64, 33): the other half mirrors it; 2x2 frequencies are one cell."""
    shifted = np.roll(half[:, : TILE // 2], TILE // 2, axis=0)  # (64, 32), frequency 0 in row 32
    cells = shifted.reshape(MAP, 2, MAP // 2, 2).mean(axis=(1, 3))  # (32, 16): columns from frequency 0 on
    whole = np.concatenate([cells[::-1, ::-1], cells], axis=1)
    return np.asarray((whole + 3) / 2, np.float32)


def steps(small: Image) -> Float:
    """Where the frame in small (128, 128) has contrast: a map (32, 32), the logarithm of its steps."""
    edges = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    mean = cv2.resize(edges, (MAP, MAP), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(np.log10(mean + np.float32(LEAST_STEP)) - 1, np.float32)


def at_least_a_tile(grey: Image) -> Image:
    """The image, continued by its mirror image where a side is shorter than a tile.

    >>> at_least_a_tile(np.zeros((1, 100), np.uint8)).shape
    (64, 100)
    """
    height, width = grey.shape
    if height >= TILE and width >= TILE:
        return grey
    down, right = max(0, TILE - height), max(0, TILE - width)
    return np.asarray(cv2.copyMakeBorder(grey, 0, down, 0, right, cv2.BORDER_REFLECT), np.uint8)


def places(grey: Image) -> list[tuple[int, int]]:
    """Upper left corners (y, x) of the tiles: the most structured place of each twelfth of the image.

    Args:
        grey: (H, W) uint8, both sides at least `TILE`.
    """
    height, width = grey.shape
    size = (max(1, width // COARSE), max(1, height // COARSE))
    coarse = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    steps = cv2.morphologyEx(coarse, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    reach = TILE // COARSE
    energy = cv2.boxFilter(steps, cv2.CV_32F, (reach, reach), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
    rows, columns = size[1] - reach + 1, size[0] - reach + 1  # of corners from which a whole tile is inside
    down, across = _grid(height, width)
    found = []
    for i in range(down):
        for j in range(across):
            top, left = i * rows // down, j * columns // across
            zone = energy[top : max(top + 1, (i + 1) * rows // down), left : max(left + 1, (j + 1) * columns // across)]
            y, x = divmod(int(zone.argmax()), zone.shape[1])
            found.append(((top + y) * COARSE, (left + x) * COARSE))
    return found


def _grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of twelve zones that are as square as they can be."""
    return min(_GRIDS, key=lambda grid: abs(math.log(width * grid[0] / (height * grid[1]))))


class GateClassifier:
    """Judges what the cheap measures leave undecided. Made and used in one thread, as its predictor is.

    Args:
        predictor: the network: `SHAPE` in, one output for each of `settings.outputs`.
        settings: the bundle's `gate.json`.
        recipe: the product's gate: when to look, where, and limits of its own.
    """

    def __init__(self, predictor: Predictor, settings: GateClassifierSettings, recipe: GateRecipe) -> None:
        self._predictor = predictor
        self._settings = settings
        self._recipe = recipe
        self._limits = {**settings.limits, **recipe.classifier_limit}
        self._tensor = np.empty(SHAPE, np.float32)

    def under(self, recipe: GateRecipe) -> GateClassifier:
        """The same network by another recipe."""
        return GateClassifier(self._predictor, self._settings, recipe)

    def judge(self, image: Image, cheap: GateResult) -> GateResult:
        """`cheap` as it is where that decides (see `edge.gate.undecided`); else the classifier's own judgement.

        It may refuse what passed, and names the kind of a blur; it never passes what the cheap measures refused.

        Args:
            image: uint8, (H, W) grey or (H, W, 3) BGR.
            cheap: what `edge.gate.check` says of it.

        Raises:
            PredictorError: the runtime failed, or answered with what is no number.
        """
        if not undecided(cheap, self._recipe):
            return cheap
        return judged(cheap, weighed(self.probabilities(image), cheap.sharpness, self._recipe), self._limits)

    def limit(self, cause: str) -> float:
        """The probability against a good frame from which on `cause` is refused."""
        return self._limits[cause]

    def probabilities(self, image: Image) -> dict[str, float]:
        """Of a good frame (`ok`) and of each cause; their sum is 1.

        Raises:
            PredictorError: the runtime failed, or answered with what is no number.
        """
        outputs = self._predictor.run(mosaic(image, self._recipe.roi, out=self._tensor))
        names = self._settings.outputs
        if len(outputs) != 1 or outputs[0].size != len(names):
            shapes = [output.shape for output in outputs]
            raise PredictorError(
                f"the gate's classifier answered with shapes {shapes}, expected {len(names)} numbers; install the "
                "bundle again"
            )
        return dict(zip(names, softmax(outputs[0].reshape(-1), self._settings.temperature), strict=True))


def weighed(probabilities: Mapping[str, float], sharpness: float, recipe: GateRecipe) -> Mapping[str, float]:
    """Probabilities with those of a blur weighed by how sharp the line's good frames usually are.

    The classifier does not know the part: a polished surface in focus may look to it like a board out of focus. A frame
    as sharp as usual keeps its odds of motion and of defocus; each spread below the usual raises their logarithm by
    `SHARPNESS_WEIGHT`, each above lowers it. Without `usual_sharpness` in the recipe they stay.

    >>> recipe = GateRecipe(usual_sharpness=1000.0, sharpness_spread=0.5)
    >>> probable = {**dict.fromkeys(OUTPUTS, 0.0), "ok": 0.5, "defocus": 0.5}
    >>> [round(weighed(probable, sharpness, recipe)["defocus"], 3) for sharpness in (500.0, 1000.0, 2000.0)]
    [0.8, 0.5, 0.2]
    """
    if recipe.usual_sharpness is None or recipe.sharpness_spread is None:
        return probabilities
    below = math.log(recipe.usual_sharpness / max(sharpness, LEAST_SHARPNESS)) / recipe.sharpness_spread
    factor = math.exp(SHARPNESS_WEIGHT * min(MOST_SPREADS, max(-MOST_SPREADS, below)))
    raised = {name: p * factor if name in BLURS else p for name, p in probabilities.items()}
    total = sum(raised.values())
    return {name: round(p / total, 9) for name, p in raised.items()}


def judged(cheap: GateResult, probabilities: Mapping[str, float], limits: Mapping[str, float]) -> GateResult:
    """The judgement of the cheap measures and the classifier together.

    A frame that passed is refused for the most probable of the causes over their limits. One that was refused for its
    low sharpness stays refused, and gets the cause of it where one is probable.

    Args:
        probabilities: of `ok` and of each cause. limits: of each cause, against a good frame (see `against_ok`).

    >>> cheap = GateResult(True, None, sharpness=80.0, brightness=120.0, saturated=0.0)
    >>> probable = {**dict.fromkeys(OUTPUTS, 0.0), "ok": 0.2, "defocus": 0.7, "motion": 0.1}
    >>> result = judged(cheap, probable, dict.fromkeys(CLASSIFIED, 0.5))
    >>> result.cause.value, round(result.measured, 3), result.limit
    ('defocus', 0.778, 0.5)
    """
    over = [c for c in CLASSIFIED if against_ok(probabilities, c) > limits[c]]
    worst = Cause(max(over, key=lambda c: probabilities[c])) if over else None
    if not cheap.passed:
        return _named(cheap, probabilities, worst)
    if worst is None:
        return replace(cheap, probabilities=probabilities)
    return replace(
        cheap,
        passed=False,
        cause=worst,
        measured=against_ok(probabilities, worst.value),
        limit=limits[worst.value],
        advice=ADVICE[worst],
        probabilities=probabilities,
    )


def softmax(logits: Float, temperature: float = 1.0) -> list[float]:
    """Probabilities (N,) of outputs (N,).

    Raises:
        PredictorError: an output is not finite.

    >>> softmax(np.array([1.5, 1.5], np.float32))
    [0.5, 0.5]
    """
    if not np.isfinite(logits).all():
        raise PredictorError(
            "the gate's classifier answered with numbers that are not finite; install the bundle again"
        )
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max())
    return [round(float(p), 9) for p in powers / powers.sum()]


def against_ok(probabilities: Mapping[str, float], cause: str) -> float:
    """The probability of a cause where only it and a good frame are left, 0 to 1.

    What else might be wrong does not hide it, and a limit on it stays what it is when other limits move.

    >>> against_ok({"ok": 0.125, "motion": 0.375, "defocus": 0.5}, "motion")
    0.75
    """
    together = probabilities[cause] + probabilities[OK]
    return probabilities[cause] / together if together > 0 else 0.0


def _named(refused: GateResult, probabilities: Mapping[str, float], worst: Cause | None) -> GateResult:
    """What was refused for its low sharpness, with the kind of blur or other cause; a blur where none is probable."""
    if worst is None:
        worst = max((Cause.MOTION, Cause.DEFOCUS), key=lambda c: probabilities[c.value])
        if probabilities[worst.value] <= probabilities[OK]:
            return replace(refused, probabilities=probabilities)
    return replace(refused, cause=worst, advice=ADVICE[worst], probabilities=probabilities)


def fit_limits(
    good: Sequence[Mapping[str, float]], settings: GateClassifierSettings, refuse_share: float
) -> dict[str, float]:
    """Limits of each cause that refuse about `refuse_share` of frames like these good ones, all causes together.

    Log-odds of good frames are taken to fall off like a normal distribution: what some hundred frames do not show of
    its tail is reached for by as much as the wanted quantile of one lies further out than the one that they do show.
    None is below the bundle's own: a product that looks good to the classifier is not to be held to a tighter limit
    than the one for which its causes were trained.

    Args:
        good: probabilities of frames known to be good; at least 2.

    >>> settings = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, 0.5))
    >>> good = [{**dict.fromkeys(OUTPUTS, 0.01), "ok": 0.9, "defocus": p} for p in (0.6, 0.9)]
    >>> fit_limits(good, settings, 0.0)["defocus"], fit_limits(good, settings, 0.0)["motion"]
    (0.824584, 0.5)
    """
    if len(good) < 2:
        raise ValueError(f"limits want at least 2 good frames, got {len(good)}")
    wanted = max(LEAST_SHARE, refuse_share / len(CLASSIFIED))
    shown = max(wanted, 1 / (len(good) + 1))  # the highest of n lies about there
    reach = max(1.0, _NORMAL.inv_cdf(1 - wanted) / _NORMAL.inv_cdf(1 - shown))
    limits = {}
    for cause in CLASSIFIED:
        odds = np.array([log_odds(against_ok(p, cause)) for p in good])
        middle = float(np.median(odds))
        highest = middle + reach * (float(np.quantile(odds, 1 - shown, method="higher")) - middle)
        share = 1 / (1 + math.exp(-min(MOST_ODDS, highest)))
        limits[cause] = max(settings.limits[cause], round(share, 6))
    return limits


def log_odds(share: float) -> float:
    """Logarithm of the odds of a share in [0, 1], within -20 to 20.

    >>> log_odds(0.5), log_odds(1.0)
    (0.0, 20.0)
    """
    return min(20.0, max(-20.0, math.log(max(share, 1e-12)) - math.log(max(1 - share, 1e-12))))
