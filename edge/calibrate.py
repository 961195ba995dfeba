"""Proposes a gate's thresholds from frames that are known to be good."""

from __future__ import annotations

from pathlib import Path

from edge.capture.folder import find_images, read_image
from edge.errors import CaptureError, ImageError, UsageError
from edge.gate import Measures, measure, propose
from edge.preprocess import check_image
from edge.recipe import GateRecipe

LEAST_FRAMES = 20

Roi = tuple[float, float, float, float]


def measure_folder(folder: Path, roi: Roi) -> tuple[list[Measures], list[str]]:
    """Measures of every usable image, and a sentence about each that is not.

    Raises:
        CaptureError: the folder does not exist or holds no image.
    """
    measures, unusable = [], []
    for path in find_images(folder):
        try:
            image = read_image(path)
            check_image(image)
        except (CaptureError, ImageError) as error:
            unusable.append(f"{path.name}: {error}")
            continue
        measures.append(measure(image, roi))
    return measures, unusable


def calibrate_gate(folder: Path, roi: Roi, refuse_share: float) -> tuple[GateRecipe, list[Measures], list[str]]:
    """The proposed gate, the measures it rests on, and the files left out.

    Args:
        refuse_share: share of good frames that may be refused, in [0, 0.5).

    Raises:
        UsageError: too few usable frames to propose anything.
    """
    measures, unusable = measure_folder(folder, roi)
    if len(measures) < LEAST_FRAMES:
        raise UsageError(
            f"{folder} holds {len(measures)} usable images and a proposal wants at least {LEAST_FRAMES} good frames: "
            "record more of them over a whole shift"
        )
    return propose(measures, roi, refuse_share), measures, unusable
