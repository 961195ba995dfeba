"""The search on a tiny network: real compilers, real clocks, real trainings, and it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tools.tiny import tiny_dataset
from tools import search
from tools.dataset import read_dataset
from tools.errors import ToolError

SMALL = {
    "stem": (8,),
    "width8": (16,),
    "width16": (16, 24),
    "width32": (16,),
    "depth8": (1,),
    "depth16": (1,),
    "depth32": (1,),
    "kernel": (3,),
    "expand": (2.0,),
    "neck": (16,),
}
ROW = {"name": "a", "network": dict.fromkeys(search.SPACE, 1), "dropped": [], "int8_kb": 1.0}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(search, "SPACE", SMALL)
    monkeypatch.setattr(search, "fields", lambda _: [])  # the default network is none of this space
    data = tiny_dataset(tmp_path / "data", groups=("A", "B", "C"), validation=("C",))
    limits = ["--max-of-fp32", "100", "--max-of-onnx", "100"]
    small = ["--trials", "1", "--train", "1", "--children", "0", "--epochs", "1", "--workers", "1"]
    return ["--data", str(data), "--out", str(tmp_path / "out"), "--judge-on", "B", *small, *limits]


def first_network() -> dict:
    return {name: values[0] for name, values in SMALL.items()}


def test_it_ends_with_a_network_that_train_reads(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search.Search, "measure_all", _with_default(search.Search.measure_all))
    search.main(arguments)
    best = json.loads((tmp_path / "out" / "best.json").read_text())
    assert best["int8_ms"] > 0 and best["int8_kb"] > 1 and best["steps"] >= 1
    assert set(best["network"]) == set(SMALL)
    assert "| AP33 |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "search.png").stat().st_size > 1000
    monkeypatch.setattr(search, "build", None)  # all of it is in the journal
    monkeypatch.setattr(search, "score", None)
    search.main(arguments)
    assert json.loads((tmp_path / "out" / "best.json").read_text()) == best


def _with_default(measure_all):  # type: ignore[no-untyped-def]
    return lambda self, choices, what: measure_all(self, [{**first_network(), **c} for c in choices], what)


def test_limits_that_nothing_keeps_are_said_with_the_table(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = {"int8_ms": 2.0, "fp32_ms": 1.0, "onnx_ms": 1.0, "int8_kb": 2000.0}
    monkeypatch.setattr(search, "build", lambda *_: {})
    monkeypatch.setattr(search, "measure", lambda *_: cost)
    monkeypatch.setattr(search.Search, "measure_all", _with_default(search.Search.measure_all))
    with pytest.raises(ToolError, match=r"no network of the trials keeps the limits(.|\n)*INT8 .nb over 1000 kB"):
        search.main(arguments)


def test_the_judges_are_groups_of_the_training_split_alone(tmp_path: Path) -> None:
    data = read_dataset(tiny_dataset(tmp_path / "data", groups=("A", "B", "C"), validation=("C",)))
    inner = read_dataset(search.inner_dataset(data, ["B"], tmp_path / "inner"))
    assert {(s.group, s.split) for s in inner.samples} == {("A", "train"), ("B", "validation")}
    with pytest.raises(ToolError, match="groups that train: A, B"):
        search.inner_dataset(data, ["C"], tmp_path / "other")


def test_the_front_is_what_nothing_beats() -> None:
    rows = [{**ROW, "int8_ms": t, "ap33": a} for t, a in [(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.6), (4, 0.7)]]
    assert [(r["int8_ms"], r["ap33"]) for r in search.front(rows)] == [(1, 0.5), (3, 0.7)]


@pytest.mark.parametrize(("worth", "ms"), [(0.0, 9), (0.05, 1)])
def test_the_chosen_one_pays_for_its_time(worth: float, ms: int) -> None:
    rows = [{**ROW, "int8_ms": 1, "ap33": 0.6}, {**ROW, "int8_ms": 9, "ap33": 0.7}]
    assert search.choose(rows, worth)["int8_ms"] == ms


def test_the_largest_that_fits_is_trained_too() -> None:
    rows = [{**ROW, "int8_ms": t, "dropped": ["too big"] if t > 8 else []} for t in range(1, 11)]
    assert [row["int8_ms"] for row in search.spread_by_time(rows, 3)] == [1, 5, 8]


def test_a_variation_stays_in_the_space() -> None:
    rng = np.random.default_rng(0)
    choice = search.draw(rng)
    for _ in range(50):
        choice = search.vary(choice, rng)
        assert all(choice[name] in values for name, values in search.SPACE.items())
