"""What the steps that train on have in common: train once and go on after a stop, and measure a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tools.dataset import Dataset, Sample, read_image, truth_of
from tools.errors import ToolError
from tools.evaluate import detect_all, figures
from tools.journal import Journal
from tools.network import Detector
from tools.runtimes import LayerPredictor
from tools.train import CHECKPOINT, FINAL, Hooks, TrainConfig, launched, run_all

OWN_TO_A_CALL = ("resume", "max_steps", "processes")  # knobs that may differ when a run goes on


def lasting(config: TrainConfig) -> dict[str, Any]:
    """The knobs that a journal of the run depends on."""
    return {name: value for name, value in asdict(config).items() if name not in OWN_TO_A_CALL}


def train_once(config: TrainConfig, hooks: Hooks, journal: Journal, name: str) -> Path:
    """Train, or go on where the same command was stopped; returns the final checkpoint.

    Args:
        journal: remembers what has begun and what is done, under `name`.

    Raises:
        ToolError: under `paddle.distributed.launch`.
    """
    if launched():
        raise ToolError("this step does more than train, on one machine: start it without paddle.distributed.launch")
    out = Path(config.out)
    if name not in journal:
        began = f"{name} begun" in journal
        journal.once(f"{name} begun", lambda: True)
        run_all(replace(config, resume=began and (out / CHECKPOINT).is_file()), hooks)
        journal.once(name, lambda: True)
    return out / FINAL


def measure(network: Detector, data: Dataset, samples: Sequence[Sample], progress: str = "") -> dict[str, Any]:
    """Figures of a network on the samples, through `edge.detect`; see `tools.metrics.figures`."""
    images = (read_image(sample.image, data.spec.channels) for sample in samples)
    found = detect_all(LayerPredictor(network), images, data.spec, progress)
    return figures(found, truth_of(samples), data.classes, [sample.known for sample in samples])


def parameter_count(network: Detector) -> int:
    """Trained weights of a network; BatchNorm's statistics are not among them."""
    return int(sum(p.size for p in network.parameters() if not p.stop_gradient))


def draw_classes(axes: Axes, results: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> None:
    """Bars of AP33 by class and pooled, a colour a network."""
    names, width = [*classes, "pooled"], 0.8 / len(results)
    for k, (label, result) in enumerate(results.items()):
        heights = [*(result["ap33"].get(name, np.nan) for name in classes), result["ap33_pooled"]]
        places = np.arange(len(names)) + (k - (len(results) - 1) / 2) * width
        axes.bar(places, np.nan_to_num(np.array(heights, float)), width, label=label)
    axes.set_xticks(np.arange(len(names)), names, rotation=20)
    axes.set_ylim(0, 1.02)
    axes.legend(loc="lower right")
