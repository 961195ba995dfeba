"""A picture of the times from trigger to answer: how many took how long. Wants matplotlib, an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge.answer_times import GROWTH, Histogram
from edge.drift.chart import new_figure, write
from edge.errors import UsageError

INCHES = (9.0, 4.2)
BUDGET, BARS, LINES = "#c0392b", "#95a5a6", "#2c3e50"


def draw(times: Histogram, title: str, path: Path, budget_ms: float | None = None) -> None:
    """Write the picture as PNG.

    Args:
        budget_ms: trigger to answer at most, drawn in red; None: there is none.

    Raises:
        UsageError: matplotlib is not installed, there is no time, or the file cannot be written.
    """
    bars = times.bars()
    if not bars:
        raise UsageError(f"{path}: there is nothing to draw, as no answer was given yet")
    figure = new_figure(*INCHES)
    axes = figure.subplots()
    _bars(axes, bars, budget_ms)
    _lines(axes, times, budget_ms)
    _labels(axes)
    write(figure, f"{title}\n{_words(times, budget_ms)}", path)


def _bars(axes: Any, bars: list[tuple[float, float, int]], budget_ms: float | None) -> None:
    """Both scales are logarithmic: one late answer among a million shows, and each bucket is as wide as the other."""
    lows, highs, counts = zip(*bars, strict=True)
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    axes.bar(lows, counts, widths, align="edge", color=BARS, zorder=2)
    axes.set_xscale("log", subs=[2, 5])
    axes.set_yscale("log")
    axes.set_xlim(lows[0] / GROWTH**3, max(highs[-1], budget_ms or 0) * GROWTH**3)
    axes.set_ylim(0.7, 8 * max(counts))  # the names have their place above the bars


def _lines(axes: Any, times: Histogram, budget_ms: float | None) -> None:
    """Percentiles at different heights, so that their names do not cover each other where they lie close."""
    told = times.percentiles()
    marks = [("p50", told.p50), ("p99", told.p99), ("p99.9", told.p999), ("max", told.max)]
    for place, (name, ms) in enumerate(marks):
        axes.axvline(ms, color=LINES, linewidth=1.0, linestyle="--", zorder=3)
        _name(axes, name, ms, 0.98 - 0.06 * place, LINES)
    if budget_ms is not None:
        axes.axvline(budget_ms, color=BUDGET, linewidth=1.6, zorder=4)
        _name(axes, "budget", budget_ms, 0.98 - 0.06 * len(marks), BUDGET)


def _name(axes: Any, name: str, ms: float, height: float, colour: str) -> None:
    axes.annotate(
        f"{name} {ms:.4g} ms",
        (ms, height),
        xycoords=axes.get_xaxis_transform(),  # milliseconds across, share of the height
        xytext=(3, 0),
        textcoords="offset points",
        va="top",
        fontsize=8,
        color=colour,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        zorder=5,
    )


def _labels(axes: Any) -> None:
    axes.set_xlabel("trigger to answer, ms")
    axes.set_ylabel("answers")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#ecf0f1", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _words(times: Histogram, budget_ms: float | None) -> str:
    told = f"{times.count} answers, buckets of {100 * (GROWTH - 1):.0f} %"
    return told if budget_ms is None else f"{told}; {times.over(budget_ms)} over the budget of {budget_ms:g} ms"
