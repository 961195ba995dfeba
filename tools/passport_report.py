"""The passport as a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.markdown import table

COLUMNS = (
    "boxes", "lost", "extra", "iou_median", "shift_median_px", "shift_p95_px", "score_mean", "score_p95", "score_max",
)  # fmt: skip


def to_markdown(passport: Mapping[str, Any]) -> str:
    """The passport for people."""
    base, forms, sets = passport["reference"]["figures"], passport["forms"], passport["sets"]
    state = "passed" if passport["passed"] else "FAILED"
    lines = [f"# Passport of `{passport['product']}`: {state}", ""]
    lines += [f"- {problem}" for problem in passport["problems"]] or ["All differences are within their limits."]
    digest = passport["reference"]["input_sha256"][:16]
    lines += ["", f"Reference: {passport['reference']['name']}. Input tensors are the same to the last bit for each"]
    lines += [f"form (one SHA-256 over all, {digest}...): {_inputs(passport)}"]
    lines += [f"Golden samples: {sets['golden']['images']}, drawn by this project. Validation: "]
    lines[-1] += f"{sets['validation']['images']} images, {base['truths']} labelled defects."
    names = ["ap33_pooled", "ap33_class_mean", "map50", "map50_95"]
    rows: list[list[Any]] = [["accuracy on validation", "AP33 pooled", "AP33 class mean", "mAP50", "mAP50-95"]]
    rows += [["FP32 reference", *(base[n] for n in names)]]
    rows += [[name, *(form["figures"][n] for n in names)] for name, form in forms.items()]
    lines += ["", *table(rows)]
    rows = [["AP33 by class", *base["ap33"]], ["FP32 reference", *base["ap33"].values()]]
    rows += [[name, *form["figures"]["ap33"].values()] for name, form in forms.items()]
    lines += ["", *table(rows)]
    for which in ("golden", "validation"):
        lines += ["", *table(_differences(forms, which))]
    lines += ["", "Boxes are matched by class and overlap over 0.5. Shift: distance of their centres in pixels of the"]
    lines += ["source image. Confidence: form minus reference. Verdicts by the recipe's thresholds.", ""]
    lines += _limits(passport["limits"])
    for name, entries in passport["layers"].items():
        lines += ["", f"Layers that add most error, {name} (share of the output's RMS; all in `passport.json`):", ""]
        worst = sorted(entries, key=lambda e: -e["added"])[:8]
        lines += table([["layer", "operator", "shape", "INT8", "error", "added here"], *map(_layer, worst)])
    return "\n".join(lines) + "\n"


def _layer(e: Mapping[str, Any]) -> list[Any]:
    precision = "yes" if e["int8"] else "no"
    return [e["name"], e["op"], "x".join(map(str, e["shape"])), precision, e["relative"], e["added"]]


def _inputs(passport: Mapping[str, Any]) -> str:
    want = passport["reference"]["input_sha256"]
    other = [name for name, form in passport["forms"].items() if form["input_sha256"] != want]
    return f"not so {', '.join(other)}." if other else "verified for each."


def _differences(forms: Mapping[str, Any], which: str) -> list[list[Any]]:
    head = ["boxes", "lost", "extra", "IoU median", "shift median", "shift p95", "confidence mean", "p95", "max"]
    rows: list[list[Any]] = [[f"against FP32, {which}", *head, "other verdicts"]]
    rows += [_agreement(name, form[which]) for name, form in forms.items()]
    if which == "validation":
        own = {name: form["against_simulation"] for name, form in forms.items() if "against_simulation" in form}
        rows += [_agreement(f"{name}, against its simulation", a) for name, a in own.items()]
    return rows


def _agreement(name: str, a: Mapping[str, Any]) -> list[Any]:
    changed = f"{a['changed']} of {a['images']}" + "".join(f", {kind} {n}" for kind, n in a["changes"].items())
    return [name, *(a[key] for key in COLUMNS), changed]


def _limits(limits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    names = list(next(iter(limits.values())))
    return table([["limits", *names], *([precision, *(own[n] for n in names)] for precision, own in limits.items())])
