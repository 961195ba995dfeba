"""Bring the newest bundle that this device may have from a repository: over the network or from a stick, one way.

    <state>/update/          folder of everything that is on its way; outcome.json says what became of the last attempt
    <state>/update/downloads, unpacked, spool    private copies; an unfinished download goes on next time

Two updates never meet, and whatever an attempt comes to, there is word of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from edge import __version__, installing, loading
from edge.bundle import archive, choice, mirror, slots, stick
from edge.bundle import manifest as manifests
from edge.bundle import outcome as outcomes
from edge.bundle import trial as trials
from edge.bundle.manifest import Manifest
from edge.bundle.trust import Offer, Trust
from edge.config import Config
from edge.errors import BundleError, EdgeError, TrustError
from edge.event import UpdateOutcome
from edge.installing import Installed, RefusedError, Say, Site

BUSY: Final = ".busy"
BUSY_WAIT_S: Final = 5.0
DOWNLOADS: Final = "downloads"
UNPACKED: Final = "unpacked"
SPOOL: Final = "spool"
# Codes of what is no fault of a bundle: the same attempt may go well later.
PASSING: Final = ("unreachable", "too_slow", "unreadable", "storage", "no_space", "busy", "failed", "no_root")
LASTING: Final = ("installed", "committed", "returned", "rolled_back")  # no "nothing new" of a timer hides these


@dataclass(frozen=True)
class Attempt:
    """One try to bring a bundle.

    Attributes:
        address: of the repository, as the client reads it. shown: as people know it.
        origin: usb, network or local.
        product: that is looked for; None: as the config says, or the active one's.
        explicit: a person asked for this very thing: what was given up before is tried again.
        now: without a time in shadow.
        bring: called with the product before an archive is read.
    """

    config: Config
    address: str
    shown: str
    origin: str
    product: str | None = None
    transaction: str = ""
    explicit: bool = False
    now: bool = False
    say: Say = lambda _text: None
    bring: Callable[[str], None] = lambda _product: None

    @property
    def site(self) -> Site:
        """The device."""
        return Site.of(self.config)

    @property
    def folder(self) -> Path:
        """Where things on their way are."""
        return self.site.state / outcomes.FOLDER


@dataclass(frozen=True)
class Chosen:
    """Which of the offers is to be had; without one, why not."""

    offer: Offer | None
    code: str = ""
    text: str = ""


def update(
    config: Config,
    address: str | None = None,
    *,
    product: str | None = None,
    transaction: str = "",
    explicit: bool = False,
    now: bool = False,
    say: Say = lambda _text: None,
) -> UpdateOutcome:
    """Look for a newer bundle, and install it.

    Args:
        address: of a repository, a folder or a URL; None: `update.url`.
        product, transaction, explicit, now: see `Attempt`. say: told how it goes on.

    Raises:
        BundleError: the outcome cannot be kept in the state folder.
    """
    address = address or config.update.url
    if address is None:
        text = "no repository is named: set update.url, or bring bundles on a stick"
        return _finish(config, _outcome("nothing_new", "no_url", text, "network", transaction))
    origin = "network" if "://" in address and not address.startswith("file:") else "local"
    attempt = Attempt(config, address, address, origin, product, transaction, explicit, now, say)
    return _finish(config, _guarded(attempt, lambda: _look(attempt)))


def import_stick(config: Config, mount: Path, *, say: Say = lambda _text: None) -> tuple[UpdateOutcome, str]:
    """Bring a bundle from a stick that somebody has mounted; also the text of the result that is left on it.

    Raises:
        BundleError: the outcome cannot be kept in the state folder.
    """
    spool = Path(config.paths.state) / outcomes.FOLDER / SPOOL
    attempt = Attempt(config, str(spool), str(mount), "usb", say=say)

    def look() -> UpdateOutcome:
        if not config.update.usb:
            raise RefusedError("usb_off", "bundles are not taken from sticks here: update.usb is false")
        copy = stick.Spool(stick.find(mount), spool)
        say(f"copying {mount}")
        copy.copy_metadata()
        try:
            return _look(replace(attempt, bring=copy.copy_bundles))
        finally:
            shutil.rmtree(spool, ignore_errors=True)

    outcome = _finish(config, _guarded(attempt, look))
    return outcome, result_text(config, outcome)


def _guarded(attempt: Attempt, look: Callable[[], UpdateOutcome]) -> UpdateOutcome:
    """The outcome, whatever happens."""
    try:
        with _alone(attempt):
            return look()
    except EdgeError as error:
        code, text = installing.code_of(error), str(error).replace(attempt.address, attempt.shown)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        code, text = "failed", f"the update stopped: {error.strerror or error}{where}; try again"
    except Exception as error:  # a fault of ours, told elsewhere; here it must not look as if it went on for ever
        text = f"a fault of the program stopped the update: {type(error).__name__}"
        outcomes.write(attempt.site.state, _outcome("failed", "internal", text, attempt.origin, attempt.transaction))
        raise
    kind = "failed" if code in PASSING else "refused"
    return _outcome(kind, code, text, attempt.origin, attempt.transaction)


@contextmanager
def _alone(attempt: Attempt) -> Iterator[None]:
    """One update at a time; a process that dies gives way to the next. What root has written is the daemon's to use.

    Raises:
        RefusedError: another one is at work.
    """
    folder, state = attempt.folder, attempt.site.state
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    trials.adopt(folder, state)
    handle = os.open(folder / BUSY, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        trials.adopt(folder / BUSY, state)
        try:
            trials.take(handle, BUSY_WAIT_S, f"another update is at work in {folder}; wait until it is done")
        except BundleError as error:
            raise RefusedError("busy", str(error)) from error
        try:
            yield
        finally:
            with suppress(OSError):
                for path in folder.rglob("*"):
                    trials.adopt(path, state)
    finally:
        os.close(handle)


def _look(attempt: Attempt) -> UpdateOutcome:
    """The whole way, from the repository's metadata to a bundle that is tried.

    Raises:
        EdgeError: it is refused or fails; what serves is as before.
    """
    config, site = attempt.config, attempt.site
    trust = _trust_of(config, site.state, attempt.address)
    attempt.say(f"looking at {attempt.shown}")
    trust.refresh()
    product = product_of(trust, site, attempt.product)
    chosen = choose(trust.offers(product), product, attempt)
    if (offer := chosen.offer) is None:
        if chosen.code == "active":
            _vouch(site.state, attempt)
        return _outcome("nothing_new", chosen.code, chosen.text, attempt.origin, attempt.transaction)
    name = f"{offer.product} {offer.version}"
    attempt.say(f"{name}, {offer.length / 1e6:.1f} MB")
    running = _outcome("running", "", f"{name} is fetched and proved", attempt.origin, attempt.transaction, name)
    outcomes.write(site.state, running)
    attempt.bring(product)
    installed = _bring(trust, offer, attempt)
    return _outcome("installed", "", str(installed), attempt.origin, attempt.transaction, name)


def _trust_of(config: Config, state: Path, address: str) -> Trust:
    settings = config.update
    source = mirror.mirror(address, kb_s=settings.kb_s, ca_file=settings.ca_file)
    return Trust(Path(settings.root), state, source, development=settings.development)


def product_of(trust: Trust, site: Site, wanted: str | None) -> str:
    """The product whose bundles are looked for: as asked, as configured, the active one's, or the only one there is.

    Raises:
        RefusedError: it cannot be told.
    """
    if (product := wanted or site.product) is not None:
        return product
    active = installing.active_manifest(site.state)
    if active is not None:
        return active.product
    products = trust.products()
    if len(products) == 1:
        return products[0]
    has = f"has bundles for {', '.join(products)}" if products else "has no product"
    text = f"this device has no bundle yet, and the repository {has}; set update.product"
    raise RefusedError("no_product", text)


def choose(offers: Sequence[Offer], product: str, attempt: Attempt) -> Chosen:
    """The newest of the offers that is for this device, if it should be had now.

    Raises:
        RefusedError: none is for this device, or the newest is older than what was trusted here.
    """
    site = attempt.site
    if not offers:
        return Chosen(None, "none", f"the repository has no bundle of {product}")
    passed_over: list[str] = []
    fitting, problem = None, None
    for offer in offers:
        if (problem := misfit(offer)) is None:
            fitting = offer
            break
        passed_over.append(f"{offer.product} {offer.version} {problem[1]}")
    if fitting is None:
        code = problem[0] if problem else ""
        raise RefusedError(code, f"{', '.join(passed_over[:3])}; nothing there is for this device")
    chosen = _timely(fitting, attempt)
    if chosen.offer is None:
        return replace(chosen, text="; ".join([chosen.text, *passed_over]))
    installing.check_age(fitting.product, fitting.version, fitting.digest, site.state, signed=True)
    return chosen


def misfit(offer: Offer) -> tuple[str, str] | None:
    """Why a bundle is not for this device, as a code and in words; None when it is."""
    if (problem := choice.hardware_problem(offer.hardware, loading.machine(), loading.board())) is not None:
        return "hardware", problem
    if installing.needs_newer_edge(offer.min_edge):
        return "needs_edge", f"needs edge {offer.min_edge} or newer, this is {__version__}: update edge"
    return None


def _timely(offer: Offer, attempt: Attempt) -> Chosen:
    """Whether an offer that fits should be had now."""
    state, name = attempt.site.state, f"{offer.product} {offer.version}"
    active, mark = installing.active_manifest(state), slots.read_trial(state)
    mine = mark is not None and _is_slot_of(mark.slot, offer)
    if mark is not None and mark.stage in trials.UNDER_WAY and mine:
        return Chosen(None, "under_way", f"{name} is being tried already")
    if mark is not None and mark.stage == "trial" and not attempt.explicit:
        return Chosen(None, "on_trial", f"{mark.slot} is on trial; {name} is taken when that is over")
    if active is not None and manifests.digest(active) == offer.digest:
        return Chosen(None, "active", f"{name} is active already")
    if mark is not None and mark.stage in trials.GIVEN_UP and mine and not attempt.explicit:
        text = f"{name} did not stay on this device ({mark.text or mark.code}) and is not tried again by itself"
        return Chosen(None, "given_up", f"{text}; `edge bundle install` tries it again")
    older = active is not None and active.product == offer.product and offer.version < active.version
    if active is not None and older and (not attempt.explicit or slots.told(state).signed):
        return Chosen(None, "older", f"the newest there is {name}, and {active.product} {active.version} is active")
    return Chosen(offer)


def _is_slot_of(slot: str, offer: Offer) -> bool:
    return slot.partition(".")[0] == f"{offer.product}-{offer.version}-{offer.digest[:8]}"


def _vouch(state: Path, attempt: Attempt) -> None:
    """The active bundle was installed by hand, and a repository turns out to vouch for this very one."""
    if not slots.told(state).signed:
        slots.stage(state, slots.active(state), signed=True, origin=attempt.origin, transaction=attempt.transaction)


def _bring(trust: Trust, offer: Offer, attempt: Attempt) -> Installed:
    """Fetch, unpack and install; the copies on the way are removed, but for an unfinished download."""
    downloads, unpacked = attempt.folder / DOWNLOADS, attempt.folder / UNPACKED
    downloads.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(unpacked, ignore_errors=True)
    file = trust.fetch(offer, downloads, attempt.say)
    try:
        folder = archive.unpack(file, unpacked)
        check_offer(manifests.read(folder), offer)
        return installing.install(
            folder, attempt.site, origin=attempt.origin, signed=True, transaction=attempt.transaction,
            now=attempt.now, say=attempt.say,
        )  # fmt: skip
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        file.unlink(missing_ok=True)


def check_offer(manifest: Manifest, offer: Offer) -> None:
    """Whether an archive holds the bundle that was signed for.

    Raises:
        TrustError: it holds another one.
    """
    found = (manifest.product, manifest.version, manifests.digest(manifest))
    if found != (offer.product, offer.version, offer.digest):
        text = f"{offer.path} holds {found[0]} {found[1]}, {found[2][:12]}"
        signed = f"signed for is {offer.product} {offer.version}, {offer.digest[:12]}"
        raise TrustError("mixed", f"{text}, and {signed}; its publisher must add it again")


def _outcome(outcome: str, code: str, text: str, origin: str, transaction: str = "", bundle: str = "") -> UpdateOutcome:
    text, _, advice = text.partition("; ") if "\n" not in text else (text, "", "")
    return UpdateOutcome(
        outcome=outcome, code=code, text=text, advice=advice, source=origin, bundle=bundle, transaction=transaction,
        ts=time.time(),
    )  # fmt: skip


def _finish(config: Config, outcome: UpdateOutcome) -> UpdateOutcome:
    """Leave word of it. A timer that finds nothing new does not hide what became of the last bundle."""
    state = Path(config.paths.state)
    last = outcomes.read(state)
    quiet = outcome.outcome == "nothing_new" and not outcome.transaction
    if not (quiet and last is not None and last.outcome in LASTING):
        outcomes.write(state, outcome)
    return outcome


def went_well(outcome: UpdateOutcome) -> bool:
    """Whether an attempt came to a good end."""
    return outcome.outcome in ("installed", "nothing_new")


def told(outcome: UpdateOutcome, loud: bool = False) -> str:
    """An outcome in one sentence, or in several lines where it names several problems."""
    kind = outcome.outcome.replace("_", " ")
    said = outcome.text + (f"; {outcome.advice}" if outcome.advice else "")
    return f"{kind.upper() if loud else kind}: {said}"


def result_text(config: Config, outcome: UpdateOutcome) -> str:
    """What is left on the stick for the person who brought it."""
    when = datetime.fromtimestamp(outcome.ts, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    station = config.station
    active = installing.active_manifest(Path(config.paths.state))
    lines = [
        f"{station.site} / {station.line} / {station.node}, {when}",
        "",
        told(outcome, loud=True),
        "",
        f"active bundle: {f'{active.product} {active.version}' if active else 'none'}",
    ]
    if outcome.code:
        lines.append(f"code: {outcome.code}")
    return "\n".join(lines) + "\n"


def repository_at(source: str) -> str | None:
    """The address of the repository that this names, a stick's too; None: it names none."""
    if "://" in source or source.startswith("file:"):
        return source
    if (Path(source) / manifests.MANIFEST).exists():
        return None
    try:
        return str(stick.find(Path(source)))
    except TrustError:
        return None


