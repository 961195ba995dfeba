"""`edge replay --drift`: a folder in order, its report and chart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge import cli
from edge.capture.folder import find_images
from edge.drift.report import DriftReport
from edge.replay import in_order
from tests.boards import drawn_boards
from tests.flow.rig import PCB

LEARN, CALM, DARK = 12, 3, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boards of one line, from one on under less light."""
    images = tmp_path_factory.mktemp("line")
    for k, board in enumerate(drawn_boards(LEARN + CALM + DARK)):
        light = 0.6 if k >= LEARN + CALM else 1.0
        cv2.imwrite(str(images / f"part{k}.png"), (board * light).astype(np.uint8))
    return images


def replay(*arguments: str | Path) -> int:
    return cli.main(["replay", "--bundle", str(PCB), *(str(a) for a in arguments)])


def test_the_report_says_what_moved_since_which_image_and_the_chart_is_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    report, chart = tmp_path / "report.json", tmp_path / "chart.png"
    assert replay(folder, "--drift", "--learn", str(LEARN), "--arl0", "100", "--report", report, "--chart", chart) == 0
    out = capsys.readouterr().out
    assert "part0.png: drift.no_baseline" in out and f"part{LEARN - 1}.png: drift.learned" in out
    assert "drift: drifted" in out and "the image has less contrast" in out and "since part" in out
    told = json.loads(report.read_text())
    assert set(told) == set(DriftReport.__struct_fields__)
    contrast = next(m for m in told["moved"] if m["signal"] == "contrast")
    assert contrast["direction"] == "down" and contrast["detector"] == "Cusum"
    assert LEARN <= int(contrast["since"]["name"][4:-4]) <= LEARN + CALM + 1
    assert cv2.imread(str(chart)) is not None


def test_too_few_images_are_learned_from_and_said_to_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[drift]\nbaseline = "line"\n')
    assert replay(folder / "part1*.png", "--drift", "--recipe", recipe) == 0
    out = capsys.readouterr().out
    assert "drift: learning" in out and " of 500 good frames" in out and "Nothing is known of drift" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--chart", "x.png"], "give --drift too"),
        (["--learn", "20"], "give --drift too"),
        (["--drift", "--learn", "5"], "--learn 5 is too few"),
        (["--drift", "--arl0", "0"], "--arl0 0 is no average run length"),
        (["--drift", "--arl0", "nan"], "--arl0 nan"),
    ],
)
def test_what_makes_no_sense_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert replay(folder, *arguments) == cli.USAGE
    assert words in capsys.readouterr().err


def test_the_order_is_that_of_names_as_people_count_or_of_time(folder: Path) -> None:
    files = find_images(folder)
    assert [path.name for path in in_order(files, "name")][:3] == ["part0.png", "part1.png", "part2.png"]
    for age, path in enumerate(files):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert in_order(files, "time") == files[::-1]
