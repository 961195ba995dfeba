"""A new bundle looks at live parts beside the one in charge: when there is time for it, and how far they agree.

Pure: times come as arguments, monotonic nanoseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum

from edge.event import ShadowCounts
from edge.records import VerdictKind

INTERVALS = 32  # remembered between parts
SOON = 0.1  # the next part may come as soon as after the shortest tenth of them
TIMES = 32  # of its looks remembered
PAUSE_NS = 10_000_000_000  # a longer time without a part is a pause
HANDFUL = 5  # looks; fewer say nothing about a share
MARGIN = 1.2  # on the longest of them: beside other work an inference takes longer now and then


class Agreement(str, Enum):
    """How a new bundle's verdict stands to the one that counted."""

    AGREED = "agreed"
    STRICTER = "stricter"  # the part passed, and would not have
    LAXER = "laxer"  # the part did not pass, and would have
    OTHER = "other"  # it passes by neither, for other reasons


def compare(active: VerdictKind, candidate: VerdictKind) -> Agreement:
    """How the candidate's verdict stands to the one that counted.

    >>> compare(VerdictKind.OK, VerdictKind.NG).value, compare(VerdictKind.RETAKE, VerdictKind.NG).value
    ('stricter', 'other')
    """
    if active is candidate:
        return Agreement.AGREED
    if active is VerdictKind.OK:
        return Agreement.STRICTER
    return Agreement.LAXER if candidate is VerdictKind.OK else Agreement.OTHER


class Rhythm:
    """When the next part may come, by how parts came so far.

    >>> rhythm = Rhythm()
    >>> for k in range(5):
    ...     rhythm.note(k * 50_000_000)
    >>> rhythm.spare_ns(210_000_000)
    40000000
    """

    def __init__(self) -> None:
        self._last_ns: dict[str, int] = {}
        self._intervals: dict[str, deque[int]] = {}

    def note(self, at_ns: int, source: str = "") -> None:
        """A part came. Of several sources (cameras that run free) each has a rhythm of its own."""
        last_ns = self._last_ns.get(source)
        if last_ns is not None and at_ns > last_ns:
            self._intervals.setdefault(source, deque(maxlen=INTERVALS)).append(at_ns - last_ns)
        self._last_ns[source] = at_ns if last_ns is None else max(at_ns, last_ns)

    def spare_ns(self, now_ns: int) -> int:
        """Until the next part at the earliest; 0 when that is past, or nothing is known yet."""
        next_ns = [self._last_ns[source] + _soon(intervals) for source, intervals in self._intervals.items()]
        return max(0, min(next_ns, default=now_ns) - now_ns)


def _soon(intervals: deque[int]) -> int:
    return sorted(intervals)[int(SOON * len(intervals))]


@dataclass(frozen=True)
class ShadowLimits:
    """What is asked of a bundle in shadow.

    Attributes:
        looks: frames that it has to see. disagree_max: share of them on which it may differ.
        longest_ns: it waits at most so long for spare time, of a line that runs.
    """

    looks: int
    disagree_max: float
    longest_ns: int


class Shadow:
    """The count of one bundle in shadow, and whether that is enough."""

    def __init__(self, limits: ShadowLimits, began_ns: int) -> None:
        self._limits = limits
        self._came_ns, self._ran_ns = began_ns, 0
        self._found: Counter[Agreement] = Counter()
        self._took: deque[int] = deque(maxlen=TIMES)
        self._no_time = 0

    def came(self, now_ns: int) -> None:
        """A part was settled: the line runs. A line that stands uses up no time."""
        self._ran_ns += min(now_ns - self._came_ns, PAUSE_NS)
        self._came_ns = now_ns

    def note(self, agreement: Agreement, took_ns: int) -> None:
        """It looked at a frame."""
        self._found[agreement] += 1
        self._took.append(took_ns)

    def no_time(self) -> None:
        """A frame went by without a look."""
        self._no_time += 1

    @property
    def need_ns(self) -> int:
        """The spare time that one look wants; 0 while none was measured."""
        return int(MARGIN * max(self._took, default=0))

    @property
    def seen(self) -> int:
        """Frames that it looked at."""
        return self._found.total()

    @property
    def disagreed(self) -> int:
        """Frames on which it differed."""
        return self.seen - self._found[Agreement.AGREED]

    def refused(self, at_end: bool = False) -> str:
        """Why the bundle must not be put in charge, in a sentence; "" as long as it may.

        Said as soon as no agreement to come could make it good; at the end the share of what was seen counts, where
        that were more than a handful.
        """
        limits = self._limits
        most = limits.disagree_max * (self.seen if at_end else max(limits.looks, self.seen))
        if self.disagreed <= most or self.seen < min(HANDFUL, limits.looks):
            return ""
        found = self._found
        return (
            f"of {self.seen} frames seen beside the bundle in charge it judged {self.disagreed} differently "
            f"({found[Agreement.STRICTER]} stricter, {found[Agreement.LAXER]} laxer, {found[Agreement.OTHER]} for "
            f"other reasons), and trial.disagree_max allows {limits.disagree_max:.0%}"
        )

    def over(self) -> bool:
        """Whether it has seen enough, or has waited long enough for time."""
        return self.seen >= self._limits.looks or self._ran_ns >= self._limits.longest_ns

    def counts(self) -> ShadowCounts:
        """As they are told."""
        return ShadowCounts(
            seen=self.seen,
            wanted=self._limits.looks,
            agreed=self._found[Agreement.AGREED],
            stricter=self._found[Agreement.STRICTER],
            laxer=self._found[Agreement.LAXER],
            other=self._found[Agreement.OTHER],
            no_time=self._no_time,
        )
