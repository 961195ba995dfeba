"""The detector: small, anchor-free, one head at stride 8, built for INT8.

Why this shape: a strided stem reaches low resolution at once, because few channels at high resolution lose in INT8.
Most of the work is in pairs of wide 1x1 convolutions, which Paddle Lite's INT8 speeds up on x86 and ARM alike. A
depthwise convolution before each pair looks around; it stays FP32, where it is fast, and so does the residual sum: the
sum is read by the next depthwise convolution, not by an INT8 layer, so a block costs a single conversion. ReLU only,
and BatchNorm instead of bias, or the INT8 chain breaks. The block is ConvNeXt's (Liu et al., arXiv:2201.03545).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import paddle
from paddle import nn

from tools.depthwise import Depthwise

STRIDE = 8
MULTIPLE = 32  # sides of an input are multiples of the deepest stride
INPUT_SIZE = 640
PRIOR = 0.01  # confidence of an untrained head: keeps the first steps calm (RetinaNet, arXiv:1708.02002)
BLOCKS = ("mixer", "basic")


@dataclass(frozen=True)
class NetworkConfig:
    """Widths and depths; the defaults are the network of the shipped bundles, chosen by what `tools search` measures.

    Attributes:
        classes: outputs of the class branch. channels: 1 grey or 3 colour, as the input contract says.
        stem: channels at stride 4. width8, width16, width32, depth8, depth16, depth32: channels and blocks at a stride.
        kernel: side of the depthwise convolutions. expand: width inside a block over the width outside.
        neck: channels where the levels meet. drop_path: the most probable skip of a block in training, in [0, 1).
        block: `mixer` for what is shipped, `basic` for ResNet's (He et al., arXiv:1512.03385), the teacher's.
        inner: channels inside each block, from the stem to the outputs, as `tools prune` left them; empty for what
            `expand` gives (a `basic` block: its width).
    """

    classes: int = 6
    channels: int = 1
    stem: int = 24
    width8: int = 64
    width16: int = 128
    width32: int = 128
    depth8: int = 1
    depth16: int = 4
    depth32: int = 1
    kernel: int = 5
    expand: float = 3.0
    neck: int = 64
    drop_path: float = 0.0
    block: str = "mixer"
    inner: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"block is {self.block!r}, expected one of {', '.join(BLOCKS)}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}, expected 1 (grey) or 3 (colour)")
        object.__setattr__(self, "inner", tuple(self.inner))  # JSON has lists only
        if self.inner and (len(self.inner) != len(self.block_widths()) or min(self.inner) < 1):
            raise ValueError(f"inner is {self.inner}, expected {len(self.block_widths())} widths, one a block")

    def block_widths(self) -> tuple[int, ...]:
        """Channels at the outside of each block, from the stem to the outputs."""
        stages = [self.width8] * self.depth8 + [self.width16] * self.depth16 + [self.width32] * self.depth32
        return (*stages, self.neck, self.neck)

    def inner_widths(self) -> tuple[int, ...]:
        """Channels inside each block, in the same order."""
        own = [8 * round(w * self.expand / 8) if self.block == "mixer" else w for w in self.block_widths()]
        return self.inner or tuple(own)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a checkpoint or a record; `NetworkConfig(**...)` reads them back."""
        return asdict(self)


# A teacher is judged by its accuracy alone: dense 3x3 convolutions and twice the width.
TEACHER = {"block": "basic", "stem": 32, "width8": 96, "width16": 160, "width32": 224, "depth16": 4, "neck": 96}


