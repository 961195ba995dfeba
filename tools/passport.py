"""Prove that all forms of a model agree: same input to the last bit, then layers, boxes, confidences, verdicts, AP.

The reference is the FP32 network; every file of the bundle is measured against it through `edge`'s own preprocess,
decode, suppression and decision, on golden samples (drawn here, see `tools.golden`) and on the validation split. The
armv8 `.nb` cannot run on this machine: Paddle's own simulation of its quantized program stands for it. A difference
over its limit fails the step, by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edge import recipe as recipes
from edge.boxes import Float
from edge.bundle.manifest import Golden
from edge.detect import Detector, Predictor
from edge.preprocess import Image, preprocess
from edge.recipe import Recipe
from edge.records import Detections
from tools.dataset import Dataset, Sample, data_hash, read_dataset, read_image, truth_of
from tools.errors import ToolError
from tools.evaluate import choose_recipe, opened, settings_of, size_of
from tools.export import largest_difference
from tools.golden import make_golden, read_images
from tools.journal import Journal
from tools.layer_errors import LayerError, layer_errors
from tools.metrics import figures
from tools.paddle_model import PROGRAM, WEIGHTS
from tools.parity import (
    Agreement,
    Limits,
    accuracy_drops,
    compare,
    exceeded,
    pack,
    parse_limits,
    score_differences,
    unpack,
)
from tools.passport_report import to_markdown
from tools.plots import figure
from tools.run_record import versions, write_record

JSON, MARKDOWN = "passport.json", "PASSPORT.md"
FORMAT = 1
FP32_FOLDER = "fp32"
LAYER_IMAGES = 4  # of the golden set and of the validation split each


@dataclass(frozen=True)
class Form:
    """One form of the model, below the folder of models.

    Attributes:
        path: a file that the device runs, or a folder with a quantized program that Paddle runs as a simulation.
        stands_for: what a simulation stands for, because this machine cannot run it.
        needed: without it there is no passport.
    """

    name: str
    path: str
    precision: str
    stands_for: str = ""
    needed: bool = True


INT8_X86, SIMULATED_X86 = "INT8 .nb x86", "INT8 x86, simulated"
FORMS = (
    Form("FP32 .nb x86", "detector.x86_64.fp32.nb", "fp32"),
    Form("FP32 ONNX", "detector.onnx", "fp32"),
    Form(INT8_X86, "detector.x86_64.int8.nb", "int8"),
    Form(SIMULATED_X86, "int8-x86", "int8", needed=False),
    Form("INT8 armv8, simulated", "int8-armv8", "int8", stands_for="detector.armv8.int8.nb"),
)


class Witness:
    """A predictor that remembers, as one SHA-256, the bytes of all inputs it was given."""

    def __init__(self, predictor: Predictor):
        self._predictor = predictor
        self._digest = hashlib.sha256()

    def run(self, tensor: Float) -> list[Float]:
        """See `edge.detect.Predictor`; the bytes are taken after the run, as the runtime left them."""
        outputs = self._predictor.run(tensor)
        self._digest.update(f"{tensor.dtype}{tensor.shape}".encode())
        self._digest.update(tensor.tobytes())
        return outputs

    def hexdigest(self) -> str:
        """The SHA-256 so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Look:
    """What one form found: on the golden samples, on the validation split, and which inputs it was given."""

    golden: list[Detections]
    validation: list[Detections]
    input_sha256: str


