"""Whom this box believes about bundles, where it gets them, and what became of the last attempt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edge.bundle import outcome as outcomes
from edge.bundle import root_file
from edge.bundle.mirror import MirrorError, mirror
from edge.bundle.pace import Limits
from edge.bundle.refusal import parse
from edge.bundle.root_file import RootFile
from edge.config import Update
from edge.doctor.certificates import day
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.errors import TrustError
from edge.event import UpdateOutcome
from edge.settings import mask_text

SUBJECT: Final = "update"
ACCEPTED_ROOT: Final = "trust/metadata/root.json"
LIMITS: Final = Limits(connect_s=6.0, silence_s=8.0, idle_tries=1)
TIMESTAMP: Final = "metadata/timestamp.json"
URL_FIX: Final = "check update.url: it is the folder that holds metadata/ and targets/"
SOON_DAYS: Final = 60.0  # a root has to be renewed by people who meet for it
LARGEST_BYTES: Final = 1 << 20
ROOT_FIX: Final = "take the root.json of your repository's keepers: `sudo edge bundle trust ROOT.json`"
REPLACE: Final = "`sudo edge bundle trust ROOT.json --replace`"
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
    path, system = settings.root, context.system
    if not system.exists(path):
        say = _note.warning if settings.url is not None else _note.info
        yield say("no_root", f"there is no root of trust at {path}: signed bundles cannot be taken", ROOT_FIX)
        return
    try:
        first = root_file.read(system.path(path))
    except TrustError as error:
        yield _bad_root(path, error)
        return
    # A newer one that the repository has sent since, and that this one vouched for, stands in its place.
    accepted = _accepted(system.path(context.state / ACCEPTED_ROOT))
    counts = accepted if accepted is not None and accepted.version > first.version else first
    for root in dict.fromkeys((first, counts)):
        if root.development:
            yield _development(root, settings)
    yield root_dates(counts, system.now())


def _bad_root(path: str, error: TrustError) -> Finding:
    if error.code == "unreadable":
        return _note.unknown("root_unseen", f"{path} may not be read by this user", "run `sudo edge doctor`")
    what, _, fix = str(error).partition("; ")
    text, fix = f"{what}: no bundle can be accepted by it", f"{fix}: {REPLACE}"
    if error.code == "signature":
        return _note.error("root_signatures", text, fix)
    return _note.error("root_malformed", text, fix)


def _accepted(path: Path) -> RootFile | None:
    try:
        return root_file.read(path)
    except TrustError:  # none yet, or not for this user's eyes
        return None


def _development(root: RootFile, settings: Update) -> Finding:
    text = f"root of trust version {root.version} was made for development: its one key lies on somebody's desk"
    fix = f"give this box the root of production: {REPLACE}"
    if not settings.development:
        return _note.error("development_root", f"{text}, so bundles are refused", fix)
    return _note.warning("development_root", f"{text}, and update.development lets it in", f"on a line: {fix}")


def root_dates(root: RootFile, now: float) -> Finding:
    """Whether a root of trust may be used now, and for some time to come."""
    ends = datetime.strptime(root.expires, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()
    days = (ends - now) / 86_400
    name = f"root of trust version {root.version}"
    told = {"version": root.version, "ends_ts": ends, "days_left": round(days, 1)}
    # An expired one on the box still leads to a newer one in the repository; none there, and nothing is accepted.
    if days < 0:
        fix = f"the repository must hold a newer one, which is then fetched by itself; if it does not: {REPLACE}"
        return _note.warning("root_expired", f"{name} expired on {root.expires}", fix, **told)
    if days < SOON_DAYS:
        fix = "ask the repository's keepers to sign a new one (`python -m tools publish`)"
        return _note.warning("root_expires", f"{name} expires on {root.expires}", fix, **told)
    return _note.ok("root", str(root), **told)


# --- repository ---


def _repository(settings: Update, now: float) -> Iterator[Finding]:
    """Asked as the update asks, with its proxies, passwords and authorities."""
    url = settings.url or ""
    try:
        data = mirror(url, ca_file=settings.ca_file, limits=LIMITS).download_bytes(TIMESTAMP, LARGEST_BYTES)
    except (MirrorError, TrustError) as error:
        what, _, fix = str(error).partition("; ")
        other = "a USB stick with the same repository does as well"
        yield _note.error("unreachable", what, f"{fix or 'check update.url'}; {other}")
        return
    except Exception as error:  # of the update library, which only `edge.bundle` knows by name
        if getattr(error, "status_code", None) != 404:
            raise
        yield _note.error("no_repository", f"{mask_text(url)} has no {TIMESTAMP}", URL_FIX)
        return
    yield repository_finding(mask_text(url), data, now)


def repository_finding(url: str, data: bytes, now: float) -> Finding:
    """Whether what came is a repository that somebody keeps fresh."""
    found = parse(data)
    if found is None or found.signed.type != "timestamp":
        return _note.error(
            "no_repository",
            f"{url} answers, but not with a repository",
            URL_FIX,
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
