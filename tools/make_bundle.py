"""Put models, recipe, golden samples, passport and model card together in the folder that a device installs.

Product, classes and input come from the dataset. The card is written from run records (see `tools.card`) unless the
bundle has one by hand. The bundle is made beside its place, opened by `edge` itself with every runtime of this machine,
which must give the verdicts of the golden samples, and only then takes the place of the old one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image as Picture

from edge import recipe as recipes
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Golden, Manifest
from edge.predictor import installed_runtimes
from edge.recipe import Recipe
from tools.card import MARK, Facts, write_card
from tools.dataset import Dataset, data_hash, read_dataset
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.golden import EXPECTED, FOLDER, make_golden, read_images
from tools.network import STRIDE
from tools.passport import JSON, MARKDOWN
from tools.records import Record, read_record
from tools.run_record import write_record
from tools.statement import add_arguments, stated

ACCURACY = ("ap33_pooled", "ap33_class_mean", "map50", "map50_95", "f33_best")
RECIPE, CARD, PLOTS = "recipe.toml", "CARD.md", "plots"
OPEN_TIMEOUT_S = 300.0
COLOURS = 64  # of a plot in the bundle: lines and letters need no more, and the file is a third
KEEP = (RECIPE, CARD)  # what a person may have put into the bundle's folder beforehand


@dataclass(frozen=True)
class ModelFile:
    """One model of the bundle, by its name in the bundle and in the folder of models."""

    runtime: str
    arch: str
    precision: str
    needed: bool = True


MODELS = {
    "detector.x86_64.int8.nb": ModelFile("paddlelite", "x86_64", "int8"),
    "detector.x86_64.fp32.nb": ModelFile("paddlelite", "x86_64", "fp32"),
    "detector.armv8.int8.nb": ModelFile("paddlelite", "aarch64", "int8"),
    "detector.armv8.fp32.nb": ModelFile("paddlelite", "aarch64", "fp32", needed=False),
    "detector.onnx": ModelFile("onnxruntime", "any", "fp32"),
}
# Plots that a step leaves beside its record and that show figures only; pictures of the data set stay outside.
STEP_PLOTS: Mapping[str, tuple[str, ...]] = {
    "search": ("search.png",),
    "train": ("train.png",),
    "partial": ("partial.png",),
    "distill": ("distill.png",),
    "prune": ("prune.png",),
    "adversarial": ("adversarial.png",),
    "confidence": ("reliability.png", "thresholds.png"),
    "quantize": ("quantize.png",),
    "passport": ("layers.png", "confidence_differences.png"),
    "evaluate": ("precision_recall.png", "confusion.png"),
    "robustness": ("robustness.png",),
}


def artifact(name: str) -> dict[str, str]:
    """The manifest's entry for one of `MODELS`."""
    model = MODELS[name]
    maker = "paddlelite" if model.runtime == "paddlelite" else "paddle2onnx"
    made_with = f"{maker} {metadata.version(maker)}"
    return {
        "file": name,
        "runtime": model.runtime,
        "arch": model.arch,
        "precision": model.precision,
        "made_with": made_with,
    }


def read_evaluations(items: Sequence[str]) -> dict[str, Record]:
    """Records of `evaluate` by the names given them, as `NAME=RECORD.json`.

    Raises:
        ToolError: not of that form, or not such a record.
    """
    found = {}
    for item in items:
        name, _, path = item.partition("=")
        if not path or not name:
            raise ToolError(f"--evaluation {item}: expected NAME=RECORD.json")
        found[name] = read_record(Path(path))
        if found[name].step != "evaluate":
            raise ToolError(f"--evaluation {item}: is a record of `{found[name].step}`, expected one of `evaluate`")
    return found


def collect_figures(evaluations: Mapping[str, Record], records: Sequence[Record]) -> dict[str, float]:
    """Figures for the manifest by name: accuracy of each evaluation, and the median time of each model.

    Raises:
        ToolError: an evaluation lacks a figure.
    """
    figures: dict[str, float] = {}
    for name, record in evaluations.items():
        lacking = [key for key in ACCURACY if key not in record.results]
        if lacking:
            raise ToolError(f"{record.path}: lacks {', '.join(lacking)}; run `evaluate` again")
        figures.update({f"{name}_{key}": float(record.results[key]) for key in ACCURACY})
    for record in records:
        if record.step == "latency":
            figures.update({f"{Path(model).name}_p50_ms": float(row["p50"]) for model, row in record.results.items()})
    return figures


