"""What the terminal shows of a station that a PLC triggers, and of what a station keeps."""

from __future__ import annotations

from rich.text import Text

from edge import event
from edge.view.rows import ASIDE, BAD, BOOKS, DETAIL, DOUBTFUL, NEEDED, USEFUL, Row, row, size
from edge.view.rows import labelled as _labelled
from edge.view.state import NodeView, percentile
from edge.view.words import (
    ago,
    due_words,
    error_sentence,
    link_words,
    printable,
    recipe_name,
    times_words,
    trouble_words,
)

LINK_STYLES = {"connected": "green"}
MASTER_STYLES = {"found": "green", "due": DOUBTFUL, "missed": BAD}


def line_rows(node: NodeView) -> list[Row]:
    """What the station shows to its PLC, and how it answers."""
    rows = [Row(_labelled("line", line_text(node)))]
    line, health = node.line, node.health
    if line is not None:
        rows.append(Row(_labelled("recipe", recipe_name(line)), USEFUL))
        rows += [Row(_labelled("challenge", _challenge(line)), NEEDED)] if line.masters else []
    rows.append(Row(_labelled("answers", _answer_times(node)), USEFUL))
    if health is not None and health.line is not None:
        rows += _counter_rows(health.line)
    return rows


def line_text(node: NodeView) -> Text:
    """Ready, busy, error and link, with why. What a node showed that has gone says nothing about now."""
    line = node.line
    if node.state == "offline":
        return Text("NOT READY, it is offline", style=BAD)
    if line is None:
        return Text("not known yet", style=DOUBTFUL)
    text = Text()
    error = error_sentence(line)
    if error:
        text.append(f"ERROR {error}  ", style=BAD)
    text.append("READY" if line.ready else "NOT READY", style="bold green" if line.ready else BAD)
    waits_for = [name for name, camera in sorted(node.cameras.items()) if _is_down(camera.state)]
    if not line.ready and waits_for:
        text.append(printable(f" (waits for camera {', '.join(waits_for)})"), style=DOUBTFUL)
    if node.books is not None and node.books.in_flight > 0:
        text.append(f"  BUSY with {node.books.in_flight}")
    return text.append("  ").append(link_words(line.link, line.detail), style=LINK_STYLES.get(line.link, BAD))


def _is_down(state: event.CameraState | None) -> bool:
    return state is not None and state.state != "streaming"


def _challenge(line: event.LineState) -> Text:
    """The masters that are owed come first: the end of a line may be cut off."""
    due_s = line.challenge_due_s
    text = Text(due_words(due_s), style=BAD if due_s is not None and due_s < 0 else "")
    order = list(MASTER_STYLES)[::-1]
    for master in sorted(line.masters, key=lambda m: order.index(m.standing) if m.standing in order else 0):
        found = f" last found {ago(line.ts - master.found_ts)} ago" if master.found_ts else " never found"
        word = "" if master.standing == "found" else f" {master.standing.upper()},"
        style = MASTER_STYLES.get(master.standing, DOUBTFUL)
        text.append("; " if text else "").append(printable(f"{master.serial}{word}{found}"), style=style)
    return text


def _answer_times(node: NodeView) -> str:
    health = node.health.line if node.health is not None else None
    if health is None:
        p50, p99 = percentile(node.latency_ms, 0.5), percentile(node.latency_ms, 0.99)
        if p50 is None or p99 is None:
            return "none yet"
        return f"told with the next health message; verdicts p50 {p50:.1f}, p99 {p99:.1f} ms"
    if health.answers is None:
        return "none yet"
    recent = health.recent
    lately = f"; lately p50 {recent.p50:.1f}, p99.9 {recent.p999:.1f}" if recent is not None else ""
    return f"{times_words(health.answers)} of {health.answers.n}{lately}"


def _counter_rows(line: event.LineHealth) -> list[Row]:
    trouble = trouble_words(line.link)
    missed = ", ".join(f"{name} {n}" for name, n in sorted(line.no_frame.items()) if n)
    said = f"{line.link.answered} said, " + (trouble or "no overrun, none late, all acknowledged, no garbage")
    return [
        row("to PLC", said, USEFUL, DOUBTFUL if trouble else ""),
        row("no frame", printable(missed) or "none: every trigger had its frames", BOOKS, DOUBTFUL if missed else ""),
    ]


def kept_rows(health: event.Health) -> list[Row]:
    """Evidence, recorder and genealogy, one row each, where the node has them."""
    rows = []
    if health.evidence is not None:
        rows.append(_evidence_row(health.evidence))
    if health.recorder is not None:
        kept = health.recorder
        text = f"{kept.frames} frames, {size(kept.bytes)}, reaches back {ago(kept.reaches_s)}"
        rows.append(_kept_row("recorder", text, kept.dropped, kept.failed))
    if health.genealogy is not None:
        chain = health.genealogy
        text = f"{chain.rows} rows, {size(chain.bytes)}, head {printable(chain.head[:12]) or '-'}"
        rows.append(_kept_row("genealogy", text, 0, chain.failed))
    return rows


def _evidence_row(kept: event.EvidenceCounts) -> Row:
    evicted = ", ".join(f"{name} {n}" for name, n in sorted(kept.evicted.items()) if n)
    text = f"{kept.files} parts, {size(kept.bytes)}, {kept.written} written"
    return _kept_row(
        "evidence", text + (printable(f", evicted {evicted}") if evicted else ""), kept.dropped, kept.failed
    )


def _kept_row(label: str, text: str, dropped: int, failed: int) -> Row:
    """What is wrong comes first."""
    wrong = [f"{n} {what}" for n, what in ((failed, "FAILED"), (dropped, "DROPPED")) if n]
    rank = ASIDE if label != "genealogy" else DETAIL
    return row(label, ", ".join([*wrong, text]), rank, BAD if failed else DOUBTFUL if dropped else "")
