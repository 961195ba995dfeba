"""What a recipe would have done with parts whose state is known: escape, overkill, and how sure these shares are.

A part is one image. A bad one has at least one labelled defect; a good one is a template (the same place without
defects) or an image without labels on which every class was looked for. Escape: a bad part judged OK. Overkill: a good
part judged NG. REVIEW and RETAKE stop the line for a person and are counted apart, in neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge.decide import decide
from edge.recipe import DetectRecipe
from edge.records import Detections, VerdictKind

Z95 = 1.959964  # two-sided 95 % of the normal distribution


@dataclass(frozen=True)
class Rate:
    """A share that was counted: `count` of `total`.

    >>> str(Rate(3, 161)), str(Rate(0, 0))
    ('3/161 = 1.9 % (0.6 to 5.3)', '0/0: no such part')
    """

    count: int
    total: int

    @property
    def share(self) -> float:
        """In [0, 1]; NaN when there is nothing to count."""
        return self.count / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the true share by Wilson's score (JASA 22, 1927): honest for few parts and rare events.

        >>> [round(v, 4) for v in Rate(0, 100).interval]
        [0.0, 0.037]
        """
        n, p = self.total, self.share
        if not n:
            return 0.0, 1.0
        middle = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
        return max(0.0, middle - half) if self.count else 0.0, min(1.0, middle + half) if self.count < n else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For a run record."""
        low, high = self.interval
        share = round(self.share, 5) if self.total else None
        return {"share": share, "count": self.count, "of": self.total, "wilson95": [round(low, 5), round(high, 5)]}

    def __str__(self) -> str:
        if not self.total:
            return "0/0: no such part"
        low, high = (f"{100 * v:.1f}" for v in self.interval)
        return f"{self.count}/{self.total} = {100 * self.share:.1f} % ({low} to {high})"


@dataclass(frozen=True)
class Seen:
    """One image as the device saw it.

    Attributes:
        found: all boxes down to the least confidence. cause: why the gate refused the image; None: it passed.
        size: width and height of the image, pixels; only a recipe with a region asks for it.
    """

    name: str
    group: str
    found: Detections
    cause: str | None = None
    size: tuple[int, int] | None = None


def verdict(seen: Seen, recipe: DetectRecipe, classes: Sequence[str]) -> VerdictKind:
    """What the device decides on it."""
    return VerdictKind.RETAKE if seen.cause else decide(seen.found, recipe, classes, size=seen.size).kind


def tally(parts: Sequence[Seen], recipe: DetectRecipe, classes: Sequence[str]) -> dict[str, Rate]:
    """How many of the parts got each verdict."""
    counts = Counter(verdict(part, recipe, classes) for part in parts)
    return {kind.value: Rate(counts[kind], len(parts)) for kind in VerdictKind}


def part_rates(
    bad: Sequence[Seen], good: Sequence[Seen], recipe: DetectRecipe, classes: Sequence[str]
) -> dict[str, Rate]:
    """Escape, overkill, and the shares of either side that go to a person."""
    of_bad, of_good = tally(bad, recipe, classes), tally(good, recipe, classes)
    return {
        "escape": of_bad["OK"],
        "overkill": of_good["NG"],
        "bad_review": of_bad["REVIEW"],
        "good_review": of_good["REVIEW"],
        "bad_retake": of_bad["RETAKE"],
        "good_retake": of_good["RETAKE"],
    }
