"""Figures of the gate on a product: ranking of blur, refused good frames, confusion of causes; and their plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge import gate
from edge.gate_classifier import (
    BLURS,
    OUTPUTS,
    GateClassifierSettings,
    against_ok,
    fit_limits,
    judged,
    log_odds,
    softmax,
    weighed,
)
from edge.recipe import CLASSIFIED, GateRecipe
from edge.records import GateResult
from tools.gate_data import Example
from tools.gate_limits import Limits
from tools.plots import figure
from tools.verdicts import Rate

WHOLE = (0.0, 0.0, 1.0, 1.0)
PASSED = "passed"
NAMED = (PASSED, *CLASSIFIED, "blur")  # columns of the confusion


@dataclass(frozen=True)
class Trial:
    """What the gate is judged by on one product: (N,) examples, their probabilities, the groups that calibrate it.

    Attributes:
        probabilities: of `OUTPUTS`, by example. calibrates: (N,) bool, of good frames that set the thresholds.
    """

    examples: Sequence[Example]
    probabilities: Sequence[Mapping[str, float]]
    calibrates: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """(N,) `ok`, a cause, or `between`."""
        return np.array([example.label for example in self.examples])

    @property
    def captured(self) -> np.ndarray:
        """(N,) bool: as the camera delivered it."""
        return np.array([x.label == "ok" and not x.retaken for x in self.examples])


def probabilities_of(logits: np.ndarray, temperature: float = 1.0) -> list[dict[str, float]]:
    """Outputs (N, outputs) as the device reads them."""
    return [dict(zip(OUTPUTS, softmax(row, temperature), strict=True)) for row in logits]


def auroc(bad: np.ndarray, good: np.ndarray) -> float:
    """The chance that a bad one scores higher than a good one (Hanley and McNeil, 1982); ties count half, NaN: no such.

    >>> auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(bad) or not len(good):
        return float("nan")
    ordered = np.sort(good)
    below = np.searchsorted(ordered, bad, "left") + np.searchsorted(ordered, bad, "right")
    return float(below.mean() / (2 * len(good)))


