"""Bundles that follow the shipped one: the same models under another version, with other recipes where wanted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge.bundle import manifest as manifests


def successor(
    source: Path,
    folder: Path,
    version: int,
    recipe: Mapping[str, str] | None = None,
    more: str = "",
) -> Path:
    """A bundle like `source` in `folder`, of another version.

    Args:
        recipe: text of the recipe -> what stands in its place. more: goes to its end.
    """
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("plots", "manifest.json"))
    path = folder / "recipe.toml"
    text = path.read_text()
    for old, new in (recipe or {}).items():
        assert old in text, f"the recipe of {source} has no {old!r}"
        text = text.replace(old, new)
    path.write_text(f"{text}{more}")
    fields: Any = msgspec.to_builtins(manifests.read_unverified(source))
    for key in ("files", "format", "created"):
        del fields[key]
    fields["version"] = version
    manifests.build(folder, fields)
    return folder
