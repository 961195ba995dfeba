"""The picture of a run, and what it says without the library that draws it."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.drift import chart
from edge.drift.learn import Learning
from edge.drift.monitor import DriftMonitor
from edge.drift.report import EventKind
from edge.drift.trace import Trace
from edge.errors import UsageError
from tests.drift.frames import CLASSES, grey, judged


@pytest.fixture(scope="module")
def trace() -> Trace:
    trace, rng = Trace(), np.random.default_rng(0)
    monitor = DriftMonitor("cam1", None, CLASSES, Learning(frames=30))
    for k in range(90):
        frame = judged(grey(rng, 128 - 6 * (k >= 60)), k)
        trace.add(frame.frame.name, monitor.scores, monitor.update(frame))
    return trace


def test_the_trace_has_every_frame_and_where_it_was_told_what(trace: Trace) -> None:
    assert len(trace.names) == 90 and "brightness" in trace.signals
    kinds = [mark.event.kind for mark in trace.marks]
    assert kinds[0] is EventKind.NO_BASELINE and EventKind.MOVED in kinds
    assert all(mark.event.number == mark.at for mark in trace.marks)
    assert np.isnan(trace.column("brightness")[:30]).all(), "nothing was watched while learning"


def test_the_picture_shows_a_row_a_signal_with_its_alarm(trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    chart.draw(trace, "a run", tmp_path / "sub" / "chart.png")
    picture = cv2.imread(str(tmp_path / "sub" / "chart.png"))
    assert picture is not None and picture.shape[0] > 100 * len(trace.signals)
    red = (picture[:, :, 2] > 170) & (picture[:, :, 1] < 90) & (picture[:, :, 0] < 80)
    assert red.sum() > 50, "the alarm's line"


def test_without_matplotlib_it_says_what_is_missing(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib, which is not installed"):
        chart.draw(trace, "a run", tmp_path / "chart.png")


def test_nothing_to_draw_and_nowhere_to_write_are_said(trace: Trace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="nothing to draw"):
        chart.draw(Trace(), "a run", tmp_path / "chart.png")
    with pytest.raises(UsageError, match="cannot be written"):
        (tmp_path / "taken").write_text("a file")
        chart.draw(trace, "a run", tmp_path / "taken" / "chart.png")
