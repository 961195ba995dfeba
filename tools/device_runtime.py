"""The device's own runtimes, in a process of their own.

Paddle and Paddle Lite cannot share a process: both carry the same C++ symbols, and running an `.nb` after
`import paddle` crashes. So this module never imports Paddle, and its worker runs `edge.predictor` alone.
"""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from edge.boxes import Float
from edge.predictor import load
from tools.errors import ToolError

RUNTIMES = {".nb": "paddlelite", ".onnx": "onnxruntime"}
START_TIMEOUT_S = 60.0


class DevicePredictor:
    """An `.nb` or `.onnx` model in a child process; one thread, as the device runs it.

    Raises:
        ToolError: the child died, which a bad `.nb` causes, or the runtime refused the model.
    """

    def __init__(self, model: Path):
        if model.suffix not in RUNTIMES:
            raise ToolError(f"{model}: expected an .nb or .onnx file")
        context = multiprocessing.get_context("spawn")
        self._model = model
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, str(model)), daemon=True)
        self._child.start()
        theirs.close()
        self._answer(START_TIMEOUT_S)

    def run(self, tensor: Float) -> list[Float]:
        """Outputs of one input (1, C, H, W)."""
        self._pipe.send(("run", tensor))
        return list(self._answer())

    def time_ms(self, tensor: Float, rounds: int) -> list[float]:
        """Wall time of each of `rounds` runs on one input, in milliseconds."""
        self._pipe.send(("time", tensor, rounds))
        return list(self._answer())

    def close(self) -> None:
        """End the child."""
        self._pipe.close()
        self._child.join(5)

    def _answer(self, timeout_s: float | None = None) -> Any:
        try:
            if timeout_s is not None and not self._pipe.poll(timeout_s):
                raise ToolError(f"{self._model} did not load within {timeout_s:.0f} s")
            kind, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._child.join(5)
            raise ToolError(f"{self._model}: the process that ran it died ({self._child.exitcode})") from error
        if kind == "error":
            raise ToolError(f"{self._model}: {value}")
        return value


def _serve(pipe: Connection, model: str) -> None:
    try:
        predictor = load(RUNTIMES[Path(model).suffix], Path(model))
        pipe.send(("ready", None))
        while True:
            verb, tensor, *rest = pipe.recv()
            if verb == "run":
                pipe.send(("outputs", [np.array(out) for out in predictor.run(tensor)]))
            else:
                pipe.send(("times", [_timed_ms(predictor, tensor) for _ in range(rest[0])]))
    except EOFError:
        return
    except Exception as error:  # whatever went wrong is the parent's to report
        pipe.send(("error", f"{type(error).__name__}: {error}"))


def _timed_ms(predictor: Any, tensor: Float) -> float:
    start = time.perf_counter()
    predictor.run(tensor)
    return (time.perf_counter() - start) * 1e3
