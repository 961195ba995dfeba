"""The recipe: what counts as a good frame and as a defect, for one product. A TOML file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edge import settings
from edge.records import Cause
from edge.settings import Rule

Share = Annotated[float, Meta(ge=0, le=1)]

# A station may hold a few parts between trigger and answer, where the belt between them is long.
MOST_TAKTS = 16

# What the gate's classifier can name; `blur` is the cheap measure's word, which it makes precise.
CLASSIFIED = tuple(cause.value for cause in Cause if cause is not Cause.BLUR)


class GateRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When a frame is good enough to be judged. `edge calibrate gate` proposes these from good frames."""

    sharpness_min: Annotated[float, Meta(ge=0, le=1e6)] = 0.0  # variance of the Laplacian; 0: not checked
    brightness_min: Annotated[float, Meta(ge=0, le=255)] = 0.0  # mean grey level
    brightness_max: Annotated[float, Meta(ge=0, le=255)] = 255.0
    saturated_max: Share = 1.0  # share of pixels at 255
    roi: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)  # x, y, width, height as shares of the frame
    classifier: Literal["never", "undecided", "always"] = "undecided"  # when the bundle's classifier looks too
    # Cause -> how probable it may be, against a good frame, before the classifier refuses; not here: the bundle's
    classifier_limit: dict[str, Annotated[float, Meta(gt=0, lt=1)]] = {}
    # What the line's good frames have: median sharpness, and how far its logarithm usually lies below. A frame that is
    # less sharp than usual is the more probably blurred, which the classifier alone cannot know; None: not calibrated.
    usual_sharpness: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    sharpness_spread: Annotated[float, Meta(gt=0, le=10)] | None = None
    # `undecided`: a frame within all four passes without the classifier; one that is None: no frame is that sure
    sure_sharpness: Annotated[float, Meta(ge=0, le=1e6)] | None = None  # at least
    sure_brightness_min: Annotated[float, Meta(ge=0, le=255)] | None = None
    sure_brightness_max: Annotated[float, Meta(ge=0, le=255)] | None = None
    sure_saturated: Share | None = None  # at most


class DetectRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which boxes make a part bad, and which make it doubtful."""

    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # at least this sure: NG
    review: Annotated[float, Meta(gt=0, lt=1)] = 0.3  # at least this sure, but under the threshold: REVIEW
    class_threshold: dict[str, Annotated[float, Meta(gt=0, lt=1)]] = {}  # a class's own, by its name
    nms_iou: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100
    # Which boxes count at all. Neither touches the anomaly score, which is of the whole part.
    classes: list[str] = []  # only these make a part bad or doubtful; empty: all of the bundle
    region: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)  # as `roi`; a box centred outside it is none


class FusionRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """With triggers: which cameras look at one part. The worst of what they say is the verdict."""

    cameras: list[str] = []  # ids; empty: all of the station
    optional: list[str] = []  # of these: without a frame of theirs a part may pass all the same


class AnomalyRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When something that was not in the training data sends a part to a person."""

    use: bool = True  # False: no score is made, also where the bundle could
    review: Annotated[float, Meta(gt=-1e9, lt=1e9)] | None = None  # a score from here on: REVIEW; None: the bundle's


class DriftRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How the stream of frames is watched for slow change, the same in all recipes; it never changes a verdict."""

    use: bool = True
    baseline: Literal["bundle", "line"] = "bundle"  # line: learned anew from the first good frames of each camera
    every: Annotated[int, Meta(ge=1, le=100_000)] = 10  # the autoencoder looks at each so many-th frame of a camera


class Recipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One product's recipe."""

    name: str = "default"
    number: Annotated[int, Meta(ge=0, le=65535)] = 0  # by which a PLC names it; 0: by none
    part_numbers: list[str] = []  # by which a request names it
    takt_time_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None  # a part comes so often
    answer_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None  # trigger to answer; None: the takt time
    gate: GateRecipe = GateRecipe()
    detect: DetectRecipe = DetectRecipe()
    anomaly: AnomalyRecipe = AnomalyRecipe()
    drift: DriftRecipe = DriftRecipe()
    fusion: FusionRecipe = FusionRecipe()

    @property
    def budget_ms(self) -> float | None:
        """Trigger to answer at most; None: there is no deadline."""
        return self.answer_ms if self.answer_ms is not None else self.takt_time_ms


