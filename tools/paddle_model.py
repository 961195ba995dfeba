"""Paddle inference models on disk: write, load, run, and hand over to Paddle Lite's compiler.

A model is a folder with `model.pdmodel` (program) and `model.pdiparams` (weights).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.jit.dy2static.program_translator import ProgramTranslator

from edge.boxes import Float
from edge.preprocess import InputSpec
from tools.errors import ToolError

PROGRAM, WEIGHTS = "model.pdmodel", "model.pdiparams"
COMPILE_TIMEOUT_S = 300.0


@contextlib.contextmanager
def static_mode() -> Iterator[None]:
    """Paddle's static-graph mode for a while; dynamic mode afterwards if it was on before."""
    was_dynamic = paddle.in_dynamic_mode()
    paddle.enable_static()
    try:
        yield
    finally:
        if was_dynamic:
            paddle.disable_static()


def save_layer(network: nn.Layer, folder: Path, spec: InputSpec) -> None:
    """Trace the network in evaluation mode at the fixed input (1, channels, height, width) of `spec` and save it."""
    network.eval()
    save_traced(
        network, folder, [paddle.static.InputSpec([1, spec.channels, spec.height, spec.width], "float32", "image")]
    )


def save_traced(network: nn.Layer, folder: Path, inputs: Sequence[Any]) -> None:
    """Trace the network at these inputs and write it as a model folder.

    Paddle notes the parameters of a traced program under the program's address. Where a program is freed before its
    notes are read, a later one at the same address inherits them, and saving it failed with a `KeyError` now and then:
    so such notes are cleared first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ProgramTranslator.get_instance()._params_recorder.params_dict.clear()
    paddle.jit.save(network, str(folder / "model"), input_spec=list(inputs))


def require_model(folder: Path) -> None:
    """Whether the folder holds a Paddle model.

    Raises:
        ToolError: it does not; names the missing file.
    """
    for name in (PROGRAM, WEIGHTS):
        if not (folder / name).is_file():
            raise ToolError(f"{folder / name}: missing, so {folder} is not a Paddle model folder")


@dataclass
class StaticModel:
    """A loaded program with its executor and its own weights' scope."""

    program: Any
    feeds: list[str]
    fetches: list[Any]
    executor: Any
    scope: Any

    @classmethod
    def load(cls, folder: Path) -> StaticModel:
        """Read a model folder.

        Raises:
            ToolError: the folder does not hold a Paddle model.
        """
        require_model(folder)
        scope = paddle.static.Scope()
        executor = paddle.static.Executor(paddle.CPUPlace())
        with static_mode(), paddle.static.scope_guard(scope):
            program, feeds, fetches = paddle.static.load_inference_model(str(folder / "model"), executor)
        return cls(program, feeds, fetches, executor, scope)

    def save(self, folder: Path) -> None:
        """Write program and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        inputs = [self.program.global_block().var(name) for name in self.feeds]
        with static_mode(), paddle.static.scope_guard(self.scope):
            paddle.static.save_inference_model(
                str(folder / "model"), inputs, self.fetches, self.executor, program=self.program, clip_extra=False
            )

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of one input (1, C, H, W); makes this an `edge.detect.Predictor`."""
        with static_mode(), paddle.static.scope_guard(self.scope):
            outputs = self.executor.run(self.program, {self.feeds[0]: tensor}, self.fetches)
        return [np.asarray(out, np.float32) for out in outputs]

    def values(self, tensor: Float, names: Sequence[str]) -> list[Float]:
        """What the named variables inside the program hold for one input (1, C, H, W)."""
        block = self.program.global_block()
        with static_mode(), paddle.static.scope_guard(self.scope):
            outputs = self.executor.run(self.program, {self.feeds[0]: tensor}, [block.var(name) for name in names])
        return [np.asarray(out, np.float32) for out in outputs]

    def operators(self, kind: str) -> list[Any]:
        """All operators of a type, in program order."""
        return [op for op in self.program.global_block().ops if op.type == kind]

    def weight(self, name: str) -> np.ndarray:
        """A copy of a persistent tensor."""
        return np.array(self.scope.find_var(name).get_tensor())

    def set_weight(self, name: str, value: np.ndarray) -> None:
        """Overwrite a persistent tensor; its type and shape stay."""
        self.scope.find_var(name).get_tensor().set(value, paddle.CPUPlace())


def compile_nb(folder: Path, target: Path, places: str) -> None:
    """Compile a Paddle model to an `.nb` for `places` ("x86" or "arm"), in a child process.

    Raises:
        ToolError: no model there, or the compiler died or wrote nothing; holds the end of what it said.
    """
    require_model(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # what an earlier run wrote must not pass for this one's
    stem = target.with_suffix("")  # the compiler adds .nb
    model = (str(folder / PROGRAM), str(folder / WEIGHTS))
    command = [sys.executable, "-m", "tools.lite_compile", *model, str(stem), places]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"Paddle Lite's compiler took over {COMPILE_TIMEOUT_S:.0f} s for {folder}") from error
    if child.returncode != 0 or not target.is_file():
        said = "\n".join((child.stdout + child.stderr).strip().splitlines()[-5:])
        raise ToolError(f"Paddle Lite's compiler failed on {folder} for {places} ({child.returncode}): {said}")
