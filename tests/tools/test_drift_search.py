"""The search of the drift autoencoder's shape, and the comparison of what several see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools import drift_compare, drift_search
from tools.autoencoder import AutoencoderConfig
from tools.errors import ToolError

pytestmark = pytest.mark.timeout(600)

SMALL = {"tile": (0, 32), "patch": (4,), "stem": (16,), "inner": (32,), "code": (4, 8), "depth": (0,), "kernel": (1,)}


@pytest.fixture
def small_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_search, "SPACE", SMALL)
    monkeypatch.setattr(drift_search, "JUDGED", 10)
    monkeypatch.setattr(drift_search, "CALIBRATION_FRAMES", 16)
    default = AutoencoderConfig(64, 64, tile=32, patch=4, stem=16, inner=32, code=4, depth=0)
    monkeypatch.setattr(drift_search, "AutoencoderConfig", lambda width, height: default)


def arguments(data: Path, out: Path) -> list[str]:
    told = ["--data", str(data), "--out", str(out), "--judge-on", "B", "--max-ms", "50", "--width", "64"]
    return [*told, "--height", "64", "--trials", "2", "--children", "1", "--steps", "30", "--drawn", "32"]


def test_a_search_tries_varies_and_chooses_and_goes_on_where_it_was(
    small_space: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_dataset(tmp_path / "data", images=8, templates=True, groups=("A", "B", "C"), validation=("C",))
    drift_search.main(arguments(data, tmp_path / "out"))
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    rows = json.loads((tmp_path / "out" / "drift_search.json").read_text())["results"]["rows"]
    assert 2 <= len(rows) <= 3 and best["name"] in {row["name"] for row in rows}
    assert best["separation"] - 0.1 * best["int8_ms"] == max(r["separation"] - 0.1 * r["int8_ms"] for r in rows)
    assert AutoencoderConfig(**best["network"]).tile in SMALL["tile"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert len(table.splitlines()) == 2 + len(rows)
    assert (tmp_path / "out" / "drift_search.png").stat().st_size > 1000

    def never(*_: object) -> None:
        raise AssertionError("a trial was done again")

    monkeypatch.setattr(drift_search, "try_out", never)
    drift_search.main(arguments(data, tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "best.json").read_text()) == best


def test_groups_that_do_not_train_are_refused(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data", templates=True)
    with pytest.raises(ToolError, match="--judge-on B: must be some, and not all"):
        drift_search.main(arguments(data, tmp_path / "out"))


def test_tiles_that_do_not_fit_the_input_are_left_out() -> None:
    base = AutoencoderConfig(64, 64, tile=0, patch=4)
    assert drift_search.network_of({"tile": 48}, base) is None
    assert drift_search.network_of({"tile": 32, "patch": 4}, base) == AutoencoderConfig(64, 64, tile=32, patch=4)


def row(name: str, ms: float, separation: float) -> dict[str, object]:
    choice = {field: values[0] for field, values in drift_search.SPACE.items()}
    return {
        "name": name,
        "choice": choice,
        "int8_ms": ms,
        "int8_kb": 50.0,
        "error": 1.0,
        "separation": separation,
        "worst_allowed": 0.1,
    }


def test_what_is_too_slow_is_in_the_table_and_says_so() -> None:
    text = drift_search.table([row("a", 1.0, 2.0), row("b", 2.0, 3.0)], max_ms=1.5)
    assert text.count("over 1.5 ms") == 1


def record(folder: Path, **percents: float) -> Path:
    groups = {"light noise": "allowed", "dark 2": "degraded", "noise 4": "degraded"}
    conditions = {
        name: {"group": groups.get(name, "other"), "percent": p, "plain_percent": p / 2, "score": float(np.sign(p))}
        for name, p in percents.items()
    }
    folder.mkdir()
    (folder / "drift_run.json").write_text(json.dumps({"results": {"conditions": conditions}}))
    return folder


def test_products_are_compared_condition_by_condition(tmp_path: Path) -> None:
    a = record(tmp_path / "a", **{"screw": 400.0, "light noise": 1.5})
    b = record(tmp_path / "b", **{"board": 90.0, "light noise": -2.5, "dark 2": 10.0})
    drift_compare.main(["--runs", f"pcb={a}", f"screw={b}", "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[2] == "| light noise | +1.5 %, +0.8 %, +1.00 | -2.5 %, -1.2 %, -1.00 |"
    assert [line.split(" | ")[0] for line in lines[3:6]] == ["| dark 2", "| screw", "| board"]
    assert lines[4].endswith("|  |"), "a condition that one of them has not seen"
    assert (tmp_path / "out" / "drift_compare.png").stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "drift_compare.json").read_text())["results"]["published"]["noise"] == 1.3


@pytest.mark.parametrize(("text", "message"), [("pcb", "expected NAME=FOLDER"), ("pcb=nowhere", "not a record of")])
def test_a_run_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        drift_compare.main(["--runs", text, "--out", str(tmp_path)])
