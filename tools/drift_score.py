"""How well an autoencoder tells good frames from others: scores of what is allowed, degraded, and another product.

A score is the one that the device's sequential detectors add up (`edge.drift.baseline`): 0 in the mean on good frames,
of deviation 1. The mean score of a condition says how fast it is found: a mean of 1 takes a tenth of the frames that a
mean of 0.3 takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge.boxes import Float
from edge.detect import Predictor
from edge.drift import reconstruct
from edge.drift.baseline import numbers, score
from edge.drift.plan import PLANS

GOOD = "good"
GROUPS = ("allowed", "degraded", "other")


@dataclass(frozen=True)
class Errors:
    """Errors of some pictures, one each.

    Attributes:
        scaled: as the device computes them. plain: the mean square error alone, as publications give it.
    """

    scaled: list[float]
    plain: list[float]


def errors_of(predictor: Predictor, pictures: Float) -> Errors:
    """The errors of pictures (N, 1, H, W)."""
    scaled, plain = [], []
    for picture in pictures:
        tensor = np.ascontiguousarray(picture[None])
        scaled.append(reconstruct.error(tensor, predictor.run(tensor)[0]))
        plain.append(scaled[-1] * (reconstruct.simple_guess(tensor) + reconstruct.FLOOR))
    return Errors(scaled, plain)


@dataclass(frozen=True)
class Seen:
    """What the errors of a condition say.

    Attributes:
        group: `allowed`, `degraded` or `other`. frames: how many.
        error: their median. percent: over the median of good frames. score: the mean score.
        plain_percent: of the median mean square error over that of good frames.
    """

    group: str
    frames: int
    error: float
    percent: float
    score: float
    plain_percent: float


def judge(good: Errors, others: Mapping[str, Mapping[str, Errors]]) -> dict[str, Seen]:
    """Each condition, by name, against good frames.

    Args:
        good: errors of good frames, 10 or more. others: group -> condition -> errors.
    """
    plan = PLANS["ae_error"]
    baseline = numbers(good.scaled, plan.least + plan.share * float(np.median(good.scaled)))
    result = {}
    for group in GROUPS:
        for name, errors in others.get(group, {}).items():
            result[name] = Seen(
                group,
                frames=len(errors.scaled),
                error=float(np.median(errors.scaled)),
                percent=_over(errors.scaled, good.scaled),
                score=float(np.mean([score(e, baseline) for e in errors.scaled])),
                plain_percent=_over(errors.plain, good.plain),
            )
    return result


def _over(these: Sequence[float], good: Sequence[float]) -> float:
    return 100 * (float(np.median(these)) / float(np.median(good)) - 1)


def separation(seen: Mapping[str, Seen]) -> float:
    """One figure for all, in sigmas, higher is better: how far degraded and other frames are off in the mean, less how
    far what is allowed is at most.

    >>> seen = {"a": Seen("degraded", 9, 2.0, 100, -1.5, 0), "b": Seen("other", 9, 3.0, 200, 2.5, 0)}
    >>> separation(seen), separation({**seen, "c": Seen("allowed", 9, 1.0, 0, 0.25, 0)})
    (2.0, 1.75)
    """
    far = [abs(s.score) for s in seen.values() if s.group != "allowed"]
    quiet = [abs(s.score) for s in seen.values() if s.group == "allowed"]
    return float(np.mean(far)) - max(quiet, default=0.0)


def table(seen: Mapping[str, Seen], good: Errors) -> str:
    """All conditions as Markdown."""
    head = ("condition", "group", "frames", "error", "over the baseline", "score", "mean square over the baseline")
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines.append(f"| {GOOD} | baseline | {len(good.scaled)} | {np.median(good.scaled):.4f} |  |  |  |")
    for name, s in seen.items():
        values = (name, s.group, f"{s.frames}", f"{s.error:.4f}", f"{s.percent:+.1f} %", f"{s.score:+.2f}")
        lines.append("| " + " | ".join((*values, f"{s.plain_percent:+.1f} %")) + " |")
    return "\n".join(lines) + "\n"
