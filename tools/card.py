"""The model card, written from run records so that no figure is typed; what has no record is called not measured."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle.manifest import Golden
from tools.dataset import Dataset
from tools.markdown import table
from tools.network import STRIDE
from tools.records import Record, command_of, shorten, shorten_text
from tools.statement import paragraph

MARK = "<!-- Written by `python -m tools make_bundle` from run records; a card without this line is left as it is. -->"
NOT_MEASURED = "Not measured: no record was given."
TRAINING = ("train", "partial", "distill", "prune", "adversarial")  # the steps that make weights
ROLES = ("before", "after")
FIELD = ("clean", "field stress")  # conditions of `robustness`
MOST_GROUPS = 12  # groups are listed by name up to so many
WIDTH = 118


@dataclass(frozen=True)
class Facts:
    """Everything a card is written from.

    Attributes:
        files: name and size in bytes of every model. evaluations: records of `evaluate` by the name of their row.
        passport: as `passport` writes it. before, after: files whose size and time are compared.
        plots: title and file inside the bundle. notes: Markdown by hand, put before the limits.
        stated: hardware, calibration and licences, as the manifest has them.
    """

    product: str
    version: int
    data: Dataset
    data_sha256: str
    files: Mapping[str, int]
    golden: Golden
    records: Sequence[Record] = ()
    evaluations: Mapping[str, Record] = field(default_factory=dict)
    passport: Mapping[str, Any] | None = None
    before: str = "detector.x86_64.fp32.nb"
    after: str = "detector.x86_64.int8.nb"
    plots: Sequence[tuple[str, str]] = ()
    notes: str = ""
    stated: Mapping[str, Any] = field(default_factory=dict)

    def of(self, *steps: str) -> list[Record]:
        """The records of some steps, oldest first."""
        return sorted((r for r in self.records if r.step in steps), key=lambda r: r.finished)


def write_card(facts: Facts) -> str:
    """The card as Markdown."""
    sections = {
        "Data": _data(facts),
        "Training": _training(facts),
        "Figures": _figures(facts),
        "Before and after": _before_after(facts),
        "Confidence and thresholds": _confidence(facts),
        "Robustness": _robustness(facts),
        "INT8": _int8(facts),
        "Parity": _parity(facts),
        "Time": _time(facts),
        "Golden samples": _golden(facts),
        "Limits": _limits(facts),
        "Plots": [f"![{title}]({file})" for title, file in facts.plots] or ["None: no record with plots was given."],
        "Reproduce": _reproduce(facts),
    }
    lines = [MARK, "", *_head(facts), ""]
    for title, body in sections.items():
        lines += [f"## {title}", "", *body, ""]
    return "\n".join(lines).rstrip() + "\n"


def wrapped(text: str) -> list[str]:
    """A paragraph in lines."""
    return textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def bullet(text: str) -> list[str]:
    """An entry of a list, its further lines under the first word.

    >>> bullet("short")
    ['- short']
    """
    return textwrap.wrap(f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def percent(value: Any) -> str | None:
    """A share as per cent with two digits; None and NaN are unknown.

    >>> percent(0.98765), percent(None), percent(float("nan"))
    ('98.77', None, None)
    """
    return None if value is None or math.isnan(value) else f"{100 * value:.2f}"


def _rate(rate: Mapping[str, Any] | None) -> str | None:
    if not rate or rate.get("share") is None:
        return None
    return f"{100 * rate['share']:.1f} ({rate['count']} of {rate['of']})"


def _head(facts: Facts) -> list[str]:
    spec = facts.data.spec
    colour = "grey" if spec.channels == 1 else "colour (BGR)"
    exported = facts.of("export")
    parameters = f", {exported[-1].results['parameters']:,} parameters" if exported else ""
    text = (
        f"Finds {', '.join(facts.data.classes)} on {colour} images; input {spec.width}x{spec.height}. Anchor-free, one "
        f"head at stride {STRIDE}{parameters}. Hashes of all files are in `manifest.json`, thresholds in the recipe."
    )
    sizes = table([["file", "bytes"], *([f"`{name}`", f"{size:,}"] for name, size in facts.files.items())])
    more = paragraph(facts.stated)
    lines = [f"# Model card: `{facts.product}` {facts.version}", "", *wrapped(text), ""]
    return [*lines, *more, *([""] if more else []), *sizes]


def _data(facts: Facts) -> list[str]:
    data = facts.data
    terms = "The dataset states no licence: find out before the weights leave the house."
    if data.licence:
        terms = (
            f"Licence as stated there: **{data.licence.rstrip('.')}.** The weights come from these data: read their "
            "terms before using the weights for anything but evaluation."
        )
    rows: list[list[Any]] = [["", "groups", "images", "without defect", *data.classes]]
    for split in ("train", "validation"):
        samples = [s for s in data.samples if s.split == split]
        kinds = np.concatenate([np.empty(0, np.int64), *[s.class_id for s in samples]])
        counts = np.bincount(kinds, minlength=len(data.classes)).tolist()
        empty = sum(not len(s.xyxy) for s in samples)
        rows.append([split, len({s.group for s in samples}), len(samples), empty, *counts])
    names = sorted({s.group for s in data.samples if s.split == "validation"})
    shown = ", ".join(names) if len(names) <= MOST_GROUPS else f"{len(names)} groups"
    partly = sum(not s.known.all() for s in data.samples)
    end = (
        f"Split by group, so that neighbours are never on both sides; validation: {shown}. "
        + (f"On {partly} images only some of the classes were looked for. " if partly else "")
        + f"SHA-256 over names, labels and images: `{facts.data_sha256}`."
    )
    origin = f"Source: {data.source or 'not stated in the dataset'}. {terms}"
    return [*wrapped(origin), "", *table(rows), "", *wrapped(end)]


def _training(facts: Facts) -> list[str]:
    lines: list[str] = []
    for record in facts.of("search"):
        count = len(record.results.get("rows", []))
        lines += [f"The network was chosen by `search` among {count} candidates, by `.nb` time and accuracy.", ""]
    records = facts.of(*TRAINING)
    if not records:
        return [*lines, "Not recorded: no record of a training step was given."]
    rows = [["step", "epochs", "crop px", "minutes", "processes", "AP33 pooled, %", "mAP50-95, %"]]
    rows += [_training_row(record) for record in records]
    text = "Accuracy on validation with Paddle, before quantization. All settings are in the commands at the end."
    return [*lines, *table(rows), "", text]


def _training_row(record: Record) -> list[Any]:
    s, seconds = record.settings, record.results.get("elapsed_s")
    minutes = round(seconds / 60, 1) if isinstance(seconds, int | float) else None
    figures = _last_figures(record.results)
    accuracy = [percent(figures.get(key)) for key in ("ap33_pooled", "map50_95")]
    epochs = len(record.results.get("history", [])) or s.get("epochs")  # a run by time ends before its epochs
    return [f"`{record.step}`", epochs, s.get("crop"), minutes, s.get("processes"), *accuracy]


def _last_figures(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The validation figures of what a training step ended with."""
    networks = results.get("networks")
    ends = [results.get(key) for key in ("validation", "tuned", "student")]
    ends += list(networks.values())[-1:] if isinstance(networks, Mapping) else []
    for value in ends:
        if isinstance(value, Mapping):
            return dict(value.get("validation", value))
    return {}


