"""The recipe: what counts as a good frame and as a defect, for one product. A TOML file."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0, le=1)]


class GateRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """When a frame is good enough to be judged. `edge calibrate gate` proposes these from good frames."""

    sharpness_min: Annotated[float, Meta(ge=0)] = 0.0  # variance of the Laplacian; 0: not checked
    brightness_min: Annotated[float, Meta(ge=0, le=255)] = 0.0  # mean grey level
    brightness_max: Annotated[float, Meta(ge=0, le=255)] = 255.0
    saturated_max: Share = 1.0  # share of pixels at 255
    roi: tuple[Share, Share, Share, Share] = (0.0, 0.0, 1.0, 1.0)  # x, y, width, height as shares of the frame


class DetectRecipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Which boxes make a part bad, and which make it doubtful."""

    threshold: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # at least this sure: NG
    review: Annotated[float, Meta(gt=0, lt=1)] = 0.3  # at least this sure, but under the threshold: REVIEW
    class_threshold: dict[str, Annotated[float, Meta(gt=0, lt=1)]] = {}  # a class's own, by its name
    nms_iou: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    max_detections: Annotated[int, Meta(ge=1, le=1000)] = 100


class Recipe(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One product's recipe."""

    name: str = "default"
    gate: GateRecipe = GateRecipe()
    detect: DetectRecipe = DetectRecipe()
