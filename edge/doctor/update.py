"""Whom this box believes about bundles, where it gets them, and what became of the last attempt."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timezone
from typing import Any, Final

from edge.bundle import outcome as outcomes
from edge.bundle.refusal import parse
from edge.bundle.roles import DEVELOPMENT
from edge.config import Update
from edge.doctor.certificates import day
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.event import UpdateOutcome

SUBJECT: Final = "update"
Metadata = Any  # of python-tuf, which only `edge.bundle` imports
ACCEPTED_ROOT: Final = "trust/metadata/root.json"
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
    if context.system.exists(context.state) and not context.system.may(context.state, os.X_OK):
        text = f"this user may not look into {context.state}, so what became of the last update is not known"
        yield _note.unknown("outcome_unseen", text, "run `sudo edge doctor`")
        return
    yield from _last(outcomes.read(context.system.path(context.state)), context.system.now())


# --- root of trust ---


def _root(context: Context, settings: Update) -> Iterator[Finding]:
    path = settings.root
    data = context.system.data(path)
    if data is None:
        if context.system.exists(path):
            yield _note.unknown("root_unseen", f"{path} may not be read by this user", "run `sudo edge doctor`")
        else:
            say = _note.info if context.config is None else _note.warning
            yield say("no_root", f"there is no root of trust at {path}: signed bundles cannot be taken", ROOT_FIX)
        return
    first = parse(data)
    if first is None or first.signed.type != "root":
        text = f"{path} is no root of trust (the root metadata of a bundle repository)"
        yield _note.error("root_malformed", text, ROOT_FIX)
        return
    # A newer one that the repository has sent since, and that this one vouched for, stands in its place.
    accepted = parse(context.system.data(context.state / ACCEPTED_ROOT))
    newer = accepted is not None and accepted.signed.type == "root" and accepted.signed.version > first.signed.version
    yield from root_findings(first, path, settings, context.system.now(), judge_dates=not newer)
    if newer and accepted is not None:
        yield from root_findings(accepted, str(context.state / ACCEPTED_ROOT), settings, context.system.now())


def root_findings(
    root: Metadata, path: str, settings: Update, now: float, judge_dates: bool = True
) -> Iterator[Finding]:
    """Whether a root of trust holds: signed by enough of its own keys, of the right kind, not expired."""
    name = f"the root of trust {path} (version {root.signed.version})"
    result = root.signed.get_verification_result("root", root.signed_bytes, root.signatures)
    if not result:
        text = f"{name} is not signed by enough of its own keys: {len(result.signed)} of {result.threshold}"
        yield _note.error("root_signatures", f"{text}; nothing can be accepted by it", ROOT_FIX)
        return
    if root.signed.unrecognized_fields.get(DEVELOPMENT):
        yield _development(name, settings)
    if judge_dates:
        yield _root_dates(name, root, now)


def _development(name: str, settings: Update) -> Finding:
    text = f"{name} was made for development: its one key lies on somebody's desk"
    if not settings.development:
        return _note.error("development_root", f"{text}, so bundles are refused", ROOT_FIX)
    return _note.warning(
        "development_root", f"{text}, and update.development lets it in", "on a production line: " + ROOT_FIX
    )


def _root_dates(name: str, root: Metadata, now: float) -> Finding:
    ends = root.signed.expires.replace(tzinfo=timezone.utc).timestamp()
    days = (ends - now) / 86_400
    told = {"version": root.signed.version, "ends_ts": ends, "days_left": round(days, 1)}
    # An expired one on the box still leads to a newer one in the repository; none there, and nothing is accepted.
    if days < 0:
        fix = f"the repository must hold a newer one, which is then fetched by itself; if it does not: {ROOT_FIX}"
        return _note.warning("root_expired", f"{name} expired on {day(ends)}", fix, **told)
    if days < SOON_DAYS:
        fix = "ask the repository's keepers to sign a new one (`python -m tools publish`)"
        return _note.warning("root_expires", f"{name} expires on {day(ends)}", fix, **told)
    return _note.ok("root", f"root of trust version {root.signed.version}, until {day(ends)}", **told)


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
    found = parse(data)
    if found is None or found.signed.type != "timestamp":
        return _note.error(
            "no_repository",
            f"{url} answers, but not with a repository",
            "check update.url: it is the folder that holds metadata/ and targets/",
        )
    ends = found.signed.expires.replace(tzinfo=timezone.utc).timestamp()
    if ends < now:
        return _note.warning(
            "repository_expired",
            f"the repository {url} has expired on {day(ends)}: nothing of it is accepted",
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
