"""Quantization-aware training: a short fine-tuning through rounded weights and activations, where rounding alone lost
too much.

paddleslim's dynamic-graph QAT rounds the inputs and weights of the layers that the plan quantizes, and of no others:
the rest carry its `skip_quant`, depthwise convolutions among them. The rounded network is a twin of the one that
`tools.train` trains, and shares every weight and BatchNorm statistic with it: checkpoints, averaging and resuming stay
what they are, and what comes out is an ordinary FP32 network whose weights have learned to bear rounding. On the way
the scales of the activations follow a moving average, starting from those of the post-training model.

The exported network is quantized like any other, and given these scales. paddleslim's own export is not used: Paddle
Lite refuses its programs with weights of seven bits, which x86 needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.nn.quant.quant_layers import FakeQuantMAOutputScaleLayer, MAOutputScaleLayer

from tools.checkpoint import network_of, read_checkpoint
from tools.dataset import Dataset, Sample
from tools.errors import ToolError
from tools.journal import Journal
from tools.loss import LossConfig
from tools.network import Detector
from tools.objective import Batch, LabelLoss
from tools.paddle_model import StaticModel, save_layer
from tools.plan import Plan
from tools.ptq import LEVELS, quiet
from tools.ranges import LEAST
from tools.stages import train_once
from tools.train import Hooks, Run, TrainConfig

SCALES = "scales.json"
BITS = {"reduced": 7, "full": 8}  # of the weights, by range
MOVING_RATE = 0.99
EPOCHS = 1000  # more than the minutes allow
RATE = 2e-4  # a tenth of training's: the weights are good already


@dataclass(frozen=True)
class Trained:
    """What came out: the FP32 model's folder, and the largest magnitude that each quantized layer's input keeps."""

    folder: Path
    scales: dict[str, float]  # by the layer's name


def twin_of(network: Detector) -> Detector:
    """Another network of the same shape that shares weights and statistics with this one."""
    twin = Detector(network.config)
    for mine, theirs in zip(twin.sublayers(include_self=True), network.sublayers(include_self=True), strict=True):
        mine._parameters.update(theirs._parameters)
        mine._buffers.update(theirs._buffers)
    return twin


class Rounder(nn.Layer):
    """Rounds an activation to INT8 and clips it; the gradient passes through rounding, but not where it was clipped.

    In training the scale follows the largest magnitude. It is a plain number: the scales of Paddle's own layer for this
    hold on to the graph of the last step, and a graph with a `PyLayer` in it that is there when Python ends hangs the
    process.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if self.training:
            self.scale += (1 - MOVING_RATE) * (float(x.detach().abs().max()) - self.scale)
        step = max(self.scale, LEAST) / LEVELS
        kept = x.clip(-step * LEVELS, step * LEVELS)
        value = kept.detach()
        return kept + ((value / step).round() * step - value)


def round_layers(network: nn.Layer, scales: Mapping[str, float], bits: int) -> None:
    """Let the convolutions that `scales` names round their weights to `bits` and their inputs to 8, in place.

    Args:
        scales: largest magnitude of each layer's input to begin with, by the layer's name.

    Raises:
        ToolError: the network has no such layer.
    """
    layers = {name: layer for name, layer in network.named_sublayers() if isinstance(layer, nn.Conv2D)}
    strange = sorted(set(scales) - set(layers))
    if strange:
        raise ToolError(f"the network has no convolution {strange[0]}; export the model again from this checkpoint")
    for name, layer in layers.items():
        layer.skip_quant = name not in scales
    with quiet():
        from paddleslim import QAT

    QAT(
        {
            "weight_bits": bits,
            "activation_bits": 8,
            "weight_quantize_type": "channel_wise_abs_max",
            "quantizable_layer_type": ["Conv2D"],
            "onnx_format": True,  # leaves the layers alone that are not rounded
        },
        act_quantize=Rounder,
    ).quantize(network)
    _unwrap(network)
    for name, rounder in rounders(network).items():
        rounder.scale = scales[name]


