"""The layers of an exported model as Paddle Lite runs them, and which reads which: what a latency plan is about.

BatchNorm, bias and activation are part of the convolution before them, because the compiler fuses them into it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.errors import ToolError
from tools.paddle_model import WEIGHTS, StaticModel

CONV, DEPTHWISE, ADD, UPSAMPLE = "conv2d", "depthwise_conv2d", "elementwise_add", "nearest_interp_v2"
FUSED = ("batch_norm", "relu", "relu6", "leaky_relu", "hard_swish")
PASSED = ("scale", "assign", "dropout")  # the compiler removes these from a model that is only run


@dataclass(frozen=True)
class Shape:
    """What the time of a layer depends on; height and width are of its input, an upsampling's `kernel` its factor."""

    op: str
    kernel: int
    stride: int
    inputs: int
    outputs: int
    height: int
    width: int

    @property
    def kind(self) -> str:
        """Operator, kernel and stride: layers of a kind differ in size only.

        >>> Shape("conv2d", 2, 2, 64, 96, 80, 80).kind
        'conv2d 2x2 s2'
        >>> Shape("elementwise_add", 1, 1, 64, 64, 80, 80).kind
        'elementwise_add'
        """
        return f"{self.op} {self.kernel}x{self.kernel} s{self.stride}" if self.op in (CONV, DEPTHWISE) else self.op

    @property
    def macs(self) -> int:
        """Multiplications of the layer; of one that has none, the elements it writes.

        >>> Shape("conv2d", 2, 2, 64, 96, 80, 80).macs, Shape("depthwise_conv2d", 5, 1, 64, 64, 80, 80).macs
        (39321600, 10240000)
        """
        if self.op == DEPTHWISE:
            return self.kernel**2 * self.elements_out
        return self.elements_out * (self.kernel**2 * self.inputs if self.op == CONV else 1)

    @property
    def elements_in(self) -> int:
        """Numbers that the layer reads."""
        return self.inputs * self.height * self.width

    @property
    def elements_out(self) -> int:
        """Numbers that the layer writes."""
        factor = self.kernel**2 if self.op == UPSAMPLE else 1
        return self.outputs * (self.height // self.stride) * (self.width // self.stride) * factor

    def __str__(self) -> str:
        return f"{self.kind} {self.inputs}->{self.outputs} at {self.width}x{self.height}"


@dataclass(frozen=True)
class Layer:
    """One layer of a model.

    Attributes:
        name: of the layer in the network, such as `stage8.0.expand.conv`; of the operator where it has no weights.
        filter: the variable that holds its weights; empty without any.
        reads: places in the model's list of the layers whose outputs it reads, -1 for the model's input.
        is_output: what it writes leaves the model.
    """

    name: str
    shape: Shape
    filter: str
    reads: tuple[int, ...]
    is_output: bool = False


def consumers(layers: Sequence[Layer]) -> list[list[int]]:
    """For each layer the places of those that read it.

    >>> shape = Shape("conv2d", 1, 1, 8, 8, 4, 4)
    >>> consumers([Layer("a", shape, "", (-1,)), Layer("b", shape, "", (0,)), Layer("c", shape, "", (0, 1))])
    [[1, 2], [2], []]
    """
    found: list[list[int]] = [[] for _ in layers]
    for place, layer in enumerate(layers):
        for source in layer.reads:
            if source >= 0:
                found[source].append(place)
    return found


def structured_names(folder: Path) -> dict[str, str]:
    """Names in the network of the weights' variables, from the file that `paddle.jit.save` writes beside them."""
    path = folder / f"{WEIGHTS}.info"
    if not path.is_file():
        return {}
    try:
        content = pickle.loads(path.read_bytes())
        return {variable: str(entry["structured_name"]) for variable, entry in content.items()}
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise ToolError(f"{path}: damaged ({error!r}); export the model again, or delete this file") from error


def read_layers(folder: Path) -> list[Layer]:
    """The layers of the FP32 model in `folder`, in the order they run.

    Raises:
        ToolError: not a Paddle model, or one with convolutions that are not square.
    """
    model = StaticModel.load(folder)
    walk = _Walk(model, structured_names(folder))
    for op in model.program.global_block().ops:
        walk.visit(op)
    return walk.finished()


class _Walk:
    """Follows the variables of a program from operator to operator."""

    def __init__(self, model: StaticModel, names: dict[str, str]):
        self._block, self._names = model.program.global_block(), names
        self._constant: set[str] = set()  # variables made of weights alone, such as a bias in another shape
        self._source: dict[str, int] = {}  # variable -> place of the layer that wrote it
        self._layers: list[Layer] = []
        self._outputs: set[int] = set()

    def visit(self, op: Any) -> None:
        data = [name for name in op.input_arg_names if not self._is_weight(name)]
        if op.type == "feed":
            self._source.update(dict.fromkeys(op.output_arg_names, -1))
        elif op.type == "fetch":
            self._outputs.update(self._source[name] for name in data)
        elif not data:
            self._constant.update(op.output_arg_names)
        elif op.type in (*FUSED, *PASSED) or (op.type == ADD and len(data) == 1):
            self._source.update(dict.fromkeys(op.output_arg_names, self._source[data[0]]))
        else:
            self._add(op, data)

    def finished(self) -> list[Layer]:
        ends = self._outputs
        return [Layer(x.name, x.shape, x.filter, x.reads, i in ends) for i, x in enumerate(self._layers)]

    def _is_weight(self, name: str) -> bool:
        if name in self._constant:
            return True
        return name not in ("feed", "fetch") and self._block.has_var(name) and self._block.var(name).persistable

    def _add(self, op: Any, data: list[str]) -> None:
        reads = tuple(self._source.get(name, -1) for name in data if name != "feed")
        weight = op.input("Filter")[0] if op.type in (CONV, DEPTHWISE) else ""
        shape = self._shape(op, data[0], weight)
        alike = sum(layer.shape.op == op.type for layer in self._layers)
        name = self._names.get(weight, weight).removesuffix(".weight") or f"{op.type}_{alike}"
        self._source.update(dict.fromkeys(op.output_arg_names, len(self._layers)))
        self._layers.append(Layer(name, shape, weight, reads))

    def _shape(self, op: Any, read: str, weight: str) -> Shape:
        before = [int(n) for n in self._block.var(read).shape]
        after = [int(n) for n in self._block.var(op.output_arg_names[0]).shape]
        before, after = before + [1] * (4 - len(before)), after + [1] * (4 - len(after))
        kernel = stride = 1
        if weight:
            (kernel, across), (stride, aside) = self._block.var(weight).shape[2:], op.attr("strides")
            if kernel != across or stride != aside:
                raise ToolError(f"{weight}: {kernel}x{across}, steps {stride} and {aside}; only squares can be planned")
        elif op.type == UPSAMPLE:
            kernel = after[2] // before[2]
        op_type = DEPTHWISE if op.type == CONV and op.attr("groups") > 1 else op.type
        return Shape(op_type, kernel, stride, before[1], after[1], before[2], before[3])
