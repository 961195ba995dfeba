"""The table of what was settled last: a row a part."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from edge import event
from edge.view.rows import cut
from edge.view.state import LineView, NodeId, Settled
from edge.view.words import clock, printable, why

VERDICT_STYLES = {"OK": "green", "NG": "bold red", "REVIEW": "yellow", "RETAKE": "magenta"}
SAY_STYLES = {**VERDICT_STYLES, "FAIL": "bold red", "LATE": "bold red"}

WIDE = 100  # terminals from here on show every column

Column = tuple[str, int]  # its head and greatest width
# Of parts that a PLC triggered.
TIME, PART, PLACE, SERIAL, TRIGGER = ("time", 9), ("part", 8), ("node", 12), ("serial", 12), ("trigger", 7)
OUTCOME, SAY, MS, MISSING, WHY = ("outcome", 9), ("told", 6), ("ms", 6), ("missing", 12), ("why", 0)


def settled_table(view: LineView, rows: int, width: int, several_cameras: bool) -> Group:
    """The newest on top; fills so many rows. `several_cameras`: a column says which one.

    Triggered parts have columns of their own and a head; with other lines in the same view these are shown as far as
    they go. On a narrow terminal the reason needs the room of the part's own number: serial and trigger name it.
    """
    newest = list(view.verdicts)[: -rows - 1 : -1]
    if not newest:
        return Group(cut(Text(" none yet", style="dim")), *_blank(rows - 1))
    if any(isinstance(settled, event.PartResult) for _, settled in newest):
        with_head = rows > 1
        newest = newest[: rows - with_head]
        optional = {PLACE} if len(view.nodes) > 1 else set()
        table = _part_table(newest, with_head, optional | ({PART} if width >= WIDE else set()))
        return Group(table, *_blank(rows - with_head - len(newest)))
    return Group(_verdict_table(newest, several_cameras), *_blank(rows - len(newest)))


def _blank(rows: int) -> list[Text]:
    return [Text("")] * rows


def _verdict_table(newest: Sequence[tuple[NodeId, Settled]], many: bool) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(width=9, no_wrap=True)
    table.add_column(width=8, justify="right", no_wrap=True)
    if many:
        table.add_column(max_width=20, no_wrap=True, overflow="ellipsis")
    table.add_column(width=6, no_wrap=True)
    table.add_column(width=9, justify="right", no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for node_id, settled in newest:
        if isinstance(settled, event.Result):
            table.add_row(*_verdict_cells(node_id, settled, many))
    return table


def _verdict_cells(node_id: NodeId, result: event.Result, many: bool) -> Sequence[Text]:
    cells = [Text(f" {clock(result.captured_ts, result.clock_ok)}", style="dim"), Text(f"#{result.part}")]
    if many:
        cells.append(Text(printable(f"{node_id.node}/{result.camera}")))
    cells.append(Text(printable(result.verdict), style=VERDICT_STYLES.get(result.verdict, "bold")))
    return [*cells, Text(f"{result.latency_ms:.1f} ms"), Text(why(result))]


def _part_table(newest: Sequence[tuple[NodeId, Settled]], head: bool, optional: set[Column]) -> Table:
    if any(isinstance(settled, event.PartResult) and settled.missing for _, settled in newest):
        optional = optional | {MISSING}
    order = (TIME, PART, PLACE, SERIAL, TRIGGER, OUTCOME, SAY, MS, MISSING, WHY)
    columns = [column for column in order if column in optional or column not in (PART, PLACE, MISSING)]
    table = Table.grid(padding=(0, 1), expand=True)
    for column in columns:
        _add_column(table, column)
    if head:
        table.add_row(*(Text(f" {name}" if name == "time" else name, style="dim") for name, _ in columns))
    for node_id, settled in newest:
        cells = _part_cells(settled) if isinstance(settled, event.PartResult) else _result_cells(settled)
        cells[PLACE] = Text(printable(node_id.node))
        table.add_row(*(cells.get(column, Text("")) for column in columns))
    return table


def _add_column(table: Table, column: Column) -> None:
    _, width = column
    if column is WHY:
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    elif column in (PLACE, SERIAL, OUTCOME, MISSING):
        table.add_column(min_width=min(width, 7), max_width=width, no_wrap=True, overflow="ellipsis")
    else:
        justify = "right" if column in (PART, TRIGGER, MS) else "left"
        table.add_column(width=width, justify=justify, no_wrap=True)  # type: ignore[arg-type]


def _part_cells(part: event.PartResult) -> dict[Column, Text]:
    return {
        TIME: Text(f" {clock(part.triggered_ts, part.clock_ok)}", style="dim"),
        PART: Text(f"#{part.part}"),
        SERIAL: Text(printable(part.serial) or "-"),
        TRIGGER: Text(str(part.trigger)),
        OUTCOME: Text(printable(part.outcome), style=VERDICT_STYLES.get(part.outcome, "bold red")),
        SAY: Text(printable(part.say), style=SAY_STYLES.get(part.say, "bold")),
        MS: Text(f"{part.latency_ms:.1f}"),
        MISSING: Text(printable(" ".join(sorted(part.missing))), style="yellow"),
        WHY: Text(why(part)),
    }


def _result_cells(result: event.Result) -> dict[Column, Text]:
    return {
        TIME: Text(f" {clock(result.captured_ts, result.clock_ok)}", style="dim"),
        PART: Text(f"#{result.part}"),
        OUTCOME: Text(printable(result.verdict), style=VERDICT_STYLES.get(result.verdict, "bold")),
        MS: Text(f"{result.latency_ms:.1f}"),
        WHY: Text(why(result)),
    }
