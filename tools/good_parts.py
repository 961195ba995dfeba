"""Pack a bundle for a product of which only good parts are known: a trunk that gives features, and an anomaly judge.

There are no classes and no boxes: whatever is unlike the good parts sends the part to a person. Trunk and judge come
from `normal_parts`; gate classifier and drift autoencoder can join here or later (`judges`).
"""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge import recipe as recipes
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Manifest
from edge.predictor import installed_runtimes
from tools.errors import ToolError
from tools.judge_model import FORMS
from tools.judges import JUDGES, artifact_of, features_of, judge_entry, section
from tools.make_bundle import CARD, RECIPE, in_place_of, next_version, replay_as_device
from tools.markdown import table
from tools.run_record import write_record
from tools.statement import add_arguments, stated


def trunk_files(models: Path) -> list[str]:
    """Names of the trunk's forms.

    Raises:
        ToolError: one is missing; names every one that is.
    """
    names = [form.format(name="detector") for form in FORMS]
    missing = [name for name in names if not (models / name).is_file()]
    if missing:
        raise ToolError(f"{models}: lacks {', '.join(missing)}; `python -m tools normal_parts` writes them")
    return names


def write_card(args: argparse.Namespace, version: int, staging: Path, judges: str) -> str:
    """The card as Markdown: what it is, its files, the page of each judge, and the notes by hand."""
    width, height = args.size
    colour = "grey" if args.channels == 1 else "colour (BGR)"
    models = sorted(p for p in staging.iterdir() if p.suffix in (".nb", ".onnx"))
    sizes = table([["file", "bytes"], *([f"`{p.name}`", f"{p.stat().st_size:,}"] for p in models)])
    head = (
        f"Sends parts to a person that are unlike the good ones it was fitted to, on {colour} images; input "
        f"{width}x{height}. It knows no class of defect and never says NG."
    )
    notes = args.notes.read_text(encoding="utf-8").strip()
    lines = [f"# Model card: `{args.product}` {version}", "", head, "", *sizes, "", "## Judges", "", judges, ""]
    return "\n".join([*lines, "## Limits", "", notes, ""])


def build(args: argparse.Namespace, staging: Path) -> Manifest:
    """Put the bundle together in `staging`."""
    folders = {name: path for name in JUDGES if (path := getattr(args, name)) is not None}
    names, version = trunk_files(args.models), next_version(args.out, args.version)
    for name in names:
        shutil.copyfile(args.models / name, staging / name)
    shutil.copyfile(args.recipe, staging / RECIPE)
    recipes.load(staging / RECIPE, [])
    entries: dict[str, Any] = {}
    for name, folder in folders.items():
        entries[name] = judge_entry(name, folder)
        for file in (*(a["file"] for a in entries[name]["artifacts"]), entries[name]["settings"]):
            shutil.copyfile(folder / file, staging / file)
    width, height = args.size
    shape = {"width": width, "height": height, "channels": args.channels}
    (staging / CARD).write_text(write_card(args, version, staging, section(folders, staging)), encoding="utf-8")
    artifacts = [artifact_of(name, "detector") for name in names]
    fields: dict[str, Any] = {
        "product": args.product,
        "version": version,
        "classes": [],
        "input": shape,
        "strides": [],
        "features": features_of(args.models, manifests.Input(**shape)),
        "judges": entries,
        "artifacts": artifacts,
        **stated(args, artifacts),
    }
    return manifests.build(staging, manifests.Fields(**fields))  # type: ignore[typeddict-item]


def count(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many images got which verdict.

    >>> count([{"verdict": "OK"}, {"verdict": "REVIEW"}, {"verdict": "OK"}])
    {'OK': 2, 'REVIEW': 1}
    """
    return dict(Counter(str(line["verdict"]) for line in lines))


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools good_parts", description=__doc__.splitlines()[0])
    p.add_argument("--product", required=True, help="its name")
    p.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), required=True, help="of the input")
    p.add_argument("--channels", type=int, choices=(1, 3), required=True)
    p.add_argument("--models", type=Path, required=True, help="folder of the trunk, from `normal_parts`")
    p.add_argument("--anomaly", type=Path, required=True, help="folder of the judge, from `normal_parts`")
    p.add_argument("--gate", type=Path, help="folder from `gate`")
    p.add_argument("--drift", type=Path, help="folder from `drift`")
    p.add_argument("--recipe", type=Path, required=True, help="the product's recipe")
    p.add_argument("--try-on", type=Path, required=True, help="folder of images that every runtime must judge")
    p.add_argument("--notes", type=Path, required=True, help="Markdown: data, licence, limits")
    add_arguments(p)
    p.add_argument("--version", type=int, help="counts the bundles of the product (default: one more than in --out)")
    p.add_argument("--out", type=Path, required=True, help="the bundle, e.g. models/PRODUCT")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step: the old bundle stays until `edge` has opened the new one with every runtime of this machine."""
    args = parser().parse_args(arguments)
    with in_place_of(args.out) as staging:
        built = build(args, staging)
        runtimes = installed_runtimes()
        verdicts = {runtime: count(replay_as_device(staging, args.try_on, runtime)) for runtime in runtimes}
    digest = manifests.digest(built)
    results = {"version": built.version, "digest": digest, "verdicts": verdicts}
    write_record(args.models / "good_parts.json", "good_parts", vars(args), results)
    print(f"{args.out}: {built.product} {built.version}, judges {', '.join(built.judges)}, digest {digest}")