def _figures(facts: Facts) -> list[str]:
    if not facts.evaluations:
        return [NOT_MEASURED]
    rows: list[list[Any]] = [
        ["%", "AP33 pooled", "AP33 class mean", "mAP50", "mAP50-95", "F33 at thresholds", "escape", "overkill"]
    ]
    for name, record in facts.evaluations.items():
        r = record.results
        values = [percent(r.get(key)) for key in ("ap33_pooled", "ap33_class_mean", "map50", "map50_95")]
        at = percent(r.get("at_thresholds", {}).get("f33"))
        rows.append([name, *values, at, *(_rate(r.get("parts", {}).get(key)) for key in ("escape", "overkill"))])
    first = next(iter(facts.evaluations.values())).results
    by_class: list[list[Any]] = [["AP33, %", *first["ap33"]]]
    by_class += [[name, *map(percent, r.results["ap33"].values())] for name, r in facts.evaluations.items()]
    rules = first.get("rules", {})
    text = (
        f"Validation, {first.get('images')} images with {first.get('truths')} labelled defects, through `edge`'s own "
        "preprocess, decode, suppression and decision. AP33: IoU over 0.33, all classes in one ranking, area under the "
        f"envelope of precision; at most {rules.get('max_detections', 100)} boxes an image, confidence from "
        f"{rules.get('min_confidence', 0.01)}. mAP by pycocotools. Escape: bad parts judged OK. Overkill: good parts "
        "judged NG."
    )
    return [*wrapped(text), "", *table(rows), "", *table(by_class)]