@dataclass(frozen=True)
class Subject:
    """All that is compared: data, recipe, golden samples, and where the models are."""

    data: Dataset
    samples: list[Sample]
    recipe: Recipe
    golden: list[Image]
    reference: Path
    models: Path
    kept: Journal

    def look(self, name: str, path: Path) -> Look:
        """What a form finds, once."""
        stored = self.kept.once(name, lambda: self._run(name, path))
        golden, validation = ([unpack(found) for found in stored[part]] for part in ("golden", "validation"))
        return Look(golden, validation, stored["input_sha256"])

    def _run(self, name: str, path: Path) -> dict[str, Any]:
        with opened(path, self.data.spec, self.data.classes) as predictor:
            witness = Witness(predictor)
            detector = Detector(witness, self.data.spec, settings_of(self.recipe.detect))
            golden = [pack(detector.detect(image)) for image in self.golden]
            images = (read_image(sample.image, self.data.spec.channels) for sample in self.samples)
            bar = tqdm(images, name, total=len(self.samples), mininterval=5)
            return {
                "golden": golden,
                "validation": [pack(detector.detect(image)) for image in bar],
                "input_sha256": witness.hexdigest(),
            }

    @cached_property
    def sizes(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Width and height of the golden images and of those of the validation split, pixels."""
        images = (read_image(sample.image, self.data.spec.channels) for sample in self.samples)
        return [size_of(image) for image in self.golden], [size_of(image) for image in images]

    def output_difference(self, name: str, path: Path) -> float:
        """The largest difference of a raw output from the reference's, on the golden samples."""

        def work() -> float:
            tensors = [preprocess(image, self.data.spec)[0] for image in self.golden]
            with self._open(self.reference) as first, self._open(path) as second:
                pairs = ((first.run(tensor), second.run(tensor)) for tensor in tensors)
                # The file may give the features too, which the network that was trained keeps to itself.
                return max(largest_difference(want, got[: len(want)]) for want, got in pairs)

        return float(self.kept.once(f"{name}, raw outputs", work))

    @contextmanager
    def _open(self, path: Path) -> Iterator[Predictor]:
        with opened(path, self.data.spec, self.data.classes) as predictor:
            yield predictor

    def layers(self, form: Form) -> list[LayerError]:
        """Errors of a simulated form, layer by layer, on a few golden and validation images."""

        def work() -> list[dict[str, Any]]:
            step = max(1, len(self.samples) // LAYER_IMAGES)
            chosen = self.samples[::step][:LAYER_IMAGES]
            images = [*self.golden[-LAYER_IMAGES:], *(read_image(s.image, self.data.spec.channels) for s in chosen)]
            tensors = [preprocess(image, self.data.spec)[0] for image in tqdm(images, "layers", mininterval=5)]
            return [asdict(e) for e in layer_errors(self.models / FP32_FOLDER, self.models / form.path, tensors)]

        stored = self.kept.once(f"{form.name}, layers", work)
        return [LayerError(**{**entry, "shape": tuple(entry["shape"])}) for entry in stored]


def form_hash(path: Path) -> str:
    """SHA-256 of a model file, or of program and weights of a model's folder, whatever else lies there."""
    digest = hashlib.sha256()
    for file in [path / PROGRAM, path / WEIGHTS] if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def find_forms(models: Path) -> list[Form]:
    """The forms that are there.

    Raises:
        ToolError: a needed one is missing; says which step makes it.
    """
    wanted = [name for form in FORMS if form.needed for name in (form.path, form.stands_for) if name]
    missing = [str(models / name) for name in wanted if not (models / name).exists()]
    if missing:
        raise ToolError(f"missing: {', '.join(missing)}; `export` and `quantize` (for x86 and armv8) write them")
    return [form for form in FORMS if (models / form.path).exists()]


def examine(subject: Subject, forms: Sequence[Form], limits: Mapping[str, Limits]) -> dict[str, Any]:
    """Compare every form with the reference; everything that goes into the passport, with what failed."""
    classes, detect = subject.data.classes, subject.recipe.detect
    known, truth = [sample.known for sample in subject.samples], truth_of(subject.samples)
    reference = subject.look("FP32 reference", subject.reference)
    base = figures(reference.validation, truth, classes, known)
    result: dict[str, Any] = {"reference": {"figures": base, "input_sha256": reference.input_sha256}, "forms": {}}
    problems = []
    for form in forms:
        path = subject.models / form.path
        seen = subject.look(form.name, path)
        measured = figures(seen.validation, truth, classes, known)
        drops, output = accuracy_drops(base, measured), subject.output_difference(form.name, path)
        golden = compare(reference.golden, seen.golden, detect, classes, subject.sizes[0])
        validation = compare(reference.validation, seen.validation, detect, classes, subject.sizes[1])
        if seen.input_sha256 != reference.input_sha256:
            problems.append(f"{form.name}: was given another input than the reference")
        problems += exceeded(form.name, limits[form.precision], golden, validation, drops, output)
        result["forms"][form.name] = {
            "file": form.path,
            "sha256": form_hash(path),
            "stands_for": form.stands_for,
            "stands_for_sha256": form_hash(subject.models / form.stands_for) if form.stands_for else "",
            "precision": form.precision,
            "input_sha256": seen.input_sha256,
            "figures": measured,
            "drops": {name: round(value, 5) for name, value in drops.items()},
            "output_difference": output,
            "golden": golden.as_dict(),
            "validation": validation.as_dict(),
        }
    if SIMULATED_X86 in result["forms"]:
        paths = {form.name: subject.models / form.path for form in forms}
        simulated, device = (subject.look(name, paths[name]).validation for name in (SIMULATED_X86, INT8_X86))
        kernels = compare(simulated, device, detect, classes, subject.sizes[1])
        result["forms"][INT8_X86]["against_simulation"] = kernels.as_dict()
        problems += wrong_kernels(kernels, limits["int8"])
    return {**result, "problems": problems}


def wrong_kernels(kernels: Agreement, limits: Limits) -> list[str]:
    """What to say when the device's own arithmetic differs from the simulation of it."""
    if kernels.score_p95 <= limits.kernels or not kernels.boxes:
        return []
    return [
        f"{INT8_X86}: kernels is {kernels.score_p95:.5g}, the limit is {limits.kernels:.5g}: Paddle Lite computes "
        "other sums than its simulation. Keep the weights in reduced range; keep pointwise layers FP32 whose map has "
        "no multiple of 4 cells, unless their input channels are a multiple of 32"
    ]


def draw(subject: Subject, forms: Sequence[Form], layers: Mapping[str, list[LayerError]], out: Path) -> None:
    """Differences in confidence of each INT8 form, and the errors of its layers, as PNG files in `out`."""
    reference = subject.look("FP32 reference", subject.reference).validation
    with figure(out / "confidence_differences.png", "INT8 against FP32", "difference in confidence", "boxes") as axes:
        for form in (f for f in forms if f.precision == "int8"):
            seen = subject.look(form.name, subject.models / form.path).validation
            axes.hist(score_differences(reference, seen, subject.recipe.detect), 60, histtype="step", label=form.name)
        axes.set_yscale("log")
        axes.legend()
    with figure(out / "layers.png", "Error of each layer's output", "convolution", "RMS error / RMS output") as axes:
        for name, errors in layers.items():
            (line,) = axes.plot([e.relative for e in errors], marker=".", label=name)
            int8 = [(i, e.relative) for i, e in enumerate(errors) if e.int8]
            axes.scatter(*zip(*int8, strict=True), s=18, color=line.get_color()) if int8 else None
        axes.set_ylim(0, None)
        axes.legend(title="large dots are INT8")


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools passport", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--models", type=Path, required=True, help="folder that `export` and `quantize` wrote into")
    p.add_argument("--reference", type=Path, help=f"FP32 checkpoint (default: {FP32_FOLDER}/ in --models)")
    p.add_argument("--recipe", type=Path, help="recipe of the bundle, from `confidence`; default: 0.5, review 0.3")
    p.add_argument("--images", type=int, default=0, help="of the validation split, spread over it; 0: all")
    p.add_argument("--limit", nargs="*", default=[], metavar="PRECISION.NAME=VALUE", help="e.g. int8.ap33_drop=0.004")
    p.add_argument("--out", type=Path, required=True, help=f"folder; gets {JSON}, {MARKDOWN}, golden/ and plots")
    return p


def spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """So many samples, evenly over all; 0: all of them.

    >>> [s for s in spread(["a", "b", "c", "d"], 2)]
    ['a', 'c']
    """
    return list(samples) if not count else [samples[i * len(samples) // count] for i in range(min(count, len(samples)))]


def main(arguments: Sequence[str]) -> None:
    """Run the step.

    Raises:
        ToolError: a form differs from the reference by more than its limits; the passport is written all the same.
    """
    args = parser().parse_args(arguments)
    limits = parse_limits(args.limit)
    data, forms = read_dataset(args.data), find_forms(args.models)
    samples = spread(data.part("validation"), args.images)
    recipe = choose_recipe(args.recipe, None, data.classes)
    reference = args.reference or args.models / FP32_FOLDER
    name = f"{reference.name}, SHA-256 {form_hash(reference)[:16]}"
    with opened(reference, data.spec, data.classes) as predictor:
        golden = make_golden(args.out, data.classes, data.spec, recipe, predictor, name)
    subject = Subject(
        data, samples, recipe, read_images(args.out, golden, data.spec), reference, args.models,
        Journal(args.out / "passport.journal", _depends(args.models, forms, reference, samples, recipe, golden)),
    )  # fmt: skip
    passport = {
        "format": FORMAT,
        "product": data.product,
        "classes": list(data.classes),
        "input": asdict(data.spec),
        "versions": versions(),
        "recipe": recipes.dump(recipe),
        "limits": {precision: asdict(own) for precision, own in limits.items()},
        "sets": {
            "golden": {"images": len(golden.samples)},
            "validation": {"images": len(samples), "sha256": data_hash(samples)},
        },
        **examine(subject, forms, limits),
    }
    passport["reference"]["name"] = name
    passport["passed"] = not passport["problems"]
    layers = {form.name: subject.layers(form) for form in forms if (args.models / form.path).is_dir()}
    passport["layers"] = {which: [e.as_dict() for e in errors] for which, errors in layers.items()}
    finish(without_nan(passport), vars(args), args.out)
    draw(subject, forms, layers, args.out)
    if passport["problems"]:
        listed = "\n".join(f"  - {problem}" for problem in passport["problems"])
        raise ToolError(f"the forms of {args.models} do not agree, see {args.out / MARKDOWN}:\n{listed}")


def _depends(
    models: Path, forms: Sequence[Form], reference: Path, samples: Sequence[Sample], recipe: Recipe, golden: Golden
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "models": {form.path: form_hash(models / form.path) for form in forms},
        "reference": form_hash(reference),
        "fp32": form_hash(models / FP32_FOLDER) if (models / FP32_FOLDER).is_dir() else "",
        "data": data_hash(samples),
        "recipe": recipes.dump(recipe),
        "golden": [sample.tensor_sha256 for sample in golden.samples],
    }


def without_nan(value: Any) -> Any:
    """Plain data for JSON, which has neither NaN nor infinity: they become None.

    >>> without_nan({"ap33": {"open": float("nan"), "short": 0.5}})
    {'ap33': {'open': None, 'short': 0.5}}
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finish(passport: dict[str, Any], settings: dict[str, Any], out: Path) -> None:
    """Write the passport as JSON and Markdown, and the run record."""
    (out / JSON).write_text(json.dumps(passport, indent=1) + "\n", encoding="utf-8")
    text = to_markdown(passport)
    (out / MARKDOWN).write_text(text, encoding="utf-8")
    short = {name: {k: form[k] for k in ("drops", "golden", "validation")} for name, form in passport["forms"].items()}
    results = {"passed": passport["passed"], "problems": passport["problems"], "forms": short}
    write_record(out / "passport.record.json", "passport", settings, results)
    for name, form in passport["forms"].items():
        drop, validation = form["drops"]["ap33_drop"], form["validation"]
        changed = f"{validation['changed']} of {validation['images']} verdicts differ"
        print(f"{name}: AP33 {100 * drop:+.2f} points lost, {changed}")
    print(f"{out / MARKDOWN}: {'passed' if passport['passed'] else 'FAILED'}")
