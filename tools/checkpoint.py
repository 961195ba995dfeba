"""Checkpoints of training: everything needed to go on, and everything needed to know what the weights are for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from edge.preprocess import InputSpec
from tools.dataset import Dataset
from tools.errors import ToolError
from tools.network import Detector, NetworkConfig

NEEDED = ("network", "average", "network_config", "classes", "input")


@dataclass(frozen=True)
class Saved:
    """A checkpoint in memory."""

    state: dict[str, Any]  # `network` and `average`: weights by name, (EMA: `average` is what is exported)
    network_config: NetworkConfig
    classes: tuple[str, ...]
    spec: InputSpec
    product: str


def write_checkpoint(
    path: Path, network: Detector, average: dict[str, np.ndarray], data: Dataset | Saved, **more: Any
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        network: its weights and shape. average: the averaged weights, by name.
        data: says classes, input and product. more: what only training needs to go on.
    """
    spec = data.spec
    state = {
        "network": {k: v.numpy() for k, v in network.state_dict().items()},
        "average": average,
        "network_config": network.config.as_dict(),
        "classes": list(data.classes),
        "input": {"width": spec.width, "height": spec.height, "channels": spec.channels},
        "product": data.product,
        **more,
    }
    partial = path.with_suffix(".partial")
    paddle.save(state, str(partial))
    partial.replace(path)


def read_checkpoint(path: Path) -> Saved:
    """Read a checkpoint.

    Raises:
        ToolError: missing, damaged or not one of ours.
    """
    if not path.is_file():
        raise ToolError(f"{path}: missing; `python -m tools train` writes it")
    try:
        state = paddle.load(str(path), return_numpy=True)
        lacking = [key for key in NEEDED if key not in state]
    except Exception as error:  # unpickling damaged bytes raises whatever they spell
        kind = type(error).__name__
        raise ToolError(f"{path}: damaged or not a checkpoint ({kind}: {error}); train again") from error
    if lacking:
        raise ToolError(f"{path}: not a checkpoint of this toolchain's version: it lacks {', '.join(lacking)}")
    try:
        config = NetworkConfig(**state["network_config"])
    except TypeError as error:
        raise ToolError(f"{path}: made for another network: {error}; train again") from error
    spec = InputSpec(**state["input"])
    return Saved(state, config, tuple(state["classes"]), spec, str(state.get("product", "")))


def network_of(saved: Saved, path: Path, weights: str = "average") -> Detector:
    """The checkpoint's network in evaluation mode: its averaged weights, or with `weights="network"` the raw ones.

    Raises:
        ToolError: weights and network do not belong together.
    """
    network = Detector(saved.network_config)
    missing, unexpected = network.set_state_dict(saved.state[weights])
    if missing or unexpected:
        raise ToolError(f"{path}: weights for another network; missing {missing}, unexpected {unexpected}")
    network.eval()
    return network


def copy_state(network: nn.Layer) -> dict[str, np.ndarray]:
    """The weights by name, as `write_checkpoint` takes an average."""
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}