def _unwrap(network: nn.Layer) -> None:
    """Take off what paddleslim puts around each rounded layer to measure its output, which nothing here reads.

    It also holds on to the graph of the last step, see `Rounder`.
    """
    for parent in network.sublayers(include_self=True):
        for name, child in list(parent.named_children()):
            if isinstance(child, (FakeQuantMAOutputScaleLayer, MAOutputScaleLayer)):
                setattr(parent, name, child._layer)


def rounders(network: nn.Layer) -> dict[str, Rounder]:
    """What rounds the input of each quantized convolution, by the layer's name."""
    ending = "._fake_quant_input"
    found = {name: layer for name, layer in network.named_sublayers() if name.endswith(ending)}
    return {name.removesuffix(ending): layer for name, layer in found.items()}


class RoundedLoss:
    """The loss on labels of a network's rounded twin; see `tools.objective.Objective`."""

    def __init__(self, network: Detector, scales: Mapping[str, float], bits: int, labels: LossConfig):
        self.twin = twin_of(network)
        round_layers(self.twin, scales, bits)
        self._labels = LabelLoss(labels)

    def loss(self, network: Detector, batch: Batch) -> tuple[paddle.Tensor, dict[str, float]]:
        """See `Objective.loss`."""
        return self._labels.loss(self.twin, batch)

    def scales(self) -> dict[str, float]:
        """Largest magnitude of each quantized layer's input, as it is now."""
        return {name: rounder.scale for name, rounder in rounders(self.twin).items()}


def make_objective(run: Run, scales: Mapping[str, float], bits: int) -> RoundedLoss:
    """The objective of a run; one that goes on takes up the scales it had."""
    kept = Path(run.config.out) / SCALES
    if run.config.resume and kept.is_file():
        scales = json.loads(kept.read_text(encoding="utf-8"))
    return RoundedLoss(run.network, scales, bits, run.loss_config)


def keep_scales(run: Run, held: Sequence[Sample]) -> dict[str, Any]:
    """At the end of an epoch: the scales go with the checkpoint."""
    if isinstance(run.objective, RoundedLoss):
        path = Path(run.config.out) / SCALES
        partial_path = path.with_suffix(".partial")
        partial_path.write_text(json.dumps(run.objective.scales(), indent=1) + "\n", encoding="utf-8")
        partial_path.replace(path)
    return {}


def settings(data: Path, checkpoint: Path, out: Path, minutes: float, max_steps: int, processes: int) -> TrainConfig:
    """The knobs of the training."""
    return TrainConfig(
        data=str(data),
        out=str(out),
        epochs=EPOCHS,
        minutes=minutes,
        max_steps=max_steps,
        processes=processes,
        rate=RATE,
        warmup_steps=50,
        evaluate_every=0,
        start_from=str(checkpoint),
    )


def check_origin(checkpoint: Path, folder: Path, plan: Plan) -> None:
    """Check that the model in `folder` holds the checkpoint's averaged weights.

    Raises:
        ToolError: it does not.
    """
    weights, model = read_checkpoint(checkpoint).state["average"], StaticModel.load(folder)
    for layer in (x for x in plan.layers if x.int8):
        mine = weights.get(f"{layer.name}.weight")
        if mine is None or not np.array_equal(np.asarray(mine), model.weight(layer.filter)):
            raise ToolError(f"{checkpoint}: {folder} was not exported from it ({layer.name} differs); export again")


def fine_tune(
    config: TrainConfig, plan: Plan, scales: Mapping[str, float], data: Dataset, journal: Journal, key: str
) -> Trained:
    """Train on from `config.start_from`, and export; the same call goes on after a stop.

    Args:
        scales: of the post-training model's activations, by the layer's name: the beginning.
        key: names this training in the journal.
    """
    hooks = Hooks(partial(make_objective, scales=dict(scales), bits=BITS[plan.weights]), keep_scales, "qat")
    final = train_once(config, hooks, journal, key)
    folder = Path(config.out) / "fp32"
    save_layer(network_of(read_checkpoint(final), final), folder, data.spec)
    learned = json.loads((Path(config.out) / SCALES).read_text(encoding="utf-8"))
    if not all(math.isfinite(value) and value > 0 for value in learned.values()):
        raise ToolError(f"{Path(config.out) / SCALES}: a scale is not a positive number; train again at a lower rate")
    return Trained(folder, learned)
