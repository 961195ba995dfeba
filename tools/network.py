"""The detector: small, anchor-free, one head at stride 8, built for INT8.

Why this shape: a strided stem reaches low resolution at once, because few channels at high resolution lose in
INT8; bottlenecks pair a narrow dense 3x3 (gains on ARM) with wide 1x1 (gains on x86 and ARM); no depthwise
convolution (slower in INT8, slow to train); ReLU only and BatchNorm instead of bias, or the INT8 chain breaks.
"""

from __future__ import annotations

from dataclasses import dataclass

import paddle
from paddle import nn

STRIDE = 8
INPUT_SIZE = 640
INPUT_CHANNELS = 1
PRIOR = 0.01  # confidence of an untrained head: keeps the first steps calm (RetinaNet, arXiv:1708.02002)


@dataclass(frozen=True)
class NetworkConfig:
    """Widths and depths; the defaults are the shipped network."""

    classes: int = 6
    stem: int = 32
    width8: int = 64
    width16: int = 128
    width32: int = 160
    depth8: int = 2
    depth16: int = 3
    depth32: int = 2
    neck: int = 64
    tower: int = 32


class ConvNorm(nn.Layer):
    """Convolution without bias, BatchNorm, ReLU (which `activation=False` leaves out)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, activation: bool = True):
        super().__init__()
        padding = (kernel - stride + 1) // 2 if stride > 2 else kernel // 2
        self.conv = nn.Conv2D(inputs, outputs, kernel, stride, padding, bias_attr=False)
        self.norm = nn.BatchNorm2D(outputs)
        self.act = nn.ReLU() if activation else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class Bottleneck(nn.Layer):
    """1x1 reduce, dense 3x3, 1x1 expand, added to its input."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.reduce = ConvNorm(width, inner)
        self.mix = ConvNorm(inner, inner, 3)
        self.expand = ConvNorm(inner, width, activation=False)
        self.act = nn.ReLU()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.act(x + self.expand(self.mix(self.reduce(x))))


def _stage(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*[Bottleneck(width, width // 2 if width <= 128 else 64) for _ in range(depth)])


class Tower(nn.Layer):
    """Head branch: 1x1 reduce, dense 3x3, 1x1 to the raw output."""

    def __init__(self, width: int, inner: int, outputs: int, bias: float):
        super().__init__()
        self.reduce = ConvNorm(width, inner)
        self.mix = ConvNorm(inner, inner, 3)
        self.widen = ConvNorm(inner, width)
        start = paddle.ParamAttr(initializer=nn.initializer.Constant(bias))
        self.out = nn.Conv2D(width, outputs, 1, bias_attr=start)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.out(self.widen(self.mix(self.reduce(x))))


class Detector(nn.Layer):
    """Grey image (B, 1, H, W) in [0, 1], H and W multiples of 32 -> class logits and raw distances.

    Returns `cls` (B, classes, H/8, W/8) and `reg` (B, 4, H/8, W/8). Confidence is sigmoid(cls); a box is
    softplus(reg) * 8 pixels left, up, right and down of the cell's centre. Both are left to the decoder.
    """

    def __init__(self, config: NetworkConfig | None = None):
        super().__init__()
        c = config or NetworkConfig()
        self.stem = ConvNorm(1, c.stem, 8, 4)
        self.down8 = ConvNorm(c.stem, c.width8, 3, 2)
        self.stage8 = _stage(c.width8, c.depth8)
        self.down16 = ConvNorm(c.width8, c.width16, 3, 2)
        self.stage16 = _stage(c.width16, c.depth16)
        self.down32 = ConvNorm(c.width16, c.width32, 3, 2)
        self.stage32 = _stage(c.width32, c.depth32)
        self.lateral32 = ConvNorm(c.width32, c.neck, activation=False)
        self.lateral16 = ConvNorm(c.width16, c.neck, activation=False)
        self.lateral8 = ConvNorm(c.width8, c.neck, activation=False)
        self.fuse16 = Bottleneck(c.neck, c.neck // 2)
        self.fuse8 = Bottleneck(c.neck, c.neck // 2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.act = nn.ReLU()
        self.cls = Tower(c.neck, c.tower, c.classes, bias=-float(paddle.log(paddle.to_tensor((1 - PRIOR) / PRIOR))))
        self.reg = Tower(c.neck, c.tower, 4, bias=2.0)

    def forward(self, image: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        at8 = self.stage8(self.down8(self.stem(image)))  # (B, 64, H/8, W/8)
        at16 = self.stage16(self.down16(at8))  # (B, 128, H/16, W/16)
        at32 = self.stage32(self.down32(at16))  # (B, 160, H/32, W/32)
        top = self.fuse16(self.act(self.lateral16(at16) + self.up(self.lateral32(at32))))
        top = self.fuse8(self.act(self.lateral8(at8) + self.up(top)))  # (B, 64, H/8, W/8)
        return self.cls(top), self.reg(top)
