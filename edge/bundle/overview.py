"""Which bundles a device has, how they came, what is being tried, and what the active one does here: for people."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import passport as passports
from edge.bundle import slots
from edge.bundle.passport import DevicePassport, Here
from edge.bundle.trial import UNDER_WAY, Trial
from edge.config import Runtime
from edge.errors import BundleError
from edge.event import UpdateOutcome

HOW: Final = {"usb": "from a stick", "network": "over the network", "local": "from a folder"}


class Held(msgspec.Struct, kw_only=True, frozen=True):
    """A bundle that is installed.

    Attributes:
        signed: a repository that this device trusts vouched for it. origin: usb, network or local.
        picked: the model that serves, when its passport decides that; "" when the usual order does.
    """

    product: str
    version: int
    digest: str
    slot: str
    folder: str
    signed: bool
    origin: str
    picked: str = ""
    passport: DevicePassport | None = None


class Overview(msgspec.Struct, kw_only=True, frozen=True):
    """Everything about the bundles of a device; `problem` says why none is active."""

    active: Held | None
    previous: Held | None
    candidate: Held | None
    trial: Trial | None
    last: UpdateOutcome | None
    problem: str = ""


def overview(state: Path, here: Here, runtime: Runtime) -> Overview:
    """What the state folder says.

    Args:
        here: this device; a passport that was made on another one decides nothing. runtime: as the site wants it.

    Raises:
        BundleError: this user may not read it.
    """
    problem = ""
    _require_readable(state / "bundles")
    try:
        active = _held(state, slots.active(state), here, runtime)
    except BundleError as error:
        active, problem = None, str(error)
    previous, candidate = slots.previous(state), slots.candidate(state)
    return Overview(
        active=active,
        previous=_if_readable(state, previous, here, runtime),
        candidate=_if_readable(state, candidate, here, runtime),
        trial=slots.read_trial(state),
        last=outcomes.read(state),
        problem=problem,
    )


def _require_readable(bundles: Path) -> None:
    """What may not be looked into must not read as "no bundle".

    Raises:
        BundleError: it is closed to this user.
    """
    try:
        if bundles.exists():
            os.listdir(bundles)
    except OSError as error:
        text = f"{bundles} cannot be read: {error.strerror or error}"
        raise BundleError(f"{text}; run it as root or as the daemon's user") from error


def _if_readable(state: Path, slot: Path | None, here: Here, runtime: Runtime) -> Held | None:
    try:
        return _held(state, slot, here, runtime) if slot is not None else None
    except BundleError:
        return None


def _held(state: Path, slot: Path, here: Here, runtime: Runtime) -> Held:
    manifest, who, passport = manifests.read(slot), slots.told(state, slot), passports.read(slot)
    digest, picked = manifests.digest(manifest), None
    if passport is not None and passport.holds(digest, here):
        picked = passports.pick(passport.proofs, runtime.prefer, runtime.precision)
    return Held(
        product=manifest.product, version=manifest.version, digest=digest, slot=slot.name, folder=str(slot.resolve()),
        signed=who.signed, origin=who.origin, picked=picked.file if picked else "", passport=passport,
    )  # fmt: skip


def text(found: Overview) -> str:
    """The overview in lines."""
    lines = [_line("active", found.active, found.trial)]
    lines += [_line("previous", found.previous, None)] if found.previous else []
    lines += [_line("candidate", found.candidate, found.trial)] if found.candidate else []
    for held in (found.active, found.candidate):
        lines += _proof(held) if held is not None else []
    if (last := found.last) is not None:
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(0.0, last.ts)))
        said = f"{last.text}; {last.advice}" if last.advice else last.text
        lines.append(f"last: {last.outcome.replace('_', ' ')}, {when}: {said}")
    return "\n".join(lines)


def _line(name: str, held: Held | None, trial: Trial | None) -> str:
    if held is None:
        return f"{name}: none"
    how = f"signed, {HOW.get(held.origin, held.origin)}" if held.signed else "by hand, nobody vouches for it"
    stage = ""
    if trial is not None and trial.slot == held.slot and trial.stage in UNDER_WAY:
        stage = "; in shadow" if trial.stage == "shadow" else f"; on trial, {trial.starts} starts"
    return f"{name}: {held.product} {held.version}, digest {held.digest}, {how}{stage}, in {held.folder}"


def _proof(held: Held) -> list[str]:
    if held.passport is None:
        return [f"{held.product} {held.version} was not proved on this device: models are chosen in the usual order"]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(0.0, held.passport.ts)))
    head = f"{held.product} {held.version} on this device, {held.passport.samples} golden samples, {when}"
    if not held.picked:
        head += "; the device is no longer what it was then: models are chosen in the usual order"
    return [head, *passports.table(held.passport, held.picked)]
