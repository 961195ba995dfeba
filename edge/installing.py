"""Install a bundle: whether it is for this device and not older than what was trusted here, a slot, a proof, a trial.

Nothing that serves changes before the bundle has been proved on this very device. What comes then is for
`edge.bundle.slots`: beside a daemon at work it waits in shadow; where none is, the next start tries it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge import __version__, loading, proving, recipes
from edge import recipe as recipe_files
from edge.bundle import choice, slots
from edge.bundle import manifest as manifests
from edge.bundle import passport as passports
from edge.bundle.manifest import Manifest
from edge.bundle.passport import DevicePassport
from edge.config import Config, Runtime
from edge.errors import BundleError, ConfigError, EdgeError

Say = Callable[[str], None]
LOCK: Final = "lock"  # the daemon holds it for as long as it runs


class RefusedError(BundleError):
    """A bundle that is sound and still not to be installed here. `code` says why in one word, for machines."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


@dataclass(frozen=True)
class Site:
    """What an install has to know of the device.

    Attributes:
        state: the daemon's state folder. runtime: which inference runtime is wanted.
        product: that this device inspects; None: any.
        recipe, recipes: those of the site, instead of the bundle's own. cameras: which those may name.
        fixed: a bundle folder that the daemon runs instead of an installed one; None: there is none.
    """

    state: Path
    runtime: Runtime = field(default_factory=Runtime)
    product: str | None = None
    recipe: Path | None = None
    recipes: Path | None = None
    cameras: tuple[str, ...] = ()
    fixed: Path | None = None

    @classmethod
    def of(cls, config: Config) -> Site:
        """As the site config says."""
        paths = config.paths
        return cls(
            state=Path(paths.state),
            runtime=config.runtime,
            product=config.update.product,
            recipe=Path(paths.recipe) if paths.recipe else None,
            recipes=Path(paths.recipes) if paths.recipes else None,
            cameras=tuple(camera.id for camera in config.camera),
            fixed=Path(paths.bundle) if paths.bundle else None,
        )


@dataclass(frozen=True)
class Installed:
    """What `install` has done.

    Attributes:
        stage: active: it was that already. shadow: a daemon takes it beside the active one. trial: it is in charge from
            the next start of the daemon on, or the running one's next pause, and may still be returned.
        running: a daemon was at work.
    """

    slot: Path
    manifest: Manifest
    passport: DevicePassport
    stage: str
    running: bool

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.manifest.product} {self.manifest.version}"

    def __str__(self) -> str:
        if self.stage == "active":
            return f"{self.name} is active already, in {self.slot}"
        if self.stage == "shadow":
            how = "the daemon tries it beside the active one and swaps by itself"
            return f"{self.name} is staged in {self.slot}: {how}"
        when = "the daemon takes it over now" if self.running else "start the daemon to serve it"
        return f"{self.name} is active on trial, in {self.slot}; {when}"


def install(
    source: Path,
    site: Site,
    *,
    origin: str,
    signed: bool,
    transaction: str = "",
    now: bool = False,
    say: Say = lambda _text: None,
) -> Installed:
    """Check a bundle folder, copy it into a slot, prove it on this device, and have it tried.

    Args:
        origin: usb, network or local. signed: a repository that this device trusts vouches for it.
        now: without a time in shadow. say: told how it goes on.

    Raises:
        RefusedError: it is not for this device, or too old.
        BundleError: it is damaged, does not agree here with its reference, or another install or trial is under way.
        ConfigError: the site's recipes do not fit it.
        The active bundle is then the same as before.
    """
    manifest = manifests.read(source)
    check(manifest, site, signed=signed)
    state = site.state
    slot = slots.put(source, state)
    passport = prove(slot, manifest, site, say)
    if _active_slot(state) == slot:
        slots.stage(state, slot, signed=signed, origin=origin, transaction=transaction)  # who vouches for it may be new
        return Installed(slot, manifest, passport, "active", daemon_runs(state))
    mark = slots.stage(state, slot, signed=signed, origin=origin, transaction=transaction)
    running = daemon_runs(state)
    stage = mark.stage
    if stage == "shadow" and (now or not running):
        slots.activate(state, slot.name)
        stage = "trial"
    return Installed(slot, manifest, passport, stage, running)


