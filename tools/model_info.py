"""What a model file is for: its classes and its input, from wherever they are written down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.bundle import manifest
from edge.preprocess import InputSpec
from tools.dataset import Dataset
from tools.errors import ToolError


@dataclass(frozen=True)
class Purpose:
    """What a detector finds, and what it reads."""

    classes: tuple[str, ...]
    spec: InputSpec
    product: str


def purpose_of(model: Path, like: Dataset | None = None) -> Purpose:
    """From the dataset if there is one, else from the checkpoint itself or from the manifest of the model's bundle.

    Raises:
        ToolError: none of these says it.
    """
    if like is not None:
        return Purpose(like.classes, like.spec, like.product)
    if model.suffix == ".pdckpt":
        from tools.checkpoint import read_checkpoint

        saved = read_checkpoint(model)
        return Purpose(saved.classes, saved.spec, saved.product)
    folder = model.parent
    if not model.exists():
        raise ToolError(f"{model}: missing")
    if not (folder / manifest.MANIFEST).is_file():
        raise ToolError(
            f"{model}: does not say which classes it finds; give --like DATASET, a checkpoint, or a model in its bundle"
        )
    read = manifest.read_unverified(folder)
    i = read.input
    return Purpose(tuple(read.classes), InputSpec(i.width, i.height, i.channels, i.scale, i.mean), read.product)
