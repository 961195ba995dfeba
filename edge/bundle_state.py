"""Tells on `bundle` which bundle is in charge, which is coming, and what became of the last attempt to bring one."""

from __future__ import annotations

from pathlib import Path

from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import slots
from edge.bundle.trial import Trial
from edge.changeover import Changeover
from edge.clock import Clock
from edge.errors import BundleError
from edge.event import BundleRef, BundleState, Topics, UpdateOutcome
from edge.ports import Wire

TELL_NS = 2_000_000_000  # counts that go up are told at most so often


class BundleTeller:
    """Publishes the state, retained, whenever it has changed. Belongs to the inspection thread."""

    def __init__(self, state: Path, changeover: Changeover, wire: Wire, topics: Topics, clock: Clock) -> None:
        self._state = state
        self._changeover = changeover
        self._wire = wire
        self._topics = topics
        self._clock = clock
        self._told: BundleState | None = None
        self._stamp: object = None
        self._due_ns = 0
        self._refs: tuple[BundleRef, BundleRef | None, BundleRef | None] | None = None
        self._stage = "committed"
        self._last: UpdateOutcome | None = None

    def tick(self) -> None:
        """Look, and tell what is new."""
        now_ns = self._clock.mono_ns()
        stamp = slots.trial_stamp(self._state), outcomes.stamp(self._state), self._changeover.slot
        if stamp == self._stamp and now_ns < self._due_ns:
            return
        self._due_ns = now_ns + TELL_NS
        if stamp != self._stamp or self._refs is None:
            self._read()
            self._stamp = stamp
        if self._refs is None:
            return
        self._tell(now_ns)

    def _read(self) -> None:
        trial, served = slots.read_trial(self._state), self._changeover.slot
        on_trial = trial is not None and trial.stage == "trial" and trial.slot == served.name
        in_shadow = trial is not None and trial.stage == "shadow"
        self._stage = "trial" if on_trial else "shadow" if in_shadow else "committed"
        self._last = outcomes.read(self._state)
        active = _ref(self._state, served)
        if active is not None:
            self._refs = active, _ref(self._state, slots.previous(self._state)), _ref(self._state, self._coming(trial))

    def _coming(self, trial: Trial | None) -> Path | None:
        """The slot that is to be in charge and is not yet."""
        if trial is not None and trial.stage == "shadow":
            return self._state / "bundles" / trial.slot
        try:
            active = slots.active(self._state)
        except BundleError:
            return None
        return active if active != self._changeover.slot else None

    def _tell(self, now_ns: int) -> None:
        assert self._refs is not None
        active, previous, candidate = self._refs
        shadow, probation = self._changeover.shadow, self._changeover.probation
        message = BundleState(
            stage=self._stage,
            active=active,
            previous=previous,
            candidate=candidate,
            shadow=shadow.counts() if shadow is not None else None,
            trial=probation.counts(now_ns) if probation is not None else None,
            last=self._last,
        )
        if message != self._told:
            self._told = message
            self._wire.live(self._topics.bundle, message, retain=True)


def _ref(state: Path, slot: Path | None) -> BundleRef | None:
    if slot is None:
        return None
    try:
        manifest = manifests.read_unverified(slot)
    except BundleError:
        return None
    told = slots.told(state, slot)
    digest = manifests.digest(manifest)
    return BundleRef(
        product=manifest.product, version=manifest.version, digest=digest, signed=told.signed, origin=told.origin
    )


def unmanaged(product: str, version: int, digest: str) -> BundleState:
    """Of a bundle that the config names by its folder: nobody vouches for it, and none takes its place."""
    ref = BundleRef(product=product, version=version, digest=digest, signed=False, origin="config")
    return BundleState(stage="committed", active=ref, previous=None, candidate=None, shadow=None, trial=None, last=None)
