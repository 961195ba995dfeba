"""Pictures of results: one style, written as PNG without a screen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STYLE = {
    "figure.figsize": (7.0, 4.2),
    "figure.dpi": 110,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
}


@contextmanager
def figure(path: Path, title: str, x: str = "", y: str = "", **layout: Any) -> Iterator[Any]:
    """A figure's axes to draw on; written to `path` (PNG) at the end of the block.

    Args:
        layout: goes to `plt.subplots`, e.g. `ncols=2`, and then an array of axes is given.
    """
    with plt.rc_context(STYLE):
        canvas, axes = plt.subplots(**layout)
        try:
            canvas.suptitle(title)
            if not layout:
                axes.set_xlabel(x)
                axes.set_ylabel(y)
            yield axes
            canvas.tight_layout()
            path.parent.mkdir(parents=True, exist_ok=True)
            canvas.savefig(path)
        finally:
            plt.close(canvas)
