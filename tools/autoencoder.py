"""The drift autoencoder: reads a small picture of a frame through a narrow code and paints it again.

What good frames have in common fits through the code; what is new does not, and the error tells (Hinton and
Salakhutdinov, Science 313, 2006, for the kind of network; Vincent et al., ICML 2008, for learning it by taking out
noise). Built for INT8 like the detector: patches instead of overlapping convolutions, all of it at low resolution,
BatchNorm and ReLU. The last layer does not enlarge anything: its channels are the pixels of a cell's square, and who
compares them with the input puts the input into the same order (`edge.drift.reconstruct`): a 1x1 convolution instead of
a transposed one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from edge.drift.settings import Autoencoder as Input
from tools.errors import ToolError
from tools.network import ConvNorm

KERNELS = (1, 3)


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of an autoencoder; the defaults are what `drift_search` chose on circuit boards.

    Attributes:
        width, height: of its input in pixels, multiples of `cell`.
        tile: side of the pieces that the input is put together from, a multiple of `cell`; 0: the whole frame, scaled.
        patch: side of the pieces that the first layer reads.
        stem: channels after it. inner: channels of the cells, each 2x2 patches.
        code: channels of the narrowest place, a cell.
        depth: 1x1 or 3x3 convolutions beside the code, on either side.
        kernel: their side; 3 lets a cell see its neighbours.
    """

    width: int = 256
    height: int = 256
    tile: int = 64
    patch: int = 4
    stem: int = 16
    inner: int = 96
    code: int = 8
    depth: int = 0
    kernel: int = 3

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel is {self.kernel}, expected one of {', '.join(map(str, KERNELS))}")
        small = [name for name in ("patch", "stem", "inner", "code") if getattr(self, name) < 1]
        if small or self.depth < 0:
            raise ValueError(f"{', '.join(small) or 'depth'} must be positive")
        if self.width <= 0 or self.height <= 0 or self.width % self.cell or self.height % self.cell:
            raise ValueError(f"input {self.width}x{self.height}: both sides must be multiples of {self.cell}")
        if self.tile % self.cell or (self.tile and (self.width % self.tile or self.height % self.tile)):
            raise ValueError(f"tile is {self.tile}, expected a multiple of {self.cell} that divides both sides, or 0")

    @property
    def cell(self) -> int:
        """Side in pixels of the square that a place of the code stands for."""
        return 2 * self.patch

    @property
    def input(self) -> Input:
        """What it reads of a frame: grey, in [0, 1]."""
        return Input(width=self.width, height=self.height, tile=self.tile)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a checkpoint or a record; `AutoencoderConfig(**...)` reads them back."""
        return asdict(self)


class Autoencoder(nn.Layer):
    """Pictures (B, 1, H, W) in [0, 1] -> what is painted again, (B, cell * cell, H/cell, W/cell).

    Channel y * cell + x of a place is the pixel (x, y) of its square.

    >>> network = Autoencoder(AutoencoderConfig(64, 32, tile=32))
    >>> network(paddle.zeros([2, 1, 32, 64])).shape
    [2, 64, 4, 8]
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = c = config
        self.encoder = nn.Sequential(
            ConvNorm(1, c.stem, c.patch, c.patch),
            ConvNorm(c.stem, c.inner, 2, 2),
            *[ConvNorm(c.inner, c.inner, c.kernel) for _ in range(c.depth)],
            ConvNorm(c.inner, c.code),
        )
        self.decoder = nn.Sequential(
            ConvNorm(c.code, c.inner, c.kernel),
            *[ConvNorm(c.inner, c.inner) for _ in range(c.depth)],
            nn.Conv2D(c.inner, c.cell**2, 1),
        )

    @property
    def kept_fp32(self) -> tuple[str, ...]:
        """Names of the convolutions that are not to be quantized; what is left has most of the multiplications.

        The first: INT8 has 128 levels from black to white, and rounding to them is an error of the size that a smooth
        product has. The one that writes the code, which is narrow. The last: its rounding would go into each pixel.
        """
        return "encoder.0.conv", f"encoder.{len(self.encoder) - 1}.conv", f"decoder.{len(self.decoder) - 1}"

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.decoder(self.encoder(image))


def write_autoencoder(path: Path, network: Autoencoder, **more: Any) -> None:
    """Write a checkpoint, whole or not at all. `more` is what only training needs to go on."""
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    partial = path.with_suffix(".partial")
    paddle.save({"autoencoder": network.config.as_dict(), "weights": weights, **more}, str(partial))
    partial.replace(path)


def read_autoencoder(path: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """The network of a checkpoint in evaluation mode, and everything else in it.

    Raises:
        ToolError: missing, damaged, or not one of an autoencoder.
    """
    if not path.is_file():
        raise ToolError(f"{path}: missing; `python -m tools drift` writes it")
    try:
        state = paddle.load(str(path), return_numpy=True)
        network = Autoencoder(AutoencoderConfig(**state["autoencoder"]))
        lacking, strange = network.set_state_dict(state["weights"])
    except Exception as error:  # unpickling damaged bytes raises whatever they spell
        kind = type(error).__name__
        raise ToolError(f"{path}: damaged or no autoencoder ({kind}: {error}); train again") from error
    if lacking or strange or not all(np.isfinite(value).all() for value in state["weights"].values()):
        raise ToolError(f"{path}: its weights are not those of its network; train again")
    network.eval()
    return network, {name: value for name, value in state.items() if name != "weights"}
