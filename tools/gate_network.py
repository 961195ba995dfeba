"""The gate's classifier: small, for the mosaic of `edge.gate_classifier`, built for INT8.

Patch convolutions, whose stride is their kernel, and 1x1 convolutions alone: all of it is matrix products, which INT8
speeds up everywhere (see `tools.network`). No cell mixes two tiles until the last convolution, which sees one cell a
tile and weighs the twelve of them against the thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import paddle
from paddle import nn

from edge.gate_classifier import OUTPUTS, SIDE, TILE
from edge.preprocess import InputSpec
from tools.network import ConvNorm

SPEC = InputSpec(SIDE, SIDE, 1)
GRID = SIDE // TILE  # tiles a side of the mosaic


@dataclass(frozen=True)
class GateNetworkConfig:
    """Widths: of the patches, at an eighth and a sixteenth of the mosaic's side, of a tile, and of all together."""

    patch: int = 48
    width8: int = 32
    width16: int = 64
    tile: int = 20
    whole: int = 32

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a record."""
        return asdict(self)


class Pair(nn.Layer):
    """1x1 expand, 1x1 project, added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.expand = ConvNorm(width, 2 * width)
        self.project = ConvNorm(2 * width, width, activation=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self.project(self.expand(x))


class GateNetwork(nn.Layer):
    """Mosaic (B, 1, 256, 256) -> logits (B, outputs, 1, 1), in the order of `edge.gate_classifier.OUTPUTS`."""

    def __init__(self, config: GateNetworkConfig | None = None):
        super().__init__()
        self.config = c = config or GateNetworkConfig()
        self.patch = ConvNorm(1, c.patch, 8, 8)
        self.mix = ConvNorm(c.patch, c.width8)
        self.down16 = ConvNorm(c.width8, c.width16, 2, 2)
        self.pair16 = Pair(c.width16)
        self.down32 = ConvNorm(c.width16, c.width16, 2, 2)
        self.tile = ConvNorm(c.width16, c.tile)
        self.pool = nn.AvgPool2D(2, 2)
        self.whole = ConvNorm(c.tile, c.whole, GRID, GRID)
        self.out = nn.Conv2D(c.whole, len(OUTPUTS), 1)

    def forward(self, mosaic: paddle.Tensor) -> paddle.Tensor:
        at8 = self.mix(self.patch(mosaic))  # (B, width8, 32, 32)
        at16 = self.pair16(self.down16(at8))  # (B, width16, 16, 16)
        of_tile = self.pool(self.tile(self.down32(at16)))  # (B, tile, 4, 4)
        return self.out(self.whole(of_tile))


def network_from(weights: Mapping[str, Any], config: GateNetworkConfig | None = None) -> GateNetwork:
    """The network with these weights, in evaluation mode."""
    network = GateNetwork(config)
    network.set_state_dict(dict(weights))
    network.eval()
    return network
