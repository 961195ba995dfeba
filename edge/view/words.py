"""What is known of a line, in plain sentences: for pipes and journals, and for the last line of a demo."""

from __future__ import annotations

import time
from collections.abc import Sequence

from edge import event
from edge.view.state import AlarmCleared, Heard, SequenceProof, Settled

REASONS_SHOWN = 3
# What the station shows to the line as its error, for people.
ERRORS = {
    "challenge.missed": "a master was missed, no part passes until the masters are found",
    "challenge.overdue": "the challenge is overdue, no part passes until the masters are found",
}


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


def why(settled: Settled) -> str:
    """The reasons of an outcome in one line: the first few, and how many more there are."""
    texts = [reason.text or reason.code for reason in settled.reasons]
    more = f"; and {len(texts) - REASONS_SHOWN} more" if len(texts) > REASONS_SHOWN else ""
    cause = settled.cause if isinstance(settled, event.Result) else None
    return printable(("; ".join(texts[:REASONS_SHOWN]) or cause or "") + more)


def ago(seconds: float) -> str:
    """A length of time in the unit that a person would use.

    >>> ago(90), ago(600), ago(30_000), ago(400_000)
    ('90 s', '10 min', '8 h', '4 days')
    """
    whole = int(max(0.0, seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172_800 else f"{whole // 86_400} days"


def error_sentence(line: event.LineState) -> str:
    """What keeps parts from passing, and which masters it is about; "" for nothing.

    >>> masters = [event.MasterState(serial="M1", standing="missed", found_ts=0.0)]
    >>> error_sentence(event.LineState(ready=True, error="challenge.missed", recipe="pcb", recipe_number=1,
    ...     link="connected", detail="", masters=masters, challenge_due_s=None))
    'a master was missed, no part passes until the masters are found (M1)'
    """
    if not line.error:
        return ""
    about = [m.serial for m in line.masters if m.standing != "found"] if line.error.startswith("challenge.") else []
    return printable(ERRORS.get(line.error, line.error) + (f" ({', '.join(about)})" if about else ""))


def recipe_name(line: event.LineState) -> str:
    """The recipe in force, as people and as the PLC call it; a single recipe need not have a number."""
    return printable(line.recipe + (f" (number {line.recipe_number})" if line.recipe_number else ""))


def link_words(state: str, detail: str) -> str:
    """How the PLC is connected.

    >>> link_words("silent", "nothing heard for 3 heartbeats")
    'PLC silent: nothing heard for 3 heartbeats'
    """
    return printable(f"PLC {state}" + (f": {detail}" if detail else ""))


def due_words(due_s: float | None) -> str:
    """When the masters have to be found again."""
    if due_s is None:
        return ""
    return f"overdue for {ago(-due_s)}" if due_s < 0 else f"due in {ago(due_s)}"


def line_words(line: event.LineState) -> str:
    """What a triggered station shows to its PLC, in one line; nothing in it changes as time goes by."""
    error = error_sentence(line)
    ready = "Ready" if line.ready else "not Ready"
    masters = [f"master {m.serial} {m.standing}" for m in line.masters if m.standing != "found"]
    texts = [*([f"ERROR {error}"] if error else []), ready, f"recipe {recipe_name(line)}"]
    return printable(", ".join([*texts, link_words(line.link, line.detail), *masters]))


def bundle_words(state: event.BundleState) -> str:
    """Which bundle is in charge and what is under way, in one line; nothing in it counts up.

    >>> ref = event.BundleRef(product="pcb", version=5, digest="00ff", signed=False, origin="local")
    >>> bundle_words(event.BundleState(stage="trial", active=ref, previous=None, candidate=None, shadow=None,
    ...     trial=None, last=None))
    'pcb 5, unsigned, on trial'
    """
    texts = [_bundle_name(state.active), *([] if state.active.signed else ["unsigned"])]
    if state.stage == "trial":
        texts.append("on trial")
    if state.candidate is not None:
        texts.append(f"{_bundle_name(state.candidate)} in shadow")
    if state.last is not None and state.last.text:
        texts.append(f"last: {state.last.outcome}: {state.last.text}")
    return printable(", ".join(texts))


def progress_words(state: event.BundleState) -> str:
    """How far a bundle in shadow or on trial is; "" when neither is under way."""
    shadow, trial = state.shadow, state.trial
    if state.stage == "shadow" and shadow is not None:
        return f"seen {shadow.seen} of {shadow.wanted}, {shadow.seen - shadow.agreed} differently"
    if state.stage == "trial" and trial is not None:
        minutes = f"{trial.minutes:.0f} of {trial.wanted_minutes:.0f} minutes"
        return f"{trial.parts} of {trial.wanted} parts, {minutes}, {trial.not_ok_share:.0%} not OK"
    return ""


def _bundle_name(ref: event.BundleRef) -> str:
    return f"{ref.product} {ref.version}"


def times_words(times: event.AnswerTimes) -> str:
    """Answer times, shortest name first."""
    return f"p50 {times.p50:.1f}, p99 {times.p99:.1f}, p99.9 {times.p999:.1f}, max {times.max:.1f} ms"


def trouble_words(link: event.LinkCounts) -> str:
    """What went wrong between station and PLC since the start; "" for nothing."""
    counted = {
        "overruns": link.overruns,
        "late": link.late,
        "unacknowledged": link.unacknowledged,
        "garbage": link.garbage,
        "reopened": link.reopened,
        "pulses not given": link.outputs_dropped,
    }
    return ", ".join(f"{name} {n}" for name, n in counted.items() if n)


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
    if isinstance(message, event.PartResult):
        return _part_words(message)
    if isinstance(message, event.LineState):
        return f"line {line_words(message)}"
    if isinstance(message, event.BundleState):
        return f"bundle {bundle_words(message)}"
    if isinstance(message, event.Disagreement):
        head = f"part {message.part} camera {message.camera}: the bundle in shadow says {message.candidate}"
        return f"{head}, the one in charge {message.active}"
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
        return f"{ledger_sentence(message.ledger)}; outbox {message.outbox.depth} waiting{_answer_words(message.line)}"
    return ""


def _part_words(part: event.PartResult) -> str:
    told = "" if part.say == part.outcome else f", PLC told {part.say},"
    head = f"part {part.part} serial {part.serial or '-'} trigger {part.trigger} {part.outcome}{told}"
    texts = [why(part)] if part.reasons else []
    texts += [f"missing: {', '.join(sorted(part.missing))}"] if part.missing else []
    return f"{head} {part.latency_ms:.1f} ms" + (f": {'; '.join(texts)}" if texts else "")


def _answer_words(line: event.LineHealth | None) -> str:
    if line is None or line.answers is None:
        return ""
    trouble = trouble_words(line.link)
    return f"; {line.answers.n} answers, {times_words(line.answers)}" + (f"; {trouble}" if trouble else "")