def _before_after(facts: Facts) -> list[str]:
    rows: list[list[Any]] = [["", *ROLES, "change"]]
    for record in facts.of("robustness")[-1:]:
        rows += [[name, *map(percent, pair), _points(pair)] for name, pair in _hardening(record.results).items()]
    times = _times(facts)
    if facts.before in times and facts.after in times:
        pair = [times[facts.before]["p50"], times[facts.after]["p50"]]
        rows.append(["time of one inference, p50, ms", *pair, _change(pair)])
    if facts.before in facts.files and facts.after in facts.files:
        sizes = [facts.files[facts.before], facts.files[facts.after]]
        rows.append(["size of the model, bytes", *(f"{size:,}" for size in sizes), _change(sizes)])
    if len(rows) == 1:
        return [NOT_MEASURED]
    text = (
        f"Time and size compare `{facts.before}` with `{facts.after}`. Accuracy and attacks compare the models of the "
        "robustness record, measured the same way."
    )
    return [*wrapped(text), "", *table(rows)]


def _hardening(results: Mapping[str, Any]) -> dict[str, list[float | None]]:
    """Accuracy and attack success of a robustness record, before and after."""
    seen, attacks = results["conditions"], results.get("attacks", {})
    found = {f"AP33, {name}, %": [seen[name].get(role, {}).get("ap33") for role in ROLES] for name in FIELD}
    on_device = [attacks.get(role, {}).get("loss", {}).get("device", {}) for role in ROLES]
    success = [seen_by.get("success", {}).get("share") for seen_by in on_device]
    return {**found, "success of the attack, %": success}


def _points(pair: Sequence[float | None]) -> str | None:
    before, after = pair
    return None if before is None or after is None else f"{100 * (after - before):+.2f} points"


def _change(pair: Sequence[float]) -> str | None:
    return f"{100 * (pair[1] / pair[0] - 1):+.0f} %" if pair[0] else None


def _confidence(facts: Facts) -> list[str]:
    records = facts.of("confidence")
    if not records:
        return [NOT_MEASURED]
    lines: list[str] = []
    for record in records:
        errors = record.results.get("calibration_error", {})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in errors.items() if isinstance(value, float))
        model = Path(str(record.settings.get("model"))).name
        lines += [*wrapped(f"Expected calibration error of `{model}`: {shown}."), ""]
    last = records[-1].results
    for sentence in last.get("said", []):
        lines += bullet(shorten_text(sentence, facts.data.root))
    rows: list[list[Any]] = [["", "threshold", "review", "precision, %", "recall, %", "escape, %"]]
    for name, row in last.get("classes", {}).items():
        rates = [_rate(row.get(key)) for key in ("precision", "recall", "escape")]
        rows.append([name, row.get("threshold"), row.get("review"), *rates])
    return [*lines, "", *table(rows)] if len(rows) > 1 else lines


def _robustness(facts: Facts) -> list[str]:
    records = facts.of("robustness")
    if not records:
        return [NOT_MEASURED]
    from tools.robustness import markdown

    results = records[-1].results
    roles = [role for role in ROLES if role in results["conditions"]["clean"]]
    attack = next((a["attack"] for a in results.get("attacks", {}).values()), None)
    text = f"{results['images']} validation images."
    if attack:
        text += f" Attack: PGD, epsilon {attack['epsilon']} of white, step {attack['step']}, {attack['steps']} steps."
    return [text, "", *markdown(results, roles).rstrip().splitlines()]


def _int8(facts: Facts) -> list[str]:
    records = facts.of("quantize")
    if not records:
        return ["Not recorded: no record of `quantize` was given."]
    lines = []
    for record in records:
        r, target = record.results, record.settings.get("target")
        int8, fp32 = (len(r.get(key, [])) for key in ("int8_layers", "fp32_layers"))
        lost = r.get("lost_points", {}).get(r.get("kept"))
        said = "loss not measured" if lost is None else f"{lost:+.2f} points of AP33 lost on validation"
        layers = f"{int8} convolutions in INT8, {fp32} in FP32, weights in {r.get('weights')} range"
        lines += bullet(f"{target}: {layers}, made by `{r.get('kept')}`; {said}.")
    return lines


