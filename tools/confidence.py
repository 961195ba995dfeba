"""Calibrate confidence, and choose the thresholds of a recipe for a wanted escape and overkill rate.

First a temperature makes confidence the chance that a box is correct (`tools.temperature`); for a checkpoint it is
folded into the output layer (`calibrated.pdckpt`: export that one), for a compiled model the thresholds are mapped
through it. Then thresholds are chosen (`tools.thresholds`) and written as `recipe.toml`. What is chosen on a split
looks better there than it is, so both are also done on one half and counted on the other, and turned round: those
figures are called "unseen". Choose by the model that ships: first calibrate the checkpoint, export it, then run the
step again on its `.nb` for the thresholds.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge import settings
from edge.boxes import Float
from edge.recipe import AnomalyRecipe, DetectRecipe, DriftRecipe, Recipe, dump_gate
from tools.dataset import SPLITS, read_dataset
from tools.errors import DataError, ToolError
from tools.evaluate import SETTINGS, Evidence, choose_recipe, evidence_of
from tools.metrics import IOU_DEEPPCB, average_precision, match, operating_point, rank
from tools.plots import figure
from tools.run_record import write_record
from tools.temperature import (
    calibrated,
    fit_temperatures,
    fold_temperature,
    reliability,
    rescale,
    uncalibrated,
)
from tools.thresholds import LEAST_REVIEW, Choice, Parts, Wanted, caught, choose, collect
from tools.verdicts import Rate, part_rates

FOLDED = "calibrated.pdckpt"
WAYS = ("fold", "recipe")
TRADES = 12  # rows of the trade-off table
LOSS_TO_TELL = 0.0005  # of AP, by folding
WIDE = {"ncols": 2, "figsize": (11.0, 4.4)}


@dataclass(frozen=True)
class Boxes:
    """All boxes of an evidence in one row."""

    confidence: Float  # (N,)
    correct: np.ndarray  # (N,) bool
    class_id: np.ndarray  # (N,)


def boxes_of(evidence: Evidence) -> Boxes:
    """The boxes on labelled images, each right or wrong."""
    found = evidence.found
    correct = [match(boxes, *labels, IOU_DEEPPCB) for boxes, labels in zip(found, evidence.truth, strict=True)]
    return Boxes(
        np.concatenate([np.empty(0, np.float32), *[boxes.confidence for boxes in found]]),
        np.concatenate([np.empty(0, bool), *correct]),
        np.concatenate([np.empty(0, int), *[boxes.class_id for boxes in found]]),
    )


def halves(groups: Sequence[str]) -> np.ndarray:
    """Two halves, (N,) bool, that share no group, as equal as whole groups allow; of one group every other image.

    >>> halves(["a", "b", "a", "c"]).tolist(), halves(["a", "a", "a"]).tolist()
    ([True, False, True, False], [True, False, True])
    """
    names, counts = np.unique(groups, return_counts=True)
    if len(names) == 1:
        return np.arange(len(groups)) % 2 == 0
    first: set[str] = set()
    size = [0, 0]
    for i in np.argsort(-counts, kind="stable"):
        side = int(size[0] > size[1])
        size[side] += int(counts[i])
        if side == 0:
            first.add(str(names[i]))
    return np.array([group in first for group in groups])


def crossed(evidence: Evidence) -> Iterator[tuple[Evidence, Evidence]]:
    """A half to choose by and a half to count on, then the other way round."""
    first = halves([sample.group for sample in evidence.samples])
    for mine in (first, ~first):
        yield evidence.part(mine), evidence.part(~mine)


def temperatures_of(evidence: Evidence, per_class: bool) -> Float:
    """The temperature of each class, (classes,), fitted on all boxes of the evidence."""
    boxes = boxes_of(evidence)
    return fit_temperatures(boxes.confidence, boxes.correct, boxes.class_id, len(evidence.classes), per_class)


@dataclass(frozen=True)
class Calibration:
    """How confidence is before and after.

    Attributes:
        temperature: (classes,). before, after: all boxes of the evidence.
        unseen: calibrated on one half, seen on the other. raw: `unseen`'s boxes before calibration.
    """

    temperature: Float
    before: Boxes
    after: Boxes
    unseen: Boxes
    raw: Boxes

    def errors(self, least: float = 0.0) -> dict[str, float]:
        """Expected calibration error of boxes that were at least so confident before."""

        def error(boxes: Boxes, before: Boxes) -> float:
            keep = before.confidence >= least
            return round(reliability(boxes.confidence[keep], boxes.correct[keep]).error, 5)

        return {
            "before": error(self.before, self.before),
            "after": error(self.after, self.before),
            "unseen": error(self.unseen, self.raw),
        }


def calibrate(evidence: Evidence, per_class: bool) -> Calibration:
    """Fit the temperature on all, and by halves for the honest figure."""
    boxes, temperature = boxes_of(evidence), temperatures_of(evidence, per_class)
    raw, unseen = [], []
    for chosen_by, counted_on in crossed(evidence):
        raw.append(boxes_of(counted_on))
        unseen.append(_scaled(raw[-1], temperatures_of(chosen_by, per_class)))
    return Calibration(temperature, boxes, _scaled(boxes, temperature), _joined(unseen), _joined(raw))


def _scaled(boxes: Boxes, temperature: Float) -> Boxes:
    return replace(boxes, confidence=calibrated(boxes.confidence, temperature[boxes.class_id]))


def _joined(several: Sequence[Boxes]) -> Boxes:
    return Boxes(*(np.concatenate([getattr(b, f.name) for b in several]) for f in fields(Boxes)))


def floor_cost(evidence: Evidence, scaled: Evidence) -> dict[str, float]:
    """Pooled AP as the network is, and when folded: a temperature under 1 pushes faint boxes under the least confidence
    that is kept."""
    kept = [boxes.above(SETTINGS.min_confidence) for boxes in scaled.found]
    sets = {"before": evidence.found, "after": kept}
    return {n: round(average_precision(rank(found, evidence.truth, IOU_DEEPPCB)), 5) for n, found in sets.items()}


def rescaled(evidence: Evidence, temperature: Float) -> Evidence:
    """The evidence as a network with the temperature folded in would give it."""
    seen, templates = (
        [replace(part, found=rescale(part.found, temperature)) for part in parts]
        for parts in (evidence.seen, evidence.templates)
    )
    return replace(evidence, seen=seen, templates=templates)


def parts_of(evidence: Evidence) -> Parts:
    """What thresholds are chosen by; what the gate refuses is never decided on and so left out."""
    passed = [i for i, seen in enumerate(evidence.seen) if not seen.cause]
    found, truth = [evidence.seen[i].found for i in passed], [evidence.truth[i] for i in passed]
    good = [seen.found for seen in evidence.good if not seen.cause]
    return collect(found, truth, good, len(evidence.classes))


def recipe_of(choice: Choice, base: Recipe, classes: Sequence[str], temperature: float) -> Recipe:
    """The choice as a recipe; a temperature other than 1 is not in the network and so taken out of the thresholds."""
    def shown(value: float) -> float:
        return round(float(value if temperature == 1 else uncalibrated(np.array(value), temperature)), 5)

    own = {name: shown(value) for name, value in zip(classes, choice.threshold, strict=True)}
    highest = max(own.values())
    d = base.detect
    detect = DetectRecipe(
        threshold=highest,
        review=min(highest, shown(choice.review)),
        class_threshold=own,
        nms_iou=d.nms_iou,
        max_detections=d.max_detections,
    )
    return Recipe(name=base.name, gate=base.gate, detect=detect)


def unseen_rates(evidence: Evidence, wanted: Wanted, base: Recipe) -> dict[str, Rate]:
    """The rates when thresholds are chosen on one half and counted on the other; both ways added."""
    total: dict[str, Rate] = {}
    for chosen_by, counted_on in crossed(evidence):
        parts = parts_of(chosen_by)
        if not len(parts.bad) or not len(parts.good):
            return {}
        recipe = recipe_of(choose(parts, wanted), base, evidence.classes, 1.0)
        rates = part_rates(counted_on.bad, counted_on.good, recipe.detect, evidence.classes)
        for name, rate in rates.items():
            before = total.get(name, Rate(0, 0))
            total[name] = Rate(before.count + rate.count, before.total + rate.total)
    return total


def rates_of(evidence: Evidence, recipe: Recipe, parts: Parts, choice: Choice) -> dict[str, Rate]:
    """What the device decides by the recipe; of imitated good parts, what the choice does with them."""
    rates = part_rates(evidence.bad, evidence.good, recipe.detect, evidence.classes)
    if not parts.imitated:
        return rates
    flagged = caught(parts.good, choice.threshold)
    reviewed = caught(parts.good, np.minimum(choice.threshold, choice.review)) & ~flagged
    n = len(parts.good)
    return {**rates, "overkill": Rate(int(flagged.sum()), n), "good_review": Rate(int(reviewed.sum()), n)}


def class_table(evidence: Evidence, parts: Parts, choice: Choice) -> dict[str, dict[str, Any]]:
    """One row a class: thresholds, precision and recall of its boxes, escape and overkill that are its own.

    A class's escape is the share of parts with that kind of defect on which no box lies on such a defect over a review
    threshold; its overkill the share of good parts with a box of that class over its threshold.
    """
    at = operating_point(evidence.found, evidence.truth, choice.threshold, evidence.classes)["class"]
    review = np.minimum(choice.threshold, choice.review)
    table = {}
    for k, name in enumerate(evidence.classes):
        rows, point = parts.kinds[parts.kind == k], at[name]
        table[name] = {
            "threshold": round(float(choice.threshold[k]), 4),
            "review": round(float(review[k]), 4),
            "precision": Rate(point["hits"], point["boxes"]).as_dict(),
            "recall": Rate(point["hits"], point["truths"]).as_dict(),
            "escape": Rate(int((~caught(rows, review)).sum()), len(rows)).as_dict(),
            "overkill": Rate(int((parts.good[:, k] >= choice.threshold[k]).sum()), len(parts.good)).as_dict(),
        }
    return table


def trade_off(parts: Parts, wanted: Wanted) -> list[dict[str, float]]:
    """What each overkill costs and buys: escape without any review, and the review that the wanted escape takes."""
    most = max(1, round(0.1 * len(parts.good)))
    rows: dict[float, dict[str, float]] = {}
    for count in sorted({round(v) for v in np.linspace(0, most, TRADES)}):
        choice = choose(parts, Wanted(wanted.escape, count / len(parts.good), 1.0))
        reviewed, flagged = np.minimum(choice.threshold, choice.review), caught(parts.good, choice.threshold)
        shares = {
            "overkill": flagged,
            "escape_without_review": ~caught(parts.bad, choice.threshold),
            "kinds_missed_without_review": ~caught(parts.kinds, choice.threshold),
            "good_to_a_person": caught(parts.good, reviewed) & ~flagged,
            "escape": ~caught(parts.bad, reviewed),
            "kinds_missed": ~caught(parts.kinds, reviewed),
        }
        row = {name: round(float(of.mean()), 5) for name, of in shares.items()}
        rows.setdefault(row["overkill"], {**row, "review": round(choice.review, 4)})
    return list(rows.values())


def verdict_on(choice: Choice, rates: dict[str, Rate], wanted: Wanted, parts: Parts) -> list[str]:
    """Whether the wanted rates are met, in plain sentences; what is met instead where they are not."""
    within = choice.within
    by_part = within["escape"] and within["overkill"] and within["review"]
    said = [
        f"Wanted: escape {100 * wanted.escape:g} %, overkill {100 * wanted.overkill:g} %, at most "
        f"{100 * wanted.review:g} % of good parts to a person.",
        "All are met on these parts:" if by_part else "They cannot all be met here. Met instead:",
        f"escape {rates['escape']}, overkill {rates['overkill']}, good parts to a person {rates['good_review']}.",
    ]
    missed = Rate(int((~caught(parts.kinds, np.minimum(choice.threshold, choice.review))).sum()), len(parts.kinds))
    by_kind = f"As if each kind of defect were alone on its part, the escape would be {missed}"
    said.append(by_kind + ("." if within["escape_by_kind"] else ": over what is wanted, see the classes."))
    blind = int((parts.kinds.max(axis=1) < LEAST_REVIEW).sum())
    if blind and not within["escape_by_kind"]:
        said.append(f"{blind} of these have no box over {LEAST_REVIEW}: no threshold finds them, only a better model.")
    if not choice.zone:
        said.append("No part goes to REVIEW.")
    if parts.imitated:
        said.append("This split has no good part: overkill is that of the boxes on bad parts that touch no defect.")
    for name, most in (("escape", wanted.escape), ("overkill", wanted.overkill)):
        if rates[name].total and rates[name].interval[1] > most >= rates[name].share:
            high = f"{100 * rates[name].interval[1]:.1f} %"
            said.append(f"{rates[name].total} parts cannot prove it: the true {name} may be up to {high} (95 %).")
    return said


def recipe_text(recipe: Recipe, base: Path | None, head: Sequence[str], table: dict[str, dict[str, Any]]) -> str:
    """The recipe as TOML with comments: the base's own name and gate as they stand there, then what was chosen.

    Raises:
        ToolError: the text does not read back as the recipe.
    """
    d = recipe.detect
    lines = [f"name = {json.dumps(recipe.name)}", "", _gate_text(recipe, base), "", "[detect]"]
    lines += [
        *(f"# {line}" for sentence in head for line in textwrap.wrap(sentence, 116)),
        f"threshold = {d.threshold}  # of a class that is not below",
        f"review = {d.review}",
        f"nms_iou = {d.nms_iou}",
        f"max_detections = {d.max_detections}",
        "",
        "[detect.class_threshold]",
        "# escape: parts with such a defect on which nothing makes them NG or REVIEW; overkill: good parts it makes NG",
    ]
    for name, row in table.items():
        lines.append(f"# escape {_percent(row['escape'])}, overkill {_percent(row['overkill'])}")
        lines.append(f"{json.dumps(name)} = {d.class_threshold[name]}")
    text = "\n".join([*lines, *_judges_text(recipe)]) + "\n"
    if settings.check(settings.parse_toml(text.encode(), "recipe.toml"), Recipe, "recipe.toml") != recipe:
        raise ToolError("the recipe does not read back as it was written")
    return text


def _gate_text(recipe: Recipe, base: Path | None) -> str:
    """The [gate] table of the base with its comments and its own tables, if it stands there as a table."""
    text = base.read_text(encoding="utf-8-sig") if base else ""
    table = re.search(r"^\[gate\][^\n]*\n.*?(?=^\[(?!gate\.)|\Z)", text, re.MULTILINE | re.DOTALL)
    return (table.group() if table else dump_gate(recipe.gate)).rstrip()


def _judges_text(recipe: Recipe) -> list[str]:
    """The tables of the other judges where they say more than the defaults."""
    given = {"anomaly": (recipe.anomaly, AnomalyRecipe()), "drift": (recipe.drift, DriftRecipe())}
    return [
        line
        for name, (own, default) in given.items()
        if own != default
        for line in ("", f"[{name}]", settings.to_toml(own).rstrip())
    ]


def _percent(rate: dict[str, Any]) -> str:
    return f"{rate['count']} of {rate['of']}"


def draw(calibration: Calibration, parts: Parts, choice: Choice, trades: list[dict[str, float]], out: Path) -> None:
    """The reliability diagram and the curves to choose by, as PNG files in `out`."""
    pairs = {"before": calibration.before, "calibrated on the other half": calibration.unseen}
    with figure(out / "reliability.png", "Confidence and the share that is correct", **WIDE, sharey=True) as both:
        for axes, (title, boxes) in zip(both, pairs.items(), strict=True):
            r = reliability(boxes.confidence, boxes.correct)
            some = r.count > 0
            axes.bar((np.arange(len(r.count)) + 0.5) / len(r.count), r.correct, 0.9 / len(r.count), alpha=0.4)
            axes.plot(r.confidence[some], r.correct[some], "o-", markersize=3)
            axes.plot([0, 1], [0, 1], "--", color="grey")
            axes.set_title(f"{title}: error {r.error:.4f}", fontsize=9), axes.set_xlabel("confidence")
        both[0].set_ylabel("share correct")
    with figure(out / "thresholds.png", "What the thresholds cost and buy", **WIDE) as (left, right):
        _draw_sweep(left, parts, choice)
        _draw_trades(right, parts, choice, trades)


def _draw_sweep(axes: Any, parts: Parts, choice: Choice) -> None:
    """Shares over one threshold for all classes; the chosen ones as ticks."""
    at = np.linspace(LEAST_REVIEW, 0.99, 150)
    axes.plot(at, [(~caught(parts.bad, t)).mean() for t in at], label="bad parts under it")
    axes.plot(at, [(~caught(parts.kinds, t)).mean() for t in at], label="kinds of defects under it")
    axes.plot(at, [caught(parts.good, t).mean() for t in at], label="good parts over it")
    axes.plot(choice.threshold, np.zeros(len(choice.threshold)), "|", color="black", markersize=14, label="chosen: NG")
    if choice.zone:
        axes.axvline(choice.review, linestyle=":", color="black", label="chosen: REVIEW")
    axes.set_xlabel("one threshold for all classes"), axes.set_ylabel("share"), axes.legend(fontsize=7)


def _draw_trades(axes: Any, parts: Parts, choice: Choice, trades: list[dict[str, float]]) -> None:
    """What each overkill buys."""
    overkill = [row["overkill"] for row in trades]
    for key, label in (
        ("escape_without_review", "bad parts OK, nobody reviews"),
        ("kinds_missed_without_review", "kinds missed, nobody reviews"),
        ("good_to_a_person", "good parts to a person, for few kinds missed"),
    ):
        axes.plot(overkill, [row[key] for row in trades], "o-", markersize=3, label=label)
    axes.axvline(float(caught(parts.good, choice.threshold).mean()), linestyle=":", color="black", label="chosen")
    axes.set_xlabel("overkill: good parts NG"), axes.legend(fontsize=7)


def show(table: dict[str, dict[str, Any]], trades: list[dict[str, float]]) -> str:
    """Both tables as text for a terminal."""
    width = max(map(len, table))
    lines = [f"{'class':<{width}}  threshold  review  precision  recall  escape (95 %)         overkill (95 %)"]
    for name, row in table.items():
        numbers = "  ".join(_share(row[key]).rjust(w) for key, w in (("precision", 9), ("recall", 6)))
        rates = "  ".join(f"{_share(row[key])} {_interval(row[key])}".ljust(20) for key in ("escape", "overkill"))
        lines.append(f"{name:<{width}}  {row['threshold']:9.4f}  {row['review']:6.4f}  {numbers}  {rates}".rstrip())
    lines += ["", "          without review            with the review that the wanted escape takes"]
    lines += ["overkill  escape  kinds missed       from  good to a person  escape  kinds missed"]
    for row in trades:
        lines.append(
            f"{row['overkill']:8.4f}  {row['escape_without_review']:6.4f}  {row['kinds_missed_without_review']:12.4f}  "
            f"{row['review']:9.4f}  {row['good_to_a_person']:16.4f}  {row['escape']:6.4f}  {row['kinds_missed']:12.4f}"
        )
    return "\n".join(lines)


def _share(rate: dict[str, Any]) -> str:
    return "-" if rate["share"] is None else f"{rate['share']:.4f}"


def _interval(rate: dict[str, Any]) -> str:
    return f"{rate['wilson95'][0]:.3f}-{rate['wilson95'][1]:.3f}"


def way_of(asked: str | None, model: Path, per_class: bool) -> str:
    """Where the temperature ends: folded into a checkpoint, or in the recipe's thresholds."""
    is_checkpoint = model.suffix == ".pdckpt"
    way = asked or ("fold" if is_checkpoint else "recipe")
    if way == "fold" and not is_checkpoint:
        raise ToolError(f"{model}: only a checkpoint (.pdckpt) can have a temperature folded in; use --apply recipe")
    if way == "recipe" and per_class:
        raise ToolError("--per-class: a recipe has one review threshold for all, so it has to be folded in")
    return way


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools confidence", description=__doc__.splitlines()[0])
    p.add_argument("--data", type=Path, required=True, help="dataset folder, made by `import`")
    p.add_argument("--model", type=Path, required=True, help="a checkpoint; or the .nb that ships, for its thresholds")
    p.add_argument("--split", choices=SPLITS, default="validation", help="never the one the network was trained on")
    p.add_argument("--escape", type=_probability, default=0.01, help="wanted: bad parts judged OK (%(default)s)")
    p.add_argument("--overkill", type=_probability, default=0.02, help="wanted: good parts judged NG (%(default)s)")
    p.add_argument("--review", type=_probability, default=0.1, help="most good parts that go to a person (%(default)s)")
    p.add_argument("--per-class", action="store_true", help="a temperature for each class")
    p.add_argument("--apply", choices=WAYS, help="where the temperature ends; fold for a checkpoint, else recipe")
    p.add_argument("--recipe", type=Path, help="base recipe: name, gate and suppression are kept")
    p.add_argument("--out", type=Path, required=True, help="folder of recipe.toml, the folded checkpoint and the plots")
    return p


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: expected 0 to 1, such as 0.01")
    return value