def roc(bad: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of good and of bad that are refused at each threshold, both growing from 0 to 1."""
    thresholds = np.sort(np.unique(np.concatenate([bad, good])))[::-1]
    of = [[float((x >= t).mean()) for t in thresholds] for x in (good, bad)]
    return np.array([0.0, *of[0]]), np.array([0.0, *of[1]])


def spoilt_score(probabilities: Sequence[Mapping[str, float]]) -> np.ndarray:
    """How surely something is wrong with a frame, (N,): the log-odds of its not being ok."""
    p = np.array([1 - x["ok"] for x in probabilities]).clip(1e-9, 1 - 1e-9)
    return np.log(p / (1 - p))


def blur_score(probabilities: Sequence[Mapping[str, float]]) -> np.ndarray:
    """How surely a frame is blurred, (N,): the log-odds, against a good frame, of the more probable kind."""
    return np.array([max(log_odds(against_ok(x, cause)) for cause in BLURS) for x in probabilities])


def _of(trial: Trial, cause: str) -> np.ndarray:
    return np.array([log_odds(against_ok(x, cause)) for x in trial.probabilities])


@dataclass(frozen=True)
class Fitted:
    """Thresholds that `edge calibrate gate` fits: cheap ones, and the classifier's."""

    recipe: GateRecipe
    limits: dict[str, float]


def calibrate(trial: Trial, settings: GateClassifierSettings, refuse: float) -> Fitted:
    """Thresholds from the good frames, as captured, that are there for it."""
    some = np.flatnonzero(trial.calibrates & trial.captured)
    good = [trial.examples[i].measures for i in some]
    usual, spread = gate.usual_sharpness(good)
    recipe = msgspec.structs.replace(gate.propose(good, WHOLE, refuse), usual_sharpness=usual, sharpness_spread=spread)
    weighed_ones = in_line(trial, recipe).probabilities
    return Fitted(recipe, fit_limits([weighed_ones[i] for i in some], settings, refuse))


def calibrated(trial: Trial, settings: GateClassifierSettings, refuse: float) -> Trial:
    """The trial as a line sees it whose gate was calibrated."""
    return in_line(trial, calibrate(trial, settings, refuse).recipe)


def in_line(trial: Trial, recipe: GateRecipe) -> Trial:
    """The trial with probabilities weighed by what the line's good frames usually have, as the device does it."""
    pairs = zip(trial.probabilities, trial.examples, strict=True)
    return replace(trial, probabilities=[weighed(p, x.measures.sharpness, recipe) for p, x in pairs])


def judge_all(trial: Trial, fitted: Fitted, classifier: bool = True) -> list[GateResult]:
    """The gate's result on each example, by its own functions, with the classifier always or never."""
    results = []
    for example, probabilities in zip(trial.examples, trial.probabilities, strict=True):
        cheap = gate.judge(example.measures, fitted.recipe)
        looks = classifier and (cheap.passed or (cheap.cause is not None and cheap.cause.value == "blur"))
        results.append(judged(cheap, probabilities, fitted.limits) if looks else cheap)
    return results


def figures(trial: Trial, settings: GateClassifierSettings, refuse: float) -> dict[str, Any]:
    """All figures of one product."""
    fitted = calibrate(trial, settings, refuse)
    alone_blur = blur_score(trial.probabilities)
    trial = in_line(trial, fitted.recipe)
    labels, score, blur = trial.labels, spoilt_score(trial.probabilities), blur_score(trial.probabilities)
    cheap = -np.log([max(x.measures.sharpness, gate.LEAST_SHARPNESS) for x in trial.examples])
    good, blurred = labels == "ok", np.isin(labels, BLURS)
    results, alone = judge_all(trial, fitted), judge_all(trial, fitted, classifier=False)
    return {
        "auroc_blur": {
            "gate": auroc(blur[blurred], blur[good]),
            "gate_against_as_captured": auroc(blur[blurred], blur[trial.captured]),
            "classifier_alone": auroc(alone_blur[blurred], alone_blur[good]),
            "anything_wrong": auroc(score[blurred], score[good]),
            "sharpness_alone": auroc(cheap[blurred], cheap[good]),
            "n_bad": int(blurred.sum()),
            "n_good": int(good.sum()),
            **{cause: auroc(_of(trial, cause)[labels == cause], _of(trial, cause)[good]) for cause in CLASSIFIED},
        },
        "good_refused": {
            "as_captured": _refused(results, trial.captured & ~trial.calibrates),
            "all_good": _refused(results, good & ~trial.calibrates),
            "sharpness_alone_as_captured": _refused(alone, trial.captured & ~trial.calibrates),
        },
        "bad_refused": {cause: _refused(results, labels == cause) for cause in CLASSIFIED},
        "bad_refused_cheap_alone": {cause: _refused(alone, labels == cause) for cause in CLASSIFIED},
        "between_refused": _refused(results, labels == "between"),
        "undecided_only": undecided_only(trial, fitted),
        "confusion": confusion(labels, results),
        "limits": fitted.limits,
        "recipe": {
            name: getattr(fitted.recipe, name) for name in ("sharpness_min", "brightness_min", "brightness_max")
        },
        "n_calibrating": int((trial.calibrates & trial.captured).sum()),
    }


def undecided_only(trial: Trial, fitted: Fitted) -> dict[str, Any]:
    """What is looked at and what slips by where the classifier looks at undecided frames alone.

    The range of sure frames is as `edge calibrate gate` finds it, from frames that are out of focus.
    """
    good = [trial.examples[i].measures for i in np.flatnonzero(trial.calibrates & trial.captured)]
    out_of_focus = [
        x.measures for x, mine in zip(trial.examples, trial.calibrates, strict=True) if mine and x.label == "defocus"
    ]
    if not out_of_focus:
        return {}
    recipe = gate.propose_sure(good, out_of_focus, fitted.recipe)
    cheap = [gate.judge(x.measures, recipe) for x in trial.examples]
    looks = np.array([gate.undecided(result, recipe) for result in cheap])
    results = [
        judged(result, probabilities, fitted.limits) if look else result
        for result, probabilities, look in zip(cheap, trial.probabilities, looks, strict=True)
    ]
    unseen, labels = ~trial.calibrates, trial.labels
    captured = unseen & trial.captured
    return {
        "good_looked_at": Rate(int(looks[captured].sum()), int(captured.sum())).as_dict(),
        "good_refused": _refused(results, captured),
        "bad_refused": {cause: _refused(results, unseen & (labels == cause)) for cause in CLASSIFIED},
    }


def _refused(results: Sequence[GateResult], which: np.ndarray) -> dict[str, Any]:
    chosen = [results[i] for i in np.flatnonzero(which)]
    return Rate(sum(not r.passed for r in chosen), len(chosen)).as_dict()


def confusion(labels: np.ndarray, results: Sequence[GateResult]) -> list[list[int]]:
    """Counts: a row for each of `OUTPUTS`, a column for each of `NAMED`."""
    table = np.zeros((len(OUTPUTS), len(NAMED)), int)
    for label, result in zip(labels, results, strict=True):
        if label in OUTPUTS:
            named = PASSED if result.cause is None else result.cause.value
            table[OUTPUTS.index(label), NAMED.index(named)] += 1
    return [[int(v) for v in row] for row in table]


def plot_roc(path: Path, by_product: Mapping[str, Trial]) -> None:
    """Blur that costs recall against good frames, for each product left out: classifier, and sharpness alone."""
    with figure(
        path, "Blur that costs a tenth of the recall, on products left out of training", ncols=2, figsize=(10, 4.4)
    ) as axes:
        for name, trial in by_product.items():
            labels, score = trial.labels, blur_score(trial.probabilities)
            cheap = -np.log([max(x.measures.sharpness, gate.LEAST_SHARPNESS) for x in trial.examples])
            good, bad = labels == "ok", np.isin(labels, BLURS)
            for each, s in zip(axes, (score, cheap), strict=True):
                x, y = roc(s[bad], s[good])
                each.plot(np.maximum(x, 1e-4), y, label=f"{name} {auroc(s[bad], s[good]):.4f}")
        for each, title in zip(axes, ("calibrated gate", "variance of the Laplacian alone"), strict=True):
            each.set_xscale("log")
            each.axvline(0.005, color="grey", lw=0.8, ls=":")
            each.set_title(title)
            each.set_xlabel("good frames refused")
            each.set_ylabel("blurred frames refused")
            each.legend(title="AUROC", loc="lower right")


def plot_confusion(path: Path, tables: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Causes: what was wrong by row, what the gate said by column, in shares of the row."""
    with figure(path, "Causes, on products left out of training (shares of each row)", ncols=len(tables),
                squeeze=False, figsize=(4.6 * len(tables), 4.4)) as axes:  # fmt: skip
        for each, (name, table) in zip(axes[0], tables.items(), strict=True):
            counts = np.array(table, float)
            shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
            each.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.005:
                    each.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=6,
                              color="white" if share > 0.6 else "black")  # fmt: skip
            each.set_title(name)
            each.set_xticks(range(len(NAMED)), NAMED, rotation=60, ha="right", fontsize=7)
            each.set_yticks(range(len(OUTPUTS)), OUTPUTS, fontsize=7)
            each.grid(False)


def plot_limits(path: Path, by_product: Mapping[str, Mapping[str, Limits]]) -> None:
    """What each level of a fault costs each product."""
    with figure(path, "What a fault costs: share of the recall lost", ncols=3, nrows=2, figsize=(11, 6.2)) as axes:
        for each, cause in zip(axes.flat, CLASSIFIED, strict=True):
            for name, limits in by_product.items():
                levels, lost = zip(*limits[cause].curve, strict=True)
                each.plot(levels, lost, marker=".", label=f"{name}: {limits[cause].harmful:.3g}")
            each.axhline(0.1, color="grey", lw=0.8, ls=":")
            each.set_ylim(-0.05, 0.6)
            each.set_title(cause)
            each.legend(title="a tenth is lost at", fontsize=7)
