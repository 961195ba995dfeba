"""Which bundle this box runs. Whatever is done to it happens or does not, whenever the power goes.

    <state>/bundles/pcb-3-1a2b3c4d/          a slot: one installed bundle, never changed afterwards
    <state>/bundles/pcb-4-5e6f7a8b.partial/  a copy or a removal that was not finished; the next install removes it
    <state>/bundles/active    -> pcb-3-...   what the daemon loads
    <state>/bundles/previous  -> pcb-2-...   where `rollback` goes
    <state>/bundles/candidate -> pcb-4-...   what runs in shadow
    <state>/bundles/trial.json               the mark: which slot is meant to be where, and why (`edge.bundle.trial`)

A slot gets its name only when its files are on the disk and have been checked there. Then every step is one mark,
replaced as a whole, and the links follow it:

    put          no mark: a slot that nothing leads to
    stage        -> shadow: candidate is the slot                       (without a good active slot: -> trial at once)
    activate     shadow -> trial: previous is what was active, active is the slot, no candidate
    commit       trial -> committed: as trial; the floor of the product is raised if a repository vouches for the slot
    go_back      trial -> returned: active is what it was before, previous is what it was before that
    refuse       shadow -> refused: no candidate
    rollback     any -> rolled_back: active is what was previous; previous is what was active, if it ever was committed
    note_start   trial, shadow -> one start more; at the fourth trial -> returned, shadow -> refused; any -> returned if
                 active is damaged

The mark is written first. From then on `links.settle` does the rest, link by link, each by an atomic rename; whoever
comes next, after a kill or a power cut at whatever moment, finds a mark without its links and settles it first. A link
without a mark (only `candidate` could be one) is removed. Settling moves no link to a slot that is not whole: a
candidate that was damaged meanwhile is given up instead, and a slot is removed only when neither a link nor a mark
under way names it. So `active` leads to a whole slot at every moment.

The floor is raised when a bundle is committed, not before: one that was returned may be followed by any version that
is newer than the last good one, and the good one may be installed again should its slot be damaged.

Two processes meet here: the daemon, which runs as its own user, and the command line, mostly root. The folder is locked
for marks and links, which takes milliseconds, and `.lock` for the copying of slots, which takes longer and which the
daemon never waits for. What root makes is given to the owner of the state folder.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edge.bundle import copies, links
from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import trial as trials
from edge.bundle.links import ACTIVE, CANDIDATE, PREVIOUS
from edge.bundle.manifest import MANIFEST
from edge.bundle.trial import Told, Trial
from edge.errors import BundleError
from edge.event import UpdateOutcome

MOST_STARTS: Final = 3  # of the daemon with a bundle on trial; at the next one it goes back


class ReplacedError(BundleError):
    """The bundle that was meant is no longer what this is about: a person or another process was quicker."""


@dataclass(frozen=True)
class Start:
    """What a daemon that starts should serve.

    Attributes:
        slot: the active slot.
        trial: the mark, None where there is none.
        returned: this start went back to it. refused: this start gave up the one in shadow.
        problem: what kept the start from being counted, "" for nothing.
    """

    slot: Path
    trial: Trial | None
    returned: bool = False
    problem: str = ""
    refused: bool = False


def put(source: Path, state: Path) -> Path:
    """Check a bundle and copy it into a slot of its own, durably; no link leads there yet.

    Returns the slot; the one that holds this very bundle already, where there is one.

    Raises:
        BundleError: the bundle is incomplete or altered, the disk is full, the state folder cannot be written, or
            another install is running.
    """
    manifest = manifests.read(source)
    bundles = state / "bundles"
    with _told(f"the bundle {source} cannot be installed in {bundles}"):
        return copies.put(source, bundles, manifest)


def stage(state: Path, slot: Path, *, signed: bool, origin: str, transaction: str = "") -> Trial:
    """Have a slot tried beside the active one; where none is active that is whole, it goes on trial at once.

    A candidate that was in shadow makes place for it. A slot that is active already stays as it is.

    Args:
        slot: as `put` gave it.
        signed: a repository that this device trusts vouches for it.
        origin: usb, network or local.

    Raises:
        BundleError: the slot is missing or damaged, or another bundle is on trial.
    """
    with _changing(state, f"{slot.name} cannot be tried") as bundles:
        manifests.read(slot)
        mark, active = links.settle(bundles), links.target(bundles / ACTIVE)
        _note_origin(bundles, slot, Told(signed=signed, origin=origin, at=time.time()))
        if mark is not None and mark.slot == slot.name and (mark.stage == "shadow" or active == slot):
            return mark
        if active == slot:
            return Trial(slot=slot.name, stage="committed", signed=signed, origin=origin)
        _refuse_while_on_trial(bundles, mark)
        whole = links.name_if_whole(active)
        previous = links.target(bundles / PREVIOUS)
        other = links.name_if_whole(previous) if previous != slot else None
        mark = Trial(
            slot=slot.name,
            before=whole or other,
            held=previous.name if whole and previous else None,
            stage="shadow" if whole else "trial",
            signed=signed,
            origin=origin,
            transaction=transaction,
            began=time.time(),
        )
        _mark(bundles, mark)
        copies.remove_old(bundles)
    return mark


def read_trial(state: Path) -> Trial | None:
    """The mark as it stands; reads one small file. `trial_stamp` says cheaper whether it has changed."""
    return trials.read(state / "bundles")


def trial_stamp(state: Path) -> tuple[int, int] | None:
    """Changes with every new mark."""
    return trials.stamp(state / "bundles")


def activate(state: Path, slot: str | None = None) -> Path:
    """Put the candidate in charge, on trial; returns its slot. What was active is the previous one then.

    Reads the whole slot and waits for the disk several times: tens of milliseconds and more.

    Args:
        slot: name of the one that is meant; None: whichever it is. The same in `commit`, `go_back` and `refuse`.

    Raises:
        ReplacedError: another one, or none, is the candidate by now.
        BundleError: there is no candidate, or it is damaged and was refused.
    """
    with _changing(state, "the candidate cannot be put in charge") as bundles:
        mark = links.settle(bundles)
        _require(mark, slot, "shadow", "trial")
        if mark is not None and mark.stage == "shadow":
            previous, active = links.target(bundles / PREVIOUS), links.target(bundles / ACTIVE)
            before = active.name if active else None
            held = previous.name if previous else None
            tried = links.following(mark, "trial", before=before, held=held)
            mark = _mark(bundles, msgspec.structs.replace(tried, starts=0))
        if mark is None or mark.stage != "trial":
            raise BundleError(_no_candidate(bundles, mark))
        return bundles / mark.slot


def commit(state: Path, slot: str | None = None) -> None:
    """What is on trial stays: its version is the least that is accepted from now on, and older slots are removed.

    Raises:
        ReplacedError: another one, or none, is on trial by now.
        BundleError: nothing is on trial.
    """
    with _changing(state, "the bundle on trial cannot be committed") as bundles:
        mark = links.settle(bundles)
        _require(mark, slot, "trial", "committed")
        if mark is not None and mark.stage == "trial":
            mark = _mark(bundles, links.following(mark, "committed"))
            _tell(state, mark)
        if mark is None or mark.stage != "committed":
            raise BundleError(f"no bundle is on trial in {bundles}: there is nothing to commit")
        copies.remove_old(bundles)


def go_back(state: Path, code: str, text: str, slot: str | None = None) -> Path:
    """Return from the bundle on trial to the one before it; returns the slot that is active then.

    Args:
        code, text: why, in one word for machines and in a sentence for people.

    Raises:
        ReplacedError: another one, or none, is on trial by now.
        BundleError: nothing is on trial, or there is no whole slot to go back to.
    """
    with _changing(state, "the bundle on trial cannot be returned") as bundles:
        mark = links.settle(bundles)
        _require(mark, slot, "trial")
        if mark is None or mark.stage != "trial":
            raise BundleError(f"no bundle is on trial in {bundles}: there is nothing to return from")
        if not _can_return(bundles, mark):
            raise BundleError(f"there is no whole bundle before {mark.slot} to go back to: install another one")
        _tell(state, _mark(bundles, links.following(mark, "returned", code=code, text=text)))
        return bundles / str(mark.before)


def refuse(state: Path, code: str, text: str, slot: str | None = None) -> None:
    """Give up the candidate in shadow; the active bundle goes on.

    Raises:
        ReplacedError: another one, or none, is the candidate by now.
        BundleError: there is no candidate.
    """
    with _changing(state, "the candidate cannot be given up") as bundles:
        mark = links.settle(bundles)
        _require(mark, slot, "shadow")
        if mark is None or mark.stage != "shadow":
            raise BundleError(_no_candidate(bundles, mark))
        _tell(state, _mark(bundles, links.following(mark, "refused", code=code, text=text)))


def note_start(state: Path) -> Start:
    """Count a start of the daemon, durably, before anything of the bundle is loaded; says which slot to serve.

    Finishes what was interrupted. Goes back when a bundle on trial was started three times and did not stay, gives up
    one in shadow under which the daemon was started as often, and goes back when the active slot is damaged and the one
    before it is not. What cannot be written does not keep the daemon from
    starting: `problem` tells it.

    Raises:
        BundleError: no bundle is installed.
    """
    returned, refused, problem = False, False, ""
    try:
        with _changing(state, "the start cannot be counted") as bundles:
            mark = links.settle(bundles)
            after = _after_start(bundles, mark)
            returned = after is not None and after.stage == "returned"
            refused = after is not None and after.stage == "refused"
            if after is not None:
                _mark(bundles, after)
            if after is not None and after.stage in trials.GIVEN_UP:
                _tell(state, after)
    except BundleError as error:
        returned, refused, problem = False, False, str(error)
    return Start(active(state), read_trial(state), returned, problem, refused)


def note_stop(state: Path) -> None:
    """Take back the count of this start: the daemon stops in order, which says nothing against the bundle on trial.

    Raises:
        BundleError: it cannot be written.
    """
    with _changing(state, "the stop cannot be noted") as bundles:
        mark = links.settle(bundles)
        if mark is not None and mark.stage in trials.UNDER_WAY and mark.starts > 0:
            _mark(bundles, msgspec.structs.replace(mark, starts=mark.starts - 1))


def rollback(state: Path, text: str = "", transaction: str = "") -> Path:
    """Make the previous slot the active one, by a person's wish; a candidate in shadow is given up with it.

    The slot that was active is the previous one then, unless it was on trial: what never stayed is not gone back to.

    Raises:
        BundleError: there is no other slot to go back to, or it is damaged.
    """
    if not (state / "bundles").is_dir():
        raise BundleError(f"no bundle is installed in {state / 'bundles'}: run `edge bundle install SOURCE`")
    with _changing(state, "the active bundle cannot be rolled back") as bundles:
        mark = links.settle(bundles)
        now, previous = links.target(bundles / ACTIVE), links.target(bundles / PREVIOUS)
        if now is None or previous is None or previous == now:
            raise BundleError(f"there is no previous bundle in {bundles} to roll back to")
        manifests.read(previous)
        tried = mark is not None and mark.stage == "trial"
        who = _told_of(bundles, now)
        left = Trial(
            slot=now.name,
            before=previous.name,
            held=mark.held if tried and mark else now.name,
            stage="rolled_back",
            signed=who.signed,
            origin=who.origin,
            began=time.time(),
            transaction=transaction,
            code="rolled_back",
            text=text or f"{now.name} was rolled back to {previous.name} by hand",
        )
        _tell(state, _mark(bundles, left))
    return previous


def active(state: Path) -> Path:
    """The folder of the active bundle.

    Raises:
        BundleError: none is installed, or the link leads nowhere.
    """
    slot = links.target(state / "bundles" / ACTIVE)
    if slot is None:
        raise BundleError(f"no bundle is installed in {state / 'bundles'}: run `edge bundle install SOURCE`")
    if not (slot / MANIFEST).is_file():
        raise BundleError(f"the active bundle {slot} is missing: run `edge bundle install SOURCE` again")
    return slot


def previous(state: Path) -> Path | None:
    """Where `rollback` would go; None: nowhere."""
    bundles = state / "bundles"
    slot = links.target(bundles / PREVIOUS)
    return slot if slot is not None and slot != links.target(bundles / ACTIVE) and slot.is_dir() else None


def candidate(state: Path) -> Path | None:
    """The slot in shadow; None: there is none."""
    mark = read_trial(state)
    slot = links.target(state / "bundles" / CANDIDATE)
    return slot if slot is not None and mark is not None and (mark.stage, mark.slot) == ("shadow", slot.name) else None


def floor(state: Path, product: str) -> int:
    """The highest version of a product that a repository vouched for and that was committed here; 0: none.

    Raises:
        BundleError: it was kept, and cannot be read.
    """
    return trials.floors(state / "bundles").get(product, 0)


def told(state: Path, slot: Path | None = None) -> Told:
    """Who brought a slot; None: the active one. A slot of which nothing is known came from here, unsigned."""
    bundles = state / "bundles"
    slot = slot or links.target(bundles / ACTIVE)
    return _told_of(bundles, slot) if slot is not None else Told()


# --- marks, and the links that follow them; all under the lock ---


@contextmanager
def _changing(state: Path, what: str) -> Iterator[Path]:
    """The folder of the slots, locked for marks and links."""
    bundles = state / "bundles"
    with _told(f"{what} in {bundles}"):
        if not bundles.is_dir():
            raise BundleError(f"no bundle is installed in {bundles}: run `edge bundle install SOURCE`")
        with trials.lock(bundles):
            yield bundles


def _mark(bundles: Path, mark: Trial) -> Trial:
    """Say durably what is meant to be, then do it. Returns the mark that stands then."""
    trials.write(bundles, trials.TRIAL, mark)
    return links.settle(bundles) or mark


def _after_start(bundles: Path, mark: Trial | None) -> Trial | None:
    """The mark after one start more; None: as it was."""
    slot = links.target(bundles / ACTIVE)
    tried = mark is not None and mark.stage == "trial"
    if slot is not None and (problem := links.problem(slot)):
        return _leave_damaged(bundles, slot, problem, mark if tried else None)
    if mark is None or mark.stage not in trials.UNDER_WAY:
        return None
    starts = mark.starts + 1
    if mark.stage == "shadow" and starts > MOST_STARTS:
        text = f"the service ended {MOST_STARTS} times while {mark.slot} was opened or in shadow"
        return links.following(mark, "refused", code="crashed", text=text)
    if mark.stage == "trial" and starts > MOST_STARTS and _can_return(bundles, mark):
        text = f"{mark.slot} was started {MOST_STARTS} times and did not stay; {mark.before} is in charge again"
        return links.following(mark, "returned", code="crashed", text=text)
    return msgspec.structs.replace(mark, starts=starts)


def _leave_damaged(bundles: Path, slot: Path, problem: str, mark: Trial | None) -> Trial | None:
    """From an active slot that is no longer whole to the one before it; None: there is none."""
    other = bundles / mark.before if mark is not None and mark.before else links.target(bundles / PREVIOUS)
    if other is None or other == slot or not links.whole(other):
        return None
    who, text = _told_of(bundles, slot), f"{other.name} is in charge again instead of {slot.name}: {problem}"
    held = mark.held if mark is not None else None
    return Trial(
        slot=slot.name,
        before=other.name,
        held=held,
        stage="returned",
        signed=who.signed,
        origin=who.origin,
        began=time.time(),
        code="damaged",
        text=text,
    )


def _require(mark: Trial | None, slot: str | None, *stages: str) -> None:
    if slot is not None and (mark is None or mark.slot != slot or mark.stage not in stages):
        now = f"{mark.slot} is {mark.stage.replace('_', ' ')}" if mark is not None else "nothing is under way"
        raise ReplacedError(f"{slot} is not what is wanted any more: {now}")


def _can_return(bundles: Path, mark: Trial) -> bool:
    return mark.before is not None and mark.before != mark.slot and links.whole(bundles / mark.before)


def _refuse_while_on_trial(bundles: Path, mark: Trial | None) -> None:
    """One at a time: a bundle that may have to be returned needs the one before it."""
    if mark is not None and mark.stage == "trial" and _can_return(bundles, mark):
        raise BundleError(
            f"{mark.slot} is on trial: wait until it stays or is returned, or run `edge bundle rollback` first"
        )


def _no_candidate(bundles: Path, mark: Trial | None) -> str:
    why = f"; {mark.text}" if mark is not None and mark.stage == "refused" and mark.text else ""
    return f"there is no candidate in {bundles}{why}: install a bundle first"


def _note_origin(bundles: Path, slot: Path, who: Told) -> None:
    """Note who brought a slot, before anything leads there. Who was vouched for stays so."""
    known = trials.origins(bundles)
    if slot.name not in known or (who.signed and not known[slot.name].signed):
        trials.write(bundles, trials.ORIGINS, known | {slot.name: who})


def _told_of(bundles: Path, slot: Path) -> Told:
    return trials.origins(bundles).get(slot.name, Told())


def _tell(state: Path, mark: Trial) -> None:
    """Leave word of what became of a bundle. The mark counts: word that cannot be left undoes nothing."""
    product, version = trials.version_of(mark.slot)
    said = UpdateOutcome(
        outcome=mark.stage,
        code=mark.code,
        text=mark.text or f"{product} {version} stays",
        source=mark.origin,
        bundle=f"{product} {version}",
        transaction=mark.transaction,
        ts=mark.began,
    )
    with suppress(BundleError):
        outcomes.write(state, said)


# --- slots ---


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn an error of the file system into one sentence with its remedy."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise BundleError(f"{what}: {error.strerror or error}{where}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and install again, the active bundle is unchanged"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "; run it as root or as the daemon's user, on a file system that can be written"
    return ""
