"""The terminal picture of a `LineView`, as rich renderables that fill a given width and height exactly."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from rich.console import Group
from rich.text import Text

from edge import event
from edge.view.draw_line import kept_rows, line_rows, line_text
from edge.view.part_table import VERDICT_STYLES, settled_table
from edge.view.rows import (
    ASIDE,
    BAD,
    BOOKS,
    DETAIL,
    DOUBTFUL,
    LABEL_WIDTH,
    NEEDED,
    USEFUL,
    Row,
    cut,
    fit,
    labelled,
    row,
)
from edge.view.state import CameraView, LineView, NodeId, NodeView, percentile
from edge.view.subscribe import Link
from edge.view.words import ago, bundle_words, clock, ledger_terms, printable, progress_words, proof_sentence

STATE_STYLES = {"running": "bold green", "streaming": "green", "offline": "bold red", "stalled": "bold red"}
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
MAX_TREND_WIDTH = 60
QUIET_S = 45.0  # longer than the slowest usual health message
MAX_ALARMS = 4
TABLE_ROWS = 9  # verdicts and rejects have at least so many, where the terminal has

Lines = list[Text]


def screen(view: LineView, link: Link, *, now_s: float, width: int, height: int, ascii_only: bool = False) -> Group:
    """One picture of what is known now.

    Args:
        view: what was heard; not changed.
        link: the connection to the broker.
        now_s: monotonic time, seconds, on the clock that `fold` was given.
        width: columns. height: rows; the picture never needs more.
        ascii_only: the terminal shows no block characters.
    """
    rows = [Row(_link_line(link, now_s)), *_node_rows(view, now_s, width, height, ascii_only)]
    rows += [Row(line) for line in _alarm_lines(view, width)]
    if view.malformed or view.newer:
        rows.append(Row(labelled("ignored", _ignored(view), DOUBTFUL)))
    needed = sum(r.rank == NEEDED for r in rows)
    head = fit(rows, min(max(needed, height - 2 - TABLE_ROWS), max(1, height - 4)))
    left = height - len(head) - 2  # two titles
    if left < 2:
        return Group(*head[:height])
    rejects = [cut(line) for line in _reject_lines(view, width, max(1, left // 3))]
    n_verdicts = left - len(rejects)
    return Group(
        *head,
        _title(f"{'parts' if _any_triggered(view) else 'verdicts'}, newest first", width, ascii_only),
        settled_table(view, n_verdicts, width, _several_cameras(view)),
        _title("rejects and what to do", width, ascii_only),
        *rejects,
    )


def sparkline(values: Iterable[float], width: int, bars: str = BARS) -> str:
    """The latest values as one row of bars between their least and greatest.

    >>> sparkline([0, 7, 3.5], 8)
    '▁█▄'
    """
    shown = list(values)[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[int((value - low) * scale)] for value in shown)


def _title(text: str, width: int, ascii_only: bool) -> Text:
    dash = "-" if ascii_only else "─"
    return cut(Text(f"{dash * 2} {text} ".ljust(width, dash), style="cyan"))


def _link_line(link: Link, now_s: float) -> Text:
    if link.connected:
        return labelled("broker", f"{link.address} connected" + (f", but {link.text}" if link.text else ""))
    if not link.text:
        return labelled("broker", f"{link.address} connecting", "yellow")
    since = ago(now_s - link.since_s)
    return labelled("NO BROKER", f"{link.address} for {since} ({link.text}), trying again; below is old", "bold red")


def _node_rows(view: LineView, now_s: float, width: int, height: int, ascii_only: bool) -> list[Row]:
    if not view.nodes:
        text = "none heard yet: is a node running, and do site, line and node match?"
        return [Row(labelled("node", text, DOUBTFUL))]
    if len(view.nodes) == 1:
        ((node_id, node),) = view.nodes.items()
        return _one_node(node_id, node, now_s, width, ascii_only)
    shown = sorted(view.nodes.items())[: max(1, height // 4)]
    rows = [Row(_compact_node(node_id, node, now_s)) for node_id, node in shown]
    hidden = len(view.nodes) - len(shown)
    return [*rows, Row(labelled("", f"and {hidden} more nodes"))] if hidden else rows


def _one_node(node_id: NodeId, node: NodeView, now_s: float, width: int, ascii_only: bool) -> list[Row]:
    name = _state_text(node, now_s).append(f"  {printable(str(node_id))}", style="bold")
    rows = [Row(labelled("node", name))]
    if node.is_triggered:
        rows += line_rows(node)
    rows.append(Row(labelled("parts", _verdict_counts(node)), USEFUL))
    rows += [
        Row(_camera_line(name, camera, width, ascii_only), USEFUL if _is_well(camera) else NEEDED)
        for name, camera in sorted(node.cameras.items())
    ]
    if node.books is not None:
        rows.append(_ledger_row(node.books))
    if node.health is not None:
        rows.append(_outbox_row(node.health.outbox))
    rows.append(row("numbers", proof_sentence(node.proof), BOOKS, BAD if _incomplete(node) else ""))
    return rows + _detail_rows(node)


def _detail_rows(node: NodeView) -> list[Row]:
    """What nobody misses on a small terminal, unless something is wrong with it."""
    rows, info, health = [], node.info, node.health
    if health is not None:
        rows += kept_rows(health)
    if info is not None:
        text = printable(f"{info.bundle} ({info.bundle_digest[:12]}), {info.runtime}")
        rows.append(row("bundle", text, DETAIL))
    if node.bundle is not None and node.bundle.stage != "committed":
        progress = progress_words(node.bundle)
        rows.append(row("changing", bundle_words(node.bundle) + (f": {progress}" if progress else ""), BOOKS))
    if health is not None:
        version = f", edge {printable(info.version)}" if info is not None else ""
        up = f"up {ago(health.uptime_s)}, {health.fps:.1f} frames/s, {health.rss_bytes / 1e6:.0f} MB{version}"
        rows.append(row("process", up, ASIDE))
    return rows


def _ledger_row(books: event.Books) -> Row:
    in_flight = f", {books.in_flight} in flight" if books.in_flight else ""
    fine = books.balanced and books.ledger.balanced
    return row("ledger", _ledger_first_things_first(books.ledger) + in_flight, BOOKS, "" if fine else BAD)


def _outbox_row(outbox: event.OutboxCounts) -> Row:
    evicted = outbox.evicted_results + outbox.evicted_alarms
    text = f"{outbox.depth} waiting, {outbox.delivered} delivered, {evicted} evicted, {outbox.refused} refused"
    style = BAD if evicted or outbox.refused else DOUBTFUL if outbox.depth > 100 else ""
    return row("outbox", text, BOOKS, style)


def _is_well(camera: CameraView) -> bool:
    return camera.state is not None and camera.state.state == "streaming"


def _ledger_first_things_first(counts: event.LedgerCounts) -> str:
    """As `ledger_sentence`, but the end of a line may be cut off."""
    return f"{'balanced' if counts.balanced else 'NOT BALANCED'}: {counts.triggers} = {ledger_terms(counts)}"


def _state_text(node: NodeView, now_s: float) -> Text:
    text = Text(printable(node.state or "state unknown").upper(), style=STATE_STYLES.get(node.state, "yellow"))
    quiet_s = now_s - node.heard_s
    if node.state == "running" and node.heard_s and quiet_s > QUIET_S:
        text.append(f" but quiet for {ago(quiet_s)}", style="bold red")
    return text


def _incomplete(node: NodeView) -> bool:
    return bool(node.proof.lost or node.proof.missing())


def _verdict_counts(node: NodeView) -> Text:
    text = Text()
    for kind in (*VERDICT_STYLES, *sorted(set(node.verdicts) - set(VERDICT_STYLES))):
        text.append(f"{printable(kind)} {node.verdicts[kind]}  ", style=VERDICT_STYLES.get(kind, "bold"))
    if node.is_triggered:  # what its line waits for has a row of its own
        return text
    p50, p99 = percentile(node.latency_ms, 0.5), percentile(node.latency_ms, 0.99)
    if p50 is not None and p99 is not None:
        text.append(f" latency p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return text


def _compact_node(node_id: NodeId, node: NodeView, now_s: float) -> Text:
    text = Text(f" {printable(str(node_id))}  ", style="").append_text(_state_text(node, now_s)).append("  ")
    if node.is_triggered:
        text.append_text(line_text(node)).append("  ")
    text.append_text(_verdict_counts(node))
    if node.health is not None:
        text.append(f"  outbox {node.health.outbox.depth}")
    if node.books is not None and not (node.books.balanced and node.books.ledger.balanced):
        text.append("  NOT BALANCED", style="bold red")
    if _incomplete(node):
        text.append("  MESSAGES MISSING", style="bold red")
    return text


def _camera_line(name: str, camera: CameraView, width: int, ascii_only: bool) -> Text:
    """What is wrong comes before the trend, which takes the room that is left."""
    state = camera.state.state if camera.state is not None else ""
    text = Text(f"{printable(name)} ", style="bold").append(
        printable(state or "state unknown"), style=STATE_STYLES.get(state, "yellow")
    )
    if camera.state is not None and camera.state.detail:
        text.append(f" ({printable(camera.state.detail)})", style="yellow")
    if camera.state is not None and camera.state.reopened:
        text.append(f"  reopened {camera.state.reopened} times", style="yellow")
    if camera.drift is not None:
        moved = ", ".join(m.signal for m in camera.drift.moved)
        style = "" if camera.drift.status == "watching" else "yellow"
        text.append(printable(f"  drift {camera.drift.status}{f' ({moved})' if moved else ''}"), style=style)
    if camera.sharpness:
        text.append(f"  sharpness {camera.sharpness[-1]:.0f} ")
        room = min(MAX_TREND_WIDTH, width - LABEL_WIDTH - 3 - text.cell_len)
        bars = sparkline(camera.sharpness, room, ASCII_BARS if ascii_only else BARS) if room > 0 else ""
        text.append(bars, style="cyan")
    return labelled("camera", text)


def _alarm_lines(view: LineView, width: int) -> Lines:
    alarms = [alarm for node in view.nodes.values() for alarm in node.alarms.values()]
    alarms.sort(key=lambda alarm: (alarm.severity != "error", -alarm.ts))
    lines: Lines = []
    for alarm in alarms[:MAX_ALARMS]:
        text = printable(f"{alarm.code}: {alarm.text}") + (f" - {printable(alarm.advice)}" if alarm.advice else "")
        first, *rest = textwrap.wrap(text, max(20, width - LABEL_WIDTH - 3))[:2] or [""]
        label = "ALARM" if alarm.severity == "error" else "WARNING"
        style = "bold red" if alarm.severity == "error" else "red"
        lines.append(Text(f" {label:<{LABEL_WIDTH}} {first}", style=style))
        lines += [Text(f" {'':<{LABEL_WIDTH}} {line}", style=style) for line in rest]
    if len(alarms) > MAX_ALARMS:
        lines.append(Text(f" {'':<{LABEL_WIDTH}} and {len(alarms) - MAX_ALARMS} more alarms", style="bold red"))
    return lines


def _ignored(view: LineView) -> str:
    texts = [f"{view.malformed} malformed messages"] if view.malformed else []
    texts += [f"{view.newer} messages of another version: update this program"] if view.newer else []
    return ", ".join(texts)


def _any_triggered(view: LineView) -> bool:
    return any(node.is_triggered for node in view.nodes.values())


def _several_cameras(view: LineView) -> bool:
    return sum(max(1, len(node.cameras)) for node in view.nodes.values()) > 1


def _reject_lines(view: LineView, width: int, rows: int) -> Lines:
    """Newest first; the advice stands once, below the newest reject that has it."""
    lines: Lines = []
    advised: set[str] = set()
    serials = {
        (node_id, part.part): part.serial for node_id, part in view.verdicts if isinstance(part, event.PartResult)
    }
    for node_id, reject in reversed(view.rejects):
        place = f"{node_id.node}/{reject.camera}" if _several_cameras(view) else reject.camera
        head = Text(f" {clock(reject.ts, reject.clock_ok)}", style="dim").append(f" {f'#{reject.part}':>8}", style="")
        if serial := serials.get((node_id, reject.part)):
            head.append(f" {printable(serial)}")
        head.append(f" {printable(place)} ").append(printable(reject.cause), style=VERDICT_STYLES["RETAKE"])
        lines.append(head.append(f" measured {reject.measured:.4g}, limit {reject.limit:.4g}"))
        if reject.advice and reject.advice not in advised:
            advised.add(reject.advice)
            wrapped = textwrap.wrap(printable(reject.advice), max(20, width - 20))[:2]
            lines += [Text(f"{'':19}{line}", style="yellow") for line in wrapped]
        if len(lines) >= rows:
            break
    return lines[:rows] or [Text(" none", style="dim")]
