"""A model of a bundle, chosen for this machine, tried in a child process, and loaded in this thread."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edge.bundle import choice
from edge.bundle import manifest as manifests
from edge.bundle import passport as passports
from edge.bundle.manifest import Artifact, JudgeName, Manifest
from edge.bundle.passport import Here
from edge.config import Runtime
from edge.predictor import Predictor, Shape, canary, check_providers, installed_runtimes, load

BOARD = Path("/proc/device-tree/model")


def chosen(
    manifest: Manifest, runtime: Runtime, judge: JudgeName | None = None, folder: Path | None = None
) -> Artifact:
    """The model that this machine runs, of the detector or of a judge.

    Args:
        folder: of the bundle. Where it is a slot that was proved on this device, as the device is now, the fastest
            detector that passed; else the first in the usual order.

    Raises:
        BundleError: nothing in the bundle runs here.
    """
    if judge is None and folder is not None and (proved := _proved(manifest, runtime, folder)) is not None:
        return proved
    # A judge comes in the precision that it has: what the site wants is said of the detector.
    precision = runtime.precision if judge is None else "auto"
    return choice.choose(
        manifest, machine(), installed_runtimes(), prefer=runtime.prefer, precision=precision, judge=judge
    )


def _proved(manifest: Manifest, runtime: Runtime, folder: Path) -> Artifact | None:
    passport = passports.read(folder.resolve())
    if passport is None or not passport.holds(manifests.digest(manifest), here(runtime)):
        return None
    picked = passports.pick(passport.proofs, runtime.prefer, runtime.precision)
    return next((a for a in manifest.artifacts if picked is not None and a.file == picked.file), None)


def here(runtime: Runtime) -> Here:
    """This device, as far as a proof of its models depends on it."""
    versions = passports.versions(installed_runtimes(), opencv=cv2.__version__, numpy=np.__version__)
    return Here(
        machine=machine(), board=board(), versions=versions, threads=runtime.threads, providers=runtime.providers
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
    sha256 = manifest.files.get(artifact.file, manifests.digest(manifest))
    # Before the runtime is imported here: where it cannot run it may abort the process.
    _try_once(artifact, model, shape, providers, trial_marks, sha256)
    if providers:
        check_providers(providers)
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
        artifact = chosen(manifest, runtime, judge, folder)
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


def board() -> str:
    """The board's model as its device tree says it, such as `Raspberry Pi 5 Model B Rev 1.0`; "" on a PC."""
    with contextlib.suppress(OSError):
        return BOARD.read_text(encoding="utf-8", errors="replace").strip("\0 \n")[:100]
    return ""


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
