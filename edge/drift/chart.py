"""A picture of a run: each signal in sigmas over the frames, with what was told. Wants matplotlib, an extra."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.drift.report import EventKind
from edge.drift.trace import Trace
from edge.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

INCHES = (9.0, 1.1)  # width, and height of one signal
RECENT = 15  # frames of the running mean
ALARM, SINCE, CALM, OTHER = "#c0392b", "#e59866", "#2c3e50", "#7f8c8d"


def draw(trace: Trace, title: str, path: Path) -> None:
    """Write the picture as PNG.

    Raises:
        UsageError: matplotlib is not installed, nothing was watched, or the file cannot be written.
    """
    signals = trace.signals
    if not signals:
        raise UsageError(f"{path}: there is nothing to draw, as no signal was watched yet: give more frames")
    figure = new_figure(INCHES[0], 0.9 + INCHES[1] * len(signals))
    rows = figure.subplots(len(signals), 1, sharex=True, squeeze=False)[:, 0]
    for axes, signal in zip(rows, signals, strict=True):
        _row(axes, signal, trace)
    rows[-1].set_xlabel("frame")
    write(figure, f"{title}\nsigmas from the baseline; red: moved, orange: since, green: back", path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "a chart needs matplotlib, which is not installed: pip install matplotlib, or leave out --chart"
        ) from error
    return Figure(figsize=(width, height), dpi=110)


def write(figure: Any, title: str, path: Path) -> None:
    """Write a figure as PNG under a title.

    Raises:
        UsageError: the file cannot be written.
    """
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    except OSError as error:
        raise UsageError(f"the chart {path} cannot be written: {error.strerror or error}") from error


def _row(axes: Any, signal: str, trace: Trace) -> None:
    """One signal: its points, their running mean, the band of calm, and what was told of it."""
    scores = trace.column(signal)
    at = np.arange(len(scores))
    axes.axhspan(-1, 1, color="#ecf0f1", zorder=0)
    axes.plot(at, scores, ".", color=OTHER, markersize=2.5, alpha=0.6)
    axes.plot(at, running_mean(scores), "-", color=CALM, linewidth=1.2)
    unwatched = np.flatnonzero(np.isfinite(scores))
    if len(unwatched) and unwatched[0] > 0:
        axes.axvspan(-0.5, unwatched[0] - 0.5, color="#d6dbdf", hatch="//", linewidth=0, zorder=0)
    for mark in trace.marks:
        event = mark.event
        if event.kind is EventKind.MOVED and event.signal == signal:
            axes.axvline(mark.at, color=ALARM, linewidth=1.2)
            if event.moved is not None:
                axes.axvline(mark.at - event.moved.frames_ago + 1, color=SINCE, linewidth=1.2, linestyle="--")
        elif event.kind is EventKind.RECOVERED and event.signal == signal:
            axes.axvline(mark.at, color="#27ae60", linewidth=1.2)
        elif not event.signal:
            axes.axvline(mark.at, color=OTHER, linewidth=0.8, linestyle=":")
    axes.set_ylabel(signal, rotation=0, ha="right", va="center", fontsize=8)
    axes.set_ylim(-4.4, 4.4)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.005)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def running_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of each score and those before it, of the last 15 that were measured.

    >>> running_mean(np.array([1.0, np.nan, 3.0])).tolist()
    [1.0, nan, 2.0]
    """
    out = np.full(len(scores), np.nan)
    measured = np.flatnonzero(np.isfinite(scores))
    for k, at in enumerate(measured):
        out[at] = scores[measured[max(0, k - RECENT + 1) : k + 1]].mean()
    return out
