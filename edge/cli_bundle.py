"""`edge bundle`: which model bundle this device runs, where new ones come from, and whom they are believed.

Exit codes: 0 done or nothing new, 2 refused or failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edge.errors import BundleError, TrustError, UsageError

if TYPE_CHECKING:  # commands import what they need when they run, so that each starts at once
    from edge.config import Config
    from edge.event import UpdateOutcome

OK: Final = 0
REFUSED: Final = 2
STATE: Final = Path("/var/lib/edge")
CONFIG: Final = Path("/etc/edge/edge.toml")

Commands = argparse._SubParsersAction  # argparse names its own type only so


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command to those of `edge`."""
    parser = commands.add_parser("bundle", help="verify, install, update, roll back and inspect model bundles")
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    verify = _command(what, "verify", _verify, "say what would be accepted, and change nothing")
    verify.add_argument("source", metavar="SOURCE", help="a repository (a folder or a URL), or a bundle's folder")
    install = _command(what, "install", _install, "check, prove on this device and install the newest bundle")
    install.add_argument("source", metavar="SOURCE", help="a repository: a folder or a URL")
    install.add_argument("--unsigned", action="store_true",
                         help="SOURCE is a bundle's folder that nobody vouches for; `info` will tell")  # fmt: skip
    install.add_argument("--now", action="store_true", help="without a time in shadow beside the active one")
    install.add_argument("--product", help="instead of update.product, or the active one's")
    status = _command(what, "status", _status, "which bundles are here, how they came, what they do on this device")
    status.add_argument("--json", action="store_true", help="for programs")
    rollback = _command(what, "rollback", _rollback, "go back to the bundle before this one")
    rollback.add_argument("--reason", default="", help="for the record")
    update = _command(what, "update", _update, "look for a newer bundle at update.url, and install it")
    update.add_argument("--product", help="instead of update.product, or the active one's")
    update.add_argument("--transaction", default="", help="of the request that asked for it")
    usb = _command(what, "import", _import, "install from a mounted stick; prints the result that is left on it")
    usb.add_argument("mount", type=Path, metavar="MOUNT", help="where the stick is mounted")
    trust = _command(what, "trust", _trust, "believe the publisher whose root of trust this is")
    trust.add_argument("root", type=Path, metavar="ROOT.json", help="the publisher's root metadata")
    trust.add_argument("--replace", action="store_true", help="instead of another one that is there")


def _command(what: Commands[argparse.ArgumentParser], name: str, run: Any, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = what.add_parser(name, help=help)
    parser.add_argument("--config", type=Path, help=f"the site config (default: {CONFIG}, where there is one)")
    parser.add_argument("--state", type=Path, help=f"the daemon's state folder (default: the config's, or {STATE})")
    parser.set_defaults(command=run)
    return parser


def _config_of(options: argparse.Namespace) -> Config:
    """The site config as given, or the one of this device; its defaults where a state folder is all that is given."""
    import msgspec

    from edge import config

    if options.config is not None:
        found = config.load(options.config)
    elif options.state is None and CONFIG.exists():
        found = config.load(CONFIG)
    else:
        found = config.Config(camera=[config.SimulatedCamera(id="none")])
    if options.state is not None:
        found = msgspec.structs.replace(found, paths=msgspec.structs.replace(found.paths, state=str(options.state)))
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _verify(options: argparse.Namespace) -> int:
    from edge import updating

    updating.verify(_config_of(options), options.source, print)
    return OK


def _install(options: argparse.Namespace) -> int:
    from edge import updating

    config = _config_of(options)
    repository = updating.repository_at(options.source)
    if options.unsigned:
        if repository is not None:
            raise UsageError(f"{options.source} is a repository, which is signed: leave --unsigned out")
        return _install_unsigned(config, Path(options.source), options.now)
    if repository is None:
        raise UsageError(_why_not(options.source))
    outcome = updating.update(config, repository, product=options.product, explicit=True, now=options.now, say=_say)
    return _end(outcome)


def _why_not(source: str) -> str:
    from edge.bundle.manifest import MANIFEST

    if not (Path(source) / MANIFEST).exists():
        text = f"there is no bundle repository at {source}: it has no folder metadata"
        return f"{text}; name a repository's folder or URL"
    return (
        f"{source} is a bundle that nobody vouches for: publish it to a repository (`tools publish`) and install from "
        "there, or install it by hand with --unsigned"
    )


def _install_unsigned(config: Config, folder: Path, now: bool) -> int:
    import time

    from edge import installing
    from edge.bundle import outcome as outcomes
    from edge.event import UpdateOutcome

    site = installing.Site.of(config)
    installed = installing.install(folder, site, origin="local", signed=False, now=now, say=_say)
    text = f"{installed}; nobody vouches for it"
    said = UpdateOutcome(outcome="installed", code="", text=text, source="local", bundle=installed.name, ts=time.time())
    outcomes.write(site.state, said)
    print(text)
    return OK


def _end(outcome: UpdateOutcome) -> int:
    from edge import updating

    if updating.went_well(outcome):
        print(updating.told(outcome))
        return OK
    raise TrustError(outcome.code, updating.told(outcome))


def _update(options: argparse.Namespace) -> int:
    from edge import updating

    config = _config_of(options)
    return _end(updating.update(config, product=options.product, transaction=options.transaction, say=_say))


def _import(options: argparse.Namespace) -> int:
    from edge import updating

    outcome, text = updating.import_stick(_config_of(options), options.mount, say=_say)
    print(text, end="")
    return OK if updating.went_well(outcome) else REFUSED


def _rollback(options: argparse.Namespace) -> int:
    from edge import installing
    from edge.bundle import slots

    state = Path(_config_of(options).paths.state)
    slot = slots.rollback(state, options.reason)
    running = installing.daemon_runs(state)
    how = "the daemon takes it over now" if running else "start the daemon to serve it"
    print(f"active: {slot.name}, in {slot}; {how}")
    return OK


def _trust(options: argparse.Namespace) -> int:
    from edge.bundle import root_file

    config = _config_of(options)
    root, at = root_file.read(options.root), Path(config.update.root)
    fresh = root_file.put(root, at, options.replace)
    print(f"{at}: {root}" if fresh else f"{at}: it is this one already: {root}")
    if root.development and not config.update.development:
        print("it is believed only with update.development = true in the site config")
    return OK


def _status(options: argparse.Namespace) -> int:
    import msgspec

    from edge import loading
    from edge.bundle import overview

    config = _config_of(options)
    found = overview.overview(Path(config.paths.state), loading.here(config.runtime), config.runtime)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    elif found.active is not None:
        print(overview.text(found))
    if found.active is None:
        raise BundleError(found.problem)
    return OK