def verify(config: Config, source: str, say: Say) -> None:
    """Say what of a repository, or of a bundle's folder, would be accepted now; nothing on this device is changed.

    Raises:
        EdgeError: nothing would be; says why.
    """
    site = Site.of(config)
    if (address := repository_at(source)) is None:
        manifest = manifests.read(Path(source))
        installing.check(manifest, site, signed=False)
        say(f"{manifest.product} {manifest.version} is whole and for this device, digest {manifests.digest(manifest)}")
        say("nobody vouches for it: it is installed with --unsigned only")
        return
    with tempfile.TemporaryDirectory(prefix="edge-verify-") as folder:
        scratch = Path(folder)
        with suppress(FileNotFoundError):
            shutil.copytree(site.state / "trust", scratch / "trust", symlinks=True)
        trust = _trust_of(config, scratch, address)
        trust.refresh()
        product = product_of(trust, site, None)
        _verify_offers(trust, product, Attempt(config, address, source, "local", explicit=True), scratch, say)


def _verify_offers(trust: Trust, product: str, attempt: Attempt, scratch: Path, say: Say) -> None:
    offers = trust.offers(product)
    for offer in offers:
        problem = misfit(offer)
        fits = problem[1] if problem else "is for this device"
        say(f"{offer.product} {offer.version}, {offer.length / 1e6:.1f} MB: {fits}")
    chosen = choose(offers, product, attempt)
    if chosen.offer is None:
        say(f"nothing new: {chosen.text}")
        return
    file = trust.fetch(chosen.offer, scratch, say)
    manifest = manifests.read(archive.unpack(file, scratch / UNPACKED))
    check_offer(manifest, chosen.offer)
    installing.check(manifest, attempt.site, signed=True)
    say(f"{manifest.product} {manifest.version} would be accepted, digest {chosen.offer.digest}")
