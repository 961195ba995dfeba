"""What a check has to say: one fact about this box, how bad it is, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

Severity = Literal["ok", "info", "warning", "error", "unknown"]

# Worst first. What could not be looked at comes before what is well: it may hide anything.
ORDER: Final[tuple[Severity, ...]] = ("error", "warning", "unknown", "info", "ok")


class Finding(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One fact.

    Attributes:
        subject: whose check found it, such as `disk`.
        code: stable name of this kind of finding, for machines; codes are added, never given another meaning.
        severity: error: it does not work, or will not for long; warning: it works, and wants attention; unknown: it
            could not be looked at; info: worth knowing; ok: looked at, and well.
        text: the thing and its value, for people.
        fix: what a technician does about it; "" where nothing is to be done.
        data: the same for machines; numbers with their unit in the name.
    """

    subject: str
    code: str
    severity: Severity
    text: str
    fix: str = ""
    data: dict[str, Any] = {}


class Reporter:
    """Makes the findings of one subject; `note` keeps the checks short.

    >>> note = Reporter("disk")
    >>> note.warning("nearly_full", "the disk is 95 % full", "remove what is old").code
    'nearly_full'
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject

    def ok(self, code: str, text: str, /, **data: Any) -> Finding:
        """It was looked at and is well."""
        return self._make("ok", code, text, "", data)

    def info(self, code: str, text: str, fix: str = "", /, **data: Any) -> Finding:
        """Worth knowing."""
        return self._make("info", code, text, fix, data)

    def warning(self, code: str, text: str, fix: str, /, **data: Any) -> Finding:
        """It works, and wants attention."""
        return self._make("warning", code, text, fix, data)

    def error(self, code: str, text: str, fix: str, /, **data: Any) -> Finding:
        """It does not work, or will not for long."""
        return self._make("error", code, text, fix, data)

    def unknown(self, code: str, text: str, fix: str, /, **data: Any) -> Finding:
        """It could not be looked at."""
        return self._make("unknown", code, text, fix, data)

    def _make(self, severity: Severity, code: str, text: str, fix: str, data: dict[str, Any]) -> Finding:
        return Finding(subject=self.subject, code=code, severity=severity, text=text, fix=fix, data=data)


def worst(findings: Sequence[Finding]) -> Severity:
    """The worst severity among them; ok when there are none.

    >>> worst([Reporter("a").ok("x", ""), Reporter("a").error("y", "", "")])
    'error'
    """
    return min((finding.severity for finding in findings), key=ORDER.index, default="ok")
