"""Whom this box believes about bundles, where it gets them, and what became of the last attempt."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final

from edge.bundle import outcome as outcomes
from edge.config import Update
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.event import UpdateOutcome

SUBJECT: Final = "update"
ANSWER_S: Final = 8.0
SOON_DAYS: Final = 60.0  # a root has to be renewed by people who meet for it
LARGEST_BYTES: Final = 1 << 20
ROOT_FIX: Final = "copy the root.json of your repository's keepers to this box: `sudo edge bundle trust ROOT.json`"
BAD: Final = ("refused", "failed", "returned")

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """Root of trust, repository, last outcome."""
    settings = context.config.update if context.config is not None else Update()
    yield from _root(context, settings)
    if context.config is not None:
        if settings.url is not None:
            yield from _repository(settings, context.system.now())
        elif not settings.usb:
            yield _note.info(
                "no_way_in",
                "neither update.url nor update.usb is set: bundles come by hand only",
                "set update.url, or usb = true",
            )
    yield from _last(outcomes.read(context.system.path(context.state)), context.system.now())


# --- root of trust ---


def _root(context: Context, settings: Update) -> Iterator[Finding]:
    path = settings.root
    data = context.system.data(path)
    if data is None:
        if context.system.exists(path):
            yield _note.unknown("root_unseen", f"{path} may not be read by this user", "run `sudo edge doctor`")
        elif context.config is None:
            yield _note.info(
                "no_root", f"there is no root of trust at {path}: signed bundles cannot be taken", ROOT_FIX
            )
        else:
            yield _note.warning(
                "no_root", f"there is no root of trust at {path}: signed bundles cannot be taken", ROOT_FIX
            )
        return
    yield from root_findings(path, data, context.system.now())


def root_findings(path: str, data: bytes, now: float) -> Iterator[Finding]:
    """What a root.json says of itself; whether its signatures hold the update client proves at each refresh."""
    signed = _signed(data)
    if signed is None or signed.get("_type") != "root":
        yield _note.error("root_malformed", f"{path} is no root of trust (root.json of a TUF repository)", ROOT_FIX)
        return
    ends = _moment(signed.get("expires"))
    if ends is None:
        yield _note.error("root_malformed", f"{path} does not say when it expires", ROOT_FIX)
        return
    days = (ends - now) / 86_400
    told = {"version": signed.get("version"), "ends_ts": ends, "days_left": round(days, 1)}
    day = datetime.fromtimestamp(ends, timezone.utc).strftime("%Y-%m-%d")
    # An expired one on the box still leads to a newer one in the repository; none there, and nothing is accepted.
    if days < 0:
        yield _note.warning(
            "root_expired",
            f"the root of trust {path} (version {signed.get('version')}) expired on {day}",
            f"the repository must hold a newer one, which is then fetched by itself; if it does not: {ROOT_FIX}",
            **told,
        )
    elif days < SOON_DAYS:
        yield _note.warning(
            "root_expires",
            f"the root of trust {path} (version {signed.get('version')}) expires on {day}",
            "ask the repository's keepers to sign a new one (`python -m tools publish`)",
            **told,
        )
    else:
        yield _note.ok("root", f"root of trust version {signed.get('version')}, until {day}", **told)


def _signed(data: bytes) -> dict[str, Any] | None:
    try:
        signed = json.loads(data)["signed"]
    except (ValueError, KeyError, TypeError):
        return None
    return signed if isinstance(signed, dict) else None


def _moment(text: object) -> float | None:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


# --- repository ---


def _repository(settings: Update, now: float) -> Iterator[Finding]:
    assert settings.url is not None
    address = f"{settings.url.rstrip('/')}/metadata/timestamp.json"
    try:
        tls = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError too
        yield _note.error(
            "ca_file",
            f"update.ca_file {settings.ca_file} cannot be used: {error.strerror or error}",
            "it must be a PEM file of the authority that signed the server's certificate",
        )
        return
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_S, context=tls) as answer:
            data = answer.read(LARGEST_BYTES)
    except (OSError, ValueError) as error:
        yield unreachable_finding(settings.url, error)
        return
    yield repository_finding(settings.url, data, now)


def unreachable_finding(url: str, error: Exception) -> Finding:
    """Why the repository cannot be read."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        fix = (
            "check update.url: it is the folder that holds metadata/ and targets/"
            if error.code == 404
            else "see the web server's log"
        )
        return _note.error("no_repository", f"{url} answers {error.code} {error.reason}", fix, status=error.code)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _note.error(
            "certificate",
            f"the certificate of {url} is not trusted: {reason.verify_message}",
            "set update.ca_file to its authority; check the name in update.url, and this box's clock",
        )
    said = (
        "it does not answer" if isinstance(reason, TimeoutError) else getattr(reason, "strerror", None) or str(reason)
    )
    return _note.error(
        "unreachable",
        f"{url} cannot be reached: {said}",
        "check the network, DNS and update.url; a USB stick with the same repository does as well",
    )


def repository_finding(url: str, data: bytes, now: float) -> Finding:
    """Whether what came is a repository that somebody keeps fresh."""
    signed = _signed(data)
    ends = _moment(signed.get("expires")) if signed is not None and signed.get("_type") == "timestamp" else None
    if ends is None:
        return _note.error(
            "no_repository",
            f"{url} answers, but not with a repository",
            "check update.url: it is the folder that holds metadata/ and targets/",
        )
    if ends < now:
        day = datetime.fromtimestamp(ends, timezone.utc).strftime("%Y-%m-%d")
        return _note.warning(
            "repository_expired",
            f"the repository {url} has expired on {day}: nothing of it is accepted",
            "its keepers must renew it (`python -m tools publish`); or this box's clock is ahead",
            ends_ts=ends,
        )
    return _note.ok("repository", f"{url} answers with a repository", ends_ts=ends)


# --- the last attempt ---


def _last(outcome: UpdateOutcome | None, now: float) -> Iterator[Finding]:
    if outcome is None:
        yield _note.info("no_outcome", "no update was tried yet")
        return
    days = (now - outcome.ts) / 86_400
    text = f"the last update ({outcome.source or 'local'}, {max(days, 0):.1f} days ago): {outcome.outcome}"
    told = {"outcome": outcome.outcome, "code": outcome.code, "bundle": outcome.bundle, "ts": outcome.ts}
    if outcome.outcome in BAD:
        yield _note.warning(
            "last_failed", f"{text}, {outcome.text}", outcome.advice or "try again: `sudo edge bundle update`", **told
        )
    else:
        yield _note.ok("last", f"{text}{f', {outcome.bundle}' if outcome.bundle else ''}", **told)