def _in_frame(key: str) -> Callable[[Sequence[float]], str | None]:
    def problem(area: Sequence[float]) -> str | None:
        x, y, width, height = area
        if width <= 0 or height <= 0:
            return f"{key} has no area: its width and height must be above 0"
        # Shares such as 0.1 + 0.9 may come out a hair over 1.
        if x + width > 1 + 1e-6 or y + height > 1 + 1e-6:
            return f"{key} {list(area)} reaches out of the frame: x + width and y + height must be at most 1"
        return None

    return problem


def _brightness_in_order(low: float, high: float) -> str | None:
    return f"brightness_min ({low:g}) is not below brightness_max ({high:g})" if low >= high else None


def _known_causes(limits: Mapping[str, Any]) -> str | None:
    unknown = [name for name in limits if name not in CLASSIFIED]
    hints = [f"the classifier names no cause `{name}`, {settings.did_you_mean(name, CLASSIFIED)}" for name in unknown]
    return "classifier_limit: " + "; ".join(hints) if hints else None


def _review_in_order(review: float, threshold: float) -> str | None:
    if review <= threshold:
        return None
    return f"review ({review:g}) is above threshold ({threshold:g}): set review to at most {threshold:g}"


def _known_classes(key: str, classes: Sequence[str]) -> Callable[[Iterable[str]], str | None]:
    def problem(named: Iterable[str]) -> str | None:
        unknown = [name for name in named if name not in classes]
        hints = [f"`{name}` is no class of this bundle, {settings.did_you_mean(name, classes)}" for name in unknown]
        return f"{key}: " + "; ".join(hints) if hints else None

    return problem


def _budget_in_takt(takt_time_ms: float | None, answer_ms: float | None) -> str | None:
    if takt_time_ms is None or answer_ms is None or answer_ms <= takt_time_ms * MOST_TAKTS:
        return None
    return f"answer_ms ({answer_ms:g}) is more than {MOST_TAKTS} takt times ({takt_time_ms:g}): parts would pile up"


def _optional_look(cameras: Sequence[str], optional: Sequence[str]) -> str | None:
    strange = [name for name in optional if cameras and name not in cameras]
    return f"optional: {', '.join(strange)} is not among cameras: add it there or leave it out" if strange else None


def _rules(classes: Sequence[str] | None) -> settings.Rules:
    detect = [Rule(("review", "threshold"), _review_in_order), Rule(("region",), _in_frame("region"))]
    if classes is not None:
        detect.append(Rule(("class_threshold",), _known_classes("class_threshold", classes)))
        detect.append(Rule(("classes",), _known_classes("classes", classes)))
    gate = (
        Rule(("roi",), _in_frame("roi")),
        Rule(("brightness_min", "brightness_max"), _brightness_in_order),
        Rule(("classifier_limit",), _known_causes),
    )
    return {
        GateRecipe: gate,
        DetectRecipe: tuple(detect),
        FusionRecipe: (Rule(("cameras", "optional"), _optional_look),),
        Recipe: (Rule(("takt_time_ms", "answer_ms"), _budget_in_takt),),
    }


def load(path: Path, classes: Sequence[str] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        classes: the bundle's class names, to find misspelt ones in `class_threshold`; None: not checked.

    Raises:
        ConfigError: with every problem found, not just the first.
    """
    return settings.check(settings.read_toml(path), Recipe, str(path), _rules(classes))


def dump(recipe: Recipe) -> str:
    """The recipe as TOML text, which `load` reads back as the same recipe.

    >>> print(dump(Recipe(name="pcb")).splitlines()[0])
    name = "pcb"
    """
    return settings.to_toml(recipe)


class _GateAlone(msgspec.Struct):
    gate: GateRecipe


def dump_gate(gate: GateRecipe) -> str:
    """The recipe's gate alone as TOML text, to paste.

    >>> print(dump_gate(GateRecipe(classifier_limit={"motion": 0.9})))  # doctest: +ELLIPSIS
    [gate]
    ...
    [gate.classifier_limit]
    motion = 0.9
    <BLANKLINE>
    """
    return settings.to_toml(_GateAlone(gate))
