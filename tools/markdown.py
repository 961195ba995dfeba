"""Tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table, one string a line; the first row is its head. What is not known is a dash.

    >>> print("\\n".join(table([["model", "ms"], ["INT8", 3.14159], ["FP32", None]])))
    | model | ms |
    | --- | --- |
    | INT8 | 3.142 |
    | FP32 | - |
    """
    text = [[_cell(value) for value in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (text[0], ["---"] * len(text[0]), *text[1:])]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value if value else 0.0:.4g}" if isinstance(value, float) else str(value)
