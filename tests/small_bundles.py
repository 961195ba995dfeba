"""Bundles that are proved in seconds: the shipped board detector, with few golden samples and without its judges."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.bundle import manifest as manifests
from edge.bundle.manifest import Fields, Manifest
from tests.flow.rig import PCB

INT8, FP32, ONNX = "detector.x86_64.int8.nb", "detector.x86_64.fp32.nb", "detector.onnx"
SAMPLES = (0, 4)  # one without a box, one with


def small_bundle(
    folder: Path, version: int = 1, *, models: Sequence[str] = (ONNX,), samples: Sequence[int] = SAMPLES, **fields: Any
) -> Path:
    """Build a bundle in `folder`; fields as of a manifest, None leaves one out."""
    folder.mkdir(parents=True)
    shipped = json.loads((PCB / "manifest.json").read_text())
    artifacts = [artifact for artifact in shipped["artifacts"] if artifact["file"] in models]
    for name in (*models, "recipe.toml", "passport.json"):
        shutil.copyfile(PCB / name, folder / name)
    (folder / "CARD.md").write_text(f"# Small {version}\n")
    _golden(folder, samples)
    kept = {key: shipped[key] for key in ("classes", "input", "strides", "features")}
    given: dict[str, Any] = {
        "product": "small", "version": version, "created": "2026-11-27T00:00:00Z", "golden": "golden/expected.json",
        "passport": "passport.json", **kept, "artifacts": artifacts, **fields,
    }  # fmt: skip
    build(folder, {key: value for key, value in given.items() if value is not None})
    return folder


def _golden(folder: Path, samples: Sequence[int]) -> None:
    (folder / "golden").mkdir()
    golden = json.loads((PCB / "golden/expected.json").read_text())
    golden["samples"] = [golden["samples"][number] for number in samples]
    for sample in golden["samples"]:
        shutil.copyfile(PCB / sample["file"], folder / sample["file"])
    (folder / "golden/expected.json").write_text(json.dumps(golden))


def build(folder: Path, given: dict[str, Any]) -> Manifest:
    """The manifest of what lies in the folder."""
    return manifests.build(folder, Fields(**given))  # type: ignore[typeddict-item]


def rebuild(folder: Path, **changes: Any) -> Manifest:
    """The manifest anew, after files were changed: a bundle that is whole, and wrong."""
    said = json.loads((folder / "manifest.json").read_text())
    for key in ("format", "files"):
        del said[key]
    return build(folder, said | changes)


def edit_golden(folder: Path, sample: int, **changes: Any) -> None:
    """Change what is expected of a golden sample, and the manifest with it."""
    path = folder / "golden/expected.json"
    golden = json.loads(path.read_text())
    golden["samples"][sample].update(changes)
    path.write_text(json.dumps(golden))
    rebuild(folder)
