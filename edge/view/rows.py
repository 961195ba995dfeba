"""Rows of the terminal picture: a label and a text, and which of them give way when the terminal is low."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

LABEL_WIDTH = 9

NEEDED, USEFUL, BOOKS, DETAIL, ASIDE = range(5)  # ranks: the higher, the sooner a row gives way

BAD, DOUBTFUL = "bold red", "yellow"


class Row(NamedTuple):
    """One line of the picture's head."""

    text: Text
    rank: int = NEEDED


def labelled(label: str, value: str | Text, style: str = "") -> Text:
    """A dim label and what there is to say."""
    text = Text(f" {label:<{LABEL_WIDTH}} ", style="")
    text.stylize("dim")
    return text.append_text(value if isinstance(value, Text) else Text(value, style=style))


def row(label: str, value: str | Text, rank: int, style: str = "") -> Row:
    """A row that stays when it is coloured: then something is the matter."""
    return Row(labelled(label, value, style), NEEDED if style else rank)


def fit(rows: Sequence[Row], room: int) -> list[Text]:
    """The rows that there is room for, in their order: of the highest rank the last goes first.

    >>> [str(text) for text in fit([Row(Text("a")), Row(Text("b"), BOOKS), Row(Text("c"), ASIDE)], 2)]
    ['a', 'b']
    """
    by_rank = sorted(range(len(rows)), key=lambda i: (rows[i].rank, i))
    kept = sorted(by_rank[: max(0, room)])
    return [cut(rows[i].text) for i in kept]


def cut(line: Text) -> Text:
    """The line on one row, with an ellipsis where it is too long."""
    line.no_wrap = True
    line.overflow = "ellipsis"
    return line


def size(n_bytes: int) -> str:
    """
    >>> size(0), size(1_500), size(143_000_000), size(2_340_000_000)
    ('0 kB', '2 kB', '143 MB', '2.3 GB')
    """
    if n_bytes < 1_000_000:
        return f"{n_bytes / 1e3:.0f} kB"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1_000_000_000 else f"{n_bytes / 1e9:.1f} GB"
