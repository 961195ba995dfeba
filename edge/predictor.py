"""The inference runtimes behind one protocol; the only file that imports Paddle Lite or ONNX Runtime.

A predictor is made and run in one thread: Paddle Lite's workspace is thread-local, and its `run` holds the GIL.
"""

from __future__ import annotations

import contextlib
import difflib
import json
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
Shape = tuple[int, int, int, int]

CPU = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

CANARY_TIMEOUT_S = 180.0  # beside a line at work, at a low priority, a small board takes its time
BUILD_TIMEOUT_S = 900.0  # TensorRT compiles the network on the device, which takes minutes; then it is cached

# The packages that bring a runtime. A build of ONNX Runtime for other hardware has a name of its own.
PACKAGES = {
    "paddlelite": ("paddlelite",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime"),
}


class Predictor(Protocol):
    """A loaded network."""

    def run(self, tensor: Float) -> list[Float]:
        """Outputs for one input, float32 (1, C, H, W), in the model's order; they belong to the caller.

        Raises:
            PredictorError: the input is not what the model takes, or the runtime failed.
        """

    @property
    def providers(self) -> tuple[str, ...]:
        """The execution providers really in use, in order of preference; empty where the runtime has none."""


def installed_runtimes() -> dict[str, str]:
    """The runtimes that this Python has, by name, with their versions; found without importing them."""
    found: dict[str, str] = {}
    for name, packages in PACKAGES.items():
        for package in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(package))
    return found


class LitePredictor:
    """Paddle Lite with an `.nb` model.

    Args:
        shape: of the input that the model takes; None: of the first one it is given.

    Raises:
        PredictorError: the model or the runtime is missing, or the runtime refuses the model.
    """

    providers: tuple[str, ...] = ()

    def __init__(self, model: Path, threads: int = 1, shape: Shape | None = None) -> None:
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
        self._shape = shape
        self._input = self._predictor.get_input(0)
        self._outputs = len(self._predictor.get_output_names())

    def run(self, tensor: Float) -> list[Float]:
        """See `Predictor.run`."""
        # Paddle Lite itself takes anything: another type gives noise, another shape can abort the process.
        _check_input(tensor, self._shape)
        self._shape = tensor.shape  # type: ignore[assignment]
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
        cache: folder for what a provider compiles, so that the next start is quick; None: nothing is kept.

    Raises:
        PredictorError: the model or the runtime is missing, the runtime refuses the model, or this build of it lacks a
            provider.
    """

    def __init__(
        self, model: Path, threads: int = 1, providers: Sequence[str] = (CPU,), cache: Path | None = None
    ) -> None:
        _require_file(model)
        onnxruntime = _onnxruntime()
        check_providers(providers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        wanted = [(name, _provider_options(name, cache)) for name in providers]
        try:
            self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=wanted)
        except Exception as error:  # onnxruntime's own errors share no base class
            raise PredictorError(f"ONNX Runtime cannot load {model}: {error}") from error
        source = self._session.get_inputs()[0]
        self._name, self._shape = source.name, tuple(source.shape)

    @property
    def providers(self) -> tuple[str, ...]:
        """See `Predictor.providers`: one that did not start is not among them."""
        return tuple(self._session.get_providers())

    def run(self, tensor: Float) -> list[Float]:
        """See `Predictor.run`."""
        _check_input(tensor, self._shape)
        try:
            return list(self._session.run(None, {self._name: tensor}))
        except Exception as error:
            raise PredictorError(f"ONNX Runtime failed on an input of shape {tensor.shape}: {error}") from error


def _check_input(tensor: Float, shape: tuple[Any, ...] | None) -> None:
    if tensor.dtype != np.float32 or tensor.ndim != 4 or shape not in (None, tensor.shape):
        raise PredictorError(
            f"the model takes float32 of shape {shape or '(1, channels, height, width)'}, this input is {tensor.dtype} "
            f"of shape {tensor.shape}: run it through edge.preprocess with the bundle's input contract"
        )


def check_providers(wanted: Sequence[str]) -> None:
    """Whether this build of ONNX Runtime has every wanted execution provider.

    Raises:
        PredictorError: it lacks one; says which, what it has, and what to do.
    """
    available = list(_onnxruntime().get_available_providers())
    for name in wanted:
        if name in available:
            continue
        by_case = {known.lower(): known for known in available}
        # All names end alike, so that only a slip of a letter or of case (TensorRT) is this near.
        close = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.95)
        remedy = f"did you mean {by_case[close[0]]}?" if close else "name another, or install the build that has it"
        raise PredictorError(
            f"runtime.providers names {name}, which this build of ONNX Runtime lacks: it has "
            f"{', '.join(available)}; {remedy}"
        )


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise PredictorError(
            f"ONNX Runtime cannot be imported ({error}); an .onnx model needs it: pip install onnxruntime"
        ) from error
    return onnxruntime


def _provider_options(name: str, cache: Path | None) -> dict[str, str]:
    if name != TENSORRT or cache is None:
        return {}
    return {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache)}


def load(
    runtime: str,
    model: Path,
    threads: int = 1,
    *,
    shape: Shape | None = None,
    providers: Sequence[str] = (CPU,),
    cache: Path | None = None,
) -> Predictor:
    """The model on the named runtime (`paddlelite` or `onnxruntime`).

    Args:
        shape: of the input, from the bundle's contract; an ONNX model states its own.
        providers, cache: see `OnnxPredictor`; Paddle Lite has neither.

    Raises:
        PredictorError: it cannot be loaded; the message says why and what to do.
    """
    if runtime == "paddlelite":
        return LitePredictor(model, threads, shape)
    if runtime == "onnxruntime":
        return OnnxPredictor(model, threads, providers, cache)
    raise PredictorError(f"there is no runtime {runtime!r}: known are paddlelite and onnxruntime")


def trial_limit_s(providers: Sequence[str]) -> float:
    """How long the trial of a model may take, seconds; TensorRT builds it first."""
    return BUILD_TIMEOUT_S if TENSORRT in providers else CANARY_TIMEOUT_S


def canary(
    runtime: str, model: Path, shape: Shape, providers: Sequence[str] = (CPU,), cache: Path | None = None
) -> None:
    """Load the model and run it once in a child process, since a bad `.nb` can abort the process that loads it.

    Raises:
        PredictorError: the child died or failed; the message holds its last line.
    """
    trial = {
        "runtime": runtime,
        "model": str(model.resolve()),
        "shape": shape,
        "providers": list(providers),
        "cache": str(cache.resolve()) if cache else "",
    }
    limit_s = trial_limit_s(providers)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "edge.predictor", json.dumps(trial)],
            capture_output=True,
            text=True,
            errors="replace",  # a runtime may print bytes of a damaged file
            timeout=limit_s,
            check=False,
            cwd=Path(__file__).resolve().parents[1],  # this very package, wherever we were called from
            start_new_session=True,  # Ctrl-C is for us, not for the trial
        )
    except subprocess.TimeoutExpired as error:
        raise PredictorError(f"{model} did not load within {limit_s:.0f} s in a trial process") from error
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


def _trial(text: str) -> int:
    trial = json.loads(text)
    cache = Path(trial["cache"]) if trial["cache"] else None
    try:
        predictor = load(trial["runtime"], Path(trial["model"]), providers=trial["providers"], cache=cache)
        predictor.run(np.zeros(trial["shape"], np.float32))
    except PredictorError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_trial(sys.argv[1]))
