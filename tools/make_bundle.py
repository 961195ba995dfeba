"""Put models, recipe, card and manifest together in the folder that a device installs.

The recipe and the card are written by hand and wait in the folder; models are copied in, and figures are taken from
the records of `evaluate` and `latency`, so that no figure is typed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edge.bundle import manifest
from tools.deeppcb import CLASSES
from tools.errors import ToolError
from tools.network import INPUT_CHANNELS, INPUT_SIZE, STRIDE

ACCURACY = ("ap33_pooled", "ap33_class_mean", "map50", "f33_best")

# Name in the bundle: what runs it, where, how precise.
MODELS = {
    "detector.x86_64.int8.nb": ("paddlelite", "x86_64", "int8"),
    "detector.x86_64.fp32.nb": ("paddlelite", "x86_64", "fp32"),
    "detector.armv8.int8.nb": ("paddlelite", "aarch64", "int8"),
    "detector.onnx": ("onnxruntime", "any", "fp32"),
}


def artifact(name: str) -> dict[str, str]:
    """The manifest's entry for one of `MODELS`."""
    runtime, arch, precision = MODELS[name]
    maker = "paddlelite" if runtime == "paddlelite" else "paddle2onnx"
    made_with = f"{maker} {metadata.version(maker)}"
    return {"file": name, "runtime": runtime, "arch": arch, "precision": precision, "made_with": made_with}


def read_results(path: Path) -> dict[str, Any]:
    """The results of a run record.

    Raises:
        ToolError: not a run record.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["results"])
    except (OSError, ValueError, KeyError) as error:
        raise ToolError(f"{path}: cannot be read as a run record: {error!r}") from error


def collect_figures(evaluations: Sequence[str], latency: Path | None) -> dict[str, float]:
    """Figures by name: accuracy of each `NAME=RECORD`, and the median time of each model in a latency record."""
    figures: dict[str, float] = {}
    for item in evaluations:
        name, _, record = item.partition("=")
        if not record:
            raise ToolError(f"--evaluation {item}: expected NAME=RECORD.json")
        results = read_results(Path(record))
        figures.update({f"{name}_{key}": float(results[key]) for key in ACCURACY})
    if latency is not None:
        for model, times in read_results(latency).items():
            figures[f"{Path(model).name}_p50_ms"] = float(times["p50"])
    return figures


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools make_bundle", description=__doc__.splitlines()[0])
    p.add_argument("--models", type=Path, required=True, help=f"folder that holds {', '.join(MODELS)}")
    p.add_argument("--out", type=Path, required=True, help="the bundle; holds recipe.toml and CARD.md already")
    p.add_argument("--product", default="pcb")
    p.add_argument("--version", type=int, default=1, help="counts the bundles of the product (%(default)s)")
    p.add_argument("--evaluation", nargs="*", default=[], metavar="NAME=RECORD", help="records of `evaluate`")
    p.add_argument("--latency", type=Path, help="record of `latency`")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    missing = [str(args.models / name) for name in MODELS if not (args.models / name).is_file()]
    missing += [str(args.out / name) for name in ("recipe.toml", "CARD.md") if not (args.out / name).is_file()]
    if missing:
        raise ToolError(f"missing: {', '.join(missing)}")
    for name in MODELS:
        shutil.copyfile(args.models / name, args.out / name)
    fields = manifest.Fields(
        product=args.product,
        version=args.version,
        classes=list(CLASSES),
        input={"width": INPUT_SIZE, "height": INPUT_SIZE, "channels": INPUT_CHANNELS},
        strides=[STRIDE],
        artifacts=[artifact(name) for name in MODELS],
        figures=collect_figures(args.evaluation, args.latency),
    )
    built = manifest.build(args.out, fields)
    print(f"{args.out}: {built.product} {built.version}, digest {manifest.digest(built)}")
