"""A model of a bundle, chosen for this machine, tried in a child process, and loaded in this thread."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path

from edge.bundle import choice
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Artifact, JudgeName, Manifest
from edge.config import Runtime
from edge.predictor import Predictor, Shape, canary, check_providers, installed_runtimes, load


def chosen(manifest: Manifest, runtime: Runtime, judge: JudgeName | None = None) -> Artifact:
    """The model that this machine runs, of the detector or of a judge.

    Raises:
        BundleError: nothing in the bundle runs here.
    """
    # A judge comes in the precision that it has: what the site wants is said of the detector.
    precision = runtime.precision if judge is None else "auto"
    return choice.choose(
        manifest, machine(), installed_runtimes(), prefer=runtime.prefer, precision=precision, judge=judge
    )


def providers_of(artifact: Artifact, runtime: Runtime) -> list[str]:
    """The execution providers that are wanted for a model: Paddle Lite has none."""
    return runtime.providers if artifact.runtime == "onnxruntime" else []


def open_model(
    folder: Path, manifest: Manifest, artifact: Artifact, shape: Shape, runtime: Runtime, trial_marks: Path | None
) -> Predictor:
    """A model of the bundle, tried in a child process where no mark says that it was, and loaded in this thread.

    Args:
        shape: of its input. trial_marks: as `edge.serving.open_product`.

    Raises:
        PredictorError: it cannot be loaded or run here.
    """
    model, providers = folder / artifact.file, providers_of(artifact, runtime)
    if providers:
        check_providers(providers)
    sha256 = manifest.files.get(artifact.file, manifests.digest(manifest))
    _try_once(artifact, model, shape, providers, trial_marks, sha256)
    return load(artifact.runtime, model, runtime.threads, shape=shape, providers=providers, cache=trial_marks)


def try_models(folder: Path, manifest: Manifest, shape: Shape, runtime: Runtime, trial_marks: Path | None) -> None:
    """Try every model of the bundle that this device would run, where no mark says that it was tried. Any thread.

    Args:
        shape: of the detector's input.

    Raises:
        BundleError: nothing in the bundle runs here.
        PredictorError: a model cannot be loaded or run here.
    """
    shapes: dict[JudgeName | None, Shape] = {name: (1, *judge.shape) for name, judge in manifest.judges.items()}
    shapes[None] = shape
    for judge, its_shape in shapes.items():
        artifact = chosen(manifest, runtime, judge)
        sha256 = manifest.files.get(artifact.file, manifests.digest(manifest))
        providers = providers_of(artifact, runtime)
        _try_once(artifact, folder / artifact.file, its_shape, providers, trial_marks, sha256)


def _try_once(
    artifact: Artifact, model: Path, shape: Shape, providers: Sequence[str], marks: Path | None, sha256: str
) -> None:
    words = [artifact.runtime, installed_runtimes()[artifact.runtime], *providers, sha256[:16]]
    mark = marks / "-".join(words) if marks else None
    if mark is not None and mark.exists():
        return
    if marks is not None:
        with contextlib.suppress(OSError):  # without the mark the next start tries again, no more
            marks.mkdir(parents=True, exist_ok=True)
    canary(artifact.runtime, model, shape, providers, marks)
    if mark is not None:
        with contextlib.suppress(OSError):
            mark.touch()


def machine() -> str:
    """This machine's architecture as bundles name it: x86_64 or aarch64."""
    name = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(name, name)


def open_judge(
    folder: Path, manifest: Manifest, name: JudgeName, runtime: Runtime, trial_marks: Path | None = None
) -> Predictor:
    """The predictor of one of the bundle's judges, tried in a child process first, as the detector's is.

    Raises:
        BundleError: nothing of it runs on this device.
        PredictorError: it cannot be loaded or run here.
    """
    artifact = chosen(manifest, runtime, name)
    return open_model(folder, manifest, artifact, (1, *manifest.judges[name].shape), runtime, trial_marks)
