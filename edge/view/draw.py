"""The terminal picture of a `LineView`, as rich renderables that fill a given width and height exactly."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edge import event
from edge.view.state import CameraView, LineView, NodeId, NodeView, percentile
from edge.view.subscribe import Link
from edge.view.words import clock, ledger_terms, printable, proof_sentence, why

VERDICT_STYLES = {"OK": "green", "NG": "bold red", "REVIEW": "yellow", "RETAKE": "magenta"}
STATE_STYLES = {"running": "bold green", "streaming": "green", "offline": "bold red", "stalled": "bold red"}
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
LABEL_WIDTH = 9
MAX_TREND_WIDTH = 60
QUIET_S = 45.0  # longer than the slowest usual health message
MAX_ALARMS = 4

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
    head = [_link_line(link, now_s), *_node_lines(view, now_s, width, height, ascii_only), *_alarm_lines(view, width)]
    if view.malformed or view.newer:
        head.append(_labelled("ignored", _ignored(view), "yellow"))
    head = [_cut(line) for line in head[: max(1, height - 4)]]
    left = height - len(head) - 2  # two titles
    if left < 2:
        return Group(*head[:height])
    rejects = [_cut(line) for line in _reject_lines(view, width, max(1, left // 3))]
    n_verdicts = left - len(rejects)
    empty = [Text("")] * (n_verdicts - min(n_verdicts, max(1, len(view.verdicts))))
    return Group(
        *head,
        _title("verdicts, newest first", width, ascii_only),
        _verdict_table(view, n_verdicts),
        *empty,
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


def _cut(line: Text) -> Text:
    line.no_wrap = True
    line.overflow = "ellipsis"
    return line


def _labelled(label: str, value: str | Text, style: str = "") -> Text:
    text = Text(f" {label:<{LABEL_WIDTH}} ", style="")
    text.stylize("dim")
    return text.append_text(value if isinstance(value, Text) else Text(value, style=style))


def _title(text: str, width: int, ascii_only: bool) -> Text:
    dash = "-" if ascii_only else "─"
    return _cut(Text(f"{dash * 2} {text} ".ljust(width, dash), style="cyan"))


def _ago(seconds: float) -> str:
    whole = int(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172_800 else f"{whole // 86_400} days"


def _link_line(link: Link, now_s: float) -> Text:
    if link.connected:
        return _labelled("broker", f"{link.address} connected" + (f", but {link.text}" if link.text else ""))
    if not link.text:
        return _labelled("broker", f"{link.address} connecting", "yellow")
    since = _ago(now_s - link.since_s)
    return _labelled("NO BROKER", f"{link.address} for {since} ({link.text}), trying again; below is old", "bold red")


def _node_lines(view: LineView, now_s: float, width: int, height: int, ascii_only: bool) -> Lines:
    if not view.nodes:
        return [_labelled("node", "none heard yet: is a node running, and do site, line and node match?", "yellow")]
    if len(view.nodes) == 1:
        ((node_id, node),) = view.nodes.items()
        return _one_node(node_id, node, now_s, width, ascii_only)
    shown = sorted(view.nodes.items())[: max(1, height // 4)]
    lines = [_compact_node(node_id, node, now_s) for node_id, node in shown]
    hidden = len(view.nodes) - len(shown)
    return [*lines, _labelled("", f"and {hidden} more nodes")] if hidden else lines


def _one_node(node_id: NodeId, node: NodeView, now_s: float, width: int, ascii_only: bool) -> Lines:
    name = _state_text(node, now_s).append(f"  {printable(str(node_id))}", style="bold")
    lines = [_labelled("node", name)]
    if node.info is not None:
        info = node.info
        lines.append(_labelled("bundle", printable(f"{info.bundle} ({info.bundle_digest[:12]}), {info.runtime}")))
    if node.health is not None:
        lines += _health_lines(node.health, node.info)
    lines.append(_labelled("numbers", proof_sentence(node.proof), "bold red" if _incomplete(node) else ""))
    lines.append(_labelled("parts", _verdict_counts(node)))
    lines += [_camera_line(name, camera, width, ascii_only) for name, camera in sorted(node.cameras.items())]
    return lines


def _health_lines(health: event.Health, info: event.Info | None) -> Lines:
    version = f", edge {printable(info.version)}" if info is not None else ""
    up = f"up {_ago(health.uptime_s)}, {health.fps:.1f} frames/s, {health.rss_bytes / 1e6:.0f} MB{version}"
    outbox = health.outbox
    evicted = outbox.evicted_results + outbox.evicted_alarms
    text = f"{outbox.depth} waiting, {outbox.delivered} delivered, {evicted} evicted, {outbox.refused} refused"
    style = "bold red" if evicted or outbox.refused else "yellow" if outbox.depth > 100 else ""
    return [
        _labelled("process", up),
        _labelled("ledger", _ledger_first_things_first(health.ledger), "" if health.ledger.balanced else "bold red"),
        _labelled("outbox", text, style),
    ]


def _ledger_first_things_first(counts: event.LedgerCounts) -> str:
    """As `ledger_sentence`, but the end of a line may be cut off."""
    return f"{'balanced' if counts.balanced else 'NOT BALANCED'}: {counts.triggers} = {ledger_terms(counts)}"


def _state_text(node: NodeView, now_s: float) -> Text:
    text = Text(printable(node.state or "state unknown").upper(), style=STATE_STYLES.get(node.state, "yellow"))
    quiet_s = now_s - node.heard_s
    if node.state == "running" and node.heard_s and quiet_s > QUIET_S:
        text.append(f" but quiet for {_ago(quiet_s)}", style="bold red")
    return text


def _incomplete(node: NodeView) -> bool:
    return bool(node.proof.lost or node.proof.missing())


def _verdict_counts(node: NodeView) -> Text:
    text = Text()
    for kind in (*VERDICT_STYLES, *sorted(set(node.verdicts) - set(VERDICT_STYLES))):
        text.append(f"{printable(kind)} {node.verdicts[kind]}  ", style=VERDICT_STYLES.get(kind, "bold"))
    p50, p99 = percentile(node.latency_ms, 0.5), percentile(node.latency_ms, 0.99)
    if p50 is not None and p99 is not None:
        text.append(f" latency p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return text


def _compact_node(node_id: NodeId, node: NodeView, now_s: float) -> Text:
    text = Text(f" {printable(str(node_id))}  ", style="").append_text(_state_text(node, now_s)).append("  ")
    text.append_text(_verdict_counts(node))
    if node.health is not None:
        text.append(f"  outbox {node.health.outbox.depth}")
        if not node.health.ledger.balanced:
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
    return _labelled("camera", text)


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


def _verdict_table(view: LineView, rows: int) -> RenderableType:
    if not view.verdicts:
        return _cut(Text(" none yet", style="dim"))
    table = Table.grid(padding=(0, 1), expand=True)
    many = _several_cameras(view)
    table.add_column(width=9, no_wrap=True)
    table.add_column(width=8, justify="right", no_wrap=True)
    if many:
        table.add_column(max_width=20, no_wrap=True, overflow="ellipsis")
    table.add_column(width=6, no_wrap=True)
    table.add_column(width=9, justify="right", no_wrap=True)
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for node_id, result in list(view.verdicts)[::-1][:rows]:
        table.add_row(*_verdict_cells(node_id, result, many))
    return table


def _verdict_cells(node_id: NodeId, result: event.Result, many: bool) -> Sequence[Text]:
    cells = [Text(f" {clock(result.captured_ts, result.clock_ok)}", style="dim"), Text(f"#{result.part}")]
    if many:
        cells.append(Text(printable(f"{node_id.node}/{result.camera}")))
    cells.append(Text(printable(result.verdict), style=VERDICT_STYLES.get(result.verdict, "bold")))
    return [*cells, Text(f"{result.latency_ms:.1f} ms"), Text(why(result))]


def _several_cameras(view: LineView) -> bool:
    return sum(max(1, len(node.cameras)) for node in view.nodes.values()) > 1


def _reject_lines(view: LineView, width: int, rows: int) -> Lines:
    """Newest first; the advice stands once, below the newest reject that has it."""
    lines: Lines = []
    advised: set[str] = set()
    for node_id, reject in reversed(view.rejects):
        place = f"{node_id.node}/{reject.camera}" if _several_cameras(view) else reject.camera
        head = Text(f" {clock(reject.ts, reject.clock_ok)}", style="dim").append(f" {f'#{reject.part}':>8}", style="")
        head.append(f" {printable(place)} ").append(printable(reject.cause), style=VERDICT_STYLES["RETAKE"])
        lines.append(head.append(f" measured {reject.measured:.4g}, limit {reject.limit:.4g}"))
        if reject.advice and reject.advice not in advised:
            advised.add(reject.advice)
            wrapped = textwrap.wrap(printable(reject.advice), max(20, width - 20))[:2]
            lines += [Text(f"{'':19}{line}", style="yellow") for line in wrapped]
        if len(lines) >= rows:
            break
    return lines[:rows] or [Text(" none", style="dim")]
