"""Frames that a drift report points at, and the step that picks them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import paddle
import pytest

from tests.tools.tiny import tiny_dataset
from tools.checkpoint import copy_state, write_checkpoint
from tools.dataset import read_dataset
from tools.drift_evidence import findings, read_moved
from tools.errors import DataError
from tools.mine import main
from tools.mining import DRIFT, Finding
from tools.network import Detector, NetworkConfig

SMALL = NetworkConfig(classes=2, stem=8, width8=8, width16=8, width32=8, depth16=1, neck=8)


def frame(number: int, name: str, score: float) -> dict[str, Any]:
    return {"number": number, "name": name, "captured_ts": 0.0, "value": 1.0, "score": score}


def report(path: Path, best: list[dict[str, Any]], kept: list[dict[str, Any]] | None = None) -> Path:
    moved = {
        "signal": "brightness",
        "unit": "grey levels",
        "direction": "down",
        "since": None,
        "frames_ago": 3,
        "found": frame(9, "9.png", -2.0),
        "baseline": 100.0,
        "now": 80.0,
        "sigmas": -2.0,
        "detector": "cusum",
        "advice": "relight",
        "text": "",
        "best": best,
        "kept": kept or [],
    }
    path.write_text(json.dumps({"schema": "edge.drift.v1", "camera": "cam1", "moved": [moved]}))
    return path


def test_frames_are_found_by_their_name_and_by_that_of_kept_evidence(tmp_path: Path) -> None:
    moved = read_moved(report(tmp_path / "r.json", [frame(1, "night/1.png", -3.0)], [frame(7, "", -4.0)]))
    files = {"night/1.png": Path("a"), "brightness-0-7.jpg": Path("b"), "noise-0-7.jpg": Path("c")}
    found = findings(moved, files)
    assert found == {
        Path("a"): Finding(0.75, "brightness -3.0 sigmas"),
        Path("b"): Finding(1.0, "brightness -4.0 sigmas"),
    }


def test_of_two_signals_the_clearer_one_is_said(tmp_path: Path) -> None:
    moved = read_moved(report(tmp_path / "r.json", [frame(1, "1.png", -2.0), frame(1, "1.png", 3.0)]))
    assert findings(moved, {"1.png": Path("a")})[Path("a")].text == "brightness +3.0 sigmas"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"moved": [{"signal": 3}]}', '{"moved": []}'])
def test_what_is_no_report_of_a_drift_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"r\.json: (not a drift report|says that nothing has moved)"):
        read_moved(path)


def test_the_step_picks_what_the_report_points_at(tmp_path: Path) -> None:
    data = read_dataset(tiny_dataset(tmp_path / "data", images=6))
    paddle.seed(5)
    network = Detector(SMALL)
    write_checkpoint(tmp_path / "last.pdckpt", network, copy_state(network), data)
    evidence = tmp_path / "evidence"
    evidence.mkdir()
    for k, sample in enumerate(data.part("validation")):
        shutil.copy(sample.image, evidence / f"{k}.png")
    drift = report(tmp_path / "r.json", [frame(k, f"{k}.png", 3.0 + k / 10) for k in (2, 4)])
    arguments = ["--images", str(evidence), "--model", str(tmp_path / "last.pdckpt"), "--out", str(tmp_path / "out")]
    main([*arguments, "--drift", str(drift), "--count", "5", "--format", "coco"])
    results = json.loads((tmp_path / "out" / "mine.json").read_text())["results"]
    why = {pick["file"]: pick["why"] for pick in results["picks"]}
    assert results["picked"][DRIFT] >= 1
    for name in ("2.png", "4.png"):
        assert any(text.startswith(f"{DRIFT}: brightness +3.") for text in why[name])
