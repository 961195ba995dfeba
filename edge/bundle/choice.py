"""Whether a bundle is for this device, and which of its models: by hardware, by what is installed, by precision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from edge.bundle.manifest import Artifact, JudgeName, Manifest, listed
from edge.errors import BundleError


def choose(
    manifest: Manifest,
    machine: str,
    runtimes: Mapping[str, str],
    prefer: str = "auto",
    precision: str = "auto",
    judge: JudgeName | None = None,
) -> Artifact:
    """The detector of the bundle that this device runs, or the model of one of its judges.

    Paddle Lite comes before ONNX Runtime, INT8 before FP32, a model for this architecture before one for any.

    Args:
        machine: architecture of the device, as `platform.machine()` says it.
        runtimes: installed runtimes and their versions, such as `{"paddlelite": "2.13rc0"}`.
        prefer: a runtime that comes first where both could run; "auto": Paddle Lite.
        precision: "int8" or "fp32": nothing else will do; "auto": either.
        judge: one of the bundle's judges; None: the detector.

    Raises:
        BundleError: nothing in the bundle runs here; says what there is, what the device has, and what to do.
    """
    return fitting(manifest, machine, runtimes, prefer, precision, judge)[0]


def fitting(
    manifest: Manifest,
    machine: str,
    runtimes: Mapping[str, str],
    prefer: str = "auto",
    precision: str = "auto",
    judge: JudgeName | None = None,
) -> list[Artifact]:
    """Everything that this device could run, what `choose` would choose first; at least one.

    Args:
        machine, runtimes, prefer, precision, judge: as for `choose`.

    Raises:
        BundleError: as `choose`.
    """
    arch = _arch(machine)
    artifacts = manifest.artifacts if judge is None else manifest.judges[judge].artifacts
    obstacles = [_obstacle(artifact, arch, runtimes, precision) for artifact in artifacts]
    found = [a for a, obstacle in zip(artifacts, obstacles, strict=True) if obstacle is None]
    if not found:
        lines = [f"{a.file} {obstacle}" for a, obstacle in zip(artifacts, obstacles, strict=True)]
        what = f"{judge} model" if judge else "model"
        raise BundleError(listed(_nothing_fits(manifest, what, artifacts, arch, runtimes), lines))
    first = "paddlelite" if prefer == "auto" else prefer
    return sorted(found, key=lambda a: (a.runtime != first, a.precision != "int8", a.arch != arch))


def hardware_problem(hardware: Sequence[str], machine: str, board: str) -> str | None:
    """Why what was made for `hardware` is not for this device; None when it is.

    Args:
        hardware: architectures, or words of a board's model; any one of them will do; none: anything.
        machine: architecture of the device, as `platform.machine()` says it.
        board: its model, as the device tree says it; "" where there is none.

    >>> hardware_problem(["aarch64"], "arm64", "Raspberry Pi 5 Model B Rev 1.0")
    >>> hardware_problem(["Jetson Orin Nano"], "aarch64", "NVIDIA Jetson Orin Nano Developer Kit")
    >>> hardware_problem(["Jetson", "x86_64"], "aarch64", "Raspberry Pi 5 Model B Rev 1.0")
    'is for Jetson or x86_64, and this is aarch64 (Raspberry Pi 5 Model B Rev 1.0)'
    """
    if not hardware or any(_is_this(name, _arch(machine), board) for name in hardware):
        return None
    here = f"{_arch(machine)} ({board})" if board else _arch(machine)
    return f"is for {' or '.join(hardware)}, and this is {here}"


def _is_this(name: str, arch: str, board: str) -> bool:
    """Whole words of the board's model: `Raspberry Pi 4` is no `Raspberry Pi 400`."""
    said, wanted = (re.findall(r"[\w.+-]+", text.lower()) for text in (board, name))
    return _arch(name) == arch or any(said[i : i + len(wanted)] == wanted for i in range(len(said)))


def _arch(machine: str) -> str:
    """An architecture as bundles name it."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _obstacle(artifact: Artifact, arch: str, runtimes: Mapping[str, str], precision: str) -> str | None:
    """Why this device cannot run the model; None when it can."""
    installed = runtimes.get(artifact.runtime)
    if artifact.arch not in (arch, "any"):
        return f"is for {artifact.arch}"
    if precision not in ("auto", artifact.precision):
        return f"is {artifact.precision}, and runtime.precision wants {precision}"
    if installed is None:
        return f"needs {artifact.runtime}, which is not installed"
    # The format of .nb files changes between versions; another version's file can abort the whole process.
    if artifact.runtime == "paddlelite" and artifact.made_with != f"paddlelite {installed}":
        return f"was made with {artifact.made_with}, and paddlelite {installed} is installed"
    return None


def _nothing_fits(
    manifest: Manifest, what: str, artifacts: Sequence[Artifact], arch: str, runtimes: Mapping[str, str]
) -> str:
    has = ", ".join(f"{name} {version}" for name, version in sorted(runtimes.items())) or "no inference runtime"
    return (
        f"the bundle {manifest.product} {manifest.version} has no {what} for this device ({arch} with {has}); "
        f"{_remedy(artifacts, arch, runtimes)}"
    )


def _remedy(artifacts: Sequence[Artifact], arch: str, runtimes: Mapping[str, str]) -> str:
    here = [a for a in artifacts if a.arch in (arch, "any")]
    if not here:
        return f"get a bundle that was built for {arch}"
    absent = sorted({a.runtime for a in here} - set(runtimes))
    if absent:
        return f"install {' or '.join(absent)}, or get a bundle for what is installed"
    return "install the version that the model was made with, set runtime.precision to auto, or get another bundle"
