"""What `edge doctor` finds on the emulated box: that it runs there, and what of its findings must be well."""

from __future__ import annotations

import json
from pathlib import Path

from tests.arm64 import line
from tests.arm64.guest import Guest
from tests.arm64.report import Report, expect

# What is missing here by nature: systemd, a broker, a clock that somebody sets, a root of trust.
MUST_BE_WELL = ("config", "disk", "memory", "runtime", "bundle")


def check(guest: Guest, work: Path, report: Report) -> None:
    """It runs, knows where it is, and finds nothing wrong with what was installed."""
    line.write_config(guest, 1883)
    done = guest.run("/usr/local/bin/edge", "doctor", "--json", "--config", line.CONFIG, log=work / "doctor.log")
    expect(done.code in (0, 1, 2) and done.out.startswith("{"), f"edge doctor ended with {done.code}: {done.said}")
    found = json.loads(done.out)
    expect(found["machine"] == "aarch64" and found["exit_code"] == done.code, f"it says {found['machine']}")
    by_severity: dict[str, list[str]] = {}
    for finding in found["findings"]:
        by_severity.setdefault(finding["severity"], []).append(f"{finding['subject']}/{finding['code']}")
    broken = [f for f in found["findings"] if f["severity"] == "error" and f["subject"] in MUST_BE_WELL]
    expect(not broken, f"edge doctor finds {broken}")
    runtime = [f["text"] for f in found["findings"] if f["subject"] == "runtime" and f["code"] == "loads"]
    expect(runtime and runtime[0].startswith("onnxruntime "), f"edge doctor says of the runtime: {runtime}")
    report.show(f"edge doctor --json: exit code {done.code}, {found['summary']}", **found["summary"])
    for severity in ("error", "warning", "unknown"):
        report.show(f"{severity}: {', '.join(by_severity.get(severity, [])) or 'none'}")
    report.show(f"runtime: {'; '.join(runtime)}")
