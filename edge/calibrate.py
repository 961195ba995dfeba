"""Proposes thresholds of the gate and of the anomaly judge from frames that are known to be good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import msgspec
import numpy as np

from edge import gate, gate_classifier, loading, serving
from edge.anomaly import Limit, limit_for
from edge.bundle import manifest as manifests
from edge.capture.folder import find_images, read_image
from edge.capture.optics import defocus_kernel
from edge.config import Runtime
from edge.errors import BundleError, CaptureError, ImageError, UsageError
from edge.gate import Measures
from edge.gate_classifier import GateClassifier, GateClassifierSettings
from edge.preprocess import Image, check_image, to_channels
from edge.recipe import GateRecipe
from edge.records import Frame, Scores

LEAST_FRAMES = 20
# Radius of the disc of confusion that costs a detector of fine defects a tenth of its recall.
HARMFUL_DEFOCUS_PX = 2.0

Roi = tuple[float, float, float, float]


@dataclass
class Good:
    """What was measured on good frames, in their order.

    Attributes:
        measures: of each frame. defocused: of the same frame out of focus; empty without a classifier.
        probabilities: by the classifier, of each frame; empty without one.
        unusable: a sentence about each file that was left out.
    """

    measures: list[Measures] = field(default_factory=list)
    defocused: list[Measures] = field(default_factory=list)
    probabilities: list[Mapping[str, float]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Proposal:
    """A gate for a line, and what it would do to the frames that it was made from.

    Attributes:
        recipe: the proposal. good: what it rests on.
        refused: how many of the good frames it refuses. looked_at: how many the classifier looks at.
    """

    recipe: GateRecipe
    good: Good
    refused: int
    looked_at: int


def open_classifier(bundle: Path, roi: Roi) -> tuple[GateClassifier, GateClassifierSettings]:
    """The classifier of a bundle, and its settings.

    Raises:
        BundleError: the bundle cannot be used here, or has none.
        PredictorError: it cannot be loaded or run here.
    """
    manifest = manifests.read(bundle)
    if "gate" not in manifest.judges:
        raise BundleError(
            f"the bundle {bundle} has no classifier for the gate: calibrate without --bundle, or build one into it"
        )
    path = bundle / manifest.judges["gate"].settings
    settings = gate_classifier.read_settings(path.read_bytes(), str(path))
    predictor = loading.open_judge(bundle, manifest, "gate", Runtime())
    return GateClassifier(predictor, settings, GateRecipe(roi=roi)), settings


def measure_folder(folder: Path, roi: Roi, classifier: GateClassifier | None = None) -> Good:
    """Measures of every usable image, and a sentence about each that is not.

    Raises:
        CaptureError: the folder does not exist or holds no image.
        PredictorError: the classifier failed.
    """
    good = Good()
    for path in find_images(folder):
        try:
            image = read_image(path)
            check_image(image)
        except (CaptureError, ImageError) as error:
            good.unusable.append(f"{path.name}: {error}")
            continue
        good.measures.append(gate.measure(image, roi))
        if classifier is not None:
            good.defocused.append(gate.measure(_defocused(image), roi))
            good.probabilities.append(classifier.probabilities(image))
    return good


def _defocused(image: Image) -> Image:
    return np.asarray(cv2.filter2D(to_channels(image, 1), -1, defocus_kernel(HARMFUL_DEFOCUS_PX)), np.uint8)


def calibrate_gate(folder: Path, roi: Roi, refuse_share: float, bundle: Path | None = None) -> Proposal:
    """The proposed gate.

    Args:
        refuse_share: share of good frames that may be refused, in [0, 0.5).
        bundle: its classifier gets limits too, and the range within which it need not look.

    Raises:
        UsageError: too few usable frames to propose anything.
        BundleError, PredictorError: the bundle has no classifier, or it cannot be used here.
    """
    classifier, settings = open_classifier(bundle, roi) if bundle is not None else (None, None)
    good = measure_folder(folder, roi, classifier)
    if len(good.measures) < LEAST_FRAMES:
        raise UsageError(
            f"{folder} holds {len(good.measures)} usable images and a proposal wants at least {LEAST_FRAMES} good "
            "frames: record more of them over a whole shift"
        )
    recipe = gate.propose(good.measures, roi, refuse_share)
    if settings is None:
        refused = sum(not gate.judge(m, recipe).passed for m in good.measures)
        return Proposal(recipe, good, refused, 0)
    recipe = gate.propose_sure(good.measures, good.defocused, recipe)
    good.probabilities = [
        gate_classifier.weighed(p, m.sharpness, recipe) for p, m in zip(good.probabilities, good.measures, strict=True)
    ]
    limits = gate_classifier.fit_limits(good.probabilities, settings, refuse_share)
    own = {cause: limit for cause, limit in limits.items() if limit != settings.limits[cause]}
    return _tried(msgspec.structs.replace(recipe, classifier_limit=own), good, limits)


def _tried(recipe: GateRecipe, good: Good, limits: Mapping[str, float]) -> Proposal:
    """The proposal with what cheap measures and classifier together do to the frames that it was made from."""
    refused = looked_at = 0
    for measures, probabilities in zip(good.measures, good.probabilities, strict=True):
        result = gate.judge(measures, recipe)
        if gate.undecided(result, recipe):
            looked_at += 1
            result = gate_classifier.judged(result, probabilities, limits)
        refused += not result.passed
    return Proposal(recipe, good, refused, looked_at)


@dataclass(frozen=True)
class AnomalyProposal:
    """A limit of the anomaly score for a line, and what it rests on.

    Attributes:
        limit: scores from here on are to go to a person. scores: of each usable frame, in their order.
        reached: how many of the frames reach the bundle's own limit, which is `bundle_limit`.
        unusable: a sentence about each file that was left out.
    """

    limit: Limit
    scores: list[float]
    reached: int
    bundle_limit: float
    unusable: list[str]


def calibrate_anomaly(folder: Path, bundle: Path, overkill: float) -> AnomalyProposal:
    """A limit that about `overkill` of good frames like these reach.

    Args:
        folder: images of good frames. bundle: its detector and anomaly judge score them.
        overkill: share of good frames, in (0, 0.2].

    Raises:
        UsageError: too few usable frames to propose anything.
        BundleError, ConfigError, PredictorError: the bundle has no anomaly judge, or cannot be used here.
    """
    product = serving.open_product(bundle, Runtime())
    if product.judges.anomaly is None:
        raise BundleError(f"the bundle {bundle} has no anomaly judge, or its recipe says not to use it")
    pipeline = product.pipeline(lambda: 0)
    scores: list[Scores] = []
    unusable: list[str] = []
    for path in find_images(folder):
        try:
            frame = Frame(read_image(path), "calibrate", len(scores) + 1, 0, 0.0, path.name)
            found = pipeline.inspect(frame, detect_refused=True).scores  # what the gate thinks is not asked here
        except (CaptureError, ImageError) as error:
            unusable.append(f"{path.name}: {error}")
            continue
        scores.append(found)
    values = [s.anomaly for s in scores if s.anomaly is not None]
    if len(values) < LEAST_FRAMES:
        raise UsageError(
            f"{folder} holds {len(values)} usable images and a limit wants at least {LEAST_FRAMES} good frames: record "
            "more of them over a whole shift"
        )
    reached = sum(s.anomalous for s in scores)
    return AnomalyProposal(limit_for(values, overkill), values, reached, scores[0].anomaly_limit or 0.0, unusable)
