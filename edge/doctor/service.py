"""Does systemd run the daemon: enabled, up, not restarting again and again, watched, and with a log that stays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from edge.doctor.context import UNIT, Context
from edge.doctor.finding import Finding, Reporter
from edge.doctor.system import System

SUBJECT: Final = "service"
PROPERTIES: Final = (
    "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "NRestarts", "WatchdogUSec", "StatusText",
    "ExecMainStatus", "NeedDaemonReload",
)  # fmt: skip
TIMER: Final = "edge-update.timer"
MANY_RESTARTS: Final = 3
LOG_FIX: Final = f"`journalctl -u {UNIT} -n 50 --no-pager` says why"

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """The unit, then the journal."""
    system = context.system
    if not system.exists("/run/systemd/system"):
        yield _note.info("no_systemd", "systemd does not run here, so nothing was asked of the service")
        return
    ran = system.run(["systemctl", "show", UNIT, "--property", ",".join(PROPERTIES)], 5)
    if ran is None or ran.code != 0:
        yield _note.unknown(
            "not_told",
            f"systemctl does not tell of {UNIT}: {ran.said if ran else 'it is not there'}",
            "run `sudo edge doctor`",
        )
    else:
        yield from unit_findings(dict(line.split("=", 1) for line in ran.out.splitlines() if "=" in line))
    if context.config is not None and context.config.update.url is not None:
        yield from _timer(system)
    yield from _journal(system)


def _timer(system: System) -> Iterator[Finding]:
    """What asks update.url for newer bundles."""
    ran = system.run(["systemctl", "show", TIMER, "--property", "LoadState,ActiveState"], 5)
    if ran is not None and ran.code == 0 and "ActiveState=active" not in ran.out.split():
        yield _note.warning(
            "timer_off",
            f"update.url is set, but {TIMER} does not run: nobody looks for newer bundles",
            f"`sudo systemctl enable --now {TIMER}`; if there is no such unit: `sudo systemd/install.sh`",
        )


def unit_findings(unit: Mapping[str, str]) -> Iterator[Finding]:
    """What the properties of the unit say."""
    if unit.get("LoadState") != "loaded":
        yield _note.warning(
            "not_installed",
            f"the service {UNIT} is not installed ({unit.get('LoadState') or 'unknown'})",
            "`sudo systemd/install.sh` installs it",
        )
        return
    yield _running(unit)
    if unit.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "alias"):
        yield _note.warning(
            "not_enabled",
            f"{UNIT} does not start with the box ({unit.get('UnitFileState')})",
            f"`sudo systemctl enable {UNIT}`",
        )
    yield from _restarts(unit)
    if unit.get("WatchdogUSec", "0") in ("0", "infinity", ""):
        yield _note.warning(
            "no_watchdog",
            f"{UNIT} has no watchdog: a daemon that hangs stays so",
            "take the unit of this release: `sudo systemd/install.sh`; see `systemctl cat edge`",
        )
    if unit.get("NeedDaemonReload") == "yes":
        yield _note.warning(
            "not_reloaded",
            f"the file of {UNIT} was changed and not read again",
            f"`sudo systemctl daemon-reload && sudo systemctl restart {UNIT}`",
        )


def _running(unit: Mapping[str, str]) -> Finding:
    state, status = unit.get("ActiveState", ""), unit.get("StatusText", "")
    told = {"state": state, "sub_state": unit.get("SubState", ""), "result": unit.get("Result", "")}
    if state == "active":
        return _note.ok("running", f"{UNIT} runs" + (f": {status}" if status else ""), **told)
    if state in ("activating", "reloading", "deactivating"):
        return _note.warning(
            "changing",
            f"{UNIT} is {state} ({unit.get('SubState')})",
            f"wait a minute and run `edge doctor` again; {LOG_FIX}",
            **told,
        )
    if unit.get("Result") == "start-limit-hit":
        return _note.error(
            "gave_up",
            f"{UNIT} failed so often that systemd no longer starts it",
            f"{LOG_FIX}; then `sudo systemctl reset-failed {UNIT} && sudo systemctl start {UNIT}`",
            **told,
        )
    if state == "failed":
        return _note.error(
            "failed",
            f"{UNIT} has failed ({unit.get('Result')}, exit code {unit.get('ExecMainStatus')})",
            f"{LOG_FIX}; then `sudo systemctl restart {UNIT}`",
            **told,
        )
    return _note.error(
        "stopped", f"{UNIT} does not run: nothing is inspected", f"`sudo systemctl start {UNIT}`", **told
    )


def _restarts(unit: Mapping[str, str]) -> Iterator[Finding]:
    count = int(unit["NRestarts"]) if unit.get("NRestarts", "").isdecimal() else 0
    if count >= MANY_RESTARTS:
        yield _note.warning(
            "restarts", f"systemd has started {UNIT} again {count} times after it failed", LOG_FIX, restarts=count
        )
    elif count:
        yield _note.info(
            "restarts", f"systemd has started {UNIT} again {count} times after it failed", LOG_FIX, restarts=count
        )


def _journal(system: System) -> Iterator[Finding]:
    """A log in memory is gone with the power, and with it why the power went."""
    storage = storage_of(system)
    if storage == "none":
        yield _note.warning(
            "no_log",
            "journald keeps no log at all (Storage=none)",
            "set Storage=persistent in /etc/systemd/journald.conf",
        )
    elif storage == "persistent" or (storage == "auto" and system.exists("/var/log/journal")):
        yield _note.ok("log", "the log outlives a restart")
    else:
        yield _note.warning(
            "log_volatile",
            "the log is kept in memory only: after a restart nobody can see why",
            "`sudo mkdir -p /var/log/journal && sudo systemd-tmpfiles --create --prefix /var/log/journal && "
            "sudo systemctl restart systemd-journald`; limit it with SystemMaxUse= in /etc/systemd/journald.conf",
        )


def storage_of(system: System) -> str:
    """journald's Storage=, the last word of its files."""
    files = ["/etc/systemd/journald.conf"]
    for folder in ("/usr/lib", "/run", "/etc"):
        files += system.glob(f"{folder}/systemd/journald.conf.d/*.conf")
    found = [
        value for file in files for value in re.findall(r"^\s*Storage=(\w+)", system.text(file) or "", re.MULTILINE)
    ]
    return found[-1].lower() if found else "auto"
