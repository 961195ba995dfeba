"""How long a drift monitor stays calm, and how soon it speaks: ARL0 and ARL1, by simulation.

    python -m tools arl --out runs/arl
    python -m tools arl --bundle models/pcb --data runs/pcb-data --other runs/ballscrew-data --out runs/pcb-arl

Without a data set, on normal scores: each kind of detector with the limits that `edge.drift.plan` gives it, each stream
with a baseline of its own, so that a baseline's error is in the figures. With one, on the signals of its good frames of
the validation split: monitors are fitted on random halves of them and watch streams drawn from the other halves, calm
at first and then under each condition of `tools.physical`, and at last another product. Frames are measured once and
kept: the same command goes on where it stopped.

    arl.json, arl.md    the run record, and its tables
    arl1.png            delay against the size of a shift, or by condition and level
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge import recipe as recipes
from edge.bundle import manifest as manifests
from edge.bundle.manifest import Artifact, Manifest
from edge.detect import Detector, DetectSettings
from edge.drift import plan
from edge.drift import settings as drift_settings
from edge.drift.baseline import LEAST_FRAMES
from edge.predictor import Predictor, load
from edge.preprocess import InputSpec
from tools import arl_runs as runs
from tools.dataset import Dataset, data_hash, read_dataset
from tools.errors import DataError, ToolError
from tools.journal import Journal
from tools.plots import figure
from tools.run_record import write_record
from tools.stream_table import CLEAN, OTHER_PRODUCT, Meter, Rows, levels, measure, measure_other

CONDITIONS = ("bright", "dark", "defocus", "motion", "occlusion", "noise")
LEVELS = (1, 2, 3, 4)
SHIFTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
BASELINES = (15, 60, 500)
# Signals that a line has even where the gate refuses every frame.
CHEAP = ("brightness", "contrast", "sharpness", "noise", "red", "blue")
KINDS: tuple[plan.Kind, ...] = ("cusum", "page_hinkley", "ewma", "adwin")


def on_normal(frames: int, streams: int, arl0: float, rng: runs.Rng) -> dict[str, Any]:
    """ARL0 and ARL1 of each kind of detector on normal scores, with the limits of a whole monitor of this ARL0."""
    each = arl0 * len(plan.PLANS)
    calm, late = [], []
    for size in BASELINES:
        scores = runs.normal_streams(size, frames, streams, 0.0, rng)
        for kind in KINDS:
            signal = runs.normal_signal(kind, "both", size, each)
            length, alarms = runs.run_length(runs.normal_alarms(signal, scores), frames)
            low, high = runs.poisson_interval(alarms)
            watched = length * max(1, alarms)
            calm.append({"baseline": size, "detector": kind, "wanted": each, "arl0": length, "alarms": alarms,
                         "at_least": watched / high, "at_most": watched / low if low else None})  # fmt: skip
    for shift in SHIFTS:
        scores = runs.normal_streams(BASELINES[-1], 4000, 200, shift, rng)
        for kind in KINDS:
            when = runs.normal_alarms(runs.normal_signal(kind, "both", BASELINES[-1], each), scores)
            late.append({"shift": shift, "detector": kind, **_delay(when)})
    return {"calm": calm, "delays": late}


def _delay(when: runs.Points) -> dict[str, float | None]:
    """Mean, median and 90 % quantile of the delays, of those found; None where that is not known."""
    found = np.isfinite(when)
    ranked = np.sort(when)

    def quantile(share: float) -> float | None:
        value = ranked[min(len(ranked) - 1, int(share * len(ranked)))] if len(ranked) else np.inf
        return float(value) if np.isfinite(value) else None

    mean = float(when[found].mean()) if len(when) and found.all() else None
    return {
        "found": float(found.mean()) if len(when) else 0.0,
        "mean": mean,
        "p50": quantile(0.5),
        "p90": quantile(0.9),
    }


def on_frames(
    tables: Mapping[tuple[str, int], Rows], classes: Sequence[str], options: argparse.Namespace, rng: runs.Rng
) -> dict[str, Any]:
    """ARL0 and ARL1 of whole monitors on streams of measured frames."""
    good = tables[CLEAN, 0]
    halves = runs.halves(good, classes, options.halves, options.ae_every, options.arl0, rng)
    calm = []
    for half in halves:
        seen = runs.calm(half.signals, half.clean, options.frames, options.streams, options.ae_every, rng)
        calm.append({"alarms": seen.alarms, "frames": seen.frames, "arl0": seen.arl0})
    known = runs.fit(good, np.arange(len(good.frame)), classes, options.ae_every, options.arl0)
    points = runs.points_under(good, known)
    exact = runs.calm(known.signals, points, options.frames, options.streams, options.ae_every, rng)
    late = [
        {"condition": name, "level": level, "refused": rows.refused, **_late(halves, rows, name, options, rng)}
        for (name, level), rows in tables.items()
        if name != CLEAN
    ]
    same = {"alarms": exact.alarms, "frames": exact.frames, "arl0": exact.arl0}
    return {"good": len(good.frame), "halves": calm, "same_frames": same, "delays": late}


def _late(
    halves: Sequence[runs.Half], rows: Rows, name: str, options: argparse.Namespace, rng: runs.Rng
) -> dict[str, Any]:
    every, cheap = [], []
    firsts: dict[str, list[float]] = {}
    for half in halves[: options.delay_halves]:
        only = None if name == OTHER_PRODUCT else half.others
        after = runs.points_under(rows, half.settings, only)
        seen = runs.delays(half.signals, half.clean, after, options.horizon, 200, options.ae_every, rng)
        every.append(seen.of(list(half.signals)))
        cheap.append(seen.of(CHEAP))
        for signal, share in seen.first().items():
            firsts.setdefault(signal, []).append(share)
    shares = {signal: float(np.mean(found)) for signal, found in firsts.items()}
    first = sorted(shares, key=lambda signal: -shares[signal])[:2]
    return {"all": _delay(np.concatenate(every)), "image": _delay(np.concatenate(cheap)),
            "first": {signal: shares[signal] for signal in first}}  # fmt: skip


def open_meter(folder: Path) -> tuple[Meter, Manifest]:
    """What measures frames: a bundle's ONNX detector, recipe and, where it has one, autoencoder.

    Raises:
        BundleError: not a bundle. ToolError: it has no ONNX model.
    """
    manifest = manifests.read(folder)
    recipe = recipes.load(folder / manifest.recipe, classes=manifest.classes)
    contract = manifest.input
    spec = InputSpec(contract.width, contract.height, contract.channels, contract.scale, contract.mean)
    how = DetectSettings(tuple(manifest.strides), recipe.detect.review, recipe.detect.nms_iou)
    eye = None
    if (judge := manifest.judges.get("drift")) is not None:
        path = folder / judge.settings
        written = drift_settings.decode(path.read_bytes(), str(path))
        eye = (_open(folder, judge.artifacts), written.autoencoder) if written.autoencoder else None
    meter = Meter(Detector(_open(folder, manifest.artifacts), spec, how), recipe, spec.channels, eye)
    return meter, manifest


def _open(folder: Path, artifacts: Sequence[Artifact]) -> Predictor:
    model = next((a.file for a in artifacts if a.runtime == "onnxruntime"), None)
    if model is None:
        raise ToolError(f"{folder}: has no ONNX model, which any machine can run: build the bundle with one")
    return load("onnxruntime", folder / model, 1)


def good_files(data: Dataset) -> list[Path]:
    """Frames of the validation split that a line would call good: templates, and images that have one or no label.

    A board with a few defects is a good frame here: drift is about the stream, and on a line such boards come too.

    Raises:
        DataError: too few for two baselines.
    """
    chosen = [s for s in data.samples if s.split == "validation"]
    files = [file for s in chosen if s.template is not None for file in (s.image, s.template)]
    files += [s.image for s in chosen if s.template is None and not len(s.xyxy)]
    if len(files) < 2 * LEAST_FRAMES:
        raise DataError(f"{len(files)} good validation frames are too few: two baselines want {2 * LEAST_FRAMES}")
    return files


# --- Tables and pictures ----------------------------------------------------------------------------------------------


def normal_table(found: Mapping[str, Any]) -> str:
    """Markdown of the figures on normal scores."""
    lines = ["| baseline | detector | wanted | ARL0 | alarms |", "|---|---|---|---|---|"]
    for row in found["calm"]:
        most = f"{row['at_most']:,.0f}" if row["at_most"] else "-"
        length = f"{row['arl0']:,.0f} ({row['at_least']:,.0f} to {most})"
        lines.append(f"| {row['baseline']} | {row['detector']} | {row['wanted']:,.0f} | {length} | {row['alarms']} |")
    lines += ["", f"| shift, sigmas | {' | '.join(KINDS)} |", "|---|" + "---|" * len(KINDS)]
    for shift in SHIFTS:
        cells = [next(r for r in found["delays"] if (r["shift"], r["detector"]) == (shift, kind)) for kind in KINDS]
        lines.append(f"| {shift:g} | " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any]) -> str:
    if row["p50"] is None:
        return f"not in time ({row['found']:.0%} found)"
    return f"{row['p50']:.0f}" + (f", mean {row['mean']:.1f}" if row["mean"] else f" ({row['found']:.0%} found)")


def frames_table(found: Mapping[str, Any]) -> str:
    """Markdown of the figures on measured frames."""
    lengths = sorted(half["arl0"] for half in found["halves"])
    alarms = sum(sum(half["alarms"].values()) for half in found["halves"])
    frames = sum(half["frames"] for half in found["halves"])
    same = found["same_frames"]
    lines = [
        f"ARL0 over {len(lengths)} random halves of {found['good']} good frames: {frames / max(1, alarms):,.0f} frames "
        f"({alarms} alarms in {frames:,} frames; worst half {lengths[0]:,.0f}, median "
        f"{lengths[len(lengths) // 2]:,.0f})",
        f"ARL0 where the stream is drawn from the baseline's own frames: {same['arl0']:,.0f} "
        f"({sum(same['alarms'].values())} alarms in {same['frames']:,} frames)",
        "",
        "| condition | level | gate refuses | frames to the alarm | image alone | first to speak |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["delays"]:
        first = ", ".join(f"{name} {share:.0%}" for name, share in row["first"].items() if share)
        head = f"| {row['condition']} | {row['level'] or '-'} | {row['refused']:.0%} "
        lines.append(head + f"| {_cell(row['all'])} | {_cell(row['image'])} | {first} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Median delays: against the shift by detector, and by condition and level."""
    parts = [name for name in ("normal", "frames") if name in found]
    with figure(path, "Frames from a change to the alarm (median)", ncols=len(parts), figsize=(6.5 * len(parts), 4.2),
                squeeze=False) as grid:  # fmt: skip
        for axes, part in zip(grid[0], parts, strict=True):
            key, x = ("detector", "shift") if part == "normal" else ("condition", "level")
            rows = [row | (row["all"] if part == "frames" else {}) for row in found[part]["delays"]]
            for name in dict.fromkeys(row[key] for row in rows):
                line = [(row[x], row["p50"]) for row in rows if row[key] == name and row["p50"] is not None]
                axes.plot(*zip(*line, strict=True), marker="o", label=name) if line else None
            axes.set_yscale("log")
            axes.set_xlabel("shift, sigmas" if part == "normal" else "level (0: another product)")
            axes.set_ylabel("frames")
            axes.legend()