def _parity(facts: Facts) -> list[str]:
    passport = facts.passport
    if passport is None:
        return [NOT_MEASURED]
    rows: list[list[Any]] = [
        ["against FP32, validation", "AP33 lost, points", "worst class", "median shift, px", "confidence p95",
         "other verdicts", "golden verdicts"]
    ]  # fmt: skip
    for name, form in passport["forms"].items():
        v, g, d = form["validation"], form["golden"], form["drops"]
        changed = [f"{a['changed']} of {a['images']}" for a in (v, g)]
        lost = [None if d[key] is None else f"{100 * d[key]:+.2f}" for key in ("ap33_drop", "class_ap33_drop")]
        rows.append([name, *lost, v["shift_median_px"], v["score_p95"], *changed])
    state = "within all limits" if passport["passed"] else "**over its limits**"
    text = f"All forms got the same input to the last bit; {state}. Everything is in `PASSPORT.md`, `passport.json`."
    return [text, *(f"- {problem}" for problem in passport["problems"]), "", *table(rows)]


def _times(facts: Facts) -> dict[str, Any]:
    return {Path(name).name: row for record in facts.of("latency") for name, row in record.results.items()}


def _time(facts: Facts) -> list[str]:
    times = _times(facts)
    if not times:
        return [NOT_MEASURED]
    cpu = facts.of("latency")[-1].settings.get("cpu", "processor not recorded")
    rows = [[f"`{name}`", t["p50"], t["min"], t["p99"]] for name, t in times.items()]
    end = "On ARM the time is to be measured on the device: `edge bench`."
    head = f"Bare network, one thread, models in turns: {cpu}."
    return [head, "", *table([["ms", "p50", "fastest", "p99"], *rows]), "", end]


def _golden(facts: Facts) -> list[str]:
    samples = facts.golden.samples
    counts = {kind: sum(s.verdict == kind for s in samples) for kind in sorted({s.verdict for s in samples})}
    shown = ", ".join(f"{kind} {n}" for kind, n in counts.items())
    text = (
        f"{len(samples)} images in `golden/`, drawn by this project ({shown}), with what the FP32 reference finds on "
        "them. `edge` gave the same verdicts with every runtime of the machine that packed the bundle."
    )
    return wrapped(text)


def _limits(facts: Facts) -> list[str]:
    lines = [*facts.notes.rstrip().splitlines(), ""] if facts.notes.strip() else []
    sides = [np.sqrt(np.prod(s.xyxy[:, 2:] - s.xyxy[:, :2], axis=1)) for s in facts.data.samples if len(s.xyxy)]
    if sides:
        low, high = np.percentile(np.concatenate(sides), [5, 95])
        size = f"Labelled defects are {low:.0f} to {high:.0f} px (root of the area in source pixels, 5 to 95 %)"
        lines += bullet(f"{size}; smaller and larger ones were hardly seen.")
    return [
        *lines,
        *bullet(f"Only {', '.join(facts.data.classes)} are known; any other defect is background."),
        "- Only the kind of image, light and scale of the data above was seen; train on your own before relying on it.",
        "- Blur and bad exposure are the gate's to refuse: propose its limits on the line with `edge calibrate gate`.",
        "- Checkpoints, ranges and thresholds were chosen on the validation split: a new line may do worse than it.",
    ]


def _reproduce(facts: Facts) -> list[str]:
    # A run inside another step has a record of its own, and no command.
    records = {r.path: r for r in (*facts.records, *facts.evaluations.values()) if not r.step.endswith("-training")}
    ordered = sorted(records.values(), key=lambda r: r.finished)
    if not ordered:
        return ["Not recorded: no record was given."]
    commands = shorten([command_of(record) for record in ordered], facts.data.root)
    versions = ", ".join(f"{name} {version}" for name, version in ordered[-1].versions.items())
    end = wrapped(f"`DATA` is the dataset folder. Made with {versions}.")
    return ["```", *(shlex.join(command) for command in commands), "```", "", *end]
