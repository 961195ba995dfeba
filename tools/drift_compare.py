"""Put what drift autoencoders of several products see side by side: how far noise, moving and other products are off.

    python -m tools drift_compare --runs pcb=runs/pcb-drift ballscrew=runs/ballscrew-drift --out runs/drift

The question is that of an experiment published for digit images: noise raised the reconstruction error by 1.3 %
over the baseline of the validation set, images of another data set by 44.2 %. What good frames may do should stay near
the first figure, another product should be far over the second. Percentages are of medians, so that a few empty frames
do not make the figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.errors import ToolError
from tools.plots import figure
from tools.run_record import write_record

RECORD = "drift_run.json"
GROUPS = ("allowed", "degraded", "other")
PUBLISHED = {"noise": 1.3, "another data set": 44.2}  # per cent over the baseline, on digit images

Conditions = Mapping[str, Mapping[str, Any]]


def read_runs(named: Sequence[str]) -> dict[str, Conditions]:
    """The conditions of each NAME=FOLDER, where the folder is one that `drift` wrote.

    Raises:
        ToolError: not such a pair, or no such folder.
    """
    runs: dict[str, Conditions] = {}
    for text in named:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ToolError(f"--runs {text}: expected NAME=FOLDER")
        path = Path(folder) / RECORD
        try:
            runs[name] = json.loads(path.read_text(encoding="utf-8"))["results"]["conditions"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ToolError(f"{path}: not a record of `python -m tools drift`: {error!r}") from error
    return runs


def in_order(runs: Mapping[str, Conditions]) -> list[str]:
    """Names of all conditions, group by group."""
    found: dict[str, str] = {}
    for seen in runs.values():
        found |= {name: values["group"] for name, values in seen.items()}
    return sorted(found, key=lambda name: GROUPS.index(found[name]))


def table(runs: Mapping[str, Conditions]) -> str:
    """Per cent over the baseline and score of each condition and product, as Markdown."""
    head = ["condition", *(f"{name}: error, mean square, score" for name in runs)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for condition in in_order(runs):
        cells = [condition]
        for seen in runs.values():
            s = seen.get(condition)
            cells.append(f"{s['percent']:+.1f} %, {s['plain_percent']:+.1f} %, {s['score']:+.2f}" if s else "")
        lines.append("| " + " | ".join(cells) + " |")
    published = ", ".join(f"{what} {percent:+.1f} %" for what, percent in PUBLISHED.items())
    return "\n".join(lines) + f"\n\nPublished for digit images: {published} of the mean square error.\n"


def plot(runs: Mapping[str, Conditions], path: Path) -> None:
    """Per cent over the baseline of each condition, a row each, the products side by side."""
    names = in_order(runs)
    with figure(path, "Error over the baseline of good frames", figsize=(8.5, 1.5 + 0.3 * len(names))) as axes:
        for k, (product, seen) in enumerate(runs.items()):
            rows = [i for i, name in enumerate(names) if name in seen]
            height = 0.8 / len(runs)
            values = [seen[names[i]]["percent"] for i in rows]
            axes.barh([i + (k - (len(runs) - 1) / 2) * height for i in rows], values, height, label=product)
        for percent in PUBLISHED.values():
            axes.axvline(percent, color="grey", linestyle="--", linewidth=0.8)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yticks(range(len(names)), names), axes.invert_yaxis(), axes.legend()
        axes.set_xlabel("per cent over the median of good frames; dashed: published for digits, noise and another set")


def parser() -> argparse.ArgumentParser:
    """Arguments of the step."""
    p = argparse.ArgumentParser(prog="python -m tools drift_compare", description=__doc__.splitlines()[0])
    p.add_argument("--runs", nargs="+", required=True, metavar="NAME=FOLDER", help="what `drift` wrote, by product")
    p.add_argument("--out", type=Path, required=True, help="folder for drift_compare.json, .png and table.md")
    return p


def main(arguments: Sequence[str]) -> None:
    """Run the step."""
    args = parser().parse_args(arguments)
    runs = read_runs(args.runs)
    plot(runs, args.out / "drift_compare.png")
    (args.out / "table.md").write_text(table(runs), encoding="utf-8")
    write_record(args.out / "drift_compare.json", "drift_compare", vars(args), {"published": PUBLISHED, "runs": runs})
    print(table(runs))
