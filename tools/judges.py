"""Add the judges beside the detector to a bundle: gate classifier, anomaly model, drift autoencoder.

They are trained on their own, often long after the detector, so they join a bundle that stands. An anomaly judge reads
the detector's features: then the detectors come anew too (`export --features`), and must say what the old ones said, to
the last bit, on every golden sample with every model that this machine runs. As with `make_bundle` the new bundle is
opened by `edge` before it takes the old one's place.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge import recipe as recipes
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Manifest
from edge.preprocess import InputSpec, preprocess
from tools.dataset import read_image, sha256_file
from tools.device_runtime import DevicePredictor
from tools.errors import ToolError
from tools.judge_model import FORMS
from tools.make_bundle import CARD, MODELS, RECIPE, artifact, in_place_of, open_as_device, shrink
from tools.passport import JSON, MARKDOWN
from tools.run_record import write_record

JUDGES = ("gate", "anomaly", "drift")
HERE = ".x86_64."  # in the names of the models that this machine runs, beside the ONNX
SECTION = "## Judges"
PICTURES = ("painted", "sheet", "example")  # how the names of pictures of the data set begin: they stay outside
KINDS = {"x86_64.int8.nb": ("paddlelite", "x86_64", "int8"), "armv8.int8.nb": ("paddlelite", "aarch64", "int8")}
ONNX = ("onnxruntime", "any", "fp32")


def judge_entry(name: str, folder: Path) -> dict[str, Any]:
    """The manifest's entry for a judge whose files are in `folder`.

    Raises:
        ToolError: a file is missing; names every one that is.
    """
    files = [form.format(name=name) for form in FORMS]
    missing = [file for file in (*files, f"{name}.json") if not (folder / file).is_file()]
    if missing:
        raise ToolError(f"{folder}: lacks {', '.join(missing)}; `python -m tools {name}` writes them")
    return {
        "artifacts": [artifact_of(file, name) for file in files],
        "shape": list(shape_of(folder / f"{name}.onnx")),
        "settings": f"{name}.json",
    }


def artifact_of(file: str, name: str) -> dict[str, str]:
    """The manifest's entry for one form of the model `name`."""
    runtime, arch, precision = KINDS.get(file.removeprefix(f"{name}."), ONNX)
    maker = "paddlelite" if runtime == "paddlelite" else "paddle2onnx"
    made_with = f"{maker} {metadata.version(maker)}"
    return {"file": file, "runtime": runtime, "arch": arch, "precision": precision, "made_with": made_with}


def shape_of(model: Path) -> tuple[int, int, int]:
    """Channels, height and width of the input of an ONNX model.

    Raises:
        ToolError: it cannot be read, or its input has another form.
    """
    import onnxruntime

    try:
        shape = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_inputs()[0].shape
    except Exception as error:  # onnxruntime's own errors share no base class
        raise ToolError(f"{model}: cannot be read: {error}") from error
    if len(shape) != 4 or shape[0] != 1 or not all(isinstance(side, int) for side in shape):
        raise ToolError(f"{model}: its input is {shape}, expected (1, channels, height, width)")
    return int(shape[1]), int(shape[2]), int(shape[3])


def golden_tensors(bundle: Path, manifest: Manifest) -> list[np.ndarray]:
    """The golden samples as the network takes them; noise where the bundle has none."""
    i = manifest.input
    spec = InputSpec(i.width, i.height, i.channels, i.scale, i.mean)
    if manifest.golden is None:
        noise = np.random.default_rng(0).random((4, 1, i.channels, i.height, i.width))
        return [sample.astype(np.float32) for sample in noise]
    golden = manifests.read_golden(bundle, manifest)
    return [preprocess(read_image(bundle / sample.file, i.channels), spec)[0] for sample in golden.samples]


