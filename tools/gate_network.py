"""The gate's classifier: small, for the four maps of `edge.gate_classifier.mosaic`, built for INT8.

Convolutions whose stride is their kernel, and 1x1 ones: all of it is matrix products. What a place in a spectrum means
depends on where it is, so the last of them has weights of its own for every place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import paddle
from paddle import nn

from edge.gate_classifier import OUTPUTS, SIDE
from edge.preprocess import InputSpec
from tools.network import ConvNorm

SPEC = InputSpec(SIDE, SIDE, 1)
GRID = SIDE // 8  # cells a side before the last spatial convolution


@dataclass(frozen=True)
class GateNetworkConfig:
    """Widths: at a quarter and at an eighth of the input, of what each place hands on, and of all together."""

    width4: int = 32
    width8: int = 64
    place: int = 16
    whole: int = 48
    drop: float = 0.2  # of what the places hand on, in training

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a record."""
        return asdict(self)


class GateNetwork(nn.Layer):
    """Maps (B, 1, 64, 64) -> logits (B, outputs, 1, 1), in the order of `edge.gate_classifier.OUTPUTS`."""

    def __init__(self, config: GateNetworkConfig | None = None):
        super().__init__()
        self.config = c = config or GateNetworkConfig()
        self.patch = ConvNorm(1, c.width4, 4, 4)
        self.down = ConvNorm(c.width4, c.width8, 2, 2)
        self.mix = ConvNorm(c.width8, c.width8)
        self.place = ConvNorm(c.width8, c.place)
        self.drop = nn.Dropout(c.drop)
        self.whole = ConvNorm(c.place, c.whole, GRID, GRID)
        self.out = nn.Conv2D(c.whole, len(OUTPUTS), 1)

    def forward(self, maps: paddle.Tensor) -> paddle.Tensor:
        at8 = self.mix(self.down(self.patch(maps)))  # (B, width8, 8, 8)
        return self.out(self.whole(self.drop(self.place(at8))))


def network_from(weights: Mapping[str, Any], config: GateNetworkConfig | None = None) -> GateNetwork:
    """The network with these weights, in evaluation mode."""
    network = GateNetwork(config)
    network.set_state_dict(dict(weights))
    network.eval()
    return network
