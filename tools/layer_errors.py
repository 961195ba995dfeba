"""Which layer loses: outputs of every convolution of a quantized model against those of the FP32 one, on one input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.boxes import Float
from tools.errors import ToolError
from tools.layers import structured_names
from tools.paddle_model import StaticModel

CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
DEQUANTIZERS = ("fake_channel_wise_dequantize_max_abs", "fake_dequantize_max_abs")


@dataclass(frozen=True)
class LayerError:
    """One convolution.

    Attributes:
        name: of the layer in the network. filter: its weights' variable, which has the same name in both programs.
        op, shape: operator, and filter (out, in, height, width).
        int8: whether the quantized program has it in INT8.
        rms: root mean square of its output in FP32. error: of the difference, so far into the network.
        added: how much of `error` / `rms` is new in this layer, against the worst before it; negative: it fades.
    """

    name: str
    filter: str
    op: str
    shape: tuple[int, ...]
    int8: bool
    rms: float
    error: float
    added: float

    @property
    def relative(self) -> float:
        """Error as a share of the output, 0 is none."""
        return self.error / self.rms if self.rms > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {**rounded, "shape": list(self.shape), "relative": round(self.relative, 6)}


def output_names(model: StaticModel) -> dict[str, tuple[str, str, bool]]:
    """For each convolution by its filter: operator, variable of its real-valued output, and whether it is INT8."""
    restored = {op.input("X")[0]: op.output("Out")[0] for kind in DEQUANTIZERS for op in model.operators(kind)}
    found = {}
    for op in model.program.global_block().ops:
        if op.type in CONVOLUTIONS:
            out = op.output("Output")[0]
            found[op.input("Filter")[0]] = (op.type, restored.get(out, out), out in restored)
    return found


def layer_errors(fp32: Path, quantized: Path, tensors: Sequence[Float]) -> list[LayerError]:
    """Errors of every convolution that both models have, in the order they run.

    Args:
        fp32, quantized: Paddle model folders, the second a simulation of INT8 made of the first.
        tensors: inputs (1, C, H, W); errors are pooled over them.

    Raises:
        ToolError: the two have no convolution in common.
    """
    first, second = StaticModel.load(fp32), StaticModel.load(quantized)
    names, other = output_names(first), output_names(second)
    common = [name for name in names if name in other]
    if not common:
        raise ToolError(f"{quantized}: shares no convolution with {fp32}: it was made of another model")
    squares = np.zeros((len(common), 2))  # sums over all tensors of output² and difference²
    counts = np.zeros(len(common))
    for tensor in tensors:
        exact = first.values(tensor, [names[name][1] for name in common])
        rounded = second.values(tensor, [other[name][1] for name in common])
        for i, (a, b) in enumerate(zip(exact, rounded, strict=True)):
            squares[i] += float(np.square(a).sum()), float(np.square(a - b).sum())
            counts[i] += a.size
    roots = np.sqrt(squares / np.maximum(counts, 1)[:, None])
    labels = structured_names(fp32)
    found: list[LayerError] = []
    for name, (rms, error) in zip(common, roots.tolist(), strict=True):
        relative = error / rms if rms > 0 else 0.0
        added = relative - max((layer.relative for layer in found), default=0.0)
        shape = tuple(first.weight(name).shape)
        label = labels.get(name, name).removesuffix(".weight")
        found.append(LayerError(label, name, names[name][0], shape, other[name][2], rms, error, added))
    return found