def check_same(bundle: Path, models: Path, manifest: Manifest) -> dict[str, int]:
    """Whether the new detectors say on the golden samples what the bundle's own say, to the last bit.

    Returns:
        For each model that runs here, on how many samples it was compared.

    Raises:
        ToolError: one says something else.
    """
    compared = {}
    tensors = golden_tensors(bundle, manifest)
    for entry in manifest.artifacts:
        if entry.arch != "any" and HERE not in entry.file:
            continue
        with closing(DevicePredictor(bundle / entry.file)) as old, closing(DevicePredictor(models / entry.file)) as new:
            for number, tensor in enumerate(tensors):
                before, after = old.run(tensor), new.run(tensor)
                outputs = 2 * len(manifest.strides)
                same = all(np.array_equal(a, b) for a, b in zip(before[:outputs], after[:outputs], strict=True))
                if not same:
                    raise ToolError(f"{models / entry.file}: says something else than the bundle's on sample {number}")
        compared[entry.file] = len(tensors)
    return compared


def features_of(models: Path, spec: Any) -> dict[str, int]:
    """Channels and stride of the features that the new detectors give.

    Raises:
        ToolError: they give none.
    """
    with closing(DevicePredictor(models / "detector.onnx")) as predictor:
        outputs = predictor.run(np.full((1, spec.channels, spec.height, spec.width), 0.5, np.float32))
    if len(outputs) not in (1, 3):
        raise ToolError(f"{models / 'detector.onnx'}: gives no features: export it with --features")
    features = outputs[-1]
    return {"channels": features.shape[1], "stride": spec.width // features.shape[3]}


def new_card(text: str, version: int, sizes: Mapping[str, int], said: str) -> str:
    """The card with the new version, sizes and the section of the judges; everything else stays."""
    text = re.sub(r"(?m)^(# Model card: `[^`]+`) \d+$", rf"\1 {version}", text, count=1)
    known = dict(re.findall(r"(?m)^\| `([^`]+)` \| ([\d,]+) \|$", text))
    for name in known:
        if name in sizes:
            text = re.sub(rf"(?m)^\| `{re.escape(name)}` \| [\d,]+ \|$", f"| `{name}` | {sizes[name]:,} |", text)
    added = "".join(f"| `{name}` | {size:,} |\n" for name, size in sizes.items() if name not in known)
    last = f"| `detector.onnx` | {sizes['detector.onnx']:,} |\n" if "detector.onnx" in sizes else ""
    if last in text and added:
        text = text.replace(last, last + added, 1)
    if SECTION in text:
        text = re.sub(rf"(?ms)^{SECTION}\n.*?(?=^## )", "", text)
    return text.replace("## Limits\n", f"{SECTION}\n\n{said.strip()}\n\n## Limits\n", 1)


def section(folders: Mapping[str, Path], staging: Path) -> str:
    """What the card says of the judges: the page that each judge's step left, with its plots."""
    parts = []
    for name, folder in folders.items():
        page = folder / f"{name}.md"
        text = page.read_text(encoding="utf-8").strip() if page.is_file() else "Not described: no page was given."
        for plot in sorted(folder.glob("*.png")):
            if plot.name.startswith(PICTURES):
                continue
            target = f"plots/{name}-{re.sub('[^a-z0-9]+', '-', plot.stem.lower())}.png"
            shrink(plot, staging / target)
            text += f"\n\n![{name} {plot.stem.replace('_', ' ')}]({target})"
        parts.append(f"### {name.capitalize()}\n\n{text}")
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools judges", description=__doc__.splitlines()[0])
    p.add_argument("--bundle", type=Path, required=True, help="the bundle that the judges join")
    for name in JUDGES:
        files = ", ".join(form.format(name=name) for form in FORMS)
        p.add_argument(f"--{name}", type=Path, help=f"folder with {files}, {name}.json, {name}.md, plots")
    p.add_argument("--models", type=Path, help="detectors with features, from `export --features` and `quantize`")
    p.add_argument("--passport", type=Path, help="of the new detectors, from `passport`; wanted with --models")
    p.add_argument("--recipe", type=Path, help="a recipe instead of the bundle's (default: it stays)")
    p.add_argument("--out", type=Path, help="the new bundle (default: in the place of the old one)")
    return p


def folders_of(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of the judges that are given.

    Raises:
        ToolError: none is given, or what is given does not go together.
    """
    found = {name: path for name in JUDGES if (path := getattr(args, name)) is not None}
    if not found:
        raise ToolError("no judge is given: name at least one of --gate, --anomaly and --drift")
    if args.models is not None and args.passport is None:
        raise ToolError("--models needs --passport: the old passport is of the old files")
    return found


def build(args: argparse.Namespace, staging: Path) -> tuple[Manifest, dict[str, int]]:
    """Put the new bundle together in `staging`; returns its manifest and what was compared to the bit."""
    folders, old = folders_of(args), manifests.read(args.bundle)
    fields: dict[str, Any] = {
        key: value
        for key, value in msgspec.to_builtins(old).items()
        if value is not None and key not in ("format", "created", "min_edge", "files")
    }
    for name in old.files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.bundle / name, staging / name)
    compared: dict[str, int] = {}
    if args.models is not None:
        compared = check_same(args.bundle, args.models, old)
        fields["features"] = features_of(args.models, old.input)
        fields["artifacts"] = [artifact(name) for name in MODELS if (args.models / name).is_file()]
        _replace_detectors(args, staging, fields["artifacts"])
    if args.recipe is not None:
        shutil.copyfile(args.recipe, staging / RECIPE)
    recipes.load(staging / RECIPE, old.classes)
    fields["judges"] = {**fields.get("judges", {}), **dict(_judges(folders, staging))}
    fields["version"] = old.version + 1
    sizes = {p.name: p.stat().st_size for p in sorted(staging.iterdir()) if p.suffix in (".nb", ".onnx")}
    card = new_card((staging / CARD).read_text(encoding="utf-8"), fields["version"], sizes, section(folders, staging))
    (staging / CARD).write_text(card, encoding="utf-8")
    return manifests.build(staging, manifests.Fields(**fields)), compared  # type: ignore[typeddict-item]


def _judges(folders: Mapping[str, Path], staging: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, folder in folders.items():
        entry = judge_entry(name, folder)
        for file in (*(a["file"] for a in entry["artifacts"]), entry["settings"]):
            shutil.copyfile(folder / file, staging / file)
        yield name, entry


def _replace_detectors(args: argparse.Namespace, staging: Path, artifacts: Sequence[Mapping[str, str]]) -> None:
    """The new detectors and their passport, which must be of these very files."""
    passport = msgspec.json.decode((args.passport / JSON).read_bytes())
    measured = {form["file"]: form["sha256"] for form in passport["forms"].values()}
    measured |= {f["stands_for"]: f["stands_for_sha256"] for f in passport["forms"].values() if f["stands_for"]}
    for entry in artifacts:
        source = args.models / entry["file"]
        if measured.get(entry["file"], sha256_file(source)) != sha256_file(source):
            raise ToolError(f"{args.passport / JSON}: is of another {entry['file']}; run `passport` again")
        shutil.copyfile(source, staging / entry["file"])
    if passport["problems"]:
        raise ToolError(f"{args.passport / JSON}: was not passed: {passport['problems'][0]}")
    for name in (JSON, MARKDOWN):
        shutil.copyfile(args.passport / name, staging / name)


def main(arguments: Sequence[str]) -> None:
    """Run the step: the old bundle stays until the new one has been opened and has passed its golden samples."""
    args = parser().parse_args(arguments)
    out = args.out or args.bundle
    with in_place_of(out) as staging:
        built, compared = build(args, staging)
        agreed = open_as_device(staging, manifests.read_golden(staging, built)) if built.golden else {}
    results = {"product": built.product, "version": built.version, "digest": manifests.digest(built)}
    record = next(iter(folders_of(args).values())) / "judges.record.json"
    write_record(record, "judges", vars(args), {**results, "identical": compared, "golden": agreed})
    print(f"{out}: {built.product} {built.version}, judges {', '.join(built.judges)}, digest {results['digest']}")
    for name, count in compared.items():
        print(f"{name}: the same to the bit on {count} samples as before")