def look(args: argparse.Namespace) -> tuple[Recipe, Evidence, dict[str, Any]]:
    """The base recipe, everything the model sees of the split, and what that depends on."""
    data = read_dataset(args.data)
    base = choose_recipe(args.recipe, None, data.classes)
    if args.recipe is None and data.product:
        base = Recipe(name=data.product, gate=base.gate, detect=base.detect)
    evidence, depends = evidence_of(args.model, data, args.split, base, args.out)
    if all(seen.cause for seen in evidence.bad):
        raise DataError(
            f"{args.data}: no image of the split {args.split} has a labelled defect and passes the gate of the recipe: "
            "nothing to choose by"
        )
    return base, evidence, depends


def words_on_origin(
    way: str, model: Path, unseen: dict[str, Rate], cost: dict[str, float]
) -> list[str]:
    """How far the rates hold elsewhere, and which network the thresholds are for."""
    said = []
    if unseen:
        said.append("Chosen on one half of the groups and counted on the other:")
        person = f"good parts to a person {unseen['good_review']}"
        said.append(f"escape {unseen['escape']}, overkill {unseen['overkill']}, {person}.")
    if way == "recipe":
        return [*said, f"For the confidence of {model.name} as it is."]
    said.append(f"For the confidence of {FOLDED} (temperature folded in), and models exported from it.")
    if cost["before"] - cost["after"] > LOSS_TO_TELL:
        change = f"AP33 {cost['before']} -> {cost['after']}"
        said.append(f"Folding pushes faint boxes under {SETTINGS.min_confidence}: {change}; --apply recipe keeps them.")
    return said


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    way = way_of(args.apply, args.model, args.per_class)
    wanted = Wanted(args.escape, args.overkill, args.review)
    base, evidence, depends = look(args)
    calibration = calibrate(evidence, args.per_class)
    scaled = rescaled(evidence, calibration.temperature)
    parts = parts_of(scaled)
    choice = choose(parts, wanted)
    table, trades = class_table(scaled, parts, choice), trade_off(parts, wanted)

    recipe = recipe_of(choice, base, evidence.classes, 1.0 if way == "fold" else float(calibration.temperature[0]))
    rates = rates_of(scaled if way == "fold" else evidence, recipe, parts, choice)
    unseen, cost = unseen_rates(scaled, wanted, base), floor_cost(evidence, scaled)
    said = [*verdict_on(choice, rates, wanted, parts), *words_on_origin(way, args.model, unseen, cost)]
    args.out.mkdir(parents=True, exist_ok=True)
    if way == "fold":
        fold_temperature(args.model, args.out / FOLDED, calibration.temperature)
    (args.out / "recipe.toml").write_text(recipe_text(recipe, args.recipe, said, table), encoding="utf-8")
    draw(calibration, parts, choice, trades, args.out)
    result = {
        "temperature": dict(zip(evidence.classes, calibration.temperature.round(5).tolist(), strict=True)),
        "applied": way,
        "boxes": len(calibration.before.correct),
        "calibration_error": calibration.errors(),
        "calibration_error_from_0.1": calibration.errors(0.1),
        "ap33_pooled_folded": cost,
        "within": choice.within,
        "rates": {name: rate.as_dict() for name, rate in rates.items()},
        "rates_unseen": {name: rate.as_dict() for name, rate in unseen.items()},
        "classes": table,
        "trade_off": trades,
        "said": said,
    }
    write_record(args.out / "confidence.json", "confidence", {**vars(args), **depends}, result)
    errors = calibration.errors()
    print(f"expected calibration error {errors['before']:.4f}, calibrated on the other half {errors['unseen']:.4f}")
    print(show(table, trades), *said, f"{args.out / 'recipe.toml'}: written, beside it the plots", sep="\n")