class ConvNorm(nn.Layer):
    """Convolution without bias, BatchNorm, ReLU (which `activation=False` leaves out)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, activation: bool = True, groups: int = 1
    ):
        super().__init__()
        padding = (kernel - stride + 1) // 2 if stride > 1 else kernel // 2
        if groups == inputs == outputs and groups > 1:
            self.conv: nn.Layer = Depthwise(inputs, kernel)
        else:
            self.conv = nn.Conv2D(inputs, outputs, kernel, stride, padding, groups=groups, bias_attr=False)
        self.norm = nn.BatchNorm2D(outputs)
        self.act = nn.ReLU() if activation else None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class DropPath(nn.Layer):
    """Leaves out the branch of whole examples in training (stochastic depth, Huang et al., arXiv:1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = (paddle.rand([x.shape[0], 1, 1, 1]) >= self.rate).astype(x.dtype)
        return x * keep / (1 - self.rate)


class Mixer(nn.Layer):
    """Depthwise kxk, 1x1 expand, 1x1 project, added to its input."""

    def __init__(self, width: int, kernel: int, inner: int, drop_path: float = 0.0):
        super().__init__()
        self.look = ConvNorm(width, width, kernel, activation=False, groups=width)
        self.expand = ConvNorm(width, inner)
        self.project = ConvNorm(inner, width, activation=False)
        self.drop = DropPath(drop_path)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return x + self.drop(self.project(self.expand(self.look(x))))


class Basic(nn.Layer):
    """ResNet's basic block: two dense 3x3, added to the input."""

    def __init__(self, width: int, kernel: int, inner: int, drop_path: float = 0.0):
        super().__init__()
        self.first = ConvNorm(width, inner, 3)
        self.second = ConvNorm(inner, width, 3, activation=False)
        self.drop = DropPath(drop_path)
        self.act = nn.ReLU()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.act(x + self.drop(self.second(self.first(x))))


class Detector(nn.Layer):
    """Image (B, channels, H, W) in [0, 1], H and W multiples of 32 -> class logits and raw distances.

    Returns `cls` (B, classes, H/8, W/8) and `reg` (B, 4, H/8, W/8). Confidence is sigmoid(cls); a box is
    softplus(reg) * 8 pixels left, up, right and down of the cell's centre. Both are left to the decoder.

    Attributes:
        gives_features: one output more, the last: what the head reads, for the judges beside the detector.
    """

    def __init__(self, config: NetworkConfig | None = None):
        super().__init__()
        self.gives_features = False
        self.config = c = config or NetworkConfig()
        depth, block = c.depth8 + c.depth16 + c.depth32, Mixer if c.block == "mixer" else Basic
        rates = iter([c.drop_path * i / max(1, depth - 1) for i in range(depth)])
        inner = iter(c.inner_widths())

        def stage(width: int, count: int) -> nn.Sequential:
            return nn.Sequential(*[block(width, c.kernel, next(inner), next(rates)) for _ in range(count)])

        self.stem = ConvNorm(c.channels, c.stem, 8, 4)
        self.down8 = ConvNorm(c.stem, c.width8, 2, 2)
        self.stage8 = stage(c.width8, c.depth8)
        self.down16 = ConvNorm(c.width8, c.width16, 2, 2)
        self.stage16 = stage(c.width16, c.depth16)
        self.down32 = ConvNorm(c.width16, c.width32, 2, 2)
        self.stage32 = stage(c.width32, c.depth32)
        self.lateral32 = ConvNorm(c.width32, c.neck, activation=False)
        self.lateral16 = ConvNorm(c.width16, c.neck, activation=False)
        self.lateral8 = ConvNorm(c.width8, c.neck, activation=False)
        self.fuse16 = block(c.neck, c.kernel, next(inner))
        self.fuse8 = block(c.neck, c.kernel, next(inner))
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.cls_tower = ConvNorm(c.neck, c.neck)
        self.reg_tower = ConvNorm(c.neck, c.neck)
        self.cls = _output(c.neck, c.classes, -math.log((1 - PRIOR) / PRIOR))
        self.reg = _output(c.neck, 4, 2.0)

    def features(self, image: paddle.Tensor) -> paddle.Tensor:
        """What both branches read: (B, neck, H/8, W/8)."""
        at8 = self.stage8(self.down8(self.stem(image)))  # (B, width8, H/8, W/8)
        at16 = self.stage16(self.down16(at8))  # (B, width16, H/16, W/16)
        at32 = self.stage32(self.down32(at16))  # (B, width32, H/32, W/32)
        top = self.fuse16(self.lateral16(at16) + self.up(self.lateral32(at32)))
        return self.fuse8(self.lateral8(at8) + self.up(top))

    def head(self, features: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Class logits and raw distances of `features`."""
        return self.cls(self.cls_tower(features)), self.reg(self.reg_tower(features))

    def forward(self, image: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        features = self.features(image)
        outputs = self.head(features)
        return (*outputs, features) if self.gives_features else outputs


def with_features(network: Detector) -> Detector:
    """The same network, which from now on gives its features too."""
    network.gives_features = True
    return network


class FeaturesOnly(nn.Layer):
    """The trunk of a detector alone, for a product of which only good parts are known."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, image: paddle.Tensor) -> paddle.Tensor:
        return self.detector.features(image)


def _output(inputs: int, outputs: int, bias: float) -> nn.Conv2D:
    start = paddle.ParamAttr(initializer=nn.initializer.Constant(bias))
    return nn.Conv2D(inputs, outputs, 1, bias_attr=start)
