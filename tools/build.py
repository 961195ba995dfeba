"""From a trained checkpoint to a bundle, in one command: every step on the way, with the settings that suit most.

confidence -> export -> calibration -> quantize for x86 and ARM -> evaluate each form -> latency -> passport -> bundle.
Each step runs in a process of its own, because Paddle and Paddle Lite cannot share one, and leaves its own record; the
same command goes on with the step at which it was stopped. Whoever wants other settings runs that step by hand, as it
is printed here, and then this command again: it takes what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.dataset import INDEX, read_dataset, sha256_file
from tools.errors import ToolError
from tools.journal import Journal

STEP_TIMEOUT_S = 2 * 3600.0
# Rows of the card's figures: name, and the form of the model under `models/`.
FORMS = {
    "fp32": "fp32",
    "x86_64_int8_nb": "detector.x86_64.int8.nb",
    "x86_64_fp32_nb": "detector.x86_64.fp32.nb",
    "onnx": "detector.onnx",
    "armv8_int8_simulated": "int8-armv8",
}
TIMED = ("detector.x86_64.int8.nb", "detector.x86_64.fp32.nb", "detector.onnx")


@dataclass(frozen=True)
class Stage:
    """One command of the chain."""

    name: str
    arguments: tuple[str, ...]  # the step and what it is told

    def command(self) -> str:
        """As a person would type it."""
        return shlex.join(["python", "-m", "tools", *self.arguments])


def stages(args: argparse.Namespace, product: str) -> Iterator[Stage]:
    """The commands of the chain, in order."""
    out, data = args.out, ("--data", str(args.data))
    models, confidence = out / "models", out / "confidence"
    checkpoint = confidence / "calibrated.pdckpt" if args.fold else args.checkpoint
    recipe = ("--recipe", str(confidence / "recipe.toml"))
    base = ("--recipe", str(args.recipe)) if args.recipe else ()
    rates = ("--escape", str(args.escape), "--overkill", str(args.overkill))
    rates += ("--apply", "fold" if args.fold else "recipe")
    chosen = ("confidence", *data, "--model", str(args.checkpoint), *base, *rates, "--out", str(confidence))
    yield Stage("confidence", chosen)
    yield Stage("export", ("export", "--checkpoint", str(checkpoint), "--out", str(models)))
    images = args.calibration or Path("calibration_data") / product / "images.json"
    if not images.is_file():
        listed = ("calibration", *data, "--list", str(images), "--out", str(out / "calibration"))
        yield Stage("calibration", listed)
    for target, nb in (("x86", "detector.x86_64.int8.nb"), ("armv8", "detector.armv8.int8.nb")):
        where = ("--model", str(models / "fp32"), "--out", str(models / f"int8-{target}"), "--nb", str(models / nb))
        more: tuple[str, ...] = ("--calibration", str(images), "--checkpoint", str(checkpoint))
        more += ("--limit", str(args.limit))
        if args.algorithm:
            more += ("--algorithm", args.algorithm)
        yield Stage(f"quantize {target}", ("quantize", *data, "--target", target, *where, *more))
    for name, form in FORMS.items():
        measured = ("evaluate", *data, "--model", str(models / form), *recipe, "--out", str(out / "evaluate" / name))
        yield Stage(f"evaluate {name}", measured)
    timed = [str(models / name) for name in TIMED]
    yield Stage("latency", ("latency", *timed, "--out", str(out / "latency.json")))
    passport = ("passport", *data, "--models", str(models), "--reference", str(checkpoint), *recipe)
    passport += ("--limit", *args.passport_limit) if args.passport_limit else ()
    yield Stage("passport", (*passport, "--out", str(out / "passport")))
    yield Stage("make_bundle", tuple(_bundle(args, images, recipe)))


def _bundle(args: argparse.Namespace, images: Path, recipe: Sequence[str]) -> Iterator[str]:
    out = args.out
    yield from ("make_bundle", "--data", str(args.data), "--models", str(out / "models"), *recipe)
    yield from ("--out", str(args.bundle), "--passport", str(out / "passport"), "--new-card")
    yield from ("--calibration", str(images), "--evaluation")
    yield from (f"{name}={out / 'evaluate' / name / 'evaluate.json'}" for name in FORMS)
    yield "--records"
    yield from (str(path) for path in args.records)
    names = ("confidence/confidence.json", "models/export.json", "models/int8-x86/quantize.json")
    yield from (str(out / name) for name in (*names, "models/int8-armv8/quantize.json", "latency.json"))
    if args.notes:
        yield from ("--notes", str(args.notes))


def run(stage: Stage) -> float:
    """Run a stage and wait; what it says goes to the terminal. Returns the seconds it took.

    Raises:
        ToolError: it failed, or took longer than any step should.
    """
    start = time.monotonic()
    command = [sys.executable, "-m", "tools", *stage.arguments]
    try:
        code = subprocess.run(command, check=False, timeout=STEP_TIMEOUT_S).returncode
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{stage.name} took over {STEP_TIMEOUT_S:g} s and was ended: {stage.command()}") from error
    if code != 0:
        raise ToolError(f"{stage.name} failed ({code}); what it said stands above. Run it alone: {stage.command()}")
    return round(time.monotonic() - start, 1)


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools build", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--checkpoint", type=Path, required=True, help="from `train` or what trained on, *.pdckpt")
    p.add_argument("--out", type=Path, required=True, help="folder of models, records and plots on the way")
    p.add_argument("--bundle", type=Path, required=True, help="the bundle, e.g. models/PRODUCT")
    p.add_argument("--records", nargs="*", type=Path, default=[], metavar="RECORD", help="of training, for the card")
    p.add_argument("--recipe", type=Path, help="base recipe: its gate and suppression are kept")
    p.add_argument("--calibration", type=Path, help="list of images (default: calibration_data/PRODUCT/images.json)")
    p.add_argument("--algorithm", help="of quantization's calibration (default: the best of all, by comparison)")
    p.add_argument("--limit", type=float, default=0.2, help="points of AP33 that INT8 may lose before it is trained")
    p.add_argument("--passport-limit", nargs="*", default=[], metavar="LIMIT", help="e.g. int8.ap33_drop=0.004")
    p.add_argument(
        "--fold",
        action="store_true",
        help="temperature into the network, not the thresholds: published "
        "confidences are honest then, and boxes under 0.01 of them are not seen any more",
    )
    p.add_argument("--escape", type=float, default=0.01, help="wanted: bad parts judged OK (%(default)s)")
    p.add_argument("--overkill", type=float, default=0.02, help="wanted: good parts judged NG (%(default)s)")
    p.add_argument("--notes", type=Path, help="Markdown to put before the card's limits")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step; the same command goes on where it was stopped."""
    args = parser().parse_args(arguments)
    if not args.checkpoint.is_file():
        raise ToolError(f"{args.checkpoint}: missing; `python -m tools train` writes it")
    data = read_dataset(args.data)
    depends = {"checkpoint": sha256_file(args.checkpoint), "data": sha256_file(args.data / INDEX)}
    journal = Journal(args.out / "build.journal", depends)
    chain = list(stages(args, data.product))
    before = ""
    for number, stage in enumerate(chain, 1):
        # What is done depends on all that was done before it: another algorithm means another passport.
        known = hashlib.sha256((before + stage.command()).encode()).hexdigest()
        before = before if stage.name == "calibration" else known  # its list, once there, leaves the stage out
        done = known in journal
        print(f"[{number}/{len(chain)}] {'done before: ' if done else ''}{stage.command()}", flush=True)
        if not done:
            journal.once(known, lambda stage=stage: run(stage))  # type: ignore[misc]
    print(f"{args.bundle}: built of {args.checkpoint}")
