"""The bundle in charge: whole, fit for this device, proved on it, and whether another one is on trial."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edge import loading
from edge.bundle import choice, passport, slots
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Manifest
from edge.bundle.passport import Here
from edge.bundle.trial import Trial
from edge.config import Runtime
from edge.doctor.context import Context
from edge.doctor.finding import Finding, Reporter
from edge.errors import BundleError
from edge.predictor import installed_runtimes

SUBJECT: Final = "bundle"
INSTALL: Final = "`sudo edge bundle install SOURCE`"
TRIAL_LONG_S: Final = 2 * 86_400.0  # on trial for longer: the line stands, or it is too rarely triggered

_note = Reporter(SUBJECT)


def check(context: Context) -> Iterator[Finding]:
    """The folder that the config names, or the active slot and what is coming."""
    state = context.system.path(context.state)
    named = context.config.paths.bundle if context.config is not None else None
    if named is not None:
        yield from _folder(context, context.system.path(named), named)
        return
    try:
        slot = slots.active(state)
    except BundleError as error:
        yield _none(context, error)
        return
    manifest = yield from _whole(slot, "the active bundle")
    if manifest is not None:
        yield from _fits(context, manifest)
        yield from _proved(context, slot, manifest)
    yield from _trial(slots.read_trial(state), context.system.now())
    previous = slots.previous(state)
    if previous is None:
        yield _note.info("no_previous", "there is no previous bundle to go back to", "normal for a new box")
    else:
        yield from _whole(previous, "the previous bundle", is_previous=True)


def _none(context: Context, error: BundleError) -> Finding:
    state = context.state
    if context.system.exists(state) and not context.system.may(state, 5):
        return _note.unknown("unseen", f"this user may not look into {state}", "run `sudo edge doctor`")
    what, _, _ = str(error).partition(": run ")
    if context.config is None:
        return _note.info("none", what, f"install one: {INSTALL}")
    return _note.error("none", f"{what}: nothing can be inspected", f"install one: {INSTALL}")


def _folder(context: Context, folder: Path, named: str) -> Iterator[Finding]:
    manifest = yield from _whole(folder, f"the bundle in paths.bundle ({named})")
    if manifest is not None:
        yield from _fits(context, manifest)
    yield _note.info(
        "by_hand",
        f"paths.bundle names {named}, so installed bundles and updates do not count",
        "take paths.bundle out to use them",
    )


def _whole(folder: Path, what: str, is_previous: bool = False) -> Generator[Finding, None, Manifest | None]:
    """Every file against its hash."""
    try:
        manifest = manifests.read(folder)
    except BundleError as error:
        text = f"{what} in {folder} is damaged: {_problem(error)}"
        fix = f"install it again: {INSTALL}; a disk that damages files may be failing: `edge doctor --only disk`"
        if is_previous:
            yield _note.warning("previous_damaged", text, fix)
        else:
            yield _note.error("damaged", text, fix)
        return None
    text = f"{what} is {manifest.product} {manifest.version}, all {len(manifest.files)} files as they were built"
    yield _note.ok("whole", text, product=manifest.product, version=manifest.version, digest=manifests.digest(manifest))
    return manifest


def _problem(error: BundleError) -> str:
    """The first problem of a list, in one line."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def _fits(context: Context, manifest: Manifest) -> Iterator[Finding]:
    runtime = context.config.runtime if context.config is not None else None
    prefer, precision = (runtime.prefer, runtime.precision) if runtime is not None else ("auto", "auto")
    try:
        choice.choose(manifest, context.system.machine(), installed_runtimes(), prefer, precision)
    except BundleError as error:
        headline, _, fix = str(error).splitlines()[0].rstrip(":").partition("; ")
        yield _note.error("does_not_fit", headline, fix or f"install another one: {INSTALL}")
        return
    yield _note.ok("fits", "it has a model for this device")


def _proved(context: Context, slot: Path, manifest: Manifest) -> Iterator[Finding]:
    proof = passport.read(slot)
    again = f"install it again, which proves it: {INSTALL}"
    if proof is None:
        yield _note.warning(
            "no_passport",
            f"{slot.name} was not proved on this device: which of its models is fastest and right here is not known",
            again,
        )
        return
    if proof.digest != manifests.digest(manifest):
        yield _note.warning("passport_of_another", f"the passport of {slot.name} is of another bundle", again)
        return
    runtime = context.config.runtime if context.config is not None else Runtime()
    changed = _changed(proof.here, loading.here(runtime))
    if changed:
        yield _note.warning(
            "passport_stale",
            f"{slot.name} was proved on a device that was another: {'; '.join(changed)}",
            again,
            changed=changed,
        )
        return
    picked = passport.pick(proof.proofs, runtime.prefer, runtime.precision)
    if picked is None or picked.frame_ms is None:
        yield _note.error(
            "none_passed",
            f"no model of {slot.name} agrees with its reference on this device",
            "install another bundle, or the runtime it was made with",
        )
        return
    made = datetime.fromtimestamp(proof.ts, timezone.utc).strftime("%Y-%m-%d")
    yield _note.ok(
        "proved",
        f"proved here on {made}: {picked.runtime} {picked.precision}, a frame takes {picked.frame_ms.p50:.0f} ms "
        f"(99 %: {picked.frame_ms.p99:.0f} ms)",
        file=picked.file,
        p50_ms=picked.frame_ms.p50,
        p99_ms=picked.frame_ms.p99,
    )


def _changed(then: Here, now: Here) -> list[str]:
    """What of the device is not as it was when the passport was made: it then says nothing, as the daemon has it."""
    changed = [
        f"{name} was {getattr(then, name) or 'unknown'}, is {getattr(now, name) or 'unknown'}"
        for name in ("machine", "board", "threads", "providers")
        if getattr(then, name) != getattr(now, name)
    ]
    for name in sorted({*then.versions, *now.versions}):
        old, new = then.versions.get(name, "absent"), now.versions.get(name, "absent")
        if old != new:
            changed.append(f"{name} was {old}, is {new}")
    return changed


def _trial(mark: Trial | None, now: float) -> Iterator[Finding]:
    if mark is None:
        return
    told = {"slot": mark.slot, "stage": mark.stage, "code": mark.code, "starts": mark.starts}
    days = (now - mark.began) / 86_400
    fix = "look at what it did differently: evidence, and `edge bundle status`; then bring a better one"
    why = mark.text or mark.code
    if mark.stage == "returned":
        yield _note.warning("trial_returned", f"{mark.slot} was on trial and was returned: {why}", fix, **told)
    elif mark.stage == "refused":
        yield _note.warning("trial_refused", f"{mark.slot} was refused before it was in charge: {why}", fix, **told)
    elif mark.stage in ("shadow", "trial"):
        long = now - mark.began > TRIAL_LONG_S
        where = "beside the active one" if mark.stage == "shadow" else "in charge, on trial"
        text = f"{mark.slot} is {where}, for {max(days, 0):.1f} days, {mark.starts} starts"
        if long:
            yield _note.warning(
                "trial_long", text, "it wants parts to be judged by: is the line running? `edge bundle status`", **told
            )
        else:
            yield _note.info("trial", text, "it is decided by itself, by [trial] of the config", **told)