def prove(slot: Path, manifest: Manifest, site: Site, say: Say) -> DevicePassport:
    """The passport of a slot: the one it has, when that still holds, or a new one that is kept.

    Raises:
        BundleError: it does not agree here with its reference, or the passport cannot be kept.
    """
    known = passports.read(slot)
    holds = known is not None and known.holds(manifests.digest(manifest), loading.here(site.runtime))
    if known and holds and passports.pick(known.proofs, site.runtime.prefer, site.runtime.precision):
        return known
    passport = proving.prove(slot, site.runtime, marks=site.state / "trials", say=say)
    passports.write(slot, passport)
    return passport


def check(manifest: Manifest, site: Site, *, signed: bool) -> None:
    """Whether a bundle may be installed here at all; `edge.bundle.manifest` has looked at its format and its files.

    Raises:
        RefusedError: not; its code says why.
        BundleError: nothing in it runs here.
        ConfigError: the site's recipes do not fit it.
    """
    if site.fixed is not None:
        text = f"this device runs the bundle folder {site.fixed}, so an installed one would never serve"
        raise RefusedError("not_used", f"{text}; take paths.bundle out of the site config first")
    name = f"the bundle {manifest.product} {manifest.version}"
    if site.product is not None and manifest.product != site.product:
        text = f"{name} is for another product than {site.product}, which this device inspects"
        raise RefusedError("wrong_product", f"{text}; take a bundle for that, or set update.product")
    problem = choice.hardware_problem(manifest.hardware, loading.machine(), loading.board())
    if problem is not None:
        raise RefusedError("hardware", f"{name} {problem}; get the one that was made for this device")
    loading.chosen(manifest, site.runtime)
    check_age(manifest.product, manifest.version, manifests.digest(manifest), site.state, signed=signed)
    _check_recipes(manifest, site)


def check_age(product: str, version: int, digest: str, state: Path, *, signed: bool) -> None:
    """Whether a version may follow what was trusted on this device.

    Raises:
        RefusedError: it is older, or pretends to be one that is held.
    """
    floor = slots.floor(state, product)
    if version < floor:
        text = f"{product} {version} is older than {product} {floor}, which was trusted on this device"
        raise RefusedError("older", f"{text}; get a newer one, or go back to a held one with `edge bundle rollback`")
    if not signed:
        return
    for slot in (_active_slot(state), slots.previous(state)):
        held = _manifest_of(slot)
        if slot is None or held is None or not slots.told(state, slot).signed:
            continue
        if (held.product, held.version) == (product, version) and manifests.digest(held) != digest:
            text = f"there are two different bundles that are called {product} {version}, one of them on this device"
            raise RefusedError("two_of_one", f"{text}; its publisher must give the new one a number of its own")


def _check_recipes(manifest: Manifest, site: Site) -> None:
    """What the site judges by must fit the new bundle, or the daemon could not go on with it."""
    if site.recipes is not None:
        recipes.load_set(site.recipes, manifest.classes, site.cameras)
    elif site.recipe is not None:
        recipe_files.load(site.recipe, classes=manifest.classes)


def daemon_runs(state: Path) -> bool:
    """Whether a daemon holds the state folder now.

    Raises:
        BundleError: that cannot be found out.
    """
    try:
        handle = os.open(state / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        text = f"{state / LOCK} cannot be opened: {error.strerror}; run it as root or as the daemon's user"
        raise BundleError(text) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _active_slot(state: Path) -> Path | None:
    try:
        return slots.active(state)
    except BundleError:
        return None


def active_manifest(state: Path) -> Manifest | None:
    """Of the active bundle; None: there is none, or none that can be read."""
    return _manifest_of(_active_slot(state))


def _manifest_of(slot: Path | None) -> Manifest | None:
    try:
        return manifests.read_unverified(slot) if slot is not None else None
    except BundleError:
        return None


def code_of(error: EdgeError) -> str:
    """Why something was refused or failed, in one word for machines."""
    if isinstance(error, ConfigError):
        return "recipe"
    return str(getattr(error, "code", "proof" if isinstance(error, BundleError) else "failed"))


def needs_newer_edge(min_edge: str) -> bool:
    """Whether a bundle wants a release of this package that is newer than this one."""
    wanted, here = (tuple(int(number) for number in version.split(".")) for version in (min_edge, __version__))
    return wanted > here
