"""The five commands of a new product, on tiny data: from raw annotations to a bundle that the device opens."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edge.config import Runtime
from edge.serving import open_product
from tests.tools.tiny import tiny_dataset
from tools import build
from tools.errors import ToolError
from tools.parity import Limits

ROOT = Path(__file__).parents[2]
# Narrow, but wide enough for INT8 to pay on ARM: a plan that quantizes nothing is refused.
NARROW = {"stem": 16, "width8": 32, "width16": 64, "width32": 64, "depth8": 1, "depth16": 1, "depth32": 1, "neck": 32}


def tools(*arguments: object) -> str:
    """Run a step as a person does; returns what it printed."""
    command = [sys.executable, "-m", "tools", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(600)
def test_five_commands_make_a_bundle_that_opens(tmp_path: Path) -> None:
    raw, data, runs = tmp_path / "raw", tmp_path / "data", tmp_path / "runs"
    index = json.loads((tiny_dataset(raw, images=6, negatives=2) / "dataset.json").read_text())
    (raw / "annotations.json").write_text(json.dumps({k: index[k] for k in ("images", "annotations", "categories")}))
    (raw / "dataset.json").unlink()
    (tmp_path / "narrow.json").write_text(json.dumps(NARROW))
    group = ("--group", r"images/(\w+)/", "--validation", "B", "--product", "tiny", "--size", "96x96")
    tools("import", "--format", "coco", "--source", raw, "--out", data, *group)
    tools("curate", "--data", data, "--out", runs / "curate")
    short = ("--epochs", 30, "--batch", 4, "--crop", 64, "--processes", 1, "--evaluate-every", 0, "--rate", 5e-3)
    tools("train", "--data", data, "--out", runs / "train", "--network", tmp_path / "narrow.json", *short)
    chain = ["build", "--data", data, "--checkpoint", runs / "train" / "final.pdckpt", "--out", runs / "build"]
    chain += ["--bundle", tmp_path / "bundle", "--records", runs / "train" / "train.json"]
    chain += ["--calibration", runs / "calibration.json", "--algorithm", "abs_max", "--limit", 100]
    # A network of a few seconds' training is not held to the limits of a product.
    loose = [f"int8.{field.name}=1000" for field in fields(Limits) if field.name != "iou"]
    chain += ["--passport-limit", *loose, "int8.iou=0"]
    said = tools(*chain)
    product = open_product(tmp_path / "bundle", Runtime())
    assert product.manifest.product == "tiny" and product.classes == ("hole", "bar")
    assert product.manifest.figures["fp32_ap33_pooled"] >= 0
    assert "[1/" in said and "done before" not in said
    shutil.rmtree(tmp_path / "bundle")
    again = tools(*chain)  # everything is in the journal: the bundle is not made anew unasked
    assert again.count("done before") == again.count("python -m tools")


def arguments(tmp_path: Path, data: Path) -> list[str]:
    (tmp_path / "c.pdckpt").write_bytes(b"weights")
    out = ["--out", str(tmp_path / "out"), "--bundle", str(tmp_path / "bundle")]
    return ["--data", str(data), "--checkpoint", str(tmp_path / "c.pdckpt"), *out]


def test_a_step_that_fails_is_named_with_its_command(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data")
    with pytest.raises(ToolError, match=r"confidence failed \(1\); .*python -m tools confidence"):
        build.main(arguments(tmp_path, data))


def test_it_goes_on_with_the_step_that_was_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset(tmp_path / "data")
    ran: list[str] = []

    def fake(stage: build.Stage) -> float:
        if stage.name == "latency" and "latency" not in ran:
            ran.append("latency")
            raise ToolError("stopped")
        ran.append(stage.name)
        return 1.0

    monkeypatch.setattr(build, "run", fake)
    with pytest.raises(ToolError, match="stopped"):
        build.main(arguments(tmp_path, data))
    first = list(ran)
    build.main(arguments(tmp_path, data))
    assert ran[len(first) :] == ["latency", "passport", "make_bundle"] and first[0] == "confidence"


def test_another_checkpoint_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset(tmp_path / "data")
    ran: list[str] = []
    monkeypatch.setattr(build, "run", lambda stage: ran.append(stage.name) or 1.0)
    asked = arguments(tmp_path, data)
    build.main(asked)
    (tmp_path / "c.pdckpt").write_bytes(b"other weights")
    build.main(asked)
    assert ran[: len(ran) // 2] == ran[len(ran) // 2 :]


def test_another_calibration_means_another_passport(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_dataset(tmp_path / "data")
    ran: list[str] = []
    monkeypatch.setattr(build, "run", lambda stage: ran.append(stage.name) or 1.0)
    asked = arguments(tmp_path, data)
    build.main(asked)
    first = list(ran)
    build.main([*asked, "--algorithm", "mse"])
    assert ran[len(first) :] == first[first.index("quantize x86") :]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    asked = arguments(tmp_path, tiny_dataset(tmp_path / "data"))
    (tmp_path / "c.pdckpt").unlink()
    with pytest.raises(ToolError, match=r"c\.pdckpt: missing"):
        build.main(asked)