def find_records(args: argparse.Namespace) -> list[Record]:
    """The given records, and those that lie where their steps leave them: in the dataset, the models, the passport."""
    found = [args.data / "import.json", args.data / "curate.json", args.models / "export.json"]
    found += sorted(args.models.glob("int8-*/quantize.json"))
    found += [args.passport / "passport.record.json"] if args.passport else []
    paths = [*args.records, *(path for path in found if path.is_file())]
    return [read_record(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def read_passport(
    folder: Path | None, data: Dataset, recipe: Recipe, files: Mapping[str, str]
) -> dict[str, Any] | None:
    """The passport, checked to be of these very files and this recipe, and to have been passed.

    Args:
        files: SHA-256 by the name of each model that goes into the bundle.

    Raises:
        ToolError: it cannot be read, failed, or is of other models, classes or thresholds.
    """
    if folder is None:
        return None
    path = folder / JSON
    try:
        passport = dict(json.loads(path.read_text(encoding="utf-8")))
        forms, problems, classes = passport["forms"], passport["problems"], passport["classes"]
        measured = {form["file"]: form["sha256"] for form in forms.values()}
        measured |= {form["stands_for"]: form["stands_for_sha256"] for form in forms.values() if form["stands_for"]}
        judged_by = passport["recipe"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ToolError(f"{path}: cannot be read as a passport: {error!r}; run `passport` again") from error
    if problems:
        raise ToolError(f"{path}: was not passed: {problems[0]}; mend that, or change the limits of `passport`")
    if classes != list(data.classes):
        raise ToolError(f"{path}: is of the classes {', '.join(classes)}, the dataset has {', '.join(data.classes)}")
    if judged_by != recipes.dump(recipe):
        raise ToolError(f"{path}: was made with another recipe than the bundle's; run `passport --recipe` with that")
    for name in measured.keys() & files.keys():
        if measured[name] != files[name]:
            raise ToolError(f"{path}: is of another {name} than the one to be packed; run `passport` again")
    return passport


def settle_golden(staging: Path, args: argparse.Namespace, data: Dataset, recipe: Recipe) -> Golden:
    """The golden samples in the bundle: the passport's, or new ones by the ONNX model where there is no passport.

    Raises:
        ToolError: the passport's samples cannot be used, or were judged by another recipe.
    """
    if args.passport is None:
        with closing(DevicePredictor(staging / "detector.onnx")) as predictor:
            return make_golden(staging, data.classes, data.spec, recipe, predictor, "detector.onnx")
    shutil.copytree(args.passport / FOLDER, staging / FOLDER)
    try:
        golden = msgspec.json.decode((staging / FOLDER / EXPECTED).read_bytes(), type=Golden)
    except (OSError, msgspec.DecodeError) as error:
        path = args.passport / FOLDER / EXPECTED
        raise ToolError(f"{path}: cannot be used: {error}; run `passport` again") from error
    read_images(staging, golden, data.spec)
    return golden


def copy_plots(staging: Path, records: Sequence[Record], evaluations: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Copy the plots of all records, made small; their titles and places in the bundle."""
    shown = [(record.step, record) for record in records if record.step != "evaluate"]
    shown += [(f"evaluate {name}", record) for name, record in evaluations.items()]
    copied: dict[str, str] = {}
    for title, record in shown:
        target = record.settings.get("target")
        title = f"{title} {target}" if target else title
        names = STEP_PLOTS.get(record.step, ())
        if record.step == "latency":
            names = (record.path.with_suffix(".png").name,)
        for name in names:
            source = record.path.with_name(name)
            if source.is_file():
                words = f"{title} {source.stem}"
                file = f"{PLOTS}/{''.join(c if c.isalnum() else '-' for c in words.lower())}.png"
                copied[file] = words.replace("_", " ")
                shrink(source, staging / file)
    return [(title, file) for file, title in copied.items()]


def shrink(source: Path, target: Path) -> None:
    """Copy a plot in few colours.

    Raises:
        ToolError: not an image.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Picture.open(source) as picture:
            picture.convert("RGB").quantize(COLOURS, dither=Picture.Dither.NONE).save(target, optimize=True)
    except OSError as error:
        raise ToolError(f"{source}: cannot be read as an image: {error}; draw it again or delete it") from error


def next_version(out: Path, asked: int | None) -> int:
    """The version of the bundle: as asked, or one more than the bundle it takes the place of."""
    if asked is not None:
        return asked
    return manifests.read_unverified(out).version + 1 if (out / manifests.MANIFEST).is_file() else 1


def refuse_strangers(out: Path) -> None:
    """Whether the place of the bundle may be emptied: it holds a bundle, or nothing but what a bundle begins with.

    Raises:
        ToolError: it holds something else.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ToolError(f"{out}: is not a folder")
    known = set(KEEP)
    if (out / manifests.MANIFEST).is_file():
        known |= {manifests.MANIFEST, *manifests.read_unverified(out).files}
    strangers = [str(p.relative_to(out)) for p in sorted(out.rglob("*")) if p.is_file() and _name(p, out) not in known]
    if strangers:
        raise ToolError(f"{out}: holds {strangers[0]}, which is no part of a bundle: move it, or choose another --out")


@contextmanager
def in_place_of(out: Path) -> Iterator[Path]:
    """A folder beside `out` to put a bundle together in; it takes the place of `out` if all goes well.

    Raises:
        ToolError: `out` holds something else than a bundle.
    """
    refuse_strangers(out)
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def open_as_device(bundle: Path, golden: Golden) -> dict[str, int]:
    """Let `edge replay` judge the golden samples with every runtime of this machine.

    Returns:
        Runtime and the number of samples with the expected verdict, which is all of them.

    Raises:
        ToolError: `edge` refuses the bundle, or a verdict is not the expected one.
    """
    agreed = {}
    for runtime in installed_runtimes():
        lines = replay_as_device(bundle, bundle / FOLDER, runtime)
        found = {line["file"]: line["verdict"] for line in lines}
        for sample in golden.samples:
            given = found.get(Path(sample.file).name)
            if given != sample.verdict:
                raise ToolError(
                    f"{bundle / sample.file}: {runtime} judges it {given}, the reference {sample.verdict}; "
                    "run `passport` with the recipe of the bundle to see what differs"
                )
        agreed[runtime] = len(golden.samples)
    return agreed


def replay_as_device(bundle: Path, images: Path, runtime: str) -> list[dict[str, Any]]:
    """What `edge replay` says of each image with this runtime, as its JSON lines.

    Raises:
        ToolError: `edge` refuses the bundle, or takes too long.
    """
    command = [sys.executable, "-m", "edge", "replay", str(images.resolve()), "--bundle", str(bundle.resolve())]
    command += ["--runtime", runtime, "--jsonl", "-"]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=OPEN_TIMEOUT_S, check=False,
            cwd=Path(__file__).resolve().parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{bundle}: edge with {runtime} took over {OPEN_TIMEOUT_S:.0f} s") from error
    if child.returncode != 0:
        raise ToolError(f"{bundle}: edge with {runtime} refuses it: {child.stderr.strip()[-500:]}")
    return [json.loads(line) for line in child.stdout.splitlines()]


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools make_bundle", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder: product, classes, input, licence")
    p.add_argument("--models", type=Path, required=True, help=f"folder with {', '.join(MODELS)}")
    p.add_argument("--out", type=Path, required=True, help="the bundle; may hold recipe.toml and a CARD.md by hand")
    p.add_argument("--recipe", type=Path, help="from `confidence` (default: the one in --out)")
    p.add_argument("--passport", type=Path, help="folder from `passport` (default: none, and the card says so)")
    p.add_argument("--evaluation", nargs="*", default=[], metavar="NAME=RECORD", help="rows of the card's figures")
    p.add_argument("--records", nargs="*", type=Path, default=[], metavar="RECORD",
                   help="of any other step: train, confidence, robustness, latency, ...")  # fmt: skip
    p.add_argument("--notes", type=Path, help="Markdown to put before the card's limits")
    p.add_argument("--new-card", action="store_true", help="write the card anew, also over one by hand")
    p.add_argument("--before", default=Facts.before, help="model whose time and size are before (%(default)s)")
    p.add_argument("--product", help="default: the dataset's")
    p.add_argument("--version", type=int, help="counts the bundles of the product (default: one more than in --out)")
    add_arguments(p)
    p.add_argument("--created", help="e.g. 2026-01-31T12:00:00Z (default: now)")
    return p


def has_card_by_hand(out: Path) -> bool:
    """Whether the bundle's folder holds a card that this step did not write."""
    path = out / CARD
    return path.is_file() and MARK not in path.read_text(encoding="utf-8")


def check_files(args: argparse.Namespace) -> list[str]:
    """Names of the models to pack.

    Raises:
        ToolError: something needed is missing; names everything that is.
    """
    wanted = [args.models / name for name, model in MODELS.items() if model.needed]
    wanted += [args.recipe or args.out / RECIPE, *([args.notes] if args.notes else [])]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        raise ToolError(f"missing: {', '.join(missing)}; `export`, `quantize` and `confidence` write models and recipe")
    return [name for name in MODELS if (args.models / name).is_file()]


def build(args: argparse.Namespace, staging: Path) -> tuple[Manifest, Golden]:
    """Put the bundle together in `staging`."""
    names, data = check_files(args), read_dataset(args.data)
    evaluations, records = read_evaluations(args.evaluation), find_records(args)
    version = next_version(args.out, args.version)
    for name in names:
        shutil.copyfile(args.models / name, staging / name)
    shutil.copyfile(args.recipe or args.out / RECIPE, staging / RECIPE)
    recipe = recipes.load(staging / RECIPE, data.classes)
    hashes = {name: manifests.sha256_file(staging / name) for name in names}
    passport = read_passport(args.passport, data, recipe, hashes)
    golden = settle_golden(staging, args, data, recipe)
    if passport is not None:
        for name in (JSON, MARKDOWN):
            shutil.copyfile(args.passport / name, staging / name)
    product = args.product or data.product
    artifacts = [artifact(name) for name in names]
    more = stated(args, artifacts, data.licence, records)
    if has_card_by_hand(args.out) and not args.new_card:
        shutil.copyfile(args.out / CARD, staging / CARD)
        copy_plots(staging, records, evaluations)
    else:
        facts = Facts(
            product, version, data, data_hash(data.samples), {name: (staging / name).stat().st_size for name in names},
            golden, records, evaluations, passport, args.before, plots=copy_plots(staging, records, evaluations),
            notes=args.notes.read_text(encoding="utf-8") if args.notes else "", stated=more,
        )  # fmt: skip
        (staging / CARD).write_text(write_card(facts), encoding="utf-8")
    fields = manifests.Fields(
        product=product,
        version=version,
        classes=list(data.classes),
        input={"width": data.spec.width, "height": data.spec.height, "channels": data.spec.channels},
        strides=[STRIDE],
        artifacts=artifacts,
        golden=f"{FOLDER}/{EXPECTED}",
        figures=collect_figures(evaluations, records),
        **more,
    )
    if passport is not None:
        fields["passport"] = JSON
    if args.created:
        fields["created"] = args.created
    return manifests.build(staging, fields), golden


def main(arguments: Sequence[str]) -> None:
    """Run the step: the old bundle stays until the new one has been opened and has passed its golden samples."""
    args = parser().parse_args(arguments)
    with in_place_of(args.out) as staging:
        built, golden = build(args, staging)
        agreed = open_as_device(staging, golden)
    size = sum((args.out / name).stat().st_size for name in built.files)
    results = {"product": built.product, "version": built.version, "digest": manifests.digest(built), "bytes": size}
    write_record(args.models / "make_bundle.json", "make_bundle", vars(args), {**results, "golden": agreed})
    print(f"{args.out}: {built.product} {built.version}, {size:,} bytes, digest {results['digest']}")
    print(f"{len(golden.samples)} golden samples judged as expected by {', '.join(agreed)}")
