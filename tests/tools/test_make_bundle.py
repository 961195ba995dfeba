"""A bundle is whole, or it is refused with what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.bundle import manifest
from tools.errors import ToolError
from tools.make_bundle import MODELS, main


@pytest.fixture
def ready(tmp_path: Path) -> tuple[Path, Path]:
    """Folders with stand-ins for the models, and with recipe and card."""
    models, out = tmp_path / "made", tmp_path / "bundle"
    models.mkdir()
    out.mkdir()
    for name in MODELS:
        (models / name).write_bytes(name.encode())
    (out / "recipe.toml").write_text('name = "pcb"\n')
    (out / "CARD.md").write_text("# Card\n")
    return models, out


def test_bundle_reads_back_with_figures(ready: tuple[Path, Path], tmp_path: Path) -> None:
    models, out = ready
    accuracy = {"ap33_pooled": 0.98, "ap33_class_mean": 0.97, "map50": 0.96, "f33_best": 0.95}
    (tmp_path / "e.json").write_text(json.dumps({"results": accuracy}))
    (tmp_path / "l.json").write_text(json.dumps({"results": {"x/detector.onnx": {"p50": 9.5}}}))
    arguments = ["--models", str(models), "--out", str(out), "--version", "3", "--latency", str(tmp_path / "l.json")]
    main([*arguments, "--evaluation", f"fp32={tmp_path / 'e.json'}"])
    built = manifest.read(out)
    assert built.version == 3 and {a.file for a in built.artifacts} == set(MODELS)
    assert built.figures["fp32_ap33_pooled"] == 0.98 and built.figures["detector.onnx_p50_ms"] == 9.5


def test_missing_parts_are_all_named(ready: tuple[Path, Path]) -> None:
    models, out = ready
    (models / "detector.onnx").unlink()
    (out / "CARD.md").unlink()
    with pytest.raises(ToolError, match=r"detector\.onnx, .*CARD\.md"):
        main(["--models", str(models), "--out", str(out)])


@pytest.mark.parametrize("item", ["fp32", "fp32=nowhere.json"])
def test_bad_evaluation_is_refused(ready: tuple[Path, Path], item: str) -> None:
    models, out = ready
    with pytest.raises(ToolError):
        main(["--models", str(models), "--out", str(out), "--evaluation", item])
