"""What is known of a line, in plain sentences: for pipes and journals, and for the last line of a demo."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge import event
from edge.view.state import AlarmCleared, Heard, SequenceProof

REASONS_SHOWN = 3


def printable(text: str) -> str:
    """Text of a message as it may be shown: nothing that moves the cursor or recolours the terminal.

    >>> printable("lens \\x1b[31mdirty")
    'lens ?[31mdirty'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def clock(ts: float, clock_ok: bool = True) -> str:
    """Local time of day; marked when the node's clock is known to be wrong."""
    try:
        shown = time.strftime("%H:%M:%S", time.localtime(ts))
    except (OverflowError, ValueError, OSError):
        shown = "--:--:--"
    return shown if clock_ok else f"{shown}?"


def why(result: event.Result) -> str:
    """The reasons of a verdict in one line: the first few, and how many more there are."""
    texts = [reason.text or reason.code for reason in result.reasons]
    more = f"; and {len(texts) - REASONS_SHOWN} more" if len(texts) > REASONS_SHOWN else ""
    return printable(("; ".join(texts[:REASONS_SHOWN]) or result.cause or "") + more)


def ledger_sentence(counts: event.LedgerCounts) -> str:
    """The whole ledger in one line.

    >>> ledger_sentence(event.LedgerCounts(triggers=3, verdicts={"OK": 2}, losses={"overrun": 1, "deadline": 0}))
    'triggers 3 = OK 2 + overrun 1: balanced'
    """
    unaccounted = counts.triggers - sum(counts.verdicts.values()) - sum(counts.losses.values())
    end = "balanced" if counts.balanced else f"NOT BALANCED by {unaccounted}"
    return f"triggers {counts.triggers} = {ledger_terms(counts)}: {end}"


def ledger_terms(counts: event.LedgerCounts) -> str:
    """Every outcome with its count; a loss of which there is none is left out."""
    terms = [f"{name} {n}" for name, n in counts.verdicts.items()]
    terms += [f"{name} {n}" for name, n in counts.losses.items() if n]
    return printable(" + ".join(terms)) or "0"


def proof_sentence(proof: SequenceProof) -> str:
    """What the numbers prove, in one line.

    >>> proof_sentence(SequenceProof())
    'no numbered message yet'
    """
    if proof.first is None:
        return "no numbered message yet"
    missing = proof.missing()
    n_missing = sum(to - begin + 1 for begin, to in missing) + proof.lost
    text = f"messages {proof.first}..{proof.last}: "
    text += f"{n_missing} MISSING ({_ranges(missing)})" if n_missing else f"all {proof.held} held, no gap"
    if proof.away:
        text += f", {proof.away} passed while this view was away"
    if proof.duplicates:
        text += f", {proof.duplicates} came twice"
    if proof.renumbered:
        text += f", numbering began anew {proof.renumbered} times"
    return text


def _ranges(gaps: Sequence[tuple[int, int]], shown: int = 3) -> str:
    texts = [str(begin) if begin == to else f"{begin}-{to}" for begin, to in gaps[:shown]]
    return ", ".join(texts) + (", ..." if len(gaps) > shown else "") if texts else "given up"


def plain_line(heard: Heard) -> str:
    """One line of text for one message; "" for those that say nothing new to a person.

    >>> from edge.view.state import NodeId
    >>> plain_line(Heard(NodeId("plant", "smt1", "aoi"), AlarmCleared("storage")))
    'aoi alarm over: storage'
    """
    message, node = heard.message, heard.node.node
    if isinstance(message, AlarmCleared):
        return printable(f"{node} alarm over: {message.code}")
    text = _words(message)
    return printable(f"{clock(message.ts, message.clock_ok)} {node} {text}") if text else ""


def _words(message: event.Envelope) -> str:
    if isinstance(message, event.Result):
        # A refused frame's advice comes with its reject message.
        reasons = message.cause or why(message)
        head = f"part {message.part} camera {message.camera} {message.verdict} {message.latency_ms:.1f} ms"
        return f"{head}: {reasons}" if reasons else head
    if isinstance(message, event.Reject):
        measured = f"{message.cause}: measured {message.measured:.4g}, limit {message.limit:.4g}"
        return f"part {message.part} camera {message.camera} rejected, {measured}; {message.advice}"
    if isinstance(message, event.Alarm):
        return f"ALARM {message.severity} {message.code}: {message.text}; {message.advice}"
    if isinstance(message, event.CameraState):
        return f"camera {message.camera} {message.state}" + (f": {message.detail}" if message.detail else "")
    if isinstance(message, event.Drift):
        return f"drift {message.status}: {message.text}" + (f" {message.forecast}." if message.forecast else "")
    if isinstance(message, event.State):
        return f"is {message.state}"
    if isinstance(message, event.Info):
        return f"runs {message.bundle} on {message.runtime}, edge {message.version}"
    if isinstance(message, event.Health):
        return f"{ledger_sentence(message.ledger)}; outbox {message.outbox.depth} waiting"
    return ""