def parser() -> argparse.ArgumentParser:
    """The step's arguments."""
    parse = argparse.ArgumentParser("python -m tools arl", description=__doc__.split("\n")[0])
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--bundle", type=Path, help="measures the frames: its detector, recipe and autoencoder")
    parse.add_argument("--data", type=Path, help="the product's dataset folder")
    parse.add_argument("--other", type=Path, help="dataset folder of another product")
    parse.add_argument("--arl0", type=float, default=plan.ARL0, help="of the whole monitor, in frames")
    parse.add_argument("--frames", type=int, default=10_000, help="of each calm stream")
    parse.add_argument("--streams", type=int, default=1000)
    parse.add_argument("--halves", type=int, default=10, help="random halves for the ARL0")
    parse.add_argument("--delay-halves", type=int, default=4, help="of these for the delays")
    parse.add_argument("--horizon", type=int, default=3000, help="frames that an alarm is waited for")
    parse.add_argument("--changed", type=int, default=40, help="frames measured under each condition")
    parse.add_argument("--ae-every", type=int, default=10)
    parse.add_argument("--seed", type=int, default=0)
    return parse


def main(arguments: list[str]) -> None:
    """Simulate, write tables, picture and record."""
    options = parser().parse_args(arguments)
    if (options.bundle is None) != (options.data is None):
        raise ToolError("--bundle and --data go together: frames are measured by a bundle")
    rng = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data is None:
        found = {"normal": on_normal(options.frames, options.streams, options.arl0, rng)}
        text = normal_table(found["normal"])
    else:
        found = {"frames": _measured(options, rng)}
        text = frames_table(found["frames"])
    (options.out / "arl.md").write_text(text + "\n", encoding="utf-8")
    draw(found, options.out / "arl1.png")
    write_record(options.out / "arl.json", "arl", {k: str(v) for k, v in vars(options).items()}, found)
    print(text)


def _measured(options: argparse.Namespace, rng: runs.Rng) -> dict[str, Any]:
    meter, manifest = open_meter(options.bundle)
    data = read_dataset(options.data)
    depends = {"bundle": manifests.digest(manifest), "data": data_hash(data.samples), "other": str(options.other)}
    journal = Journal(options.out / "frames.journal", depends)
    files = good_files(data)
    tables = measure(meter, files, list(levels(CONDITIONS, LEVELS)), options.changed, journal)
    if options.other is not None:
        others = [s.image for s in read_dataset(options.other).samples]
        chosen = [others[int(k)] for k in np.linspace(0, len(others) - 1, min(options.changed, len(others)))]
        tables[OTHER_PRODUCT, 0] = measure_other(meter, chosen, files[0], journal)
    return on_frames(tables, manifest.classes, options, rng)
