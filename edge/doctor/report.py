"""The findings as a table for people, and as JSON for a fleet."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, Final

import msgspec

from edge import __version__, settings
from edge.doctor.finding import ORDER, Finding, Severity, worst

OK, WARNINGS, ERRORS = 0, 1, 2
_WORDS: Final[dict[Severity, str]] = {
    "error": "ERROR", "warning": "WARNING", "unknown": "unknown", "info": "info", "ok": "ok",
}  # fmt: skip
_SUBJECT_WIDTH, _SEVERITY_WIDTH = 12, 9
_HARD_SPACE = "\u00a0"  # textwrap does not break at it
_INDENT = " " * (_SUBJECT_WIDTH + _SEVERITY_WIDTH)


class Report(msgspec.Struct, kw_only=True, frozen=True):
    """What `edge doctor --json` prints.

    Attributes:
        schema: version of this structure; fields are added to v1, never taken away.
        status: the worst severity of all: error, warning or ok. What is unknown does not worsen it.
        exit_code: 0 ok, 1 warnings, 2 errors.
        summary: how many findings of each severity.
        left_out: subjects that were not looked at, and why.
    """

    schema: str = "edge.doctor.v1"
    node: str = ""
    machine: str = ""
    edge: str = __version__
    ts: float
    config: str = ""
    status: str
    exit_code: int
    summary: dict[str, int]
    findings: list[Finding]
    left_out: dict[str, str] = {}


def exit_code(findings: Sequence[Finding]) -> int:
    """0 when nothing is wrong, 1 with warnings only, 2 with errors."""
    return {"error": ERRORS, "warning": WARNINGS}.get(worst_known(findings), OK)


def worst_known(findings: Sequence[Finding]) -> Severity:
    """The worst of what was really looked at; info counts as ok."""
    found = worst([finding for finding in findings if finding.severity in ("error", "warning")])
    return found if found in ("error", "warning") else "ok"


def make(findings: Sequence[Finding], *, ts: float, **about: Any) -> Report:
    """The report, with every secret masked."""
    masked = [_masked(finding) for finding in findings]
    counts: dict[str, int] = {severity: sum(f.severity == severity for f in masked) for severity in ORDER}
    return Report(
        ts=round(ts, 3),
        status=worst_known(masked),
        exit_code=exit_code(masked),
        summary=counts,
        findings=masked,
        **about,
    )


def _masked(finding: Finding) -> Finding:
    return msgspec.structs.replace(
        finding,
        text=settings.mask_text(finding.text),
        fix=settings.mask_text(finding.fix),
        data=settings.mask(finding.data),
    )


def as_json(report: Report) -> str:
    """One JSON document."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def as_text(report: Report, width: int = 100) -> str:
    """A table by subject, worst first, with the fix under each finding that wants one."""
    lines = [_headline(report), _counts(report), ""]
    for subject, found in _by_subject(report.findings):
        for number, finding in enumerate(_told(found)):
            lines += _rows(subject if number == 0 else "", finding, width)
    lines += [
        f"{name:<{_SUBJECT_WIDTH}}{'-':<{_SEVERITY_WIDTH}}left out: {why}" for name, why in report.left_out.items()
    ]
    return "\n".join(lines)


def _headline(report: Report) -> str:
    moment = datetime.fromtimestamp(report.ts, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    box = " ".join(part for part in (report.node, f"({report.machine})" if report.machine else "") if part)
    return f"edge {report.edge} on {box or 'this box'}, {moment}, config {report.config or 'none'}"


def _counts(report: Report) -> str:
    """
    >>> _counts(make([Finding(subject="a", code="x", severity="warning", text="")], ts=0.0))
    '1 warning; 0 well'
    """
    n = report.summary
    words = {"error": "error", "warning": "warning", "unknown": "unknown", "info": "note"}
    found = [f"{n[key]} {word}{'s' * (n[key] != 1 and key != 'unknown')}" for key, word in words.items() if n[key]]
    return f"{', '.join(found) or 'nothing is wrong'}; {n['ok']} well"


def _by_subject(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    subjects = list(dict.fromkeys(finding.subject for finding in findings))
    groups = [(subject, [f for f in findings if f.subject == subject]) for subject in subjects]
    return sorted(groups, key=lambda group: ORDER.index(worst(group[1])))


def _told(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first; what is well goes into one line, so that it does not bury what is not."""
    ranked = sorted(findings, key=lambda finding: ORDER.index(finding.severity))
    well = [finding for finding in ranked if finding.severity == "ok"]
    rest = [finding for finding in ranked if finding.severity != "ok"]
    if not well:
        return rest
    return [*rest, msgspec.structs.replace(well[0], text="; ".join(finding.text for finding in well))]


def _rows(subject: str, finding: Finding, width: int) -> list[str]:
    head = f"{subject:<{_SUBJECT_WIDTH}}{_WORDS[finding.severity]:<{_SEVERITY_WIDTH}}"
    rows = _wrapped(finding.text, head, width)
    return rows + (_wrapped(finding.fix, f"{_INDENT}-> ", width) if finding.fix else [])


def _wrapped(text: str, head: str, width: int) -> list[str]:
    """Commands stay in one piece, so that they can be copied."""
    indent = " " * len(head)
    rows: list[str] = []
    text = re.sub("`[^`]*`", lambda found: found[0].replace(" ", _HARD_SPACE), text)
    for part in text.splitlines() or [""]:
        rows += textwrap.wrap(
            part, max(width, 60), initial_indent=indent if rows else head, subsequent_indent=indent,
            break_long_words=False, break_on_hyphens=False,
        ) or [indent]  # fmt: skip
    return [row.replace(_HARD_SPACE, " ") for row in rows]
