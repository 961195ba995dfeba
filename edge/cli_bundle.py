"""`edge bundle`: install and inspect model bundles."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

OK: Final = 0
STATE: Final = Path("/var/lib/edge")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `edge`."""
    parser = commands.add_parser("bundle", help="install and inspect model bundles")
    what = parser.add_subparsers(title="what", required=True, metavar="WHAT")
    install = what.add_parser("install", help="check a bundle, copy it to this box and make it the active one")
    install.add_argument("folder", type=Path, metavar="DIR")
    install.add_argument("--state", type=Path, default=STATE, help="the daemon's state folder")
    install.set_defaults(command=_bundle_install)
    status = what.add_parser("status", help="which bundle is active")
    status.add_argument("--state", type=Path, default=STATE, help="the daemon's state folder")
    status.set_defaults(command=_bundle_status)


def _bundle_install(options: argparse.Namespace) -> int:
    from edge import config, serving
    from edge.bundle import slots

    # Loaded from where it lies before anything is copied: what does not run here is not installed.
    serving.open_product(options.folder, config.Runtime())
    installed = slots.install(options.folder, options.state)
    print(f"active: {installed}; restart the daemon to serve it")
    return OK


def _bundle_status(options: argparse.Namespace) -> int:
    from edge.bundle import manifest, slots

    folder = slots.active(options.state)
    read = manifest.read(folder)
    print(f"active: {read.product} {read.version}, digest {manifest.digest(read)}, in {folder.resolve()}")
    return OK
