"""The baseline of a product's drift signals: what the device will measure, on good frames, with the device's code."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edge.detect import Detector
from edge.drift import plan, reconstruct, signals
from edge.drift.settings import Autoencoder as Input
from edge.drift.settings import DriftSettings
from edge.pipeline import Pipeline
from edge.recipe import Recipe
from edge.records import Frame
from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import Dataset, read_image
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.evaluate import settings_of
from tools.model_info import Purpose, purpose_of
from tools.network import with_features
from tools.runtimes import LayerPredictor, open_predictor

LEAST_FRAMES = 12  # as `edge` asks where it learns a baseline by itself


@dataclass(frozen=True)
class Baseline:
    """The settings of a product's monitor, and what they rest on.

    Attributes:
        errors: of the autoencoder, one a frame. refused: how many frames the gate refused; they are not counted.
    """

    settings: DriftSettings
    errors: list[float]
    refused: int


def detector_of(model: Path, recipe: Recipe, data: Dataset) -> tuple[Detector, Purpose]:
    """The detector that the signals listen to; a checkpoint's network gives its features too.

    Raises:
        ToolError: the model cannot be run.
    """
    purpose = purpose_of(model, data)
    if model.suffix == ".pdckpt":
        predictor = LayerPredictor(with_features(network_of(read_checkpoint(model), model)))
    else:
        predictor = open_predictor(model)  # type: ignore[assignment]
    return Detector(predictor, purpose.spec, settings_of(recipe.detect)), purpose


def measure_baseline(
    files: Sequence[Path], detector: Detector, purpose: Purpose, recipe: Recipe, nb: Path, spec: Input, every: int
) -> Baseline:
    """The baseline of all signals on good frames.

    Args:
        files: of the frames, each counted once. nb: the autoencoder as the device runs it.
        every: the autoencoder will look at each so-many-th frame.

    Raises:
        ToolError: frames of several sizes, or the gate refuses nearly all.
    """
    pipeline = Pipeline(detector, recipe, purpose.classes, lambda: 0)
    rows: list[dict[str, float]] = []
    means: list[plan.Means] = []
    size, refused = None, 0
    with closing(DevicePredictor(nb)) as predictor:
        for number, file in enumerate(tqdm(files, "baseline", mininterval=5), 1):
            image = read_image(file, purpose.spec.channels)
            size = size or image.shape[:2]
            if image.shape[:2] != size:
                raise ToolError(f"{file}: is {_sides(image.shape)}, others {_sides(size)}: one baseline, one size")
            seen = pipeline.inspect(Frame(image, "baseline", number, 0, 0.0))
            if not seen.gate.passed:
                refused += 1
                continue
            tensor = reconstruct.prepare(image, spec)
            off = reconstruct.error(tensor, predictor.run(tensor)[0])
            rows.append(signals.measure(seen, seen.features, off, None, recipe.detect.review))
            if seen.features is not None:
                means.append(signals.channel_means(seen.features))
    if len(rows) < LEAST_FRAMES or size is None:
        raise ToolError(
            f"the gate passes {len(rows)} of {len(files)} good frames, and a baseline wants {LEAST_FRAMES}: "
            "fit its limits first (`edge calibrate gate`), or give more frames"
        )
    settings = _settings(rows, means, purpose, size, spec, every, recipe.detect.review)
    return Baseline(settings, [row["ae_error"] for row in rows], refused)


def _settings(
    rows: Sequence[dict[str, float]],
    means: Sequence[plan.Means],
    purpose: Purpose,
    size: tuple[int, ...],
    spec: Input,
    every: int,
    least_confidence: float,
) -> DriftSettings:
    values = {name: [row[name] for row in rows] for name in plan.PLANS if name in rows[0]}
    expected = None
    if means:
        expected, values["feature_distance"] = plan.expected_features(np.array(means))
    measured = plan.Measured(
        values, purpose.classes, size[1], size[0], ae_every=every, features=expected, autoencoder=spec
    )
    return plan.settings_for(measured, purpose.product, least_confidence=least_confidence)


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
