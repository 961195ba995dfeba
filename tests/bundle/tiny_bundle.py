"""Bundles of a few kilobytes that are whole, but hold no model that runs; and how one gets in charge in one step."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.bundle.manifest import Fields
from edge.bundle.trial import UNDER_WAY


def make_bundle(folder: Path, version: int, model_bytes: int = 5000, product: str = "pcb") -> Path:
    """A bundle whose model file is `model_bytes` bytes of its version."""
    (folder / "x86").mkdir(parents=True)
    (folder / "x86/int8.nb").write_bytes(bytes([version % 256]) * model_bytes)
    (folder / "recipe.toml").write_text(f'name = "{product}"\n')
    (folder / "CARD.md").write_text(f"# {product} {version}\n")
    artifact = {"file": "x86/int8.nb", "runtime": "paddlelite", "arch": "any", "precision": "int8", "made_with": "x 1"}
    fields = Fields(
        product=product,
        version=version,
        classes=["open"],
        input={"width": 64, "height": 64, "channels": 1},
        strides=[8],
        artifacts=[artifact],
    )
    manifests.build(folder, fields)
    return folder


def install(source: Path, state: Path, *, signed: bool = False) -> Path:
    """Put a bundle in charge for good, as if its trial were long over and nobody spoke of it; returns its slot."""
    slot = slots.put(source, state)
    mark = slots.stage(state, slot, signed=signed, origin="local")
    if mark.stage == "shadow":
        slots.activate(state)
    if mark.stage in UNDER_WAY:
        slots.commit(state)
    (state / outcomes.FOLDER / outcomes.OUTCOME).unlink(missing_ok=True)
    return slot
