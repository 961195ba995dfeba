"""Everything that can run the detector, behind the protocol `edge.detect.Predictor`.

The device runs `.nb` and `.onnx` through `edge`; here are also Paddle's own executors, which give the reference
figures (FP32 network, simulation of a quantized one).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from edge.boxes import Float
from edge.detect import Predictor
from tools.checkpoint import network_of, read_checkpoint
from tools.device_runtime import RUNTIMES, DevicePredictor
from tools.errors import ToolError
from tools.network import Detector
from tools.paddle_model import StaticModel


class LayerPredictor:
    """A dynamic-graph network in evaluation mode."""

    def __init__(self, network: nn.Layer):
        self._network = network
        network.eval()

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of one input (1, C, H, W)."""
        with paddle.no_grad():
            return [np.asarray(out.numpy(), np.float32) for out in self._network(paddle.to_tensor(tensor))]


def load_network(checkpoint: Path, weights: str = "average") -> Detector:
    """The network of a checkpoint, in evaluation mode: averaged weights, or with `weights="network"` the raw ones.

    Raises:
        ToolError: missing, damaged or made for another network.
    """
    return network_of(read_checkpoint(checkpoint), checkpoint, weights)


def open_predictor(model: Path, weights: str = "average") -> Predictor:
    """Whatever the path names: checkpoint, Paddle model folder (FP32 or quantized), `.nb` or `.onnx`.

    `.nb` and `.onnx` run in a child process (see `tools.device_runtime`).

    Raises:
        ToolError: none of these.
    """
    if model.is_dir():
        return StaticModel.load(model)
    if not model.is_file():
        raise ToolError(f"{model}: missing")
    if model.suffix == ".pdckpt":
        return LayerPredictor(load_network(model, weights))
    if model.suffix not in RUNTIMES:
        raise ToolError(f"{model}: expected a .pdckpt, .nb or .onnx file, or a folder with a Paddle model")
    return DevicePredictor(model)
