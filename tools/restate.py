"""State more of a bundle that stands, in the manifest's newest form: hardware, calibration, terms. No file but the card
changes.

For bundles whose manifest was written before a device asked for these. The new bundle is opened by `edge`, and must
judge its golden samples as before, before it takes the old one's place; its version is one more.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge.bundle import manifest as manifests
from edge.bundle.manifest import Manifest
from tools.errors import ToolError
from tools.make_bundle import in_place_of, open_as_device
from tools.run_record import write_record
from tools.statement import add_arguments, into_card, stated

LEFT_OUT = ("format", "created", "min_edge", "files")  # of the old manifest: written anew
HISTORY = "## Restated"


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools restate", description=__doc__.splitlines()[0])
    p.add_argument("--bundle", type=Path, required=True, help="the bundle, e.g. models/PRODUCT")
    add_arguments(p)
    p.add_argument("--created", help="e.g. 2026-01-31T12:00:00Z (default: now)")
    p.add_argument("--record", type=Path, help="where the run record goes (default: none)")
    return p


def build(args: argparse.Namespace, staging: Path, command: str) -> Manifest:
    """Put the new bundle together in `staging`.

    Raises:
        ToolError: nothing would be stated that is not there already.
    """
    old = manifests.read(args.bundle)
    said: dict[str, Any] = {
        key: value
        for key, value in msgspec.to_builtins(old).items()
        if value is not None and key not in LEFT_OUT and (key != "hardware" or value)
    }
    fresh = stated(args, said["artifacts"], said.get("licences", {}).get("data", ""))
    if old.format == manifests.FORMAT and all(said.get(key) == value for key, value in fresh.items()):
        raise ToolError(f"{args.bundle}: states all of that already")
    for name in old.files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.bundle / name, staging / name)
    fields = {**said, **fresh, "version": old.version + 1}
    if args.created:
        fields["created"] = args.created
    card = into_card((staging / old.card).read_text(encoding="utf-8"), old.version + 1, fields)
    (staging / old.card).write_text(history(card, old, command), encoding="utf-8")
    built = manifests.build(staging, manifests.Fields(**fields))  # type: ignore[typeddict-item]
    changed = [name for name in built.files if built.files[name] != old.files.get(name)]
    if changed != [old.card] or built.files.keys() != old.files.keys():
        raise ToolError(f"{args.bundle}: more than the card would change: {', '.join(changed)}")
    return built


def history(card: str, old: Manifest, command: str) -> str:
    """The card with a section at its end on how this version came from the one before it."""
    entry = (
        f"Version {old.version + 1} has the models of version {old.version}, to the byte; the manifest states more:\n\n"
        f"```\n{command}\n```\n"
    )
    if HISTORY in card:
        return f"{card.rstrip()}\n\n{entry}"
    return f"{card.rstrip()}\n\n{HISTORY}\n\n{entry}"


def main(arguments: Sequence[str]) -> None:
    """Run the step: the old bundle stays until the new one has been opened and has passed its golden samples."""
    args = parser().parse_args(arguments)
    with in_place_of(args.bundle) as staging:
        built = build(args, staging, shlex.join(["python", "-m", "tools", "restate", *arguments]))
        agreed = open_as_device(staging, manifests.read_golden(staging, built)) if built.golden else {}
    results = {"product": built.product, "version": built.version, "digest": manifests.digest(built), "golden": agreed}
    if args.record is not None:
        write_record(args.record, "restate", vars(args), results)
    print(f"{args.bundle}: {built.product} {built.version}, format {built.format}, digest {results['digest']}")
