"""The inference runtimes behind one protocol; the only file that imports Paddle Lite or ONNX Runtime.

A predictor is made and run in one thread: Paddle Lite's workspace is thread-local, and its `run` holds the GIL.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import PredictorError

Float = NDArray[np.float32]

CANARY_TIMEOUT_S = 60.0


class Predictor(Protocol):
    """A loaded network."""

    def run(self, tensor: Float) -> list[Float]:
        """Outputs for one input (1, C, H, W), in the model's order; they belong to the caller."""


def installed_runtimes() -> dict[str, str]:
    """The runtimes that this Python has, by name, with their versions; found without importing them."""
    found = {}
    for name in ("paddlelite", "onnxruntime"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class LitePredictor:
    """Paddle Lite with an `.nb` model.

    Raises:
        PredictorError: the model or the runtime is missing, or the runtime refuses the model.
    """

    def __init__(self, model: Path, threads: int = 1) -> None:
        _require_file(model)
        try:
            from paddlelite.lite import MobileConfig, create_paddle_predictor
        except ImportError as error:
            raise PredictorError(
                f"Paddle Lite cannot be imported ({error}); {model.name} needs it: install paddlelite==2.13rc0 "
                "on x86-64 with Python 3.10, or build it on the board, or run the bundle's ONNX model instead"
            ) from error
        config = MobileConfig()
        config.set_model_from_file(str(model))
        if hasattr(config, "set_threads"):  # ARM builds only; the x86 build always runs on one thread
            config.set_threads(threads)
        try:
            self._predictor = create_paddle_predictor(config)
        except Exception as error:  # the binding raises bare RuntimeErrors of C++ origin
            raise PredictorError(f"Paddle Lite cannot load {model}: {error}") from error
        self._input = self._predictor.get_input(0)
        self._outputs = len(self._predictor.get_output_names())

    def run(self, tensor: Float) -> list[Float]:
        """See `Predictor.run`."""
        try:
            self._input.from_numpy(tensor)
            self._predictor.run()
            # `numpy()` is a view of the predictor's own memory: overwritten by the next run, gone with the predictor.
            return [self._predictor.get_output(i).numpy().copy() for i in range(self._outputs)]
        except Exception as error:
            raise PredictorError(f"Paddle Lite failed on an input of shape {tensor.shape}: {error}") from error


class OnnxPredictor:
    """ONNX Runtime with an `.onnx` model: what a device without a Paddle Lite build runs.

    Args:
        providers: execution providers in order of preference, e.g. TensorRT or CUDA on a Jetson.

    Raises:
        PredictorError: the model or the runtime is missing, or the runtime refuses the model.
    """

    def __init__(self, model: Path, threads: int = 1, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        _require_file(model)
        try:
            import onnxruntime
        except ImportError as error:
            raise PredictorError(
                f"ONNX Runtime cannot be imported ({error}); {model.name} needs it: pip install onnxruntime"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=list(providers))
        except Exception as error:  # onnxruntime's own errors share no base class
            raise PredictorError(f"ONNX Runtime cannot load {model}: {error}") from error
        self._name = self._session.get_inputs()[0].name

    def run(self, tensor: Float) -> list[Float]:
        """See `Predictor.run`."""
        try:
            return list(self._session.run(None, {self._name: tensor}))
        except Exception as error:
            raise PredictorError(f"ONNX Runtime failed on an input of shape {tensor.shape}: {error}") from error


def load(runtime: str, model: Path, threads: int = 1) -> Predictor:
    """The model on the named runtime (`paddlelite` or `onnxruntime`).

    Raises:
        PredictorError: it cannot be loaded; the message says why and what to do.
    """
    if runtime == "paddlelite":
        return LitePredictor(model, threads)
    if runtime == "onnxruntime":
        return OnnxPredictor(model, threads)
    raise PredictorError(f"there is no runtime {runtime!r}: known are paddlelite and onnxruntime")


def canary(runtime: str, model: Path, shape: tuple[int, int, int, int]) -> None:
    """Load the model and run it once in a child process, since a bad `.nb` can abort the process that loads it.

    Raises:
        PredictorError: the child died or failed; the message holds its last line.
    """
    command = [sys.executable, "-m", "edge.predictor", runtime, str(model.resolve()), *map(str, shape)]
    try:
        child = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # a runtime may print bytes of a damaged file
            timeout=CANARY_TIMEOUT_S,
            check=False,
            cwd=Path(__file__).resolve().parents[1],  # this very package, wherever we were called from
            start_new_session=True,  # Ctrl-C is for us, not for the trial
        )
    except subprocess.TimeoutExpired as error:
        raise PredictorError(f"{model} did not load within {CANARY_TIMEOUT_S:.0f} s in a trial process") from error
    if child.returncode == 0:
        return
    how = f"was killed by signal {-child.returncode}" if child.returncode < 0 else "failed"
    last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise PredictorError(
        f"{model} cannot be run by {runtime} here: the trial process {how} ({last}). "
        "The file is damaged or was made by another version of the runtime; export the bundle again"
    )


def _require_file(model: Path) -> None:
    if not model.is_file():
        raise PredictorError(f"the model file {model} is missing; install the bundle again")


def _trial(arguments: Sequence[str]) -> int:
    runtime, model, *shape = arguments
    try:
        load(runtime, Path(model)).run(np.zeros([int(n) for n in shape], np.float32))
    except PredictorError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_trial(sys.argv[1:]))
