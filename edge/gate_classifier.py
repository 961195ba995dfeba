"""The learned part of the quality gate: one small network that names what is wrong with a frame.

Blur shows in single pixels, so a frame made smaller cannot show it; a whole frame would cost as much as the detector.
The network reads a mosaic instead: the most structured place of each twelfth of the frame at its own resolution, where
motion and defocus leave their traces, and the whole frame in small, where exposure, dirt and covers do. Places are
chosen on a coarse copy, so that a blur of some pixels does not move them; each is brought to the same contrast, so that
the network sees edges and not what the product is made of. That its classes hold on products that it never saw is
measured by `python -m tools gate`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Protocol

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from edge.boxes import Float
from edge.errors import BundleError, PredictorError
from edge.gate import ADVICE, region, undecided
from edge.preprocess import Image, to_channels
from edge.recipe import CLASSIFIED, GateRecipe
from edge.records import Cause, GateResult

SIDE = 256  # of the mosaic, pixels
TILE = 64
THUMBNAIL = 128  # the whole frame, in the mosaic's upper left
TILES = 12
SHAPE = (1, 1, SIDE, SIDE)
OK = "ok"
OUTPUTS = (OK, *CLASSIFIED)  # of the network, in its order

COARSE = 8  # places are compared on a copy that is so much smaller
FLOOR = 4.0  # grey levels added to a tile's deviation: the noise of an empty one is not blown up to a structure
SPREAD = 3.0  # deviations that stand for 1
CLIP = 1.5
MOST_ODDS = 12.0  # log-odds of the highest limit that is fitted

# Upper left corners of the tiles in the mosaic, row by row around the thumbnail.
CELLS = tuple((y, x) for y in range(0, SIDE, TILE) for x in range(0, SIDE, TILE) if y >= THUMBNAIL or x >= THUMBNAIL)
_GRIDS = ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1))  # rows, columns

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
    """What the network reads of a frame.

    Args:
        image: uint8, (H, W) grey or (H, W, 3) BGR, of any size from one pixel on.
        roi: what of it counts, x, y, width, height as shares of the frame.
        out: of shape `SHAPE`, saves the allocation.

    Returns:
        float32 (1, 1, 256, 256): the thumbnail from -1 (black) to 1 (white), around it the tiles, of mean 0 and of
        deviation 1/3 where they have structure, within -1.5 to 1.5.

    >>> mosaic(np.full((1, 7), 255, np.uint8)).shape
    (1, 1, 256, 256)
    """
    grey = at_least_a_tile(to_channels(region(image, roi), 1))
    tensor = np.empty(SHAPE, np.float32) if out is None else out
    canvas = tensor[0, 0]
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    np.multiply(small, np.float32(2 / 255), out=canvas[:THUMBNAIL, :THUMBNAIL], casting="unsafe")
    canvas[:THUMBNAIL, :THUMBNAIL] -= 1
    tiles = np.stack([grey[y : y + TILE, x : x + TILE] for y, x in places(grey)]).astype(np.float32)  # (12, 64, 64)
    for (y, x), tile in zip(CELLS, same_contrast(tiles), strict=True):
        canvas[y : y + TILE, x : x + TILE] = tile
    return tensor


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


def same_contrast(tiles: Float) -> Float:
    """Tiles (N, h, w) with mean 0 and the same deviation; changes and returns them."""
    flat = tiles.reshape(len(tiles), -1)
    flat -= flat.mean(axis=1, keepdims=True)
    deviation = np.sqrt(np.einsum("ij,ij->i", flat, flat) / flat.shape[1])
    flat /= (SPREAD * (deviation + FLOOR))[:, None]
    return np.clip(tiles, -CLIP, CLIP, out=tiles)


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
        return judged(cheap, self.probabilities(image), self._limits)

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

    As with the cheap limits, a limit lies twice as far from the median as the quantile does, on the scale of log-odds.
    None is below the bundle's own: a product that looks good to the classifier is not to be held to a tighter limit
    than the one for which its causes were trained.

    Args:
        good: probabilities of frames known to be good; at least 2.

    >>> settings = GateClassifierSettings(limits=dict.fromkeys(CLASSIFIED, 0.5))
    >>> good = [{**dict.fromkeys(OUTPUTS, 0.01), "ok": 0.9, "defocus": p} for p in (0.6, 0.9)]
    >>> fit_limits(good, settings, 0.0)["defocus"], fit_limits(good, settings, 0.0)["motion"]
    (0.55051, 0.5)
    """
    if len(good) < 2:
        raise ValueError(f"limits want at least 2 good frames, got {len(good)}")
    limits = {}
    for cause in CLASSIFIED:
        odds = np.array([log_odds(against_ok(p, cause)) for p in good])
        edge = float(np.quantile(odds, 1 - refuse_share / len(CLASSIFIED)))
        share = 1 / (1 + math.exp(-min(MOST_ODDS, 2 * edge - float(np.median(odds)))))
        limits[cause] = max(settings.limits[cause], round(share, 6))
    return limits


def log_odds(share: float) -> float:
    """Logarithm of the odds of a share in [0, 1], within -20 to 20.

    >>> log_odds(0.5), log_odds(1.0)
    (0.0, 20.0)
    """
    return min(20.0, max(-20.0, math.log(max(share, 1e-12)) - math.log(max(1 - share, 1e-12))))
